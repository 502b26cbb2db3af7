// SPDX-License-Identifier: GPL-2.0

//! Calls and memory made of arbitrary bytes.
//!
//! [`run`] is what libFuzzer calls (`make fuzz-core`), and what a test calls with random bytes.
//! Whatever the bytes are, the module
//!
//! - answers with a status that the leaf declares, and does not panic;
//! - keeps no lock;
//! - stays within the PAMTs, pages that are a TD's before or after the call, and pages that an
//!   operand names;
//! - ends after a number of accesses to memory that is bounded.
//!
//! The third is not asked for once the host overwrote a page of a TD, which is an error that the
//! processor catches on real hardware: then the module believes what it reads there.

use crate::{
    host::{
        leaf,
        regs,
        seamcall,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE,
        PAMT_BASE,
        TDMR_BASE,
        TDMR_INFO, //
    },
    machine::{
        self,
        GuestAction,
        TdcallRegs, //
    },
    module::{
        Event,
        GuestExit,
        LeafInfo,
        LockRecord,
        MemoryRange,
        Platform,
        SysState,
        PROFILES, //
    },
    watch::{
        Watch,
        Watched, //
    },
};
use std::{
    cell::{
        Cell,
        RefCell, //
    },
    collections::BTreeSet,
};

/// How many calls and writes are made of the bytes at most.
const STEPS: usize = 96;
/// How many words of memory a leaf may touch.
const WORK: u64 = 16 * 1024;
/// The same for a leaf that initialises the PAMT of up to 128 MB.
const PAMT_WORK: u64 = 5 * 32 * 1024;
/// The same for a guest that accepts [`GUEST_STEPS`] pages of 2 MB.
const GUEST_WORK: u64 = WORK + GUEST_STEPS as u64 * 512 * 512;
/// How many things a guest does at most before it cannot be run any more.
const GUEST_STEPS: usize = 4;

/// Takes values off the bytes; zeros once they are used up.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn byte(&mut self) -> u8 {
        let Some((byte, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *byte
    }

    fn word(&mut self) -> u64 {
        u64::from_le_bytes(std::array::from_fn(|_| self.byte()))
    }

    /// An address or other operand: often one that means something.
    fn operand(&mut self) -> u64 {
        let kind = self.byte();
        let n = u64::from(self.byte());
        match kind % 16 {
            0..=5 => FIRST_PAGE + 0x1000 * (n % 64),
            6 | 7 => ((n >> 3) * 0x1000) | (n & 7),
            8 => HOST_PAGE + 0x1000 * (n & 3),
            9 => n,
            10 => (FIRST_PAGE + 0x1000 * (n % 64)) ^ 1 << (self.byte() % 64),
            11 => TDMR_INFO + 0x200 * (n % 16),
            12 => (FIRST_PAGE + 0x20_0000 * n) | u64::from(self.byte() & 7),
            13 => PAMT_BASE + 0x1000 * n,
            14 => FIELDS[n as usize % FIELDS.len()] + u64::from(self.byte() & 31),
            _ => self.word(),
        }
    }
}

impl Bytes<'_> {
    /// What a guest does.
    fn guest_action(&mut self) -> GuestAction {
        let kind = self.byte();
        let operand = self.operand();
        let mut set = TdcallRegs::default();
        set[1] = Some(operand);
        match kind % 4 {
            // Accept a page, ask the host for something, make another TDCALL.
            0 => set[0] = Some(6),
            1 => set[0] = Some(0),
            2 => set[0] = Some(self.word()),
            _ => {
                return GuestAction::ExitInPlace(GuestExit::VmExit {
                    reason: u32::from(self.byte()),
                    qualification: self.word(),
                    gpa: operand,
                    interruption: 0,
                    rip: 0,
                })
            }
        }
        GuestAction::Tdcall(set)
    }
}

/// Where fields of the module, of TDs and of vCPUs begin.
const FIELDS: [u64; 12] = [
    0x0800_0001_0000_0000,
    0x0a00_0003_0000_0008,
    0x9900_0001_0000_0000,
    0x9900_0003_0000_0400,
    0x9110_0003_0000_0000,
    0x9410_0003_0000_0000,
    0x1310_0003_0000_0000,
    0x0024_0003_0000_2000,
    0x0024_0001_0000_0000,
    0x0024_0002_0000_4000,
    0xa020_0003_0000_0000,
    0x2020_0000_0000_0000,
];

