// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.TDMR.INIT: initialise a part of a memory region.

use super::prelude::*;
use crate::module::{
    address::GIB,
    pamt, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 36,
    name: "SYS.TDMR.INIT",
    locks: &[LeafLock::exclusive(LockOf::Tdmr, Operand::Rcx)],
    operands: &[("RCX", "first address of a TDMR")],
    results: &[("RDX", "where initialised memory ends")],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::Plain(Status::TDMR_ALREADY_INITIALIZED),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let invalid = Status::OPERAND_INVALID.on(Operand::Rcx);
    regs.rdx = 0;

    if !address::is_private(platform, regs.rcx, GIB) {
        return Err(invalid);
    }
    let mut tdmrs = module.tdmrs.iter().zip(0u32..);
    let tdmr = tdmrs.find(|(tdmr, _)| tdmr.range().base == regs.rcx);
    let (tdmr, index) = tdmr.ok_or(invalid)?;
    tdmr.lock(call, index)?;
    let range = tdmr.range();
    let done = tdmr.initialized();
    if done >= range.size {
        return Err(Status::TDMR_ALREADY_INITIALIZED);
    }

    let pages = module.profile().tdmr_init_pages;
    let done = pamt::initialize(platform, tdmr, done, pages);
    tdmr.set_initialized(done);
    regs.rdx = range.base.wrapping_add(done) & !GIB.wrapping_sub(1);
    Ok(())
}
