// SPDX-License-Identifier: GPL-2.0

//! A machine for the module to run on: sparse memory, processors, keys.

use crate::module::{
    Event,
    FoundPage,
    FoundWord,
    GuestExit,
    GuestVcpu,
    KeyPartition,
    KeyProgram,
    LockRecord,
    MemoryRange,
    PhysicalLayout,
    Platform,
    Regs,
    Smrr, //
};
use sha2::block_api::compress512;
use std::{
    collections::{
        HashMap,
        VecDeque, //
    },
    sync::{
        atomic::{
            AtomicBool,
            Ordering, //
        },
        Condvar,
        Mutex,
        MutexGuard, //
    },
};

const PAGE: usize = 4096;

/// The number of packages that the module knows.
pub const MAX_PACKAGES: u32 = 8;

/// What does not change about a machine.
#[derive(Clone)]
pub struct Config {
    /// How physical addresses are divided.
    pub layout: PhysicalLayout,
    /// How HKIDs are divided.
    pub keys: KeyPartition,
    /// The convertible memory ranges.
    pub cmrs: Vec<MemoryRange>,
    /// The range reserved for SEAM.
    pub seam: Option<MemoryRange>,
    /// The package of each processor.
    pub packages: Vec<u32>,
    /// The frequency of the time-stamp counter.
    pub tsc_hz: u64,
    /// The native CPUID.
    pub cpuid: fn(u32, u32) -> [u32; 4],
}

/// The model-specific registers of the processors, and what goes with them.
#[derive(Clone, Copy, Debug)]
pub struct HostMsrs {
    /// `IA32_TSC_ADJUST`.
    pub tsc_adjust: u64,
    /// `IA32_MISC_ENABLE`.
    pub misc_enable: u64,
    /// `IA32_ARCH_CAPABILITIES`.
    pub arch_capabilities: u64,
    /// The bits of `XCR0` and of `IA32_XSS` that there are.
    pub xfam: u64,
}

/// What tests change about a machine.
#[derive(Clone, Debug)]
pub struct Conditions {
    /// Whether there is entropy.
    pub entropy: bool,
    /// What PCONFIG answers.
    pub program_key: KeyProgram,
    /// Whether an interrupt waits.
    pub interrupt_pending: bool,
    /// The model-specific registers.
    pub msrs: HostMsrs,
    /// The time-stamp counter.
    pub tsc: u64,
    /// How far the time-stamp counter moves each time it is read.
    pub tsc_step: u64,
    /// The range registers of system management mode.
    pub smrr: Option<Smrr>,
    /// What guests do, in order. When there is nothing left, guests cannot run.
    pub guest: VecDeque<GuestAction>,
    /// With what registers guests went on behind a TDCALL that did not exit, since
    /// [`set_guest`](Self::set_guest).
    pub tdcall_results: Vec<Regs>,
    tdcall_pending: bool,
}

impl Conditions {
    /// Says what guests do from now on.
    pub fn set_guest(&mut self, actions: impl IntoIterator<Item = GuestAction>) {
        self.guest = actions.into_iter().collect();
        self.tdcall_results.clear();
        self.tdcall_pending = false;
    }
}

/// What a guest does.
#[derive(Clone, Copy, Debug)]
pub enum GuestAction {
    /// It exits.
    Exit(GuestExit),
    /// It exits at the instruction at which it was entered.
    ExitInPlace(GuestExit),
    /// It executes TDCALL with these values in the registers, which are numbered as in
    /// instructions; what is not named keeps its value.
    Tdcall(TdcallRegs),
    /// It runs until [`Machine::resume_guest`].
    Run,
}

/// The registers that a guest sets for a TDCALL, numbered as in instructions.
pub type TdcallRegs = [Option<u64>; 16];

/// A guest that may be running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Running {
    #[default]
    No,
    Yes,
    ToStop,
}

/// A machine. [`lp`](Self::lp) is a processor of it, which is what a module runs on.
pub struct Machine {
    config: Config,
    memory: Mutex<HashMap<u64, Box<[u8; PAGE]>>>,
    conditions: Mutex<Conditions>,
    events: Mutex<Vec<Event>>,
    hidden: AtomicBool,
    random: Mutex<u64>,
    running: Mutex<Running>,
    running_changed: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|error| error.into_inner())
}

