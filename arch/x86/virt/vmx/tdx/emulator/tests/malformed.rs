// SPDX-License-Identifier: GPL-2.0

//! What a host describes wrongly: TD_PARAMS, and TDMRs with their PAMTs.
//!
//! Linux has had its TDMRs taken long before any test can run, and a module takes them once. So the
//! TDMRs are described to a second module, which answers SEAMCALLs in the place of the first one as
//! long as this takes, and never initialises a PAMT.

#![deny(unsafe_code)]

use super::{
    facts::{
        leaf,
        Stage, //
    },
    rig::Rig,
    say,
    write_page,
    Call, //
};
use crate::{
    ffi,
    module::{
        LeafInfo,
        Module,
        Operand,
        Status,
        SysState,
        PROFILE_1_5_05, //
    },
    MODULE, //
};
use core::sync::atomic::{
    AtomicBool,
    Ordering, //
};
use kernel::prelude::*;

/// A module that is not Linux's.
static SPARE: Module = Module::new(&PROFILE_1_5_05);
/// Whether it answers SEAMCALLs.
static SPARE_ANSWERS: AtomicBool = AtomicBool::new(false);

/// The module that answers SEAMCALLs.
pub(super) fn answering() -> &'static Module {
    if SPARE_ANSWERS.load(Ordering::Relaxed) {
        &SPARE
    } else {
        &MODULE
    }
}

/// Lets the spare module answer for as long as this lives.
struct SpareAnswers;

impl SpareAnswers {
    fn begin() -> Self {
        SPARE_ANSWERS.store(true, Ordering::Relaxed);
        Self
    }
}

impl Drop for SpareAnswers {
    fn drop(&mut self) {
        SPARE_ANSWERS.store(false, Ordering::Relaxed);
    }
}

const GIB: u64 = 1 << 30;
const PAGE_SIZE: u64 = 4096;
/// Where a page-aligned address is not RAM, and can be read without harm: no device is there.
const NO_RAM: u64 = 0x30_0000_0000;
/// The words of a page.
const WORDS: usize = 512;
/// The words of a description of a TDMR.
const TDMR_WORDS: usize = 64;
/// Those for reserved areas, two for each.
const RESERVED: usize = 8;

fn set(words: &mut [u64], index: usize, value: u64) {
    if let Some(word) = words.get_mut(index) {
        *word = value;
    }
}

fn get(words: &[u64], index: usize) -> u64 {
    words.get(index).copied().unwrap_or(0)
}

/// The description of a TDMR.
type Tdmr = [u64; TDMR_WORDS];

/// Describes the first gigabyte: what is not RAM is reserved, and so is a place for the PAMTs, which
/// need not be the host's to give, as nothing will be written there.
fn good_tdmr() -> Result<Tdmr> {
    let mut tdmr = [0; TDMR_WORDS];
    let first = ffi::cmr(0).ok_or(ENODEV)?;
    let pamt = first.base.next_multiple_of(PAGE_SIZE);
    let sizes = [PAGE_SIZE, 2 * PAGE_SIZE, 1024 * PAGE_SIZE];
    set(&mut tdmr, 1, GIB);
    let mut end = pamt;
    // For 1 GiB, for 2 MiB, for 4 KiB.
    for (index, size) in (2..).step_by(2).zip(sizes) {
        set(&mut tdmr, index, end);
        set(&mut tdmr, index + 1, size);
        end += size;
    }
    // Up to the end of the PAMTs, and each hole from then on.
    let mut reserved = RESERVED;
    let mut from = 0;
    for cmr in (0..).map_while(ffi::cmr) {
        let until = if from == 0 { end } else { cmr.base };
        let until = until.min(GIB);
        if from < until {
            set(&mut tdmr, reserved, from);
            set(&mut tdmr, reserved + 1, until - from);
            reserved += 2;
        }
        from = cmr.base + cmr.size;
    }
    if from < GIB {
        set(&mut tdmr, reserved, from);
        set(&mut tdmr, reserved + 1, GIB - from);
    }
    Ok(tdmr)
}

