// SPDX-License-Identifier: GPL-2.0

//! Stands for `kernel::types`.

use std::{
    cell::UnsafeCell,
    marker::PhantomData,
    mem::MaybeUninit, //
};

/// What makes a type neither `Send` nor `Sync`.
pub type NotThreadSafe = PhantomData<*mut ()>;

/// The value of [`NotThreadSafe`].
#[allow(non_upper_case_globals)]
pub const NotThreadSafe: NotThreadSafe = PhantomData;

/// A value of C's.
#[repr(transparent)]
pub struct Opaque<T>(UnsafeCell<MaybeUninit<T>>);

impl<T> Opaque<T> {
    /// Returns a pointer to the value.
    pub const fn get(&self) -> *mut T {
        UnsafeCell::get(&self.0).cast()
    }
}
