// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.RD: read a field of a TD's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    open::TdAccess, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 11,
    name: "MNG.RD",
    versions: Versions::Two,
    op_states: 0x7fe,
    locks: &[
        LeafLock::shared(LockOf::Tdr, Operand::Rcx),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
    ],
    operands: &[("RCX", "TDR"), ("RDX", "field")],
    results: &[("RDX", "version 1: the next field"), ("R8", "value")],
    answers: &[Answer::Page(Operand::Rcx), Answer::TD_STATE, Answer::FIELD],
    ..LeafInfo::NEW
};

const TD: TdAccess = TdAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    metadata::answer_read(call, regs, |tdr, field| {
        let td = TD.open(call, tdr)?;
        metadata::read_td(&td, field, call.version)
    })
}
