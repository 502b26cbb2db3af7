// SPDX-License-Identifier: GPL-2.0

//! What can be seen of the module from outside: tracepoint, counters, debugfs files.

#![deny(unsafe_code)]

use crate::{
    ffi,
    machine::{
        LockTrace,
        Machine, //
    },
    memory,
    module::{
        LeafInfo,
        LifeCycle,
        Lock,
        LockMode,
        LockRecord,
        Module,
        PageType,
        Regs,
        Status, //
    },
    MODULE, //
};
use core::{
    fmt::Write,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
};
use kernel::{
    fmt,
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    }, //
};

/// Leaves with smaller numbers are counted each, all others together.
const COUNTED_LEAVES: usize = 128;

/// How often a leaf was called.
struct Counter {
    calls: AtomicU64,
    errors: AtomicU64,
}

static COUNTERS: [Counter; COUNTED_LEAVES + 1] = [const {
    Counter {
        calls: AtomicU64::new(0),
        errors: AtomicU64::new(0),
    }
}; COUNTED_LEAVES + 1];

/// Counts a call.
pub(crate) fn count(leaf: u16, status: Status) {
    let index = usize::from(leaf).min(COUNTED_LEAVES);
    let Some(counter) = COUNTERS.get(index) else {
        return;
    };

    counter.calls.fetch_add(1, Ordering::Relaxed);
    if status.is_error() {
        counter.errors.fetch_add(1, Ordering::Relaxed);
    }
}

/// Text in a buffer of fixed size; what does not fit is cut off.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Text<N> {
    /// No text yet.
    pub(crate) const fn new() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }

    /// The text.
    pub(crate) fn as_str(&self) -> &str {
        let bytes = self.bytes.get(..self.len).unwrap_or(&[]);
        core::str::from_utf8(bytes).unwrap_or("?")
    }
}

impl<const N: usize> Text<N> {
    fn push(&mut self, text: &[u8]) {
        let room = self.bytes.get_mut(self.len..).unwrap_or(&mut []);
        for (to, from) in room.iter_mut().zip(text) {
            *to = *from;
        }
        self.len = N.min(self.len.wrapping_add(text.len()));
    }

    /// Adds an address as `{:#x}` would.
    ///
    /// A report of a SEAMCALL has several: with `core::fmt` they would cost more than most leaves.
    fn push_hex(&mut self, address: u64) {
        const DIGITS: [u8; 16] = *b"0123456789abcdef";

        self.push(b"0x");
        let zeros = (address | 1).leading_zeros() / 4;
        let mut rest = address.wrapping_shl(zeros * 4);
        for _ in zeros..u64::BITS / 4 {
            self.push(&[DIGITS[(rest >> 60) as usize & 0xf]]);
            rest <<= 4;
        }
    }

    /// Adds a lock and its mode as the tracepoint shows them.
    fn push_lock(&mut self, record: &LockRecord) {
        let (name, place) = match record.lock {
            Lock::Global => ("GLOBAL", None),
            Lock::Kot => ("KOT", None),
            Lock::Wbcache(package) => {
                // Cannot fail: text that does not fit is cut off.
                let _ = self.write_fmt(fmt!("WBCACHE({package})"));
                ("", None)
            }
            Lock::Tdmr(index) => {
                let _ = self.write_fmt(fmt!("TDMR({index})"));
                ("", None)
            }
            Lock::Page { pa, level: 0 } => ("PAMT_4K", Some(pa)),
            Lock::Page { pa, level: 1 } => ("PAMT_2M", Some(pa)),
            Lock::Page { pa, .. } => ("PAMT_1G", Some(pa)),
            Lock::OpState(tdr) => ("OP_STATE", Some(tdr)),
            Lock::SeptTree(tdr) => ("SEPT_TREE", Some(tdr)),
            Lock::Epoch(tdr) => ("TD_EPOCH", Some(tdr)),
            Lock::SeptEntry { gpa, .. } => ("SEPT_ENTRY", Some(gpa)),
        };
        self.push(name.as_bytes());
        if let Some(place) = place {
            self.push(b"(");
            self.push_hex(place);
            self.push(b")");
        }
        self.push(match record.mode {
            LockMode::Shared => b":SH",
            LockMode::Exclusive => b":EX",
        });
    }
}

impl<const N: usize> Write for Text<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        self.push(text.as_bytes());
        Ok(())
    }
}

