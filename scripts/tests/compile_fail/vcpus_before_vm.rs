//! error: E0599
//! shows: kvm->lock missing
// SPDX-License-Identifier: GPL-2.0
//
// The vCPUs can be locked only once the VM is.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let _vcpus = vm.lock_all_vcpus()?; // FAIL
    let _vcpus = vm.lock().lock_all_vcpus()?; // PASS
    Ok(())
}
