// SPDX-License-Identifier: GPL-2.0

//! The machine that the module runs on: this one.

#![deny(unsafe_code)]

use crate::{
    ffi::{
        self,
        Ram, //
    },
    memory::{
        self,
        Anew,
        Find,
        Found, //
    },
    module::{
        Event,
        KeyPartition,
        KeyProgram,
        LockRecord,
        MemoryRange,
        PhysicalLayout,
        Platform,
        Status, //
    }, //
};
use core::{
    cell::Cell,
    marker::PhantomData, //
};

/// Bits of a physical address, HKID included.
const MAX_PHYS_BITS: u32 = 52;

/// How many locks of a SEAMCALL are remembered.
const TRACED_LOCKS: usize = 12;

/// The locks that a SEAMCALL takes, for who wants to know.
pub(crate) struct LockTrace {
    /// In order. If there are more than fit, the last are missing.
    records: [Cell<Option<LockRecord>>; TRACED_LOCKS],
    count: Cell<usize>,
    held: Cell<u32>,
    since: Cell<u64>,
    ticks: Cell<u64>,
}

impl LockTrace {
    /// No lock was taken yet.
    pub(crate) const fn new() -> Self {
        Self {
            records: [const { Cell::new(None) }; TRACED_LOCKS],
            count: Cell::new(0),
            held: Cell::new(0),
            since: Cell::new(0),
            ticks: Cell::new(0),
        }
    }

    /// The locks in order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = LockRecord> + '_ {
        self.records.iter().map_while(Cell::get)
    }

    /// For how many ticks of the time-stamp counter at least one lock was held.
    pub(crate) fn ticks_held(&self) -> u64 {
        self.ticks.get()
    }

    fn taken(&self, record: LockRecord) {
        let count = self.count.get();
        if let Some(slot) = self.records.get(count) {
            slot.set(Some(record));
            self.count.set(count.wrapping_add(1));
        }

        if self.held.get() == 0 {
            self.since.set(ffi::tsc());
        }
        self.held.set(self.held.get().wrapping_add(1));
    }

    fn released(&self) {
        self.held.set(self.held.get().wrapping_sub(1));
        if self.held.get() == 0 {
            let held = ffi::tsc().wrapping_sub(self.since.get());
            self.ticks.set(self.ticks.get().wrapping_add(held));
        }
    }
}

/// The machine, for the duration of one SEAMCALL, or for somebody who looks at it.
pub(crate) struct Machine<'a, F = Found> {
    /// Where pages are found.
    ram: Ram,
    /// How they are found.
    find: PhantomData<F>,
    /// Where to note the locks, if anybody wants to know.
    trace: Option<&'a LockTrace>,
    /// For how many microseconds the leaf of that number is to hold its locks before it returns.
    hold: Cell<Option<(u16, u32)>>,
    /// Whether one of the two is there.
    observes: Cell<bool>,
}

impl<'a> Machine<'a> {
    /// The machine as the SEAMCALL on this processor sees it.
    pub(crate) fn new(trace: Option<&'a LockTrace>) -> Self {
        Self {
            ram: Ram::new(),
            find: PhantomData,
            trace,
            hold: Cell::new(None),
            observes: Cell::new(trace.is_some()),
        }
    }
}

impl Machine<'_, Anew> {
    /// The machine as it is seen from outside of any SEAMCALL.
    pub(crate) fn onlooker() -> Self {
        Self {
            ram: Ram::new(),
            find: PhantomData,
            trace: None,
            hold: Cell::new(None),
            observes: Cell::new(false),
        }
    }
}

