// SPDX-License-Identifier: GPL-2.0

//! The MNG and MR leaves.

use super::{
    OUTSIDE,
    RESERVED,
    WITH_HKID, //
};
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE, //
    },
    module::{
        KeyProgram,
        KotState,
        LifeCycle,
        OpState,
        Operand,
        PageType,
        Status,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;

fn start() -> Host {
    Host::start(&PROFILE_1_5_05)
}

fn runnable(host: &Host) -> Td {
    let mut td = Td::create(host, TDR, 33);
    td.init(host);
    td.add_vcpu(host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    td
}

/// Tries all that can be wrong with a page operand.
///
/// `call` puts the address in its place. `free` says that the page must be free, otherwise it must
/// be a TDR.
pub(super) fn bad_pages(
    host: &Host,
    operand: Operand,
    free: bool,
    call: impl Fn(u64) -> (u64, Vec<u64>),
) {
    let check = |pa: u64, status: Status| {
        let (rax, operands) = call(pa);
        host.fails(rax, &operands, status.on(operand));
    };
    for pa in [TDR + 1, TDR + 8, WITH_HKID, 1 << 52, u64::MAX << 12] {
        check(pa, Status::OPERAND_INVALID);
    }
    check(OUTSIDE, Status::OPERAND_ADDR_RANGE_ERROR);
    check(RESERVED, Status::PAGE_METADATA_INCORRECT);
    if !free {
        check(TDR + 0x10_0000, Status::PAGE_METADATA_INCORRECT);
    }
}

#[test]
fn create() {
    let host = start();
    let hkid = Status::OPERAND_INVALID.on(Operand::Rdx);
    for bad in [0, 31, 64, 1 << 16 | 33] {
        host.fails(leaf::MNG_CREATE, &[TDR, bad], hkid);
    }
    bad_pages(&host, Operand::Rcx, true, |pa| {
        (leaf::MNG_CREATE, vec![pa, 33])
    });
    // The module's own HKID.
    host.fails(leaf::MNG_CREATE, &[TDR, 32], Status::HKID_NOT_FREE);
    host.machine.conditions().entropy = false;
    host.fails(leaf::MNG_CREATE, &[TDR, 33], Status::RND_NO_ENTROPY);
    host.machine.conditions().entropy = true;

    host.machine.write_bytes(TDR, &[0xff; 4096]);
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    assert_eq!(host.module.kot_entry(33).state, KotState::Assigned);
    let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
    assert_eq!(info.life_cycle, LifeCycle::HkidAssigned);
    assert_eq!(info.op_state, OpState::Unallocated);
    assert_eq!((info.pages, info.control_pages, info.fatal), (0, 0, false));
    host.fails(
        leaf::MNG_CREATE,
        &[TDR, 34],
        Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx),
    );
    let other = TDR + 0x1000;
    host.fails(leaf::MNG_CREATE, &[other, 33], Status::HKID_NOT_FREE);
}

#[test]
fn key_config() {
    let host = start();
    bad_pages(&host, Operand::Rcx, false, |pa| {
        (leaf::MNG_KEY_CONFIG, vec![pa])
    });
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    host.machine.conditions().program_key = KeyProgram::TableBusy;
    let busy = Status::OPERAND_BUSY.on(Operand::Ket);
    host.fails(leaf::MNG_KEY_CONFIG, &[TDR], busy);
    host.machine.conditions().program_key = KeyProgram::NoEntropy;
    host.fails(leaf::MNG_KEY_CONFIG, &[TDR], Status::KEY_GENERATION_FAILED);
    host.machine.conditions().program_key = KeyProgram::Done;
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    host.fails(
        leaf::MNG_KEY_CONFIG,
        &[TDR],
        Status::LIFECYCLE_STATE_INCORRECT,
    );
    host.module.make_fatal(&host.machine.lp(0), TDR);
    host.fails(leaf::MNG_KEY_CONFIG, &[TDR], Status::TD_FATAL);
}

#[test]
fn keys_are_needed_on_all_packages() {
    let host = Host::start_with_packages(&PROFILE_1_5_05, 2);
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    host.fails(leaf::MNG_KEY_CONFIG, &[TDR], Status::KEY_CONFIGURED);
    let page = TDR + 0x1000;
    host.fails(
        leaf::MNG_ADDCX,
        &[page, TDR],
        Status::TD_KEYS_NOT_CONFIGURED,
    );
    host.on(2).ok_on(leaf::MNG_KEY_CONFIG, &[TDR]);
    host.ok(leaf::MNG_ADDCX, &[page, TDR]);

    // And caches are written back on all of them.
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    assert_eq!(host.module.kot_entry(33).packages, 3);
    host.fails(leaf::MNG_KEY_FREEID, &[TDR], Status::WBCACHE_NOT_COMPLETE);
    host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
    assert_eq!(host.module.kot_entry(33).packages, 2);
    host.fails(leaf::MNG_KEY_FREEID, &[TDR], Status::WBCACHE_NOT_COMPLETE);
    host.on(3).ok_on(leaf::PHYMEM_CACHE_WB, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[TDR]);
    assert_eq!(host.module.kot_entry(33).state, KotState::Free);
}

#[test]
fn addcx() {
    let host = start();
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    let page = |index: u64| TDR + 0x1000 * (index + 1);
    bad_pages(&host, Operand::Rdx, false, |pa| {
        (leaf::MNG_ADDCX, vec![page(0), pa])
    });
    host.fails(
        leaf::MNG_ADDCX,
        &[page(0), TDR],
        Status::TD_KEYS_NOT_CONFIGURED,
    );
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    bad_pages(&host, Operand::Rcx, true, |pa| {
        (leaf::MNG_ADDCX, vec![pa, TDR])
    });
    // The TDR is locked already.
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    host.fails_with_effects(leaf::MNG_ADDCX, &[TDR, TDR], busy);
    for index in 0..5 {
        host.ok(leaf::MNG_ADDCX, &[page(index), TDR]);
    }
    host.machine.conditions().entropy = false;
    host.fails_with_effects(leaf::MNG_ADDCX, &[page(5), TDR], Status::RND_NO_ENTROPY);
    host.machine.conditions().entropy = true;
    for index in 5..9 {
        host.ok(leaf::MNG_ADDCX, &[page(index), TDR]);
    }
    host.fails(leaf::MNG_ADDCX, &[page(9), TDR], Status::TDCX_NUM_INCORRECT);
    let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
    assert_eq!((info.pages, info.control_pages), (9, 9));
    assert_eq!(info.op_state, OpState::Uninitialized);
    // Bitmaps, page tables, and zero.
    assert_eq!(host.machine.read_bytes(page(2), 4096), [0xff; 4096]);
    let table = host.machine.read_bytes(page(3), 4096);
    let free = 0x80e0_0000_0000_0000_u64.to_le_bytes();
    assert!(table.chunks(8).all(|entry| entry == free));
    assert_eq!(host.machine.read_bytes(page(4), 4096), [0; 4096]);

    let second = TDR + 0x10_0000;
    let td = Td::create(&host, second, 34);
    td.init(&host);
    host.fails_with_effects(
        leaf::MNG_ADDCX,
        &[second + 0x10_000, second],
        Status::OP_STATE_INCORRECT,
    );
    host.module.make_fatal(&host.machine.lp(0), second);
    host.fails(
        leaf::MNG_ADDCX,
        &[second + 0x10_000, second],
        Status::TD_FATAL,
    );
}

#[test]
fn init() {
    let host = start();
    host.write_td_params();
    bad_pages(&host, Operand::Rcx, false, |pa| {
        (leaf::MNG_INIT, vec![pa, HOST_PAGE])
    });
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    let call = |expected| host.fails(leaf::MNG_INIT, &[TDR, HOST_PAGE], expected);
    call(Status::TD_KEYS_NOT_CONFIGURED);
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    for index in 0..6 {
        call(Status::TDCS_NOT_ALLOCATED);
        host.ok(leaf::MNG_ADDCX, &[TDR + 0x1000 * (index + 1), TDR]);
    }
    host.machine.conditions().msrs.misc_enable |= 1 << 22;
    call(Status::LIMIT_CPUID_MAXVAL_SET);
    host.machine.conditions().msrs.misc_enable &= !(1 << 22);
    let rdx = Status::OPERAND_INVALID.on(Operand::Rdx);
    for bad in [HOST_PAGE + 512, HOST_PAGE | 33 << 46, 1 << 52] {
        host.fails(leaf::MNG_INIT, &[TDR, bad], rdx);
    }
    // Through a shared HKID.
    host.ok(leaf::MNG_INIT, &[TDR, HOST_PAGE | 31 << 46]);
    call(Status::OP_STATE_INCORRECT);
    host.module.make_fatal(&host.machine.lp(0), TDR);
    call(Status::TD_FATAL);
}

#[test]
fn mr_extend() {
    let host = start();
    let mut td = Td::create(&host, TDR, 33);
    let call = |gpa: u64, expected| host.fails(leaf::MR_EXTEND, &[gpa, TDR], expected);
    bad_pages(&host, Operand::Rdx, false, |pa| {
        (leaf::MR_EXTEND, vec![0, pa])
    });
    call(0, Status::OP_STATE_INCORRECT);
    td.init(&host);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    call(0x80, rcx);
    call(1 << 47, rcx);
    call(1 << 52, rcx);
    let not_present = Status::EPT_ENTRY_NOT_PRESENT.on(Operand::Rcx);
    let regs = host.fails(leaf::MR_EXTEND, &[0, TDR], not_present);
    assert_eq!((regs.rcx, regs.rdx), (1 << 63, 3));
    td.add_tables(&host);
    let regs = host.fails(leaf::MR_EXTEND, &[0, TDR], not_present);
    assert_eq!((regs.rcx, regs.rdx), (1 << 63, 0));
    let page = td.page();
    host.ok(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]);
    let regs = host.fails(leaf::MR_EXTEND, &[0x1000, TDR], not_present);
    assert_eq!((regs.rcx, regs.rdx), (1 << 63 | page | 0xf0, 0x200));
    td.add_page(&host, 0x2000, &[1; 4096]);
    let regs = host.ok(leaf::MR_EXTEND, &[0x2f00, TDR]);
    assert_eq!((regs.rcx, regs.rdx), (0, 0));
}

