// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.SEPT.ADD: give a TD a page for its Secure EPT.

use super::prelude::*;
use crate::module::{
    open::{
        SeptAccess,
        TdAccess, //
    },
    pamt::{
        self,
        PageType, //
    },
    sept::{
        self,
        SeptEntry,
        SeptState, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 3,
    name: "MEM.SEPT.ADD",
    versions: Versions::Two,
    op_states: 0x3ce,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::shared(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
        LeafLock::exclusive(LockOf::PageR8, Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 1 to 3 or 4"),
        ("RDX", "TDR, with bit 0 set if a table may be there already"),
        ("R8", "page to give, free"),
    ],
    results: &[
        ("RCX", "on failure, the Secure EPT entry"),
        ("RDX", "on failure, its level and state"),
        ("R8", "version 1, on success: all ones"),
    ],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rdx]),
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::Page(Operand::R8),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::PageR8);

/// The bit of RDX that accepts a table which is already there.
const ALLOW_EXISTING: u64 = 1 << 0;
/// The bits of RDX that must be zero.
const RESERVED: u64 = 0xfff0_0000_0000_0ffe;
/// The bit of R8 that is ignored.
const IGNORED: u64 = 1 << 63;

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, rdx) = regs.take_rcx_rdx();

    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    if rdx & RESERVED != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    }
    let td = TD.open(call, rdx & !ALLOW_EXISTING)?;
    let entry = SEPT.open(&td, rcx, 1..=td.root_level(), regs)?;
    let is_table = entry.state() == SeptState::Table;
    entry.check(is_table || entry.state() == SeptState::Free, regs)?;
    if regs.r8 == u64::MAX {
        return Err(Status::OPERAND_INVALID.on(Operand::R8));
    }
    if is_table {
        return entry.check(rdx & ALLOW_EXISTING != 0, regs);
    }
    let page = pamt::lock_free(call, regs.r8 & !IGNORED, &PAGE, 0)?;

    sept::fill_free(call.platform, page.pa);
    entry.set(SeptEntry::table(page.pa));
    td.adopt(&page, PageType::Ept);
    if call.version > 0 {
        // Of the pages given for the TD and its L2 VMs, this one is used up.
        regs.r8 = u64::MAX;
    }
    Ok(())
}
