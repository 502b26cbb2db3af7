// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.LP.INIT: initialise the current processor.

use super::prelude::*;
use crate::module::keys::MAX_PACKAGES;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 35,
    name: "SYS.LP.INIT",
    early: true,
    locks: &[LeafLock::global(LockMode::Shared)],
    results: &[(
        "RCX, RDX, R8",
        "0, or the CPUID leaf that differs, and its bits that do",
    )],
    answers: &[
        Answer::Plain(Status::SYS_LP_INIT_NOT_PENDING),
        Answer::Plain(Status::SYS_LP_INIT_DONE),
        Answer::Plain(Status::RND_NO_ENTROPY),
        Answer::Detailed(Status::INCONSISTENT_MSR, "MSR"),
        Answer::Plain(Status::INCONSISTENT_CPUID_FIELD),
        Answer::Plain(Status::INVALID_PKG_ID),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    (regs.rcx, regs.rdx, regs.r8) = (0, 0, 0);

    module.lock_global(call, LockMode::Shared)?;
    if module.sys_state() != SysState::InitDone {
        return Err(Status::SYS_LP_INIT_NOT_PENDING);
    }
    let lp = platform.current_lp();
    if module.lp_is_initialized(lp) {
        return Err(Status::SYS_LP_INIT_DONE);
    }
    platform.random64().ok_or(Status::RND_NO_ENTROPY)?;
    if let Some(msr) = module.inconsistent_msr(platform) {
        return Err(Status::INCONSISTENT_MSR.detail(msr));
    }
    if let Some(mismatch) = module.cpuid.differing_leaf(platform) {
        mismatch.describe(regs);
        return Err(Status::INCONSISTENT_CPUID_FIELD);
    }
    if platform.current_package() as usize >= MAX_PACKAGES {
        return Err(Status::INVALID_PKG_ID);
    }
    module.set_lp_initialized(lp);
    Ok(())
}
