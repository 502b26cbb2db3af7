// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.CREATE: create a vCPU.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    pamt::{
        self,
        PageType, //
    },
    td::LockedTd,
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
        LeafLock::shared("TDR", Operand::Rdx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::exclusive("page RCX", Operand::Rcx),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Page(Operand::Rcx),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;

    let td = LockedTd::lock(call, regs.rdx, Operand::Rdx, LockMode::Shared)?;
    let _tdcs = td.check_and_lock(INFO.op_states)?;
    let page = pamt::lock_free(call, regs.rcx, Operand::Rcx, 0)?;

    platform.fill(page.pa, PAGE_SIZE, 0);
    let field = |field: VpField| page.pa.wrapping_add(field as u64);
    platform.write64(field(VpField::AssociatedLp), NO_LP);
    platform.write64(field(VpField::Pages), 1);
    td.add_children(1);
    page.assign(PageType::Tdvpr, td.tdr);
    Ok(())
}
