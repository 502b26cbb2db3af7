// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_FINALIZE_VM: completes the measurement, after which the TD can run.

#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::{
    status::Cause,
    td::{
        Initialized,
        Td, //
    },
    uapi::Command, //
};

/// Serves KVM_TDX_FINALIZE_VM. `hw_error` is the status of TDH.MR.FINALIZE.
///
/// The flags of the command are not looked at, as in C.
///
/// # Errors
///
/// - `EBUSY`: the TDX module is busy; the TD is as before.
/// - `EIO`: the module refused, for one because the TD has no vCPU; the VM is marked as broken.
#[inline(never)]
pub(super) fn finalize_vm(td: Td<'_, Initialized>, cmd: &mut Command) -> Result {
    let mmu = td.guard().lock_mmu_for_write();
    let status = td.mr_finalize(&mmu);
    let result = status.to_result();

    // Who unmaps memory looks at KVM's state to know whether the module wants to be told of the
    // TLBs. So both states change in one step.
    if result.is_ok() {
        td.set_runnable(&mmu);
    }
    // The MMU must not stay locked while a failure is being reported.
    drop(mmu);

    cmd.set_hw_error(status.as_raw());
    result.map_err(|e| match e.cause() {
        Cause::OperandBusy => EBUSY,
        _ => td.mr_finalize_failed(e),
    })
}
