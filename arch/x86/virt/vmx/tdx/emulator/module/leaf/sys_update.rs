// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.UPDATE: take over from a module that was shut down.

use super::prelude::*;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 53,
    name: "SYS.UPDATE",
    early: true,
    locks: &[LeafLock::global(LockMode::Exclusive)],
    answers: &[
        Answer::Plain(Status::SYS_STATE_INCORRECT),
        Answer::Plain(Status::SYS_INVALID_HANDOFF),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, _regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);

    module.lock_global(call, LockMode::Exclusive)?;
    if module.sys_state() != SysState::InitDone || !module.all_lps_initialized(platform) {
        return Err(Status::SYS_STATE_INCORRECT);
    }
    // Nobody ever hands anything off to this module.
    Err(Status::SYS_INVALID_HANDOFF)
}
