// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the emulated TDX module on the machine, through real SEAMCALLs on two CPUs.
//!
//! For each pair of leaves that the dispatcher knows, a leaf on one CPU is made to hold all of its
//! locks once it is done, as debugfs can make it, while another CPU calls the second leaf. What
//! has to come of that is in [`facts`].
//!
//! Others call leaves with what a host can describe wrongly ([`malformed`]), and use pages at the
//! wrong time ([`pages`]).
//!
//! The tests are skipped where the emulated module is not ready. They use HKIDs from the last one
//! downwards, and run at boot, when nobody has a TD.

mod facts;
mod malformed;
mod pages;
mod rig;

use crate::{
    ffi,
    module::{
        LeafInfo,
        Module,
        Operand,
        Status,
        PROFILE_1_5_01,
        PROFILE_1_5_05,
        PROFILE_1_5_05_SHARED, //
    },
    show::Text,
    MODULE, //
};
use core::{
    fmt::Write,
    sync::atomic::Ordering, //
};
use facts::leaf;
use kernel::{
    bindings,
    fmt,
    prelude::*,
    types::Opaque, //
};
use rig::{
    Relation,
    Rig, //
};

/// Pages that the host keeps for itself.
const HOST_PAGES: usize = 2;

/// For longer than this no leaf holds its locks, in microseconds.
const HOLD_US: u32 = 1_000_000;

/// Keeps the test on one CPU. Returns another one, if there is one.
fn begin() -> Option<u32> {
    // SAFETY: A test may sleep, and change where it runs.
    let cpu = unsafe { bindings::tdx_emulator_test_begin() };
    (cpu < kernel::cpu::nr_cpu_ids()).then_some(cpu)
}

/// Marks the test as skipped.
fn skip() {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_test_skip() };
}

/// Writes a line to the test's log.
fn say(what: fmt::Arguments<'_>) {
    let mut text = Text::<160>::new();
    // Cannot fail: text that does not fit is cut off.
    let _ = text.write_fmt(what);
    let text = text.as_str();
    // SAFETY: The text is readable for its length.
    unsafe { bindings::tdx_emulator_test_say(text.as_ptr().cast(), text.len()) };
}

/// The module that answers SEAMCALLs.
pub(crate) fn answering() -> &'static Module {
    malformed::answering()
}

/// Writes a page as the host does; what there are no words for becomes zero.
fn write_page(pa: u64, words: &[u64]) {
    if let Some(page) = ffi::ram_page(pa) {
        for (index, to) in page.words.iter().enumerate() {
            let word = words.get(index).copied().unwrap_or(0);
            to.store(word, Ordering::Relaxed);
        }
    }
}

/// What a SEAMCALL returned.
#[derive(Clone, Copy)]
struct Answer {
    status: Status,
    /// RCX, RDX, R8, R9.
    registers: [u64; 4],
}

/// A SEAMCALL to be made.
struct Call(bindings::tdx_emulator_test_call);

impl Call {
    fn new(rax: u64, [rcx, rdx, r8, r9]: [u64; 4]) -> Self {
        Self(bindings::tdx_emulator_test_call {
            rax,
            rcx,
            rdx,
            r8,
            r9,
            ..Default::default()
        })
    }

    /// Makes it here.
    fn make(mut self) -> Answer {
        // SAFETY: A TDX module touches only memory that the host gave to it, which is what the
        // operands are about. The call belongs to this function.
        unsafe { bindings::tdx_emulator_test_call(&mut self.0) };
        self.answer()
    }

    /// Makes it on another CPU, and does not wait for it.
    fn start_on(self, cpu: u32) -> Result<StartedCall> {
        let started = StartedCall {
            call: KBox::new(Opaque::new(self.0), GFP_KERNEL)?,
        };
        // SAFETY: As for `make()`. The call stays until it is done, see `StartedCall::drop()`.
        let ret = unsafe { bindings::tdx_emulator_test_start(cpu, started.call.get()) };
        kernel::error::to_result(ret)
            .inspect_err(|_| {
                // SAFETY: It has not begun, so nobody else knows it.
                unsafe { (*started.call.get()).done = true }
            })
            .map(|()| started)
    }