impl Machine {
    /// A machine whose memory is all zero.
    pub fn new(config: Config) -> Self {
        let msrs = HostMsrs {
            tsc_adjust: 0,
            misc_enable: 0x4_0001,
            arch_capabilities: 0x138_fdfb,
            xfam: 0x6_dbe7,
        };
        Self {
            config,
            memory: Mutex::default(),
            conditions: Mutex::new(Conditions {
                entropy: true,
                program_key: KeyProgram::Done,
                interrupt_pending: false,
                msrs,
                tsc: 0,
                tsc_step: 1000,
                smrr: None,
                guest: VecDeque::new(),
                tdcall_results: Vec::new(),
                tdcall_pending: false,
            }),
            events: Mutex::default(),
            hidden: AtomicBool::new(false),
            random: Mutex::new(0x9e37_79b9_7f4a_7c15),
            running: Mutex::default(),
            running_changed: Condvar::new(),
        }
    }

    /// From now on, what the module stores makes no sense to the host, and the other way round.
    pub fn hide(&self) {
        self.hidden.store(true, Ordering::Relaxed);
    }

    /// What the module means by bytes that are stored at `pa`, and the other way round.
    fn translate(&self, pa: u64, bytes: &mut [u8]) {
        if self.hidden.load(Ordering::Relaxed) {
            for (pa, byte) in (pa..).zip(bytes) {
                *byte ^= (pa.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
            }
        }
    }

    /// What does not change about the machine.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Changes what CPUID answers.
    pub fn set_cpuid(&mut self, cpuid: fn(u32, u32) -> [u32; 4]) {
        self.config.cpuid = cpuid;
    }

    /// Changes which package each processor is in.
    pub fn set_packages(&mut self, packages: Vec<u32>) {
        self.config.packages = packages;
    }

    /// What tests change about the machine.
    pub fn conditions(&self) -> MutexGuard<'_, Conditions> {
        lock(&self.conditions)
    }

    /// The processor of that index.
    pub fn lp(&self, index: u32) -> Lp<'_> {
        Lp {
            machine: self,
            index,
        }
    }

    /// What leaves did since this was last called.
    pub fn take_events(&self) -> Vec<Event> {
        std::mem::take(&mut lock(&self.events))
    }

    /// The locks that are held, by the events since they were last taken.
    pub fn held_locks(events: &[Event]) -> Vec<LockRecord> {
        let mut held = Vec::new();
        for event in events {
            match event {
                Event::LockTaken(record) => held.push(*record),
                Event::LockReleased(record) => {
                    let place = held.iter().rposition(|other| other == record);
                    held.remove(place.expect("a lock is released that nobody took"));
                }
                _ => {}
            }
        }
        held
    }

    /// Waits until a guest, entered on another thread, runs.
    pub fn wait_for_guest(&self) {
        self.wait_until_running(Running::Yes);
    }

    /// Lets the guest that runs go on to its next action.
    pub fn resume_guest(&self) {
        self.set_running(Running::ToStop);
    }

    fn set_running(&self, value: Running) {
        *lock(&self.running) = value;
        self.running_changed.notify_all();
    }

    fn wait_until_running(&self, value: Running) {
        let mut running = lock(&self.running);
        while *running != value {
            running = self
                .running_changed
                .wait(running)
                .unwrap_or_else(|error| error.into_inner());
        }
    }

    /// A copy of all memory that is not zero.
    pub fn snapshot(&self) -> HashMap<u64, Box<[u8; PAGE]>> {
        let memory = lock(&self.memory);
        let zero = [0; PAGE];
        let touched = memory.iter().filter(|(_, page)| ***page != zero);
        touched
            .map(|(frame, page)| (*frame, page.clone()))
            .collect()
    }

    fn exists(&self, pa: u64) -> bool {
        let inside = |cmr: &MemoryRange| pa.wrapping_sub(cmr.base) < cmr.size;
        self.config.cmrs.iter().any(inside)
    }

    fn with_page<T>(&self, pa: u64, f: impl FnOnce(&mut [u8; PAGE]) -> T) -> T {
        if !self.exists(pa) {
            return f(&mut [0xff; PAGE]);
        }
        let mut memory = lock(&self.memory);
        let page = memory.entry(pa / PAGE as u64);
        f(page.or_insert_with(|| Box::new([0; PAGE])))
    }

    /// Reads memory of any size.
    pub fn read_bytes(&self, pa: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let mut pa = pa;
        let mut rest = &mut bytes[..];
        while !rest.is_empty() {
            let offset = pa as usize % PAGE;
            let (now, later) = rest.split_at_mut(rest.len().min(PAGE - offset));
            self.with_page(pa, |page| {
                now.copy_from_slice(&page[offset..offset + now.len()]);
            });
            pa += now.len() as u64;
            rest = later;
        }
        bytes
    }

    /// Writes memory of any size.
    pub fn write_bytes(&self, pa: u64, bytes: &[u8]) {
        let mut pa = pa;
        let mut rest = bytes;
        while !rest.is_empty() {
            let offset = pa as usize % PAGE;
            let (now, later) = rest.split_at(rest.len().min(PAGE - offset));
            self.with_page(pa, |page| {
                page[offset..offset + now.len()].copy_from_slice(now);
            });
            pa += now.len() as u64;
            rest = later;
        }
    }
}

