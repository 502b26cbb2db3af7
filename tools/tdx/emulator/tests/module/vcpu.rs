// SPDX-License-Identifier: GPL-2.0

//! The VP leaves.

use super::{
    td::bad_pages,
    OUTSIDE,
    RESERVED,
    WITH_HKID, //
};
use tdx_emulator_host::{
    host::{
        leaf,
        regs,
        Host,
        Td,
        FIRST_PAGE,
        VERSION_1, //
    },
    machine::GuestAction,
    module::{
        GuestExit,
        Lock,
        LockMode,
        LockRecord,
        Operand,
        Status,
        VcpuInfo,
        VcpuState,
        PROFILE_1_5_01,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;

fn vcpu(host: &Host, tdvpr: u64) -> VcpuInfo {
    host.module.vcpu_info(&host.machine.lp(0), tdvpr).unwrap()
}

/// A host with an initialised TD.
fn with_td() -> (Host, Td) {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    td.init(&host);
    (host, td)
}

/// A host with a TD that can run one vCPU.
fn with_vcpu() -> (Host, Td, u64) {
    let (host, mut td) = with_td();
    let tdvpr = td.add_vcpu(&host);
    td.add_tables(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    (host, td, tdvpr)
}

#[test]
fn create() {
    let host = Host::start(&PROFILE_1_5_05);
    let page = TDR + 0x10_0000;
    bad_pages(&host, Operand::Rdx, false, |pa| {
        (leaf::VP_CREATE, vec![page, pa])
    });
    let td = Td::create(&host, TDR, 33);
    host.fails(leaf::VP_CREATE, &[page, TDR], Status::OP_STATE_INCORRECT);
    td.init(&host);
    bad_pages(&host, Operand::Rcx, true, |pa| {
        (leaf::VP_CREATE, vec![pa, TDR])
    });
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    host.fails_with_effects(leaf::VP_CREATE, &[TDR, TDR], busy);
    host.ok(leaf::VP_CREATE, &[page, TDR]);
    let info = vcpu(&host, page);
    assert_eq!(info.state, VcpuState::Uninitialized);
    assert_eq!((info.associated_lp, info.pages), (None, 1));
    host.fails(
        leaf::VP_CREATE,
        &[page, TDR],
        Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx),
    );
}

#[test]
fn addcx() {
    let (host, mut td) = with_td();
    let tdvpr = td.page();
    let extra = TDR + 0x10_0000;
    bad_pages(&host, Operand::Rdx, false, |pa| {
        (leaf::VP_ADDCX, vec![extra, pa])
    });
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    bad_pages(&host, Operand::Rcx, true, |pa| {
        (leaf::VP_ADDCX, vec![pa, tdvpr])
    });
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    for locked in [tdvpr, TDR] {
        host.fails_with_effects(leaf::VP_ADDCX, &[locked, tdvpr], busy);
    }
    for index in 0..14 {
        host.ok(leaf::VP_ADDCX, &[extra + 0x1000 * index, tdvpr]);
    }
    let page = extra + 0x10_000;
    host.fails(leaf::VP_ADDCX, &[page, tdvpr], Status::TDCX_NUM_INCORRECT);
    host.ok(leaf::VP_INIT | VERSION_1, &[tdvpr]);
    host.fails(leaf::VP_ADDCX, &[page, tdvpr], Status::VCPU_STATE_INCORRECT);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    host.fails(leaf::VP_ADDCX, &[page, tdvpr], Status::OP_STATE_INCORRECT);
}

#[test]
fn init() {
    let (host, mut td) = with_td();
    let rax = leaf::VP_INIT | VERSION_1;
    bad_pages(&host, Operand::Rcx, false, |pa| (rax, vec![pa]));
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    for _ in 0..5 {
        host.fails(rax, &[tdvpr], Status::TDCX_NUM_INCORRECT);
        let page = td.page();
        host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
    }
    let r8 = Status::OPERAND_INVALID.on(Operand::R8);
    host.fails(rax, &[tdvpr, 0, 1 << 32], r8);
    host.machine.conditions().msrs.tsc_adjust = 5;
    let changed = Status::INCONSISTENT_MSR.detail(0x3b);
    host.fails_with_effects(rax, &[tdvpr, 0, 9], changed);
    host.machine.conditions().msrs.tsc_adjust = 0;

    // That attempt has used up an index and an id, as in the real module.
    host.ok(rax, &[tdvpr, 0x1234, 7]);
    let info = vcpu(&host, tdvpr);
    assert_eq!(info.state, VcpuState::Ready);
    assert_eq!((info.associated_lp, info.index), (Some(0), 1));
    host.fails(rax, &[tdvpr], Status::VCPU_STATE_INCORRECT);
}

#[test]
fn x2apic_ids_are_unique() {
    let (host, mut td) = with_td();
    td.add_vcpu(&host);
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    for _ in 0..5 {
        let page = td.page();
        host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
    }
    host.fails_with_effects(
        leaf::VP_INIT | VERSION_1,
        &[tdvpr, 0, 0],
        Status::X2APIC_ID_NOT_UNIQUE.detail(0),
    );
    host.ok(leaf::VP_INIT | VERSION_1, &[tdvpr, 0, 1]);
}

#[test]
fn there_is_a_largest_number_of_vcpus() {
    let (host, mut td) = with_td();
    // TD_PARAMS said 4.
    for _ in 0..4 {
        td.add_vcpu(&host);
    }
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    for _ in 0..5 {
        let page = td.page();
        host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
    }
    host.fails(
        leaf::VP_INIT | VERSION_1,
        &[tdvpr, 0, 4],
        Status::MAX_VCPUS_EXCEEDED,
    );
    assert_eq!(vcpu(&host, tdvpr).state, VcpuState::Uninitialized);
}

#[test]
fn association() {
    let (host, td, tdvpr) = with_vcpu();
    let field = 0x9100_0000_0000_0100;
    // TDH.VP.INIT was on this processor.
    let other = host.on(1);
    let associated = Status::VCPU_ASSOCIATED.raw();
    assert_eq!(other.call_on(leaf::VP_RD, &[tdvpr, field]).0, associated);
    let write = [tdvpr, 0x4024, 1, u64::MAX];
    assert_eq!(other.call_on(leaf::VP_WR, &write).0, associated);
    assert_eq!(other.call_on(leaf::VP_ENTER, &[tdvpr]).0, associated);
    let not_associated = Status::VCPU_NOT_ASSOCIATED.raw();
    assert_eq!(other.call_on(leaf::VP_FLUSH, &[tdvpr]).0, not_associated);

    host.ok(leaf::VP_FLUSH, &[tdvpr]);
    host.fails(leaf::VP_FLUSH, &[tdvpr], Status::VCPU_NOT_ASSOCIATED);
    assert_eq!(vcpu(&host, tdvpr).associated_lp, None);
    // Even one that fails later associates.
    let unknown = Status::METADATA_FIELD_ID_INCORRECT.raw();
    assert_eq!(other.call_on(leaf::VP_RD, &[tdvpr, 0xffff]).0, unknown);
    assert_eq!(vcpu(&host, tdvpr).associated_lp, Some(1));
    host.fails(leaf::MNG_VPFLUSHDONE, &[TDR], Status::FLUSHVP_NOT_DONE);
    other.ok_on(leaf::VP_FLUSH, &[tdvpr]);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    host.fails(leaf::VP_FLUSH, &[tdvpr], Status::TD_KEYS_NOT_CONFIGURED);
    drop(td);
}

#[test]
fn flush() {
    let (host, mut td) = with_td();
    bad_pages(&host, Operand::Rcx, false, |pa| (leaf::VP_FLUSH, vec![pa]));
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    host.fails(leaf::VP_FLUSH, &[tdvpr], Status::TDCX_NUM_INCORRECT);
}

#[test]
fn incomplete_vcpus_cannot_be_used() {
    let (host, mut td) = with_td();
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    for rax in [leaf::VP_RD, leaf::VP_WR] {
        host.fails(rax, &[tdvpr, 2], Status::TDCX_NUM_INCORRECT);
    }
    for _ in 0..5 {
        let page = td.page();
        host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
    }
    for rax in [leaf::VP_RD, leaf::VP_WR] {
        host.fails(rax, &[tdvpr, 2], Status::VCPU_STATE_INCORRECT);
    }
}

fn exit(reason: u32, gpa: u64) -> GuestAction {
    GuestAction::Exit(GuestExit::VmExit {
        reason,
        qualification: 0x181,
        gpa,
        interruption: 0x8000_0202,
        rip: 0x1000,
    })
}

#[test]
fn enter_checks() {
    let (host, mut td) = with_td();
    let metadata = Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx);
    for bad in [TDR, RESERVED] {
        host.fails(leaf::VP_ENTER, &[bad], metadata);
    }
    let range = Status::OPERAND_ADDR_RANGE_ERROR.on(Operand::Rcx);
    host.fails(leaf::VP_ENTER, &[OUTSIDE], range);
    let hkid = Status::OPERAND_INVALID.on(Operand::Rcx);
    host.fails(leaf::VP_ENTER, &[WITH_HKID], hkid);
    let tdvpr = td.add_vcpu(&host);
    host.fails(leaf::VP_ENTER, &[tdvpr], Status::OP_STATE_INCORRECT);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for bad in [tdvpr | 1, tdvpr | 1 << 54, tdvpr | 1 << 63] {
        host.fails(leaf::VP_ENTER, &[bad], rcx);
    }
    // A hint without a trap before, and an L1 VM to go back to without an L2 VM.
    for bad in [tdvpr | 1 << 52, tdvpr | 1 << 53] {
        host.fails(leaf::VP_ENTER, &[bad], rcx);
    }
    host.machine.conditions().msrs.misc_enable |= 1 << 22;
    host.fails(leaf::VP_ENTER, &[tdvpr], Status::LIMIT_CPUID_MAXVAL_SET);
    host.machine.conditions().msrs.misc_enable &= !(1 << 22);
    host.machine.conditions().msrs.tsc_adjust = 1;
    let changed = Status::INCONSISTENT_MSR.detail(0x3b);
    host.fails(leaf::VP_ENTER, &[tdvpr], changed);
    host.machine.conditions().msrs.tsc_adjust = 0;
    host.machine.conditions().guest.push_back(exit(1, 0));
    host.call(leaf::VP_ENTER, &[tdvpr]);
    host.machine.conditions().tsc = 0;
    host.fails(leaf::VP_ENTER, &[tdvpr], Status::TSC_ROLLBACK);
}

#[test]
fn a_machine_that_cannot_run_guests_says_so() {
    let (host, td, tdvpr) = with_vcpu();
    let (status, regs) = host.call(leaf::VP_ENTER, &[tdvpr, 1, 2, 3]);
    // Non-recoverable, with the exit reason of a failed entry.
    assert_eq!(status, 0x4000_0001_8000_0021);
    assert_eq!((regs.rcx, regs.rdx, regs.r8, regs.r9), (0, 0, 0, 0));
    assert_eq!(vcpu(&host, tdvpr).state, VcpuState::Ready);
    td.destroy(&host);
}

#[test]
fn exits() {
    let (host, _td, tdvpr) = with_vcpu();
    let enter = |action| {
        host.machine.conditions().guest.push_back(action);
        host.call(leaf::VP_ENTER, &[tdvpr])
    };
    let (status, regs) = enter(exit(1, 0x5123));
    assert_eq!((status, regs.rcx, regs.r8), (1, 0x181, 0));
    assert_eq!(regs.r9, 0x8000_0202);
    // For a non-maskable interrupt.
    assert_eq!(enter(exit(0, 0)).0, 0);
    let (status, regs) = enter(exit(48, 1 << 47 | 0x5123));
    assert_eq!((status, regs.rcx), (48, 1));
    assert_eq!(regs.r8, 1 << 47 | 0x5000);
    let (status, _) = enter(exit(2, 0));
    assert_eq!(status, 0x4000_0001_0000_0002);
    assert_eq!(vcpu(&host, tdvpr).state, VcpuState::Disabled);
    host.fails(leaf::VP_ENTER, &[tdvpr], Status::VCPU_STATE_INCORRECT);
    // It can still be looked at.
    host.ok(leaf::VP_RD, &[tdvpr, 0x4024]);
}

#[test]
fn rbp_is_left_alone_if_asked_for() {
    for (profile, expected) in [(&PROFILE_1_5_05, 0x77), (&PROFILE_1_5_01, 0)] {
        let host = Host::start(profile);
        let mut td = Td::create(&host, TDR, 33);
        td.init(&host);
        let tdvpr = td.add_vcpu(&host);
        host.ok(leaf::MR_FINALIZE, &[TDR]);
        host.machine.conditions().guest.push_back(exit(1, 0));
        let mut regs = regs(leaf::VP_ENTER, &[tdvpr]);
        (regs.rbx, regs.rbp) = (0x66, 0x77);
        host.seamcall(&mut regs);
        assert_eq!((regs.rax, regs.rbx), (1, 0));
        assert_eq!(regs.rbp, expected, "{}", profile.name);
    }
}

#[test]
fn pages_that_are_not_accepted_give_the_guest_an_exception() {
    let (host, mut td, tdvpr) = with_vcpu();
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]);
    let actions = [exit(48, 0x1000), exit(1, 0)];
    host.machine.conditions().guest.extend(actions);
    assert_eq!(host.call(leaf::VP_ENTER, &[tdvpr]).0, 1);
}

