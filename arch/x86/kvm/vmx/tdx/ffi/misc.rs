// SPDX-License-Identifier: GPL-2.0

//! Small things that C provides.

use kernel::{
    bindings,
    types::NotThreadSafe, //
};

/// Returns what the TDX module told about itself when KVM was set up.
pub(crate) fn sysinfo() -> &'static bindings::tdx_sys_info {
    // SAFETY: Set, to something that is never freed or changed, before the first TD can be created,
    // and the ioctls of TDs are the only callers.
    unsafe { &*bindings::tdx_rust_sysinfo() }
}

/// Returns what the TDX module lets be configured per TD.
pub(crate) fn td_conf() -> &'static bindings::tdx_sys_info_td_conf {
    &sysinfo().td_conf
}

/// Returns the extended states that KVM supports: bits of XCR0 and of IA32_XSS.
pub(crate) fn supported_xcr0_and_xss() -> u64 {
    // SAFETY: `kvm_caps` is written only while a vendor module is being loaded.
    unsafe { bindings::kvm_caps.supported_xcr0 | bindings::kvm_caps.supported_xss }
}

/// Tells whether the CPU has five levels of EPT, for guest physical addresses of more than 48 bits.
pub(crate) fn has_5level_ept() -> bool {
    // SAFETY: Only reads what was found when KVM was set up.
    unsafe { bindings::tdx_rust_has_5level_ept() }
}

/// Tells whether a signal is pending for the current task.
pub(crate) fn signal_pending() -> bool {
    kernel::current!().signal_pending()
}

/// Lets others run, if need be.
///
/// # Context
///
/// May sleep.
pub(crate) fn cond_resched() {
    // SAFETY: May be called in any context that may sleep.
    unsafe { bindings::tdx_rust_cond_resched() };
}

/// KVM's lock around SEAMCALLs that take a lock of the whole TDX module, of which the callers are
/// not otherwise kept apart: the C code's `tdx_lock`.
///
/// # Invariants
///
/// The current task holds `tdx_lock` for as long as the guard exists.
#[must_use = "the lock is released as soon as the guard is dropped"]
pub(crate) struct ModuleLocked {
    _not_send: NotThreadSafe,
}

impl ModuleLocked {
    /// Takes the lock.
    ///
    /// # Context
    ///
    /// May sleep. The wait is not interruptible.
    pub(crate) fn lock() -> Self {
        // SAFETY: May be called in any context that may sleep.
        unsafe { bindings::tdx_rust_lock_module() };
        // INVARIANT: The lock has just been taken.
        Self {
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for ModuleLocked {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the lock.
        unsafe { bindings::tdx_rust_unlock_module() };
    }
}
