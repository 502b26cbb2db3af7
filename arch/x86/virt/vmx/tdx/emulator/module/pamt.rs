// SPDX-License-Identifier: GPL-2.0

//! Who owns which page: the physical address metadata table.
//!
//! The host gives memory for an entry of 16 bytes for each 4 KiB, 2 MiB and 1 GiB of the TDMRs.
//! An entry holds, in the first 8 bytes, a lock (bits 15:0), the page's type (bits 23:16) and the
//! frame of its owner's TDR (bits 63:24), and in the others the TD epoch in which the page was
//! blocked. A page is described by the entry of its size; those above it are free.

use super::{
    address::{
        self,
        is_aligned,
        level_pages,
        level_size,
        PAGE_SIZE, //
    },
    dispatch::Call,
    inspect::PageInfo,
    leaf::LeafLock,
    locks::{
        self,
        fetch_add,
        Format,
        Lock,
        LockMode,
        LockRecord,
        Word, //
    },
    platform::{
        Event,
        MemoryRange,
        PageRecord,
        Platform, //
    },
    status::Status,
    tdmr::{
        Tdmr,
        PAMT_ENTRY_SIZE, //
    },
    Module, //
};
use core::sync::atomic::Ordering;

/// What a page is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum PageType {
    /// Nothing: the host's.
    Nda = 0,
    /// Never used for TDX.
    Rsvd = 1,
    /// A TD's memory.
    Reg = 3,
    /// A TD's root.
    Tdr = 4,
    /// A further control page of a TD or vCPU.
    Tdcx = 5,
    /// A vCPU's root.
    Tdvpr = 6,
    /// A Secure EPT page.
    Ept = 8,
}

/// The number of values that a page's type may have.
pub(super) const PAGE_TYPES: usize = 9;

impl PageType {
    /// The types of pages that TDs own.
    pub const OWNED: [PageType; 5] = [
        PageType::Reg,
        PageType::Tdr,
        PageType::Tdcx,
        PageType::Tdvpr,
        PageType::Ept,
    ];

    /// The name of the type.
    pub const fn name(self) -> &'static str {
        match self {
            PageType::Nda => "NDA",
            PageType::Rsvd => "RSVD",
            PageType::Reg => "REG",
            PageType::Tdr => "TDR",
            PageType::Tdcx => "TDCX",
            PageType::Tdvpr => "TDVPR",
            PageType::Ept => "EPT",
        }
    }

    pub(super) const fn from_raw(raw: u8) -> Option<Self> {
        Some(match raw {
            0 => PageType::Nda,
            1 => PageType::Rsvd,
            3 => PageType::Reg,
            4 => PageType::Tdr,
            5 => PageType::Tdcx,
            6 => PageType::Tdvpr,
            8 => PageType::Ept,
            _ => return None,
        })
    }
}

const TYPE_SHIFT: u32 = 16;
const TYPE_MASK: u64 = 0xff << TYPE_SHIFT;
const OWNER_SHIFT: u32 = 24;
const OWNER_MASK: u64 = !0 << OWNER_SHIFT;

/// The number of 4 KiB pages whose entries fill a page. Less than there are in 2 MiB.
const CHUNK_PAGES: u64 = PAGE_SIZE / PAMT_ENTRY_SIZE;

/// A page's entry.
#[derive(Clone, Copy)]
struct Entry {
    pa: u64,
}

impl Entry {
    fn page_type<P: Platform>(self, platform: &P) -> Option<PageType> {
        type_in(platform.read64(self.pa))
    }

    fn owner<P: Platform>(self, platform: &P) -> u64 {
        (platform.read64(self.pa) >> OWNER_SHIFT).wrapping_mul(PAGE_SIZE)
    }

    /// Writes an entry that nobody else looks at yet.
    fn initialize<P: Platform>(self, platform: &P, page_type: PageType) {
        platform.write64(self.pa, (page_type as u64) << TYPE_SHIFT);
        platform.write64(self.pa.wrapping_add(8), 0);
    }
}

/// The page's type in the first 8 bytes of its entry.
fn type_in(value: u64) -> Option<PageType> {
    PageType::from_raw((value >> TYPE_SHIFT) as u8)
}

/// How [`lock_page`] descends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Descend {
    /// To the entry of this size, or to a larger page.
    To(u8),
    /// To whatever size the page has.
    ToLeaf,
}

