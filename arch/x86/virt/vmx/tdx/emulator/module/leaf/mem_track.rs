// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.TRACK: start a new TLB epoch of a TD.

use super::prelude::*;
use crate::module::td::{
    LockedTd,
    TdcsField, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 38,
    name: "MEM.TRACK",
    op_states: 0x3fe,
    locks: &[
        LeafLock::shared("TDR", Operand::Rcx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::exclusive("epoch", Operand::TdEpoch),
    ],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::PREVIOUS_TLB_EPOCH_BUSY),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let td = LockedTd::lock(call, regs.rcx, Operand::Rcx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let _epoch = tdcs.lock_epoch(LockMode::Exclusive)?;
    let epoch = tdcs.get(TdcsField::Epoch);
    if tdcs.epoch_users(epoch.wrapping_sub(1)) != 0 {
        return Err(Status::PREVIOUS_TLB_EPOCH_BUSY);
    }
    tdcs.set(TdcsField::Epoch, epoch.wrapping_add(1));
    Ok(())
}