    /// Makes it on another CPU, waits until the leaf is done and holds its locks, and returns
    /// while it does.
    fn hold_on(self, cpu: u32) -> Result<StartedCall> {
        let leaf = self.0.rax as u16;
        if !LeafInfo::by_number(leaf).is_some_and(|info| info.modelled) {
            return Err(EINVAL);
        }
        // SAFETY: There is such a leaf.
        unsafe { bindings::tdx_emulator_test_hold(leaf, HOLD_US) };
        let started = self.start_on(cpu)?;
        loop {
            // SAFETY: As above.
            if unsafe { bindings::tdx_emulator_test_holding(leaf) } {
                return Ok(started);
            }
            if started.is_done() {
                let status = started.finish()?.status.raw();
                say(fmt!("{} held no lock: {status:#x}", rig::name(leaf)));
                return Err(EAGAIN);
            }
            core::hint::spin_loop();
        }
    }

    fn answer(&self) -> Answer {
        Answer {
            status: Status::from_raw(self.0.status),
            registers: [self.0.rcx, self.0.rdx, self.0.r8, self.0.r9],
        }
    }
}

/// A SEAMCALL that another CPU makes. It ends when this is dropped.
struct StartedCall {
    call: KBox<Opaque<bindings::tdx_emulator_test_call>>,
}

impl StartedCall {
    fn is_done(&self) -> bool {
        // SAFETY: The call is alive.
        unsafe { bindings::tdx_emulator_test_done(self.call.get()) }
    }

    /// Lets the leaf end if it holds its locks, and waits until it has.
    fn wait(&self) {
        reset();
        while !self.is_done() {
            core::hint::spin_loop();
        }
    }

    /// Lets the leaf end.
    fn finish(self) -> Result<Answer> {
        self.wait();
        // SAFETY: The other CPU is done with it.
        Ok(Call(unsafe { *self.call.get() }).answer())
    }
}

impl Drop for StartedCall {
    fn drop(&mut self) {
        self.wait();
    }
}

/// No leaf misbehaves any more.
fn reset() {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_test_reset() };
}

/// The next request for a key finds the key table in use.
fn make_key_table_busy() {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_test_key_table_busy() };
}

/// Pages for the module, and some that stay the host's. All of them must be the host's again when
/// they are dropped.
struct Memory<const N: usize> {
    pages: [u64; N],
    host: [u64; HOST_PAGES],
}

impl<const N: usize> Memory<N> {
    fn new() -> Result<Self> {
        let mut memory = Self {
            pages: [0; N],
            host: [0; HOST_PAGES],
        };
        for page in &mut memory.pages {
            *page = alloc(0)?;
        }
        for page in &mut memory.host {
            *page = alloc(0)?;
        }
        Ok(memory)
    }
}

impl<const N: usize> Drop for Memory<N> {
    fn drop(&mut self) {
        for page in self.pages {
            free(page, 0);
        }
        for page in self.host {
            free(page, 0);
        }
    }
}

/// Allocates `1 << order` pages. Returns their physical address.
fn alloc(order: u32) -> Result<u64> {
    // SAFETY: A test may sleep.
    match unsafe { bindings::tdx_emulator_test_alloc(order) } {
        0 => Err(ENOMEM),
        pa => Ok(pa),
    }
}

/// Frees what [`alloc`] returned, or nothing if that is 0.
fn free(pa: u64, order: u32) {
    // SAFETY: Each address is freed once, by the one who allocated it.
    unsafe { bindings::tdx_emulator_test_free(pa, order) };
}

/// The leaves that the dispatcher knows, but for the few of which nothing is said.
fn leaves() -> impl Iterator<Item = &'static LeafInfo> {
    let is_compared = |info: &&LeafInfo| !facts::WITHOUT_FACTS.contains(&info.number);
    LeafInfo::all()
        .filter(|info| info.modelled)
        .filter(is_compared)
}

/// The leaves that can hold a lock, and of which the module survives that they succeed.
fn holders() -> impl Iterator<Item = &'static LeafInfo> {
    let ends = |number| matches!(number, leaf::SYS_SHUTDOWN | leaf::SYS_DISABLE);
    leaves().filter(move |info| !info.locks.is_empty() && !ends(info.number))
}