/// A page whose entry, and those above it, are locked.
///
/// Small, since it is handed up from where the locks are taken to the leaf.
pub(super) struct LockedPage<'c, P: Platform> {
    call: &'c Call<'c, P>,
    /// The page's address, as the operand gave it.
    pub(super) pa: u64,
    /// The page's entry; 0 if that is not locked.
    entry: u64,
    /// The entries above it that are locked, shared, from 2 MiB on; 0 is none.
    above: [u64; 2],
    /// The size of the page: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.
    pub(super) level: u8,
    mode: LockMode,
}

impl<P: Platform> Drop for LockedPage<'_, P> {
    // Inlined, as what has its address taken would be copied from caller to caller.
    #[inline(always)]
    fn drop(&mut self) {
        let unlock = |entry, level, mode| {
            if entry != 0 {
                unlock_entry(self.call, self.pa, entry, level, mode);
            }
        };
        let [above_2m, above_1g] = self.above;
        unlock(self.entry, self.level, self.mode);
        unlock(above_2m, 1, LockMode::Shared);
        unlock(above_1g, 2, LockMode::Shared);
    }
}

/// Gives back the lock of the entry of that level for `pa`.
#[inline(never)]
fn unlock_entry<P: Platform>(call: &Call<'_, P>, pa: u64, entry: u64, level: u8, mode: LockMode) {
    let lock = || record(pa, level, mode).lock;
    locks::give_back(call, Word::Memory(entry), LOCK_FORMAT, mode, lock);
}

/// How an entry is locked.
const LOCK_FORMAT: Format = Format::SharexHostPriority;

/// The lock of the entry of that level for `pa`.
fn record(pa: u64, level: u8, mode: LockMode) -> LockRecord {
    let pa = pa & !level_size(level).wrapping_sub(1);
    let lock = Lock::Page { pa, level };
    LockRecord { lock, mode }
}

impl<P: Platform> LockedPage<'_, P> {
    #[inline(always)]
    fn entry(&self) -> Entry {
        Entry { pa: self.entry }
    }

    /// What the page is used for. [`None`] if the entry makes no sense.
    #[inline(always)]
    pub(super) fn page_type(&self) -> Option<PageType> {
        self.entry().page_type(self.call.platform)
    }

    /// The owner's TDR. A free page has its last one.
    #[inline(always)]
    pub(super) fn owner(&self) -> u64 {
        self.entry().owner(self.call.platform)
    }

    /// The TD epoch in which the page was blocked.
    pub(super) fn blocking_epoch(&self) -> u64 {
        self.call.platform.read64(self.entry().pa.wrapping_add(8))
    }

    /// Where the page starts.
    pub(super) fn base(&self) -> u64 {
        self.pa & !level_size(self.level).wrapping_sub(1)
    }

    /// The number of 4 KiB pages it has.
    pub(super) fn pages(&self) -> u64 {
        level_pages(self.level)
    }

    /// The page as [`Event`]s tell of it.
    fn record(&self, page_type: PageType, owner: u64) -> PageRecord {
        PageRecord {
            range: MemoryRange {
                base: self.base(),
                size: level_size(self.level),
            },
            page_type,
            owner,
        }
    }

    /// Gives the page to the TD with this TDR; a TDR has no owner, and 0 here.
    pub(super) fn assign(&self, page_type: PageType, owner: u64) {
        let platform = self.call.platform;
        let owner_frame = owner / PAGE_SIZE;
        platform.write64(self.entry().pa.wrapping_add(8), 0);
        self.set(|value| {
            value & !(TYPE_MASK | OWNER_MASK)
                | ((page_type as u64) << TYPE_SHIFT)
                | (owner_frame << OWNER_SHIFT)
        });
        self.call.module.count_pages(page_type, self.pages());
        platform.observe(Event::PageTaken(self.record(page_type, owner)));
    }

    /// Gives the page back to the host. `unflushed` is the HKID that was in use for it, unless all
    /// caches were written back since.
    pub(super) fn free(&self, unflushed: Option<u16>) {
        if let Some(page_type) = self.page_type() {
            let pages = self.pages().wrapping_neg();
            self.call.module.count_pages(page_type, pages);
            self.call.platform.observe(Event::PageReturned {
                page: self.record(page_type, self.owner()),
                unflushed,
            });
        }
        self.set(|value| value & !TYPE_MASK);
    }

    /// Changes what is not the lock.
    fn set(&self, change: impl Fn(u64) -> u64) {
        let platform = self.call.platform;
        let entry = self.entry();
        let value = platform.read64(entry.pa);
        // Others may only leave a mark in the lock meanwhile, so adding the difference is exact.
        let delta = change(value).wrapping_sub(value);
        fetch_add(platform, entry.pa, delta);
    }

    /// Whether every smaller page in this one is free.
    fn is_free_inside(&self) -> bool {
        let Some((tdmr, offset)) = self.call.module.tdmrs.find(self.pa) else {
            return false;
        };
        (0..level_pages(self.level.min(1))).all(|page| {
            let offset = offset.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            let entry = Entry {
                pa: tdmr.entry(offset, 0),
            };
            entry.page_type(self.call.platform) == Some(PageType::Nda)
        })
    }
}

