// SPDX-License-Identifier: GPL-2.0

//! The locks that freeze a VM, as a ladder of guards.
//!
//! Each guard is made only from the one before, which it consumes and keeps as a field. Dropping a
//! guard runs its own [`Drop`] first and then drops that field, so the locks are released in the
//! reverse order of their acquisition whatever the caller does. A step that fails drops what it
//! consumed, so nothing stays held behind an error.
//!
//! Leaking a guard leaves its locks held, which may deadlock but is never unsound.

use crate::{
    bindings,
    error::to_result,
    prelude::*,
    types::NotThreadSafe, //
};

use core::ops::Deref;

use super::{
    LoadedVcpu,
    LockedVcpu,
    Vcpu,
    Vm, //
};

/// `kvm->lock` is held.
///
/// # Invariants
///
/// The current task holds `vm->lock` for as long as the guard exists.
#[must_use = "the VM is unlocked as soon as the guard is dropped"]
pub struct VmLocked<'a> {
    vm: &'a Vm,
    // A mutex is released by the task that took it.
    _not_send: NotThreadSafe,
}

impl<'a> VmLocked<'a> {
    #[inline]
    pub(super) fn new(vm: &'a Vm) -> Self {
        // SAFETY: The mutex is part of a VM that is alive for `'a`.
        unsafe { bindings::mutex_lock(&raw mut (*vm.as_raw()).lock) };
        // INVARIANT: The mutex has just been taken.
        Self {
            vm,
            _not_send: NotThreadSafe,
        }
    }

    /// Returns the locked VM.
    #[inline]
    pub fn vm(&self) -> &'a Vm {
        self.vm
    }

    /// Returns the number of vCPUs whose creation has begun, finished or not.
    #[inline]
    pub fn created_vcpus(&self) -> u32 {
        // SAFETY: `kvm->lock`, held by the type invariant, guards the field.
        let n = unsafe { (*self.vm.as_raw()).created_vcpus };

        // CAST: The counter is never negative.
        n as u32
    }

    /// Returns the number of vCPUs that can be found by others.
    #[inline]
    pub fn online_vcpus(&self) -> u32 {
        // SAFETY: The counter is part of a VM that is alive.
        let n = unsafe { bindings::atomic_read(&raw const (*self.vm.as_raw()).online_vcpus) };

        // CAST: The counter counts vCPUs and is never negative.
        n as u32
    }

    /// Takes the mutex of every vCPU, in the order of their indices.
    ///
    /// # Context
    ///
    /// May sleep. A fatal signal ends the wait.
    ///
    /// # Errors
    ///
    /// With everything released, `kvm->lock` included:
    ///
    /// - `EBUSY`: a vCPU is half created, so its mutex cannot be taken.
    /// - `EINTR`: a fatal signal came while waiting for a vCPU's mutex.
    #[inline]
    pub fn lock_all_vcpus(self) -> Result<AllVcpusLocked<'a>> {
        // Where vCPU creation holds `kvm->lock` throughout, this cannot be, and C warns; where it
        // does not, a half-created vCPU is no bug.
        if self.created_vcpus() != self.online_vcpus() {
            return Err(EBUSY);
        }

        // SAFETY: The VM is alive and `kvm->lock` is held by the type invariant.
        to_result(unsafe { bindings::kvm_lock_vcpus(self.vm.as_raw()) })?;

        // INVARIANT: The mutexes of all vCPUs have just been taken, and none can be added while
        // `kvm->lock` is held.
        Ok(AllVcpusLocked { vm: self })
    }
}

impl Drop for VmLocked<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the mutex.
        unsafe { bindings::mutex_unlock(&raw mut (*self.vm.as_raw()).lock) };
    }
}

/// `kvm->lock` and the mutex of every vCPU are held.
///
/// # Invariants
///
/// The current task holds the mutex of each vCPU of `vm` for as long as the guard exists.
#[must_use = "the vCPUs are unlocked as soon as the guard is dropped"]
pub struct AllVcpusLocked<'a> {
    // Dropped after `Drop::drop()` has released the vCPUs.
    vm: VmLocked<'a>,
}