impl<F: Find> Platform for Machine<'_, F> {
    type Page<'p>
        = F
    where
        Self: 'p;

    #[inline(always)]
    fn page(&self, pa: u64) -> F {
        F::find(&self.ram, pa)
    }

    fn read(&self, pa: u64, buffer: &mut [u8]) {
        memory::read(pa, buffer);
    }

    fn read_host(&self, pa: u64, buffer: &mut [u8]) {
        memory::read_host(pa, buffer);
    }

    fn write(&self, pa: u64, bytes: &[u8]) {
        memory::write(pa, bytes);
    }

    fn fill(&self, pa: u64, len: u64, byte: u8) {
        memory::fill(pa, len, byte);
    }

    fn copy_page(&self, to: u64, from: u64) {
        memory::copy_page(to, from);
    }

    fn cmr(&self, index: usize) -> Option<MemoryRange> {
        ffi::cmr(index)
    }

    #[inline]
    fn layout(&self) -> PhysicalLayout {
        let keys = self.keys();
        let largest = u64::from(keys.mktme_keys).saturating_add(u64::from(keys.tdx_keys));
        let address_bits = ffi::phys_bits();
        let hkid_bits = u64::BITS.saturating_sub(largest.leading_zeros());

        PhysicalLayout {
            address_bits,
            hkid_bits: hkid_bits.min(MAX_PHYS_BITS.saturating_sub(address_bits)),
        }
    }

    #[inline]
    fn address_bits(&self) -> u32 {
        ffi::phys_bits()
    }

    fn keys(&self) -> KeyPartition {
        let partitioning = ffi::keyid_partitioning();

        KeyPartition {
            mktme_keys: partitioning as u32,
            tdx_keys: (partitioning >> 32) as u32,
        }
    }

    fn current_lp(&self) -> u32 {
        ffi::lp()
    }

    fn lp_count(&self) -> u32 {
        ffi::lp_count()
    }

    fn current_package(&self) -> u32 {
        ffi::package()
    }

    fn package_count(&self) -> u32 {
        ffi::package_count()
    }

    fn random64(&self) -> Option<u64> {
        ffi::random64()
    }

    fn tsc(&self) -> u64 {
        ffi::tsc()
    }

    fn tsc_hz(&self) -> u64 {
        ffi::tsc_hz()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        ffi::cpuid(leaf, subleaf)
    }

    fn rdmsr(&self, msr: u32) -> u64 {
        ffi::rdmsr(msr).unwrap_or(0)
    }

    fn xfam(&self) -> u64 {
        let [xcr0_low, _, _, xcr0_high] = ffi::cpuid(0xd, 0);
        let [_, _, xss_low, xss_high] = ffi::cpuid(0xd, 1);

        u64::from(xcr0_low | xss_low) | u64::from(xcr0_high | xss_high) << 32
    }

    fn sha384_blocks(&self, state: &mut [u64; 8], blocks: &[u8]) {
        ffi::sha384_blocks(state, blocks);
    }

    fn program_key(&self, _hkid: u16) -> KeyProgram {
        if ffi::inject_key_table_busy() {
            KeyProgram::TableBusy
        } else if ffi::inject_no_entropy() {
            KeyProgram::NoEntropy
        } else {
            KeyProgram::Done
        }
    }

    fn flush_page(&self, pa: u64, hkid: u16) {
        memory::flushed(pa, hkid);
    }

    fn inject(&self, leaf: u16) -> Option<Status> {
        let (status, hold_us) = ffi::inject(leaf);
        if hold_us != 0 {
            self.hold.set(Some((leaf, hold_us)));
            self.observes.set(true);
        }
        status.map(Status::from_raw)
    }

    #[inline]
    fn observes(&self) -> bool {
        self.observes.get()
    }

    fn observe(&self, event: Event) {
        let lock_event = matches!(
            event,
            Event::LockTaken(_)
                | Event::LockBusy(_)
                | Event::LockReleasing(_)
                | Event::LockReleased(_)
        );
        if !lock_event {
            page_event(&event);
        } else {
            self.lock_event(&event);
        }
    }
}

/// Keeps track of whose pages are.
#[inline(never)]
fn page_event(event: &Event) {
    match event {
        Event::PageTaken(page) => memory::taken(page.range),
        Event::PamtTaken(range) => memory::taken(*range),
        Event::PageMeasured(page) => memory::measured(page),
        Event::PageReturned { page, unflushed } => memory::returned(page, *unflushed),
        Event::KeyFreed(hkid) => memory::key_freed(*hkid),
        _ => {}
    }
}

impl<F> Machine<'_, F> {
    /// Waits, and measures for how long locks are held.
    #[inline(never)]
    fn lock_event(&self, event: &Event) {
        // A leaf gives its locks back at its end: all are held when the first is about to go.
        if matches!(event, Event::LockReleasing(_)) {
            if let Some((leaf, us)) = self.hold.take() {
                ffi::hold(leaf, us);
            }
        }
        let Some(trace) = self.trace else {
            return;
        };

        match event {
            Event::LockTaken(record) => trace.taken(*record),
            Event::LockReleased(_) => trace.released(),
            _ => {}
        }
    }
}
