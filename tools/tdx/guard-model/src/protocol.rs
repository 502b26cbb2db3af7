// SPDX-License-Identifier: GPL-2.0

//! What user space can make threads do to a TD at the same time.

use crate::{
    error::{
        code::*,
        Result, //
    },
    explore,
    ffi::{
        KvmTdx,
        LockedTdVcpu, //
    },
    kvm::{
        LockedVcpu,
        Vcpu, //
    },
    ledger::{
        self,
        Shared,
        State, //
    },
    td::{
        StateFrozen,
        TdState, //
    },
    vm_state_guard::TdxVmStateGuard, //
};
use std::{
    collections::BTreeSet,
    sync::{
        Arc,
        Mutex, //
    },
};

/// What a thread does. vCPUs are named by their index.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Act {
    /// KVM_TDX_INIT_VM.
    InitVm,
    /// KVM_TDX_INIT_VCPU.
    InitVcpu(usize),
    /// KVM_TDX_INIT_MEM_REGION, by way of this vCPU.
    InitMemRegion(usize),
    /// KVM_TDX_FINALIZE_VM.
    FinalizeVm,
    /// KVM_TDX_INIT_VCPU of vCPU 0, killed while it waits for the mutex of this vCPU.
    Killed(usize),
    /// KVM_TDX_GET_CPUID.
    GetCpuid(usize),
    /// An ioctl of the vCPU: KVM_RUN, or one that changes a memory slot of KVM's own.
    Run(usize),
    /// KVM_RUN that stays in the guest until a thread of the VM has died.
    RunUntilKilled(usize),
    /// KVM_CREATE_VCPU, and use of the vCPU.
    CreateVcpu,
    /// KVM_CREATE_VCPU as it was before 7.3, when it let go of `kvm->lock` in between.
    CreateVcpuInTwo,
    /// Removal of a memory slot.
    ChangeSlot,
    /// A hole is punched into guest_memfd.
    PunchHole,
    /// The same, into another guest_memfd of the VM.
    PunchHoleElsewhere,
}

impl Act {
    /// Returns all there are on a VM with so many vCPUs, but for [`Act::RunUntilKilled`], which would
    /// wait in vain unless another is [`Act::Killed`].
    pub fn all(vcpus: usize) -> Vec<Self> {
        let mut acts = vec![
            Self::InitVm,
            Self::FinalizeVm,
            Self::CreateVcpu,
            Self::CreateVcpuInTwo,
            Self::ChangeSlot,
            Self::PunchHole,
            Self::PunchHoleElsewhere,
        ];

        for vcpu in 0..vcpus {
            acts.extend([
                Self::InitVcpu(vcpu),
                Self::InitMemRegion(vcpu),
                Self::Killed(vcpu),
                Self::GetCpuid(vcpu),
                Self::Run(vcpu),
            ]);
        }
        acts
    }
}

/// A VM with so many vCPUs, and what its threads do.
#[derive(Clone, Debug)]
pub struct Scenario {
    /// How many vCPUs there are to start with.
    pub vcpus: usize,
    /// One for each thread.
    pub acts: Vec<Act>,
    /// Whether a lock that is missing is complained of at once, or only when that has an effect.
    pub strict: bool,
}

/// What was found.
#[derive(Default, Debug)]
pub struct Found {
    /// How many states the threads and what they share can be in.
    pub states: usize,
    /// How it can end, one result for each thread.
    pub outcomes: BTreeSet<Vec<Result>>,
}

/// Closes the VM for one thread. It is destroyed with the last.
fn close(kvm_tdx: &KvmTdx) {
    ledger::point();

    let is_last = ledger::shared(|shared| {
        shared.users -= 1;
        shared.users == 0
    });

    if is_last {
        ledger::expect_nothing_held_by_any();
        kvm_tdx.tear_down();
    }
}

/// Tries a scenario in every order.
///
/// # Panics
///
/// If anything is wrong in one of them.
pub fn check(scenario: &Scenario) -> Found {
    let found = Arc::new(Mutex::new(Found::default()));
    let (scenario, result) = (scenario.clone(), found.clone());
    let states = explore::every_order(move || {
        let initialized = !scenario.acts.contains(&Act::InitVm);
        let shared = Shared {
            created_vcpus: scenario.vcpus,
            online_vcpus: scenario.vcpus,
            half_created: 0,
            state: match initialized {
                false => State::Uninitialized,
                true => State::Initialized,
            },
            finalized: false,
            mapped: initialized,
            mapped_elsewhere: initialized,
            users: scenario.acts.len(),
            death: false,
        };

        ledger::begin(shared, scenario.strict);

        let kvm_tdx = Arc::new(KvmTdx::new(scenario.vcpus));
        let start = |act: Act| {
            let kvm_tdx = kvm_tdx.clone();

            move || {
                let result = perform(&kvm_tdx, act);

                ledger::expect_nothing_held();
                close(&kvm_tdx);
                result
            }
        };
        let threads: Vec<_> = scenario
            .acts
            .iter()
            .map(|act| shuttle::thread::spawn(start(*act)))
            .collect();
        let outcome = threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .collect();
        result.lock().unwrap().outcomes.insert(outcome);
    });

    let mut found = std::mem::take(&mut *found.lock().unwrap());

    found.states = states;
    found
}

