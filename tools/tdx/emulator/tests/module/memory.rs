// SPDX-License-Identifier: GPL-2.0

//! The MEM leaves.

use super::td::bad_pages;
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE,
        VERSION_1, //
    },
    machine::GuestAction,
    module::{
        GuestExit,
        Operand,
        PageType,
        Platform,
        Status,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
/// A page that nobody uses.
const SPARE: u64 = TDR + 0x40_0000;

const FREE: u64 = 1 << 63;

fn with_td() -> (Host, Td) {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    td.init(&host);
    (host, td)
}

fn with_tables() -> (Host, Td) {
    let (host, mut td) = with_td();
    td.add_tables(&host);
    (host, td)
}

fn runnable() -> (Host, Td) {
    let (host, mut td) = with_tables();
    td.add_vcpu(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    (host, td)
}

/// Tries GPAs that no leaf takes, at the lowest level that `call` takes.
fn bad_gpas(host: &Host, rax: u64, rest: &[u64], level: u64, bad_levels: &[u64]) {
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    let check = |gpa: u64| {
        let mut operands = vec![gpa];
        operands.extend(rest);
        host.fails(rax, &operands, rcx);
    };
    for reserved in [1 << 3, 1 << 11, 1 << 52, 1 << 63] {
        check(reserved | level);
    }
    // Not private: the shared bit, and beyond the width.
    check(1 << 47 | level);
    check(1 << 51 | level);
    for bad in bad_levels {
        check(*bad);
    }
}

#[test]
fn sept_add() {
    let (host, mut td) = with_td();
    let rax = leaf::MEM_SEPT_ADD;
    bad_pages(&host, Operand::Rdx, false, |pa| match pa & 0xfff {
        // Bit 0 has a meaning of its own.
        1 => (rax, vec![3, pa | 2, SPARE]),
        _ => (rax, vec![3, pa, SPARE]),
    });
    bad_gpas(&host, rax, &[TDR, SPARE], 3, &[0, 4, 5, 7, 1 << 12 | 3]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    let regs = host.fails(rax, &[1, TDR, SPARE], walk);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 3));
    host.fails(
        rax,
        &[3, TDR, u64::MAX],
        Status::OPERAND_INVALID.on(Operand::R8),
    );
    bad_pages(&host, Operand::R8, true, |pa| {
        (rax, vec![3, TDR, pa & !(1 << 63)])
    });
    let busy = Status::OPERAND_BUSY.on(Operand::R8);
    host.fails_with_effects(rax, &[3, TDR, TDR], busy);

    td.add_tables(&host);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let regs = host.fails(rax, &[1, TDR, SPARE], state);
    assert_eq!((regs.rcx, regs.rdx), (7, 0x8401));
    // Unless that is allowed; then the page is not taken.
    let regs = host.ok(rax, &[1, TDR | 1, SPARE]);
    assert_eq!((regs.rcx, regs.rdx, regs.r8), (0, 0, SPARE));
    assert_eq!(host.module.pages(PageType::Ept), 3);
    // A leaf is in the way.
    let page = SPARE + 0x20_0000;
    host.ok(leaf::MEM_PAGE_AUG, &[0x20_0000 | 1, TDR, page]);
    let regs = host.fails(rax, &[0x20_0000 | 1, TDR | 1, SPARE], state);
    assert_eq!((regs.rcx, regs.rdx), (FREE | page | 0xf0, 0x201));
    // Version 1 says that it took the page. Bit 63 of R8 is ignored.
    let operands = [0x40_0000 | 1, TDR, SPARE | 1 << 63];
    assert_eq!(host.ok(rax | VERSION_1, &operands).r8, u64::MAX);
}

#[test]
fn sept_add_needs_a_td() {
    let host = Host::start(&PROFILE_1_5_05);
    let call = |expected| host.fails(leaf::MEM_SEPT_ADD, &[3, TDR, SPARE], expected);
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    call(Status::TD_KEYS_NOT_CONFIGURED);
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    call(Status::TDCS_NOT_ALLOCATED);
    for index in 1..=6 {
        host.ok(leaf::MNG_ADDCX, &[TDR + 0x1000 * index, TDR]);
    }
    call(Status::OP_STATE_INCORRECT);
    host.module.make_fatal(&host.machine.lp(0), TDR);
    call(Status::TD_FATAL);
}

#[test]
fn page_add() {
    let (host, mut td) = with_td();
    let rax = leaf::MEM_PAGE_ADD;
    bad_pages(&host, Operand::Rdx, false, |pa| {
        (rax, vec![0, pa, SPARE, HOST_PAGE])
    });
    bad_gpas(&host, rax, &[TDR, SPARE, HOST_PAGE], 0, &[1, 2, 3]);
    let call = |gpa: u64, page: u64, source: u64, expected| {
        let regs = host.fails(rax, &[gpa, TDR, page, source], expected);
        (regs.rcx, regs.rdx)
    };
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    assert_eq!(call(0, SPARE, HOST_PAGE, walk), (FREE, 3));
    td.add_tables(&host);
    let source = Status::OPERAND_INVALID.on(Operand::R9);
    for bad in [HOST_PAGE + 8, HOST_PAGE | 33 << 46, 0xff_f000_0000] {
        call(0, SPARE, bad, source);
    }
    bad_pages(&host, Operand::R8, true, |pa| {
        (rax, vec![0, TDR, pa, HOST_PAGE])
    });
    host.machine.write_bytes(HOST_PAGE, &[0x5a; 4096]);
    let regs = host.ok(rax, &[0, TDR, SPARE, HOST_PAGE]);
    assert_eq!((regs.rcx, regs.rdx), (0, 0));
    assert_eq!(host.machine.read_bytes(SPARE, 4096), [0x5a; 4096]);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let taken = call(0, SPARE + 0x1000, HOST_PAGE, state);
    assert_eq!(taken, (FREE | SPARE | 0xf7, 0x400));

    td.add_vcpu(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    let page = SPARE + 0x1000;
    call(0x1000, page, HOST_PAGE, Status::OP_STATE_INCORRECT);
}

#[test]
fn page_aug() {
    let (host, mut td) = with_td();
    let rax = leaf::MEM_PAGE_AUG;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![0, pa, SPARE]));
    bad_gpas(&host, rax, &[TDR, SPARE], 0, &[2, 3, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR, SPARE], walk);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 3));
    td.add_tables(&host);
    bad_pages(&host, Operand::R8, true, |pa| (rax, vec![0, TDR, pa]));
    // The page is not cleared: the guest does that.
    host.machine.write_bytes(SPARE, &[0xa5; 4096]);
    host.ok(rax, &[0, TDR, SPARE]);
    assert_eq!(host.machine.read_bytes(SPARE, 4096), [0xa5; 4096]);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR, SPARE + 0x1000], state);
    assert_eq!((regs.rcx, regs.rdx), (FREE | SPARE | 0xf0, 0x200));
}

