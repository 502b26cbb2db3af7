// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.ADD: add a page of initial memory to a TD.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    pamt::{
        self,
        PageType, //
    },
    sept::{
        self,
        GpaOperand,
        SeptEntry,
        SeptState, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 2,
    name: "MEM.PAGE.ADD",
    op_states: 0x002,
    locks: &[
        LeafLock::exclusive("TDR", Operand::Rdx),
        LeafLock::exclusive("page R8", Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 0"),
        ("RDX", "TDR"),
        ("R8", "page to give, free"),
        ("R9", "page to copy, of the host"),
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
        Answer::About(Status::OPERAND_INVALID, &[Operand::R9]),
        Answer::Page(Operand::R8),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;
    let (rcx, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Exclusive)?;
    let tdcs = td.check(INFO.op_states)?;
    let GpaOperand { gpa, level } = GpaOperand::decode(rcx, 0..=0)?;
    sept::check_private(&tdcs, gpa)?;
    // The TDR is locked alone, so nobody else changes the tree.
    let (walk, complete) = sept::walk(&tdcs, gpa, level);
    if !complete {
        return Err(walk.fail(regs, Status::EPT_WALK_FAILED));
    }
    if walk.entry.state() != SeptState::Free {
        return Err(walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let Some(source) = address::shared(platform, regs.r9, PAGE_SIZE) else {
        return Err(Status::OPERAND_INVALID.on(Operand::R9));
    };
    let page = pamt::lock_free(call, regs.r8, Operand::R8, 0)?;

    platform.copy_page(page.pa, source);
    tdcs.measure_page(gpa);
    platform.write64(walk.pa, SeptEntry::mapped(page.pa).0);
    td.add_children(1);
    page.assign(PageType::Reg, td.tdr);
    Ok(())
}
