// SPDX-License-Identifier: GPL-2.0

//! What a SEAMCALL costs: the debugfs files `bench` and `bench_profile`.
//!
//! A TD is taken through its life, over and over: once by SEAMCALLs as Linux makes them, once with
//! the same registers handed to the module without a trap. The difference is the trap. A line for
//! each call says what it was, how it was made, how it ended, and how many ticks of the time-stamp
//! counter it took. In a profile the instructions of each function are counted instead; those are on
//! lines of their own, before that of the call.

#![deny(unsafe_code)]

use crate::{
    ffi::{
        self,
        Way, //
    },
    module::LeafInfo, //
};
use core::sync::atomic::Ordering;
use kernel::seq_file::{
    seq_print,
    SeqFile, //
};

const VP_ENTER: u64 = 0;
const MNG_ADDCX: u64 = 1;
const MEM_PAGE_ADD: u64 = 2;
const MEM_SEPT_ADD: u64 = 3;
const VP_ADDCX: u64 = 4;
const MEM_PAGE_AUG: u64 = 6;
const MEM_RANGE_BLOCK: u64 = 7;
const MNG_KEY_CONFIG: u64 = 8;
const MNG_CREATE: u64 = 9;
const VP_CREATE: u64 = 10;
const MNG_RD: u64 = 11;
const MR_EXTEND: u64 = 16;
const MR_FINALIZE: u64 = 17;
const VP_FLUSH: u64 = 18;
const MNG_VPFLUSHDONE: u64 = 19;
const MNG_KEY_FREEID: u64 = 20;
const MNG_INIT: u64 = 21;
const VP_INIT: u64 = 22 | 1 << 16;
const PHYMEM_PAGE_RDMD: u64 = 24;
const VP_RD: u64 = 26;
const PHYMEM_PAGE_RECLAIM: u64 = 28;
const MEM_PAGE_REMOVE: u64 = 29;
const SYS_RD: u64 = 34;
const MEM_TRACK: u64 = 38;
const PHYMEM_CACHE_WB: u64 = 40;
const PHYMEM_PAGE_WBINVD: u64 = 41;
const VP_WR: u64 = 43;
/// No module has a leaf of this number.
const NO_LEAF: u64 = 127;

/// The module's version, its major number.
const SYS_FIELD: u64 = 0x0800_0001_0000_0003;
/// The measurement of a TD, the first word.
const TD_FIELD: u64 = 0x1310_0003_0000_0000;
/// A field of a vCPU's VMCS that the host may write: the notify window.
const VP_FIELD: u64 = 0x4024;
/// There is no such field.
const NO_FIELD: u64 = u64::MAX;

/// How many pages of memory a TD is given before it can run, and as many after.
const PAGES: u64 = 4;
/// How many parts of a page are measured at a time.
const CHUNKS: u64 = 16;
/// The first guest-physical address of the pages.
const GPA: u64 = 0x1000;
/// Nothing is there.
const NO_GPA: u64 = 0x10_0000;

/// What a call is for.
#[derive(Clone, Copy)]
enum Kind {
    /// It looks at something, changes nothing, and succeeds or is refused.
    Checks,
    /// It changes something.
    Works,
}

/// A life of a TD, in progress.
struct Life<'a> {
    m: &'a SeqFile,
    way: Way,
    hkid: u64,
    /// A page that stays the host's.
    host_page: u64,
    next_page: u64,
    tdr: u64,
    /// Whether every call ended as it should.
    good: bool,
}

