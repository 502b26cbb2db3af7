// SPDX-License-Identifier: GPL-2.0

//! The states of a TD, and what proves that a TD or one of its vCPUs cannot change underfoot.
//!
//! ```text
//!   Uninitialized --KVM_TDX_INIT_VM--> Initialized --KVM_TDX_FINALIZE_VM--> Runnable
//!                                       INIT_VCPU, INIT_MEM_REGION
//! ```
//!
//! Each state is a type; what is not legal in it does not exist as a method. A transition consumes
//! the old state.

#![deny(unsafe_code)]

use core::marker::PhantomData;

use crate::{
    ffi::KvmTdx,
    vm_state_guard::TdxVmStateGuard, //
};

/// The TD has no key and no pages yet, or lost them when KVM_TDX_INIT_VM failed.
pub(crate) enum Uninitialized {}

/// The TD is being built: vCPUs and memory can be added.
pub(crate) enum Initialized {}

/// The state that a TD is in.
pub(crate) enum TdState<'g> {
    /// Before KVM_TDX_INIT_VM.
    Uninitialized(Td<'g, Uninitialized>),
    /// Between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM.
    Initialized(Td<'g, Initialized>),
    /// After KVM_TDX_FINALIZE_VM. No ioctl changes the TD any more.
    Runnable,
}

impl<'g> TdState<'g> {
    /// Looks at the TD, which stays as it is found for as long as the guard is borrowed.
    pub(crate) fn new(guard: &'g mut TdxVmStateGuard<'_>) -> Self {
        let guard: &'g TdxVmStateGuard<'g> = guard;
        let kvm_tdx = guard.kvm_tdx();

        if kvm_tdx.is_runnable() {
            Self::Runnable
        } else if kvm_tdx.is_hkid_assigned() {
            Self::Initialized(Td::assume_state(guard))
        } else {
            Self::Uninitialized(Td::assume_state(guard))
        }
    }
}

/// A TD in state `S`, which cannot change other than through this value.
///
/// # Invariants
///
/// The TD of `guard` is in state `S`, and no other `Td` exists for it: the guard is mutably
/// borrowed for `'g`.
pub(crate) struct Td<'g, S> {
    guard: &'g TdxVmStateGuard<'g>,
    _state: PhantomData<S>,
}

impl<'g, S> Td<'g, S> {
    /// States that the TD is in `S`.
    fn assume_state(guard: &'g TdxVmStateGuard<'g>) -> Self {
        // INVARIANT: The only caller, [`TdState::new`], has just looked, and borrows the guard
        // mutably for `'g`.
        Self {
            guard,
            _state: PhantomData,
        }
    }

    /// Returns the guard that the TD is held by.
    pub(crate) fn guard(&self) -> &'g TdxVmStateGuard<'g> {
        self.guard
    }
}

/// What keeps a TD from changing state: the whole guard, or the mutex of one of its vCPUs, without
/// which nobody gets the guard.
///
/// It suffices for SEAMCALLs that only read the TD. They take the TDR shared, as they do not
/// exclude one another, and every leaf that takes it exclusive needs the guard.
pub(crate) trait StateFrozen {
    /// Returns the TD.
    fn kvm_tdx(&self) -> &KvmTdx;
}

impl<S> StateFrozen for Td<'_, S> {
    fn kvm_tdx(&self) -> &KvmTdx {
        self.guard.kvm_tdx()
    }
}
