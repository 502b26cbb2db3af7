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
        LeafLock::shared("TDVPR", "RCX"),
        LeafLock::shared("TDR", "TDR"),
        LeafLock::shared("OP_STATE", "OP_STATE"),
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
