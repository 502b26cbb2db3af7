// SPDX-License-Identifier: GPL-2.0

//! A TD's root page (TDR) and its control structure (TDCS).

/// How far a TD's key is configured or given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum LifeCycle {
    /// It has an HKID, whose key is not on all packages yet.
    HkidAssigned = 0,
    /// Its memory is accessible.
    KeysConfigured = 1,
    /// Its memory is not accessible any more; caches are being written back.
    Blocked = 2,
    /// Its HKID is free again; its pages can be reclaimed.
    Teardown = 3,
}

impl LifeCycle {
    /// The name of the state.
    pub const fn name(self) -> &'static str {
        match self {
            LifeCycle::HkidAssigned => "HKID_ASSIGNED",
            LifeCycle::KeysConfigured => "KEYS_CONFIGURED",
            LifeCycle::Blocked => "BLOCKED",
            LifeCycle::Teardown => "TEARDOWN",
        }
    }

    pub(super) const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => LifeCycle::HkidAssigned,
            1 => LifeCycle::KeysConfigured,
            2 => LifeCycle::Blocked,
            _ => LifeCycle::Teardown,
        }
    }
}

/// What can be done with a TD whose keys are configured.
///
/// The states between are those of migration, which this module does not do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OpState {
    /// It does not have all control pages. Not a stored state.
    Unallocated = 0xff,
    /// It has all control pages.
    Uninitialized = 0,
    /// It has parameters; memory and vCPUs are being added.
    Initialized = 1,
    /// It can run.
    Runnable = 2,
}

impl OpState {
    /// The name of the state.
    pub const fn name(self) -> &'static str {
        match self {
            OpState::Unallocated => "UNALLOCATED",
            OpState::Uninitialized => "UNINITIALIZED",
            OpState::Initialized => "INITIALIZED",
            OpState::Runnable => "RUNNABLE",
        }
    }

    pub(super) const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => OpState::Uninitialized,
            1 => OpState::Initialized,
            2 => OpState::Runnable,
            _ => OpState::Unallocated,
        }
    }
}

/// What can be seen of a TD from outside.
#[derive(Clone, Copy, Debug)]
pub struct TdInfo {
    /// Its TDR.
    pub tdr: u64,
    /// Its HKID; still the former one once it was given back.
    pub hkid: u16,
    /// How far its key is configured.
    pub life_cycle: LifeCycle,
    /// What can be done with it.
    pub op_state: OpState,
    /// Whether something went wrong from which it does not recover.
    pub fatal: bool,
    /// The number of initialised vCPUs.
    pub vcpus: u64,
    /// The number of 4 KiB pages it owns, the TDR not counted.
    pub pages: u64,
    /// The measurement, once it is final.
    pub mrtd: Option<[u8; 48]>,
}
