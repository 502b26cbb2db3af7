//! error: E0308
//! shows: slots_lock missing
// SPDX-License-Identifier: GPL-2.0
//
// A state is given out for the whole guard, not for the locks of the VM and its vCPUs.

use kernel::{kvm::AllVcpusLocked, prelude::*};

use crate::{td::TdState, vm_state_guard::TdxVmStateGuard};

fn case(vcpus: &mut AllVcpusLocked<'_>, guard: &mut TdxVmStateGuard<'_>) {
    let _ = TdState::new(vcpus); // FAIL
    let _ = TdState::new(guard); // PASS
}
