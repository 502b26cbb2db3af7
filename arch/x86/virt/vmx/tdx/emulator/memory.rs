// SPDX-License-Identifier: GPL-2.0

//! The memory that the module works on: this machine's, made unreadable to the host.
//!
//! What a real module or a TD stores is encrypted with a key that the host does not have. Here each
//! word is combined with a pattern that depends on its address. So a page makes no sense to the host
//! once the module has written to it, and none when it has been given back, until the host writes to
//! it. Anybody can undo that: it finds mistakes and keeps no secrets.
//!
//! Of each page that is not the host's, the sum of its words is known, and kept up to date with each
//! word that the module writes. If a page does not agree with that when it is measured, given back
//! or looked at on demand, the host has written to it.
//!
//! A page that a TD has given back is still in the caches, under the TD's HKID. Such lines may be
//! written back at any time, so the page is not the host's before they are flushed.

#![deny(unsafe_code)]

use crate::{
    ffi::{
        self,
        FoundPages, //
    },
    machine::Machine,
    module::{
        MemoryRange,
        PageRecord,
        PageType, //
    },
    MODULE, //
};
use core::sync::atomic::{
    AtomicU32,
    AtomicU64,
    Ordering, //
};
use kernel::{
    fmt,
    prelude::*, //
};

pub(crate) const PAGE_SIZE: u64 = 4096;
pub(crate) const WORDS: usize = 512;

/// The number of HKIDs that the module knows.
const HKIDS: usize = 2048;
/// How many mistakes of the host are printed.
const REPORTS: u32 = 100;

/// What the pattern is made with; 0: what the module stores is not changed.
static PATTERN_FACTOR: AtomicU64 = AtomicU64::new(0);

/// How often the host was found out.
static HOST_ERRORS: AtomicU32 = AtomicU32::new(0);

/// What is to be known of an HKID.
struct Key {
    /// How often it was given back.
    round: AtomicU32,
    /// The pages that were written through it in this round and are not flushed.
    unflushed: AtomicU32,
}

static KEYS: [Key; HKIDS] = [const {
    Key {
        round: AtomicU32::new(0),
        unflushed: AtomicU32::new(0),
    }
}; HKIDS];

/// Whose a page is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Owner {
    Host,
    /// A TD or the module.
    Other,
    /// The host, once lines that were written through this HKID, in this round, are flushed.
    HostUnflushed {
        hkid: u16,
        round: u32,
    },
}

impl Owner {
    const fn encode(self) -> u64 {
        match self {
            Owner::Host => 0,
            Owner::Other => 1,
            Owner::HostUnflushed { hkid, round } => 2 | (hkid as u64) << 16 | (round as u64) << 32,
        }
    }

    const fn decode(raw: u64) -> Self {
        match raw as u8 {
            1 => Owner::Other,
            2 => Owner::HostUnflushed {
                hkid: (raw >> 16) as u16,
                round: (raw >> 32) as u32,
            },
            _ => Owner::Host,
        }
    }
}

/// What is kept of a page of RAM. All zero: it is the host's.
#[repr(C)]
pub(crate) struct PageState {
    /// The sum of the words, unless the page is the host's.
    sum: AtomicU64,
    /// An encoded [`Owner`].
    owner: AtomicU64,
}

impl PageState {
    fn owner(&self) -> Owner {
        Owner::decode(self.owner.load(Ordering::Relaxed))
    }

    fn set_owner(&self, owner: Owner) {
        self.owner.store(owner.encode(), Ordering::Relaxed);
    }

    /// Makes a page that is not flushed the host's. Returns the HKID that it was not flushed of.
    fn settle(&self) -> Option<u16> {
        let former = self.owner();
        let Owner::HostUnflushed { hkid, round } = former else {
            return None;
        };
        let host = Owner::Host.encode();
        self.owner
            .compare_exchange(former.encode(), host, Ordering::Relaxed, Ordering::Relaxed)
            .ok()?;
        let key = KEYS.get(usize::from(hkid))?;
        if key.round.load(Ordering::Relaxed) != round {
            return None;
        }
        key.unflushed.fetch_sub(1, Ordering::Relaxed);
        Some(hkid)
    }
}

