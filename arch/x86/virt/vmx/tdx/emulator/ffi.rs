// SPDX-License-Identifier: GPL-2.0

//! The border to C: what `emulator_glue.c` calls, and what it lends the module.
//!
//! The only file of the emulator with `unsafe` code.

use crate::{
    memory::{
        self,
        Page,
        PageState,
        PAGE_SIZE,
        WORDS, //
    },
    module::{
        LeafInfo,
        MemoryRange,
        Regs, //
    }, //
};
use core::{
    arch::asm,
    cell::Cell,
    mem::offset_of,
    sync::atomic::AtomicU64, //
};
use kernel::{
    bindings,
    ffi::{
        c_char,
        c_int, //
    },
    prelude::*,
    seq_file::SeqFile, //
};

/// Prepares the module for its first SEAMCALL.
///
/// # Safety
///
/// `profile` must point at a terminated string.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_start(profile: *const c_char, plain: bool) -> c_int {
    // SAFETY: By the function's safety requirements.
    let profile = unsafe { CStr::from_char_ptr(profile) };

    match crate::start(profile, plain) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Checks that each register of the module's [`Regs`] is where `struct pt_regs` has it.
macro_rules! check_registers {
    ($($ours:ident = $theirs:ident,)*) => {
        $(const _: () = assert!(
            offset_of!(Regs, $ours) == offset_of!(bindings::pt_regs, $theirs)
        );)*
    };
}

check_registers! {
    rax = ax,
    rcx = cx,
    rdx = dx,
    rbx = bx,
    rbp = bp,
    rsi = si,
    rdi = di,
    r8 = r8,
    r9 = r9,
    r10 = r10,
    r11 = r11,
    r12 = r12,
    r13 = r13,
    r14 = r14,
    r15 = r15,
}

/// Answers the SEAMCALL that was made with these registers.
///
/// Returns false, with the registers as they were, if there is no module to answer it.
///
/// # Safety
///
/// `regs` must point at the registers of an exception in progress, which nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_seamcall(regs: *mut bindings::pt_regs) -> bool {
    // SAFETY: By the function's safety requirements; the registers begin with these, in this order,
    // as is checked above.
    crate::seamcall(unsafe { &mut *regs.cast::<Regs>() })
}

/// Writes the name of the leaf of that number, terminated, if the module has such a leaf.
///
/// # Safety
///
/// `name` must point at `size` writable bytes that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_leaf_name(
    number: u16,
    name: *mut c_char,
    size: usize,
) -> bool {
    // SAFETY: By the function's safety requirements.
    let to = unsafe { core::slice::from_raw_parts_mut(name.cast::<u8>(), size) };

    match LeafInfo::by_number(number) {
        Some(info) if info.modelled && info.name.len() < to.len() => {
            to.fill(0);
            for (to, from) in to.iter_mut().zip(info.name.bytes()) {
                *to = from;
            }
            true
        }
        _ => false,
    }
}

/// Writes the debugfs file `leaves`.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_show_leaves(m: *mut bindings::seq_file) {
    // SAFETY: By the function's safety requirements.
    crate::show::leaves(unsafe { SeqFile::from_raw(m) });
}

/// Writes the debugfs file `statuses` of the leaf of that number.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_show_statuses(m: *mut bindings::seq_file, leaf: u16) {
    // SAFETY: By the function's safety requirements.
    crate::show::statuses(unsafe { SeqFile::from_raw(m) }, leaf);
}

/// Writes the debugfs file `tds`.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_show_tds(m: *mut bindings::seq_file) {
    // SAFETY: By the function's safety requirements.
    crate::show::tds(unsafe { SeqFile::from_raw(m) });
}

/// Writes the debugfs file `tdmrs`.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_show_tdmrs(m: *mut bindings::seq_file) {
    // SAFETY: By the function's safety requirements.
    crate::show::tdmrs(unsafe { SeqFile::from_raw(m) });
}

/// Writes the debugfs file `accounting`.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_show_accounting(m: *mut bindings::seq_file) {
    // SAFETY: By the function's safety requirements.
    crate::show::accounting(unsafe { SeqFile::from_raw(m) });
}

