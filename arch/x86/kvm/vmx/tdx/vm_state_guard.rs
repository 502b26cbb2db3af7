// SPDX-License-Identifier: GPL-2.0

//! The guard around every state transition of a TD.

#![deny(unsafe_code)]

use kernel::{
    kvm::{
        SlotsLocked,
        Vm, //
    },
    prelude::*, //
};

use core::ops::Deref;

use crate::{
    ffi::KvmTdx,
    td::TdState, //
};

/// Exclusive access to the state of a TD.
///
/// The TDX module protects its structures with locks that never wait: two SEAMCALLs that race make
/// one fail with TDX_OPERAND_BUSY, which KVM cannot recover from. A TD changes state only under
/// this guard, which holds off whatever else could issue a SEAMCALL for it:
///
/// - `kvm->lock`: creation of vCPUs and the other ioctls of the VM;
/// - every `vcpu->mutex`: the ioctls of the vCPUs and KVM_RUN;
/// - `kvm->slots_lock`: changes of memory slots and of memory attributes.
///
/// The guard is the only way to a [`TdState`] and thus to the SEAMCALLs that change it.
///
/// # Invariants
///
/// The VM that is locked is a TD.
#[must_use = "the TD may change as soon as the guard is dropped"]
pub(crate) struct TdxVmStateGuard<'a> {
    slots: SlotsLocked<'a>,
}

impl<'a> TdxVmStateGuard<'a> {
    /// Takes `kvm->lock`, every `vcpu->mutex` and `kvm->slots_lock`, in this order.
    ///
    /// # Context
    ///
    /// May sleep. A fatal signal ends the wait for a vCPU.
    ///
    /// # Errors
    ///
    /// With nothing held:
    ///
    /// - `EBUSY`: a vCPU is half created.
    /// - `EINTR`: a fatal signal came while waiting for a vCPU's mutex.
    pub(crate) fn lock(kvm_tdx: &'a KvmTdx) -> Result<Self> {
        let vm: &'a Vm = kvm_tdx;

        // INVARIANT: The VM is that of `kvm_tdx`.
        Ok(Self {
            slots: vm.lock().lock_all_vcpus()?.lock_slots(),
        })
    }

    /// Returns the state that the TD is in, with what may be done in it.
    ///
    /// The guard stays borrowed for as long as the state is in use, so no second, stale view can
    /// exist beside it.
    pub(crate) fn td(&mut self) -> TdState<'_> {
        TdState::new(self)
    }
}

impl<'a> Deref for TdxVmStateGuard<'a> {
    type Target = SlotsLocked<'a>;

    fn deref(&self) -> &Self::Target {
        &self.slots
    }
}
