// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ADDCX: give a vCPU a page for its control structure.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    pamt::{
        self,
        PageType, //
    },
    vp::{
        LockedVp,
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
        LeafLock::exclusive("TDVPR", Operand::Rdx),
        LeafLock::shared("TDR", Operand::Tdr),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::exclusive("page RCX", Operand::Rcx),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "TDVPR")],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Page(Operand::Rcx),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let vp = LockedVp::lock(
        call,
        regs.rdx,
        Operand::Rdx,
        LockMode::Exclusive,
        LockMode::Shared,
    )?;
    let _tdcs = vp.td.check_and_lock(INFO.op_states)?;
    if vp.state() != VcpuState::Uninitialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    if vp.get(VpField::Pages) >= MAX_TDVPS_PAGES {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let page = pamt::lock_free(call, regs.rcx, Operand::Rcx, 0)?;

    call.platform.fill(page.pa, PAGE_SIZE, 0);
    vp.add_page(page.pa);
    vp.td.add_children(1);
    page.assign(PageType::Tdcx, vp.td.tdr);
    Ok(())
}
