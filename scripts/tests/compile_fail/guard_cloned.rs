//! error: E0599
//! shows: no other guard
// SPDX-License-Identifier: GPL-2.0
//
// A lock that is taken once is released once.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let slots = vm.lock().lock_all_vcpus()?.lock_slots();
    let _second = slots.clone(); // FAIL
    let _second = &slots; // PASS
    Ok(())
}