#[test]
fn page_aug_of_2m() {
    let (host, td) = with_tables();
    let rax = leaf::MEM_PAGE_AUG;
    let gpa = 0x20_0000 | 1;
    let r8 = Status::OPERAND_INVALID.on(Operand::R8);
    host.fails(rax, &[gpa, TDR, SPARE + 0x1000], r8);
    // One page of it is taken.
    host.ok(leaf::MNG_CREATE, &[SPARE + 0x5000, 34]);
    let taken = Status::PAGE_METADATA_INCORRECT.on(Operand::R8);
    host.fails(rax, &[gpa, TDR, SPARE], taken);
    let page = SPARE + 0x20_0000;
    host.ok(rax, &[gpa, TDR, page]);
    assert_eq!(host.module.pages(PageType::Reg), 512);
    // None of it can be used as small pages.
    host.fails(rax, &[0, TDR, page + 0x1000], taken);
    let regs = host.ok(leaf::PHYMEM_PAGE_RDMD, &[page + 0x1000]);
    assert_eq!((regs.rcx, regs.rdx, regs.r8), (3, TDR, 1));

    let regs = host.ok(leaf::MEM_PAGE_REMOVE, &[gpa, TDR]);
    assert_eq!(regs.rcx, page);
    assert_eq!(host.module.pages(PageType::Reg), 0);
    host.ok(rax, &[0, TDR, page + 0x1000]);
    drop(td);
}