/// Runs a test where there is a module, and sees to it that nothing was wrong.
fn with_rig(test: impl FnOnce(&mut Rig) -> Result) -> Result {
    reset();
    let Some(mut rig) = Rig::new()? else {
        skip();
        return Ok(());
    };
    let result = test(&mut rig);
    reset();
    let cleaned = rig.clean();
    let wrong = rig.wrong;
    if cleaned.is_err() {
        // The module still has some of the pages.
        core::mem::forget(rig);
    }
    result?;
    cleaned?;
    if wrong == 0 {
        Ok(())
    } else {
        say(fmt!("{wrong} things are wrong"));
        Err(EINVAL)
    }
}

/// Each leaf whose name begins so, holding its locks, against all leaves, on other objects of the
/// same TD.
fn matrix(prefix: &str) -> Result {
    with_rig(|rig| {
        if let Some(unknown) = leaves().find(|info| facts::Row::of(info.number).is_none()) {
            rig.complain(fmt!("{}: no facts are known", unknown.name));
        }
        for holder in holders().filter(|info| info.name.starts_with(prefix)) {
            let mut line = Text::<64>::new();
            for contender in leaves() {
                let letter = rig.pair(holder, contender, Relation::SameTd)?;
                // Cannot fail: text that does not fit is cut off.
                let _ = line.write_char(letter);
            }
            say(fmt!("{:20} {}", holder.name, line.as_str()));
        }
        say(fmt!("{} pairs, {} in conflict", rig.pairs, rig.conflicts));
        Ok(())
    })
}

/// Pairs of leaves that `are_related` and work on the same thing.
fn related(
    relation: Relation,
    are_related: impl Fn(u16, u16) -> bool,
    least_conflicts: u32,
) -> Result {
    with_rig(|rig| {
        for holder in holders() {
            for contender in leaves() {
                if are_related(holder.number, contender.number) {
                    rig.pair(holder, contender, relation)?;
                }
            }
        }
        let (pairs, conflicts) = (rig.pairs, rig.conflicts);
        say(fmt!("{pairs} pairs, {conflicts} in conflict"));
        if conflicts < least_conflicts {
            rig.complain(fmt!("at least {least_conflicts} were expected"));
        }
        Ok(())
    })
}

/// Whether a leaf takes a page that the host gives to it.
fn takes_page(number: u16) -> bool {
    matches!(
        number,
        leaf::MNG_CREATE
            | leaf::MNG_ADDCX
            | leaf::VP_CREATE
            | leaf::VP_ADDCX
            | leaf::MEM_SEPT_ADD
            | leaf::MEM_PAGE_ADD
            | leaf::MEM_PAGE_AUG
    )
}

/// Whether a leaf is about a TD.
fn is_about_td(number: u16) -> bool {
    number != leaf::PHYMEM_CACHE_WB && !facts::stages(number).is_empty()
}

/// 2 MiB.
const LARGE_ORDER: u32 = 9;

/// A page of 2 MiB against the small ones in it.
fn large_page(rig: &mut Rig) -> Result {
    let large = alloc(LARGE_ORDER)?;
    let result = try_large_page(rig, large);
    // Not if the module might still have it.
    if result.is_ok() {
        free(large, LARGE_ORDER);
    }
    result
}

fn try_large_page(rig: &mut Rig, large: u64) -> Result {
    const GPA: u64 = 4 << 21;
    let tdr = rig.td_with_tables()?;
    let small = large + 0x1000;
    let busy = Status::OPERAND_BUSY;
    let aug = (leaf::MEM_PAGE_AUG, [GPA | 1, tdr, large, 0]);
    let look = (leaf::PHYMEM_PAGE_RDMD, [small, 0, 0, 0]);
    let vp_create = (leaf::VP_CREATE, [small, tdr, 0, 0]);

    rig.hold("2M against 4K", look, aug, busy.on(Operand::R8))?;
    rig.hold("4K against 2M", aug, vp_create, busy.on(Operand::Rcx))?;
    let status = rig.call(vp_create.0.into(), vp_create.1).status;
    let taken = Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx);
    rig.expect("a page in a page of a TD", status, taken);
    let remove = (leaf::MEM_PAGE_REMOVE, [GPA | 1, tdr, 0, 0]);
    rig.hold(
        "4K against 2M being removed",
        remove,
        look,
        busy.on(Operand::Rcx),
    )
}

