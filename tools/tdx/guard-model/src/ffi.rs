// SPDX-License-Identifier: GPL-2.0

//! Stands for the crate's `ffi` and `seamcall`: the TD, and what changes or uses it.

use crate::{
    bindings,
    error::Result,
    flaw::{
        self,
        Flaw, //
    },
    kvm::{
        LoadedVcpu,
        LockedVcpu,
        MmuWriteLocked,
        Vcpu,
        Vm, //
    },
    ledger::{
        self,
        Lock,
        Mode,
        State, //
    },
    td::{
        Initialized,
        StateFrozen,
        Td,
        Uninitialized, //
    },
    vm_state_guard::TdxVmStateGuard, //
};
use std::{
    cell::UnsafeCell,
    mem,
    ops::Deref, //
};

/// A VM that is a TD. Its state is in the [`ledger`].
#[repr(transparent)]
pub struct KvmTdx(UnsafeCell<bindings::kvm>);

// SAFETY: Shuttle's threads take turns on one of the system's.
unsafe impl Send for KvmTdx {}

// SAFETY: As above.
unsafe impl Sync for KvmTdx {}

impl KvmTdx {
    pub(crate) fn new(vcpus: usize) -> Box<Self> {
        let mut this = Box::new(Self(UnsafeCell::new(bindings::kvm::new(vcpus))));
        let kvm: *mut bindings::kvm = this.0.get();

        for vcpu in &mut this.0.get_mut().vcpus {
            vcpu.kvm = kvm;
        }
        this
    }

    /// Returns what C works on.
    pub(crate) fn c(&self) -> &bindings::kvm {
        // SAFETY: Alive, and what changes in it is in cells, but for a counter that has the lock.
        unsafe { &*self.0.get() }
    }

    pub(crate) fn set_created_vcpus(&self, n: i32) {
        assert!(ledger::holds(Lock::Vm));
        ledger::shared(|shared| shared.created_vcpus = n as usize);
        // SAFETY: Alive, and `kvm->lock` is held.
        unsafe { (*self.0.get()).created_vcpus = n };
    }

    pub(crate) fn is_hkid_assigned(&self) -> bool {
        ledger::expect_frozen();
        ledger::shared(|shared| shared.state != State::Uninitialized)
    }

    pub(crate) fn is_runnable(&self) -> bool {
        ledger::expect_frozen();
        ledger::shared(|shared| shared.state == State::Runnable)
    }

    fn of_td(vm: &Vm) -> &Self {
        // SAFETY: A transparent wrapper, as a `Vm` is, and there is no other kind of VM.
        unsafe { &*vm.as_raw().cast() }
    }

    /// TDH.VP.FLUSH, VP.ENTER, VP.RD: by who has the vCPU's mutex.
    pub(crate) fn seamcall_on_vcpu(&self) {
        if self.is_hkid_assigned() {
            ledger::seamcall(Mode::Shared);
        }
    }

    /// TDH.MEM.RANGE.BLOCK and MEM.PAGE.REMOVE of the page, if it is there.
    pub(crate) fn unmap(&self) {
        assert!(ledger::holds(Lock::Mmu));
        if ledger::shared(|shared| mem::take(&mut shared.mapped)) {
            remove();
        }
    }

    /// The same of a page of another guest_memfd.
    pub(crate) fn unmap_elsewhere(&self) {
        assert!(ledger::holds(Lock::Mmu));
        if ledger::shared(|shared| mem::take(&mut shared.mapped_elsewhere)) {
            remove();
        }
    }

    /// TDH.MEM.PAGE.ADD.
    fn map(&self) {
        self.c().mmu_lock.lock();
        ledger::shared(|shared| shared.mapped = true);
        ledger::seamcall(Mode::Exclusive);
        self.c().mmu_lock.unlock();
    }

    /// The leaves that take down a TD that nobody else has.
    pub(crate) fn tear_down(&self) {
        ledger::seamcall(Mode::Exclusive);
    }
}

impl Deref for KvmTdx {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        // SAFETY: Alive for as long as `self`.
        unsafe { Vm::from_raw(self.0.get()) }
    }
}

