// SPDX-License-Identifier: GPL-2.0

//! The protocol with a part left out: the check has to find fault with it.
//!
//! Each flaw is looked for twice: by the locks that a change of state has to be made under, and by
//! the harm that is done, which shows that the part is needed.

use std::panic::{
    catch_unwind,
    AssertUnwindSafe, //
};
use tdx_guard_model::{
    flaw::{
        self,
        Flaw, //
    },
    protocol::{
        check,
        Act::{
            self,
            *, //
        },
        Scenario, //
    },
};

const RACE: &str = "two SEAMCALLs race";
const DEADLOCK: &str = "deadlock";

fn complaint(flaw: Flaw, vcpus: usize, acts: &[Act], strict: bool) -> String {
    let scenario = Scenario {
        vcpus,
        acts: acts.to_vec(),
        strict,
    };

    flaw::set(flaw);

    let found = catch_unwind(AssertUnwindSafe(|| check(&scenario)));

    flaw::set(Flaw::None);
    match found {
        Ok(_) => "nothing".into(),
        Err(panic) => match panic.downcast::<String>() {
            Ok(message) => *message,
            Err(panic) => panic
                .downcast::<&str>()
                .map_or("?", |message| *message)
                .into(),
        },
    }
}

/// The check complains of missing locks, and, where these do not count, of the harm done. Without
/// the flaw it complains of nothing.
fn expect(flaw: Flaw, vcpus: usize, acts: &[Act], missing: &str, harm: &str) {
    let said = complaint(Flaw::None, vcpus, acts, true);
    assert_eq!(said, "nothing", "without {flaw:?}");

    let said = complaint(flaw, vcpus, acts, true);
    assert!(said.contains(missing), "{flaw:?}, strict: {said}");

    let said = complaint(flaw, vcpus, acts, false);
    assert!(said.contains(harm), "{flaw:?}: {said}");
}

/// A vCPU is created while the TD changes: its mutex is not among those that were taken, but is among
/// those that are released.
#[test]
fn without_kvm_lock() {
    let missing = "Vm is missing";
    let harm = "Vcpu(1) is released, and not held";
    expect(Flaw::NoVmLock, 1, &[FinalizeVm, CreateVcpu], missing, harm);
}

/// A vCPU runs while the TD changes.
#[test]
fn without_the_vcpu_mutexes() {
    let missing = "Vcpu(0) is missing";
    expect(
        Flaw::NoVcpuMutexes,
        1,
        &[FinalizeVm, GetCpuid(0)],
        missing,
        RACE,
    );
}

#[test]
fn without_one_vcpu_mutex() {
    let missing = "Vcpu(1) is missing";
    expect(
        Flaw::OneVcpuMutexShort,
        2,
        &[FinalizeVm, Run(1)],
        missing,
        RACE,
    );
}

/// A memory slot goes away while its memory is added and measured.
#[test]
fn without_slots_lock() {
    expect(
        Flaw::NoSlotsLock,
        1,
        &[InitMemRegion(0), ChangeSlot],
        "Slots is missing",
        "TDH.MR.EXTEND finds no page",
    );
}

/// guest_memfd punches a hole while a vCPU is initialised or the TD is finalised, or another
/// guest_memfd than the one that is populated does while its memory is measured.
#[test]
fn without_mmu_lock() {
    let missing = "Mmu is missing";
    for acts in [
        [InitVcpu(0), PunchHole],
        [FinalizeVm, PunchHole],
        [InitMemRegion(0), PunchHoleElsewhere],
    ] {
        expect(Flaw::NoMmuLock, 1, &acts, missing, RACE);
    }
}

/// guest_memfd punches a hole when the module has finalized the TD and KVM does not know yet.
#[test]
fn runnable_later_for_kvm_than_for_the_module() {
    let said = "TDH.MEM.PAGE.REMOVE finds TLBs that are not tracked";
    expect(Flaw::RunnableLate, 1, &[FinalizeVm, PunchHole], said, said);
}

/// The order of the first version of the guard: a vCPU's thread that wants `slots_lock` waits for the
/// guard, which waits for the vCPU.
#[test]
fn slots_lock_before_the_vcpu_mutexes() {
    for act in [Run(0), CreateVcpu] {
        let said = complaint(Flaw::SlotsBeforeVcpus, 1, &[FinalizeVm, Run(0), act], false);
        assert!(said.contains(DEADLOCK), "{said}");
        assert!(
            said.contains("has [Vm, Slots], Some(Lock(Vcpu(0)))"),
            "{said}"
        );
        assert!(said.contains("has [Vcpu(0)], Some(Lock(Slots))"), "{said}");
    }
    expect(
        Flaw::SlotsBeforeVcpus,
        1,
        &[FinalizeVm, Run(0)],
        DEADLOCK,
        DEADLOCK,
    );
}

#[test]
fn kvm_lock_released_early() {
    let turn = "Vm is released, not the lock that was taken last";
    let harm = "Vcpu(1) is released, and not held";
    expect(
        Flaw::VmReleasedEarly,
        1,
        &[FinalizeVm, CreateVcpu],
        turn,
        harm,
    );
}

/// Does no harm, so only the ledger can tell.
#[test]
fn slots_lock_released_last() {
    let turn = "Vcpu(0) is released, not the lock that was taken last";
    expect(Flaw::SlotsReleasedLast, 1, &[FinalizeVm], turn, "nothing");
}

/// KVM before 7.3 lets others see a vCPU that is half created.
#[test]
fn half_created_vcpu_unnoticed() {
    let warns = "C warns: a vCPU is half created";
    expect(
        Flaw::HalfCreatedUnnoticed,
        0,
        &[FinalizeVm, CreateVcpuInTwo],
        warns,
        warns,
    );
}

#[test]
fn killed_waiter_keeps_mutexes() {
    let turn = "Vm is released, not the lock that was taken last";
    let held = "locks are left held";
    expect(Flaw::KilledKeepsVcpus, 2, &[Killed(1)], turn, held);
}

#[test]
fn wait_for_vcpu_not_killable() {
    expect(
        Flaw::NotKillable,
        1,
        &[Killed(0), RunUntilKilled(0)],
        DEADLOCK,
        DEADLOCK,
    );
}
