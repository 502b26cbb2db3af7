// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.VPFLUSHDONE: end the use of a TD's key.

use super::prelude::*;
use crate::module::{
    keys::KotState,
    td::{
        LifeCycle,
        LockedTd,
        OpState,
        TdcsField,
        TdrField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 19,
    name: "MNG.VPFLUSHDONE",
    locks: &[
        LeafLock::exclusive(LockOf::Tdr, Operand::Rcx),
        LeafLock::exclusive(LockOf::Kot, Operand::Kot),
    ],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::LIFECYCLE_STATE_INCORRECT),
        Answer::Plain(Status::FLUSHVP_NOT_DONE),
    ],
    ..LeafInfo::NEW
};

const TDR: LeafLock = INFO.lock(LockOf::Tdr);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);

    let td = LockedTd::lock(call, regs.rcx, &TDR)?;
    module.kot.lock(call, LockMode::Exclusive)?;
    let life_cycle = td.life_cycle();
    if !matches!(
        life_cycle,
        LifeCycle::HkidAssigned | LifeCycle::KeysConfigured
    ) {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    if let Some(tdcs) = td.tdcs() {
        let initialized = tdcs.op_state() != OpState::Uninitialized;
        if initialized && tdcs.get(TdcsField::NumAssociated) != 0 {
            return Err(Status::FLUSHVP_NOT_DONE);
        }
    }

    let packages = 1u32.checked_shl(platform.package_count()).unwrap_or(0);
    let packages = packages.wrapping_sub(1) as u8;
    module.kot.set(td.hkid(), KotState::Flushed, packages);
    td.set(TdrField::LifeCycle, LifeCycle::Blocked as u64);
    Ok(())
}