#[test]
fn mr_finalize() {
    let host = start();
    let mut td = Td::create(&host, TDR, 33);
    bad_pages(&host, Operand::Rcx, false, |pa| {
        (leaf::MR_FINALIZE, vec![pa])
    });
    host.fails(leaf::MR_FINALIZE, &[TDR], Status::OP_STATE_INCORRECT);
    td.init(&host);
    host.fails(leaf::MR_FINALIZE, &[TDR], Status::NO_VCPUS);
    td.add_vcpu(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    host.fails(leaf::MR_FINALIZE, &[TDR], Status::OP_STATE_INCORRECT);
}

#[test]
fn vpflushdone_and_freeid() {
    let host = start();
    for rax in [leaf::MNG_VPFLUSHDONE, leaf::MNG_KEY_FREEID] {
        bad_pages(&host, Operand::Rcx, false, |pa| (rax, vec![pa]));
    }
    let td = runnable(&host);
    let wrong = Status::LIFECYCLE_STATE_INCORRECT;
    host.fails(leaf::MNG_KEY_FREEID, &[TDR], wrong);
    host.fails(leaf::MNG_VPFLUSHDONE, &[TDR], Status::FLUSHVP_NOT_DONE);
    host.ok(leaf::VP_FLUSH, &[td.vcpus[0]]);
    // A TD that does not recover can still be taken apart.
    host.module.make_fatal(&host.machine.lp(0), TDR);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    assert_eq!(host.module.kot_entry(33).state, KotState::Flushed);
    host.fails(leaf::MNG_VPFLUSHDONE, &[TDR], wrong);
    host.fails(leaf::MNG_KEY_FREEID, &[TDR], Status::WBCACHE_NOT_COMPLETE);
    host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[TDR]);
    host.fails(leaf::MNG_KEY_FREEID, &[TDR], wrong);
    let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
    assert_eq!(info.life_cycle, LifeCycle::Teardown);
}

