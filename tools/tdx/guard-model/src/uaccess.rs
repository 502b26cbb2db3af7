// SPDX-License-Identifier: GPL-2.0

//! Stands for `kernel::uaccess`. No user space has memory here.

use core::ffi::c_void;

/// A pointer of user space's.
#[derive(Clone, Copy)]
pub struct UserPtr;

impl UserPtr {
    /// Returns the pointer.
    pub fn as_mut_ptr(self) -> *mut c_void {
        core::ptr::null_mut()
    }
}