/// What a leaf did.
#[derive(Default)]
struct Record {
    frames: RefCell<BTreeSet<u64>>,
    work: Cell<u64>,
    held: RefCell<Vec<LockRecord>>,
    moved: RefCell<Vec<(MemoryRange, bool)>>,
}

impl Watch for &Record {
    fn access(&self, pa: u64, len: u64, _write: bool) {
        self.work.set(self.work.get() + len.div_ceil(8));
        self.frames.borrow_mut().insert(pa >> 12);
    }

    fn event(&self, event: Event) {
        match event {
            Event::LockTaken(record) => self.held.borrow_mut().push(record),
            Event::LockReleased(record) => {
                let mut held = self.held.borrow_mut();
                let place = held.iter().rposition(|other| *other == record);
                held.remove(place.expect("a lock is released that nobody took"));
            }
            Event::PageTaken(page) => self.moved.borrow_mut().push((page.range, true)),
            Event::PageReturned { page, .. } => self.moved.borrow_mut().push((page.range, false)),
            _ => {}
        }
    }
}

/// A host that follows what it gave away.
struct Fuzzed {
    host: Host,
    /// The PAMTs.
    pamts: Vec<MemoryRange>,
    /// The frames of TDs.
    owned: BTreeSet<u64>,
    /// A page of a TD or a PAMT was overwritten.
    corrupted: bool,
}

fn frames(range: MemoryRange) -> impl Iterator<Item = u64> {
    let end = range.base.saturating_add(range.size).div_ceil(4096);
    range.base >> 12..end
}

impl Fuzzed {
    fn is_pamt(&self, frame: u64) -> bool {
        let inside = |range: &MemoryRange| (frame << 12).wrapping_sub(range.base) < range.size;
        self.pamts.iter().any(inside)
    }

    fn address(&self, operand: u64) -> u64 {
        operand & ((1 << self.host.machine.config().layout.address_bits) - 1)
    }

    /// Where the host describes TDMRs for TDH.SYS.CONFIG.
    fn descriptions(&self, list: u64, count: u64) -> Vec<u64> {
        let lp = self.host.machine.lp(0);
        let list = self.address(list) & !7;
        let slots = (0..count.min(64)).map(|index| list.wrapping_add(8 * index));
        slots
            .map(|slot| self.address(lp.read64(slot)) & !7)
            .collect()
    }

    fn call(&mut self, lp: u32, rax: u64, operands: [u64; 4]) {
        let record = Record::default();
        let cpu = Watched {
            lp: self.host.machine.lp(lp),
            watch: &record,
        };
        let number = u64::from(rax as u16);
        let mut allowed: BTreeSet<u64> = operands.map(|pa| self.address(pa) >> 12).into();
        let mut described = Vec::new();
        if number == leaf::SYS_CONFIG {
            described = self.descriptions(operands[0], operands[1]);
            allowed.extend(described.iter().map(|pa| pa >> 12));
        }
        let mut regs = regs(rax, &operands);
        seamcall(&self.host.module, &cpu, &mut regs);

        let held = record.held.borrow();
        assert!(held.is_empty(), "{rax:#x} {operands:x?} keeps {held:?}");
        let bound = match number {
            leaf::SYS_TDMR_INIT => PAMT_WORK,
            leaf::VP_ENTER => GUEST_WORK,
            _ => WORK,
        };
        let work = record.work.get();
        assert!(work <= bound, "{rax:#x} {operands:x?} touches {work} words");
        if number == leaf::SYS_CONFIG && regs.rax == 0 {
            let lp = self.host.machine.lp(0);
            for info in described {
                self.pamts.extend([16, 32, 48].map(|offset| MemoryRange {
                    base: lp.read64(info + offset),
                    size: lp.read64(info + offset + 8),
                }));
            }
        }
        let before = self.owned.clone();
        for (range, taken) in record.moved.borrow().iter() {
            for frame in frames(*range) {
                if *taken {
                    assert!(self.owned.insert(frame) || self.corrupted, "had already");
                } else {
                    assert!(self.owned.remove(&frame) || self.corrupted, "not had");
                }
            }
        }
        if self.corrupted {
            return;
        }
        for frame in record.frames.borrow().iter() {
            let given = before.contains(frame) || self.owned.contains(frame);
            assert!(
                given || allowed.contains(frame) || self.is_pamt(*frame),
                "{rax:#x} {operands:x?} touches {:#x}",
                frame << 12
            );
        }
    }

