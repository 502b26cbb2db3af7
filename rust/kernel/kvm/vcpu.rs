// SPDX-License-Identifier: GPL-2.0

//! A virtual CPU, and the proofs that it is locked or loaded.

use crate::{
    bindings,
    types::{
        NotThreadSafe,
        Opaque, //
    },
};

use core::ops::Deref;

use super::Vm;

/// A virtual CPU: the kernel's `struct kvm_vcpu`.
///
/// # Invariants
///
/// `self.0` is a `struct kvm_vcpu` that KVM has created and not yet begun to destroy, and its VM
/// lives longer.
#[repr(transparent)]
pub struct Vcpu(Opaque<bindings::kvm_vcpu>);

impl Vcpu {
    /// Creates a reference from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` points at a created `struct kvm_vcpu` that stays alive, and is not being destroyed,
    /// for the whole of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::kvm_vcpu) -> &'a Self {
        // INVARIANT: The caller promises a created vCPU that lives for `'a`.
        // SAFETY: `Vcpu` is a transparent wrapper around `struct kvm_vcpu`.
        unsafe { &*ptr.cast() }
    }

    /// Returns the raw pointer to the C structure.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::kvm_vcpu {
        self.0.get()
    }

    /// Returns the VM that the vCPU belongs to.
    #[inline]
    pub fn vm(&self) -> &Vm {
        // SAFETY: `kvm` is set once, before the vCPU can be found, and by the type invariant the VM
        // lives longer than the vCPU.
        unsafe { Vm::from_raw((*self.as_raw()).kvm) }
    }

    /// Returns the id that user space gave the vCPU: the id of its local APIC.
    #[inline]
    pub fn id(&self) -> u32 {
        // SAFETY: `vcpu_id` is set once, before the vCPU can be found.
        let id = unsafe { (*self.as_raw()).vcpu_id };

        // CAST: KVM_CREATE_VCPU refuses ids that do not fit.
        id as u32
    }
}

/// A vCPU whose mutex is held.
///
/// # Invariants
///
/// The current task holds `vcpu->mutex` for the whole of `'a`.
pub struct LockedVcpu<'a> {
    vcpu: &'a Vcpu,
    _not_send: NotThreadSafe,
}

impl<'a> LockedVcpu<'a> {
    /// States that the mutex of `vcpu` is held, for callers that KVM has locked it for. Lockdep
    /// checks the claim where it is on.
    ///
    /// # Safety
    ///
    /// The current task holds `vcpu->mutex`, and keeps it for the whole of `'a`.
    #[inline]
    pub unsafe fn assume_locked(vcpu: &'a Vcpu) -> Self {
        // SAFETY: The mutex is part of a vCPU that is alive.
        unsafe { bindings::mutex_assert_is_held(&raw mut (*vcpu.as_raw()).mutex) };
        // INVARIANT: The caller promises it.
        Self {
            vcpu,
            _not_send: NotThreadSafe,
        }
    }
}

impl Deref for LockedVcpu<'_> {
    type Target = Vcpu;

    #[inline]
    fn deref(&self) -> &Vcpu {
        self.vcpu
    }
}

/// A locked vCPU that is loaded onto the current CPU.
///
/// # Invariants
///
/// `vcpu_load()` has been called for the vCPU, and `vcpu_put()` is not before the end of `'a`.
pub struct LoadedVcpu<'a> {
    vcpu: LockedVcpu<'a>,
}

impl<'a> LoadedVcpu<'a> {
    /// Runs `f` while `vcpu` is loaded.
    ///
    /// # Safety
    ///
    /// The current task has no vCPU loaded, and `f` loads none.
    // Inline, as all that calls into KVM: see the module's documentation.
    #[inline]
    pub(super) unsafe fn with<T>(vcpu: LockedVcpu<'a>, f: impl FnOnce(LoadedVcpu<'_>) -> T) -> T {
        let raw = vcpu.as_raw();

        // SAFETY: The vCPU is alive and the current task holds its mutex. By the safety
        // requirements its preemption notifier is registered once.
        unsafe { bindings::vcpu_load(raw) };
        // INVARIANT: The vCPU has just been loaded, and is put once `f` is through with it.
        let result = f(LoadedVcpu { vcpu });

        // SAFETY: The vCPU is loaded.
        unsafe { bindings::vcpu_put(raw) };
        result
    }
}

impl<'a> Deref for LoadedVcpu<'a> {
    type Target = LockedVcpu<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.vcpu
    }
}
