// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.TRACK: start a new TLB epoch of a TD.

use super::prelude::*;
use crate::module::{
    open::TdAccess,
    td::TdcsField, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 38,
    name: "MEM.TRACK",
    op_states: 0x3fe,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rcx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::exclusive(LockOf::Epoch, Operand::TdEpoch),
    ],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
        Answer::Plain(Status::PREVIOUS_TLB_EPOCH_BUSY),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let td = TD.open(call, regs.rcx)?;
    td.lock_epoch(LockMode::Exclusive)?;
    let epoch = td.get(TdcsField::Epoch);
    if td.epoch_users(epoch.wrapping_sub(1)).load() != 0 {
        return Err(Status::PREVIOUS_TLB_EPOCH_BUSY);
    }
    td.set(TdcsField::Epoch, epoch.wrapping_add(1));
    Ok(())
}
