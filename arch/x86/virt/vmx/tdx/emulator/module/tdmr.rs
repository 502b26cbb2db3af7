// SPDX-License-Identifier: GPL-2.0

//! The memory regions that pages for TDs come from (TDMRs), as TDH.SYS.CONFIG was given them.

use super::{
    address::{
        is_aligned,
        is_private,
        read_host64,
        shared,
        GIB,
        PAGE_SIZE, //
    },
    dispatch::Call,
    locks::{
        Lock,
        LockMode,
        Way,
        Word, //
    },
    platform::{
        MemoryRange,
        Platform, //
    },
    status::{
        Operand,
        Status, //
    },
};
use core::sync::atomic::{
    AtomicU64,
    AtomicUsize,
    Ordering, //
};

/// The largest number of TDMRs.
pub(super) const MAX_TDMRS: usize = 64;
/// The largest number of reserved areas in a TDMR.
pub(super) const MAX_RESERVED: usize = 16;
/// The largest number of convertible memory ranges.
const MAX_CMRS: usize = 32;
/// The size of a PAMT entry, the same for all page sizes.
pub(super) const PAMT_ENTRY_SIZE: u64 = 16;

/// A TDMR as the host describes it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TdmrInfo {
    pub(super) range: MemoryRange,
    /// The PAMT for pages of 4 KiB, 2 MiB and 1 GiB.
    pub(super) pamt: [MemoryRange; 3],
    /// Parts that are never used, relative to the start; the first of size 0 ends the list.
    reserved: [MemoryRange; MAX_RESERVED],
}

impl TdmrInfo {
    /// Reads the description at `pa`.
    pub(super) fn read<P: Platform>(platform: &P, pa: u64) -> Self {
        let range = |offset: u64| MemoryRange {
            base: read_host64(platform, pa.wrapping_add(offset)),
            size: read_host64(platform, pa.wrapping_add(offset).wrapping_add(8)),
        };
        let mut info = Self {
            range: range(0),
            pamt: [range(48), range(32), range(16)],
            ..Self::default()
        };
        for (index, reserved) in info.reserved.iter_mut().enumerate() {
            *reserved = range((index as u64).wrapping_mul(16).wrapping_add(64));
        }
        info
    }

