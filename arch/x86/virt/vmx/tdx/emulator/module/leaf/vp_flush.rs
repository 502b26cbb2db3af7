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
        LeafLock::exclusive(LockOf::Tdvpr, Operand::Rcx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
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

const TDVPR: LeafLock = INFO.lock(LockOf::Tdvpr);
const TDR: LeafLock = INFO.lock(LockOf::Tdr);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let LockedVp { vp, td } = LockedVp::lock(call, regs.rcx, &TDVPR, &TDR)?;
    if td.life_cycle() != LifeCycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    let tdcs = td.tdcs().ok_or(Status::TDCS_NOT_ALLOCATED)?;
    vp.check_complete(&tdcs)?;
    vp.dissociate(&tdcs)
}
