//! error: E0599
//! shows: vCPU mutexes missing
// SPDX-License-Identifier: GPL-2.0
//
// `slots_lock` can be taken only once the vCPUs are locked.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let _slots = vm.lock().lock_slots(); // FAIL
    let _slots = vm.lock().lock_all_vcpus()?.lock_slots(); // PASS
    Ok(())
}