/// A processor of a [`Machine`].
#[derive(Clone, Copy)]
pub struct Lp<'a> {
    machine: &'a Machine,
    index: u32,
}

/// A page that the module found: the module must access no other through it.
#[derive(Clone, Copy)]
pub struct Page<'a> {
    machine: &'a Machine,
    frame: u64,
}

impl<'a> FoundPage for Page<'a> {
    type Word = Word<'a>;

    fn word(self, pa: u64) -> Word<'a> {
        let Self { machine, frame } = self;
        assert_eq!(pa / PAGE as u64, frame, "{pa:#x} is in another page");
        Word { machine, pa }
    }
}

/// A word of such a page.
#[derive(Clone, Copy)]
pub struct Word<'a> {
    machine: &'a Machine,
    pa: u64,
}

impl FoundWord for Word<'_> {
    fn load(self) -> u64 {
        let Self { machine, pa } = self;
        let mut value = machine.with_page(pa, |page| *word(page, pa));
        machine.translate(pa, &mut value);
        u64::from_le_bytes(value)
    }

    fn store(self, value: u64) {
        let Self { machine, pa } = self;
        let mut value = value.to_le_bytes();
        machine.translate(pa, &mut value);
        machine.with_page(pa, |page| *word(page, pa) = value);
    }

    fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        let Self { machine, pa } = self;
        machine.with_page(pa, |page| {
            let word = word(page, pa);
            machine.translate(pa, word);
            let value = u64::from_le_bytes(*word);
            if value == current {
                *word = new.to_le_bytes();
            }
            machine.translate(pa, word);
            (value == current).then_some(value).ok_or(value)
        })
    }

    fn fetch_add(self, delta: u64) -> u64 {
        let Self { machine, pa } = self;
        machine.with_page(pa, |page| {
            let word = word(page, pa);
            machine.translate(pa, word);
            let value = u64::from_le_bytes(*word);
            *word = value.wrapping_add(delta).to_le_bytes();
            machine.translate(pa, word);
            value
        })
    }
}

fn word(page: &mut [u8; PAGE], pa: u64) -> &mut [u8; 8] {
    assert_eq!(pa % 8, 0, "unaligned access to {pa:#x}");
    let offset = pa as usize % PAGE;
    (&mut page[offset..offset + 8]).try_into().unwrap()
}

fn part(page: &mut [u8; PAGE], pa: u64, len: usize) -> &mut [u8] {
    let offset = pa as usize % PAGE;
    assert!(offset + len <= PAGE, "{pa:#x}+{len:#x} crosses a page");
    &mut page[offset..offset + len]
}

impl<'a> Platform for Lp<'a> {
    type Page<'p>
        = Page<'a>
    where
        Self: 'p;

