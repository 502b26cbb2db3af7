// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.ADD: add a page of initial memory to a TD.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
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
    number: 2,
    name: "MEM.PAGE.ADD",
    op_states: 0x002,
    locks: &[
        LeafLock::exclusive(LockOf::Tdr, Operand::Rdx),
        LeafLock::exclusive(LockOf::PageR8, Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 0"),
        ("RDX", "TDR"),
        ("R8", "page to give, free"),
        ("R9", "page to copy, of the host"),
    ],
    results: ENTRY_IF_IT_FAILS,
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::About(Status::OPERAND_INVALID, &[Operand::R9]),
        Answer::Page(Operand::R8),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::PageR8);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=0, regs)?;
    entry.check(entry.state() == SeptState::Free, regs)?;
    let Some(source) = address::shared(platform, regs.r9, PAGE_SIZE) else {
        return Err(Status::OPERAND_INVALID.on(Operand::R9));
    };
    let page = pamt::lock_free(call, regs.r8, &PAGE, 0)?;

    platform.copy_page(page.pa, source);
    td.measure_page(entry.gpa());
    entry.set(SeptEntry::mapped(page.pa));
    td.adopt(&page, PageType::Reg);
    Ok(())
}
