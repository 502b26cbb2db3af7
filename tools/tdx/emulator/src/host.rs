// SPDX-License-Identifier: GPL-2.0

//! A host that calls the module as Linux does.

use crate::{
    machine::{
        self,
        Machine, //
    },
    module::{
        CallResult,
        LeafInfo,
        LockRecord,
        Module,
        Outcome,
        Platform,
        Profile,
        Regs,
        Status,
        PROFILE_1_5_01, //
    },
    reached,
};

use std::collections::HashMap;

/// The HKID for the module itself, on [`machine::server`].
pub const GLOBAL_HKID: u16 = 32;
/// The first page that a TD may have, on a host that [`Host::start`] started.
pub const FIRST_PAGE: u64 = TDMR_BASE + 0x20_0000;
/// Where the only TDMR of [`Host::start`] lies.
pub const TDMR_BASE: u64 = 0x4000_0000;
/// How large it is.
pub const TDMR_SIZE: u64 = 0x4000_0000;
/// Memory that the host keeps for itself, 64 KiB of it.
pub const HOST_PAGE: u64 = 0x2000_0000;

/// Where the PAMTs lie.
pub const PAMT_BASE: u64 = 0x1000_0000;
/// How much memory the PAMTs have at most.
const PAMT_SIZE: u64 = 0x80_0000;
/// Where the description of the TDMR lies.
pub const TDMR_INFO: u64 = 0x1f00_0000;

/// The numbers of the leaves.
#[allow(missing_docs)]
pub mod leaf {
    pub const VP_ENTER: u64 = 0;
    pub const MNG_ADDCX: u64 = 1;
    pub const MEM_PAGE_ADD: u64 = 2;
    pub const MEM_SEPT_ADD: u64 = 3;
    pub const VP_ADDCX: u64 = 4;
    pub const MEM_PAGE_AUG: u64 = 6;
    pub const MEM_RANGE_BLOCK: u64 = 7;
    pub const MNG_KEY_CONFIG: u64 = 8;
    pub const MNG_CREATE: u64 = 9;
    pub const VP_CREATE: u64 = 10;
    pub const MNG_RD: u64 = 11;
    pub const MR_EXTEND: u64 = 16;
    pub const MR_FINALIZE: u64 = 17;
    pub const VP_FLUSH: u64 = 18;
    pub const MNG_VPFLUSHDONE: u64 = 19;
    pub const MNG_KEY_FREEID: u64 = 20;
    pub const MNG_INIT: u64 = 21;
    pub const VP_INIT: u64 = 22;
    pub const PHYMEM_PAGE_RDMD: u64 = 24;
    pub const MEM_SEPT_RD: u64 = 25;
    pub const VP_RD: u64 = 26;
    pub const MNG_KEY_RECLAIMID: u64 = 27;
    pub const PHYMEM_PAGE_RECLAIM: u64 = 28;
    pub const MEM_PAGE_REMOVE: u64 = 29;
    pub const MEM_SEPT_REMOVE: u64 = 30;
    pub const SYS_KEY_CONFIG: u64 = 31;
    pub const SYS_INIT: u64 = 33;
    pub const SYS_RD: u64 = 34;
    pub const SYS_LP_INIT: u64 = 35;
    pub const SYS_TDMR_INIT: u64 = 36;
    pub const MEM_TRACK: u64 = 38;
    pub const MEM_RANGE_UNBLOCK: u64 = 39;
    pub const PHYMEM_CACHE_WB: u64 = 40;
    pub const PHYMEM_PAGE_WBINVD: u64 = 41;
    pub const VP_WR: u64 = 43;
    pub const SYS_CONFIG: u64 = 45;
    pub const SYS_SHUTDOWN: u64 = 52;
    pub const SYS_UPDATE: u64 = 53;
    pub const SYS_DISABLE: u64 = 69;
}

/// Version 1 of a leaf.
pub const VERSION_1: u64 = 1 << 16;

/// A module on a machine.
pub struct Host {
    /// The machine.
    pub machine: Machine,
    /// The module.
    pub module: Box<Module>,
    /// The processor that calls are made on.
    pub lp: u32,
}

/// The registers for a call: RAX, RCX, RDX, R8, R9.
pub fn regs(rax: u64, operands: &[u64]) -> Regs {
    let operand = |index: usize| operands.get(index).copied().unwrap_or(0);
    Regs {
        rax,
        rcx: operand(0),
        rdx: operand(1),
        r8: operand(2),
        r9: operand(3),
        ..Regs::default()
    }
}

