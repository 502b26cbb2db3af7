// SPDX-License-Identifier: GPL-2.0

//! TDH.MR.EXTEND: measure a part of a page of initial memory.

use super::prelude::*;
use crate::module::{
    measurement::EXTEND_SIZE,
    sept::{
        self,
        SeptState, //
    },
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 16,
    name: "MR.EXTEND",
    op_states: 0x002,
    locks: &[LeafLock::exclusive("TDR", Operand::Rdx)],
    operands: &[("RCX", "GPA, a multiple of 256"), ("RDX", "TDR")],
    results: &[
        ("RCX", "on failure, the Secure EPT entry"),
        ("RDX", "on failure, its level and state"),
    ],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_NOT_PRESENT, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (gpa, tdr) = (regs.rcx, regs.rdx);
    (regs.rcx, regs.rdx) = (0, 0);

    let td = LockedTd::lock(call, tdr, Operand::Rdx, LockMode::Exclusive)?;
    let tdcs = td.check(INFO.op_states)?;
    if !address::is_aligned(gpa, EXTEND_SIZE as u64) {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    sept::check_private(&tdcs, gpa)?;
    let (walk, _) = sept::walk(&tdcs, gpa, 0);
    if walk.entry.state() != SeptState::Mapped {
        return Err(walk.fail(regs, Status::EPT_ENTRY_NOT_PRESENT));
    }

    let mut contents = [0; EXTEND_SIZE];
    let size = address::level_size(walk.level);
    let pa = walk.entry.address() | gpa & size.wrapping_sub(1);
    call.platform.read(pa, &mut contents);
    tdcs.measure_contents(gpa, &contents);
    Ok(())
}
