//! error: E0382
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// A lock cannot be released while one that was taken after it is held.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let locked = vm.lock();
    let vcpus = locked.lock_all_vcpus()?;
    drop(locked); // FAIL
    drop(vcpus);
    Ok(())
}
