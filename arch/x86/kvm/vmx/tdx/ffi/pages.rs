// SPDX-License-Identifier: GPL-2.0

//! Pages for the control structures of a TD or a vCPU.

use kernel::{
    bindings,
    prelude::*, //
};

use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};

use super::boxed_zeros;

/// A page for the TDX module that the module does not have yet; freed when dropped.
///
/// # Invariants
///
/// `self.0` is a page of order 0 that belongs to this value.
#[repr(transparent)]
pub(crate) struct ControlPage(NonNull<bindings::page>);

impl ControlPage {
    /// Returns the raw page, which stays the property of this value.
    pub(crate) fn as_ptr(&self) -> *mut bindings::page {
        self.0.as_ptr()
    }

    /// Hands the page over to the caller, who has to free it, or to reclaim it first if the module
    /// has got it.
    pub(super) fn into_raw(self) -> *mut bindings::page {
        ManuallyDrop::new(self).0.as_ptr()
    }
}

impl Drop for ControlPage {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the page is of order 0 and nobody else's.
        unsafe { bindings::__free_pages(self.as_ptr(), 0) };
    }
}

/// An array of pages for the TDX module.
///
/// C keeps such an array as `struct page **`, with null where there is no page. `Option` of a
/// transparent wrapper around `NonNull` is such a pointer.
pub(crate) struct ControlPages(KBox<[Option<ControlPage>]>);

impl ControlPages {
    /// Allocates the array and `n` pages, charged to the memory cgroup of the current task.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: no memory.
    #[inline(never)]
    pub(crate) fn alloc(n: usize) -> Result<Self> {
        // SAFETY: Null is valid for an `Option` of a page: none.
        let mut pages =
            unsafe { boxed_zeros::<Option<ControlPage>>(n, bindings::GFP_KERNEL_ACCOUNT)? };
        let mut filled = 0;

        // All at once, unless there are too few at hand or each is accounted for by itself.
        while filled < n {
            // INVARIANT: What is filled in are pages that belong to the array.
            // SAFETY: The array has `n` elements, which are null or a page.
            let now = unsafe { bindings::tdx_rust_alloc_pages(n, pages.as_mut_ptr().cast()) };

            if now <= filled {
                return Err(ENOMEM);
            }
            filled = now;
        }
        Ok(Self(pages))
    }

    /// Returns how many pages there is room for.
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the last page out.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: there is none.
    pub(crate) fn take_last(&mut self) -> Result<ControlPage> {
        self.0.last_mut().and_then(Option::take).ok_or(ENOMEM)
    }

    /// Gives the pages to the module one by one, by means of `give`, until one is refused.
    ///
    /// The pages that the module did not take are freed. The array, with those that it did take,
    /// goes into `array`, from where C reclaims them.
    ///
    /// # Errors
    ///
    /// What `give` returned for the page that was refused.
    ///
    /// # Safety
    ///
    /// `array` is valid for a write, and whoever owns it reclaims the pages and frees the array
    /// with `kfree()`.
    pub(super) unsafe fn give_all(
        mut self,
        array: *mut *mut *mut bindings::page,
        mut give: impl FnMut(&ControlPage) -> Result,
    ) -> Result {
        let mut result = Ok(());

        for slot in &mut *self.0 {
            if result.is_ok() {
                result = slot.as_ref().map_or(Ok(()), &mut give);
            }
            if result.is_err() {
                *slot = None;
            }
        }

        let pages: *mut [Option<ControlPage>] = KBox::into_raw(self.0);

        // SAFETY: The caller promises that `array` is valid for a write.
        unsafe { *array = pages.cast() };
        result
    }
}
