//! error: E0599
//! shows: slots_lock missing
// SPDX-License-Identifier: GPL-2.0
//
// guest_memfd is populated only while no memory slot can go away.

use kernel::{
    kvm::{Gfn, Vm},
    prelude::*,
    uaccess::UserPtr,
};

fn case(vm: &Vm, source: UserPtr) -> Result {
    let vcpus = vm.lock().lock_all_vcpus()?;
    let locked = vcpus; // FAIL
    let locked = vcpus.lock_slots(); // PASS
    locked.gmem_populate(Gfn(0), Some(source), 1, |_| Ok(()))?; // FAIL
    locked.gmem_populate(Gfn(0), Some(source), 1, |_| Ok(()))?; // PASS
    Ok(())
}