/// A field, its value in profile 1.5.05, and what differs in 1.5.05-shared and 1.5.01.
type Field = (u64, u64, Option<u64>, Option<u64>);

/// What the module says of itself.
const METADATA: [Field; 9] = [
    // Version 1.5.
    (0x0800_0001_0000_0004, 1, None, None),
    (0x0800_0001_0000_0003, 5, None, None),
    // TDX_FEATURES0: topology enumeration.
    (0x0a00_0003_0000_0008, 0x1f_0ebf, None, Some(0x0f_0ebf)),
    // Sizes of a PAMT entry, of the TDCS.
    (0x9100_0001_0000_0010, 16, None, None),
    (0x9800_0001_0000_0100, 6 * 4096, None, None),
    // XFAM bits that must be 1.
    (0x1900_0003_0000_0003, 3, None, None),
    // Configurable CPUID leaves: how many there are, and the one after the 12th.
    (0x9900_0001_0000_0004, 18, None, Some(12)),
    (0x9900_0003_0000_040c, 0x1f, None, Some(u64::MAX)),
    // Attributes that a TD may have; 1.5.05 adds LASS, see `metadata()`.
    (0x1900_0003_0000_0000, 0x8000_0000_7000_0001, None, None),
];
const ATTRIBUTES_FIXED0: u64 = 0x1900_0003_0000_0000;
const ATTRIBUTE_LASS: u64 = 1 << 27;
const MAX_VCPUS_PER_TD: u64 = 0x9900_0001_0000_0008;

/// Whether the module is consistent in what it says of itself, and does what it says.
fn metadata() -> Result {
    let read = |field| Call::new(leaf::SYS_RD.into(), [0, field, 0, 0]).make();
    let profile = MODULE.profile().name;
    let is_old = profile == PROFILE_1_5_01.name;
    let is_shared = profile == PROFILE_1_5_05_SHARED.name;
    // Without VMX there is no SEAMCALL, without processors that are initialised no SYS.RD.
    if begin().is_none() || !read(METADATA[0].0).status.is_success() {
        skip();
        return Ok(());
    }

    let mut wrong = 0;
    for (field, value, shared, old) in METADATA {
        let has_lass = ffi::cpuid(7, 1)[0] >> 6 & 1 != 0 && !is_old && !is_shared;
        let lass = u64::from(field == ATTRIBUTES_FIXED0 && has_lass) * ATTRIBUTE_LASS;
        let other = if is_old {
            old
        } else {
            shared.filter(|_| is_shared)
        };
        let expected = other.unwrap_or(value) | lass;
        let answer = read(field);
        let got = answer.registers[2];
        if !answer.status.is_success() || got != expected {
            let status = answer.status.raw();
            say(fmt!(
                "{field:#x}: {status:#x}, {got:#x} instead of {expected:#x}"
            ));
            wrong += 1;
        }
    }

    // The first that Linux asks for and 1.5.01 does not have.
    let vcpus = read(MAX_VCPUS_PER_TD);
    let unknown_leaf = Status::OPERAND_INVALID.on(Operand::Rax);
    let with_id = Call::new(1 << 16 | u64::from(leaf::VP_INIT), [1, 0, 0, 0]).make();
    let consistent = if is_old {
        vcpus.status == Status::METADATA_FIELD_ID_INCORRECT && with_id.status == unknown_leaf
    } else {
        let no_page = Status::OPERAND_INVALID.on(Operand::Rcx);
        vcpus.registers[2] == 576 && with_id.status == no_page
    };
    if !consistent {
        let (vcpus, with_id) = (vcpus.status.raw(), with_id.status.raw());
        say(fmt!(
            "vCPUs of a TD {vcpus:#x}, VP.INIT with an x2APIC id {with_id:#x}"
        ));
        wrong += 1;
    }
    if profile != PROFILE_1_5_05.name {
        let status = Call::new(leaf::SYS_DISABLE.into(), [0; 4]).make().status;
        if status != unknown_leaf && status != Status::SYS_NOT_READY {
            say(fmt!("SYS.DISABLE: {:#x}", status.raw()));
            wrong += 1;
        }
    }
    say(fmt!("profile {profile}"));
    if wrong == 0 {
        Ok(())
    } else {
        Err(EINVAL)
    }
}

