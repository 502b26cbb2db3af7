//! error: E0277
//! shows: other thread
// SPDX-License-Identifier: GPL-2.0
//
// The task that took a mutex has to release it.

use kernel::{kvm::Vm, prelude::*};

use crate::{ffi::KvmTdx, vm_state_guard::TdxVmStateGuard};

fn send<T: Send>(_: T) {}

fn case(kvm_tdx: &KvmTdx, vm: &Vm) -> Result {
    let guard = TdxVmStateGuard::lock(kvm_tdx)?;

    send(guard); // FAIL
    drop(guard); // PASS
    send(vm);
    Ok(())
}
