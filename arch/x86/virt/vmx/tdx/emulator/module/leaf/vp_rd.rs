// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.RD: read a field of a vCPU's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    open::VpAccess, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 26,
    name: "VP.RD",
    versions: Versions::Two,
    op_states: 0x7fe,
    locks: &[
        LeafLock::shared(LockOf::Tdvpr, Operand::Rcx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
    ],
    operands: &[("RCX", "TDVPR"), ("RDX", "field")],
    results: &[("RDX", "version 1: the next field"), ("R8", "value")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
        Answer::ASSOCIATION,
        Answer::FIELD,
    ],
    ..LeafInfo::NEW
};

const VP: VpAccess = VpAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    metadata::answer_read(call, regs, |tdvpr, field| {
        let vp = VP.open(call, tdvpr)?;
        vp.associate_complete(true)?;
        metadata::read_vp(&vp.td, &vp, field, call.version)
    })
}
