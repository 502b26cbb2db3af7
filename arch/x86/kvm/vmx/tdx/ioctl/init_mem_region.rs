// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_INIT_MEM_REGION: adds memory with its first content, and measures it on request.

#![deny(unsafe_code)]

use kernel::{
    kvm::{
        Gfn,
        GmemPage, //
    },
    prelude::*, //
};

use crate::{
    ffi::{
        cond_resched,
        signal_pending,
        KvmTdx,
        SourcePage,
        SourcePages, //
    },
    td::{
        Initialized,
        LoadedTdVcpu,
        StateFrozen,
        Td, //
    },
    uapi::{
        user_ptr,
        Command,
        Region,
        PAGE_SIZE_U64, //
    },
};

/// Flag of the command: measure the content too, not only where the pages are.
const MEASURE_MEMORY_REGION: u32 = 1 << 0;

/// Serves KVM_TDX_INIT_MEM_REGION.
///
/// The region is written back, on success and on failure, to say what is still to be done: a caller
/// that was interrupted repeats the call with it.
///
/// # Errors
///
/// - `EINVAL`: the vCPU is not initialised, an unknown flag is set, the region is empty, not made
///   of whole pages, has no source, wraps around or is not private, or it lies in no memory slot
///   that has a guest_memfd.
/// - `EFAULT`: the region or the source cannot be read, or the region cannot be written back.
/// - `EINTR`: a signal is pending.
/// - `ENOMEM`: no memory.
/// - `EIO`: a page is there already.
/// - `EOPNOTSUPP`: the region has no source, and this kernel does not look at that first.
#[inline(never)]
pub(super) fn init_mem_region(
    td: &Td<'_, Initialized>,
    vcpu: &LoadedTdVcpu<'_>,
    cmd: &Command,
) -> Result {
    if !vcpu.is_initialized() || cmd.flags() & !MEASURE_MEMORY_REGION != 0 {
        return Err(EINVAL);
    }

    let measure = cmd.flags() & MEASURE_MEMORY_REGION != 0;
    let mut region = Region::read(user_ptr(cmd.data()))?;

    if !is_valid(td.kvm_tdx(), &region) {
        return Err(EINVAL);
    }

    let result = add(td, vcpu, &mut region, measure);

    region.write(user_ptr(cmd.data()))?;
    result
}

fn is_valid(kvm_tdx: &KvmTdx, region: &Region) -> bool {
    let is_aligned = |address: u64| address % PAGE_SIZE_U64 == 0;
    let is_private = |gpa: u64| {
        let shared = kvm_tdx.shared_gfn_bit().0 * PAGE_SIZE_U64;

        shared != 0 && gpa & shared == 0
    };

    let start = region.gpa();
    let end = start.wrapping_add(region.nr_pages() << PAGE_SIZE_U64.ilog2());

    is_aligned(region.source())
        && (region.source() != 0 || !cfg!(CONFIG_KVM_INTEL_TDX_SOURCE_REQUIRED))
        && is_aligned(start)
        && region.nr_pages() != 0
        && end > start
        && is_private(start)
        && is_private(end - 1)
}

/// Adds the pages one by one, and moves `region` on with each.
fn add(
    td: &Td<'_, Initialized>,
    vcpu: &LoadedTdVcpu<'_>,
    region: &mut Region,
    measure: bool,
) -> Result {
    let mut sources = SourcePages::new(region.nr_pages());

    while region.nr_pages() != 0 {
        if signal_pending() {
            return Err(EINTR);
        }

        let gfn = Gfn(region.gpa() / PAGE_SIZE_U64);
        let user = user_ptr(region.source());
        let source = sources.next(user, region.nr_pages());
        // guest_memfd looks for the source where that takes more than looking.
        let src = source.is_none().then_some(user);
        let done = td.guard().gmem_populate(gfn, src, 1, |page| {
            add_page(td, vcpu, page, &source, measure)
        })?;

        if done != 1 {
            return Err(EIO);
        }

        region.advance();
        cond_resched();
    }
    Ok(())
}

fn add_page(
    td: &Td<'_, Initialized>,
    vcpu: &LoadedTdVcpu<'_>,
    page: &GmemPage<'_>,
    source: &Option<SourcePage<'_>>,
    measure: bool,
) -> Result {
    td.map_page(vcpu, page, source.as_ref())?;

    match measure {
        true => td.mr_extend(page.gfn().0 * PAGE_SIZE_U64),
        false => Ok(()),
    }
}
