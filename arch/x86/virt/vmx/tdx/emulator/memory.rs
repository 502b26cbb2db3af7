// SPDX-License-Identifier: GPL-2.0

//! The memory that the module works on: this machine's, made unreadable to the host.
//!
//! What a real module or a TD stores is encrypted with a key that the host does not have. Here a
//! number is added to each word that depends on the page. So a page makes no sense to the host once
//! the module has written to it, and none when it has been given back, until the host writes to it.
//! Anybody can undo that: it finds mistakes and keeps no secrets.
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
        Ram, //
    },
    machine::Machine,
    module::{
        FoundPage,
        FoundWord,
        MemoryRange,
        PageRecord,
        PageType, //
    },
    MODULE, //
};
use core::sync::atomic::{
    AtomicBool,
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

/// What the numbers are made with that are added; 0: what the module stores is not changed.
static MASK_FACTOR: AtomicU64 = AtomicU64::new(0);

/// Whether pages are watched. If not, each stays the host's.
static WATCHED: AtomicBool = AtomicBool::new(false);

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

    /// Whether each change of a word counts.
    #[inline(always)]
    fn is_summed(&self) -> bool {
        self.owner.load(Ordering::Relaxed) == Owner::Other.encode()
    }

    /// Notes that the sum of the words changed so.
    #[inline(always)]
    fn changed(&self, difference: u64) {
        self.sum.fetch_add(difference, Ordering::Relaxed);
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
    /// What it holds.
    pub(crate) words: &'static [AtomicU64; WORDS],
    /// What the module adds to each word.
    pub(crate) mask: u64,
    /// What is known of it.
    pub(crate) state: &'static PageState,
}

/// What the module adds to each word of the page that `pa` lies in.
#[inline(always)]
pub(crate) fn mask(pa: u64) -> u64 {
    let product = (pa / PAGE_SIZE).wrapping_mul(MASK_FACTOR.load(Ordering::Relaxed));
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
    // An odd factor, so that any change of a word changes the sum.
    word.wrapping_mul(pa | 1)
}

// Loops over the words of a page are written out: with the kernel's debug assertions, iterators over
// them cost ten times as much.
impl Page {
    /// Writes words that nobody else in the module has to do with, until there is no value.
    #[inline(always)]
    fn store(&self, mut pa: u64, value: impl Fn(usize) -> Option<u64>) {
        let first = word_index(pa);
        let mut index = first;
        let mut difference = 0;
        while let (Some(word), Some(value)) =
            (self.words.get(index), value(index.wrapping_sub(first)))
        {
            let new = value.wrapping_add(self.mask);
            let change = new.wrapping_sub(word.load(Ordering::Relaxed));
            difference = summand(pa, change).wrapping_add(difference);
            word.store(new, Ordering::Relaxed);
            index = index.wrapping_add(1);
            pa = pa.wrapping_add(8);
        }
        if self.state.is_summed() {
            self.state.changed(difference);
        }
    }

    /// The sum of the words of the page at this address.
    fn sum(&self, mut pa: u64) -> u64 {
        let mut index = 0;
        let mut sum = 0;
        while let Some(word) = self.words.get(index) {
            sum = summand(pa, word.load(Ordering::Relaxed)).wrapping_add(sum);
            index = index.wrapping_add(1);
            pa = pa.wrapping_add(8);
        }
        sum
    }

    /// Whether the page is as the module left it. The next time, it is all right.
    fn is_untouched(&self, pa: u64) -> bool {
        let sum = self.sum(pa);
        self.state.sum.swap(sum, Ordering::Relaxed) == sum
    }
}

/// A page as a SEAMCALL finds it: it stays where it is for so long.
#[derive(Clone, Copy)]
pub(crate) struct Found(Option<Page>);

impl FoundPage for Found {
    type Word = Word;

    #[inline(always)]
    fn word(self, pa: u64) -> Word {
        let word = |page: Page| {
            Some(MemoryWord {
                word: page.words.get(word_index(pa))?,
                mask: page.mask,
                pa,
                state: page.state,
            })
        };
        Word(self.0.and_then(word))
    }
}

/// A word of such a page, if there is memory.
#[derive(Clone, Copy)]
pub(crate) struct Word(Option<MemoryWord>);

#[derive(Clone, Copy)]
struct MemoryWord {
    word: &'static AtomicU64,
    /// What is added to it.
    mask: u64,
    pa: u64,
    state: &'static PageState,
}

impl FoundWord for Word {
    #[inline(always)]
    fn load(self) -> u64 {
        self.0.map_or(u64::MAX, |at| {
            at.word.load(Ordering::Acquire).wrapping_sub(at.mask)
        })
    }

    #[inline(always)]
    fn store(self, value: u64) {
        let Some(at) = self.0 else {
            return;
        };
        let new = value.wrapping_add(at.mask);
        if at.state.is_summed() {
            let old = at.word.swap(new, Ordering::AcqRel);
            at.state.changed(summand(at.pa, new.wrapping_sub(old)));
        } else {
            at.word.store(new, Ordering::Release);
        }
    }

    #[inline(always)]
    fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        let at = self.0.ok_or(u64::MAX)?;
        at.word
            .compare_exchange(
                current.wrapping_add(at.mask),
                new.wrapping_add(at.mask),
                Ordering::AcqRel,
                Ordering::Acquire,
            )
            .map_err(|word| word.wrapping_sub(at.mask))?;
        if at.state.is_summed() {
            at.state.changed(summand(at.pa, new.wrapping_sub(current)));
        }
        Ok(current)
    }

    #[inline(always)]
    fn fetch_add(self, delta: u64) -> u64 {
        let Some(at) = self.0 else {
            return u64::MAX;
        };
        let old = at.word.fetch_add(delta, Ordering::AcqRel);
        if at.state.is_summed() {
            at.state.changed(summand(at.pa, delta));
        }
        old.wrapping_sub(at.mask)
    }
}