/// A page of RAM.
#[derive(Clone, Copy)]
pub(crate) struct Page {
    /// Its address.
    pub(crate) pa: u64,
    /// What it holds.
    pub(crate) words: &'static [AtomicU64; WORDS],
    /// What is known of it; [`None`] if pages are not watched.
    pub(crate) state: Option<&'static PageState>,
}

/// What the word at this address is combined with.
#[inline(always)]
fn pattern(pa: u64) -> u64 {
    let product = (pa >> 3).wrapping_mul(PATTERN_FACTOR.load(Ordering::Relaxed));
    product ^ (product >> 29)
}

/// Which word of its page lies at this address.
#[inline(always)]
fn word_index(pa: u64) -> usize {
    (pa % PAGE_SIZE) as usize >> 3
}

/// What a word at this address adds to the sum of its page.
#[inline(always)]
fn summand(pa: u64, word: u64) -> u64 {
    word.rotate_left((pa >> 3) as u32 % u64::BITS)
}

// Loops over the words of a page are written out: with the kernel's debug assertions, iterators over
// them cost ten times as much.
impl Page {
    /// Whether each change counts.
    #[inline(always)]
    fn is_summed(&self) -> bool {
        let other = Owner::Other.encode();
        self.state
            .is_some_and(|state| state.owner.load(Ordering::Relaxed) == other)
    }

    /// Notes that the sum of the words changed so.
    #[inline(always)]
    fn changed(&self, difference: u64) {
        if let Some(state) = self.state {
            state.sum.fetch_xor(difference, Ordering::Relaxed);
        }
    }

    /// Writes words that nobody else in the module has to do with, until there is no value.
    #[inline(always)]
    fn store(&self, mut pa: u64, value: impl Fn(usize) -> Option<u64>) {
        let first = word_index(pa);
        let mut index = first;
        let mut difference = 0;
        while let (Some(word), Some(value)) =
            (self.words.get(index), value(index.wrapping_sub(first)))
        {
            let new = value ^ pattern(pa);
            difference ^= summand(pa, word.load(Ordering::Relaxed) ^ new);
            word.store(new, Ordering::Relaxed);
            index = index.wrapping_add(1);
            pa = pa.wrapping_add(8);
        }
        if self.is_summed() {
            self.changed(difference);
        }
    }

    fn sum(&self) -> u64 {
        let mut index = 0;
        let mut pa = self.pa;
        let mut sum = 0;
        while let Some(word) = self.words.get(index) {
            sum ^= summand(pa, word.load(Ordering::Relaxed));
            index = index.wrapping_add(1);
            pa = pa.wrapping_add(8);
        }
        sum
    }

    /// Whether the page is as the module left it. The next time, it is all right.
    fn is_untouched(&self, state: &PageState) -> bool {
        let sum = self.sum();
        state.sum.swap(sum, Ordering::Relaxed) == sum
    }
}

/// The memory that a SEAMCALL works on, word by word.
pub(crate) struct Words {
    found: FoundPages,
    /// Whether a page that was found is remembered.
    remember: bool,
}

impl Words {
    /// For one SEAMCALL: the pages that it accesses stay where they are for so long. To find one,
    /// and whether it is mapped, costs several times what an access does.
    #[inline(always)]
    pub(crate) fn for_seamcall() -> Self {
        Self {
            found: FoundPages::new(),
            remember: true,
        }
    }

    /// For who looks without a lock: any page may be unmapped at any time, so each access looks
    /// anew.
    #[inline(always)]
    pub(crate) fn for_onlooker() -> Self {
        Self {
            found: FoundPages::new(),
            remember: false,
        }
    }

    #[inline(always)]
    fn word(&self, pa: u64) -> Option<(Page, &'static AtomicU64)> {
        let page = match self.found.get(pa) {
            Some(page) => page,
            None => self.find(pa)?,
        };
        let word = page.words.get(word_index(pa))?;
        Some((page, word))
    }

    #[cold]
    #[inline(never)]
    fn find(&self, pa: u64) -> Option<Page> {
        let page = ffi::ram_page(pa)?;
        if self.remember {
            self.found.set(page);
        }
        Some(page)
    }

