//! error: E0382
//! shows: stale state
// SPDX-License-Identifier: GPL-2.0
//
// A transition consumes the state that it starts from.

use kernel::prelude::*;

use crate::td::{Initialized, Td};

fn transition(_: Td<'_, Initialized>) {}

fn case(td: Td<'_, Initialized>) -> Result {
    td.mr_extend(0)?;
    transition(td);
    td.mr_extend(0)?; // FAIL
    Ok(())
}
