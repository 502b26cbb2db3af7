// SPDX-License-Identifier: GPL-2.0

//! Population of guest_memfd.

use crate::{
    bindings,
    error::from_result,
    prelude::*,
    uaccess::UserPtr, //
};

use core::{
    marker::PhantomData,
    ptr, //
};

use super::{
    Gfn,
    Pfn,
    SlotsLocked, //
};

/// A page of guest_memfd that is being populated.
///
/// Its existence shows that `filemap_invalidate_lock()` of the file is held, so that the page
/// cannot be taken out of the file, and that `kvm->slots_lock` is held.
///
/// # Invariants
///
/// The page behind `pfn`, and the one behind `src` unless it is null, are alive for the whole of
/// `'a`, and the locks above are held for as long.
pub struct GmemPage<'a> {
    gfn: Gfn,
    pfn: Pfn,
    src: *mut bindings::page,
    _callback: PhantomData<&'a ()>,
}

impl GmemPage<'_> {
    /// Returns the guest frame that the page backs.
    #[inline]
    pub fn gfn(&self) -> Gfn {
        self.gfn
    }

    /// Returns the host frame of the page.
    #[inline]
    pub fn pfn(&self) -> Pfn {
        self.pfn
    }

    /// Returns the page that user space gave as the source, or null when it gave none.
    #[inline]
    pub fn src_page(&self) -> *mut bindings::page {
        self.src
    }
}

impl SlotsLocked<'_> {
    /// Populates up to `npages` pages of guest_memfd from `gfn` on, and returns how many it did.
    ///
    /// `populate` is called for each page, with the page of user space at `src`, if that is given,
    /// plus 4 KiB for each page before.
    ///
    /// # Context
    ///
    /// May sleep. Takes `filemap_invalidate_lock()` of the file around each call of `populate`.
    ///
    /// # Errors
    ///
    /// When the first page already fails:
    ///
    /// - `EINVAL`: `gfn` lies in no slot that has a guest_memfd or is not private, or `src` is not
    ///   a multiple of 4 KiB, or `npages` is 0.
    /// - `EFAULT`: `src` cannot be read, or the guest_memfd is gone.
    /// - `EINTR`: a signal is pending.
    /// - `ENOMEM`: no memory for the page.
    /// - what `populate` returns.
    // Pages are allocated beneath: a caller can do without a frame of this function in between.
    #[inline(always)]
    pub fn gmem_populate<F>(
        &self,
        gfn: Gfn,
        src: Option<UserPtr>,
        npages: usize,
        mut populate: F,
    ) -> Result<usize>
    where
        F: FnMut(&GmemPage<'_>) -> Result,
    {
        let npages = isize::try_from(npages).map_err(|_| EINVAL)?;
        let opaque: *mut F = &mut populate;

        // SAFETY: `kvm->slots_lock` is held. The callback is the one that matches the type of
        // `opaque`, which outlives the call.
        let done = unsafe {
            bindings::kvm_gmem_populate(
                self.vm().as_raw(),
                gfn.0,
                src.map_or(ptr::null_mut(), UserPtr::as_mut_ptr),
                npages,
                false,
                Some(populate_one::<F>),
                opaque.cast(),
            )
        };

        // A negative result is an errno; any other is at most `npages`.
        usize::try_from(done).map_err(|_| Error::from_errno(done as i32))
    }
}

/// Calls the closure behind `opaque` for one page.
///
/// # Safety
///
/// Called only by `kvm_gmem_populate()`, with the `opaque` that [`SlotsLocked::gmem_populate`] made
/// of an `F`.
unsafe extern "C" fn populate_one<F>(
    _kvm: *mut bindings::kvm,
    gfn: bindings::gfn_t,
    pfn: bindings::kvm_pfn_t,
    src: *mut bindings::page,
    opaque: *mut c_void,
) -> c_int
where
    F: FnMut(&GmemPage<'_>) -> Result,
{
    // SAFETY: By the safety requirements `opaque` is the closure, which nobody else uses now.
    let populate = unsafe { &mut *opaque.cast::<F>() };

    // INVARIANT: `kvm_gmem_populate()` holds both pages and both locks until the callback returns,
    // and the reference handed out does not outlive the call.
    let page = GmemPage {
        gfn: Gfn(gfn),
        pfn: Pfn(pfn),
        src,
        _callback: PhantomData,
    };

    from_result(|| populate(&page).map(|()| 0))
}
