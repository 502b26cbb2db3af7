//! error: E0308
//! shows: vCPU mutexes missing
// SPDX-License-Identifier: GPL-2.0
//
// A state is given out for the whole guard, not for the lock of the VM.

use kernel::{kvm::VmLocked, prelude::*};

use crate::{td::TdState, vm_state_guard::TdxVmStateGuard};

fn case(vm: &mut VmLocked<'_>, guard: &mut TdxVmStateGuard<'_>) {
    let _ = TdState::new(vm); // FAIL
    let _ = TdState::new(guard); // PASS
}
