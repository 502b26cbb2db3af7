// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.KEY.RECLAIMID: does nothing, for hosts of older modules.

use super::prelude::*;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 27,
    name: "MNG.KEY.RECLAIMID",
    operands: &[("RCX", "ignored")],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(_call: &Call<'_, P>, _regs: &mut Regs) -> LeafResult {
    Ok(())
}
