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
        LoadedTdVcpu,
        SourcePages, //
    },
    td::{
        Initialized,
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
#[inline(always)]
pub(super) fn init_mem_region(
    td: &Td<'_, Initialized>,
    vcpu: LoadedTdVcpu<'_>,
    cmd: &Command,
) -> Result {
    if !vcpu.is_initialized() || cmd.flags() & !MEASURE_MEMORY_REGION != 0 {
        return Err(EINVAL);
    }

    let mut load = Load {
        td,
        vcpu,
        cmd,
        region: Region::empty(),
        sources: SourcePages::none(),
    };

    load.region.read(user_ptr(cmd.data()))?;
    if !is_valid(load.td.kvm_tdx(), &load.region) {
        return Err(EINVAL);
    }

    let result = load.add_all();

    load.region.write(user_ptr(cmd.data()))?;
    result
}

/// A region that is being added. In one piece, as nothing takes more stack than what is beneath.
struct Load<'g> {
    td: &'g Td<'g, Initialized>,
    vcpu: LoadedTdVcpu<'g>,
    cmd: &'g Command,
    /// What is still to be added.
    region: Region,
    sources: SourcePages,
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

impl Load<'_> {
    /// Adds the pages one by one, and moves the region on with each.
    #[inline(always)]
    fn add_all(&mut self) -> Result {
        self.sources.prepare(self.region.nr_pages());

        while self.region.nr_pages() != 0 {
            if signal_pending() {
                return Err(EINTR);
            }

            // guest_memfd looks for the source where that takes more than looking.
            let src = match self.sources.advance(&self.region) {
                true => None,
                false => Some(user_ptr(self.region.source())),
            };
            let gfn = Gfn(self.region.gpa() / PAGE_SIZE_U64);
            let guard = self.td.guard();
            let done = guard.gmem_populate(gfn, src, 1, |page| self.add(page))?;

            if done != 1 {
                return Err(EIO);
            }

            self.region.advance();
            cond_resched();
        }
        Ok(())
    }

    fn add(&self, page: &GmemPage<'_>) -> Result {
        self.td.map_page(&self.vcpu, page, self.sources.current())?;

        if self.cmd.flags() & MEASURE_MEMORY_REGION != 0 {
            self.td.mr_extend(page.gfn().0 * PAGE_SIZE_U64)?;
        }
        Ok(())
    }
}
