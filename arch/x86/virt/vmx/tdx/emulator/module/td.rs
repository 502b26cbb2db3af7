// SPDX-License-Identifier: GPL-2.0

//! A TD's root page (TDR) and its control structure (TDCS).

use super::{
    address::{
        self,
        PAGE_SIZE, //
    },
    dispatch::Call,
    leaf::LeafLock,
    locks::{
        Lock,
        LockMode,
        Way,
        Word, //
    },
    pamt::{
        self,
        LockedPage,
        PageType, //
    },
    place::Place,
    platform::Platform,
    status::{
        Operand,
        Status, //
    },
    Module, //
};
use core::{
    ops::Deref,
    sync::atomic::Ordering, //
};

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

    /// The state's bit in a set of states.
    pub(super) const fn bit(self) -> u16 {
        match self {
            OpState::Unallocated => 0,
            _ => 1 << self as u8,
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

/// The number of TDCS pages without L2 VMs.
pub(super) const BASE_TDCS_PAGES: u64 = 6;
/// The largest number of TDCS pages.
pub(super) const MAX_TDCS_PAGES: u64 = 9;
/// The number of TDs that [`Module::for_each_td`] finds at once.
pub(super) const LISTED_TDS: usize = 128;

/// The TDCS page that holds MSR bitmaps.
pub(super) const TDCS_MSR_BITMAPS: u64 = 2;
/// The TDCS page that is the root of the Secure EPT.
pub(super) const TDCS_SEPT_ROOT: u64 = 3;
/// The TDCS page that stays zero.
pub(super) const TDCS_ZERO_PAGE: u64 = 4;

/// A field of a TDR, by its offset.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum TdrField {
    LifeCycle = 0x00,
    Fatal = 0x08,
    Hkid = 0x10,
    /// The packages that have the key, one bit each.
    Packages = 0x18,
    /// The number of 4 KiB pages whose owner is this TD.
    Children = 0x20,
    NumTdcx = 0x28,
    /// Where the TDCS pages are, up to [`MAX_TDCS_PAGES`] of them.
    Tdcx = 0x30,
    Uuid = 0x80,
}

/// A field of a TDCS, by its offset in the first page.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum TdcsField {
    OpStateLock = 0x000,
    SeptLock = 0x008,
    EpochLock = 0x010,
    OpState = 0x018,
    Epoch = 0x020,
    /// How many vCPUs run in an epoch: one counter for even, one for odd epochs.
    EpochUsers = 0x028,
    NumVcpus = 0x038,
    NumAssociated = 0x040,
    Attributes = 0x048,
    Xfam = 0x050,
    MaxVcpus = 0x058,
    NumL2Vms = 0x060,
    EptpControls = 0x068,
    ConfigFlags = 0x070,
    TscFrequency = 0x078,
    TscMultiplier = 0x080,
    TscOffset = 0x088,
    /// Whether every vCPU was given an x2APIC id.
    TopologyConfigured = 0x090,
    ArchCapabilities = 0x098,
    HpLockTimeout = 0x0a0,
    /// The state of the hash, 8 times 8 bytes.
    MrtdState = 0x0c0,
    /// The number of bytes hashed.
    MrtdBytes = 0x100,
    MrConfigId = 0x110,
    MrOwner = 0x140,
    MrOwnerConfig = 0x170,
    /// The final measurement, 48 bytes.
    Mrtd = 0x1a0,
    /// Four times 48 bytes.
    Rtmr = 0x1d0,
    /// The virtual CPUID values, 16 bytes each.
    Cpuid = 0x800,
}

/// A TD, by its TDR.
pub(super) struct Td<'c, P: Platform> {
    call: &'c Call<'c, P>,
    /// The TDR.
    pub(super) tdr: u64,
    root: Place<'c, P>,
}

impl<P: Platform> Clone for Td<'_, P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Td<'_, P> {}

impl<'c, P: Platform> Td<'c, P> {
    /// The TD with that TDR.
    pub(super) fn new(call: &'c Call<'c, P>, tdr: u64) -> Self {
        let root = Place::find(call.platform, tdr);
        Self { call, tdr, root }
    }