    /// Reads 8 bytes as one access. Memory that does not exist reads as all ones.
    #[inline(always)]
    pub(crate) fn read64(&self, pa: u64) -> u64 {
        self.word(pa).map_or(u64::MAX, |(_, word)| {
            word.load(Ordering::Acquire) ^ pattern(pa)
        })
    }

    /// Writes 8 bytes as one access.
    #[inline]
    pub(crate) fn write64(&self, pa: u64, value: u64) {
        let Some((page, word)) = self.word(pa) else {
            return;
        };
        let new = value ^ pattern(pa);
        if page.is_summed() {
            let old = word.swap(new, Ordering::AcqRel);
            page.changed(summand(pa, old ^ new));
        } else {
            word.store(new, Ordering::Release);
        }
    }

    /// Replaces `current` by `new` as one locked access.
    #[inline(always)]
    pub(crate) fn cas64(&self, pa: u64, current: u64, new: u64) -> Result<u64, u64> {
        let (page, word) = self.word(pa).ok_or(u64::MAX)?;
        let mask = pattern(pa);
        word.compare_exchange(
            current ^ mask,
            new ^ mask,
            Ordering::AcqRel,
            Ordering::Acquire,
        )
        .map_err(|word| word ^ mask)?;
        if page.is_summed() {
            page.changed(summand(pa, current ^ new));
        }
        Ok(current)
    }
}

#[inline(always)]
fn read_masked(mut pa: u64, buffer: &mut [u8], mask: impl Fn(u64) -> u64) {
    let Some(page) = ffi::ram_page(pa) else {
        return buffer.fill(0xff);
    };
    let mut index = word_index(pa);
    let mut rest = buffer;
    while let (Some(word), Some((to, next))) =
        (page.words.get(index), rest.split_first_chunk_mut::<8>())
    {
        *to = (word.load(Ordering::Relaxed) ^ mask(pa)).to_le_bytes();
        rest = next;
        index = index.wrapping_add(1);
        pa = pa.wrapping_add(8);
    }
}

/// Reads whole words of one page.
pub(crate) fn read(pa: u64, buffer: &mut [u8]) {
    read_masked(pa, buffer, pattern);
}

/// The same for memory of the host.
pub(crate) fn read_host(pa: u64, buffer: &mut [u8]) {
    read_masked(pa, buffer, |_| 0);
}

/// Writes whole words of one page.
pub(crate) fn write(pa: u64, bytes: &[u8]) {
    if let Some(page) = ffi::ram_page(pa) {
        page.store(pa, |index| {
            let word = bytes.get(index.wrapping_mul(8)..)?.first_chunk()?;
            Some(u64::from_le_bytes(*word))
        });
    }
}

/// Sets whole words of one page.
pub(crate) fn fill(pa: u64, len: u64, byte: u8) {
    if let Some(page) = ffi::ram_page(pa) {
        let words = (len >> 3) as usize;
        let value = u64::from_le_bytes([byte; 8]);
        page.store(pa, |index| (index < words).then_some(value));
    }
}

/// Copies a page from memory of the host.
pub(crate) fn copy_page(to: u64, from: u64) {
    let Some(page) = ffi::ram_page(to) else {
        return;
    };
    match ffi::ram_page(from) {
        Some(host) => page.store(to, |index| {
            Some(host.words.get(index)?.load(Ordering::Relaxed))
        }),
        None => fill(to, PAGE_SIZE, 0xff),
    }
}

/// The pages of a range that are watched.
fn watched(range: MemoryRange) -> impl Iterator<Item = (Page, &'static PageState)> {
    let pages = (range.size / PAGE_SIZE) as usize;
    (0..pages).filter_map(move |index| {
        let offset = (index as u64).wrapping_mul(PAGE_SIZE);
        let page = ffi::ram_page(range.base.wrapping_add(offset))?;
        let state = page.state?;
        Some((page, state))
    })
}

/// Reports a mistake of the host.
fn report(what: fmt::Arguments<'_>) {
    match HOST_ERRORS.fetch_add(1, Ordering::Relaxed) {
        before if before < REPORTS => pr_warn!("the host {what}\n"),
        REPORTS => pr_warn!("further mistakes of the host are only counted\n"),
        _ => {}
    }
}

