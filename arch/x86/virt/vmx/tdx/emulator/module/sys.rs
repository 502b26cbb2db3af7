// SPDX-License-Identifier: GPL-2.0

//! The state of the module as a whole: how far it, its processors and packages are initialised.

use super::{
    dispatch::Call,
    keys::KotState,
    locks::{
        Lock,
        LockMode,
        Way,
        Word, //
    },
    platform::Platform,
    profile::{
        Profile,
        PROFILES,
        PROFILE_1_5_05, //
    },
    status::Status,
    Module,
    IA32_ARCH_CAPABILITIES,
    IA32_TSC_ADJUST, //
};
use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};

/// The largest number of logical processors.
pub(super) const MAX_LPS: usize = 1024;

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

/// A processor that is inside [`Module::seamcall`].
pub(super) struct Inside<'a> {
    module: &'a Module,
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        self.module.inside.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Module {
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

    pub(super) fn set_sys_state(&self, state: SysState) {
        self.state.store(state as u8, Ordering::Release);
    }

    /// Notes that a processor is inside, until the result is dropped.
    pub(super) fn enter(&self) -> Inside<'_> {
        self.inside.fetch_add(1, Ordering::AcqRel);
        Inside { module: self }
    }

    /// Whether another processor is inside too.
    pub(super) fn others_inside(&self) -> bool {
        self.inside.load(Ordering::Acquire) > 1
    }

    /// Takes the lock of the SYS leaves.
    pub(super) fn lock_global<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        mode: LockMode,
    ) -> Result<(), Status> {
        let word = Word::Local(&self.global_lock);
        call.take(word, Way::sharex(mode), Lock::Global, mode)
            .map_err(|_| Status::SYS_BUSY)
    }

    /// Remembers what must not change from now on.
    pub(super) fn sample_platform<P: Platform>(&self, platform: &P) {
        let arch_capabilities = platform.rdmsr(IA32_ARCH_CAPABILITIES);
        self.arch_capabilities
            .store(arch_capabilities, Ordering::Relaxed);
        self.cpuid.take(platform);
        let tsc_adjust = platform.rdmsr(IA32_TSC_ADJUST);
        self.tsc_adjust.store(tsc_adjust, Ordering::Release);
    }

    /// An MSR of this processor whose value is not what it was at TDH.SYS.INIT.
    pub(super) fn inconsistent_msr<P: Platform>(&self, platform: &P) -> Option<u32> {
        if !self.tsc_adjust_unchanged(platform) {
            return Some(IA32_TSC_ADJUST);
        }
        let arch_capabilities = self.arch_capabilities.load(Ordering::Relaxed);
        (platform.rdmsr(IA32_ARCH_CAPABILITIES) != arch_capabilities)
            .then_some(IA32_ARCH_CAPABILITIES)
    }

    /// Whether `IA32_TSC_ADJUST` is what it was at TDH.SYS.INIT.
    pub(super) fn tsc_adjust_unchanged<P: Platform>(&self, platform: &P) -> bool {
        platform.rdmsr(IA32_TSC_ADJUST) == self.tsc_adjust.load(Ordering::Acquire)
    }

    fn lp_word(&self, lp: u32) -> Option<(&AtomicU64, u64)> {
        let word = self.lps.get((lp / 64) as usize)?;
        Some((word, 1u64.wrapping_shl(lp % 64)))
    }

    pub(super) fn lp_is_initialized(&self, lp: u32) -> bool {
        self.lp_word(lp)
            .is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    pub(super) fn set_lp_initialized(&self, lp: u32) {
        if let Some((word, bit)) = self.lp_word(lp) {
            word.fetch_or(bit, Ordering::AcqRel);
        }
    }

    pub(super) fn all_lps_initialized<P: Platform>(&self, platform: &P) -> bool {
        let ones = |word: &AtomicU64| word.load(Ordering::Acquire).count_ones();
        let initialized: u32 = self.lps.iter().map(ones).sum();
        initialized >= platform.lp_count()
    }

    pub(super) fn forget_lps(&self) {
        for word in &self.lps {
            word.store(0, Ordering::Release);
        }
    }

    /// Takes an HKID for the module itself.
    pub(super) fn reserve_global_hkid(&self, hkid: u16) {
        self.global_hkid.store(u32::from(hkid), Ordering::Release);
        self.kot.set(hkid, KotState::Reserved, 0);
    }

    /// The HKID of the module itself.
    pub fn global_hkid(&self) -> u16 {
        self.global_hkid.load(Ordering::Acquire) as u16
    }

    pub(super) fn package_has_key(&self, package: u32) -> bool {
        let bit = 1u32.wrapping_shl(package);
        self.keyed_packages.load(Ordering::Acquire) & bit != 0
    }

    /// Notes that a package has the global key. Returns how many do.
    pub(super) fn set_package_has_key(&self, package: u32) -> u32 {
        let bit = 1u32.wrapping_shl(package);
        let packages = self.keyed_packages.fetch_or(bit, Ordering::AcqRel) | bit;
        packages.count_ones()
    }

    /// The number of HKIDs that TDs use.
    pub fn hkids_in_use(&self) -> usize {
        self.kot.in_use()
    }

    /// The entry of an HKID in the key ownership table.
    pub fn kot_entry(&self, hkid: u16) -> super::KotEntry {
        self.kot.get(hkid)
    }
}