    /// The reserved areas as physical ranges.
    fn reserved(&self) -> impl Iterator<Item = MemoryRange> + '_ {
        let used = self.reserved.iter().take_while(|area| area.size != 0);
        used.map(|area| MemoryRange {
            base: self.range.base.saturating_add(area.base),
            size: area.size,
        })
    }

    /// Calls `f` for each part of the TDMR that is not reserved, until it returns false.
    fn all_usable(&self, mut f: impl FnMut(&MemoryRange) -> bool) -> bool {
        let mut base = self.range.base;
        let end = MemoryRange {
            base: self.range.end(),
            size: 0,
        };
        for area in self.reserved().chain([end]) {
            let usable = MemoryRange {
                base,
                size: area.base.saturating_sub(base),
            };
            if usable.size != 0 && !f(&usable) {
                return false;
            }
            base = area.end();
        }
        true
    }

    /// Checks everything that does not depend on PAMTs; `previous` is the TDMR before, if any.
    pub(super) fn check<P: Platform>(
        &self,
        platform: &P,
        index: u32,
        previous: Option<&TdmrInfo>,
    ) -> Result<(), Status> {
        let range = &self.range;
        if range.base.checked_add(range.size).is_none() {
            return Err(Status::INVALID_TDMR.detail(index));
        }
        if previous.is_some_and(|previous| range.base < previous.range.end()) {
            return Err(Status::NON_ORDERED_TDMR.detail(index));
        }
        let valid = is_aligned(range.base | range.size, GIB)
            && range.size != 0
            && is_private(platform, range.base, GIB)
            && is_private(platform, range.end().wrapping_sub(GIB), GIB);
        if !valid {
            return Err(Status::INVALID_TDMR.detail(index));
        }
        self.check_reserved(index)
    }

    fn check_reserved(&self, index: u32) -> Result<(), Status> {
        let mut end = 0u64;
        let mut ended = false;
        for (area_index, area) in self.reserved.iter().enumerate() {
            let detail = index | ((area_index as u32) << 8);
            if area.size == 0 {
                ended = true;
                continue;
            }
            if ended {
                return Err(Status::NON_ORDERED_RESERVED_IN_TDMR.detail(detail));
            }
            let Some(area_end) = area.base.checked_add(area.size) else {
                return Err(Status::INVALID_RESERVED_IN_TDMR.detail(detail));
            };
            if area.base < end {
                return Err(Status::NON_ORDERED_RESERVED_IN_TDMR.detail(detail));
            }
            if !is_aligned(area.base | area.size, PAGE_SIZE) || area_end > self.range.size {
                return Err(Status::INVALID_RESERVED_IN_TDMR.detail(detail));
            }
            end = area_end;
        }
        Ok(())
    }

    /// Checks the PAMTs, also against the TDMRs before this one.
    pub(super) fn check_pamts<P: Platform>(
        &self,
        platform: &P,
        index: u32,
        others: &Tdmrs,
    ) -> Result<(), Status> {
        for (level, pamt) in self.pamt.iter().enumerate() {
            let detail = index | ((level as u32) << 8);
            let entries = self.range.size >> (12 + 9 * (level as u32).min(2));
            let valid = is_aligned(pamt.base | pamt.size, PAGE_SIZE)
                && pamt.size >= entries.saturating_mul(PAMT_ENTRY_SIZE)
                && pamt.base.checked_add(pamt.size).is_some()
                && shared(platform, pamt.base, PAGE_SIZE) == Some(pamt.base)
                && is_private(platform, pamt.end().wrapping_sub(PAGE_SIZE), PAGE_SIZE);
            if !valid {
                return Err(Status::INVALID_PAMT.detail(detail));
            }
        }
        for (level, pamt) in self.pamt.iter().enumerate() {
            let detail = index | ((level as u32) << 8);
            let own = self.pamt.iter().take(level);
            if own.clone().any(|other| pamt.overlaps(other)) || !self.leaves_free(pamt) {
                return Err(Status::PAMT_OVERLAP.detail(detail | (index << 16)));
            }
            for (other_index, other) in others.iter().enumerate() {
                let other = other.info();
                let overlap = other.pamt.iter().any(|other| pamt.overlaps(other))
                    || !other.leaves_free(pamt)
                    || !self.leaves_free(other.pamt.get(level).unwrap_or(pamt));
                if overlap {
                    let detail = detail | ((other_index as u32) << 16);
                    return Err(Status::PAMT_OVERLAP.detail(detail));
                }
            }
            if !in_cmrs(platform, pamt) {
                return Err(Status::PAMT_OUTSIDE_CMRS.detail(detail));
            }
        }
        if !self.all_usable(|usable| in_cmrs(platform, usable)) {
            return Err(Status::TDMR_OUTSIDE_CMRS.detail(index));
        }
        Ok(())
    }

    /// Whether none of `range` is memory that TDs may get from this TDMR.
    fn leaves_free(&self, range: &MemoryRange) -> bool {
        self.all_usable(|usable| !usable.overlaps(range))
    }
}

/// Whether all of `range` is convertible memory.
fn in_cmrs<P: Platform>(platform: &P, range: &MemoryRange) -> bool {
    let mut base = range.base;
    for cmr in cmrs(platform) {
        if (cmr.base..cmr.end()).contains(&base) {
            base = cmr.end();
        }
    }
    base >= range.end()
}

/// The convertible memory ranges.
fn cmrs<P: Platform>(platform: &P) -> impl Iterator<Item = MemoryRange> + '_ {
    (0..MAX_CMRS).map_while(|index| platform.cmr(index))
}

/// Whether a part of `range` is convertible memory.
pub(super) fn overlaps_cmrs<P: Platform>(platform: &P, range: &MemoryRange) -> bool {
    cmrs(platform).any(|cmr| cmr.overlaps(range))
}

/// Whether the list of convertible memory ranges makes sense.
pub(super) fn cmrs_valid<P: Platform>(platform: &P) -> bool {
    let mut end = 0;
    for cmr in cmrs(platform) {
        if !is_aligned(cmr.base | cmr.size, PAGE_SIZE) || cmr.base < end || cmr.size == 0 {
            return false;
        }
        end = cmr.end();
    }
    end != 0
}

/// A configured TDMR.
pub(super) struct Tdmr {
    lock: AtomicU64,
    base: AtomicU64,
    size: AtomicU64,
    pamt: [[AtomicU64; 2]; 3],
    reserved: [[AtomicU64; 2]; MAX_RESERVED],
    /// How much of it has a PAMT.
    initialized: AtomicU64,
}

impl Tdmr {
    const fn new() -> Self {
        Self {
            lock: AtomicU64::new(0),
            base: AtomicU64::new(0),
            size: AtomicU64::new(0),
            pamt: [const { [const { AtomicU64::new(0) }; 2] }; 3],
            reserved: [const { [const { AtomicU64::new(0) }; 2] }; MAX_RESERVED],
            initialized: AtomicU64::new(0),
        }
    }

