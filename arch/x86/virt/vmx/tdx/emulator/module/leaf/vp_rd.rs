// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.RD: read a field of a vCPU's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    vp::LockedVp, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 26,
    name: "VP.RD",
    versions: Versions::Two,
    op_states: 0x7fe,
    locks: &[
        LeafLock::shared("TDVPR", Operand::Rcx),
        LeafLock::shared("TDR", Operand::Tdr),
        LeafLock::shared("OP_STATE", Operand::OpState),
    ],
    operands: &[("RCX", "TDVPR"), ("RDX", "field")],
    results: &[("RDX", "version 1: the next field"), ("R8", "value")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::VCPU_ASSOCIATED),
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
    let vp = LockedVp::lock(
        call,
        regs.rcx,
        Operand::Rcx,
        LockMode::Shared,
        LockMode::Shared,
    )?;
    let tdcs = vp.td.check_and_lock(INFO.op_states)?;
    vp.check_complete(&tdcs)?;
    vp.associate(&tdcs, true)?;
    let (value, next) = metadata::read_vp(&tdcs, &vp, field, call.version)
        .map_err(|error| error.status(&mut regs.rdx, call.version))?;
    regs.r8 = value;
    if call.version > 0 {
        regs.rdx = next;
    }
    Ok(())
}
