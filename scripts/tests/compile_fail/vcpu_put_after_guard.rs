//! error: E0505
//! shows: early release
// SPDX-License-Identifier: GPL-2.0
//
// A vCPU stays loaded only for as long as the guard is held.

use kernel::prelude::*;

use crate::{ffi::KvmTdx, vm_state_guard::TdxVmStateGuard};

fn case(kvm_tdx: &KvmTdx, vcpu: &kernel::kvm::Vcpu) -> Result {
    let guard = TdxVmStateGuard::lock(kvm_tdx)?;
    let loaded = guard.load_vcpu(vcpu)?;

    drop(guard); // FAIL
    drop(loaded);
    Ok(())
}
