// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.CONFIG: take the memory regions and the global key.

use super::prelude::*;
use crate::module::tdmr::{
    TdmrInfo,
    MAX_TDMRS, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 45,
    name: "SYS.CONFIG",
    early: true,
    locks: &[LeafLock::global(LockMode::Exclusive)],
    operands: &[
        ("RCX", "list of TDMR descriptions, of the host"),
        ("RDX", "their number"),
        ("R8", "HKID of the module"),
    ],
    answers: &[
        Answer::Plain(Status::SYS_CONFIG_NOT_PENDING),
        Answer::About(
            Status::OPERAND_INVALID,
            &[Operand::Rcx, Operand::Rdx, Operand::R8],
        ),
        Answer::Detailed(Status::INVALID_TDMR, "TDMR"),
        Answer::Detailed(Status::NON_ORDERED_TDMR, "TDMR"),
        Answer::Detailed(Status::TDMR_OUTSIDE_CMRS, "TDMR"),
        Answer::Detailed(Status::INVALID_RESERVED_IN_TDMR, "TDMR, area"),
        Answer::Detailed(Status::NON_ORDERED_RESERVED_IN_TDMR, "TDMR, area"),
        Answer::Detailed(Status::INVALID_PAMT, "TDMR, level"),
        Answer::Detailed(Status::PAMT_OUTSIDE_CMRS, "TDMR, level"),
        Answer::Detailed(Status::PAMT_OVERLAP, "TDMR, level, other TDMR"),
    ],
    ..LeafInfo::NEW
};

/// The alignment of the descriptions of TDMRs and of the list of them.
const ALIGN: u64 = 512;

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);

    module.lock_global(call, LockMode::Exclusive)?;
    if module.sys_state() != SysState::InitDone || !module.all_lps_initialized(platform) {
        return Err(Status::SYS_CONFIG_NOT_PENDING);
    }
    let Some(list) = address::shared(platform, regs.rcx, ALIGN) else {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    };
    if !(1..=MAX_TDMRS as u64).contains(&regs.rdx) {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    }
    let hkid = regs.r8 as u16;
    if regs.r8 >> 16 != 0 || !address::is_private_hkid(platform, hkid) {
        return Err(Status::OPERAND_INVALID.on(Operand::R8));
    }

    module.reserve_global_hkid(hkid);
    module.tdmrs.clear();
    let result = take_tdmrs(call, list, regs.rdx as u32);
    if result.is_err() {
        module.tdmrs.clear();
        return result;
    }
    module.set_sys_state(SysState::ConfigDone);
    Ok(())
}

fn take_tdmrs<P: Platform>(call: &Call<'_, P>, list: u64, count: u32) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let mut previous: Option<TdmrInfo> = None;
    for index in 0..count {
        let slot = list.wrapping_add(u64::from(index).wrapping_mul(8));
        let info = address::read_host64(platform, slot);
        let Some(pa) = address::shared(platform, info, ALIGN) else {
            return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
        };
        let info = TdmrInfo::read(platform, pa);
        info.check(platform, index, previous.as_ref())?;
        info.check_pamts(platform, index, &module.tdmrs)?;
        module.tdmrs.set(index as usize, &info);
        previous = Some(info);
    }
    Ok(())
}