/// A host that brings up the spare module.
struct Tdmrs<'a> {
    rig: &'a mut Rig,
    list: u64,
    infos: u64,
    hkid: u64,
}

impl Tdmrs<'_> {
    /// TDH.SYS.CONFIG as it ought to be, apart from the descriptions.
    fn config(&mut self, tdmrs: &[Tdmr]) -> Status {
        let mut words = [0; WORDS];
        let mut slots = [0; WORDS];
        for (index, tdmr) in tdmrs.iter().enumerate() {
            for (offset, word) in tdmr.iter().enumerate() {
                set(&mut words, index * TDMR_WORDS + offset, *word);
            }
            set(&mut slots, index, self.infos + index as u64 * 512);
        }
        write_page(self.infos, &words);
        write_page(self.list, &slots);
        self.call(self.list, tdmrs.len() as u64, self.hkid)
    }

    fn call(&self, rcx: u64, rdx: u64, r8: u64) -> Status {
        Call::new(leaf::SYS_CONFIG.into(), [rcx, rdx, r8, 0])
            .make()
            .status
    }

    fn expect(&mut self, about: &str, got: Status, expected: Status) {
        self.rig.expect(about, got, expected);
    }

    /// The good description with some words changed is refused so.
    fn refused(&mut self, about: &str, changes: &[(usize, u64)], expected: Status) -> Result {
        let mut tdmr = good_tdmr()?;
        for (index, value) in changes {
            set(&mut tdmr, *index, *value);
        }
        let got = self.config(&[tdmr]);
        self.expect(about, got, expected);
        Ok(())
    }
}

/// Bits of an address that are a private HKID.
fn private_bits() -> u64 {
    u64::from(MODULE.global_hkid()) << ffi::phys_bits()
}

/// What TDH.SYS.CONFIG is called with.
fn operands(host: &mut Tdmrs<'_>) {
    let (list, hkid) = (host.list, host.hkid);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    let rdx = Status::OPERAND_INVALID.on(Operand::Rdx);
    let r8 = Status::OPERAND_INVALID.on(Operand::R8);
    for (about, operands, expected) in [
        ("an unaligned list", (list + 8, 1, hkid), rcx),
        ("a list with an HKID", (list | private_bits(), 1, hkid), rcx),
        ("a list at no address", (1 << 52, 1, hkid), rcx),
        ("a list where there is no RAM", (NO_RAM, 1, hkid), rcx),
        ("no TDMR", (list, 0, hkid), rdx),
        ("65 TDMRs", (list, 65, hkid), rdx),
        ("all TDMRs", (list, u64::MAX, hkid), rdx),
        ("the host's HKID", (list, 1, 0), r8),
        ("a shared HKID", (list, 1, 1), r8),
        ("an HKID of 17 bits", (list, 1, 1 << 16 | hkid), r8),
    ] {
        let got = host.call(operands.0, operands.1, operands.2);
        host.expect(about, got, expected);
    }
    for (about, slot) in [
        ("an unaligned description", host.infos + 8),
        ("a description with an HKID", host.infos | private_bits()),
        ("a description at no address", 1 << 52),
    ] {
        write_page(list, &[slot]);
        let got = host.call(list, 1, hkid);
        host.expect(about, got, rcx);
    }
    // It reads as all ones.
    write_page(list, &[NO_RAM]);
    let got = host.call(list, 1, hkid);
    host.expect(
        "a description where there is no RAM",
        got,
        Status::INVALID_TDMR,
    );
}

