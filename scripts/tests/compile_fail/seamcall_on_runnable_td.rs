//! error: E0532
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// Nothing can be done to a TD that is runnable: the state carries nothing.

use kernel::prelude::*;

use crate::td::TdState;

fn case(state: TdState<'_>) -> Result {
    match state {
        TdState::Runnable(td) => td.mr_extend(0), // FAIL
        TdState::Runnable => Ok(()),              // PASS
        _ => Ok(()),
    }
}
