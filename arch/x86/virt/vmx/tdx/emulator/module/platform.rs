// SPDX-License-Identifier: GPL-2.0

//! What the module needs from the machine it runs on.

use super::{
    locks::LockRecord,
    pamt::PageType,
    regs::Regs,
    status::Status, //
};

/// A range of physical memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryRange {
    /// The first byte.
    pub base: u64,
    /// The number of bytes.
    pub size: u64,
}

/// How a physical address is divided into the address proper and the HKID.
///
/// The HKID lies directly above the address proper: an address with HKID `h` is
/// `pa | h << address_bits`. Linux computes it the same way, with `x86_phys_bits` in this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalLayout {
    /// Bits of the address proper, without HKID bits. At most 52.
    pub address_bits: u32,
    /// Bits that hold the HKID. `address_bits + hkid_bits` is at most 52.
    pub hkid_bits: u32,
}

/// How the platform's key identifiers are divided, as `IA32_MKTME_KEYID_PARTITIONING` says.
///
/// HKIDs up to `mktme_keys` are shared, the `tdx_keys` that follow are private.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyPartition {
    /// The number of keys for MK-TME, not counting HKID 0.
    pub mktme_keys: u32,
    /// The number of keys for TDX.
    pub tdx_keys: u32,
}

/// The answer of PCONFIG to a request for a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyProgram {
    /// The key is in place on this package.
    Done,
    /// Another logical processor is using the package's key table.
    TableBusy,
    /// There was not enough entropy for a key.
    NoEntropy,
}

/// The range registers of system management mode (SMRR).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Smrr {
    /// Whether the processor can lock them.
    pub can_lock: bool,
    /// Whether they are locked.
    pub locked: bool,
    /// The memory that they protect, if they are valid.
    pub range: Option<MemoryRange>,
}

/// The vCPU that [`Platform::enter_guest`] is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GuestVcpu {
    /// The vCPU's TDVPR.
    pub tdvpr: u64,
    /// The TD's TDR.
    pub tdr: u64,
    /// The vCPU's index in its TD.
    pub index: u32,
    /// The guest gets a virtualization exception, for a page it has not accepted.
    pub inject_ve: bool,
    /// The guest's general-purpose registers.
    pub regs: Regs,
    /// The guest's instruction pointer.
    pub rip: u64,
}

/// Why a guest stopped running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestExit {
    /// The platform cannot run guests. Nothing ran.
    Unsupported,
    /// The guest executed TDCALL with these registers.
    Tdcall(Regs),
    /// A VM exit that goes to the host.
    VmExit {
        /// The exit reason.
        reason: u32,
        /// The exit qualification.
        qualification: u64,
        /// The guest-physical address, for EPT violations and misconfigurations.
        gpa: u64,
        /// The interruption information.
        interruption: u32,
        /// The guest's instruction pointer.
        rip: u64,
    },
}

/// Something that a leaf did, for tracing and for tests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A lock was taken. It is held when this is reported.
    LockTaken(LockRecord),
    /// A lock could not be had; the leaf is about to fail.
    LockBusy(LockRecord),
    /// A lock is about to be given back. It is still held when this is reported.
    LockReleasing(LockRecord),
    /// A lock was given back.
    LockReleased(LockRecord),
    /// A page now belongs to a TD.
    PageTaken(PageRecord),
    /// A page of a TD is about to be measured.
    PageMeasured(PageRecord),
    /// A page is about to be the host's again.
    PageReturned {
        /// The page.
        page: PageRecord,
        /// Caches may still hold lines of it that were written through this HKID.
        unflushed: Option<u16>,
    },
    /// Memory now belongs to the module, for a PAMT.
    PamtTaken(MemoryRange),
    /// The HKID is free. No cache holds lines that were written through it.
    KeyFreed(u16),
}

/// A page of a TD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRecord {
    /// Where it lies.
    pub range: MemoryRange,
    /// What it is used for.
    pub page_type: PageType,
    /// The TD's TDR; 0 for a TDR itself.
    pub owner: u64,
}

/// A page of memory that was found, for as long as a SEAMCALL takes.
pub trait FoundPage: Copy {
    /// A word in such a page.
    type Word: FoundWord;

    /// The 8 bytes at `pa`, a multiple of 8, which lies in the page.
    fn word(self, pa: u64) -> Self::Word;
}

/// 8 bytes of memory that were found, for as long as a SEAMCALL takes.
pub trait FoundWord: Copy {
    /// Reads them, as one access.
    fn load(self) -> u64;

    /// Writes them, as one access.
    fn store(self, value: u64);

    /// Replaces `current` by `new`, as one locked access.
    ///
    /// Returns the former value: `Ok` if it was `current`, `Err` if not and nothing was written.
    fn cas(self, current: u64, new: u64) -> Result<u64, u64>;

    /// Adds `delta`, as one locked access. Returns the former value.
    fn fetch_add(self, delta: u64) -> u64;
}

