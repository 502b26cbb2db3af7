// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.PAGE.WBINVD: write back the cache lines of a free page.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    pamt::{
        self,
        PageType, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 41,
    name: "PHYMEM.PAGE.WBINVD",
    locks: &[LeafLock::shared(LockOf::PageRcx, Operand::Rcx)],
    operands: &[("RCX", "page, with the HKID")],
    answers: &[Answer::Page(Operand::Rcx)],
    ..LeafInfo::NEW
};

const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;

    let aligned = address::is_aligned(regs.rcx, PAGE_SIZE);
    let split = address::split(platform, regs.rcx).filter(|_| aligned);
    let (pa, hkid) = split.ok_or(Status::OPERAND_INVALID.on(Operand::Rcx))?;
    pamt::lock_explicit(call, pa, &PAGE, 0, PageType::Nda)?;
    platform.flush_page(pa, hkid);
    Ok(())
}