/// The TDMRs themselves, and their reserved areas.
fn memory(host: &mut Tdmrs<'_>) -> Result {
    let good = good_tdmr()?;
    let invalid = Status::INVALID_TDMR;
    for (about, base, size) in [
        ("an unaligned base", 0x10_0000, GIB),
        ("an unaligned size", 0, GIB + PAGE_SIZE),
        ("no size", 0, 0),
        ("a base with an HKID", private_bits(), GIB),
        ("a TDMR beyond all addresses", 1 << 52, GIB),
        ("a TDMR that wraps", u64::MAX - GIB + 1, GIB),
        ("a TDMR that is larger than that", GIB, u64::MAX - GIB + 1),
    ] {
        host.refused(about, &[(0, base), (1, size)], invalid)?;
    }
    let got = host.config(&[good, good]);
    host.expect(
        "the same TDMR twice",
        got,
        Status::NON_ORDERED_TDMR.detail(1),
    );

    let mut last = RESERVED;
    while last + 3 < TDMR_WORDS && get(&good, last + 3) != 0 {
        last += 2;
    }
    let area = |index: usize| ((index - RESERVED) as u32 / 2) << 8;
    let bad = Status::INVALID_RESERVED_IN_TDMR;
    let order = Status::NON_ORDERED_RESERVED_IN_TDMR;
    let (offset, size) = (get(&good, last), get(&good, last + 1));
    for (about, changes, expected) in [
        (
            "an unaligned area",
            [(last, offset + 8), (last + 1, size - PAGE_SIZE)],
            bad.detail(area(last)),
        ),
        (
            "an area of half a page",
            [(last, offset), (last + 1, size - 2048)],
            bad.detail(area(last)),
        ),
        (
            "an area beyond the TDMR",
            [(last, offset), (last + 1, size + PAGE_SIZE)],
            bad.detail(area(last)),
        ),
        (
            "an area that wraps",
            [(last, offset), (last + 1, u64::MAX)],
            bad.detail(area(last)),
        ),
        (
            "an area inside the one before",
            [(last + 2, offset), (last + 3, PAGE_SIZE)],
            order.detail(area(last + 2)),
        ),
        (
            "an area after the end of the list",
            [(last + 4, GIB - PAGE_SIZE), (last + 5, PAGE_SIZE)],
            order.detail(area(last + 4)),
        ),
    ] {
        host.refused(about, &changes, expected)?;
    }
    let first = get(&good, RESERVED + 1);
    host.refused(
        "a TDMR that is not RAM",
        &[(0, NO_RAM)],
        Status::TDMR_OUTSIDE_CMRS,
    )?;
    host.refused(
        "memory below 1 MB",
        &[(RESERVED, PAGE_SIZE), (RESERVED + 1, first - PAGE_SIZE)],
        Status::TDMR_OUTSIDE_CMRS,
    )
}

/// Their PAMTs.
fn pamts(host: &mut Tdmrs<'_>) -> Result {
    let good = good_tdmr()?;
    // The end of RAM, in the TDMR.
    let ends = (0..).map_while(ffi::cmr).filter(|cmr| cmr.base < GIB);
    let end = ends.map(|cmr| (cmr.base + cmr.size).min(GIB)).max();
    let end = end.unwrap_or(0);
    for (level, index) in [(0, 6), (1, 4), (2, 2)] {
        let at = get(&good, index);
        let size_there = get(&good, index + 1);
        let detail = level << 8;
        let invalid = Status::INVALID_PAMT.detail(detail);
        for (about, changes) in [
            (
                "an unaligned PAMT",
                [(index, at + 512), (index + 1, size_there)],
            ),
            (
                "a PAMT that is too small",
                [(index, at), (index + 1, size_there - PAGE_SIZE)],
            ),
            (
                "a PAMT of half a page",
                [(index, at), (index + 1, size_there + 2048)],
            ),
            (
                "a PAMT with an HKID",
                [(index, at | private_bits()), (index + 1, size_there)],
            ),
            (
                "a PAMT beyond all addresses",
                [(index, 1 << 52), (index + 1, size_there)],
            ),
            ("a PAMT that wraps", [(index, at), (index + 1, !0xfff)]),
        ] {
            host.refused(about, &changes, invalid)?;
        }
        host.refused(
            "a PAMT in memory for TDs",
            &[(index, end - size_there)],
            Status::PAMT_OVERLAP.detail(detail),
        )?;
        host.refused(
            "a PAMT that is not RAM",
            &[(index, NO_RAM)],
            Status::PAMT_OUTSIDE_CMRS.detail(detail),
        )?;
    }
    // The larger page sizes come later.
    for (about, from, to, level) in [
        ("the PAMTs for 4K and 2M in one place", 6, 4, 1),
        ("the PAMTs for 2M and 1G in one place", 4, 2, 2),
    ] {
        let expected = Status::PAMT_OVERLAP.detail(level << 8);
        host.refused(about, &[(to, get(&good, from))], expected)?;
    }
    Ok(())
}

