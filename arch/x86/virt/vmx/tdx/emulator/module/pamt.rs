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
        Busy,
        Lock,
        LockMode,
        LockRecord,
        Way,
        Word, //
    },
    place::Place,
    platform::{
        Event,
        FoundWord,
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
struct Entry<'c, P: Platform>(Place<'c, P>);

impl<P: Platform> Clone for Entry<'_, P> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Entry<'_, P> {}

impl<'c, P: Platform> Entry<'c, P> {
    /// The entry of the page of that level at that offset in a TDMR.
    #[inline(always)]
    fn find(platform: &'c P, tdmr: &Tdmr, offset: u64, level: u8) -> Self {
        Self(Place::find(platform, tdmr.entry(offset, level)))
    }

    /// The place of the entry's other half: the epoch in which the page was blocked.
    fn blocking_epoch(self) -> Place<'c, P> {
        self.0.at(8)
    }

    fn page_type(self) -> Option<PageType> {
        type_in(self.0.load())
    }

    fn owner(self) -> u64 {
        (self.0.load() >> OWNER_SHIFT).wrapping_mul(PAGE_SIZE)
    }

    /// Writes an entry that nobody else looks at yet.
    fn initialize(self, page_type: PageType) {
        self.0.store((page_type as u64) << TYPE_SHIFT);
        self.blocking_epoch().store(0);
    }
}

/// The page's type in the first 8 bytes of its entry.
fn type_in(value: u64) -> Option<PageType> {
    PageType::from_raw((value >> TYPE_SHIFT) as u8)
}

/// The lock of the entry of that level for the page at `pa`.
fn record(pa: u64, level: u8, mode: LockMode) -> LockRecord {
    let pa = pa & !level_size(level).wrapping_sub(1);
    let lock = Lock::Page { pa, level };
    LockRecord { lock, mode }
}

/// A page whose entry, and those above it, are locked.
pub(super) struct LockedPage<'c, P: Platform> {
    call: &'c Call<'c, P>,
    /// The page's address, as the operand gave it.
    pub(super) pa: u64,
    entry: Entry<'c, P>,
    /// The size of the page: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.
    pub(super) level: u8,
}

impl<'c, P: Platform> LockedPage<'c, P> {
    /// What the page is used for. [`None`] if the entry makes no sense.
    #[inline(always)]
    pub(super) fn page_type(&self) -> Option<PageType> {
        self.entry.page_type()
    }

    /// The owner's TDR. A free page has its last one.
    #[inline(always)]
    pub(super) fn owner(&self) -> u64 {
        self.entry.owner()
    }

    /// The TD epoch in which the page was blocked.
    pub(super) fn blocking_epoch(&self) -> u64 {
        self.entry.blocking_epoch().load()
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
        let owner_frame = owner / PAGE_SIZE;
        self.entry.blocking_epoch().store(0);
        self.set(|value| {
            value & !(TYPE_MASK | OWNER_MASK)
                | ((page_type as u64) << TYPE_SHIFT)
                | (owner_frame << OWNER_SHIFT)
        });
        let Call {
            module, platform, ..
        } = self.call;
        module.count_pages(page_type, self.pages());
        platform.observe(Event::PageTaken(self.record(page_type, owner)));
    }

    /// Gives the page back to the host. `unflushed` is the HKID that was in use for it, unless all
    /// caches were written back since.
    pub(super) fn free(&self, unflushed: Option<u16>) {
        if let Some(page_type) = self.page_type() {
            let Call {
                module, platform, ..
            } = self.call;
            module.count_pages(page_type, self.pages().wrapping_neg());
            platform.observe(Event::PageReturned {
                page: self.record(page_type, self.owner()),
                unflushed,
            });
        }
        self.set(|value| value & !TYPE_MASK);
    }

