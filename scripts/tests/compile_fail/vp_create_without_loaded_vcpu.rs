//! error: E0308
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// TDH.VP.CREATE associates the vCPU with this CPU, so it has to be loaded.

use kernel::prelude::*;

use crate::{
    ffi::{ControlPage, LoadedTdVcpu, LockedTdVcpu},
    td::{Initialized, Td},
};

fn case(
    td: &Td<'_, Initialized>,
    locked: &LockedTdVcpu<'_>,
    loaded: &LoadedTdVcpu<'_>,
    page: ControlPage,
) -> Result {
    td.vp_create(locked, page)?; // FAIL
    td.vp_create(loaded, page)?; // PASS
    Ok(())
}