/// Does to a TD what a thread of user space asks for.
fn perform(kvm_tdx: &KvmTdx, act: Act) -> Result {
    let kvm = kvm_tdx.c();
    let vcpu = |index: usize| {
        // SAFETY: The vCPU is part of the VM.
        unsafe { Vcpu::from_raw((&raw const kvm.vcpus[index]).cast_mut()) }
    };

    match act {
        Act::InitVm => with_guard(kvm_tdx, |state| match state {
            TdState::Uninitialized(td) => {
                td.init();
                Ok(())
            }
            _ => Err(EINVAL),
        }),
        Act::InitVcpu(index) => with_guard(kvm_tdx, |state| match state {
            TdState::Initialized(mut td) => td.with_loaded_vcpu(vcpu(index), |td, vcpu| {
                td.init_vcpu(&vcpu);
                Ok(())
            }),
            _ => Err(EINVAL),
        }),
        Act::InitMemRegion(index) => with_guard(kvm_tdx, |state| match state {
            TdState::Initialized(mut td) => td.with_loaded_vcpu(vcpu(index), |td, vcpu| {
                td.init_mem_region(&vcpu);
                Ok(())
            }),
            _ => Err(EINVAL),
        }),
        Act::FinalizeVm => with_guard(kvm_tdx, |state| match state {
            TdState::Initialized(td) => {
                td.finalize();
                Ok(())
            }
            _ => Err(EINVAL),
        }),
        Act::Killed(index) => {
            ledger::kill_at(index);

            let result = perform(kvm_tdx, Act::InitVcpu(0));

            ledger::shared(|shared| shared.death = true);
            result
        }
        Act::GetCpuid(index) => {
            kvm.vcpus[index].mutex.lock();

            // SAFETY: The mutex has just been taken.
            let locked = unsafe { LockedVcpu::assume_locked(vcpu(index)) };

            LockedTdVcpu(locked).kvm_tdx().seamcall_on_vcpu();
            kvm.vcpus[index].mutex.unlock();
            Ok(())
        }
        Act::Run(index) => {
            kvm.vcpus[index].mutex.lock();
            kvm_tdx.seamcall_on_vcpu();
            kvm.slots_lock.lock();
            kvm.slots_lock.unlock();
            kvm.vcpus[index].mutex.unlock();
            Ok(())
        }
        Act::RunUntilKilled(index) => {
            kvm.vcpus[index].mutex.lock();
            ledger::wait_for_death();
            kvm.vcpus[index].mutex.unlock();
            Ok(())
        }
        Act::CreateVcpu => {
            kvm.lock.lock();

            let created = kvm.created_vcpus;
            let room = (created as usize) < kvm.vcpus.len();

            if room {
                kvm_tdx.set_created_vcpus(created + 1);
                // The page that stands for every local APIC.
                kvm.slots_lock.lock();
                kvm.slots_lock.unlock();
                publish(kvm_tdx);
            }
            kvm.lock.unlock();
            if !room {
                return Err(EINVAL);
            }
            perform(kvm_tdx, Act::Run(created as usize))
        }
        Act::CreateVcpuInTwo => {
            kvm.lock.lock();

            let created = kvm.created_vcpus;
            let room = (created as usize) < kvm.vcpus.len();

            if room {
                kvm_tdx.set_created_vcpus(created + 1);
                ledger::shared(|shared| shared.half_created += 1);
            }
            kvm.lock.unlock();
            if !room {
                return Err(EINVAL);
            }
            kvm.lock.lock();
            publish(kvm_tdx);
            ledger::shared(|shared| shared.half_created -= 1);
            kvm.lock.unlock();
            Ok(())
        }
        Act::ChangeSlot => {
            kvm.slots_lock.lock();
            kvm.mmu_lock.lock();
            kvm_tdx.unmap();
            kvm.mmu_lock.unlock();
            kvm.slots_lock.unlock();
            Ok(())
        }
        Act::PunchHole => {
            kvm.file_lock.lock();
            kvm.mmu_lock.lock();
            kvm_tdx.unmap();
            kvm.mmu_lock.unlock();
            kvm.file_lock.unlock();
            Ok(())
        }
        Act::PunchHoleElsewhere => {
            kvm.mmu_lock.lock();
            kvm_tdx.unmap_elsewhere();
            kvm.mmu_lock.unlock();
            Ok(())
        }
    }
}

/// Lets a new vCPU be found. With `kvm->lock` held.
fn publish(kvm_tdx: &KvmTdx) {
    let kvm = kvm_tdx.c();
    let index = kvm.online();

    kvm.vcpus[index].mutex.lock();
    ledger::shared(|shared| shared.online_vcpus += 1);
    kvm.vcpus[index].mutex.unlock();
}

/// Takes the guard, and holds its answer against what it has to be.
fn with_guard(kvm_tdx: &KvmTdx, f: impl FnOnce(TdState<'_>) -> Result) -> Result {
    let guard = TdxVmStateGuard::lock(kvm_tdx);

    match &guard {
        Ok(_) => {
            assert!(!ledger::saw_half_created(), "a half-created vCPU is locked");
        }
        Err(EBUSY) => {
            assert!(
                ledger::saw_half_created(),
                "EBUSY, and no vCPU is half created"
            );
            ledger::expect_nothing_held();
        }
        Err(EINTR) => {
            assert!(ledger::is_killed(), "EINTR, and no signal came");
            ledger::expect_nothing_held();
        }
        Err(e) => panic!("the guard cannot fail with {e:?}"),
    }

    let mut guard = guard?;

    f(guard.td())
}