    fn page(&self, pa: u64) -> Page<'a> {
        Page {
            machine: self.machine,
            frame: pa / PAGE as u64,
        }
    }

    fn read(&self, pa: u64, buffer: &mut [u8]) {
        self.read_host(pa, buffer);
        self.machine.translate(pa, buffer);
    }

    fn read_host(&self, pa: u64, buffer: &mut [u8]) {
        self.machine.with_page(pa, |page| {
            buffer.copy_from_slice(part(page, pa, buffer.len()))
        });
    }

    fn write(&self, pa: u64, bytes: &[u8]) {
        self.machine.with_page(pa, |page| {
            let part = part(page, pa, bytes.len());
            part.copy_from_slice(bytes);
            self.machine.translate(pa, part);
        });
    }

    fn fill(&self, pa: u64, len: u64, byte: u8) {
        let frame = pa / PAGE as u64;
        let hidden = self.machine.hidden.load(Ordering::Relaxed);
        if byte == 0 && !hidden && !lock(&self.machine.memory).contains_key(&frame) {
            return;
        }
        self.machine.with_page(pa, |page| {
            let part = part(page, pa, len as usize);
            part.fill(byte);
            self.machine.translate(pa, part);
        });
    }

    fn copy_page(&self, to: u64, from: u64) {
        let copy = self.machine.with_page(from, |page| *page);
        self.write(to, &copy);
    }

    fn cmr(&self, index: usize) -> Option<MemoryRange> {
        self.machine.config.cmrs.get(index).copied()
    }

    fn seam_range(&self) -> Option<MemoryRange> {
        self.machine.config.seam
    }

    fn smrr(&self) -> Option<Smrr> {
        self.machine.conditions().smrr
    }

    fn layout(&self) -> PhysicalLayout {
        self.machine.config.layout
    }

    fn keys(&self) -> KeyPartition {
        self.machine.config.keys
    }

    fn current_lp(&self) -> u32 {
        self.index
    }

    fn lp_count(&self) -> u32 {
        self.machine.config.packages.len() as u32
    }

    fn current_package(&self) -> u32 {
        self.machine.config.packages[self.index as usize]
    }

    fn package_count(&self) -> u32 {
        let last = self.machine.config.packages.iter().max();
        last.map_or(0, |last| last + 1)
    }

    fn random64(&self) -> Option<u64> {
        if !self.machine.conditions().entropy {
            return None;
        }
        let mut random = lock(&self.machine.random);
        // xorshift
        *random ^= *random << 13;
        *random ^= *random >> 7;
        *random ^= *random << 17;
        Some(*random)
    }

    fn tsc(&self) -> u64 {
        let mut conditions = self.machine.conditions();
        conditions.tsc += conditions.tsc_step;
        conditions.tsc
    }

    fn tsc_hz(&self) -> u64 {
        self.machine.config.tsc_hz
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        (self.machine.config.cpuid)(leaf, subleaf)
    }

    fn rdmsr(&self, msr: u32) -> u64 {
        let msrs = self.machine.conditions().msrs;
        match msr {
            0x3b => msrs.tsc_adjust,
            0x10a => msrs.arch_capabilities,
            0x1a0 => msrs.misc_enable,
            _ => 0,
        }
    }

    fn xfam(&self) -> u64 {
        self.machine.conditions().msrs.xfam
    }

    fn sha384_blocks(&self, state: &mut [u64; 8], blocks: &[u8]) {
        assert_eq!(blocks.len() % 128, 0, "not whole blocks");
        for block in blocks.chunks_exact(128) {
            let block = block.try_into().expect("a chunk has 128 bytes");
            compress512(state, &[block]);
        }
    }

    fn program_key(&self, _hkid: u16) -> KeyProgram {
        self.machine.conditions().program_key
    }

    fn interrupt_pending(&self) -> bool {
        self.machine.conditions().interrupt_pending
    }

    fn has_local_attestation(&self) -> bool {
        true
    }

    fn runs_guests(&self) -> bool {
        true
    }

    fn enter_guest(&self, vcpu: &GuestVcpu) -> GuestExit {
        let mut conditions = self.machine.conditions();
        if std::mem::take(&mut conditions.tdcall_pending) {
            conditions.tdcall_results.push(vcpu.regs);
        }
        drop(conditions);
        loop {
            let action = self.machine.conditions().guest.pop_front();
            match action {
                None => return GuestExit::Unsupported,
                Some(GuestAction::Exit(exit)) => return exit,
                Some(GuestAction::ExitInPlace(mut exit)) => {
                    if let GuestExit::VmExit { rip, .. } = &mut exit {
                        *rip = vcpu.rip;
                    }
                    return exit;
                }
                Some(GuestAction::Tdcall(set)) => {
                    self.machine.conditions().tdcall_pending = true;
                    let mut registers = vcpu.regs.to_array();
                    for (register, value) in registers.iter_mut().zip(set) {
                        *register = value.unwrap_or(*register);
                    }
                    return GuestExit::Tdcall(Regs::from_array(registers));
                }
                Some(GuestAction::Run) => {
                    self.machine.set_running(Running::Yes);
                    self.machine.wait_until_running(Running::ToStop);
                    self.machine.set_running(Running::No);
                }
            }
        }
    }

    fn observe(&self, event: Event) {
        lock(&self.machine.events).push(event);
    }
}