    fn set(&self, info: &TdmrInfo) {
        self.base.store(info.range.base, Ordering::Relaxed);
        self.size.store(info.range.size, Ordering::Relaxed);
        let ranges = self.pamt.iter().zip(&info.pamt);
        for ([base, size], from) in ranges.chain(self.reserved.iter().zip(&info.reserved)) {
            base.store(from.base, Ordering::Relaxed);
            size.store(from.size, Ordering::Relaxed);
        }
        self.initialized.store(0, Ordering::Release);
    }

    /// The description that it was set to.
    fn info(&self) -> TdmrInfo {
        let mut info = TdmrInfo {
            range: self.range(),
            ..TdmrInfo::default()
        };
        let ranges = self.pamt.iter().zip(&mut info.pamt);
        for ([base, size], to) in ranges.chain(self.reserved.iter().zip(&mut info.reserved)) {
            to.base = base.load(Ordering::Relaxed);
            to.size = size.load(Ordering::Relaxed);
        }
        info
    }

    /// Locks the TDMR against another initialisation.
    pub(super) fn lock<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        index: u32,
    ) -> Result<(), Status> {
        let (lock, mode) = (Lock::Tdmr(index), LockMode::Exclusive);
        call.take(self.lock_word(), Way::sharex(mode), lock, mode)
            .map_err(|_| Status::OPERAND_BUSY.on(Operand::Rcx))
    }

    /// The TDMR's lock.
    pub(super) fn lock_word<P: Platform>(&self) -> Word<'_, P> {
        Word::Local(&self.lock)
    }

    /// Where the PAMT for pages of that level lies.
    pub(super) fn pamt(&self, level: usize) -> MemoryRange {
        let pamt = self.pamt.get(level);
        pamt.map_or(MemoryRange::default(), |[base, size]| MemoryRange {
            base: base.load(Ordering::Relaxed),
            size: size.load(Ordering::Relaxed),
        })
    }

    /// What memory it is.
    pub(super) fn range(&self) -> MemoryRange {
        MemoryRange {
            base: self.base.load(Ordering::Relaxed),
            size: self.size.load(Ordering::Relaxed),
        }
    }

    /// How much of it has a PAMT, in bytes from the start.
    pub(super) fn initialized(&self) -> u64 {
        self.initialized.load(Ordering::Acquire)
    }

    /// Notes how much of it has a PAMT.
    pub(super) fn set_initialized(&self, bytes: u64) {
        self.initialized.store(bytes, Ordering::Release);
    }

    /// Where the PAMT entry for the page of that level at `offset` is.
    #[inline(always)]
    pub(super) fn entry(&self, offset: u64, level: u8) -> u64 {
        let pamt = self.pamt.get(usize::from(level));
        let base = pamt.map_or(0, |[base, _]| base.load(Ordering::Relaxed));
        let index = offset >> (12 + 9 * u32::from(level.min(2)));
        base.wrapping_add(index.wrapping_mul(PAMT_ENTRY_SIZE))
    }

    /// Whether a reserved area has a byte of `range`, which is relative to the start.
    pub(super) fn has_reserved(&self, range: &MemoryRange) -> bool {
        let areas = self.reserved.iter().map(|[base, size]| MemoryRange {
            base: base.load(Ordering::Relaxed),
            size: size.load(Ordering::Relaxed),
        });
        areas
            .take_while(|area| area.size != 0)
            .any(|area| area.overlaps(range))
    }
}

/// All TDMRs.
pub(super) struct Tdmrs {
    count: AtomicUsize,
    tdmrs: [Tdmr; MAX_TDMRS],
}

impl Tdmrs {
    pub(super) const fn new() -> Self {
        Self {
            count: AtomicUsize::new(0),
            tdmrs: [const { Tdmr::new() }; MAX_TDMRS],
        }
    }

    /// Sets the TDMR of that index and forgets those after it.
    pub(super) fn set(&self, index: usize, info: &TdmrInfo) {
        if let Some(tdmr) = self.tdmrs.get(index) {
            tdmr.set(info);
            self.count.store(index.wrapping_add(1), Ordering::Release);
        }
    }

    /// Forgets all TDMRs.
    pub(super) fn clear(&self) {
        self.count.store(0, Ordering::Release);
    }

    /// The TDMRs.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Tdmr> + '_ {
        self.tdmrs.iter().take(self.count.load(Ordering::Acquire))
    }

    /// The TDMR that `pa` lies in, if its PAMT is initialised there.
    pub(super) fn find(&self, pa: u64) -> Option<(&Tdmr, u64)> {
        self.iter().find_map(|tdmr| {
            let offset = pa.checked_sub(tdmr.range().base)?;
            let known = tdmr.initialized() & !(GIB.wrapping_sub(1));
            (offset < known).then_some((tdmr, offset))
        })
    }
}