/// The machine: memory, logical processors, keys, entropy, time.
///
/// Addresses are physical, without HKID bits. Memory that does not exist reads as all ones, and
/// what is written there is lost. No method sleeps.
///
/// The host need not be able to make sense of what the module writes: what the host itself wrote
/// is read by [`read_host`](Self::read_host) and [`copy_page`](Self::copy_page) only.
pub trait Platform {
    /// A page that was found.
    type Page<'p>: FoundPage
    where
        Self: 'p;

    /// Finds the page that `pa` lies in.
    fn page(&self, pa: u64) -> Self::Page<'_>;

    /// Reads 8 bytes at an address that is a multiple of 8, as one access.
    #[inline(always)]
    fn read64(&self, pa: u64) -> u64 {
        self.page(pa).word(pa).load()
    }

    /// Writes 8 bytes at an address that is a multiple of 8, as one access.
    #[inline(always)]
    fn write64(&self, pa: u64, value: u64) {
        self.page(pa).word(pa).store(value);
    }

    /// Reads from memory, whole aligned words of 8 bytes. The range does not cross a 4 KiB boundary.
    fn read(&self, pa: u64, buffer: &mut [u8]);

    /// The same for memory of the host.
    fn read_host(&self, pa: u64, buffer: &mut [u8]) {
        self.read(pa, buffer);
    }

    /// Writes to memory, whole aligned words of 8 bytes. The range does not cross a 4 KiB boundary.
    fn write(&self, pa: u64, bytes: &[u8]);

    /// Sets `len` bytes to `byte`, whole aligned words of 8 bytes. The range does not cross a 4 KiB
    /// boundary.
    fn fill(&self, pa: u64, len: u64, byte: u8);

    /// Copies a 4 KiB page from memory of the host.
    fn copy_page(&self, to: u64, from: u64);

    /// The convertible memory range of that index, in ascending order; [`None`] after the last.
    fn cmr(&self, index: usize) -> Option<MemoryRange>;

    /// The range reserved for SEAM, if there is one.
    fn seam_range(&self) -> Option<MemoryRange> {
        None
    }

    /// The range registers of system management mode, if the machine tells of them.
    fn smrr(&self) -> Option<Smrr> {
        None
    }

    /// How physical addresses are divided.
    fn layout(&self) -> PhysicalLayout;

    /// The bits of the address proper, of all that [`layout`](Self::layout) tells.
    #[inline(always)]
    fn address_bits(&self) -> u32 {
        self.layout().address_bits
    }

    /// How HKIDs are divided.
    fn keys(&self) -> KeyPartition;

    /// The logical processor this runs on, less than [`lp_count`](Self::lp_count).
    fn current_lp(&self) -> u32;

    /// The number of logical processors that must be initialised.
    fn lp_count(&self) -> u32;

    /// The package of the logical processor this runs on.
    fn current_package(&self) -> u32;

    /// The number of packages.
    fn package_count(&self) -> u32;

    /// Random bits, [`None`] if the source is exhausted.
    fn random64(&self) -> Option<u64>;

    /// The time-stamp counter.
    fn tsc(&self) -> u64;

    /// The frequency of the time-stamp counter in Hz.
    fn tsc_hz(&self) -> u64;

    /// The processor's own CPUID: EAX, EBX, ECX, EDX.
    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4];

    /// A model-specific register of the processor this runs on; 0 where there is none.
    fn rdmsr(&self, msr: u32) -> u64;

    /// The bits of `XCR0` and of `IA32_XSS` that the processor supports, together.
    fn xfam(&self) -> u64;

    /// Feeds whole 128-byte blocks to the compression function of SHA-384.
    ///
    /// Initial value, length and padding are the caller's.
    fn sha384_blocks(&self, state: &mut [u64; 8], blocks: &[u8]);

    /// Programs a key on the current package.
    fn program_key(&self, _hkid: u16) -> KeyProgram {
        KeyProgram::Done
    }

    /// The number of pieces in which the package's caches are written back.
    fn cache_pieces(&self) -> u32 {
        8
    }

    /// Writes back and invalidates one piece of the package's caches.
    fn flush_cache_piece(&self, _piece: u32) {}

    /// Writes back and invalidates the cache lines of a page as seen through an HKID.
    fn flush_page(&self, _pa: u64, _hkid: u16) {}

    /// Whether the processor can make reports that other TDs can verify.
    fn has_local_attestation(&self) -> bool {
        false
    }

    /// Whether an interrupt waits for the host.
    fn interrupt_pending(&self) -> bool {
        false
    }

    /// Whether [`enter_guest`](Self::enter_guest) can run anything.
    fn runs_guests(&self) -> bool {
        false
    }

    /// Runs a vCPU until it exits.
    fn enter_guest(&self, _vcpu: &GuestVcpu) -> GuestExit {
        GuestExit::Unsupported
    }

    /// Is asked before a leaf runs. With a status the leaf does not run: that is the answer, and
    /// nothing else changes.
    fn inject(&self, _leaf: u16) -> Option<Status> {
        None
    }

    /// Whether [`observe`](Self::observe) wants to know of locks, now.
    fn observes(&self) -> bool {
        true
    }

    /// Is told what leaves do.
    fn observe(&self, _event: Event) {}
}
