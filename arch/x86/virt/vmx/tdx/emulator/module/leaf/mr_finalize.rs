// SPDX-License-Identifier: GPL-2.0

//! TDH.MR.FINALIZE: end a TD's measurement and let it run.

use super::prelude::*;
use crate::module::td::{
    LockedTd,
    OpState,
    TdcsField, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 17,
    name: "MR.FINALIZE",
    op_states: 0x002,
    locks: &[LeafLock::exclusive("TDR", Operand::Rcx)],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::NO_VCPUS),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let td = LockedTd::lock(call, regs.rcx, Operand::Rcx, LockMode::Exclusive)?;
    let tdcs = td.check(INFO.op_states)?;
    if tdcs.get(TdcsField::NumVcpus) == 0 {
        return Err(Status::NO_VCPUS);
    }
    tdcs.measurement_finish();
    tdcs.set_op_state(OpState::Runnable);
    Ok(())
}
