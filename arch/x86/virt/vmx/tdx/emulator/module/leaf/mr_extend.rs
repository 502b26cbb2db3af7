// SPDX-License-Identifier: GPL-2.0

//! TDH.MR.EXTEND: measure a part of a page of initial memory.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    measurement::EXTEND_SIZE,
    open::TdAccess,
    pamt::PageType,
    platform::{
        Event,
        MemoryRange,
        PageRecord, //
    },
    sept::{
        self,
        SeptState, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 16,
    name: "MR.EXTEND",
    op_states: 0x002,
    locks: &[LeafLock::exclusive(LockOf::Tdr, Operand::Rdx)],
    operands: &[("RCX", "GPA, a multiple of 256"), ("RDX", "TDR")],
    results: ENTRY_IF_IT_FAILS,
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_ENTRY_NOT_PRESENT, &[Operand::Rcx]),
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (gpa, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    if !address::is_aligned(gpa, EXTEND_SIZE as u64) {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    sept::check_private(&td, gpa)?;
    let (walk, _) = sept::walk(&td, gpa, 0);
    if walk.entry.state() != SeptState::Mapped {
        return Err(walk.fail(regs, Status::EPT_ENTRY_NOT_PRESENT));
    }

    let mut contents = [0; EXTEND_SIZE];
    let size = address::level_size(walk.level);
    let pa = walk.entry.address() | gpa & size.wrapping_sub(1);
    if address::is_aligned(pa, PAGE_SIZE) {
        call.platform.observe(Event::PageMeasured(PageRecord {
            range: MemoryRange {
                base: pa,
                size: PAGE_SIZE,
            },
            page_type: PageType::Reg,
            owner: td.tdr,
        }));
    }
    call.platform.read(pa, &mut contents);
    td.measure_contents(gpa, &contents);
    Ok(())
}