#[test]
fn pages_that_are_not_accepted_exit_if_asked_for() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    host.write_td_params();
    host.machine.write_bytes(
        tdx_emulator_host::host::HOST_PAGE,
        &(1u64 << 28).to_le_bytes(),
    );
    host.ok(leaf::MNG_INIT, &[TDR, tdx_emulator_host::host::HOST_PAGE]);
    let tdvpr = td.add_vcpu(&host);
    td.add_tables(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]);
    host.machine.conditions().guest.push_back(exit(48, 0x1008));
    let (status, regs) = host.call(leaf::VP_ENTER, &[tdvpr]);
    assert_eq!((status, regs.rdx, regs.r8), (48, 6, 0x1000));
}

#[test]
fn a_guest_that_does_not_get_on_is_not_entered() {
    let (host, mut td, tdvpr) = with_vcpu();
    let enter = |action: Option<GuestAction>| {
        host.machine.conditions().guest = action.into_iter().collect();
        let (status, regs) = host.call(leaf::VP_ENTER, &[tdvpr]);
        (status, regs.rcx, regs.r8)
    };
    for _ in 0..7 {
        assert_eq!(enter(Some(exit(48, 0x5000))), (48, 1, 0x5000));
    }
    // The exit is made up: nothing was entered.
    assert_eq!(enter(Some(exit(1, 0))), (48, 2, 0x5000));
    let tdr = td.tdr;
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0x5000, tdr, page]);
    assert_eq!(enter(Some(exit(1, 0))), (48, 2, 0x5000));
}

