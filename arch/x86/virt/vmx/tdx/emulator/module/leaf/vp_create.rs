// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.CREATE: create a vCPU.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    open::TdAccess,
    pamt::{
        self,
        PageType, //
    },
    vp::{
        VpField,
        NO_LP, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 10,
    name: "VP.CREATE",
    op_states: 0x082,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::exclusive(LockOf::PageRcx, Operand::Rcx),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::Page(Operand::Rcx),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;

    let td = TD.open(call, regs.rdx)?;
    let page = pamt::lock_free(call, regs.rcx, &PAGE, 0)?;

    platform.fill(page.pa, PAGE_SIZE, 0);
    let field = |field: VpField| page.pa.wrapping_add(field as u64);
    platform.write64(field(VpField::AssociatedLp), NO_LP);
    platform.write64(field(VpField::Pages), 1);
    td.adopt(&page, PageType::Tdvpr);
    Ok(())
}
