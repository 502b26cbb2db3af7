// SPDX-License-Identifier: GPL-2.0

//! TDH.MR.FINALIZE: end a TD's measurement and let it run.

use super::prelude::*;
use crate::module::{
    open::TdAccess,
    td::{
        OpState,
        TdcsField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 17,
    name: "MR.FINALIZE",
    op_states: 0x002,
    locks: &[LeafLock::exclusive(LockOf::Tdr, Operand::Rcx)],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
        Answer::Plain(Status::NO_VCPUS),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let td = TD.open(call, regs.rcx)?;
    if td.get(TdcsField::NumVcpus) == 0 {
        return Err(Status::NO_VCPUS);
    }
    td.measurement_finish();
    td.set_op_state(OpState::Runnable);
    Ok(())
}