#[test]
fn nobody_looks_for_faults_in_a_tree_that_is_locked() {
    let (host, _td, tdvpr) = with_vcpu();
    for _ in 0..7 {
        host.machine.conditions().guest.push_back(exit(48, 0x5000));
        assert_eq!(host.call(leaf::VP_ENTER, &[tdvpr]).0, 48);
    }
    let tree = LockRecord {
        lock: Lock::SeptTree(TDR),
        mode: LockMode::Shared,
    };
    let busy = Status::OPERAND_BUSY.on(Operand::SeptTree);
    host.busy(tree, leaf::VP_ENTER, &[tdvpr], busy);
    // The vCPU that did not enter is not waited for.
    for _ in 0..3 {
        host.ok(leaf::MEM_TRACK, &[TDR]);
    }
}

#[test]
fn the_host_gets_its_turn() {
    let (host, mut td, tdvpr) = with_vcpu();
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]);
    let again = std::iter::repeat_n(exit(48, 0x1000), 3000);
    host.machine.conditions().guest.extend(again);
    assert_eq!(host.call(leaf::VP_ENTER, &[tdvpr]).0, 1);
    assert!(!host.machine.conditions().guest.is_empty());
}

#[test]
fn a_module_in_use_does_not_end() {
    let (host, _td, tdvpr) = with_vcpu();
    let actions = [GuestAction::Run, exit(1, 0)];
    host.machine.conditions().guest.extend(actions);
    std::thread::scope(|scope| {
        let inside = scope.spawn(|| host.on(1).call_on(leaf::VP_FLUSH, &[tdvpr]).0);
        let other = inside.join().unwrap();
        assert_eq!(other, Status::VCPU_NOT_ASSOCIATED.raw());
        // Where it was initialised.
        host.ok(leaf::VP_FLUSH, &[tdvpr]);
        let inside = scope.spawn(|| host.on(1).call_on(leaf::VP_ENTER, &[tdvpr]).0);
        host.machine.wait_for_guest();
        for leaf in [leaf::SYS_SHUTDOWN, leaf::SYS_DISABLE] {
            assert_eq!(host.call(leaf, &[]).0, Status::SYS_BUSY.raw());
        }
        host.machine.resume_guest();
        assert_eq!(inside.join().unwrap(), 1);
    });
    host.ok(leaf::SYS_DISABLE, &[]);
}

#[test]
fn an_incomplete_vcpu_is_not_entered() {
    let (host, mut td) = with_td();
    td.add_vcpu(&host);
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    host.fails(leaf::VP_ENTER, &[tdvpr], Status::TDCX_NUM_INCORRECT);
}

#[test]
fn fields_are_there_once_the_td_has_parameters() {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    let read = [TDR, 0x1100_0000_0000_000a];
    host.fails(leaf::MNG_RD, &read, Status::OP_STATE_INCORRECT);
    td.init(&host);
    host.ok(leaf::MNG_RD, &read);
}
