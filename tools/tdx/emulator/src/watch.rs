// SPDX-License-Identifier: GPL-2.0

//! A processor whose accesses to memory are watched.

use crate::{
    machine::{
        Lp,
        Page,
        Word, //
    },
    module::{
        Event,
        FoundPage,
        FoundWord,
        GuestExit,
        GuestVcpu,
        KeyPartition,
        KeyProgram,
        MemoryRange,
        PhysicalLayout,
        Platform, //
    },
};

/// Is told what a leaf does.
pub trait Watch {
    /// An access to memory is about to happen.
    fn access(&self, pa: u64, len: u64, write: bool);

    /// Something happened. No access comes between it and this.
    fn event(&self, _event: Event) {}
}

/// A processor that tells `watch` what leaves do on it.
pub struct Watched<'a, W> {
    /// The processor.
    pub lp: Lp<'a>,
    /// Who is told.
    pub watch: W,
}

/// A page, or a word of one, and who is told of accesses.
pub struct WatchedMemory<'a, T, W> {
    memory: T,
    watch: &'a W,
    pa: u64,
}

impl<T: Copy, W> Clone for WatchedMemory<'_, T, W> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<T: Copy, W> Copy for WatchedMemory<'_, T, W> {}

impl<'a, W: Watch> FoundPage for WatchedMemory<'a, Page<'a>, W> {
    type Word = WatchedMemory<'a, Word<'a>, W>;

    fn word(self, pa: u64) -> Self::Word {
        WatchedMemory {
            memory: self.memory.word(pa),
            watch: self.watch,
            pa,
        }
    }
}

impl<W: Watch> FoundWord for WatchedMemory<'_, Word<'_>, W> {
    fn load(self) -> u64 {
        self.watch.access(self.pa, 8, false);
        self.memory.load()
    }

    fn store(self, value: u64) {
        self.watch.access(self.pa, 8, true);
        self.memory.store(value);
    }

    fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        self.watch.access(self.pa, 8, true);
        self.memory.cas(current, new)
    }

    fn fetch_add(self, delta: u64) -> u64 {
        self.watch.access(self.pa, 8, true);
        self.memory.fetch_add(delta)
    }
}

impl<W: Watch> Platform for Watched<'_, W> {
    type Page<'p>
        = WatchedMemory<'p, Page<'p>, W>
    where
        Self: 'p;

    fn page(&self, pa: u64) -> Self::Page<'_> {
        WatchedMemory {
            memory: self.lp.page(pa),
            watch: &self.watch,
            pa,
        }
    }

    fn read(&self, pa: u64, buffer: &mut [u8]) {
        self.watch.access(pa, buffer.len() as u64, false);
        self.lp.read(pa, buffer);
    }

    fn read_host(&self, pa: u64, buffer: &mut [u8]) {
        self.watch.access(pa, buffer.len() as u64, false);
        self.lp.read_host(pa, buffer);
    }

    fn write(&self, pa: u64, bytes: &[u8]) {
        self.watch.access(pa, bytes.len() as u64, true);
        self.lp.write(pa, bytes);
    }

    fn fill(&self, pa: u64, len: u64, byte: u8) {
        self.watch.access(pa, len, true);
        self.lp.fill(pa, len, byte);
    }

    fn copy_page(&self, to: u64, from: u64) {
        self.watch.access(from, 4096, false);
        self.watch.access(to, 4096, true);
        self.lp.copy_page(to, from);
    }

    fn cmr(&self, index: usize) -> Option<MemoryRange> {
        self.lp.cmr(index)
    }

    fn seam_range(&self) -> Option<MemoryRange> {
        self.lp.seam_range()
    }

    fn layout(&self) -> PhysicalLayout {
        self.lp.layout()
    }

    fn keys(&self) -> KeyPartition {
        self.lp.keys()
    }

    fn current_lp(&self) -> u32 {
        self.lp.current_lp()
    }

    fn lp_count(&self) -> u32 {
        self.lp.lp_count()
    }

    fn current_package(&self) -> u32 {
        self.lp.current_package()
    }

    fn package_count(&self) -> u32 {
        self.lp.package_count()
    }

    fn random64(&self) -> Option<u64> {
        self.lp.random64()
    }

    fn tsc(&self) -> u64 {
        self.lp.tsc()
    }

    fn tsc_hz(&self) -> u64 {
        self.lp.tsc_hz()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.lp.cpuid(leaf, subleaf)
    }

    fn rdmsr(&self, msr: u32) -> u64 {
        self.lp.rdmsr(msr)
    }

    fn xfam(&self) -> u64 {
        self.lp.xfam()
    }

    fn sha384_blocks(&self, state: &mut [u64; 8], blocks: &[u8]) {
        self.lp.sha384_blocks(state, blocks);
    }

    fn program_key(&self, hkid: u16) -> KeyProgram {
        self.lp.program_key(hkid)
    }

    fn interrupt_pending(&self) -> bool {
        self.lp.interrupt_pending()
    }

    fn runs_guests(&self) -> bool {
        self.lp.runs_guests()
    }

    fn enter_guest(&self, vcpu: &GuestVcpu) -> GuestExit {
        self.lp.enter_guest(vcpu)
    }

    fn observe(&self, event: Event) {
        self.watch.event(event);
    }
}