/// Locks the entry of the page at `pa`, which lies in memory that has a PAMT.
fn lock_page<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
    descend: Descend,
) -> Result<LockedPage<'c, P>, Status> {
    let outside = lock.about(Status::OPERAND_ADDR_RANGE_ERROR);
    let (tdmr, offset) = call.module.tdmrs.find(pa).ok_or(outside)?;
    let mode = lock.mode_in(call.version, call.module.profile());
    let mut page = LockedPage {
        call,
        pa,
        entry: 0,
        above: [0; 2],
        level: 0,
        mode,
    };
    let mut level = 2;
    loop {
        let is_last = |value| {
            level == 0 || descend == Descend::To(level) || type_in(value) != Some(PageType::Nda)
        };
        let entry = tdmr.entry(offset, level);
        let value = call.platform.read64(entry);
        let last = is_last(value);
        let record = record(pa, level, if last { mode } else { LockMode::Shared });
        // If the type changes before it is locked, somebody has it.
        let still = |value| is_last(value) == last;
        locks::take(call, Word::Memory(entry), LOCK_FORMAT, record, value, still)
            .map_err(|_| lock.busy())?;
        if last {
            page.entry = entry;
            page.level = level;
            return Ok(page);
        }
        level = level.saturating_sub(1);
        if let Some(above) = page.above.get_mut(usize::from(level)) {
            *above = entry;
        }
    }
}

/// Locks a page that an operand names, and checks what it is used for.
#[inline(always)]
pub(super) fn lock_explicit<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
    level: u8,
    expected: PageType,
) -> Result<LockedPage<'c, P>, Status> {
    if !address::is_private(call.platform, pa, level_size(level)) {
        return Err(lock.about(Status::OPERAND_INVALID));
    }
    let page = lock_page(call, pa, lock, Descend::To(level))?;
    if page.level != level || page.page_type() != Some(expected) {
        return Err(lock.about(Status::PAGE_METADATA_INCORRECT));
    }
    Ok(page)
}

/// Locks a page that an operand names, for a new use.
pub(super) fn lock_free<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
    level: u8,
) -> Result<LockedPage<'c, P>, Status> {
    let page = lock_explicit(call, pa, lock, level, PageType::Nda)?;
    if level > 0 && !page.is_free_inside() {
        return Err(lock.about(Status::PAGE_METADATA_INCORRECT));
    }
    Ok(page)
}

/// Locks a page that an operand names, whatever its size and use.
pub(super) fn lock_any<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
) -> Result<LockedPage<'c, P>, Status> {
    if !address::is_private(call.platform, pa, PAGE_SIZE) {
        return Err(lock.about(Status::OPERAND_INVALID));
    }
    lock_page(call, pa, lock, Descend::ToLeaf)
}

/// Locks only the entry of a page that the module itself knows to be one of that size.
pub(super) fn lock_implicit<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
    level: u8,
) -> Result<LockedPage<'c, P>, Status> {
    let (tdmr, offset) = call.module.tdmrs.find(pa).ok_or(lock.busy())?;
    let entry = tdmr.entry(offset, level);
    let mode = lock.mode_in(call.version, call.module.profile());
    let record = record(pa, level, mode);
    let value = call.platform.read64(entry);
    locks::take(
        call,
        Word::Memory(entry),
        LOCK_FORMAT,
        record,
        value,
        |_| true,
    )
    .map_err(|_| lock.busy())?;
    Ok(LockedPage {
        call,
        pa,
        entry,
        above: [0; 2],
        level,
        mode,
    })
}

