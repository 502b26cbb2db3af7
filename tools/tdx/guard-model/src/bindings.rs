// SPDX-License-Identifier: GPL-2.0

//! Stands for the bindings to KVM's C, in so far as locks are concerned.
//!
//! What is named as in C is what the guard calls, and where a [`Flaw`] shows. The methods are for
//! the other paths of KVM, which are always right.

#![allow(non_camel_case_types)]
// These have the signatures of C's functions; what they may be called with is said there.
#![allow(clippy::missing_safety_doc)]

use crate::{
    error::code::*,
    flaw::{
        self,
        Flaw, //
    },
    ledger::{
        self,
        Lock, //
    },
};
use core::ffi::{
    c_int,
    c_void, //
};
pub type gfn_t = u64;
pub type kvm_pfn_t = u64;

/// A mutex. Who holds it is in the [`ledger`].
pub struct mutex(Lock);

impl mutex {
    pub fn lock(&self) {
        ledger::take(self.0);
    }

    pub fn unlock(&self) {
        ledger::release(self.0);
    }
}

/// The counter of vCPUs that can be found, which is in the [`ledger`].
pub struct atomic_t;

pub struct kvm {
    pub lock: mutex,
    pub slots_lock: mutex,
    pub mmu_lock: mutex,
    /// `filemap_invalidate_lock()` of the only guest_memfd.
    pub file_lock: mutex,
    pub created_vcpus: c_int,
    pub online_vcpus: atomic_t,
    pub vcpus: [kvm_vcpu; Self::MAX_VCPUS],
}

impl kvm {
    pub const MAX_VCPUS: usize = 2;

    pub fn new(vcpus: usize) -> Self {
        Self {
            lock: mutex(Lock::Vm),
            slots_lock: mutex(Lock::Slots),
            mmu_lock: mutex(Lock::Mmu),
            file_lock: mutex(Lock::File),
            created_vcpus: vcpus as c_int,
            online_vcpus: atomic_t,
            vcpus: [0, 1].map(|index| kvm_vcpu {
                mutex: mutex(Lock::Vcpu(index)),
                kvm: core::ptr::null_mut(),
                vcpu_id: index as c_int,
            }),
        }
    }

    /// Returns the number of vCPUs that can be found.
    pub fn online(&self) -> usize {
        ledger::shared(|shared| shared.online_vcpus)
    }
}

pub struct kvm_vcpu {
    pub mutex: mutex,
    pub kvm: *mut kvm,
    pub vcpu_id: c_int,
}

pub struct page;

pub unsafe fn atomic_read(_counter: *const atomic_t) -> c_int {
    let created_too = flaw::is(Flaw::HalfCreatedUnnoticed);

    ledger::shared(|shared| match created_too {
        false => shared.online_vcpus as c_int,
        true => shared.created_vcpus as c_int,
    })
}

pub unsafe fn mutex_lock(lock: *mut mutex) {
    // SAFETY: As for C's.
    let lock = unsafe { &*lock };
    let left_out = match lock.0 {
        Lock::Vm => flaw::is(Flaw::NoVmLock),
        Lock::Slots => flaw::is(Flaw::NoSlotsLock) || flaw::is(Flaw::SlotsBeforeVcpus),
        _ => false,
    };

    if !left_out {
        lock.lock();
    }
}

pub unsafe fn mutex_unlock(lock: *mut mutex) {
    // A check has failed, and the guards on the way out are dropped.
    if std::thread::panicking() {
        return;
    }

    // SAFETY: As for C's.
    let lock = unsafe { &*lock };
    let left_out = match lock.0 {
        Lock::Vm => {
            flaw::is(Flaw::NoVmLock) || flaw::is(Flaw::VmReleasedEarly) && !ledger::holds(Lock::Vm)
        }
        Lock::Slots => {
            flaw::is(Flaw::NoSlotsLock)
                || flaw::is(Flaw::SlotsBeforeVcpus)
                || flaw::is(Flaw::SlotsReleasedLast)
        }
        _ => false,
    };

    if !left_out {
        lock.unlock();
    }
}

