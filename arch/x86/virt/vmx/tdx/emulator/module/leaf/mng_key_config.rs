// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.KEY.CONFIG: put a TD's key on the current package.

use super::{
    prelude::*,
    sys_key_config::program_key, //
};
use crate::module::td::{
    LifeCycle,
    LockedTd,
    TdrField, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 8,
    name: "MNG.KEY.CONFIG",
    locks: &[
        LeafLock::exclusive(LockOf::Tdr, Operand::Rcx),
        LeafLock::exclusive(LockOf::Ket, Operand::Ket),
    ],
    operands: &[("RCX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::LIFECYCLE_STATE_INCORRECT),
        Answer::Plain(Status::KEY_CONFIGURED),
        Answer::Plain(Status::KEY_GENERATION_FAILED),
    ],
    ..LeafInfo::NEW
};

const TDR: LeafLock = INFO.lock(LockOf::Tdr);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;

    let td = LockedTd::lock(call, regs.rcx, &TDR)?;
    if td.is_fatal() {
        return Err(Status::TD_FATAL);
    }
    if td.life_cycle() != LifeCycle::HkidAssigned {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    let packages = td.get(TdrField::Packages);
    let package = 1u64.checked_shl(platform.current_package()).unwrap_or(0);
    if packages & package != 0 {
        return Err(Status::KEY_CONFIGURED);
    }
    program_key(platform, td.hkid())?;

    let packages = packages | package;
    td.set(TdrField::Packages, packages);
    if packages.count_ones() >= platform.package_count() {
        td.set(TdrField::LifeCycle, LifeCycle::KeysConfigured as u64);
    }
    Ok(())
}
