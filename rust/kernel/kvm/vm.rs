// SPDX-License-Identifier: GPL-2.0

//! A virtual machine.

use crate::{
    bindings,
    types::Opaque, //
};

use super::VmLocked;

/// A guest frame number: a guest physical address in units of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Gfn(pub u64);

/// A host page frame number: a host physical address in units of 4 KiB.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pfn(pub u64);

/// A virtual machine: the kernel's `struct kvm`.
///
/// # Invariants
///
/// `self.0` is a `struct kvm` that KVM has initialised and not yet begun to destroy.
#[repr(transparent)]
pub struct Vm(Opaque<bindings::kvm>);

// SAFETY: A `struct kvm` is not tied to the thread that created it.
unsafe impl Send for Vm {}

// SAFETY: The methods of `Vm` only take locks or do what KVM allows from any thread; what a lock
// guards is reached through the guard of that lock, which is not `Sync`.
unsafe impl Sync for Vm {}

impl Vm {
    /// Creates a reference from a raw pointer.
    ///
    /// # Safety
    ///
    /// `ptr` points at an initialised `struct kvm` that stays alive, and is not being destroyed,
    /// for the whole of `'a`.
    #[inline]
    pub unsafe fn from_raw<'a>(ptr: *mut bindings::kvm) -> &'a Self {
        // INVARIANT: The caller promises an initialised VM that lives for `'a`.
        // SAFETY: `Vm` is a transparent wrapper around `struct kvm`.
        unsafe { &*ptr.cast() }
    }

    /// Returns the raw pointer to the C structure.
    #[inline]
    pub fn as_raw(&self) -> *mut bindings::kvm {
        self.0.get()
    }

    /// Takes `kvm->lock`.
    ///
    /// # Context
    ///
    /// May sleep. The wait is not interruptible.
    #[inline]
    pub fn lock(&self) -> VmLocked<'_> {
        VmLocked::new(self)
    }
}