#[test]
fn range_block() {
    let (host, td) = with_tables();
    let rax = leaf::MEM_RANGE_BLOCK;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![0, pa]));
    bad_gpas(&host, rax, &[TDR], 0, &[4, 5, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    let regs = host.fails(rax, &[1 << 30, TDR], walk);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 2));
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR], state);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 0));

    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, SPARE]);
    host.ok(rax, &[0, TDR]);
    let already = Status::GPA_RANGE_ALREADY_BLOCKED.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR], already);
    assert_eq!((regs.rcx, regs.rdx), (FREE | SPARE | 0xf0, 0x300));
    // A table.
    host.ok(rax, &[1, TDR]);
    let regs = host.fails(rax, &[1, TDR], already);
    assert_eq!((regs.rcx, regs.rdx), (0, 0x8101));
    let regs = host.fails(rax, &[0x1000, TDR], walk);
    assert_eq!((regs.rcx, regs.rdx), (0, 0x8101));
    drop(td);
}

#[test]
fn a_mapped_page_is_blocked_and_removed() {
    let (host, mut td) = with_tables();
    let page = td.add_page(&host, 0, &[7; 4096]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
    let already = Status::GPA_RANGE_ALREADY_BLOCKED.on(Operand::Rcx);
    let regs = host.fails(leaf::MEM_RANGE_BLOCK, &[0, TDR], already);
    assert_eq!((regs.rcx, regs.rdx), (FREE | page | 0xf0, 0x100));
    // Before the TD can run, translations need not be tracked.
    assert_eq!(host.ok(leaf::MEM_PAGE_REMOVE, &[0, TDR]).rcx, page);
}

#[test]
fn page_remove() {
    let (host, mut td) = runnable();
    let rax = leaf::MEM_PAGE_REMOVE;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![0, pa]));
    bad_gpas(&host, rax, &[TDR], 0, &[3, 4, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    host.fails(rax, &[1 << 30, TDR], walk);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    host.fails(rax, &[0, TDR], state);
    let regs = host.fails(rax, &[1, TDR], state);
    assert_eq!((regs.rcx, regs.rdx), (7, 0x8401));

    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    let not_blocked = Status::GPA_RANGE_NOT_BLOCKED.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR], not_blocked);
    assert_eq!((regs.rcx, regs.rdx), (FREE | page | 0xf0, 0x200));
    host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
    let not_tracked = Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR], not_tracked);
    assert_eq!((regs.rcx, regs.rdx), (0, 0));
    host.ok(leaf::MEM_TRACK, &[TDR]);
    let regs = host.ok(rax, &[0, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (page, 0));
    let info = host.module.page_info(&host.machine.lp(0), page).unwrap();
    assert_eq!(info.page_type, PageType::Nda);
}

