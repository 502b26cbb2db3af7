// SPDX-License-Identifier: GPL-2.0

//! The PHYMEM leaves.

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
        FIRST_PAGE, //
    },
    module::{
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

#[test]
fn rdmd() {
    let host = start();
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for bad in [TDR + 8, WITH_HKID, 1 << 52] {
        let regs = host.fails(leaf::PHYMEM_PAGE_RDMD, &[bad, 1, 2, 3], rcx);
        assert_eq!((regs.rcx, regs.rdx, regs.r8, regs.r9), (0, 0, 0, 0));
    }
    host.fails(
        leaf::PHYMEM_PAGE_RDMD,
        &[OUTSIDE],
        Status::OPERAND_ADDR_RANGE_ERROR.on(Operand::Rcx),
    );
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    td.add_tables(&host);
    td.add_vcpu(&host);
    let added = td.add_page(&host, 0, &[0; 4096]);
    host.ok(leaf::MEM_TRACK, &[TDR]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
    let read = |pa: u64| {
        let regs = host.ok(leaf::PHYMEM_PAGE_RDMD, &[pa, 1, 2, 3]);
        assert_eq!((regs.r8, regs.r10, regs.r11), (0, 0, 0));
        (regs.rcx, regs.rdx, regs.r9)
    };
    assert_eq!(read(RESERVED), (PageType::Rsvd as u64, 0, 0));
    assert_eq!(read(TDR + 0x10_0000), (PageType::Nda as u64, 0, 0));
    assert_eq!(read(TDR), (PageType::Tdr as u64, 0, 0));
    assert_eq!(read(td.pages[0]), (PageType::Tdcx as u64, TDR, 0));
    assert_eq!(read(td.pages[6]), (PageType::Ept as u64, TDR, 0));
    assert_eq!(read(td.vcpus[0]), (PageType::Tdvpr as u64, TDR, 0));
    // With the epoch in which it was blocked.
    assert_eq!(read(added), (PageType::Reg as u64, TDR, 2));
}

#[test]
fn reclaim() {
    let host = start();
    let rax = leaf::PHYMEM_PAGE_RECLAIM;
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for bad in [TDR + 8, WITH_HKID, 1 << 52] {
        let regs = host.fails(rax, &[bad, 1, 2, 3], rcx);
        assert_eq!((regs.rcx, regs.rdx, regs.r8, regs.r9), (0, 0, 0, 0));
    }
    let range = Status::OPERAND_ADDR_RANGE_ERROR.on(Operand::Rcx);
    host.fails(rax, &[OUTSIDE], range);
    let metadata = Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx);
    for free in [TDR, RESERVED] {
        let regs = host.fails(rax, &[free, 1], metadata);
        assert_eq!((regs.rcx, regs.rdx), (0, 0));
    }
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    td.add_tables(&host);
    let large = TDR + 0x40_0000;
    host.ok(leaf::MEM_PAGE_AUG, &[0x20_0000 | 1, TDR, large]);

    let wrong = Status::LIFECYCLE_STATE_INCORRECT;
    let page = td.pages[0];
    let regs = host.fails(rax, &[page], wrong);
    assert_eq!((regs.rcx, regs.rdx, regs.r8), (5, TDR, 0));
    host.fails(rax, &[TDR], wrong);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    host.fails(rax, &[page], wrong);
    host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[TDR]);

    let regs = host.fails(rax, &[TDR], Status::TD_ASSOCIATED_PAGES_EXIST);
    assert_eq!((regs.rcx, regs.rdx), (4, 0));
    // A large page as a whole only.
    let regs = host.fails(rax, &[large + 0x1000], rcx);
    assert_eq!((regs.rcx, regs.rdx, regs.r8), (3, TDR, 1));
    host.ok(rax, &[large]);
    for page in &td.pages {
        host.ok(rax, &[*page]);
        host.fails(rax, &[*page], metadata);
    }
    host.ok(rax, &[TDR]);
    for page_type in PageType::OWNED {
        assert_eq!(host.module.pages(page_type), 0);
    }
}

#[test]
fn page_wbinvd() {
    let host = start();
    let rax = leaf::PHYMEM_PAGE_WBINVD;
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for bad in [TDR + 8, 1 << 52] {
        host.fails(rax, &[bad], rcx);
    }
    let range = Status::OPERAND_ADDR_RANGE_ERROR.on(Operand::Rcx);
    host.fails(rax, &[OUTSIDE], range);
    host.fails(rax, &[OUTSIDE | 33 << 46], range);
    let metadata = Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx);
    host.fails(rax, &[RESERVED], metadata);
    host.ok(rax, &[TDR | 33 << 46]);
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    host.fails(rax, &[TDR | 33 << 46], metadata);
}

#[test]
fn cache_wb() {
    let host = start();
    let rax = leaf::PHYMEM_CACHE_WB;
    host.fails(rax, &[2], Status::OPERAND_INVALID.on(Operand::Rcx));
    host.fails(rax, &[0], Status::NO_HKID_READY_TO_WBCACHE);
    host.fails(rax, &[1], Status::WBCACHE_RESUME_ERROR);
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    host.fails(rax, &[0], Status::NO_HKID_READY_TO_WBCACHE);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    host.machine.conditions().interrupt_pending = true;
    host.fails(rax, &[0], Status::INTERRUPTED_RESUMABLE);
    // One piece more for each call, until the last.
    for _ in 1..7 {
        host.fails(rax, &[1], Status::INTERRUPTED_RESUMABLE);
    }
    host.ok(rax, &[1]);
    host.machine.conditions().interrupt_pending = false;
    host.fails(rax, &[1], Status::WBCACHE_RESUME_ERROR);
    // The HKID is ready until it is given back.
    host.ok(rax, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[TDR]);
    host.fails(rax, &[0], Status::NO_HKID_READY_TO_WBCACHE);
}
