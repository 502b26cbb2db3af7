// SPDX-License-Identifier: GPL-2.0

//! The pages of user space that a TD's memory is copied from.

use kernel::{
    bindings,
    prelude::*,
    uaccess::UserPtr, //
};

use core::{
    marker::PhantomData,
    ptr::NonNull, //
};

/// A page of user space that stays where it is for `'a`.
pub(crate) struct SourcePage<'a>(NonNull<bindings::page>, PhantomData<&'a ()>);

impl SourcePage<'_> {
    /// Returns the raw page.
    pub(super) fn as_ptr(&self) -> *mut bindings::page {
        self.0.as_ptr()
    }
}

/// Looks consecutive pages of user space up, many at a time: most of what one costs is the way to
/// its page table.
///
/// It takes what is mapped and faults nothing in. So whatever can fail or sleep happens where it
/// does if pages are looked up one by one: when the page is next.
///
/// # Invariants
///
/// This value holds a reference on each page in `pages`.
pub(crate) struct SourcePages {
    pages: KVec<NonNull<bindings::page>>,
    /// How many have been given out.
    used: usize,
}

impl SourcePages {
    const AT_ONCE: usize = 32;

    /// Prepares for `n` pages. If there is no memory for that, or nothing to be gained, there will
    /// just be none.
    #[inline(never)]
    pub(crate) fn new(n: u64) -> Self {
        let pages = match n {
            0 | 1 => KVec::new(),
            _ => KVec::with_capacity(Self::AT_ONCE, GFP_KERNEL | __GFP_NOWARN).unwrap_or_default(),
        };

        // INVARIANT: There is no page yet.
        Self { pages, used: 0 }
    }

    /// Returns the next page, which is at `user`, where `n` more may follow; none if it is not
    /// mapped, or `user` is null, which stands for no source.
    pub(crate) fn next(&mut self, user: UserPtr, n: u64) -> Option<SourcePage<'_>> {
        if self.used >= self.pages.len() {
            self.refill(user, n);
        }

        let page = *self.pages.get(self.used)?;

        self.used += 1;
        Some(SourcePage(page, PhantomData))
    }

    #[inline(never)]
    fn refill(&mut self, user: UserPtr, n: u64) {
        self.release();

        let room = self.pages.capacity();
        // CAST: The minimum is at most `AT_ONCE`.
        let n = n.min(room as u64) as c_int;

        if n == 0 || user.as_const_ptr().is_null() {
            return;
        }

        // SAFETY: There is room for `n` pages, and a page is a pointer that is not null.
        let found = unsafe {
            bindings::get_user_pages_fast_only(
                user.as_const_ptr() as usize,
                n,
                0,
                self.pages.as_mut_ptr().cast(),
            )
        };

        // INVARIANT: They come with a reference each.
        // SAFETY: So many have been written, unless it is an error.
        unsafe { self.pages.inc_len(usize::try_from(found).unwrap_or(0)) };
    }

    #[inline(never)]
    fn release(&mut self) {
        let n = self.pages.len();

        self.used = 0;
        self.pages.clear();
        if n != 0 {
            let pages = bindings::release_pages_arg {
                pages: self.pages.as_mut_ptr().cast(),
            };

            // CAST: There are at most `AT_ONCE`.
            // SAFETY: By the type invariant there was a reference on each of them, of which this
            // value knows no more.
            unsafe { bindings::release_pages(pages, n as c_int) };
        }
    }
}

impl Drop for SourcePages {
    fn drop(&mut self) {
        self.release();
    }
}