#[test]
fn range_unblock() {
    let (host, mut td) = runnable();
    let rax = leaf::MEM_RANGE_UNBLOCK;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![0, pa]));
    bad_gpas(&host, rax, &[TDR], 0, &[4, 5, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    host.fails(rax, &[1 << 30, TDR], walk);
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let regs = host.fails(rax, &[0, TDR], state);
    assert_eq!((regs.rcx, regs.rdx), (FREE | page | 0xf0, 0x200));
    // A page that is not accepted, then a table: as if nothing had been.
    for operand in [0, 1] {
        let before = host.memory();
        let not_tracked = Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx);
        host.ok(leaf::MEM_RANGE_BLOCK, &[operand, TDR]);
        assert!(host.memory() != before);
        let regs = host.fails(rax, &[operand, TDR], not_tracked);
        assert_eq!((regs.rcx, regs.rdx), (0, 0));
        host.ok(leaf::MEM_TRACK, &[TDR]);
        let regs = host.ok(rax, &[operand, TDR]);
        assert_eq!((regs.rcx, regs.rdx), (0, 0));
        host.fails(rax, &[operand, TDR], state);
    }
    let regs = host.ok(leaf::MEM_SEPT_RD, &[0, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (FREE | page | 0xf0, 0x200));
}

#[test]
fn a_mapped_page_is_unblocked() {
    let (host, mut td) = with_tables();
    td.add_page(&host, 0, &[7; 4096]);
    let mapped = host.ok(leaf::MEM_SEPT_RD, &[0, TDR]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
    assert_eq!(host.ok(leaf::MEM_SEPT_RD, &[0, TDR]).rdx, 0x100);
    // Before the TD can run, translations need not be tracked.
    host.ok(leaf::MEM_RANGE_UNBLOCK, &[0, TDR]);
    assert_eq!(host.ok(leaf::MEM_SEPT_RD, &[0, TDR]), mapped);
    host.ok(leaf::MR_EXTEND, &[0, TDR]);
}

#[test]
fn sept_rd() {
    let (host, _td) = with_tables();
    let rax = leaf::MEM_SEPT_RD;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![0, pa]));
    bad_gpas(&host, rax, &[TDR], 0, &[4, 5, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    let regs = host.fails(rax, &[1 << 30, TDR], walk);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 2));
    let regs = host.ok(rax, &[0, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 0));
    let regs = host.ok(rax, &[3, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (7, 0x8403));
}

#[test]
fn sept_remove() {
    let (host, mut td) = runnable();
    let rax = leaf::MEM_SEPT_REMOVE;
    bad_pages(&host, Operand::Rdx, false, |pa| (rax, vec![1, pa]));
    bad_gpas(&host, rax, &[TDR], 1, &[0, 4, 5, 1 << 12 | 1]);
    let walk = Status::EPT_WALK_FAILED.on(Operand::Rcx);
    host.fails(rax, &[1 << 30 | 1, TDR], walk);
    let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
    let regs = host.fails(rax, &[0x20_0000 | 1, TDR], state);
    assert_eq!((regs.rcx, regs.rdx), (FREE, 1));
    let not_blocked = Status::GPA_RANGE_NOT_BLOCKED.on(Operand::Rcx);
    let regs = host.fails(rax, &[1, TDR], not_blocked);
    assert_eq!((regs.rcx, regs.rdx), (7, 0x8401));
    host.ok(leaf::MEM_RANGE_BLOCK, &[1, TDR]);
    let not_tracked = Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx);
    host.fails(rax, &[1, TDR], not_tracked);
    host.ok(leaf::MEM_TRACK, &[TDR]);
    let table = *td.pages[..9].last().unwrap();
    let regs = host.ok(rax | VERSION_1, &[1, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (table, 0));
    assert_eq!(
        (regs.r9, regs.r10, regs.r11),
        (u64::MAX, u64::MAX, u64::MAX)
    );
    let info = host.module.page_info(&host.machine.lp(0), table).unwrap();
    assert_eq!(info.page_type, PageType::Nda);
    assert_eq!(host.ok(leaf::MEM_SEPT_RD, &[1, TDR]).rcx, FREE);

    // The table above is not empty once there is a new one.
    let page = td.page();
    host.ok(leaf::MEM_SEPT_ADD, &[1, TDR, page]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[2, TDR]);
    host.ok(leaf::MEM_TRACK, &[TDR]);
    let not_free = Status::EPT_PAGE_NOT_FREE.on(Operand::Rcx);
    host.fails(rax, &[2, TDR], not_free);
}

/// What only migration leads to, so the host writes it into the table here.
#[test]
fn states_of_migration() {
    let (host, mut td) = with_tables();
    let entry = *td.pages.last().unwrap();
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    let set = |value: u64| host.machine.lp(0).write64(entry, value);
    let read = || host.ok(leaf::MEM_SEPT_RD, &[0, TDR]).rdx;
    const BLOCKED_WRITE: u64 = 0x0040_0000_0000_00c0;
    const PENDING: u64 = 0x0100_0000_0000_0000;
    for (value, code, blocked) in [(BLOCKED_WRITE, 8, 1), (BLOCKED_WRITE | PENDING, 16, 3)] {
        set(value | page);
        assert_eq!(read(), code << 8);
        host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
        assert_eq!(read(), blocked << 8);
    }
    host.ok(leaf::MEM_PAGE_REMOVE, &[0, TDR]);
    // A page that an import has removed can be added again.
    set(0x00c0_0000_0000_0000);
    assert_eq!(read(), 5 << 8);
    host.fails(
        leaf::MEM_RANGE_BLOCK,
        &[0, TDR],
        Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx),
    );
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    assert_eq!(read(), 2 << 8);
}

