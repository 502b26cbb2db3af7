// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.SEPT.ADD: give a TD a page for its Secure EPT.

use super::prelude::*;
use crate::module::{
    pamt::{
        self,
        PageType, //
    },
    sept::{
        self,
        GpaOperand,
        LockedEntry,
        SeptEntry,
        SeptState, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 3,
    name: "MEM.SEPT.ADD",
    versions: Versions::Two,
    op_states: 0x3ce,
    locks: &[
        LeafLock::shared("TDR", Operand::Rdx),
        LeafLock::shared("OP_STATE", Operand::OpState),
        LeafLock::shared("SEPT tree", Operand::SeptTree),
        LeafLock::exclusive("SEPT entry", Operand::Rcx),
        LeafLock::exclusive("page R8", Operand::R8),
    ],
    operands: &[
        ("RCX", "GPA, level 1 to 3 or 4"),
        ("RDX", "TDR, with bit 0 set if a table may be there already"),
        ("R8", "page to give, free"),
    ],
    results: &[
        ("RCX", "on failure, the Secure EPT entry"),
        ("RDX", "on failure, its level and state"),
        ("R8", "version 1, on success: all ones"),
    ],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rdx]),
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_WALK_FAILED, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_STATE_INCORRECT, &[Operand::Rcx]),
        Answer::Page(Operand::R8),
    ],
    ..LeafInfo::NEW
};

/// The bit of RDX that accepts a table which is already there.
const ALLOW_EXISTING: u64 = 1 << 0;
/// The bits of RDX that must be zero.
const RESERVED: u64 = 0xfff0_0000_0000_0ffe;
/// The bit of R8 that is ignored.
const IGNORED: u64 = 1 << 63;

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, rdx) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    if rdx & RESERVED != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    }
    let td = LockedTd::lock(call, rdx & !ALLOW_EXISTING, Operand::Rdx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let operand = GpaOperand::decode(rcx, 1..=tdcs.root_level())?;
    let entry = LockedEntry::lock(call, &tdcs, operand, LockMode::Shared, regs)?;
    if !matches!(entry.state(), SeptState::Free | SeptState::Table) {
        return Err(entry.walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
    }
    if regs.r8 == u64::MAX {
        return Err(Status::OPERAND_INVALID.on(Operand::R8));
    }
    if entry.state() != SeptState::Free {
        if rdx & ALLOW_EXISTING == 0 {
            return Err(entry.walk.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
        }
        return Ok(());
    }
    let page = pamt::lock_free(call, regs.r8 & !IGNORED, Operand::R8, 0)?;

    sept::fill_free(call.platform, page.pa);
    entry.set(SeptEntry::table(page.pa));
    td.add_children(1);
    page.assign(PageType::Ept, td.tdr);
    if call.version > 0 {
        // Of the pages given for the TD and its L2 VMs, this one is used up.
        regs.r8 = u64::MAX;
    }
    Ok(())
}