impl Life<'_> {
    /// Makes a call and writes down what it cost. Returns whether it succeeded.
    fn call(&mut self, kind: Kind, what: &str, rax: u64, operands: [u64; 4]) -> bool {
        let (status, ticks) = ffi::bench_seamcall(self.m, rax, operands, self.way);
        let name = LeafInfo::by_number(rax as u16).map_or("-", |info| info.name);
        let how = match self.way {
            Way::Trap => "trap",
            Way::Core => "core",
            Way::Profile => "profile",
        };
        let kind = match kind {
            Kind::Checks => "checks",
            Kind::Works => "works",
        };

        seq_print!(self.m, "{name} {kind} {how} {ticks} {status:#x} {what}\n");
        // An error, or the end of a vCPU or a TD.
        status >> 62 == 0
    }

    /// A call that changes something.
    fn works(&mut self, rax: u64, operands: [u64; 4]) {
        self.good &= self.call(Kind::Works, "works", rax, operands);
    }

    /// A call that only reads.
    fn reads(&mut self, rax: u64, operands: [u64; 4]) {
        self.good &= self.call(Kind::Checks, "reads", rax, operands);
    }

    /// A call that is refused.
    fn refused(&mut self, why: &str, rax: u64, operands: [u64; 4]) {
        self.good &= !self.call(Kind::Checks, why, rax, operands);
    }

    /// A page that the TD does not have yet.
    fn page(&mut self) -> u64 {
        self.next_page = self.next_page.wrapping_add(ffi::PAGE);
        self.next_page
    }

    fn create(&mut self) {
        let (tdr, hkid) = (self.tdr, self.hkid);

        self.works(MNG_CREATE, [tdr, hkid, 0, 0]);
        self.refused("page in use", MNG_CREATE, [tdr, hkid, 0, 0]);
        self.refused(
            "no control structure",
            MNG_INIT,
            [tdr, self.host_page, 0, 0],
        );
        self.works(MNG_KEY_CONFIG, [tdr, 0, 0, 0]);
        self.refused("has a key", MNG_KEY_CONFIG, [tdr, 0, 0, 0]);
        self.refused("page in use", MNG_ADDCX, [tdr, tdr, 0, 0]);
        for _ in 0..6 {
            let page = self.page();
            self.works(MNG_ADDCX, [page, tdr, 0, 0]);
        }
        self.refused(
            "parameters not aligned",
            MNG_INIT,
            [tdr, self.host_page | 8, 0, 0],
        );
        self.works(MNG_INIT, [tdr, self.host_page, 0, 0]);
        self.refused("initialised", MNG_INIT, [tdr, self.host_page, 0, 0]);
        self.reads(MNG_RD, [tdr, TD_FIELD, 0, 0]);
        self.refused("no such field", MNG_RD, [tdr, NO_FIELD, 0, 0]);
        self.reads(SYS_RD, [0, SYS_FIELD, 0, 0]);
    }

    fn add_vcpu(&mut self) -> u64 {
        let (tdr, tdvpr) = (self.tdr, self.page());

        self.refused("page in use", VP_CREATE, [tdr, tdr, 0, 0]);
        self.works(VP_CREATE, [tdvpr, tdr, 0, 0]);
        for _ in 0..5 {
            let page = self.page();
            self.works(VP_ADDCX, [page, tdvpr, 0, 0]);
        }
        self.refused("page in use", VP_ADDCX, [tdvpr, tdvpr, 0, 0]);
        self.works(VP_INIT, [tdvpr, 0, 0, 0]);
        self.refused("initialised", VP_INIT, [tdvpr, 0, 0, 0]);
        self.works(VP_WR, [tdvpr, VP_FIELD, 1, u64::MAX]);
        self.reads(VP_RD, [tdvpr, VP_FIELD, 0, 0]);
        self.refused("no such field", VP_RD, [tdvpr, NO_FIELD, 0, 0]);
        self.refused("no such field", VP_WR, [tdvpr, NO_FIELD, 0, 0]);
        tdvpr
    }

    fn add_memory(&mut self) {
        let tdr = self.tdr;
        let source = self.host_page;
        let gpas = || (GPA..).step_by(ffi::PAGE as usize).take(PAGES as usize);

        self.refused("no tables", MEM_PAGE_ADD, [GPA, tdr, source, source]);
        for level in [3, 2, 1] {
            let page = self.page();
            self.works(MEM_SEPT_ADD, [level, tdr, page, 0]);
        }
        self.refused("table there", MEM_SEPT_ADD, [1, tdr, source, 0]);
        for gpa in gpas() {
            let page = self.page();
            self.works(MEM_PAGE_ADD, [gpa, tdr, page, source]);
            for chunk in 0..CHUNKS {
                self.works(MR_EXTEND, [gpa | chunk << 8, tdr, 0, 0]);
            }
        }
        self.refused("page there", MEM_PAGE_ADD, [GPA, tdr, source, source]);
        self.refused("not aligned", MR_EXTEND, [GPA | 8, tdr, 0, 0]);
        self.refused("not mapped", MR_EXTEND, [NO_GPA, tdr, 0, 0]);
        self.works(MR_FINALIZE, [tdr, 0, 0, 0]);
        self.refused("finalised", MR_FINALIZE, [tdr, 0, 0, 0]);
        self.refused("finalised", MR_EXTEND, [GPA, tdr, 0, 0]);
    }

    fn change_memory(&mut self) {
        let tdr = self.tdr;
        let first = GPA.wrapping_add(PAGES.wrapping_mul(ffi::PAGE));
        let gpas = || (first..).step_by(ffi::PAGE as usize).take(PAGES as usize);

        for gpa in gpas() {
            let page = self.page();
            self.works(MEM_PAGE_AUG, [gpa, tdr, page, 0]);
        }
        self.refused("page there", MEM_PAGE_AUG, [first, tdr, self.host_page, 0]);
        self.refused("not blocked", MEM_PAGE_REMOVE, [first, tdr, 0, 0]);
        for gpa in gpas() {
            self.works(MEM_RANGE_BLOCK, [gpa, tdr, 0, 0]);
        }
        self.refused("not mapped", MEM_RANGE_BLOCK, [NO_GPA, tdr, 0, 0]);
        self.refused("not tracked", MEM_PAGE_REMOVE, [first, tdr, 0, 0]);
        self.works(MEM_TRACK, [tdr, 0, 0, 0]);
        for gpa in gpas() {
            self.works(MEM_PAGE_REMOVE, [gpa, tdr, 0, 0]);
        }
        self.reads(PHYMEM_PAGE_RDMD, [tdr, 0, 0, 0]);
    }

    fn end(&mut self, tdvpr: u64) {
        let tdr = self.tdr;

        self.refused("vCPU associated", MNG_VPFLUSHDONE, [tdr, 0, 0, 0]);
        self.works(VP_FLUSH, [tdvpr, 0, 0, 0]);
        self.refused("not associated", VP_FLUSH, [tdvpr, 0, 0, 0]);
        self.refused("has its key", PHYMEM_PAGE_RECLAIM, [tdvpr, 0, 0, 0]);
        self.refused("has its key", MNG_KEY_FREEID, [tdr, 0, 0, 0]);
        self.works(MNG_VPFLUSHDONE, [tdr, 0, 0, 0]);
        self.refused("caches not written back", MNG_KEY_FREEID, [tdr, 0, 0, 0]);
        self.works(PHYMEM_CACHE_WB, [0, 0, 0, 0]);
        self.refused("not interrupted", PHYMEM_CACHE_WB, [1, 0, 0, 0]);
        self.works(MNG_KEY_FREEID, [tdr, 0, 0, 0]);
        self.refused("has pages", PHYMEM_PAGE_RECLAIM, [tdr, 0, 0, 0]);
    }

    /// Takes all pages back, one way or another.
    fn reclaim(&mut self, removed: core::ops::Range<u64>) {
        let mut page = self.next_page;

        while page > self.tdr {
            if !removed.contains(&page) {
                self.works(PHYMEM_PAGE_RECLAIM, [page, 0, 0, 0]);
            }
            page = page.wrapping_sub(ffi::PAGE);
        }
        self.works(PHYMEM_PAGE_RECLAIM, [self.tdr, 0, 0, 0]);
        self.refused("free", PHYMEM_PAGE_RECLAIM, [self.tdr, 0, 0, 0]);
        self.works(PHYMEM_PAGE_WBINVD, [self.tdr, 0, 0, 0]);
    }

    fn whole(&mut self) {
        self.refused("no such leaf", NO_LEAF, [0, 0, 0, 0]);
        self.create();
        let tdvpr = self.add_vcpu();
        self.add_memory();

        let first = self.next_page.wrapping_add(ffi::PAGE);
        self.change_memory();
        let removed = first..self.next_page.wrapping_add(ffi::PAGE);

        // The guest cannot run: this is the way there and back.
        self.refused("cannot run", VP_ENTER, [tdvpr, 0, 0, 0]);
        self.end(tdvpr);
        self.reclaim(removed);
    }
}

