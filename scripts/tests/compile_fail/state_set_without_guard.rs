//! error: E0599
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// What the guard protects is written through the guard.

use crate::{ffi::KvmTdx, vm_state_guard::TdxVmStateGuard};

fn case(kvm_tdx: &KvmTdx, guard: &TdxVmStateGuard<'_>) {
    kvm_tdx.set_runnable(&guard.lock_mmu_for_write()); // FAIL
    guard.set_runnable(&guard.lock_mmu_for_write()); // PASS
}
