// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.AUG: add a page to a TD that the guest must accept.

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
        SeptEntry,
        SeptState, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 6,
    name: "MEM.PAGE.AUG",
    op_states: 0x20e,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::shared(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
        LeafLock::exclusive(LockOf::PageR8, Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 0 or 1"),
        ("RDX", "TDR"),
        ("R8", "page to give, free"),
    ],
    results: ENTRY_IF_IT_FAILS,
    answers: &[
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

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=1, regs)?;
    let free = matches!(entry.state(), SeptState::Free | SeptState::Removed);
    entry.check(free, regs)?;
    let page = pamt::lock_free(call, regs.r8, &PAGE, entry.level())?;

    entry.set(SeptEntry::pending(page.pa));
    td.adopt(&page, PageType::Reg);
    Ok(())
}
