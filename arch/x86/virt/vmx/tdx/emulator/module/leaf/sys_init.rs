// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.INIT: initialise the module.

use super::prelude::*;
use crate::module::{
    cpuid,
    keys::KOT_ENTRIES,
    platform::Smrr,
    tdmr,
    IA32_MISC_ENABLE, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 33,
    name: "SYS.INIT",
    early: true,
    locks: &[LeafLock::global(LockMode::Exclusive)],
    operands: &[("RCX", "0")],
    results: &[(
        "RCX, RDX, R8, R9, R10",
        "0, or the CPUID leaf that is wrong, its bits that matter, and their values",
    )],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::Plain(Status::SYS_INIT_NOT_PENDING),
        Answer::Plain(Status::LIMIT_CPUID_MAXVAL_SET),
        Answer::Detailed(Status::CPUID_LEAF_NOT_SUPPORTED, "CPUID leaf"),
        Answer::Plain(Status::INCORRECT_CPUID_VALUE),
        Answer::Plain(Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED),
        Answer::Plain(Status::CMR_LIST_INVALID),
        Answer::Plain(Status::SMRR_LOCK_NOT_SUPPORTED),
        Answer::Plain(Status::SMRR_NOT_LOCKED),
        Answer::Plain(Status::INVALID_SMRR_CONFIGURATION),
        Answer::Plain(Status::SMRR_OVERLAPS_CMR),
        Answer::Plain(Status::RND_NO_ENTROPY),
    ],
    ..LeafInfo::NEW
};

/// The bit of `IA32_MISC_ENABLE` that makes CPUID stop at leaf 3.
pub(super) const LIMIT_CPUID: u64 = 1 << 22;

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let attributes = regs.rcx;
    (regs.rcx, regs.rdx, regs.r8, regs.r9, regs.r10) = (0, 0, 0, 0, 0);

    module.lock_global(call, LockMode::Exclusive)?;
    if attributes != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    if module.sys_state() != SysState::InitPending {
        return Err(Status::SYS_INIT_NOT_PENDING);
    }
    if platform.rdmsr(IA32_MISC_ENABLE) & LIMIT_CPUID != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    if let Some(leaf) = cpuid::missing_leaf(platform) {
        return Err(Status::CPUID_LEAF_NOT_SUPPORTED.detail(leaf));
    }
    if let Some(mismatch) = cpuid::wrong_leaf(platform) {
        mismatch.describe(regs);
        mismatch.describe_expected(regs);
        return Err(Status::INCORRECT_CPUID_VALUE);
    }
    let keys = platform.keys();
    let last_hkid = keys.mktme_keys.saturating_add(keys.tdx_keys);
    if keys.tdx_keys == 0 || last_hkid as usize >= KOT_ENTRIES {
        return Err(Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED);
    }
    if !tdmr::cmrs_valid(platform) {
        return Err(Status::CMR_LIST_INVALID);
    }
    if let Some(smrr) = platform.smrr() {
        check_smrr(platform, &smrr)?;
    }
    platform.random64().ok_or(Status::RND_NO_ENTROPY)?;

    module.sample_platform(platform);
    module.set_sys_state(SysState::InitDone);
    Ok(())
}

fn check_smrr<P: Platform>(platform: &P, smrr: &Smrr) -> LeafResult {
    if !smrr.can_lock {
        return Err(Status::SMRR_LOCK_NOT_SUPPORTED);
    }
    if !smrr.locked {
        return Err(Status::SMRR_NOT_LOCKED);
    }
    let range = smrr.range.ok_or(Status::INVALID_SMRR_CONFIGURATION)?;
    if tdmr::overlaps_cmrs(platform, &range) {
        return Err(Status::SMRR_OVERLAPS_CMR);
    }
    Ok(())
}
