// SPDX-License-Identifier: GPL-2.0

//! TDH.MEM.SEPT.RD: read an entry of a TD's Secure EPT.

use super::prelude::*;
use crate::module::open::{
    SeptAccess,
    TdAccess, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 25,
    name: "MEM.SEPT.RD",
    op_states: 0x7fe,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rdx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::shared(LockOf::SeptTree, Operand::SeptTree),
        LeafLock::exclusive(LockOf::SeptEntry, Operand::Rcx),
    ],
    operands: &[("RCX", "GPA, level 0 to 3 or 4"), ("RDX", "TDR")],
    results: &[
        ("RCX", "the Secure EPT entry"),
        ("RDX", "its level and state"),
    ],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::TD_STATE,
        Answer::SEPT_WALK,
    ],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);
const SEPT: SeptAccess = SeptAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (rcx, tdr) = regs.take_rcx_rdx();

    let td = TD.open(call, tdr)?;
    let entry = SEPT.open(&td, rcx, 0..=td.root_level(), regs)?;
    entry.describe(regs);
    Ok(())
}
