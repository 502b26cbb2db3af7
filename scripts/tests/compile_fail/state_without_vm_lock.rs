//! error: E0308
//! shows: kvm->lock missing
// SPDX-License-Identifier: GPL-2.0
//
// A vCPU whose mutex is held keeps the TD from changing, but does not let anybody change it.

use crate::{ffi::LockedTdVcpu, td::TdState, vm_state_guard::TdxVmStateGuard};

fn case(vcpu: &mut LockedTdVcpu<'_>, guard: &mut TdxVmStateGuard<'_>) {
    let _ = TdState::new(vcpu); // FAIL
    let _ = TdState::new(guard); // PASS
}