impl<'a> AllVcpusLocked<'a> {
    /// Takes `kvm->slots_lock`.
    ///
    /// # Context
    ///
    /// May sleep. The wait is not interruptible.
    #[inline]
    pub fn lock_slots(self) -> SlotsLocked<'a> {
        // SAFETY: The mutex is part of a VM that is alive for `'a`.
        unsafe { bindings::mutex_lock(&raw mut (*self.vm.vm.as_raw()).slots_lock) };
        // INVARIANT: The mutex has just been taken.
        SlotsLocked { vcpus: self }
    }

    /// Shows that the mutex of `vcpu` is held.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `vcpu` belongs to another VM.
    #[inline]
    pub fn locked_vcpu<'g>(&'g self, vcpu: &'g Vcpu) -> Result<LockedVcpu<'g>> {
        if !core::ptr::eq(vcpu.vm(), self.vm.vm) {
            return Err(EINVAL);
        }

        // SAFETY: By the type invariant the mutex of each vCPU of the VM is held for as long as
        // `self` is borrowed, and `vcpu` has just been found to be one of them.
        Ok(unsafe { LockedVcpu::assume_locked(vcpu) })
    }

    /// Runs `f` while `vcpu` is loaded onto the current CPU.
    ///
    /// A guard that puts the vCPU when dropped could be leaked: the scheduler would go on to use a
    /// vCPU that may be gone.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: `vcpu` belongs to another VM.
    /// - what `f` returns.
    ///
    /// # Safety
    ///
    /// The current task has no vCPU loaded, and `f` loads none.
    #[inline]
    pub unsafe fn with_loaded_vcpu<T>(
        &self,
        vcpu: &Vcpu,
        f: impl FnOnce(LoadedVcpu<'_>) -> Result<T>,
    ) -> Result<T> {
        let vcpu = self.locked_vcpu(vcpu)?;

        // SAFETY: By the safety requirements.
        unsafe { LoadedVcpu::with(vcpu, f) }
    }
}

impl<'a> Deref for AllVcpusLocked<'a> {
    type Target = VmLocked<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.vm
    }
}

impl Drop for AllVcpusLocked<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariants `kvm->lock` and the mutex of each vCPU are held.
        unsafe { bindings::kvm_unlock_vcpus(self.vm.vm.as_raw()) };
    }
}

/// `kvm->lock`, the mutex of every vCPU and `kvm->slots_lock` are held.
///
/// # Invariants
///
/// The current task holds `vm->slots_lock` for as long as the guard exists.
#[must_use = "the memory slots are unlocked as soon as the guard is dropped"]
pub struct SlotsLocked<'a> {
    // Dropped after `Drop::drop()` has released the slots.
    vcpus: AllVcpusLocked<'a>,
}

impl<'a> SlotsLocked<'a> {
    /// Takes `kvm->mmu_lock` for write.
    ///
    /// # Context
    ///
    /// Spins. The caller must not sleep for as long as the guard exists.
    #[inline]
    pub fn lock_mmu_for_write(&self) -> MmuWriteLocked<'_> {
        let vm = self.vm();

        // SAFETY: The lock is part of a VM that is alive.
        unsafe { bindings::kvm_mmu_write_lock(vm.as_raw()) };
        // INVARIANT: The lock has just been taken.
        MmuWriteLocked {
            vm,
            _not_send: NotThreadSafe,
        }
    }
}

impl<'a> Deref for SlotsLocked<'a> {
    type Target = AllVcpusLocked<'a>;

    #[inline]
    fn deref(&self) -> &Self::Target {
        &self.vcpus
    }
}

impl Drop for SlotsLocked<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the mutex.
        unsafe { bindings::mutex_unlock(&raw mut (*self.vm().as_raw()).slots_lock) };
    }
}

/// `kvm->mmu_lock` is held for write.
///
/// # Invariants
///
/// The current task holds `vm->mmu_lock` for write for as long as the guard exists.
#[must_use = "the MMU is unlocked as soon as the guard is dropped"]
pub struct MmuWriteLocked<'a> {
    vm: &'a Vm,
    _not_send: NotThreadSafe,
}

impl<'a> MmuWriteLocked<'a> {
    /// Returns the VM whose MMU is locked.
    #[inline]
    pub fn vm(&self) -> &'a Vm {
        self.vm
    }
}

impl Drop for MmuWriteLocked<'_> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the lock for write.
        unsafe { bindings::kvm_mmu_write_unlock(self.vm.as_raw()) };
    }
}
