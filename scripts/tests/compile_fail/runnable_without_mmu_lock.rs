//! error: E0308
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// A TD becomes runnable, for KVM as for the module, while the MMU is locked for write.

use crate::td::{Initialized, Td};

fn case(td: &Td<'_, Initialized>) {
    td.set_runnable(td.guard()); // FAIL
    td.set_runnable(&td.guard().lock_mmu_for_write()); // PASS
}
