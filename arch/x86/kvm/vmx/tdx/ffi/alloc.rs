// SPDX-License-Identifier: GPL-2.0

//! Memory, allocated as C does it.
//!
//! The `kernel` crate allocates by `krealloc()`, which needs more stack than `kmalloc()`, and
//! little in these ioctls goes deeper than an allocation.

use kernel::{
    bindings,
    prelude::*, //
};

use core::{
    mem::MaybeUninit,
    ptr, //
};

use crate::uapi::CpuidEntry;

/// Allocates room for a `T`.
///
/// # Errors
///
/// - `ENOMEM`: no memory.
pub(crate) fn boxed<T>(flags: bindings::gfp_t) -> Result<KBox<MaybeUninit<T>>> {
    let memory = kmalloc::<T>(1, flags)?;

    // SAFETY: The memory has room for one, and what comes from `kmalloc()` can be given to
    // `kfree()`, which is what the box does.
    Ok(unsafe { KBox::from_raw(memory.cast()) })
}

/// Allocates `n` values of `T`, all zero.
///
/// # Errors
///
/// - `ENOMEM`: no memory.
///
/// # Safety
///
/// Zero is valid for a `T`.
pub(crate) unsafe fn boxed_zeros<T>(n: usize, flags: bindings::gfp_t) -> Result<KBox<[T]>> {
    let memory = kmalloc::<T>(n, flags | bindings::__GFP_ZERO)?;

    // SAFETY: The memory has room for `n`, all of which are valid. As for `kfree()`, see above.
    Ok(unsafe { KBox::from_raw(ptr::slice_from_raw_parts_mut(memory, n)) })
}

/// Allocates a vector with room for `n` elements.
///
/// # Errors
///
/// - `ENOMEM`: no memory.
pub(crate) fn vec_with_capacity<T>(n: usize, flags: bindings::gfp_t) -> Result<KVec<T>> {
    let memory = kmalloc::<T>(n, flags)?;

    // SAFETY: The memory has room for `n` elements.
    Ok(unsafe { vec_in(memory, n) })
}

/// Allocates a vector with room for [`KVM_MAX_CPUID_ENTRIES`] entries.
///
/// # Errors
///
/// - `ENOMEM`: no memory.
///
/// [`KVM_MAX_CPUID_ENTRIES`]: bindings::KVM_MAX_CPUID_ENTRIES
pub(crate) fn cpuid_table() -> Result<KVec<CpuidEntry>> {
    // SAFETY: May be called in any context that may sleep.
    let memory = unsafe { bindings::tdx_rust_alloc_cpuid_entries() };

    if memory.is_null() {
        return Err(ENOMEM);
    }

    // SAFETY: The memory has room for so many entries.
    Ok(unsafe { vec_in(memory.cast(), bindings::KVM_MAX_CPUID_ENTRIES as usize) })
}

/// Allocates room for `n` values of `T`. `kmalloc()` aligns for them, as it aligns by the largest
/// power of two that divides the size.
fn kmalloc<T>(n: usize, flags: bindings::gfp_t) -> Result<*mut T> {
    const {
        assert!(size_of::<T>() != 0);
    }

    let size = n.checked_mul(size_of::<T>()).ok_or(ENOMEM)?;
    // SAFETY: Any size may be asked for, in any context that may sleep.
    let memory = unsafe { bindings::tdx_rust_kmalloc(size, flags) };

    match memory.is_null() {
        true => Err(ENOMEM),
        false => Ok(memory.cast()),
    }
}

/// Makes an empty vector in `memory`.
///
/// # Safety
///
/// `memory` comes from `kmalloc()` and has room for `n` elements.
unsafe fn vec_in<T>(memory: *mut T, n: usize) -> KVec<T> {
    // SAFETY: By the safety requirements. `kmalloc()` gives out less than `isize::MAX` bytes, and
    // what comes from it can be given to `krealloc()` and `kfree()`, which is what the vector does.
    unsafe { KVec::from_raw_parts(memory, 0, n) }
}
