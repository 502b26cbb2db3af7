//! error: E0599
//! shows: order
// SPDX-License-Identifier: GPL-2.0
//
// `mmu_lock` is the innermost: it can be taken only once the slots are locked.

use kernel::{
    kvm::{AllVcpusLocked, Vm},
    prelude::*,
};

fn case(vm: &Vm) -> Result {
    let slots = vm.lock().lock_all_vcpus()?.lock_slots();
    let vcpus: &AllVcpusLocked<'_> = &slots;
    let _mmu = vcpus.lock_mmu_for_write(); // FAIL
    let _mmu = slots.lock_mmu_for_write(); // PASS
    Ok(())
}