/// Reports a call to the tracepoint.
pub(crate) fn trace(before: &Regs, after: &Regs, leaf: u16, taken: &LockTrace) {
    let mut locks = Text::<384>::new();
    for record in taken.iter() {
        if locks.len != 0 {
            locks.push(b",");
        }
        locks.push_lock(&record);
    }
    if locks.len == 0 {
        locks.push(b"-");
    }

    let name = Module::leaf_name(leaf).unwrap_or("UNKNOWN");
    ffi::trace(before, after, taken.ticks_held(), name, locks.as_str());
}

/// One line for each leaf that was ever called: name, number, calls, errors.
pub(crate) fn leaves(m: &SeqFile) {
    for (number, counter) in COUNTERS.iter().enumerate() {
        let calls = counter.calls.load(Ordering::Relaxed);
        let errors = counter.errors.load(Ordering::Relaxed);
        if calls == 0 {
            continue;
        }
        if number < COUNTED_LEAVES {
            let name = Module::leaf_name(number as u16).unwrap_or("UNKNOWN");
            seq_print!(m, "{name} {number} {calls} {errors}\n");
        } else {
            seq_print!(m, "UNKNOWN - {calls} {errors}\n");
        }
    }
}

/// One line for each status, apart from success, that the leaf of that number can answer with:
/// value and name.
pub(crate) fn statuses(m: &SeqFile, leaf: u16) {
    let Some(info) = LeafInfo::by_number(leaf) else {
        return;
    };

    info.for_each_status(|status| {
        if !status.is_success() {
            let name = status.name().unwrap_or("UNKNOWN");
            seq_print!(m, "{:#018x} {name}\n", status.raw());
        }
    });
}

/// A digest in hexadecimal.
struct Hex<'a>(&'a [u8]);

impl fmt::Display for Hex<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// One line for each TD.
pub(crate) fn tds(m: &SeqFile) {
    MODULE.for_each_td(&Machine::onlooker(), |td| {
        seq_print!(
            m,
            "tdr={:#x} hkid={} lifecycle={} op_state={} vcpus={} pages={} config={:#x} mrtd=",
            td.tdr,
            td.hkid,
            td.life_cycle.name(),
            td.op_state.name(),
            td.vcpus,
            td.pages,
            td.config.unwrap_or(0),
        );
        match &td.mrtd {
            Some(mrtd) => seq_print!(m, "{}\n", Hex(mrtd)),
            None => seq_print!(m, "-\n"),
        }
    });
}

/// Finds pages of TDs whose HKID was freed, TDRs last. Returns how many there was room for.
pub(crate) fn orphans(pages: &mut [u64]) -> usize {
    let onlooker = Machine::onlooker();
    let mut found: usize = 0;
    let mut add = |pa| {
        if let Some(page) = pages.get_mut(found) {
            *page = pa;
            found = found.wrapping_add(1);
        }
    };
    let others = PageType::OWNED.iter().filter(|of| **of != PageType::Tdr);
    let mut left = others
        .map(|of| MODULE.pages(*of))
        .fold(0, u64::wrapping_add);
    for range in (0..).map_while(ffi::cmr) {
        let mut pa = range.base;
        while left != 0 && pa.wrapping_sub(range.base) < range.size {
            if memory::may_be_owned(pa) && MODULE.is_orphan(&onlooker, pa) {
                add(pa);
                left = left.saturating_sub(1);
            }
            pa = pa.wrapping_add(memory::PAGE_SIZE);
        }
    }
    MODULE.for_each_td(&onlooker, |td| {
        if td.life_cycle == LifeCycle::Teardown {
            add(td.tdr);
        }
    });
    found
}

/// One line for each TDMR.
pub(crate) fn tdmrs(m: &SeqFile) {
    for tdmr in MODULE.tdmrs() {
        seq_print!(m, "{:#x}+{:#x}", tdmr.range.base, tdmr.range.size);
        for (pamt, size) in tdmr.pamt.iter().zip(["4k", "2m", "1g"]) {
            seq_print!(m, " pamt_{size}={:#x}+{:#x}", pamt.base, pamt.size);
        }
        seq_print!(m, "\n");
    }
}

/// The pages that TDs own, by type, the HKIDs they use, and what the host did wrong.
pub(crate) fn accounting(m: &SeqFile) {
    for page_type in PageType::OWNED {
        seq_print!(
            m,
            "pages_{} {}\n",
            page_type.name(),
            MODULE.pages(page_type)
        );
    }
    seq_print!(m, "hkids {}\n", MODULE.hkids_in_use());
    seq_print!(m, "unflushed_pages {}\n", memory::unflushed_pages());
    seq_print!(m, "host_errors {}\n", memory::host_errors());
}