/// Writes the debugfs file `bench`, or `bench_profile`.
///
/// # Safety
///
/// `m` must point at a `struct seq_file` that nothing else accesses.
#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_bench(
    m: *mut bindings::seq_file,
    pa: u64,
    pages: u64,
    hkid: u64,
    profile: bool,
) -> bool {
    // SAFETY: By the function's safety requirements.
    let m = unsafe { SeqFile::from_raw(m) };
    let ways: &[Way] = if profile {
        &[Way::Profile]
    } else {
        &[Way::Trap, Way::Core, Way::Trap, Way::Core]
    };

    crate::bench::run(m, pa, pages, hkid, ways)
}

/// The size of a page.
#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
pub(crate) const PAGE: u64 = kernel::page::PAGE_SIZE as u64;

/// How the benchmark calls the module.
#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// By a SEAMCALL.
    Trap,
    /// Without a trap.
    Core,
    /// Without a trap, each instruction counted.
    Profile,
}

/// Calls the module. The operands are RCX, RDX, R8 and R9. A profile is printed to `m`.
///
/// Returns the status and how many ticks it took.
#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
pub(crate) fn bench_seamcall(m: &SeqFile, rax: u64, operands: [u64; 4], way: Way) -> (u64, u64) {
    let [rcx, rdx, r8, r9] = operands;
    let mut regs = bindings::tdx_emulator_bench_regs {
        rax,
        rcx,
        rdx,
        r8,
        r9,
    };
    if way == Way::Profile {
        // CAST: `SeqFile` is a transparent wrapper of `struct seq_file`.
        let m = core::ptr::from_ref(m).cast_mut().cast();
        // SAFETY: The pointers are valid, and a SEAMCALL may have any operands.
        unsafe { bindings::tdx_emulator_bench_profile(m, &mut regs) };
        return (regs.rax, 0);
    }
    // SAFETY: The pointer is valid, and a SEAMCALL may have any operands.
    let ticks = unsafe { bindings::tdx_emulator_bench_seamcall(&mut regs, way == Way::Trap) };
    (regs.rax, ticks)
}

/// How many ticks the compression of so many blocks by SHA-384 takes.
#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
pub(crate) fn bench_sha384(blocks: usize) -> u64 {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_bench_sha384(blocks) }
}

/// Finds up to `nr` pages of TDs whose HKID was freed, TDRs last. Returns how many.
///
/// # Safety
///
/// `pages` must be valid for writes of so many, and nobody else may access them meanwhile.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_orphans(pages: *mut u64, nr: usize) -> usize {
    // SAFETY: By the function's safety requirements; any bits are a `u64`.
    let pages = unsafe { core::slice::from_raw_parts_mut(pages, nr) };
    crate::show::orphans(pages)
}

/// Looks at all pages that are not the host's.
///
/// # Safety
///
/// No processor may be inside a SEAMCALL, or pages may be taken for written to.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_check_memory() {
    memory::check();
}

/// How often the host was found out.
///
/// # Safety
///
/// None; the C declaration makes it unsafe.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_host_errors() -> u32 {
    memory::host_errors()
}

/// Whether a page is a TD's or the module's, as far as pages are watched.
///
/// # Safety
///
/// None; the C declaration makes it unsafe.
#[export]
pub(crate) unsafe extern "C" fn tdx_emulator_page_owned(pa: u64) -> bool {
    memory::is_owned(pa)
}

const _: () = assert!(size_of::<PageState>() == size_of::<bindings::tdx_emulator_page>());

/// A range of RAM.
type RamRange = bindings::tdx_emulator_ram;

/// The ranges of RAM. Those that are not used are empty.
#[inline(always)]
fn ram() -> &'static [RamRange; bindings::TDX_EMULATOR_NR_CMRS as usize] {
    // SAFETY: Written before the first SEAMCALL, and not since.
    unsafe { &*core::ptr::addr_of!(bindings::tdx_emulator_ram) }
}

/// Finds pages of RAM.
pub(crate) struct Ram {
    /// Where the last one was.
    range: Cell<&'static RamRange>,
}

