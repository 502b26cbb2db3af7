//! error: E0599
//! shows: transition illegal in the state
// SPDX-License-Identifier: GPL-2.0
//
// A TD that is not initialised cannot be finalised.

use crate::td::{Initialized, Td, Uninitialized};
use kernel::kvm::MmuWriteLocked;

fn case(before: &Td<'_, Uninitialized>, after: &Td<'_, Initialized>, mmu: &MmuWriteLocked<'_>) {
    let _ = before.mr_finalize(mmu); // FAIL
    let _ = after.mr_finalize(mmu); // PASS
}
