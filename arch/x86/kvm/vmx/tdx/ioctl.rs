// SPDX-License-Identifier: GPL-2.0

//! KVM_MEMORY_ENCRYPT_OP for a TD: which command needs which locks and which state.
//!
//! | command | locks | state of the TD |
//! | --- | --- | --- |
//! | KVM_TDX_CAPABILITIES | none | any |
//! | KVM_TDX_INIT_VM | the guard | uninitialized |
//! | KVM_TDX_FINALIZE_VM | the guard | initialized |
//! | KVM_TDX_INIT_VCPU | the guard, vCPU loaded | initialized |
//! | KVM_TDX_INIT_MEM_REGION | the guard, vCPU loaded | initialized |
//! | KVM_TDX_GET_CPUID | the vCPU's mutex | initialized |
//!
//! KVM hands a command on a vCPU to [`vcpu_unlocked`] first. KVM_TDX_GET_CPUID is sent on to
//! [`vcpu_locked`] from there, without having waited for anything.
//!
//! Who needs most stack beneath is inlined, the others are not, so that none has that of another.

#![deny(unsafe_code)]

mod capabilities;
mod finalize_vm;
mod get_cpuid;
mod init_mem_region;
mod init_vcpu;
mod init_vm;

use kernel::{
    bindings::{
        kvm_tdx_cmd_id_KVM_TDX_CAPABILITIES as KVM_TDX_CAPABILITIES,
        kvm_tdx_cmd_id_KVM_TDX_FINALIZE_VM as KVM_TDX_FINALIZE_VM,
        kvm_tdx_cmd_id_KVM_TDX_GET_CPUID as KVM_TDX_GET_CPUID,
        kvm_tdx_cmd_id_KVM_TDX_INIT_MEM_REGION as KVM_TDX_INIT_MEM_REGION,
        kvm_tdx_cmd_id_KVM_TDX_INIT_VCPU as KVM_TDX_INIT_VCPU,
        kvm_tdx_cmd_id_KVM_TDX_INIT_VM as KVM_TDX_INIT_VM, //
    },
    kvm::Vcpu,
    prelude::*,
    uaccess::UserPtr, //
};

use crate::{
    ffi::{
        KvmTdx,
        LockedTdVcpu, //
    },
    td::{
        StateFrozen,
        TdState, //
    },
    uapi::Command,
    vm_state_guard::TdxVmStateGuard, //
};

/// Serves a command on the VM.
///
/// # Context
///
/// May sleep. Called without locks; takes the guard for all commands but KVM_TDX_CAPABILITIES.
///
/// # Errors
///
/// - `EFAULT`: `arg` cannot be read or written.
/// - `EINVAL`: the command is unknown, or not legal in this state.
/// - those of [`TdxVmStateGuard::lock`] and of the command.
pub(crate) fn vm(kvm_tdx: &KvmTdx, arg: UserPtr) -> Result {
    let mut cmd = Command::empty();

    cmd.read(arg)?;

    if cmd.id() == KVM_TDX_CAPABILITIES {
        return capabilities::capabilities(&cmd);
    }

    let mut guard = TdxVmStateGuard::lock(kvm_tdx)?;

    let result = match (cmd.id(), guard.td()) {
        (KVM_TDX_INIT_VM, TdState::Uninitialized(td)) => init_vm::init_vm(td, &mut cmd),
        (KVM_TDX_FINALIZE_VM, TdState::Initialized(td)) => finalize_vm::finalize_vm(td, &mut cmd),
        (KVM_TDX_INIT_VM | KVM_TDX_FINALIZE_VM, _) => Err(EINVAL),
        _ => return Err(EINVAL),
    };

    cmd.write(arg)?;
    result
}

/// Serves a command on a vCPU that changes the TD.
///
/// # Context
///
/// May sleep. Called without locks; takes the guard for all commands but KVM_TDX_GET_CPUID.
///
/// # Errors
///
/// - `EFAULT`: `arg` cannot be read.
/// - `EINVAL`: the TD is not initialized, or runnable already.
/// - `ENOIOCTLCMD`: the command is none of these; KVM tries [`vcpu_locked`] next.
/// - those of [`TdxVmStateGuard::lock`] and of the command.
pub(crate) fn vcpu_unlocked(kvm_tdx: &KvmTdx, vcpu: &Vcpu, arg: UserPtr) -> Result {
    let mut cmd = Command::empty();

    cmd.read(arg)?;

    // It reads what no other vCPU changes, so it need not wait for the others. The state is looked
    // at again under the vCPU's mutex; here it spares loading a vCPU that has nothing to tell.
    if cmd.id() == KVM_TDX_GET_CPUID {
        return match kvm_tdx.is_being_built() {
            true => Err(ENOIOCTLCMD),
            false => Err(EINVAL),
        };
    }

    let mut guard = TdxVmStateGuard::lock(kvm_tdx)?;

    let TdState::Initialized(mut td) = guard.td() else {
        return Err(EINVAL);
    };

    td.with_loaded_vcpu(vcpu, |td, vcpu| match cmd.id() {
        KVM_TDX_INIT_MEM_REGION => init_mem_region::init_mem_region(td, vcpu, &cmd),
        KVM_TDX_INIT_VCPU => init_vcpu::init_vcpu(td, vcpu, &cmd),
        _ => Err(ENOIOCTLCMD),
    })
}

/// Serves a command on a vCPU that only reads the TD.
///
/// # Context
///
/// May sleep. Called with the vCPU's mutex held.
///
/// # Errors
///
/// - `EFAULT`: `arg` cannot be read.
/// - `EINVAL`: the TD is not initialized, or runnable already, or the command is unknown.
/// - those of the command.
pub(crate) fn vcpu_locked(vcpu: &LockedTdVcpu<'_>, arg: UserPtr) -> Result {
    if !vcpu.kvm_tdx().is_being_built() {
        return Err(EINVAL);
    }

    let mut cmd = Command::empty();

    cmd.read(arg)?;

    match cmd.id() {
        KVM_TDX_GET_CPUID => get_cpuid::get_cpuid(vcpu, &cmd),
        _ => Err(EINVAL),
    }
}