impl Ram {
    /// All of it.
    #[inline(always)]
    pub(crate) fn new() -> Self {
        let [first, ..] = ram();
        Self {
            range: Cell::new(first),
        }
    }

    /// The page that `pa` lies in, if it is RAM and mapped.
    ///
    /// A TDX module is handed addresses by its host and has to survive all of them.
    #[inline(always)]
    pub(crate) fn page(&self, pa: u64) -> Option<Page> {
        let mut range = self.range.get();
        if pa.wrapping_sub(range.base) >= range.size {
            range = self.find(pa)?;
        }
        page_in(range, pa)
    }

    #[cold]
    #[inline(never)]
    fn find(&self, pa: u64) -> Option<&'static RamRange> {
        let contains = |range: &&RamRange| pa.wrapping_sub(range.base) < range.size;
        let range = ram().iter().find(contains)?;
        self.range.set(range);
        Some(range)
    }
}

/// The page of RAM that `pa` lies in, if it is RAM and mapped.
pub(crate) fn ram_page(pa: u64) -> Option<Page> {
    Ram::new().page(pa)
}

/// The page in this range that `pa` lies in, if it is mapped.
#[inline(always)]
fn page_in(range: &RamRange, pa: u64) -> Option<Page> {
    let index = (pa.wrapping_sub(range.base) / PAGE_SIZE) as usize;
    let words = range.va.cast::<[AtomicU64; WORDS]>().wrapping_add(index);
    if !is_mapped(words.cast()) {
        return None;
    }
    // SAFETY: This is a whole page of the direct map, which stays, and is mapped now. The module
    // accesses it by atomic operations only. The host may do as it likes: like a real module, this
    // one takes what it finds for what it is, bits.
    let words = unsafe { &*words };

    // SAFETY: An array with an entry for each page of the range, of which this is one. It is never
    // freed, begins as zeros, and is accessed in this way only.
    let state = unsafe { &*range.pages.cast::<PageState>().add(index) };
    Some(Page {
        words,
        mask: memory::mask(pa),
        state,
    })
}

/// Whether an address of the direct map is mapped: DEBUG_PAGEALLOC and memfd_secret() take pages
/// out of it.
#[inline(always)]
fn is_mapped(va: *const u8) -> bool {
    /// `EX_TYPE_DEFAULT`: go on where the entry says.
    const EX_TYPE_DEFAULT: i32 = 1;

    // SAFETY: Only looks at one byte. If that faults, the exception table continues at the label,
    // where the page fault handler gets without sleeping, as this is an address of the kernel.
    unsafe {
        asm!(
            "2: cmpb $0, ({va})",
            ".pushsection __ex_table, \"aM\", @progbits, 12",
            ".balign 4",
            ".long 2b - .",
            ".long {unmapped} - .",
            ".long {handler}",
            ".popsection",
            va = in(reg) va,
            unmapped = label { return false },
            handler = const EX_TYPE_DEFAULT,
            options(att_syntax, nostack),
        );
    }
    true
}

/// The convertible memory range of that index, in ascending order.
pub(crate) fn cmr(index: usize) -> Option<MemoryRange> {
    let mut range = MemoryRange::default();
    // SAFETY: Both pointers are valid for writes.
    unsafe { bindings::tdx_emulator_cmr(index, &mut range.base, &mut range.size) }.then_some(range)
}

/// The bits of a physical address without the HKID.
pub(crate) fn phys_bits() -> u32 {
    // SAFETY: Only reads what was determined at boot.
    unsafe { bindings::tdx_emulator_phys_bits() }
}

/// MSR `IA32_MKTME_KEYID_PARTITIONING`.
pub(crate) fn keyid_partitioning() -> u64 {
    // SAFETY: Only reads what was determined at boot.
    unsafe { bindings::tdx_emulator_keyid_partitioning() }
}

/// The number of this logical processor.
pub(crate) fn lp() -> u32 {
    // SAFETY: Only called with interrupts off, from a SEAMCALL.
    unsafe { bindings::tdx_emulator_lp() }
}

/// The number of logical processors.
pub(crate) fn lp_count() -> u32 {
    // SAFETY: Only reads counters.
    unsafe { bindings::tdx_emulator_lp_count() }
}

