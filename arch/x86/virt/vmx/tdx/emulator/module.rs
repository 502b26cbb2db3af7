// SPDX-License-Identifier: GPL-2.0

//! The core of a software Intel TDX module: what the host sees of TDX, without the protection.
//!
//! [`Module::seamcall`] takes the registers of a SEAMCALL and leaves the ones the module would
//! return. What the module needs from the machine, memory included, is a [`Platform`]; which
//! published module it behaves like is a [`Profile`]. Nothing here is global, unsafe, allocates or
//! waits, so the same code serves in the kernel and in tests on any host.
//!
//! State lies where a real module keeps it: who owns a page is in the PAMT, in memory that the
//! host gave for it; a TD's state is in its TDR, its TDCS and its vCPUs' TDVPRs; its page tables
//! are in Secure EPT pages. Only the structures that a real module keeps in memory of its own are
//! in [`Module`].
//!
//! Nothing is confidential: contents are not encrypted.

#![deny(unsafe_code)]

mod address;
mod cpuid;
mod dispatch;
mod guest;
mod hold;
mod inspect;
mod keys;
mod leaf;
mod locks;
mod measurement;
mod metadata;
mod open;
mod pamt;
mod place;
mod platform;
mod profile;
mod regs;
mod sept;
mod status;
mod sys;
mod td;
mod td_params;
mod tdmr;
mod vp;

pub use dispatch::{
    CallResult,
    Outcome, //
};
pub use inspect::{
    PageInfo,
    TdInfo,
    TdmrView,
    VcpuInfo, //
};
pub use keys::{
    KotEntry,
    KotState, //
};
pub use leaf::{
    Answer,
    LeafInfo,
    LeafLock,
    LockOf,
    Versions, //
};
pub use locks::{
    Lock,
    LockMode,
    LockRecord, //
};
pub use pamt::PageType;
pub use platform::{
    Event,
    FoundPage,
    FoundWord,
    GuestExit,
    GuestVcpu,
    KeyPartition,
    KeyProgram,
    MemoryRange,
    PageRecord,
    PhysicalLayout,
    Platform,
    Smrr, //
};
pub use profile::{
    Profile,
    PROFILES,
    PROFILE_1_5_01,
    PROFILE_1_5_05,
    PROFILE_1_5_05_SHARED, //
};
pub use regs::Regs;
pub use status::{
    Operand,
    Status, //
};
pub use sys::SysState;
pub use td::{
    LifeCycle,
    OpState, //
};
pub use vp::VcpuState;

use core::sync::atomic::{
    AtomicU32,
    AtomicU64,
    AtomicU8, //
};

/// The model-specific register whose value must stay as it was at TDH.SYS.INIT.
const IA32_TSC_ADJUST: u32 = 0x3b;
/// The model-specific register with features that firmware can turn off.
const IA32_MISC_ENABLE: u32 = 0x1a0;
/// The model-specific register of which TDs see some bits, the same on each processor.
const IA32_ARCH_CAPABILITIES: u32 = 0x10a;

/// A software TDX module.
pub struct Module {
    profile: AtomicU8,
    state: AtomicU8,
    /// How many processors are inside [`Module::seamcall`].
    inside: AtomicU32,
    /// The lock of the SYS leaves.
    global_lock: AtomicU64,
    tsc_adjust: AtomicU64,
    arch_capabilities: AtomicU64,
    cpuid: cpuid::Sample,
    /// The processors that are initialised, one bit each.
    lps: [AtomicU64; sys::MAX_LPS / 64],
    global_hkid: AtomicU32,
    /// The packages that have the global key, one bit each.
    keyed_packages: AtomicU32,
    tdmrs: tdmr::Tdmrs,
    kot: keys::KeyOwnershipTable,
    write_back: [keys::WriteBack; keys::MAX_PACKAGES],
    /// The TDRs of TDs, 0 where there is none. Only for showing them.
    tds: [AtomicU64; td::LISTED_TDS],
    /// The number of 4 KiB pages by type. Only for showing them.
    page_counts: [AtomicU64; pamt::PAGE_TYPES],
}

impl Module {
    /// A module as it is after loading, before TDH.SYS.INIT.
    pub const fn new(profile: &'static Profile) -> Self {
        Self {
            profile: AtomicU8::new(profile.id),
            state: AtomicU8::new(SysState::InitPending as u8),
            inside: AtomicU32::new(0),
            global_lock: AtomicU64::new(0),
            tsc_adjust: AtomicU64::new(0),
            arch_capabilities: AtomicU64::new(0),
            cpuid: cpuid::Sample::new(),
            lps: [const { AtomicU64::new(0) }; sys::MAX_LPS / 64],
            global_hkid: AtomicU32::new(0),
            keyed_packages: AtomicU32::new(0),
            tdmrs: tdmr::Tdmrs::new(),
            kot: keys::KeyOwnershipTable::new(),
            write_back: [const { keys::WriteBack::new() }; keys::MAX_PACKAGES],
            tds: [const { AtomicU64::new(0) }; td::LISTED_TDS],
            page_counts: [const { AtomicU64::new(0) }; pamt::PAGE_TYPES],
        }
    }

    /// Serves a SEAMCALL that was made with `regs`, and leaves the registers it returns with there.
    ///
    /// # Context
    ///
    /// Does not sleep, wait or allocate, and ends after a bounded number of steps. May run on
    /// several processors at once; `platform` says on which one this is.
    pub fn seamcall<P: Platform>(&self, platform: &P, regs: &mut Regs) -> Outcome {
        dispatch::seamcall(self, platform, regs)
    }

    /// The status of a SEAMCALL with this RAX, as things are, if it does not get as far as a leaf.
    ///
    /// Such a status does not depend on whether the leaf is modelled.
    pub fn refusal(&self, rax: u64) -> Option<Status> {
        dispatch::refusal(self, rax)
    }

    /// The name of a leaf, without the leading `TDH.`.
    pub fn leaf_name(number: u16) -> Option<&'static str> {
        LeafInfo::by_number(number).map(|info| info.name)
    }
}
