// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.WR: write a field of a vCPU's metadata.

use super::prelude::*;
use crate::module::{
    metadata,
    open::VpAccess, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 43,
    name: "VP.WR",
    op_states: 0x7ce,
    locks: &[
        LeafLock::shared(LockOf::Tdvpr, Operand::Rcx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
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
        Answer::TD_STATE,
        Answer::ASSOCIATION,
        Answer::Plain(Status::METADATA_FIELD_ID_INCORRECT),
        Answer::Plain(Status::METADATA_FIELD_NOT_WRITABLE),
        Answer::Plain(Status::METADATA_FIELD_VALUE_NOT_VALID),
        Answer::Detailed(Status::TD_VMCS_FIELD_NOT_INITIALIZED, "VMCS field"),
    ],
    ..LeafInfo::NEW
};

const VP: VpAccess = VpAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (field, value, mask) = (regs.rdx, regs.r8, regs.r9);
    regs.r8 = 0;

    let vp = VP.open(call, regs.rcx)?;
    vp.associate_complete(false)?;
    regs.r8 = metadata::write_vp(&vp.td, &vp, field, value, mask)?;
    Ok(())
}
