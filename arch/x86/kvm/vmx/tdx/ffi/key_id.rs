// SPDX-License-Identifier: GPL-2.0

//! Private key ids (HKIDs) and their cgroup charge, as values that clean up after themselves.

use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

use core::mem;

/// A private key id that belongs to this value; freed when dropped.
pub(crate) struct KeyId(c_uint);

impl KeyId {
    /// Allocates a key id out of the pool of those for guests.
    ///
    /// # Errors
    ///
    /// - `ENOSPC`: all are in use.
    /// - `ENOMEM`: no memory.
    pub(crate) fn alloc() -> Result<Self> {
        // SAFETY: May be called at any time once TDX is up, and KVM has TDs only then.
        let id = unsafe { bindings::tdx_guest_keyid_alloc() };

        Ok(Self(
            c_uint::try_from(id).map_err(|_| Error::from_errno(id))?,
        ))
    }

    /// Returns the key id.
    pub(crate) fn get(&self) -> c_uint {
        self.0
    }

    /// Hands the key id over to the caller, who has to free it.
    pub(super) fn into_raw(self) -> c_uint {
        let id = self.0;

        mem::forget(self);
        id
    }
}

impl Drop for KeyId {
    fn drop(&mut self) {
        // SAFETY: The key id was allocated and nobody else frees it.
        unsafe { bindings::tdx_guest_keyid_free(self.0) };
    }
}

/// A charge of one key id to the misc cgroup of the task that made it; taken back when dropped.
///
/// # Invariants
///
/// `self.0` is null or a cgroup on which this value holds a reference and a charge of 1.
pub(crate) struct Charge(*mut bindings::misc_cg);

impl Charge {
    /// Charges the current task's cgroup.
    ///
    /// Where the charge fails the C implementation takes it back all the same, so that the cgroup
    /// ends up one short. Here what was not charged is not taken back.
    ///
    /// # Errors
    ///
    /// - `EBUSY`: the limit of the cgroup, or of one above it, is reached.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Looks at the current task only.
        let cg = unsafe { bindings::tdx_rust_get_current_misc_cg() };

        // SAFETY: `cg` is null or a cgroup on which a reference is held, as the callee expects.
        let charged = to_result(unsafe { bindings::tdx_rust_misc_cg_try_charge(cg) });

        if let Err(e) = charged {
            // SAFETY: The reference was taken above and is not used any more.
            unsafe { bindings::tdx_rust_put_misc_cg(cg) };
            return Err(e);
        }

        // INVARIANT: The reference was taken above and the charge has just been made.
        Ok(Self(cg))
    }

    /// Hands the charge and the reference over to the caller, who has to give both back.
    pub(super) fn into_raw(self) -> *mut bindings::misc_cg {
        let cg = self.0;

        mem::forget(self);
        cg
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        // SAFETY: By the type invariant this value holds the charge.
        unsafe { bindings::tdx_rust_misc_cg_uncharge(self.0) };
        // SAFETY: By the type invariant this value holds the reference.
        unsafe { bindings::tdx_rust_put_misc_cg(self.0) };
    }
}
