// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.PAGE.AUG: add a page to a TD that the guest must accept.

use super::prelude::*;
use crate::module::{
    pamt::{
        self,
        PageType, //
    },
    sept::{
        GpaOperand,
        LockedEntry,
        SeptEntry,
        SeptState, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 6,
    name: "MEM.PAGE.AUG",
    op_states: 0x20e,
    locks: &[
        LeafLock::shared("TDR", "RDX"),
        LeafLock::shared("OP_STATE", "OP_STATE"),
        LeafLock::shared("SEPT tree", "SEPT_TREE"),
        LeafLock::exclusive("SEPT entry", "RCX"),
        LeafLock::exclusive("page R8", "R8"),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let operand = GpaOperand::decode(rcx, 0..=1)?;
    let entry = LockedEntry::lock(call, &tdcs, operand, LockMode::Shared, regs)?;
    if !matches!(entry.state(), SeptState::Free | SeptState::Removed) {
        return Err(entry.walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    let page = pamt::lock_free(call, regs.r8, Operand::R8, operand.level)?;

    entry.set(SeptEntry::pending(page.pa));
    td.add_children(page.pages());
    page.assign(PageType::Reg, td.tdr);
    Ok(())
}
