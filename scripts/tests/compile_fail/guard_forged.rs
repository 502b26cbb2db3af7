//! error: E0451
//! shows: no other guard
// SPDX-License-Identifier: GPL-2.0
//
// A guard is made by taking the lock, and in no other way.

use kernel::kvm::{AllVcpusLocked, Vm, VmLocked};

fn case(vm: &Vm) {
    let locked = vm.lock();
    let _vcpus = AllVcpusLocked { vm: locked }; // FAIL
    let _vcpus = locked.lock_all_vcpus(); // PASS
}