fn report_write(pa: u64, page_type: PageType, owner: u64) {
    let owner = if owner == 0 { pa } else { owner };
    report(fmt!(
        "wrote to page {pa:#x}, which is not its own: type {}, TDR {owner:#x}",
        page_type.name()
    ));
}

/// Pages are not the host's any more.
pub(crate) fn taken(range: MemoryRange) {
    for (page, state) in watched(range) {
        if let Some(hkid) = state.settle() {
            report(fmt!(
                "gave page {:#x} away before its cache lines of HKID {hkid} were flushed",
                page.pa
            ));
        }
        state.sum.store(page.sum(), Ordering::Relaxed);
        state.set_owner(Owner::Other);
    }
}

/// A page of a TD is measured.
pub(crate) fn measured(record: &PageRecord) {
    for (page, state) in watched(record.range) {
        if !page.is_untouched(state) {
            report_write(page.pa, record.page_type, record.owner);
        }
    }
}

/// Pages of a TD are the host's again, once they are flushed of that HKID.
pub(crate) fn returned(record: &PageRecord, unflushed: Option<u16>) {
    measured(record);
    let key = unflushed.and_then(|hkid| Some((hkid, KEYS.get(usize::from(hkid))?)));
    for (_, state) in watched(record.range) {
        state.set_owner(match key {
            Some((hkid, key)) => {
                key.unflushed.fetch_add(1, Ordering::Relaxed);
                Owner::HostUnflushed {
                    hkid,
                    round: key.round.load(Ordering::Relaxed),
                }
            }
            None => Owner::Host,
        });
    }
}

/// The cache lines of a page that were written through an HKID are flushed.
pub(crate) fn flushed(pa: u64, hkid: u16) {
    let Some(page) = ffi::ram_page(pa) else {
        return;
    };
    let Some(state) = page.state else {
        return;
    };
    let lines = matches!(state.owner(), Owner::HostUnflushed { hkid: of, .. } if of == hkid);
    if lines && state.settle().is_some() && !page.is_untouched(state) {
        report(fmt!(
            "wrote to page {:#x} before its cache lines of HKID {hkid} were flushed",
            page.pa
        ));
    }
}

/// An HKID is free, and all caches have been flushed of it.
pub(crate) fn key_freed(hkid: u16) {
    if let Some(key) = KEYS.get(usize::from(hkid)) {
        key.round.fetch_add(1, Ordering::Relaxed);
        key.unflushed.store(0, Ordering::Relaxed);
    }
}

/// Looks at all pages that are not the host's. No SEAMCALL may be running.
pub(crate) fn check() {
    let machine = Machine::onlooker();
    for range in (0..).map_while(ffi::cmr) {
        for (page, state) in watched(range) {
            if state.owner() != Owner::Other || page.is_untouched(state) {
                continue;
            }
            let info = MODULE.page_info(&machine, page.pa);
            match info.filter(|info| PageType::OWNED.contains(&info.page_type)) {
                Some(info) => report_write(page.pa, info.page_type, info.owner),
                None => report(fmt!(
                    "wrote to page {:#x}, which is not its own: PAMT",
                    page.pa
                )),
            }
        }
    }
}

/// Whether a page is a TD's or the module's, as far as pages are watched.
pub(crate) fn is_owned(pa: u64) -> bool {
    ffi::ram_page(pa).is_some_and(|page| page.is_summed())
}

/// How often the host was found out.
pub(crate) fn host_errors() -> u32 {
    HOST_ERRORS.load(Ordering::Relaxed)
}

/// The number of pages that were given back and are not flushed.
pub(crate) fn unflushed_pages() -> u32 {
    let counts = KEYS.iter().map(|key| key.unflushed.load(Ordering::Relaxed));
    counts.fold(0, u32::wrapping_add)
}

/// Stores what the module writes so that the host cannot read it, if that is wanted.
pub(crate) fn hide(hidden: bool) {
    let factor = if hidden { 0x9e37_79b9_7f4a_7c15 } else { 0 };
    PATTERN_FACTOR.store(factor, Ordering::Relaxed);
}
