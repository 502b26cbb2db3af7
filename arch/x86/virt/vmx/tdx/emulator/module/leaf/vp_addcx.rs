// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ADDCX: give a vCPU a page for its control structure.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    open::VpAccess,
    pamt::{
        self,
        PageType, //
    },
    vp::{
        VcpuState,
        VpField,
        MAX_TDVPS_PAGES, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 4,
    name: "VP.ADDCX",
    op_states: 0x082,
    locks: &[
        LeafLock::exclusive(LockOf::Tdvpr, Operand::Rdx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::exclusive(LockOf::PageRcx, Operand::Rcx),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "TDVPR")],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Page(Operand::Rcx),
    ],
    ..LeafInfo::NEW
};

const VP: VpAccess = VpAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let vp = VP.open(call, regs.rdx)?;
    if vp.state() != VcpuState::Uninitialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    if vp.get(VpField::Pages) >= MAX_TDVPS_PAGES {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let page = pamt::lock_free(call, regs.rcx, &PAGE, 0)?;

    call.platform.fill(page.pa, PAGE_SIZE, 0);
    vp.add_page(page.pa);
    vp.td.adopt(&page, PageType::Tdcx);
    Ok(())
}
