// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.DISABLE: end the use of TDX until the next start.

use super::prelude::*;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 69,
    name: "SYS.DISABLE",
    locks: &[LeafLock::global(LockMode::Exclusive)],
    answers: &[Answer::Plain(Status::SYS_BUSY)],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, _regs: &mut Regs) -> LeafResult {
    let module = call.module;

    if !module.profile().sys_disable {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    module.lock_global(call, LockMode::Exclusive)?;
    if module.others_inside() {
        return Err(Status::SYS_BUSY);
    }
    module.set_sys_state(SysState::Disabled);
    Ok(())
}
