// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.KEY.FREEID: give back a TD's HKID.

use super::prelude::*;
use crate::module::{
    keys::KotState,
    platform::Event,
    td::{
        LifeCycle,
        LockedTd,
        TdrField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 20,
    name: "MNG.KEY.FREEID",
    locks: &[
        LeafLock::exclusive(LockOf::Tdr, Operand::Rcx),
        LeafLock::exclusive(LockOf::Kot, Operand::Kot),
    ],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::LIFECYCLE_STATE_INCORRECT),
        Answer::Plain(Status::WBCACHE_NOT_COMPLETE),
    ],
    ..LeafInfo::NEW
};

const TDR: LeafLock = INFO.lock(LockOf::Tdr);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let module = call.module;

    let td = LockedTd::lock(call, regs.rcx, &TDR)?;
    if td.life_cycle() != LifeCycle::Blocked {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    module.kot.lock(call, LockMode::Exclusive)?;
    if module.kot.get(td.hkid()).packages != 0 {
        return Err(Status::WBCACHE_NOT_COMPLETE);
    }

    module.kot.set(td.hkid(), KotState::Free, 0);
    td.set(TdrField::LifeCycle, LifeCycle::Teardown as u64);
    call.platform.observe(Event::KeyFreed(td.hkid()));
    Ok(())
}
