// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.RANGE.UNBLOCK: give a blocked page or table back to the guest.

use super::prelude::*;
use crate::module::{
    open::{
        SeptAccess,
        TdAccess, //
    },
    pamt, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 39,
    name: "MEM.RANGE.UNBLOCK",
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
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::About(Status::TLB_TRACKING_NOT_DONE, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=td.root_level(), regs)?;
    let Some(unblocked) = entry.value().unblock() else {
        return Err(entry.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    };
    let page = entry.value().address();
    td.check_tracked(pamt::blocking_epoch(call, page, entry.page_level()))?;

    entry.set(unblocked);
    Ok(())
}
