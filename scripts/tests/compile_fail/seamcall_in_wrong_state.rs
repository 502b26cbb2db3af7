//! error: E0599
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// A TD that is not initialised cannot be finalised.

use crate::td::{Initialized, Td, Uninitialized};

fn case(before: &Td<'_, Uninitialized>, after: &Td<'_, Initialized>) {
    let _ = before.mr_finalize(); // FAIL
    let _ = after.mr_finalize(); // PASS
}