impl<'a> TdxVmStateGuard<'a> {
    pub(crate) fn kvm_tdx(&self) -> &'a KvmTdx {
        KvmTdx::of_td(self.vm())
    }
}

/// A vCPU of a TD whose mutex is held.
pub(crate) struct LockedTdVcpu<'a>(pub(crate) LockedVcpu<'a>);

impl StateFrozen for LockedTdVcpu<'_> {
    fn kvm_tdx(&self) -> &KvmTdx {
        KvmTdx::of_td(self.0.vm())
    }
}

/// A vCPU of a TD that is loaded.
pub(crate) struct LoadedTdVcpu<'a>(#[allow(dead_code)] LoadedVcpu<'a>);

/// TDH.MEM.RANGE.BLOCK, MEM.TRACK if KVM takes the TD for runnable, and MEM.PAGE.REMOVE.
fn remove() {
    ledger::seamcall(Mode::Shared);
    assert!(
        ledger::shared(|shared| !shared.finalized || shared.state == State::Runnable),
        "TDH.MEM.PAGE.REMOVE finds TLBs that are not tracked"
    );
}

/// A change of the TD's state: the locks are there, and no other SEAMCALL is under way.
fn change(guard: &TdxVmStateGuard<'_>, mode: Mode) {
    let kvm_tdx = guard.kvm_tdx();

    ledger::expect_held(Lock::Vm);
    for index in 0..kvm_tdx.c().online() {
        ledger::expect_held(Lock::Vcpu(index));
    }
    ledger::expect_held(Lock::Slots);
    ledger::seamcall(mode);
}

/// The same for a leaf that takes the TDR exclusive once the MMU may work on the TD.
fn change_alone(guard: &TdxVmStateGuard<'_>, _mmu: &MmuWriteLocked<'_>) {
    ledger::expect_held(Lock::Mmu);
    change(guard, Mode::Exclusive);
}

impl Td<'_, Uninitialized> {
    /// TDH.MNG.CREATE to MNG.INIT.
    pub(crate) fn init(self) {
        change(self.guard(), Mode::Exclusive);
        ledger::shared(|shared| shared.state = State::Initialized);
    }
}

impl Td<'_, Initialized> {
    /// Runs `f` while a vCPU is loaded.
    pub(crate) fn with_loaded_vcpu(
        &mut self,
        vcpu: &Vcpu,
        f: impl FnOnce(&Self, LoadedTdVcpu<'_>) -> Result,
    ) -> Result {
        let td = &*self;

        // SAFETY: As in the crate.
        unsafe {
            td.guard()
                .with_loaded_vcpu(vcpu, |vcpu| f(td, LoadedTdVcpu(vcpu)))
        }
    }

    /// TDH.VP.CREATE, VP.ADDCX, and VP.INIT of a module that takes the TDR exclusive for it.
    pub(crate) fn init_vcpu(&self, _vcpu: &LoadedTdVcpu<'_>) {
        change(self.guard(), Mode::Shared);
        change_alone(self.guard(), &self.guard().lock_mmu_for_write());
    }

    /// TDH.MEM.PAGE.ADD and MR.EXTEND of a page of guest_memfd.
    pub(crate) fn init_mem_region(&self, _vcpu: &LoadedTdVcpu<'_>) {
        let kvm_tdx = self.guard().kvm_tdx();

        kvm_tdx.c().file_lock.lock();
        kvm_tdx.map();
        change_alone(self.guard(), &self.guard().lock_mmu_for_write());
        assert!(
            ledger::shared(|shared| shared.mapped),
            "TDH.MR.EXTEND finds no page"
        );
        kvm_tdx.c().file_lock.unlock();
    }

    /// TDH.MR.FINALIZE.
    pub(crate) fn finalize(self) {
        let mut mmu = Some(self.guard().lock_mmu_for_write());

        if let Some(mmu) = &mmu {
            change_alone(self.guard(), mmu);
        }
        ledger::shared(|shared| shared.finalized = true);
        if flaw::is(Flaw::RunnableLate) {
            mmu = None;
            // Others go on meanwhile.
            ledger::seamcall(Mode::Shared);
        }
        ledger::shared(|shared| shared.state = State::Runnable);
        drop(mmu);
    }
}
