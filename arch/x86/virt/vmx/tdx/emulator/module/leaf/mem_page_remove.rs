// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.REMOVE: give a page of a TD back to the host.

use super::prelude::*;
use crate::module::{
    pamt,
    sept::{
        GpaOperand,
        LockedEntry,
        SeptEntry, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 29,
    name: "MEM.PAGE.REMOVE",
    op_states: 0x73e,
    locks: &[
        LeafLock::shared("TDR", Operand::Rdx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::shared("SEPT tree", Operand::SeptTree),
        LeafLock::exclusive("SEPT entry", Operand::Rcx),
        LeafLock::exclusive("removed page", Operand::Rcx),
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
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_WALK_FAILED, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::About(Status::GPA_RANGE_NOT_BLOCKED, &[Operand::Rcx]),
        Answer::About(Status::TLB_TRACKING_NOT_DONE, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

/// The operation states in which the guest may run, so that its TLBs matter.
const TRACKING_REQUIRED: u16 = 0x20c;

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let operand = GpaOperand::decode(rcx, 0..=2)?;
    let entry = LockedEntry::lock(call, &tdcs, operand, LockMode::Shared, regs)?;
    if !entry.state().is_leaf() {
        return Err(entry.walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let removed = entry.walk.entry.address();
    let level = operand.level;
    let page = pamt::lock_implicit(call, removed, Operand::Rcx, level, LockMode::Exclusive)?;
    if tdcs.check_op_state(TRACKING_REQUIRED).is_ok() {
        if !entry.state().is_blocked() {
            return Err(entry.walk.fail(regs, Status::GPA_RANGE_NOT_BLOCKED));
        }
        if !tdcs.is_tracked(page.blocking_epoch()) {
            return Err(Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx));
        }
    }

    entry.set(SeptEntry::FREE);
    td.remove_children(page.pages());
    page.free();
    regs.rcx = removed;
    Ok(())
}
