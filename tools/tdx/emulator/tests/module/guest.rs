// SPDX-License-Identifier: GPL-2.0

//! What guests ask for by TDCALL, and what the host sees of it.

use tdx_emulator_host::{
    host::{
        leaf,
        regs,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE, //
    },
    machine::{
        GuestAction,
        TdcallRegs, //
    },
    module::{
        GuestExit,
        Lock,
        LockMode,
        LockRecord,
        Operand,
        Regs,
        Status,
        PROFILE_1_5_01,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
const VMCALL: u64 = 0;
const ACCEPT: u64 = 6;
/// RBP is the guest's to pass, in CONFIG_FLAGS.
const RBP_MOD: u8 = 0;
const NO_RBP_MOD: u8 = 4;

/// A host with a TD that can run one vCPU.
fn with_vcpu(config_flags: u8) -> (Host, Td, u64) {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    host.write_td_params();
    host.machine.write_bytes(HOST_PAGE + 32, &[config_flags]);
    host.ok(leaf::MNG_INIT, &[TDR, HOST_PAGE]);
    let tdvpr = td.add_vcpu(&host);
    td.add_tables(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    (host, td, tdvpr)
}

fn tdcall(rax: u64, rcx: u64) -> GuestAction {
    let mut set = TdcallRegs::default();
    (set[0], set[1]) = (Some(rax), Some(rcx));
    GuestAction::Tdcall(set)
}

fn interrupt() -> GuestAction {
    GuestAction::ExitInPlace(GuestExit::VmExit {
        reason: 1,
        qualification: 0,
        gpa: 0,
        interruption: 0,
        rip: 0,
    })
}

/// Enters the vCPU, whose guest does this and is then interrupted. Returns the registers, and those
/// with which the guest went on after each TDCALL.
fn enter(host: &Host, mut regs: Regs, guest: Vec<GuestAction>) -> (Regs, Vec<Regs>) {
    let actions = guest.into_iter().chain([interrupt()]);
    host.machine.conditions().set_guest(actions);
    host.seamcall(&mut regs);
    let results = host.machine.conditions().tdcall_results.clone();
    (regs, results)
}

/// The same with only a TDCALL.
fn call(host: &Host, tdvpr: u64, rax: u64, rcx: u64) -> (Regs, Vec<Regs>) {
    let regs = regs(leaf::VP_ENTER, &[tdvpr]);
    enter(host, regs, vec![tdcall(rax, rcx)])
}

/// Makes a TDCALL that returns to the guest with this status.
#[track_caller]
fn returns(host: &Host, tdvpr: u64, rax: u64, rcx: u64, status: Status) {
    let (after, results) = call(host, tdvpr, rax, rcx);
    assert_eq!(after.rax, 1, "{rax} {rcx:#x}");
    assert_eq!(results.len(), 1);
    assert_eq!((results[0].rax, results[0].rcx), (status.raw(), rcx));
}

/// Makes an accept that exits to the host, which is told this about the entry.
#[track_caller]
fn exits(host: &Host, tdvpr: u64, rcx: u64, about: u64) {
    let (after, results) = call(host, tdvpr, ACCEPT, rcx);
    assert!(results.is_empty());
    assert_eq!((after.rax, after.rcx, after.r8), (48, 2, rcx & !7));
    assert_eq!(after.rdx, about << 32 | 1);
    assert_eq!((after.r9, after.r10, after.rbx), (0, 0, 0));
}

#[test]
fn a_vmcall_passes_the_registers_that_the_guest_selects() {
    let (host, _td, tdvpr) = with_vcpu(RBP_MOD);
    let all: TdcallRegs = std::array::from_fn(|register| Some(0x100 + register as u64));
    let host_regs = |mask: u64| {
        let mut set = all;
        (set[0], set[1]) = (Some(VMCALL), Some(mask));
        let mut regs = Regs::from_array(std::array::from_fn(|register| 0x200 + register as u64));
        (regs.rax, regs.rcx) = (leaf::VP_ENTER, tdvpr);
        enter(&host, regs, vec![GuestAction::Tdcall(set)]).0
    };
    for mask in [0, 0xffec, 0xfc00, 1 << 2 | 1 << 14, 1 << 5, 0xffff_fc00] {
        let seen = host_regs(mask).to_array();
        assert_eq!((seen[0], seen[1]), (0x4d, mask));
        for (register, value) in seen.into_iter().enumerate().skip(2) {
            let selected = register != 4 && mask >> register & 1 != 0;
            let expected = if selected { 0x100 + register as u64 } else { 0 };
            assert_eq!(value, expected, "register {register} of mask {mask:#x}");
        }
        let info = host.module.vcpu_info(&host.machine.lp(0), tdvpr).unwrap();
        assert_eq!(info.last_exit, 2);
    }
    // The host's answer reaches the guest in the same registers, and no others.
    host_regs(0xfc00);
    let mut answer = Regs::from_array(std::array::from_fn(|register| 0x300 + register as u64));
    (answer.rax, answer.rcx) = (leaf::VP_ENTER, tdvpr);
    let bad = tdcall(99, 0);
    let (_, results) = enter(&host, answer, vec![bad]);
    let guest = results[0].to_array();
    for (register, value) in guest.into_iter().enumerate().skip(5) {
        let from_host = 0xfc00 >> register & 1 != 0;
        let expected = if from_host { 0x300 } else { 0x100 } + register as u64;
        assert_eq!(value, expected, "register {register}");
    }
    // Once.
    let (_, results) = enter(&host, regs(leaf::VP_ENTER, &[tdvpr]), vec![bad]);
    assert_eq!(results[0].r10, 0x30a);
}

#[test]
fn some_registers_cannot_be_passed() {
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for (flags, rbp) in [(RBP_MOD, false), (NO_RBP_MOD, true)] {
        let (host, _td, tdvpr) = with_vcpu(flags);
        for bad in [1, 1 << 1, 1 << 4, 1 << 32, 1 << 63, 0xffff] {
            returns(&host, tdvpr, VMCALL, bad, rcx);
        }
        if rbp {
            returns(&host, tdvpr, VMCALL, 1 << 5, rcx);
        }
        let mut own = regs(leaf::VP_ENTER, &[tdvpr]);
        own.rbp = 0x77;
        let (after, _) = enter(&host, own, vec![tdcall(VMCALL, 0xfc00)]);
        assert_eq!((after.rax, after.rbp), (0x4d, if rbp { 0x77 } else { 0 }));
    }
}

#[test]
fn other_tdcalls_are_not_known() {
    let (host, _td, tdvpr) = with_vcpu(NO_RBP_MOD);
    let rax = Status::OPERAND_INVALID.on(Operand::Rax);
    for leaf in [1, 5, 7, 99, 0xffff, 1 << 16, 1 << 63] {
        returns(&host, tdvpr, leaf, 0, rax);
    }
}

#[test]
fn accept() {
    let (host, mut td, tdvpr) = with_vcpu(NO_RBP_MOD);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for bad in [2, 7, 8, 1 << 11, 0x1000 | 1, 1 << 47, 1 << 51, 1 << 63] {
        returns(&host, tdvpr, ACCEPT, bad, rcx);
    }
    // Nothing is there: the entry of the level at which the walk ends, which is free.
    exits(&host, tdvpr, 0x1000, 0);
    exits(&host, tdvpr, 1 << 30, 2 << 3);
    exits(&host, tdvpr, 1 << 39, 3 << 3);
    exits(&host, tdvpr, 0x20_0001, 1 | 1 << 3);

    let page = td.page();
    host.machine.write_bytes(page, &[0xa5; 4096]);
    host.ok(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]);
    returns(&host, tdvpr, ACCEPT, 0x1000, Status::SUCCESS);
    assert_eq!(host.machine.read_bytes(page, 4096), [0; 4096]);
    let entry = host.ok(leaf::MEM_SEPT_RD, &[0x1000, TDR]);
    assert_eq!((entry.rcx, entry.rdx), (1 << 63 | page | 0xf7, 0x400));
    let already = Status::PAGE_ALREADY_ACCEPTED;
    returns(&host, tdvpr, ACCEPT, 0x1000, already);
    // There is a table where a larger page could be.
    let mismatch = Status::PAGE_SIZE_MISMATCH.on(Operand::Rcx);
    returns(&host, tdvpr, ACCEPT, 1, mismatch);
    // What is blocked is not accepted.
    host.ok(leaf::MEM_RANGE_BLOCK, &[0x1000, TDR]);
    exits(&host, tdvpr, 0x1000, 1 << 6 | 1 << 14);
}

#[test]
fn accept_2m() {
    let (host, _td, tdvpr) = with_vcpu(NO_RBP_MOD);
    let page = TDR + 0x40_0000;
    host.machine.write_bytes(page + 0x1f_f000, &[0xa5; 4096]);
    host.ok(leaf::MEM_PAGE_AUG, &[0x20_0000 | 1, TDR, page]);
    // The host is told that the page is larger than what the guest accepts.
    exits(&host, tdvpr, 0x20_5000, 1 << 3 | 2 << 6 | 1 << 14);
    returns(&host, tdvpr, ACCEPT, 0x20_0000 | 1, Status::SUCCESS);
    let last = host.machine.read_bytes(page + 0x1f_f000, 4096);
    assert_eq!(last, [0; 4096]);
    let already = Status::PAGE_ALREADY_ACCEPTED;
    for part in [0x20_0000 | 1, 0x20_5000] {
        returns(&host, tdvpr, ACCEPT, part, already);
    }
}

#[test]
fn a_guest_leaves_an_entry_to_a_host_that_waits() {
    let (host, mut td, tdvpr) = with_vcpu(NO_RBP_MOD);
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    let lp = host.machine.lp(1);
    let lock = host.module.sept_entry_lock(&lp, TDR, 0, 0).unwrap();
    let record = LockRecord {
        lock,
        mode: LockMode::Exclusive,
    };
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    assert!(host.module.hold(&lp, record));
    returns(&host, tdvpr, ACCEPT, 0, busy);
    // The host does not get it either, and comes back.
    host.fails_with_effects(leaf::MEM_SEPT_RD, &[0, TDR], busy);
    host.module.release(&lp, record);
    returns(&host, tdvpr, ACCEPT, 0, busy);
    host.ok(leaf::MEM_SEPT_RD, &[0, TDR]);
    returns(&host, tdvpr, ACCEPT, 0, Status::SUCCESS);
}

#[test]
fn a_guest_that_waits_too_long_exits() {
    let (host, mut td, tdvpr) = with_vcpu(NO_RBP_MOD);
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    let lp = host.machine.lp(1);
    let lock = host.module.sept_entry_lock(&lp, TDR, 0, 0).unwrap();
    let record = LockRecord {
        lock,
        mode: LockMode::Exclusive,
    };
    assert!(matches!(lock, Lock::SeptEntry { .. }));
    assert!(host.module.hold(&lp, record));
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    // One second of a time-stamp counter of 2 GHz.
    returns(&host, tdvpr, ACCEPT, 0, busy);
    host.machine.conditions().tsc += 1_900_000_000;
    returns(&host, tdvpr, ACCEPT, 0, busy);
    host.machine.conditions().tsc += 200_000_000;
    let (after, _) = call(&host, tdvpr, ACCEPT, 0);
    assert_eq!(after.rax, Status::HOST_PRIORITY_BUSY_TIMEOUT.raw());
    host.module.release(&lp, record);

    // That was like a trap: the guest goes on behind its TDCALL, and the host may say that it
    // understood.
    let hint = regs(leaf::VP_ENTER, &[tdvpr | 1 << 52]);
    let (after, _) = enter(&host, hint, vec![]);
    assert_eq!(after.rax, 1);
    host.fails(
        leaf::VP_ENTER,
        &[tdvpr | 1 << 52],
        Status::OPERAND_INVALID.on(Operand::Rcx),
    );
    // The time begins anew.
    host.ok(leaf::MEM_SEPT_RD, &[0, TDR]);
    returns(&host, tdvpr, ACCEPT, 0, Status::SUCCESS);
}

#[test]
fn a_guest_begins_with_what_the_host_gave_it() {
    let host = Host::start(&PROFILE_1_5_01);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    td.add_vcpu(&host);
    let tdvpr = td.page();
    host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
    for _ in 0..5 {
        let page = td.page();
        host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
    }
    host.ok(leaf::VP_INIT, &[tdvpr, 0xabc]);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    let own = regs(leaf::VP_ENTER, &[tdvpr]);
    let mut set = TdcallRegs::default();
    set[0] = Some(99);
    let (_, results) = enter(&host, own, vec![GuestAction::Tdcall(set)]);
    let guest = results[0];
    assert_eq!((guest.rbx, guest.rcx, guest.r8), (48, 0xabc, 0xabc));
    assert_eq!((guest.rdx, guest.rsi), (0x8_06f8, 1));
}

#[test]
fn monitor_needs_its_msr() {
    let host = Host::start(&PROFILE_1_5_05);
    for (hkid, monitor) in [(33, false), (34, true)] {
        let mut td = Td::create(&host, TDR + 0x10_0000 * (hkid - 33), hkid as u16);
        host.write_td_params();
        // MONITOR is bit 3 of CPUID(1).ECX.
        host.machine
            .write_bytes(HOST_PAGE + 256 + 8, &[u8::from(monitor) << 3]);
        host.ok(leaf::MNG_INIT, &[td.tdr, HOST_PAGE]);
        let tdvpr = td.add_vcpu(&host);
        host.ok(leaf::MR_FINALIZE, &[td.tdr]);
        let own = regs(leaf::VP_ENTER, &[tdvpr]);
        assert_eq!(enter(&host, own, vec![]).0.rax, 1);
        host.machine.conditions().msrs.misc_enable &= !(1 << 18);
        if monitor {
            let without = Status::INCORRECT_MSR_VALUE.detail(0x1a0);
            host.fails(leaf::VP_ENTER, &[tdvpr], without);
        } else {
            assert_eq!(enter(&host, own, vec![]).0.rax, 1);
        }
        host.machine.conditions().msrs.misc_enable |= 1 << 18;
    }
}
