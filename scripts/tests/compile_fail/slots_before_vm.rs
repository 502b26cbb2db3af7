//! error: E0599
//! shows: order
// SPDX-License-Identifier: GPL-2.0
//
// `slots_lock` can be taken only by whoever has `kvm->lock`.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let _slots = vm.lock_slots(); // FAIL
    let _slots = vm.lock().lock_all_vcpus()?.lock_slots(); // PASS
    Ok(())
}
