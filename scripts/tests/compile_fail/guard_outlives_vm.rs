//! error: lifetime may not live long enough
//! shows: guard outlives the VM
// SPDX-License-Identifier: GPL-2.0
//
// A guard cannot be kept beyond the lifetime of its VM.

use kernel::kvm::{Vm, VmLocked};

fn case<'a>(vm: &'a Vm) -> VmLocked<'static> // FAIL
fn case<'a>(vm: &'a Vm) -> VmLocked<'a> // PASS
{
    vm.lock() // FAIL
    vm.lock() // PASS
}