#[test]
fn a_td_without_control_pages_can_be_given_up() {
    let host = start();
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[TDR]);
    host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[TDR]);
    assert_eq!(host.module.pages(PageType::Tdr), 0);
}

#[test]
fn states_have_names() {
    let names = [
        LifeCycle::HkidAssigned,
        LifeCycle::KeysConfigured,
        LifeCycle::Blocked,
        LifeCycle::Teardown,
    ]
    .map(LifeCycle::name);
    assert_eq!(
        names,
        ["HKID_ASSIGNED", "KEYS_CONFIGURED", "BLOCKED", "TEARDOWN"]
    );
    let names = [
        OpState::Unallocated,
        OpState::Uninitialized,
        OpState::Initialized,
        OpState::Runnable,
    ]
    .map(OpState::name);
    assert_eq!(
        names,
        ["UNALLOCATED", "UNINITIALIZED", "INITIALIZED", "RUNNABLE"]
    );
    let names = PageType::OWNED.map(PageType::name);
    assert_eq!(names, ["REG", "TDR", "TDCX", "TDVPR", "EPT"]);
    assert_eq!(
        (PageType::Nda.name(), PageType::Rsvd.name()),
        ("NDA", "RSVD")
    );
    assert!(Status::OPERAND_BUSY.is_error() && !Status::SUCCESS.is_error());
    assert!(Status::SUCCESS.is_success() && !Status::KEY_CONFIGURED.is_success());
    assert_eq!(Status::SYS_BUSY.name(), Some("SYS_BUSY"));
}