    /// Changes what is not the lock.
    fn set(&self, change: impl Fn(u64) -> u64) {
        let value = self.entry.0.load();
        // Others may only leave a mark in the lock meanwhile, so adding the difference is exact.
        let delta = change(value).wrapping_sub(value);
        self.entry.0.fetch_add(delta);
    }

    /// Whether every smaller page in this one is free.
    fn is_free_inside(&self) -> bool {
        let call = self.call;
        let Some((tdmr, offset)) = call.module.tdmrs.find(self.pa) else {
            return false;
        };
        (0..level_pages(self.level.min(1))).all(|page| {
            let offset = offset.wrapping_add(page.wrapping_mul(PAGE_SIZE));
            let entry = Entry::find(call.platform, tdmr, offset, 0);
            entry.page_type() == Some(PageType::Nda)
        })
    }
}

/// How a page is locked.
struct PageLock {
    /// How its entry is locked. Those above it are shared.
    mode: LockMode,
    /// The size to descend to, unless the page is larger; [`None`] for whatever size it has.
    level: Option<u8>,
    /// The status if somebody else has one of the entries.
    busy: Status,
    /// The status if there are none.
    outside: Status,
}

impl PageLock {
    /// As the leaf declares it.
    #[inline(always)]
    fn of<P: Platform>(call: &Call<'_, P>, lock: &LeafLock, level: Option<u8>) -> Self {
        Self {
            mode: lock.mode_of(call),
            level,
            busy: lock.busy(),
            outside: lock.about(Status::OPERAND_ADDR_RANGE_ERROR),
        }
    }
}

/// Locks the entry of the page at `pa`, which lies in memory that has a PAMT.
#[inline(never)]
fn lock_page<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: PageLock,
) -> Result<LockedPage<'c, P>, Status> {
    let (tdmr, offset) = call.module.tdmrs.find(pa).ok_or(lock.outside)?;
    let descent = Descent {
        call,
        pa,
        tdmr,
        offset,
    };
    // One by one, so that what is constant for a level is.
    match descent.pass(&lock, 2) {
        Passed::Yes => {}
        Passed::Busy => return Err(lock.busy),
        Passed::No { same } => return descent.lock_large(&lock, 2, same),
    }
    match descent.pass(&lock, 1) {
        Passed::Yes => {}
        Passed::Busy => return Err(lock.busy),
        Passed::No { same } => return descent.lock_large(&lock, 1, same),
    }
    descent.lock(0, lock.mode, 0).map_err(|_| lock.busy)
}

/// Where a page's entries are.
struct Descent<'c, 't, P: Platform> {
    call: &'c Call<'c, P>,
    pa: u64,
    tdmr: &'t Tdmr,
    offset: u64,
}

/// Whether a descent goes on to a smaller size.
enum Passed {
    Yes,
    /// No, somebody has the entry.
    Busy,
    /// No, the page is that large, or is to be. If one of the bits `same` changes before the entry
    /// is locked, somebody has it.
    No {
        same: u64,
    },
}

