// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.RANGE.BLOCK: take a page or table from the guest.

use super::prelude::*;
use crate::module::{
    open::{
        SeptAccess,
        TdAccess, //
    },
    pamt,
    td::TdcsField, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 7,
    name: "MEM.RANGE.BLOCK",
    op_states: 0x33e,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::exclusive(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
    ],
    operands: &[("RCX", "GPA, level 0 to 3 or 4"), ("RDX", "TDR")],
    results: ENTRY_IF_IT_FAILS,
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
        Answer::About(Status::GPA_RANGE_ALREADY_BLOCKED, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=td.root_level(), regs)?;
    let state = entry.state();
    if state.is_blocked() {
        return Err(entry.fail(regs, Status::GPA_RANGE_ALREADY_BLOCKED));
    }
    let Some(blocked) = state.blocked() else {
        return Err(entry.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    };

    entry.set(entry.value().block(blocked));
    let epoch = td.get(TdcsField::Epoch);
    pamt::set_blocking_epoch(call, entry.value().address(), entry.page_level(), epoch);
    Ok(())
}