    /// Where a field of the TDR is.
    pub(super) fn at(&self, field: TdrField) -> Place<'c, P> {
        self.root.at(field as u64)
    }

    /// Reads a field of the TDR.
    pub(super) fn get(&self, field: TdrField) -> u64 {
        self.at(field).load()
    }

    /// Writes a field of the TDR.
    pub(super) fn set(&self, field: TdrField, value: u64) {
        self.at(field).store(value);
    }

    pub(super) fn life_cycle(&self) -> LifeCycle {
        LifeCycle::from_raw(self.get(TdrField::LifeCycle))
    }

    pub(super) fn is_fatal(&self) -> bool {
        self.get(TdrField::Fatal) != 0
    }

    pub(super) fn hkid(&self) -> u16 {
        self.get(TdrField::Hkid) as u16
    }

    /// Makes a page the TD's.
    pub(super) fn adopt(&self, page: &LockedPage<'_, P>, page_type: PageType) {
        self.count_children(page.pages());
        page.assign(page_type, self.tdr);
    }

    /// Gives a page of the TD back to the host, see [`LockedPage::free`].
    pub(super) fn give_back(&self, page: &LockedPage<'_, P>, unflushed: Option<u16>) {
        self.count_children(page.pages().wrapping_neg());
        page.free(unflushed);
    }

    /// Counts pages that the TD gets or, in two's complement, loses.
    fn count_children(&self, pages: u64) {
        self.at(TdrField::Children).fetch_add(pages);
    }

    /// Where the TDCS page of that index is.
    pub(super) fn tdcs_page(&self, index: u64) -> u64 {
        let offset = index.min(MAX_TDCS_PAGES.wrapping_sub(1)).wrapping_mul(8);
        // The host can overwrite the TDR here; an address must stay one of a page all the same.
        self.at(TdrField::Tdcx).at(offset).load() & address::PAGE_ADDRESS
    }

    /// Appends a TDCS page.
    pub(super) fn add_tdcs_page(&self, page: u64) {
        let count = self
            .get(TdrField::NumTdcx)
            .min(MAX_TDCS_PAGES.wrapping_sub(1));
        let place = self.at(TdrField::Tdcx).at(count.wrapping_mul(8));
        place.store(page);
        self.set(TdrField::NumTdcx, count.wrapping_add(1));
    }

    /// The TDCS, if it has all its base pages.
    #[inline]
    pub(super) fn tdcs(&self) -> Option<Tdcs<'c, P>> {
        (self.get(TdrField::NumTdcx) >= BASE_TDCS_PAGES).then(|| Tdcs {
            td: *self,
            root: Place::find(self.call.platform, self.tdcs_page(0)),
        })
    }

    /// The TDCS, if the TD's memory is accessible.
    #[inline(always)]
    pub(super) fn accessible_tdcs(&self) -> Result<Tdcs<'c, P>, Status> {
        if self.is_fatal() {
            return Err(Status::TD_FATAL);
        }
        if self.life_cycle() != LifeCycle::KeysConfigured {
            return Err(Status::TD_KEYS_NOT_CONFIGURED);
        }
        self.tdcs().ok_or(Status::TDCS_NOT_ALLOCATED)
    }
}

/// A TD whose TDR is locked.
pub(super) struct LockedTd<'c, P: Platform> {
    td: Td<'c, P>,
}

impl<'c, P: Platform> Deref for LockedTd<'c, P> {
    type Target = Td<'c, P>;

    fn deref(&self) -> &Self::Target {
        &self.td
    }
}

impl<'c, P: Platform> LockedTd<'c, P> {
    /// Locks the TD whose TDR an operand names, as the leaf declares it.
    #[inline(always)]
    pub(super) fn lock(call: &'c Call<'c, P>, tdr: u64, lock: &LeafLock) -> Result<Self, Status> {
        pamt::lock_explicit(call, tdr, lock, 0, PageType::Tdr)?;
        Ok(Self {
            td: Td::new(call, tdr),
        })
    }

    /// Locks the TD that owns a page, as the leaf declares it.
    #[inline(always)]
    pub(super) fn lock_owner(
        call: &'c Call<'c, P>,
        owner: u64,
        lock: &LeafLock,
    ) -> Result<Self, Status> {
        pamt::lock_implicit(call, owner, lock, 0)?;
        Ok(Self {
            td: Td::new(call, owner),
        })
    }
}

/// A TD's control structure.
pub(super) struct Tdcs<'c, P: Platform> {
    td: Td<'c, P>,
    root: Place<'c, P>,
}

impl<'c, P: Platform> Deref for Tdcs<'c, P> {
    type Target = Td<'c, P>;

    fn deref(&self) -> &Self::Target {
        &self.td
    }
}

impl<'c, P: Platform> Tdcs<'c, P> {
    /// The SEAMCALL that this is used in.
    pub(super) fn call(&self) -> &'c Call<'c, P> {
        self.td.call
    }

