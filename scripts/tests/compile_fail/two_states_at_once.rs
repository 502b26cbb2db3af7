//! error: E0499
//! shows: stale state
// SPDX-License-Identifier: GPL-2.0
//
// No second state exists that would go stale when the first one changes.

use kernel::prelude::*;

use crate::{ffi::KvmTdx, td::TdState, vm_state_guard::TdxVmStateGuard};

fn case(kvm_tdx: &KvmTdx) -> Result {
    let mut guard = TdxVmStateGuard::lock(kvm_tdx)?;
    let first = guard.td();
    let second = guard.td(); // FAIL

    if let TdState::Initialized(td) = first {
        td.mr_extend(0)?;
    }
    drop(second); // FAIL
    Ok(())
}
