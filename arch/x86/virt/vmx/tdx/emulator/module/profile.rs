// SPDX-License-Identifier: GPL-2.0

//! The published modules that this one can behave like.

use super::cpuid::CpuidConfig;

/// What differs from one published module to the next.
#[derive(Debug)]
pub struct Profile {
    /// The name, as it is chosen by.
    pub name: &'static str,
    pub(super) id: u8,
    /// The update version that metadata reports.
    pub(super) update_version: u64,
    /// `TDX_FEATURES0`.
    pub(super) features0: u64,
    /// TD attributes that may be set, apart from those the processor must have too.
    pub(super) attributes_fixed0: u64,
    /// TDH.VP.INIT takes an x2APIC id in its version 1.
    pub(super) topology_enumeration: bool,
    /// TDH.VP.INIT locks the TDR exclusively in its version 1.
    pub(super) strict_versions: bool,
    /// TDs may have LASS, where the processor has it.
    pub(super) lass: bool,
    /// The largest number of vCPUs that a TD may ask for.
    pub(super) max_vcpus_per_td: Option<u32>,
    /// The configurable CPUID leaves, in the order of `TD_PARAMS`.
    pub(super) cpuid_config: &'static [CpuidConfig],
    /// Metadata reports allowed bits as configurable where the processor has them.
    pub(super) cpuid_config_reports_allowed: bool,
    /// TDH.SYS.DISABLE exists.
    pub(super) sys_disable: bool,
    /// A TD that asked for RBP to be left alone gets that on all exits.
    pub(super) keeps_rbp: bool,
    /// How many 4 KiB PAMT entries a TDH.SYS.TDMR.INIT initialises.
    pub(super) tdmr_init_pages: u64,
}

/// Behaves like module 1.5.05, the first that Linux 7.3 comes up on.
pub static PROFILE_1_5_05: Profile = Profile {
    name: "1.5.05",
    id: 0,
    update_version: 5,
    features0: 0x1f_0ebf,
    attributes_fixed0: 0x8000_0000_7000_0001,
    topology_enumeration: true,
    strict_versions: true,
    lass: true,
    max_vcpus_per_td: Some(576),
    cpuid_config: &super::cpuid::CONFIG_1_5_05,
    cpuid_config_reports_allowed: true,
    sys_disable: true,
    keeps_rbp: true,
    tdmr_init_pages: 32 * 1024,
};

/// Behaves like module 1.5.01. Linux 7.3 refuses it: it does not say how many vCPUs a TD may have.
pub static PROFILE_1_5_01: Profile = Profile {
    name: "1.5.01",
    id: 1,
    update_version: 0,
    features0: 0x0f_0ebf,
    attributes_fixed0: 0x8000_0000_7000_0001,
    topology_enumeration: false,
    strict_versions: false,
    lass: false,
    max_vcpus_per_td: None,
    cpuid_config: &super::cpuid::CONFIG_1_5_01,
    cpuid_config_reports_allowed: false,
    sys_disable: false,
    keeps_rbp: false,
    tdmr_init_pages: 1024,
};

/// Behaves like no module that was published: what 1.5.05 added in the manner of 1.5.01.
///
/// TDH.VP.INIT locks the TDR as it always did, with x2APIC ids too. There is no LASS and no
/// TDH.SYS.DISABLE, and TDH.SYS.TDMR.INIT initialises as little at a time as 1.5.01's.
pub static PROFILE_1_5_05_SHARED: Profile = Profile {
    name: "1.5.05-shared",
    id: 2,
    strict_versions: false,
    lass: false,
    sys_disable: false,
    tdmr_init_pages: PROFILE_1_5_01.tdmr_init_pages,
    ..PROFILE_1_5_05
};

/// All profiles; the first is the default.
pub static PROFILES: [&Profile; 3] = [&PROFILE_1_5_05, &PROFILE_1_5_01, &PROFILE_1_5_05_SHARED];

impl Profile {
    /// The profile of that name.
    pub fn by_name(name: &str) -> Option<&'static Profile> {
        PROFILES
            .iter()
            .copied()
            .find(|profile| profile.name == name)
    }
}
