// SPDX-License-Identifier: GPL-2.0

//! The pages of user space that a TD's memory is copied from.

use kernel::{
    bindings,
    prelude::*, //
};

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    ptr::NonNull, //
};

use super::boxed;

use crate::uapi::{
    user_ptr,
    Region, //
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
/// There are none of them until [`Self::prepare`] has made room.
pub(crate) struct SourcePages(Option<KBox<Batch>>);

/// # Invariants
///
/// The first `len` elements of `pages` are initialised, and this value holds a reference on each.
struct Batch {
    pages: [MaybeUninit<NonNull<bindings::page>>; Self::SIZE],
    len: u32,
    /// How many have been reached, the current one among them.
    reached: u32,
}

impl SourcePages {
    /// Makes a value without room for any.
    pub(crate) fn none() -> Self {
        Self(None)
    }

    /// Prepares for `n` pages. If there is no memory for that, or nothing to be gained, there will
    /// just be none.
    pub(crate) fn prepare(&mut self, n: u64) {
        if n > 1 {
            let room = boxed(bindings::GFP_KERNEL | bindings::__GFP_NOWARN);

            self.0 = room.ok().map(|room| KBox::write(room, Batch::empty()));
        }
    }

    /// Goes on to the next page, the first of `region`. Returns whether there is one: not if it is
    /// not mapped, or if the address is null, which stands for no source.
    pub(crate) fn advance(&mut self, region: &Region) -> bool {
        self.0.as_mut().is_some_and(|batch| batch.advance(region))
    }

    /// Returns the page that [`Self::advance`] has gone on to.
    pub(crate) fn current(&self) -> Option<SourcePage<'_>> {
        self.0.as_ref()?.current()
    }
}

impl Batch {
    // With the rest of the structure that makes 256 bytes.
    const SIZE: usize = 31;

    fn empty() -> Self {
        // INVARIANT: There is no page.
        Self {
            pages: [MaybeUninit::uninit(); Self::SIZE],
            len: 0,
            reached: 0,
        }
    }

    fn advance(&mut self, region: &Region) -> bool {
        if self.reached >= self.len {
            self.refill(region);
        }

        let found = self.reached < self.len;

        self.reached += u32::from(found);
        found
    }

    fn current(&self) -> Option<SourcePage<'_>> {
        let page = self.pages.get(self.reached.checked_sub(1)? as usize)?;

        // SAFETY: By the type invariant, as no more are reached than there are.
        Some(SourcePage(unsafe { page.assume_init() }, PhantomData))
    }

    #[inline(never)]
    fn refill(&mut self, region: &Region) {
        let user = user_ptr(region.source());

        self.release();
        if user.as_const_ptr().is_null() {
            return;
        }

        // SAFETY: There is room for so many pages, and a page is a pointer that is not null.
        let found = unsafe {
            bindings::get_user_pages_fast_only(
                user.as_const_ptr() as usize,
                // CAST: The minimum is at most `SIZE`.
                region.nr_pages().min(Self::SIZE as u64) as c_int,
                0,
                self.pages.as_mut_ptr().cast(),
            )
        };

        // INVARIANT: So many have been written, with a reference each, unless it is an error.
        self.len = u32::try_from(found).unwrap_or(0);
    }

    #[inline(never)]
    fn release(&mut self) {
        // CAST: There are at most `SIZE`.
        let n = self.len as c_int;

        self.len = 0;
        self.reached = 0;
        if n != 0 {
            let pages = bindings::release_pages_arg {
                pages: self.pages.as_mut_ptr().cast(),
            };

            // SAFETY: By the type invariant there was a reference on each of them, of which this
            // value knows no more.
            unsafe { bindings::release_pages(pages, n) };
        }
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.release();
    }
}