/// Descriptions that have noise in them, of which the size of a PAMT is never good.
fn noise(host: &mut Tdmrs<'_>) -> Result {
    let info = LeafInfo::by_number(leaf::SYS_CONFIG).ok_or(ENOENT)?;
    let mut random = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = move || {
        // xorshift
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..500 {
        let mut tdmr = good_tdmr()?;
        for _ in 0..=next() % 4 {
            let at = (next() % 16) as usize;
            // What is aligned gets farther.
            let value = match next() % 4 {
                0 => next(),
                1 => next() & !0xfff,
                2 => next() % GIB & !0xfff,
                _ => next() << 30,
            };
            set(&mut tdmr, at, value);
        }
        // So that it cannot be good by chance.
        let size = get(&tdmr, 7);
        set(&mut tdmr, 7, size | 8);
        let got = host.config(&[tdmr]);
        if got.is_success() || !info.can_answer(got) {
            host.rig.complain(fmt!("noise: {:#x}", got.raw()));
        }
    }
    Ok(())
}

/// TDMRs that the module must not take, and then some that it must.
pub(super) fn tdmrs(rig: &mut Rig) -> Result {
    if SPARE.sys_state() != SysState::InitPending {
        say(fmt!("a module takes TDMRs once, this one has"));
        return Ok(());
    }
    let mut host = Tdmrs {
        list: rig.host_page(0),
        infos: rig.host_page(1),
        hkid: MODULE.global_hkid().into(),
        rig,
    };
    let _answers = SpareAnswers::begin();
    let rig = &mut *host.rig;
    rig.must(leaf::SYS_INIT.into(), [0; 4])?;
    let early = Status::SYS_CONFIG_NOT_PENDING;
    let got = Call::new(leaf::SYS_CONFIG.into(), [0; 4]).make().status;
    rig.expect("before the processors are initialised", got, early);
    rig.must_on_both(leaf::SYS_LP_INIT.into())?;

    operands(&mut host);
    memory(&mut host)?;
    pamts(&mut host)?;
    noise(&mut host)?;
    let good = good_tdmr()?;
    let got = host.config(&[good]);
    host.expect("a good TDMR", got, Status::SUCCESS);
    let got = host.config(&[good]);
    host.expect("a good TDMR once more", got, early);
    Ok(())
}

/// Words of TD_PARAMS.
type Params = [u64; 128];

/// Parameters for TDH.MNG.INIT that the module must not take, and then some that it must.
pub(super) fn td_params(rig: &mut Rig) -> Result {
    const INVALID: Status = Status::OPERAND_INVALID;
    const RESERVED: Status = INVALID.on(Operand::Rdx);
    let page = rig.host_page(0);
    let td = rig.td(Stage::Keyed, rig.hkid(0))?;
    let mut good: Params = [0; 128];
    // XFAM; MAX_VCPUS; EPTP_CONTROLS: four levels, write-back; CONFIG_FLAGS; TSC_FREQUENCY.
    for (word, value) in [(1, 3), (2, 16), (3, 0x1e), (4, 4), (5, 40)] {
        set(&mut good, word, value);
    }
    let init = |params: u64| {
        Call::new(leaf::MNG_INIT.into(), [td.tdr, params, 0, 0])
            .make()
            .status
    };

    write_page(page, &good);
    for (about, address, expected) in [
        ("unaligned TD_PARAMS", page + 512, RESERVED),
        ("TD_PARAMS with an HKID", page | private_bits(), RESERVED),
        ("TD_PARAMS at no address", 1 << 52, RESERVED),
        // These read as all ones, or as nonsense.
        (
            "TD_PARAMS where there is no RAM",
            NO_RAM,
            INVALID.on(Operand::Attributes),
        ),
        (
            "TD_PARAMS in the TDR",
            td.tdr,
            INVALID.on(Operand::Attributes),
        ),
    ] {
        rig.expect(about, init(address), expected);
    }
    // The CPUID values, 18 of them, come before the last part that is reserved.
    let end = 32 + 2 * 18;
    for (about, word, value, expected) in [
        (
            "unknown ATTRIBUTES",
            0,
            1 << 20,
            INVALID.on(Operand::Attributes),
        ),
        ("XFAM without x87", 1, 2, INVALID.on(Operand::Xfam)),
        ("XFAM with all", 1, u64::MAX, INVALID.on(Operand::Xfam)),
        ("no vCPU", 2, 0, INVALID.on(Operand::MaxVcpus)),
        ("65535 vCPUs", 2, 0xffff, INVALID.on(Operand::MaxVcpus)),
        ("4 L2 VMs", 2, 4 << 16 | 16, INVALID.on(Operand::NumL2Vms)),
        (
            "an L2 VM without a page for it",
            2,
            1 << 16 | 16,
            Status::TDCS_NOT_ALLOCATED,
        ),
        (
            "MSR_CONFIG_CTLS with unknown bits",
            2,
            2 << 24 | 16,
            RESERVED,
        ),
        ("reserved bytes from 20 on", 2, 1 << 63 | 16, RESERVED),
        (
            "EPTP_CONTROLS for memory that is not cached",
            3,
            0x18,
            INVALID.on(Operand::EptpControls),
        ),
        (
            "EPTP_CONTROLS for three levels",
            3,
            0x16,
            INVALID.on(Operand::EptpControls),
        ),
        (
            "EPTP_CONTROLS with an address",
            3,
            page | 0x1e,
            INVALID.on(Operand::EptpControls),
        ),
        (
            "unknown CONFIG_FLAGS",
            4,
            8,
            INVALID.on(Operand::ConfigFlags),
        ),
        (
            "a TSC of no frequency",
            5,
            0,
            INVALID.on(Operand::TscFrequency),
        ),
        (
            "a TSC of 10025 MHz",
            5,
            401,
            INVALID.on(Operand::TscFrequency),
        ),
        ("reserved bytes from 42 on", 5, 1 << 16 | 40, RESERVED),
        ("reserved bytes up to 80", 9, 1 << 63, RESERVED),
        (
            "IA32_ARCH_CAPABILITIES not announced",
            28,
            1,
            INVALID.on(Operand::ArchCapabilitiesConfig),
        ),
        ("reserved bytes from 232 on", 29, 1, RESERVED),
        ("reserved bytes up to 256", 31, 1 << 63, RESERVED),
        (
            "CPUID bits that are not to be set",
            32,
            u64::MAX,
            INVALID.on(Operand::CpuidConfig),
        ),
        ("reserved bytes after the CPUID values", end, 1, RESERVED),
        ("the last byte", 127, 1 << 63, RESERVED),
    ] {
        let mut params = good;
        set(&mut params, word, value);
        write_page(page, &params);
        rig.expect(about, init(page), expected);
    }
    write_page(page, &good);
    rig.expect("good TD_PARAMS", init(page), Status::SUCCESS);
    Ok(())
}