    /// The TD, for what has the same name here.
    pub(super) fn td(&self) -> &Td<'c, P> {
        &self.td
    }

    /// Where a field is.
    pub(super) fn at(&self, field: TdcsField) -> Place<'c, P> {
        self.root.at(field as u64)
    }

    /// Reads a field.
    pub(super) fn get(&self, field: TdcsField) -> u64 {
        self.at(field).load()
    }

    /// Writes a field.
    pub(super) fn set(&self, field: TdcsField, value: u64) {
        self.at(field).store(value);
    }

    /// Adds to a field that others may change too. Returns the former value.
    pub(super) fn fetch_add(&self, field: TdcsField, delta: u64) -> u64 {
        self.at(field).fetch_add(delta)
    }

    /// What can be done with the TD.
    pub(super) fn op_state(&self) -> OpState {
        OpState::from_raw(self.get(TdcsField::OpState))
    }

    pub(super) fn set_op_state(&self, state: OpState) {
        self.set(TdcsField::OpState, state as u64);
    }

    /// Keeps the operation state as it is.
    #[inline(always)]
    pub(super) fn lock_op_state(&self, lock: &LeafLock) -> Result<(), Status> {
        let word = Word::Memory(self.at(TdcsField::OpStateLock).word());
        let way = Way::sharex_host_priority(lock.mode);
        self.call()
            .take(word, way, Lock::OpState(self.tdr), lock.mode)
            .map_err(|_| lock.busy())
    }

    /// Checks that the operation state is one of those whose bits are set in `allowed`.
    #[inline(always)]
    pub(super) fn check_op_state(&self, allowed: u16) -> Result<(), Status> {
        let bit = 1u16.checked_shl(self.op_state() as u32).unwrap_or(0);
        if allowed & bit == 0 {
            return Err(Status::OP_STATE_INCORRECT);
        }
        Ok(())
    }

    /// Whether the TD's GPAs have 52 bits instead of 48.
    pub(super) fn has_wide_gpa(&self) -> bool {
        self.get(TdcsField::ConfigFlags) & 1 != 0
    }

    /// Whether exits leave RBP alone.
    pub(super) fn has_no_rbp_mod(&self) -> bool {
        self.get(TdcsField::ConfigFlags) & (1 << 2) != 0
    }

    /// The level of the entries in the root of the Secure EPT: 3 or 4.
    pub(super) fn root_level(&self) -> u8 {
        // The field holds the number of levels, less one.
        match (self.get(TdcsField::EptpControls) >> 3) & 7 {
            4 => 4,
            _ => 3,
        }
    }

    /// Where the x2APIC id of the vCPU of that index is.
    pub(super) fn x2apic_id_pa(&self, index: u64) -> u64 {
        let offset = index.wrapping_mul(4) & (PAGE_SIZE - 4);
        self.tdcs_page(1).wrapping_add(offset)
    }

    /// Takes the lock of the TLB epoch.
    pub(super) fn lock_epoch(&self, mode: LockMode) -> Result<(), Status> {
        let word = Word::Memory(self.at(TdcsField::EpochLock).word());
        self.call()
            .take(word, Way::sharex(mode), Lock::Epoch(self.tdr), mode)
            .map_err(|_| Status::OPERAND_BUSY.on(Operand::TdEpoch))
    }

    /// Where the number of vCPUs that run since that epoch is.
    pub(super) fn epoch_users(&self, epoch: u64) -> Place<'c, P> {
        let offset = (epoch & 1).wrapping_mul(8);
        self.at(TdcsField::EpochUsers).at(offset)
    }

    /// Whether the guest may run, so that its TLBs matter.
    pub(super) fn tracking_required(&self) -> bool {
        /// RUNNABLE, LIVE_EXPORT, LIVE_IMPORT.
        const STATES: u16 = 0x20c;
        self.check_op_state(STATES).is_ok()
    }

    /// Checks that no processor can still have a translation that was blocked in that epoch, if the
    /// guest may run.
    pub(super) fn check_tracked(&self, blocked: u64) -> Result<(), Status> {
        let previous = self.get(TdcsField::Epoch).wrapping_sub(1);
        let tracked =
            blocked < previous || blocked == previous && self.epoch_users(blocked).load() == 0;
        if self.tracking_required() && !tracked {
            return Err(Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx));
        }
        Ok(())
    }
}

impl Module {
    /// Adds a TD to those that are listed, if there is room.
    pub(super) fn list_td(&self, tdr: u64) {
        for slot in &self.tds {
            let empty = slot.compare_exchange(0, tdr, Ordering::AcqRel, Ordering::Relaxed);
            if empty.is_ok() {
                break;
            }
        }
    }

    /// Removes a TD from those that are listed.
    pub(super) fn unlist_td(&self, tdr: u64) {
        for slot in &self.tds {
            let _ = slot.compare_exchange(tdr, 0, Ordering::AcqRel, Ordering::Relaxed);
        }
    }
}