/// The number of this package.
pub(crate) fn package() -> u32 {
    // SAFETY: Only called with interrupts off, from a SEAMCALL.
    unsafe { bindings::tdx_emulator_package() }
}

/// The number of packages.
pub(crate) fn package_count() -> u32 {
    // SAFETY: Only reads what was determined at boot.
    unsafe { bindings::tdx_emulator_package_count() }
}

/// Random bits, if there are any.
pub(crate) fn random64() -> Option<u64> {
    let mut value = 0;
    // SAFETY: The pointer is valid for writes.
    unsafe { bindings::tdx_emulator_random64(&mut value) }.then_some(value)
}

/// The time-stamp counter.
pub(crate) fn tsc() -> u64 {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_tsc() }
}

/// The frequency of the time-stamp counter.
pub(crate) fn tsc_hz() -> u64 {
    // SAFETY: Only reads what was determined at boot.
    unsafe { bindings::tdx_emulator_tsc_hz() }
}

/// The processor's own CPUID: EAX, EBX, ECX, EDX.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    let mut regs = [0; 4];
    // SAFETY: The pointer is valid for four values.
    unsafe { bindings::tdx_emulator_cpuid(leaf, subleaf, regs.as_mut_ptr()) };
    regs
}

/// A model-specific register, if it exists.
pub(crate) fn rdmsr(msr: u32) -> Option<u64> {
    let mut value = 0;
    // SAFETY: The pointer is valid for writes, and a register that does not exist is no error.
    unsafe { bindings::tdx_emulator_rdmsr(msr, &mut value) }.then_some(value)
}

/// Feeds whole blocks of 128 bytes to the compression function of SHA-384.
pub(crate) fn sha384_blocks(state: &mut [u64; 8], blocks: &[u8]) {
    let count = blocks.len() / 128;
    // SAFETY: The state has eight words, the data has `count` blocks.
    unsafe { bindings::tdx_emulator_sha384_blocks(state.as_mut_ptr(), blocks.as_ptr(), count) }
}

/// What this call of a leaf shall be answered with instead of running, and else for how many
/// microseconds it is to hold its locks.
pub(crate) fn inject(leaf: u16) -> (Option<u64>, u32) {
    let mut hold_us = 0;
    // SAFETY: The pointer is valid for writes.
    let status = unsafe { bindings::tdx_emulator_inject(leaf, &mut hold_us) };
    ((status != 0).then_some(status), hold_us)
}

/// Waits for that many microseconds, which [`inject`] gave for this leaf, or until a reset.
pub(crate) fn hold(leaf: u16, us: u32) {
    // SAFETY: Only waits. The leaf is one that can be injected into, as it was.
    unsafe { bindings::tdx_emulator_hold(leaf, us) }
}

/// Whether this request for entropy shall fail.
pub(crate) fn inject_no_entropy() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_inject_no_entropy() }
}

/// Whether this request shall find the key table in use.
pub(crate) fn inject_key_table_busy() -> bool {
    // SAFETY: Has no requirements.
    unsafe { bindings::tdx_emulator_inject_key_table_busy() }
}

/// Whether somebody listens to the tracepoint.
pub(crate) fn traced() -> bool {
    // SAFETY: Only reads a static key.
    unsafe { bindings::tdx_emulator_traced() }
}

/// Reports a SEAMCALL to the tracepoint.
pub(crate) fn trace(before: &Regs, after: &Regs, ticks: u64, name: &str, locks: &str) {
    let call = bindings::tdx_emulator_call {
        rax: before.rax,
        rcx: before.rcx,
        rdx: before.rdx,
        r8: before.r8,
        r9: before.r9,
        status: after.rax,
        out_rcx: after.rcx,
        out_rdx: after.rdx,
        out_r8: after.r8,
        ticks,
        lp: lp(),
        name_len: name.len() as u32,
        locks_len: locks.len() as u32,
        name: name.as_ptr().cast(),
        locks: locks.as_ptr().cast(),
    };
    // SAFETY: The pointers in `call` are valid for the lengths beside them.
    unsafe { bindings::tdx_emulator_trace(&call) }
}
