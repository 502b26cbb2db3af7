//! error: E0505
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// `mmu_lock` is released before the locks that were taken before it.

use kernel::{kvm::Vm, prelude::*};

fn case(vm: &Vm) -> Result {
    let slots = vm.lock().lock_all_vcpus()?.lock_slots();
    let mmu = slots.lock_mmu_for_write();

    drop(slots); // FAIL
    drop(mmu);
    Ok(())
}