#[kunit_tests(tdx_emulator_pairs)]
mod pairs {
    use super::*;

    #[test]
    fn sys_leaves_hold_their_locks() -> Result {
        matrix("SYS.")
    }

    #[test]
    fn mng_leaves_hold_their_locks() -> Result {
        matrix("MNG.")
    }

    #[test]
    fn vp_leaves_hold_their_locks() -> Result {
        matrix("VP.")
    }

    #[test]
    fn mem_leaves_hold_their_locks() -> Result {
        matrix("MEM.")
    }

    #[test]
    fn mr_leaves_hold_their_locks() -> Result {
        matrix("MR.")
    }

    #[test]
    fn phymem_leaves_hold_their_locks() -> Result {
        matrix("PHYMEM.")
    }

    #[test]
    fn leaves_of_one_vcpu() -> Result {
        let about_vcpu = facts::is_about_vcpu;
        related(
            Relation::SameVcpu,
            |a, b| about_vcpu(a) && about_vcpu(b),
            27,
        )
    }

    #[test]
    fn leaves_of_one_address() -> Result {
        let of_4k = |number| {
            matches!(
                number,
                leaf::MEM_PAGE_AUG | leaf::MEM_RANGE_BLOCK | leaf::MEM_PAGE_REMOVE
            )
        };
        let is_sept_add = |number| number == leaf::MEM_SEPT_ADD;
        related(
            Relation::SameGpa,
            |a, b| of_4k(a) && of_4k(b) || is_sept_add(a) && is_sept_add(b),
            10,
        )
    }

    #[test]
    fn leaves_of_one_page() -> Result {
        let looks = |number| matches!(number, leaf::PHYMEM_PAGE_RDMD | leaf::PHYMEM_PAGE_WBINVD);
        let gives = |number| number == leaf::MEM_PAGE_REMOVE;
        related(
            Relation::SamePage,
            |a, b| (takes_page(a) || looks(a) || gives(a)) && (takes_page(b) || looks(b)),
            60,
        )
    }

    #[test]
    fn leaves_of_two_tds() -> Result {
        related(
            Relation::OtherTd,
            |a, b| is_about_td(a) && is_about_td(b),
            3,
        )
    }
}

#[kunit_tests(tdx_emulator)]
mod cases {
    use super::*;

    #[test]
    fn vp_inits_of_two_vcpus() -> Result {
        with_rig(|rig| {
            let vp_init = LeafInfo::by_number(leaf::VP_INIT).ok_or(ENOENT)?;
            let found = rig.pair(vp_init, vp_init, Relation::SameTd)?;
            let expected = if rig.shared_vp_init { '.' } else { 'T' };
            if found != expected {
                rig.complain(fmt!("found {found}, expected {expected}"));
            }
            Ok(())
        })
    }

    #[test]
    fn a_large_page_and_small_ones() -> Result {
        with_rig(large_page)
    }

    #[test]
    fn a_host_that_waits_keeps_guests_away() -> Result {
        with_rig(Rig::host_priority)
    }

    #[test]
    fn the_key_table_is_busy_once() -> Result {
        with_rig(Rig::key_table_busy)
    }

    #[test]
    fn pages_come_back_once_they_are_flushed() -> Result {
        with_rig(pages::come_back)
    }

    #[test]
    fn malformed_td_params() -> Result {
        with_rig(malformed::td_params)
    }

    #[test]
    fn malformed_tdmrs_and_pamts() -> Result {
        with_rig(malformed::tdmrs)
    }

    #[test]
    fn metadata_is_that_of_the_profile() -> Result {
        metadata()
    }
}