impl<'c, P: Platform> Descent<'c, '_, P> {
    #[inline(always)]
    fn entry(&self, level: u8) -> Entry<'c, P> {
        Entry::find(self.call.platform, self.tdmr, self.offset, level)
    }

    /// Shares the entry of that level, unless it is the one to descend to.
    #[inline(always)]
    fn pass(&self, lock: &PageLock, level: u8) -> Passed {
        if lock.level == Some(level) {
            return Passed::No { same: 0 };
        }
        let word = self.entry(level).0.word();
        let value = word.load();
        let same = TYPE_MASK;
        if type_in(value) != Some(PageType::Nda) {
            return Passed::No { same };
        }
        let mode = LockMode::Shared;
        let way = Way::sharex_host_priority(mode);
        let record = || record(self.pa, level, mode);
        let word = Word::Memory(word);
        match self.call.take_found(word, value, same, way, record) {
            Ok(()) => Passed::Yes,
            Err(Busy) => Passed::Busy,
        }
    }

    /// Locks the entry of that level, which is not the last.
    #[inline(never)]
    fn lock_large(
        &self,
        lock: &PageLock,
        level: u8,
        same: u64,
    ) -> Result<LockedPage<'c, P>, Status> {
        self.lock(level, lock.mode, same).map_err(|_| lock.busy)
    }

    /// Locks the entry of that level, unless one of the bits `same` changes.
    #[inline(always)]
    fn lock(&self, level: u8, mode: LockMode, same: u64) -> Result<LockedPage<'c, P>, Busy> {
        let entry = self.entry(level);
        let word = entry.0.word();
        let way = Way::sharex_host_priority(mode);
        let record = || record(self.pa, level, mode);
        self.call
            .take_found(Word::Memory(word), word.load(), same, way, record)?;
        Ok(LockedPage {
            call: self.call,
            pa: self.pa,
            entry,
            level,
        })
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
    let page = lock_page(call, pa, PageLock::of(call, lock, Some(level)))?;
    if page.level != level || page.page_type() != Some(expected) {
        return Err(lock.about(Status::PAGE_METADATA_INCORRECT));
    }
    Ok(page)
}

/// Locks a page that an operand names, for a new use.
#[inline(always)]
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
    lock_page(call, pa, PageLock::of(call, lock, None))
}

/// Locks only the entry of a page that the module itself knows to be one of that size.
pub(super) fn lock_implicit<'c, P: Platform>(
    call: &'c Call<'c, P>,
    pa: u64,
    lock: &LeafLock,
    level: u8,
) -> Result<LockedPage<'c, P>, Status> {
    let (tdmr, offset) = call.module.tdmrs.find(pa).ok_or(lock.busy())?;
    let descent = Descent {
        call,
        pa,
        tdmr,
        offset,
    };
    let mode = lock.mode_of(call);
    descent.lock(level, mode, 0).map_err(|_| lock.busy())
}

/// Notes the epoch in which a page of that level was blocked.
pub(super) fn set_blocking_epoch<P: Platform>(call: &Call<'_, P>, pa: u64, level: u8, epoch: u64) {
    if let Some((tdmr, offset)) = call.module.tdmrs.find(pa) {
        let entry = Entry::find(call.platform, tdmr, offset, level);
        entry.blocking_epoch().store(epoch);
    }
}

/// The epoch in which a page of that level was blocked.
pub(super) fn blocking_epoch<P: Platform>(call: &Call<'_, P>, pa: u64, level: u8) -> u64 {
    call.module.tdmrs.find(pa).map_or(0, |(tdmr, offset)| {
        let entry = Entry::find(call.platform, tdmr, offset, level);
        entry.blocking_epoch().load()
    })
}

/// Looks at a page without a lock.
pub(super) fn look<P: Platform>(module: &Module, platform: &P, pa: u64) -> Option<PageInfo> {
    let (tdmr, offset) = module.tdmrs.find(pa)?;
    [2u8, 1, 0].into_iter().find_map(|level| {
        let entry = Entry::find(platform, tdmr, offset, level);
        let page_type = entry.page_type()?;
        (level == 0 || page_type != PageType::Nda).then(|| PageInfo {
            page_type,
            owner: entry.owner(),
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
                let entry = Entry::find(platform, tdmr, offset, level);
                observe_taken(platform, entry.0.pa());
                entry.initialize(PageType::Nda);
            }
        }
        let entry = Entry::find(platform, tdmr, offset, 0);
        observe_taken(platform, entry.0.pa());
        let chunk = MemoryRange {
            base: offset,
            size: CHUNK_PAGES * PAGE_SIZE,
        };
        if is_aligned(offset, chunk.size) && chunk.end() <= end && !tdmr.has_reserved(&chunk) {
            // The entry of a free page that never had an owner is all zero.
            platform.fill(entry.0.pa(), PAGE_SIZE, 0);
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
        entry.initialize(page_type);
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
