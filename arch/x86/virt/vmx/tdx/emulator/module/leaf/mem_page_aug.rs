// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.AUG: add a page to a TD that the guest must accept.

use super::prelude::*;
use crate::module::{
    pamt::{
        self,
        PageType, //
    },
    sept::{
        GpaOperand,
        LockedEntry,
        SeptEntry,
        SeptState, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 6,
    name: "MEM.PAGE.AUG",
    op_states: 0x20e,
    locks: &[
        LeafLock::shared("TDR", Operand::Rdx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::shared("SEPT tree", Operand::SeptTree),
        LeafLock::exclusive("SEPT entry", Operand::Rcx),
        LeafLock::exclusive("page R8", Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 0 or 1"),
        ("RDX", "TDR"),
        ("R8", "page to give, free"),
    ],
    results: &[
        ("RCX", "on failure, the Secure EPT entry"),
        ("RDX", "on failure, its level and state"),
    ],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_WALK_FAILED, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::Page(Operand::R8),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let operand = GpaOperand::decode(rcx, 0..=1)?;
    let entry = LockedEntry::lock(call, &tdcs, operand, LockMode::Shared, regs)?;
    if !matches!(entry.state(), SeptState::Free | SeptState::Removed) {
        return Err(entry.walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let page = pamt::lock_free(call, regs.r8, Operand::R8, operand.level)?;

    entry.set(SeptEntry::pending(page.pa));
    td.add_children(page.pages());
    page.assign(PageType::Reg, td.tdr);
    Ok(())
}