/// Notes the epoch in which a page of that level was blocked.
pub(super) fn set_blocking_epoch<P: Platform>(call: &Call<'_, P>, pa: u64, level: u8, epoch: u64) {
    if let Some((tdmr, offset)) = call.module.tdmrs.find(pa) {
        let entry = tdmr.entry(offset, level);
        call.platform.write64(entry.wrapping_add(8), epoch);
    }
}

/// The epoch in which a page of that level was blocked.
pub(super) fn blocking_epoch<P: Platform>(call: &Call<'_, P>, pa: u64, level: u8) -> u64 {
    call.module.tdmrs.find(pa).map_or(0, |(tdmr, offset)| {
        let entry = tdmr.entry(offset, level);
        call.platform.read64(entry.wrapping_add(8))
    })
}

/// Looks at a page without a lock.
pub(super) fn look<P: Platform>(module: &Module, platform: &P, pa: u64) -> Option<PageInfo> {
    let (tdmr, offset) = module.tdmrs.find(pa)?;
    [2u8, 1, 0].into_iter().find_map(|level| {
        let entry = Entry {
            pa: tdmr.entry(offset, level),
        };
        let page_type = entry.page_type(platform)?;
        (level == 0 || page_type != PageType::Nda).then(|| PageInfo {
            page_type,
            owner: entry.owner(platform),
            level,
        })
    })
}

/// Calls `f` with the address of each page of that type. Takes no lock.
pub(super) fn for_each_page<P: Platform>(
    module: &Module,
    platform: &P,
    page_type: PageType,
    mut f: impl FnMut(u64),
) {
    for tdmr in module.tdmrs.iter() {
        let base = tdmr.range().base;
        let end = base.saturating_add(tdmr.initialized());
        let mut pa = base;
        while pa < end {
            let page = look(module, platform, pa);
            if page.is_some_and(|page| page.page_type == page_type) {
                f(pa);
            }
            pa = pa.saturating_add(level_size(page.map_or(0, |page| page.level)));
        }
    }
}

/// Tells the platform of a page of entries, on the occasion of the first that is initialised.
fn observe_taken<P: Platform>(platform: &P, entry: u64) {
    if is_aligned(entry, PAGE_SIZE) {
        platform.observe(Event::PamtTaken(MemoryRange {
            base: entry,
            size: PAGE_SIZE,
        }));
    }
}

/// Initialises the entries of up to `pages` 4 KiB pages from `offset` on in a TDMR.
///
/// Returns the offset of the first page not done.
pub(super) fn initialize<P: Platform>(
    platform: &P,
    tdmr: &Tdmr,
    mut offset: u64,
    pages: u64,
) -> u64 {
    let size = tdmr.range().size;
    let end = size.min(offset.saturating_add(pages.saturating_mul(PAGE_SIZE)));
    while offset < end {
        for level in [2u8, 1] {
            if is_aligned(offset, level_size(level)) {
                let pa = tdmr.entry(offset, level);
                observe_taken(platform, pa);
                Entry { pa }.initialize(platform, PageType::Nda);
            }
        }
        let pa = tdmr.entry(offset, 0);
        observe_taken(platform, pa);
        let chunk = MemoryRange {
            base: offset,
            size: CHUNK_PAGES * PAGE_SIZE,
        };
        if is_aligned(offset, chunk.size) && chunk.end() <= end && !tdmr.has_reserved(&chunk) {
            // The entry of a free page that never had an owner is all zero.
            platform.fill(pa, PAGE_SIZE, 0);
            offset = chunk.end();
            continue;
        }
        let page = MemoryRange {
            base: offset,
            size: PAGE_SIZE,
        };
        let page_type = if tdmr.has_reserved(&page) {
            PageType::Rsvd
        } else {
            PageType::Nda
        };
        Entry { pa }.initialize(platform, page_type);
        offset = page.end();
    }
    offset
}

impl Module {
    /// Counts pages that changed their owner; `pages` may be negative, in two's complement.
    fn count_pages(&self, page_type: PageType, pages: u64) {
        if let Some(count) = self.page_counts.get(page_type as usize) {
            count.fetch_add(pages, Ordering::Relaxed);
        }
    }

    /// The number of 4 KiB pages of that type, which is one that TDs own.
    pub fn pages(&self, page_type: PageType) -> u64 {
        let count = self.page_counts.get(page_type as usize);
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}
