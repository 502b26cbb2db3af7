// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.KEY.CONFIG: put the global key on the current package.

use super::prelude::*;
use crate::module::platform::KeyProgram;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 31,
    name: "SYS.KEY.CONFIG",
    early: true,
    locks: &[
        LeafLock::global(LockMode::Exclusive),
        LeafLock::exclusive(LockOf::Ket, Operand::Ket),
    ],
    answers: &[
        Answer::Plain(Status::SYS_KEY_CONFIG_NOT_PENDING),
        Answer::Plain(Status::KEY_CONFIGURED),
        Answer::Plain(Status::KEY_GENERATION_FAILED),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, _regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);

    module.lock_global(call, LockMode::Exclusive)?;
    if module.sys_state() != SysState::ConfigDone {
        return Err(Status::SYS_KEY_CONFIG_NOT_PENDING);
    }
    let package = platform.current_package();
    if module.package_has_key(package) {
        return Err(Status::KEY_CONFIGURED);
    }
    program_key(platform, module.global_hkid())?;
    if module.set_package_has_key(package) >= platform.package_count() {
        module.set_sys_state(SysState::Ready);
    }
    Ok(())
}

/// Programs a key on the current package.
pub(super) fn program_key<P: Platform>(platform: &P, hkid: u16) -> LeafResult {
    match platform.program_key(hkid) {
        KeyProgram::Done => Ok(()),
        KeyProgram::TableBusy => Err(Status::OPERAND_BUSY.on(Operand::Ket)),
        KeyProgram::NoEntropy => Err(Status::KEY_GENERATION_FAILED),
    }
}
