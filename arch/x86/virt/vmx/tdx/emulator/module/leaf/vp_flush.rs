// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.FLUSH: end a vCPU's association with the current processor.

use super::prelude::*;
use crate::module::{
    td::LifeCycle,
    vp::LockedVp, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 18,
    name: "VP.FLUSH",
    locks: &[
        LeafLock::exclusive("TDVPR", Operand::Rcx),
        LeafLock::shared("TDR", Operand::Tdr),
    ],
    operands: &[("RCX", "TDVPR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Plain(Status::VCPU_NOT_ASSOCIATED),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let vp = LockedVp::lock(
        call,
        regs.rcx,
        Operand::Rcx,
        LockMode::Exclusive,
        LockMode::Shared,
    )?;
    if vp.td.life_cycle() != LifeCycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    let tdcs = vp.td.tdcs().ok_or(Status::TDCS_NOT_ALLOCATED)?;
    vp.check_complete(&tdcs)?;
    vp.dissociate(&tdcs)
}