/// A page for who looks at it without a lock. It may be unmapped at any time, so each access finds
/// it anew.
#[derive(Clone, Copy)]
pub(crate) struct Anew;

impl FoundPage for Anew {
    type Word = AnewWord;

    fn word(self, pa: u64) -> AnewWord {
        AnewWord(pa)
    }
}

/// A word of such a page.
#[derive(Clone, Copy)]
pub(crate) struct AnewWord(u64);

impl AnewWord {
    fn find(self) -> Word {
        Found(ffi::ram_page(self.0)).word(self.0)
    }
}

impl FoundWord for AnewWord {
    fn load(self) -> u64 {
        self.find().load()
    }

    fn store(self, value: u64) {
        self.find().store(value);
    }

    fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        self.find().cas(current, new)
    }

    fn fetch_add(self, delta: u64) -> u64 {
        self.find().fetch_add(delta)
    }
}

/// How a page is found.
pub(crate) trait Find: FoundPage {
    /// The page that `pa` lies in.
    fn find(ram: &Ram, pa: u64) -> Self;
}

impl Find for Found {
    #[inline(always)]
    fn find(ram: &Ram, pa: u64) -> Self {
        Self(ram.page(pa))
    }
}

impl Find for Anew {
    fn find(_ram: &Ram, _pa: u64) -> Self {
        Self
    }
}

/// Reads whole words of one page, in each of which `mask` is added.
#[inline(always)]
fn read_masked(pa: u64, buffer: &mut [u8], mask: impl Fn(&Page) -> u64) {
    let Some(page) = ffi::ram_page(pa) else {
        return buffer.fill(0xff);
    };
    let mask = mask(&page);
    let mut index = word_index(pa);
    let mut rest = buffer;
    while let (Some(word), Some((to, next))) =
        (page.words.get(index), rest.split_first_chunk_mut::<8>())
    {
        *to = word
            .load(Ordering::Relaxed)
            .wrapping_sub(mask)
            .to_le_bytes();
        rest = next;
        index = index.wrapping_add(1);
    }
}

/// Reads whole words of one page.
pub(crate) fn read(pa: u64, buffer: &mut [u8]) {
    read_masked(pa, buffer, |page| page.mask);
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
fn watched(range: MemoryRange) -> impl Iterator<Item = (u64, Page)> {
    let pages = (range.size / PAGE_SIZE) as usize;
    (0..pages).filter_map(move |index| {
        let offset = (index as u64).wrapping_mul(PAGE_SIZE);
        let pa = range.base.wrapping_add(offset);
        let page = ffi::ram_page(pa)?;
        WATCHED.load(Ordering::Relaxed).then_some((pa, page))
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
    for (pa, page) in watched(range) {
        if let Some(hkid) = page.state.settle() {
            report(fmt!(
                "gave page {pa:#x} away before its cache lines of HKID {hkid} were flushed"
            ));
        }
        page.state.sum.store(page.sum(pa), Ordering::Relaxed);
        page.state.set_owner(Owner::Other);
    }
}

/// A page of a TD is measured.
pub(crate) fn measured(record: &PageRecord) {
    for (pa, page) in watched(record.range) {
        if !page.is_untouched(pa) {
            report_write(pa, record.page_type, record.owner);
        }
    }
}

/// Pages of a TD are the host's again, once they are flushed of that HKID.
pub(crate) fn returned(record: &PageRecord, unflushed: Option<u16>) {
    measured(record);
    let key = unflushed.and_then(|hkid| Some((hkid, KEYS.get(usize::from(hkid))?)));
    for (_, page) in watched(record.range) {
        page.state.set_owner(match key {
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
    let state = page.state;
    let lines = matches!(state.owner(), Owner::HostUnflushed { hkid: of, .. } if of == hkid);
    if lines && state.settle().is_some() && !page.is_untouched(pa) {
        report(fmt!(
            "wrote to page {pa:#x} before its cache lines of HKID {hkid} were flushed"
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
        for (pa, page) in watched(range) {
            if page.state.owner() != Owner::Other || page.is_untouched(pa) {
                continue;
            }
            let info = MODULE.page_info(&machine, pa);
            match info.filter(|info| PageType::OWNED.contains(&info.page_type)) {
                Some(info) => report_write(pa, info.page_type, info.owner),
                None => report(fmt!("wrote to page {pa:#x}, which is not its own: PAMT")),
            }
        }
    }
}

/// Whether a page is a TD's or the module's, as far as pages are watched.
pub(crate) fn is_owned(pa: u64) -> bool {
    ffi::ram_page(pa).is_some_and(|page| page.state.is_summed())
}

/// The same, and [`true`] of each page if none is watched.
pub(crate) fn may_be_owned(pa: u64) -> bool {
    !WATCHED.load(Ordering::Relaxed) || is_owned(pa)
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

/// Stores what the module writes so that the host cannot read it, and watches whose pages are, if
/// that is wanted.
pub(crate) fn hide(hidden: bool) {
    WATCHED.store(hidden, Ordering::Relaxed);
    let factor = if hidden { 0x9e37_79b9_7f4a_7c15 } else { 0 };
    MASK_FACTOR.store(factor, Ordering::Relaxed);
}