/// Makes a SEAMCALL on a processor.
///
/// # Panics
///
/// If the leaf answers with a status that its declaration does not have.
pub fn seamcall<P: Platform>(module: &Module, lp: &P, regs: &mut Regs) -> Outcome {
    let outcome = module.seamcall(lp, regs);
    let info = LeafInfo::by_number(outcome.leaf).filter(|info| info.modelled);
    if let (Some(info), CallResult::Returned(status)) = (info, outcome.result) {
        assert!(
            info.can_answer(status),
            "{} answers {:?} {:#x}, which it does not declare",
            info.name,
            status.name(),
            status.raw()
        );
        reached::note(outcome.leaf, status);
    }
    outcome
}

impl Host {
    /// A host whose module was just loaded.
    pub fn load(machine: Machine, profile: &'static Profile) -> Self {
        Self {
            machine,
            module: Box::new(Module::new(profile)),
            lp: 0,
        }
    }

    /// A host that has brought the module up.
    pub fn start(profile: &'static Profile) -> Self {
        let host = Self::load(machine::server(1), profile);
        host.bring_up();
        host
    }

    /// Calls a leaf. Returns the status and the registers.
    pub fn call(&self, rax: u64, operands: &[u64]) -> (u64, Regs) {
        let mut regs = regs(rax, operands);
        let outcome = self.seamcall(&mut regs);
        let status = match outcome.result {
            CallResult::Returned(status) => status.raw(),
            CallResult::VmFailInvalid => 0x8000_ff00_ffff_0000,
        };
        (status, regs)
    }

    /// Makes a SEAMCALL with these registers.
    pub fn seamcall(&self, regs: &mut Regs) -> Outcome {
        seamcall(&self.module, &self.machine.lp(self.lp), regs)
    }

