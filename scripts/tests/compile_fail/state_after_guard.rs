//! error: E0505
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// A state is of use only while the guard is held.

use kernel::prelude::*;

use crate::{ffi::KvmTdx, td::TdState, vm_state_guard::TdxVmStateGuard};

fn case(kvm_tdx: &KvmTdx) -> Result {
    let mut guard = TdxVmStateGuard::lock(kvm_tdx)?;
    let state = guard.td();

    drop(guard); // FAIL
    if let TdState::Initialized(td) = state {
        td.mr_extend(0)?;
    }
    Ok(())
}
