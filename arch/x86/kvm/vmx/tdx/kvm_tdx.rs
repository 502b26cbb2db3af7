// SPDX-License-Identifier: GPL-2.0

//! The ioctls that set up a trust domain (TD), in Rust.
//!
//! A reader starts at `ioctl`, which says which command needs which locks, follows a command into
//! its file, and from there into `seamcall`:
//!
//! ```text
//!   kvm_tdx.rs          entry points, called by C
//!     ioctl.rs            which command, under which locks, in which state
//!       ioctl/<command>.rs  what the command does
//!         vm_state_guard.rs   the locks
//!         td.rs               the states
//!           seamcall.rs         the SEAMCALLs, callable only under locks and in a state
//!   ffi/, uapi.rs       the boundaries to C and to user space
//! ```
//!
//! S-EPT, entry and exit of vCPUs and teardown stay in `arch/x86/kvm/vmx/tdx.c`. Both work on the
//! same structures, so the C implementation of the ioctls can serve any call instead.

mod cpuid;
mod ffi;
mod ioctl;
mod seamcall;
mod status;
mod td;
mod uapi;
mod vm_state_guard;

use kernel::{
    bindings,
    error::from_result,
    kvm::{
        LockedVcpu,
        Vcpu, //
    },
    prelude::*,
    uaccess::UserPtr, //
};

use crate::ffi::{
    KvmTdx,
    LockedTdVcpu, //
};

#[cfg(CONFIG_KVM_INTEL_TDX_BENCH)]
use crate::vm_state_guard::TdxVmStateGuard;

/// Prefix of what this crate prints. It is linked into `kvm_intel` and is no module of its own.
const __LOG_PREFIX: &[u8] = b"kvm_intel\0";

/// Serves KVM_MEMORY_ENCRYPT_OP on a VM. Returns 0 or a negative errno.
///
/// # Safety
///
/// `kvm` is a TD that stays alive until the call returns, and no lock of it is held.
#[export]
pub unsafe extern "C" fn tdx_rust_vm_ioctl(kvm: *mut bindings::kvm, argp: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let kvm_tdx = unsafe { KvmTdx::from_raw(kvm) };

    from_result(|| ioctl::vm(kvm_tdx, UserPtr::from_ptr(argp)).map(|()| 0))
}

/// Serves KVM_MEMORY_ENCRYPT_OP on a vCPU, for commands that change the TD. Returns 0 or a negative
/// errno; `-ENOIOCTLCMD` makes KVM try [`tdx_rust_vcpu_ioctl`].
///
/// # Safety
///
/// `vcpu` is a vCPU of a TD. Both stay alive until the call returns, and no lock of either is held.
#[export]
pub unsafe extern "C" fn tdx_rust_vcpu_unlocked_ioctl(
    vcpu: *mut bindings::kvm_vcpu,
    argp: *mut c_void,
) -> c_int {
    // SAFETY: By the safety requirements.
    let vcpu = unsafe { Vcpu::from_raw(vcpu) };
    // SAFETY: By the safety requirements.
    let kvm_tdx = unsafe { KvmTdx::of_td(vcpu.vm()) };

    from_result(|| ioctl::vcpu_unlocked(kvm_tdx, vcpu, UserPtr::from_ptr(argp)).map(|()| 0))
}

/// Serves KVM_MEMORY_ENCRYPT_OP on a vCPU, for commands that only read the TD. Returns 0 or a
/// negative errno.
///
/// # Safety
///
/// `vcpu` is a vCPU of a TD. Both stay alive until the call returns, and the current task holds the
/// vCPU's mutex.
#[export]
pub unsafe extern "C" fn tdx_rust_vcpu_ioctl(
    vcpu: *mut bindings::kvm_vcpu,
    argp: *mut c_void,
) -> c_int {
    // SAFETY: By the safety requirements.
    let vcpu = unsafe { Vcpu::from_raw(vcpu) };
    // SAFETY: By the safety requirements the mutex is held until the call returns.
    let vcpu = unsafe { LockedVcpu::assume_locked(vcpu) };
    // SAFETY: By the safety requirements.
    let vcpu = unsafe { LockedTdVcpu::assume_td(vcpu) };

    from_result(|| ioctl::vcpu_locked(&vcpu, UserPtr::from_ptr(argp)).map(|()| 0))
}

/// Takes the guard and releases it, to be measured. Returns 0 or a negative errno.
///
/// # Safety
///
/// `kvm` is a VM of `kvm_intel`, a TD or not, that stays alive until the call returns, and no lock
/// of it is held.
#[cfg(CONFIG_KVM_INTEL_TDX_BENCH)]
#[export]
pub unsafe extern "C" fn tdx_bench_guard_rust(kvm: *mut bindings::kvm) -> c_int {
    // SAFETY: By the safety requirements. Any VM of `kvm_intel` has room for what a TD has, and of
    // that the guard uses nothing.
    let kvm_tdx = unsafe { KvmTdx::from_raw(kvm) };

    from_result(|| TdxVmStateGuard::lock(kvm_tdx).map(|_guard| 0))
}
