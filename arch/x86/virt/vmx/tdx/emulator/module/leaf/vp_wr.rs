// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.WR: write a field of a vCPU's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    vp::LockedVp, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 43,
    name: "VP.WR",
    op_states: 0x7ce,
    locks: &[
        LeafLock::shared("TDVPR", Operand::Rcx),
        LeafLock::shared("TDR", Operand::Tdr),
        LeafLock::shared("OP_STATE", Operand::OpState),
    ],
    operands: &[
        ("RCX", "TDVPR"),
        ("RDX", "field"),
        ("R8", "value"),
        ("R9", "bits to write"),
    ],
    results: &[("R8", "former value")],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::VCPU_ASSOCIATED),
        Answer::Plain(Status::METADATA_FIELD_ID_INCORRECT),
        Answer::Plain(Status::METADATA_FIELD_NOT_WRITABLE),
        Answer::Plain(Status::METADATA_FIELD_VALUE_NOT_VALID),
        Answer::Detailed(Status::TD_VMCS_FIELD_NOT_INITIALIZED, "VMCS field"),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (field, value, mask) = (regs.rdx, regs.r8, regs.r9);
    regs.r8 = 0;

    let vp = LockedVp::lock(
        call,
        regs.rcx,
        Operand::Rcx,
        LockMode::Shared,
        LockMode::Shared,
    )?;
    let tdcs = vp.td.check_and_lock(INFO.op_states)?;
    vp.check_complete(&tdcs)?;
    vp.associate(&tdcs, false)?;
    regs.r8 = metadata::write_vp(&tdcs, &vp, field, value, mask)?;
    Ok(())
}