/// Writes `TD_PARAMS` that Linux could have written, as the host.
fn write_td_params(pa: u64) {
    let Some(page) = ffi::ram_page(pa) else {
        return;
    };
    for (index, word) in page.words.iter().enumerate() {
        let value = match index {
            // XFAM.
            1 => 3,
            // The largest number of vCPUs.
            2 => 4,
            // The EPTP controls.
            3 => 0x1e,
            // The configuration flags.
            4 => 4,
            // The frequency of the time-stamp counter, in units of 25 MHz.
            5 => 40,
            _ => 0,
        };
        word.store(value, Ordering::Relaxed);
    }
}

/// Measures a life of a TD in each of these ways. `pa` is where `pages` pages are, for the TD.
///
/// Returns whether the module has given back all of them, and the HKID.
pub(crate) fn run(m: &SeqFile, pa: u64, pages: u64, hkid: u64, ways: &[Way]) -> bool {
    let last = pages.saturating_sub(1).wrapping_mul(ffi::PAGE);
    let host_page = pa.wrapping_add(last);

    for blocks in [1, 2] {
        let ticks = ffi::bench_sha384(blocks);
        seq_print!(m, "SHA-384 - core {ticks} 0x0 {blocks}\n");
    }

    ways.iter().all(|&way| {
        write_td_params(host_page);
        let mut life = Life {
            m,
            way,
            hkid,
            host_page,
            next_page: pa,
            tdr: pa,
            good: true,
        };
        life.whole();
        if !life.good {
            seq_print!(m, "a call did not end as it should\n");
        }
        life.good
    })
}
