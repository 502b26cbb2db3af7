//! error: E0599
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// What the guard protects is written through the state that it gives out.

use crate::{
    ffi::KvmTdx,
    td::{Initialized, Td},
};

fn case(kvm_tdx: &KvmTdx, td: &Td<'_, Initialized>) {
    kvm_tdx.set_runnable(&td.guard().lock_mmu_for_write()); // FAIL
    td.set_runnable(&td.guard().lock_mmu_for_write()); // PASS
}
