//! error: E0599
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// A TD is initialised once.

use kernel::prelude::*;

use crate::{
    ffi::TdParams,
    td::{Initialized, Td, Uninitialized},
};

fn case(before: &Td<'_, Uninitialized>, after: &Td<'_, Initialized>, params: &TdParams) {
    let _ = after.mng_init(params); // FAIL
    let _ = before.mng_init(params); // PASS
}