/// The native CPUID of a server processor with all that TDX knows of.
pub fn server_cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    match (leaf, subleaf) {
        (0, _) => [0x23, 0x756e_6547, 0x6c65_746e, 0x4965_6e69],
        (1, _) => [0x8_06f8, 0x20_0800, 0xf7fe_efbf, 0xbfeb_fbff],
        (4, 0) => [0x7c00_4121, 0x2c0_003f, 0x3f, 0],
        (4, 1) => [0x7c00_4122, 0x1c0_003f, 0x3f, 0],
        (4, 2) => [0x7c00_4143, 0x3c0_003f, 0x7ff, 0],
        (4, 3) => [0x7c0f_c163, 0x380_003f, 0x1_bfff, 4],
        (5, _) => [0x40, 0x40, 3, 0x2020],
        (7, 0) => [2, 0xf1bf_bfdb, 0xfb41_7f64, 0xfd0d_4412],
        (7, 1) => [0x1d30, 0, 0, 0],
        (7, 2) => [0, 0, 0, 0x3f],
        (0xa, _) => [0x830_0805, 0, 0, 0x8604],
        (0xd, 0) => [0x6_02e7, 0x2b00, 0x2b00, 0],
        (0xd, 1) => [0x1f, 0x2b00, 0xd900, 0],
        (0xd, 2) => [0x100, 0x240, 0, 0],
        (0xd, 5) => [0x40, 0x440, 0, 0],
        (0xd, 6) => [0x200, 0x480, 0, 0],
        (0xd, 7) => [0x400, 0x680, 0, 0],
        (0xd, 8) => [0x80, 0, 1, 0],
        (0xd, 9) => [8, 0xa80, 0, 0],
        (0xd, 11) => [0x10, 0, 1, 0],
        (0xd, 12) => [0x18, 0, 1, 0],
        (0xd, 14) => [0x30, 0, 3, 0],
        (0xd, 15) => [0x328, 0, 1, 0],
        (0xd, 17) => [0x40, 0xac0, 2, 0],
        (0xd, 18) => [0x2000, 0xb00, 6, 0],
        (0x14, 0) => [1, 0, 0, 0],
        (0x8000_0000, _) => [0x8000_0008, 0, 0, 0],
        (0x8000_0001, _) => [0, 0, 0x121, 0x2c10_0800],
        (0x8000_0007, _) => [0, 0, 0, 0x100],
        (0x8000_0008, _) => [0x3934, 0x200, 0, 0],
        _ => [0; 4],
    }
}

/// The machine of the recorded behaviour: 46 address bits, 31 MK-TME and 32 TDX keys, two
/// processors in each of `packages` packages.
pub fn server(packages: u32) -> Machine {
    Machine::new(Config {
        layout: PhysicalLayout {
            address_bits: 46,
            hkid_bits: 6,
        },
        keys: KeyPartition {
            mktme_keys: 31,
            tdx_keys: 32,
        },
        cmrs: vec![MemoryRange {
            base: 0x100_0000,
            size: 0xff00_0000,
        }],
        seam: Some(MemoryRange {
            base: 0xff_f000_0000,
            size: 0x200_0000,
        }),
        packages: (0..packages).flat_map(|package| [package; 2]).collect(),
        tsc_hz: 2_000_000_000,
        cpuid: server_cpuid,
    })
}
