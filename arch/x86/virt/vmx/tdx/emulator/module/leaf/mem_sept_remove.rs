// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.SEPT.REMOVE: give an empty Secure EPT table of a TD back to the host.

use super::prelude::*;
use crate::module::{
    open::{
        SeptAccess,
        TdAccess, //
    },
    pamt,
    sept::{
        self,
        SeptEntry,
        SeptState, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 30,
    name: "MEM.SEPT.REMOVE",
    versions: Versions::Two,
    op_states: 0x73e,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::exclusive(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
        LeafLock::exclusive(LockOf::EntryPage, Operand::Rcx),
    ],
    operands: &[("RCX", "GPA, level 1 to 3 or 4"), ("RDX", "TDR")],
    results: &[
        ("RCX", "on success, the page"),
        (
            "RCX, RDX",
            "on failure, the Secure EPT entry, its level and state",
        ),
        ("R9, R10, R11", "version 1: all ones"),
    ],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::About(Status::GPA_RANGE_NOT_BLOCKED, &[Operand::Rcx]),
        Answer::About(Status::TLB_TRACKING_NOT_DONE, &[Operand::Rcx]),
        Answer::About(Status::EPT_PAGE_NOT_FREE, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);
const PAGE: LeafLock = INFO.lock(LockOf::EntryPage);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();
    if call.version > 0 {
        // The tables of L2 VMs, of which there are none.
        (regs.r9, regs.r10, regs.r11) = (u64::MAX, u64::MAX, u64::MAX);
    }

    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 1..=td.root_level(), regs)?;
    let is_table = matches!(entry.state(), SeptState::Table | SeptState::TableBlocked);
    entry.check(is_table, regs)?;
    let page = pamt::lock_implicit(call, entry.value().address(), &PAGE, entry.page_level())?;
    if td.tracking_required() && !entry.state().is_blocked() {
        return Err(entry.fail(regs, Status::GPA_RANGE_NOT_BLOCKED));
    }
    td.check_tracked(page.blocking_epoch())?;
    if !sept::is_all_free(call.platform, page.pa) {
        return Err(entry.fail(regs, Status::EPT_PAGE_NOT_FREE));
    }

    entry.set(SeptEntry::FREE);
    td.give_back(&page, Some(td.hkid()));
    regs.rcx = page.pa;
    Ok(())
}
