// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.REMOVE: give a page of a TD back to the host.

use super::prelude::*;
use crate::module::{
    open::{
        SeptAccess,
        TdAccess, //
    },
    pamt,
    sept::SeptEntry, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 29,
    name: "MEM.PAGE.REMOVE",
    op_states: 0x73e,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::shared(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
        LeafLock::exclusive(LockOf::EntryPage, Operand::Rcx),
    ],
    operands: &[("RCX", "GPA, level 0 to 2"), ("RDX", "TDR")],
    results: &[
        ("RCX", "on success, the page"),
        (
            "RCX, RDX",
            "on failure, the Secure EPT entry, its level and state",
        ),
    ],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::About(Status::GPA_RANGE_NOT_BLOCKED, &[Operand::Rcx]),
        Answer::About(Status::TLB_TRACKING_NOT_DONE, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::EntryPage);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=2, regs)?;
    entry.check(entry.state().is_leaf(), regs)?;
    let page = pamt::lock_implicit(call, entry.value().address(), &PAGE, entry.page_level())?;
    if td.tracking_required() && !entry.state().is_blocked() {
        return Err(entry.fail(regs, Status::GPA_RANGE_NOT_BLOCKED));
    }
    td.check_tracked(page.blocking_epoch())?;

    entry.set(SeptEntry::FREE);
    td.give_back(&page, Some(td.hkid()));
    regs.rcx = page.pa;
    Ok(())
}
