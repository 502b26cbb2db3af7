// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.PAGE.RDMD: tell who owns a page.

use super::prelude::*;
use crate::module::pamt::{
    self,
    PageType, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 24,
    name: "PHYMEM.PAGE.RDMD",
    locks: &[LeafLock::shared(LockOf::PageRcx, Operand::Rcx)],
    operands: &[("RCX", "page")],
    results: &[
        ("RCX", "type"),
        ("RDX", "owner"),
        ("R8", "level"),
        ("R9", "epoch in which it was blocked"),
        ("R10, R11", "0"),
    ],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::OPERAND_ADDR_RANGE_ERROR, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let pa = regs.take_page();

    let page = pamt::lock_any(call, pa, &PAGE)?;
    let page_type = page.page_type().unwrap_or(PageType::Rsvd);
    regs.rcx = page_type as u64;
    regs.rdx = page.owner();
    regs.r8 = u64::from(page.level);
    if matches!(page_type, PageType::Reg | PageType::Ept) {
        regs.r9 = page.blocking_epoch();
    }
    Ok(())
}
