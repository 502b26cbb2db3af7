// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.RD: read a field of a TD's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    td::LockedTd, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 11,
    name: "MNG.RD",
    versions: Versions::Two,
    op_states: 0x7fe,
    locks: &[
        LeafLock::shared("TDR", Operand::Rcx),
        LeafLock::shared("OP_STATE", Operand::OpState),
    ],
    operands: &[("RCX", "TDR"), ("RDX", "field")],
    results: &[("RDX", "version 1: the next field"), ("R8", "value")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT),
        Answer::Plain(Status::METADATA_FIELD_ID_INCORRECT),
        Answer::Plain(Status::METADATA_FIELD_NOT_READABLE),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let field = regs.rdx;
    regs.r8 = 0;
    if call.version > 0 {
        regs.rdx = metadata::NO_FIELD;
    }
    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    let td = LockedTd::lock(call, regs.rcx, Operand::Rcx, LockMode::Shared)?;
    let tdcs = td.check_and_lock(INFO.op_states)?;
    let (value, next) = metadata::read_td(&tdcs, field, call.version)
        .map_err(|error| error.status(&mut regs.rdx, call.version))?;
    regs.r8 = value;
    if call.version > 0 {
        regs.rdx = next;
    }
    Ok(())
}
