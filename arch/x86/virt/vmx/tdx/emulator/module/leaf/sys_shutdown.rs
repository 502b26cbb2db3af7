// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.SHUTDOWN: make place for another module.

use super::prelude::*;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 52,
    name: "SYS.SHUTDOWN",
    locks: &[LeafLock::global(LockMode::Exclusive)],
    operands: &[("RCX", "version of what is handed off: 0")],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::Plain(Status::SYS_BUSY),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let module = call.module;

    // The only version of handed-off data.
    if regs.rcx != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    module.lock_global(call, LockMode::Exclusive)?;
    if module.others_inside() {
        return Err(Status::SYS_BUSY);
    }
    module.forget_lps();
    module.set_sys_state(SysState::Shutdown);
    Ok(())
}
