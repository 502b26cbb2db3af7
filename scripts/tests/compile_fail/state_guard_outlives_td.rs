//! error: lifetime may not live long enough
//! shows: guard outlives the VM
// SPDX-License-Identifier: GPL-2.0
//
// The guard of a TD cannot be kept beyond the lifetime of the TD.

use kernel::prelude::*;

use crate::{ffi::KvmTdx, vm_state_guard::TdxVmStateGuard};

fn case<'a>(kvm_tdx: &'a KvmTdx) -> Result<TdxVmStateGuard<'static>> // FAIL
fn case<'a>(kvm_tdx: &'a KvmTdx) -> Result<TdxVmStateGuard<'a>> // PASS
{
    TdxVmStateGuard::lock(kvm_tdx) // FAIL
    TdxVmStateGuard::lock(kvm_tdx) // PASS
}
