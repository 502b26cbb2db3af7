//! error: E0507
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// The guard of the vCPUs cannot be got out of that of the slots.

use kernel::{
    kvm::{AllVcpusLocked, Vm},
    prelude::*,
};

fn case(vm: &Vm) -> Result {
    let slots = vm.lock().lock_all_vcpus()?.lock_slots();
    let _vcpus: AllVcpusLocked<'_> = *slots; // FAIL
    let _vcpus: &AllVcpusLocked<'_> = &slots; // PASS
    Ok(())
}