/// Runs `f` while the TD's first vCPU, entered on the other processor, runs.
fn while_running(host: &Host, td: &Td, f: impl FnOnce()) {
    host.ok(leaf::VP_FLUSH, &[td.vcpus[0]]);
    host.machine.conditions().guest = [
        GuestAction::Run,
        GuestAction::Exit(GuestExit::VmExit {
            reason: 1,
            qualification: 0,
            gpa: 0,
            interruption: 0,
            rip: 0,
        }),
    ]
    .into();
    std::thread::scope(|scope| {
        let guest = scope.spawn(|| host.on(1).call_on(leaf::VP_ENTER, &[td.vcpus[0]]).0);
        host.machine.wait_for_guest();
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        host.machine.resume_guest();
        assert_eq!(guest.join().unwrap(), 1);
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
    });
    host.on(1).ok_on(leaf::VP_FLUSH, &[td.vcpus[0]]);
}

#[test]
fn tracking_waits_for_running_vcpus() {
    let (host, mut td) = runnable();
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0, TDR, page]);
    while_running(&host, &td, || {
        host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
        host.ok(leaf::MEM_TRACK, &[TDR]);
        // It runs since the epoch before.
        host.fails(leaf::MEM_TRACK, &[TDR], Status::PREVIOUS_TLB_EPOCH_BUSY);
        let not_tracked = Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx);
        host.fails(leaf::MEM_PAGE_REMOVE, &[0, TDR], not_tracked);
        // And holds its TDVPR and the TDR.
        let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
        host.fails_with_effects(leaf::VP_FLUSH, &[td.vcpus[0]], busy);
        host.fails_with_effects(leaf::MNG_VPFLUSHDONE, &[TDR], busy);
        let active = Status::VCPU_STATE_INCORRECT;
        host.fails(leaf::VP_RD, &[td.vcpus[0], 2], active);
    });
    assert_eq!(host.ok(leaf::MEM_PAGE_REMOVE, &[0, TDR]).rcx, page);
}

#[test]
fn track() {
    let host = Host::start(&PROFILE_1_5_05);
    bad_pages(&host, Operand::Rcx, false, |pa| (leaf::MEM_TRACK, vec![pa]));
    let td = Td::create(&host, TDR, 33);
    host.fails(leaf::MEM_TRACK, &[TDR], Status::OP_STATE_INCORRECT);
    td.init(&host);
    host.ok(leaf::MEM_TRACK, &[TDR]);
    let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
    assert_eq!(info.epoch, 2);
}

#[test]
fn five_levels() {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    host.write_td_params();
    // 52-bit addresses, which need five levels.
    host.machine.write_bytes(HOST_PAGE + 24, &[0x26]);
    host.machine.write_bytes(HOST_PAGE + 32, &[1]);
    host.ok(leaf::MNG_INIT, &[TDR, HOST_PAGE]);
    let gpa = 1 << 50;
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    host.fails(leaf::MEM_SEPT_ADD, &[5, TDR, SPARE], rcx);
    host.fails(leaf::MEM_SEPT_ADD, &[1 << 51 | 4, TDR, SPARE], rcx);
    for (index, level) in (0..).zip([4, 3, 2, 1]) {
        let page = SPARE + 0x1000 * index;
        host.ok(leaf::MEM_SEPT_ADD, &[gpa | level, TDR, page]);
    }
    host.ok(leaf::MEM_PAGE_AUG, &[gpa, TDR, SPARE + 0x5000]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[gpa | 4, TDR]);
    drop(td);
}