    /// Calls a leaf that must succeed.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn ok(&self, rax: u64, operands: &[u64]) -> Regs {
        let (status, regs) = self.call(rax, operands);
        assert_eq!(status, 0, "leaf {rax:#x} {operands:x?}: {status:#x}");
        regs
    }

    /// Calls a leaf that must fail with this status and change nothing.
    ///
    /// # Panics
    ///
    /// If it does not fail so, changes memory, or keeps a lock.
    #[track_caller]
    pub fn fails(&self, rax: u64, operands: &[u64], expected: Status) -> Regs {
        let before = self.memory();
        let regs = self.fails_with_effects(rax, operands, expected);
        assert!(
            self.memory() == before,
            "leaf {rax:#x} {operands:x?} changed memory although it failed"
        );
        regs
    }

    /// A copy of all memory, without the marks in the PAMT by which a host that waits for a page
    /// keeps guests away from it: a leaf that comes next may take those away.
    pub fn memory(&self) -> HashMap<u64, Box<[u8; 4096]>> {
        let mut memory = self.machine.snapshot();
        let pamt = PAMT_BASE / 4096..(PAMT_BASE + PAMT_SIZE) / 4096;
        for (_, page) in memory.iter_mut().filter(|(frame, _)| pamt.contains(frame)) {
            for entry in page.chunks_exact_mut(16) {
                entry[1] &= 0x7f;
            }
        }
        memory
    }

    /// Calls a leaf that must fail with this status, but may change something before.
    ///
    /// # Panics
    ///
    /// If it does not fail so, or keeps a lock.
    #[track_caller]
    pub fn fails_with_effects(&self, rax: u64, operands: &[u64], expected: Status) -> Regs {
        self.machine.take_events();
        let (status, regs) = self.call(rax, operands);
        assert_eq!(
            status,
            expected.raw(),
            "leaf {rax:#x} {operands:x?}: {status:#x}, expected {:#x}",
            expected.raw()
        );
        let held = Machine::held_locks(&self.machine.take_events());
        assert!(held.is_empty(), "leaf {rax:#x} keeps {held:?}");
        regs
    }

    /// Calls a leaf with a lock held by another processor, which must make it fail so.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn busy(&self, record: LockRecord, rax: u64, operands: &[u64], expected: Status) {
        let other = self.machine.lp(1);
        assert!(self.module.hold(&other, record), "cannot hold {record:?}");
        self.fails_with_effects(rax, operands, expected);
        self.module.release(&other, record);
    }

    /// Calls a leaf with a lock held by another processor, which must not hinder it.
    ///
    /// # Panics
    ///
    /// If it does.
    #[track_caller]
    pub fn not_busy(&self, record: LockRecord, rax: u64, operands: &[u64]) -> Regs {
        let other = self.machine.lp(1);
        assert!(self.module.hold(&other, record), "cannot hold {record:?}");
        let regs = self.ok(rax, operands);
        self.module.release(&other, record);
        regs
    }

    /// Initialises the module and all processors.
    pub fn init(&self) {
        self.ok(leaf::SYS_INIT, &[]);
        for lp in 0..self.machine.lp(0).lp_count() {
            self.on(lp).ok_on(leaf::SYS_LP_INIT, &[]);
        }
    }

    /// The first processor of each package.
    fn first_lps(&self) -> Vec<u32> {
        let packages = &self.machine.config().packages;
        let is_first = |lp: &usize| !packages[..*lp].contains(&packages[*lp]);
        let lps = (0..packages.len()).filter(is_first);
        lps.map(|lp| lp as u32).collect()
    }

    /// Writes the description of one TDMR. Returns the operands for TDH.SYS.CONFIG.
    pub fn describe_tdmr(&self) -> [u64; 3] {
        let pages = TDMR_SIZE / 4096;
        let info = [
            TDMR_BASE,
            TDMR_SIZE,
            PAMT_BASE,
            4096,
            PAMT_BASE + 0x1000,
            0x2000,
            PAMT_BASE + 0x10_0000,
            pages * 16,
            TDMR_SIZE - 0x100_0000,
            0x100_0000,
        ];
        for (index, word) in (0..).zip(info) {
            let bytes = word.to_le_bytes();
            self.machine.write_bytes(TDMR_INFO + 8 * index, &bytes);
        }
        let bytes = TDMR_INFO.to_le_bytes();
        self.machine.write_bytes(TDMR_INFO + 4096, &bytes);
        [TDMR_INFO + 4096, 1, u64::from(GLOBAL_HKID)]
    }

    /// Brings up the module with one TDMR.
    pub fn bring_up(&self) {
        self.init();
        self.ok(leaf::SYS_CONFIG, &self.describe_tdmr());
        for lp in self.first_lps() {
            self.on(lp).ok_on(leaf::SYS_KEY_CONFIG, &[]);
        }
        while self.ok(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).rdx < TDMR_BASE + TDMR_SIZE {}
    }

    /// Starts a host with this many packages, of two processors each.
    pub fn start_with_packages(profile: &'static Profile, packages: u32) -> Self {
        let host = Self::load(machine::server(packages), profile);
        host.bring_up();
        host
    }

    /// The same host, seen from another processor.
    pub fn on(&self, lp: u32) -> HostLp<'_> {
        HostLp { host: self, lp }
    }

    /// Writes `TD_PARAMS` that Linux could have written, at [`HOST_PAGE`].
    pub fn write_td_params(&self) {
        let mut params = [0; 1024];
        params[8..16].copy_from_slice(&3u64.to_le_bytes());
        params[16..18].copy_from_slice(&4u16.to_le_bytes());
        params[24..32].copy_from_slice(&0x1e_u64.to_le_bytes());
        params[32..40].copy_from_slice(&4u64.to_le_bytes());
        params[40..42].copy_from_slice(&40u16.to_le_bytes());
        self.machine.write_bytes(HOST_PAGE, &params);
    }
}

/// A processor of a [`Host`].
pub struct HostLp<'a> {
    host: &'a Host,
    lp: u32,
}

impl HostLp<'_> {
    /// Calls a leaf on this processor. Returns the status and the registers.
    pub fn call_on(&self, rax: u64, operands: &[u64]) -> (u64, Regs) {
        let mut regs = regs(rax, operands);
        let outcome = seamcall(&self.host.module, &self.host.machine.lp(self.lp), &mut regs);
        let status = match outcome.result {
            CallResult::Returned(status) => status.raw(),
            CallResult::VmFailInvalid => 0x8000_ff00_ffff_0000,
        };
        (status, regs)
    }

    /// Calls a leaf that must succeed on this processor.
    ///
    /// # Panics
    ///
    /// If it does not.
    #[track_caller]
    pub fn ok_on(&self, rax: u64, operands: &[u64]) -> Regs {
        let (status, regs) = self.call_on(rax, operands);
        assert_eq!(status, 0, "leaf {rax:#x} {operands:x?}: {status:#x}");
        regs
    }
}

