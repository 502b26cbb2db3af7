// SPDX-License-Identifier: GPL-2.0

//! TDH.SYS.RD: read a field of the module's metadata.

use super::prelude::*;
use crate::module::metadata;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 34,
    name: "SYS.RD",
    early: true,
    operands: &[("RDX", "field")],
    results: &[("RDX", "the next field"), ("R8", "value")],
    answers: &[
        Answer::Plain(Status::SYS_LP_INIT_NOT_DONE),
        Answer::Plain(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT),
        Answer::Plain(Status::METADATA_FIELD_ID_INCORRECT),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let field = regs.rdx;
    (regs.rdx, regs.r8) = (metadata::NO_FIELD, 0);

    if !call.module.lp_is_initialized(call.platform.current_lp()) {
        return Err(Status::SYS_LP_INIT_NOT_DONE);
    }
    if field == metadata::NO_FIELD {
        regs.rdx = metadata::first_sys_field();
        return Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT);
    }
    let (value, next) = metadata::read_sys(call, field)?;
    (regs.rdx, regs.r8) = (next, value);
    Ok(())
}
