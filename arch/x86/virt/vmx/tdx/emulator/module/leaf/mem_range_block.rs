// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.RANGE.BLOCK: take a page or table from the guest.

use super::prelude::*;
use crate::module::{
    pamt,
    sept::{
        GpaOperand,
        LockedEntry, //
    },
    td::{
        LockedTd,
        TdcsField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 7,
    name: "MEM.RANGE.BLOCK",
    op_states: 0x33e,
    locks: &[
        LeafLock::shared("TDR", Operand::Rdx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::exclusive("SEPT tree", Operand::SeptTree),
        LeafLock::exclusive("SEPT entry", Operand::Rcx),
    ],
    operands: &[("RCX", "GPA, level 0 to 3 or 4"), ("RDX", "TDR")],
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
        Answer::About(Status::GPA_RANGE_ALREADY_BLOCKED, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let operand = GpaOperand::decode(rcx, 0..=tdcs.root_level())?;
    let entry = LockedEntry::lock(call, &tdcs, operand, LockMode::Exclusive, regs)?;
    let state = entry.state();
    let Some(blocked) = state.blocked() else {
        let status = if state.is_blocked() {
            Status::GPA_RANGE_ALREADY_BLOCKED
        } else {
            Status::EPT_ENTRY_STATE_INCORRECT
        };
        return Err(entry.walk.fail(regs, status));
    };

    entry.set(entry.walk.entry.block(blocked));
    let epoch = tdcs.get(TdcsField::Epoch);
    let level = if state.is_leaf() { operand.level } else { 0 };
    pamt::set_blocking_epoch(call, entry.walk.entry.address(), level, epoch);
    Ok(())
}