    /// Writes to memory. What is not the host's only if that is to be tried.
    fn write(&mut self, pa: u64, value: u64, anywhere: bool) {
        let pa = self.address(pa) & !7;
        let foreign = self.owned.contains(&(pa >> 12)) || self.is_pamt(pa >> 12);
        if !foreign || anywhere {
            self.corrupted |= foreign;
            self.host.machine.lp(0).write64(pa, value);
        }
    }

    /// Goes through a part of a usual bring-up, and of the life of a TD.
    fn set_up(&mut self, stage: u8) {
        let host = &self.host;
        let tdmr = host.describe_tdmr();
        host.write_td_params();
        if stage == 0 {
            return;
        }
        host.init();
        if stage == 1 {
            return;
        }
        host.ok(leaf::SYS_CONFIG, &tdmr);
        self.pamts.push(MemoryRange {
            base: PAMT_BASE,
            size: 0x80_0000,
        });
        host.ok(leaf::SYS_KEY_CONFIG, &[]);
        for _ in 0..8 {
            if host.call(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).0 != 0 {
                break;
            }
        }
        if host.module.profile().name != "1.5.05" {
            while host.call(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).0 == 0 {}
        }
        assert_eq!(host.module.sys_state(), SysState::Ready);
        if stage > 2 {
            let mut td = Td::create(host, FIRST_PAGE, 33);
            if stage > 3 {
                td.init(host);
                td.add_tables(host);
            }
            if stage > 4 {
                td.add_vcpu(host);
                td.add_page(host, 0x1000, &[7; 4096]);
            }
            if stage > 5 {
                host.ok(leaf::MR_FINALIZE, &[td.tdr]);
            }
            self.owned.insert(td.tdr >> 12);
            self.owned.extend(td.pages.iter().map(|page| page >> 12));
        }
        host.machine.take_events();
    }
}

/// Does what the bytes say.
///
/// # Panics
///
/// If the module does what it must not.
pub fn run(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let choice = bytes.byte();
    let profile = PROFILES[usize::from(choice & 0xf) % PROFILES.len()];
    let anywhere = choice & 0x10 != 0;
    let stage = (choice >> 5) % 7;
    let mut fuzzed = Fuzzed {
        host: Host::load(machine::server(1), profile),
        pamts: Vec::new(),
        owned: BTreeSet::new(),
        corrupted: false,
    };
    fuzzed.set_up(stage);
    let leaves: Vec<_> = LeafInfo::all().filter(|info| info.modelled).collect();
    for _ in 0..STEPS {
        if bytes.0.is_empty() {
            break;
        }
        let kind = bytes.byte();
        if (0xd0..0xe0).contains(&kind) {
            let steps = 1 + usize::from(kind) % GUEST_STEPS;
            let guest: Vec<_> = (0..steps).map(|_| bytes.guest_action()).collect();
            fuzzed.host.machine.conditions().set_guest(guest);
            continue;
        }
        if kind >= 0xe0 {
            let (page, offset) = (bytes.operand(), u64::from(bytes.byte()));
            let value = bytes.operand();
            fuzzed.write((page & !0xfff) + 8 * offset, value, anywhere);
            continue;
        }
        let (version, lp) = (u64::from(kind >> 4 & 1), u32::from(kind >> 5 & 1));
        let rax = match kind & 0xf {
            0 => bytes.word(),
            _ => {
                let leaf = leaves[usize::from(bytes.byte()) % leaves.len()];
                u64::from(leaf.number) | version << 16
            }
        };
        let operands = std::array::from_fn(|_| bytes.operand());
        fuzzed.call(lp, rax, operands);
    }
}