pub unsafe fn mutex_assert_is_held(lock: *mut mutex) {
    // SAFETY: As for C's.
    let name = unsafe { (*lock).0 };

    assert!(
        ledger::holds(name) || flaw::is(Flaw::NoVcpuMutexes) || flaw::is(Flaw::OneVcpuMutexShort),
        "{name:?} is taken for held"
    );
}

pub unsafe fn kvm_lock_vcpus(kvm: *mut kvm) -> c_int {
    // SAFETY: As for C's.
    let kvm = unsafe { &*kvm };
    let online = kvm.online();

    assert!(
        kvm.created_vcpus as usize == online || flaw::is(Flaw::NoVmLock),
        "C warns: a vCPU is half created"
    );

    if flaw::is(Flaw::SlotsBeforeVcpus) {
        kvm.slots_lock.lock();
    }
    if flaw::is(Flaw::NoVcpuMutexes) {
        return 0;
    }

    for (index, vcpu) in kvm.vcpus[..online].iter().enumerate() {
        if flaw::is(Flaw::OneVcpuMutexShort) && index == online - 1 {
            break;
        }
        if ledger::is_killed_at(index) && !flaw::is(Flaw::NotKillable) {
            if !flaw::is(Flaw::KilledKeepsVcpus) {
                kvm.vcpus[..index]
                    .iter()
                    .for_each(|vcpu| vcpu.mutex.unlock());
            }
            return EINTR.to_errno();
        }
        vcpu.mutex.lock();
    }

    if flaw::is(Flaw::VmReleasedEarly) {
        kvm.lock.unlock();
    }
    0
}

pub unsafe fn kvm_unlock_vcpus(kvm: *mut kvm) {
    // As above.
    if std::thread::panicking() {
        return;
    }

    // SAFETY: As for C's.
    let kvm = unsafe { &*kvm };
    let locked = match kvm.online() {
        _ if flaw::is(Flaw::NoVcpuMutexes) => 0,
        online if flaw::is(Flaw::OneVcpuMutexShort) => online.saturating_sub(1),
        online => online,
    };

    kvm.vcpus[..locked]
        .iter()
        .for_each(|vcpu| vcpu.mutex.unlock());
    if flaw::is(Flaw::SlotsBeforeVcpus) {
        kvm.slots_lock.unlock();
    }
    if flaw::is(Flaw::SlotsReleasedLast) && ledger::holds(Lock::Slots) {
        kvm.slots_lock.unlock();
    }
}

pub unsafe fn kvm_mmu_write_lock(kvm: *mut kvm) {
    if !flaw::is(Flaw::NoMmuLock) {
        // SAFETY: As for C's.
        unsafe { (*kvm).mmu_lock.lock() };
    }
}

pub unsafe fn kvm_mmu_write_unlock(kvm: *mut kvm) {
    if !flaw::is(Flaw::NoMmuLock) {
        // SAFETY: As for C's.
        unsafe { (*kvm).mmu_lock.unlock() };
    }
}

pub unsafe fn vcpu_load(vcpu: *mut kvm_vcpu) {
    // SAFETY: As for C's.
    unsafe { mutex_assert_is_held(&raw mut (*vcpu).mutex) };
}

pub unsafe fn vcpu_put(_vcpu: *mut kvm_vcpu) {}

pub type populate_fn = unsafe extern "C" fn(
    kvm: *mut kvm,
    gfn: gfn_t,
    pfn: kvm_pfn_t,
    src: *mut page,
    opaque: *mut c_void,
) -> c_int;

/// Not of use here: no panic, which is how loom ends an execution, gets through a callback of C's.
pub unsafe fn kvm_gmem_populate(
    _kvm: *mut kvm,
    _gfn: gfn_t,
    _src: *mut c_void,
    _npages: isize,
    _may_writeback_src: bool,
    _populate: Option<populate_fn>,
    _opaque: *mut c_void,
) -> isize {
    unreachable!()
}
