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
        LeafLock::shared("TDVPR", "RCX"),
        LeafLock::shared("TDR", "TDR"),
        LeafLock::shared("OP_STATE", "OP_STATE"),
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