/// A TD as a host builds it: pages are taken in order from the one given.
pub struct Td {
    /// Its TDR.
    pub tdr: u64,
    /// Its HKID.
    pub hkid: u16,
    /// Its vCPUs' TDVPRs.
    pub vcpus: Vec<u64>,
    /// All its pages except the TDR.
    pub pages: Vec<u64>,
    /// TDH.MNG.VPFLUSHDONE was called.
    pub ended: bool,
    next: u64,
}

impl Td {
    /// Creates a TD and gives it a key and all control pages.
    pub fn create(host: &Host, first_page: u64, hkid: u16) -> Self {
        let mut td = Self {
            tdr: first_page,
            hkid,
            vcpus: Vec::new(),
            pages: Vec::new(),
            ended: false,
            next: first_page + 4096,
        };
        host.ok(leaf::MNG_CREATE, &[td.tdr, u64::from(hkid)]);
        for lp in host.first_lps() {
            host.on(lp).ok_on(leaf::MNG_KEY_CONFIG, &[td.tdr]);
        }
        for _ in 0..6 {
            let page = td.page();
            host.ok(leaf::MNG_ADDCX, &[page, td.tdr]);
        }
        td
    }

    /// A new page for the TD.
    pub fn page(&mut self) -> u64 {
        self.pages.push(self.next);
        self.next += 4096;
        self.next - 4096
    }

    /// Gives the TD parameters.
    pub fn init(&self, host: &Host) {
        host.write_td_params();
        host.ok(leaf::MNG_INIT, &[self.tdr, HOST_PAGE]);
    }

    /// Adds a vCPU.
    pub fn add_vcpu(&mut self, host: &Host) -> u64 {
        let tdvpr = self.page();
        host.ok(leaf::VP_CREATE, &[tdvpr, self.tdr]);
        for _ in 0..5 {
            let page = self.page();
            host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
        }
        if host.module.profile().name == PROFILE_1_5_01.name {
            host.ok(leaf::VP_INIT, &[tdvpr, 0]);
        } else {
            let id = self.vcpus.len() as u64;
            host.ok(leaf::VP_INIT | VERSION_1, &[tdvpr, 0, id]);
        }
        self.vcpus.push(tdvpr);
        tdvpr
    }

    /// Adds the Secure EPT tables for the first 2 MiB.
    pub fn add_tables(&mut self, host: &Host) {
        for level in [3, 2, 1] {
            let page = self.page();
            host.ok(leaf::MEM_SEPT_ADD, &[level, self.tdr, page]);
        }
    }

    /// Adds a page of initial memory and measures it.
    pub fn add_page(&mut self, host: &Host, gpa: u64, contents: &[u8; 4096]) -> u64 {
        host.machine.write_bytes(HOST_PAGE + 0x1000, contents);
        let page = self.page();
        host.ok(
            leaf::MEM_PAGE_ADD,
            &[gpa, self.tdr, page, HOST_PAGE + 0x1000],
        );
        for chunk in 0..16 {
            host.ok(leaf::MR_EXTEND, &[gpa + 256 * chunk, self.tdr]);
        }
        page
    }

    /// Ends the TD and takes all its pages back.
    pub fn destroy(self, host: &Host) {
        for tdvpr in &self.vcpus {
            host.ok(leaf::VP_FLUSH, &[*tdvpr]);
        }
        self.tear_down(host);
    }

    /// Ends the TD, whose vCPUs are not associated, and takes all its pages back.
    pub fn tear_down(&self, host: &Host) {
        if !self.ended {
            host.ok(leaf::MNG_VPFLUSHDONE, &[self.tdr]);
        }
        for lp in host.first_lps() {
            host.on(lp).ok_on(leaf::PHYMEM_CACHE_WB, &[0]);
        }
        host.ok(leaf::MNG_KEY_FREEID, &[self.tdr]);
        for page in &self.pages {
            host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[*page]);
        }
        host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[self.tdr]);
        let global = u64::from(GLOBAL_HKID) << host.machine.config().layout.address_bits;
        host.ok(leaf::PHYMEM_PAGE_WBINVD, &[self.tdr | global]);
    }
}
