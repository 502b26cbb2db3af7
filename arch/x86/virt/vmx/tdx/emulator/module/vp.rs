// SPDX-License-Identifier: GPL-2.0

//! A vCPU's control structure (TDVPS), whose root page is the TDVPR.

use super::{
    dispatch::Call,
    leaf::LeafLock,
    metadata,
    pamt::{
        self,
        PageType, //
    },
    place::Place,
    platform::Platform,
    regs::Regs,
    status::Status,
    td::{
        LockedTd,
        Tdcs,
        TdcsField,
        TDCS_ZERO_PAGE, //
    },
};

/// The number of TDVPS pages without L2 VMs, the TDVPR included.
pub(super) const BASE_TDVPS_PAGES: u64 = 6;
/// The largest number of TDVPS pages.
pub(super) const MAX_TDVPS_PAGES: u64 = 15;
/// How many TDVPS pages each L2 VM adds.
pub(super) const L2_TDVPS_PAGES: u64 = 3;

/// How many addresses of EPT violations are remembered.
pub(super) const MAX_FAULTS: u64 = 32;
/// How many EPT violations one instruction may cause before they look like single-stepping.
const SUSPICIOUS_FAULTS: u64 = 6;

/// The value of [`VpField::AssociatedLp`] that means none.
pub(super) const NO_LP: u64 = u64::MAX;

/// What a vCPU is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum VcpuState {
    /// It is being built.
    Uninitialized = 0,
    /// It can be entered.
    Ready = 2,
    /// It runs.
    Active = 4,
    /// It cannot run any more.
    Disabled = 8,
}

impl VcpuState {
    pub(super) const fn from_raw(raw: u64) -> Self {
        match raw {
            0 => VcpuState::Uninitialized,
            2 => VcpuState::Ready,
            4 => VcpuState::Active,
            _ => VcpuState::Disabled,
        }
    }
}

/// A field of a vCPU, by its offset in the TDVPR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum VpField {
    State = 0x00,
    /// The processor that may have the vCPU's state in its caches, or [`NO_LP`].
    AssociatedLp = 0x08,
    /// The number of pages, the TDVPR included.
    Pages = 0x10,
    Index = 0x18,
    /// The TD epoch of the last entry.
    Epoch = 0x20,
    /// How the last run ended: 0 fault-like, 1 trap-like, 2 by TDVMCALL.
    LastExit = 0x28,
    LastExitTsc = 0x30,
    X2apicId = 0x38,
    /// Where the further pages are, up to [`MAX_TDVPS_PAGES`] of them.
    Tdcx = 0x40,
    PostedInterruptVector = 0x100,
    PostedInterruptDescriptor = 0x108,
    PinControls = 0x110,
    SharedEptPointer = 0x118,
    SecondaryControls = 0x120,
    NotifyWindow = 0x128,
    PendingNmi = 0x130,
    PrimaryControls = 0x138,
    GuestRip = 0x140,
    GuestRflags = 0x148,
    /// The instruction at which the last EPT violations were.
    FaultRip = 0x180,
    /// How many there were.
    FaultCount = 0x188,
    /// How many of their addresses are remembered.
    FaultListLength = 0x190,
    /// When the guest first did not get a Secure EPT entry that the host wants too, or 0.
    HostPrioritySince = 0x198,
    /// The guest's general-purpose registers, numbered as in instructions.
    GuestRegs = 0x200,
    /// The remembered addresses, up to [`MAX_FAULTS`] of them.
    FaultList = 0x300,
}

/// A vCPU, by its TDVPR.
pub(super) struct Vp<'c, P: Platform> {
    call: &'c Call<'c, P>,
    tdvpr: u64,
    root: Place<'c, P>,
}

/// A vCPU whose TDVPR is locked, and its TD with it.
pub(super) struct LockedVp<'c, P: Platform> {
    pub(super) vp: Vp<'c, P>,
    /// The TD.
    pub(super) td: LockedTd<'c, P>,
}

impl<'c, P: Platform> LockedVp<'c, P> {
    /// Locks the vCPU whose TDVPR an operand names, then the TD that owns it, as the leaf declares
    /// it.
    #[inline(always)]
    pub(super) fn lock(
        call: &'c Call<'c, P>,
        tdvpr: u64,
        lock: &LeafLock,
        td_lock: &LeafLock,
    ) -> Result<Self, Status> {
        let page = pamt::lock_explicit(call, tdvpr, lock, 0, PageType::Tdvpr)?;
        let td = LockedTd::lock_owner(call, page.owner(), td_lock)?;
        let root = Place::find(call.platform, tdvpr);
        let vp = Vp { call, tdvpr, root };
        Ok(Self { vp, td })
    }
}

impl<'c, P: Platform> Vp<'c, P> {
    /// The TDVPR.
    pub(super) fn tdvpr(&self) -> u64 {
        self.tdvpr
    }

    /// Where a field is.
    fn at(&self, field: VpField) -> Place<'c, P> {
        self.root.at(field as u64)
    }

    /// Reads a field.
    pub(super) fn get(&self, field: VpField) -> u64 {
        self.at(field).load()
    }

    /// Writes a field.
    pub(super) fn set(&self, field: VpField, value: u64) {
        self.at(field).store(value);
    }

    pub(super) fn state(&self) -> VcpuState {
        VcpuState::from_raw(self.get(VpField::State))
    }

    pub(super) fn set_state(&self, state: VcpuState) {
        self.set(VpField::State, state as u64);
    }

    /// The page of that index; 0 is the TDVPR.
    pub(super) fn page(&self, index: u64) -> u64 {
        let Some(index) = index.checked_sub(1) else {
            return self.tdvpr;
        };
        let offset = index.min(MAX_TDVPS_PAGES).wrapping_mul(8);
        self.at(VpField::Tdcx).at(offset).load()
    }

    /// Sets the VMCS fields that the host can change to what they are at first.
    pub(super) fn init_vmcs(&self, tdcs: &Tdcs<'_, P>) {
        self.set(VpField::PostedInterruptVector, 0xffff);
        self.set(VpField::PostedInterruptDescriptor, u64::MAX);
        self.set(VpField::PinControls, 0x29);
        self.set(VpField::PrimaryControls, 0xb6a0_65fa);
        self.set(VpField::SecondaryControls, 0x133c_b3fa);
        self.set(VpField::GuestRip, 0xffff_fff0);
        self.set(VpField::GuestRflags, 2);
        let zero_page = tdcs.tdcs_page(TDCS_ZERO_PAGE);
        let zero_page = metadata::with_hkid(tdcs, zero_page);
        self.set(VpField::SharedEptPointer, zero_page);
    }

    /// The guest's general-purpose registers.
    pub(super) fn guest_regs(&self) -> Regs {
        let mut registers = [0; 16];
        let mut place = self.at(VpField::GuestRegs);
        for register in &mut registers {
            *register = place.load();
            place = place.at(8);
        }
        Regs::from_array(registers)
    }

    /// Sets the guest's general-purpose registers.
    pub(super) fn set_guest_regs(&self, regs: &Regs) {
        let mut place = self.at(VpField::GuestRegs);
        for register in regs.to_array() {
            place.store(register);
            place = place.at(8);
        }
    }

    /// Appends a page.
    pub(super) fn add_page(&self, page: u64) {
        let count = self
            .get(VpField::Pages)
            .clamp(1, MAX_TDVPS_PAGES.wrapping_sub(1));
        let offset = count.wrapping_sub(1).wrapping_mul(8);
        self.at(VpField::Tdcx).at(offset).store(page);
        self.set(VpField::Pages, count.wrapping_add(1));
    }

    /// Checks that the vCPU has all its pages.
    pub(super) fn check_complete(&self, tdcs: &Tdcs<'_, P>) -> Result<(), Status> {
        let l2_vms = tdcs.get(TdcsField::NumL2Vms).min(3);
        let needed = l2_vms
            .wrapping_mul(L2_TDVPS_PAGES)
            .wrapping_add(BASE_TDVPS_PAGES);
        if self.get(VpField::Pages) < needed {
            return Err(Status::TDCX_NUM_INCORRECT);
        }
        Ok(())
    }

    /// Associates the vCPU with the current processor.
    ///
    /// This stays even if the leaf fails later.
    pub(super) fn associate(&self, tdcs: &Tdcs<'_, P>, disabled_too: bool) -> Result<(), Status> {
        match self.state() {
            VcpuState::Ready => {}
            VcpuState::Disabled if disabled_too => {}
            _ => return Err(Status::VCPU_STATE_INCORRECT),
        }
        let lp = u64::from(self.call.platform.current_lp());
        match self.at(VpField::AssociatedLp).cas(NO_LP, lp) {
            Ok(_) => {
                tdcs.fetch_add(TdcsField::NumAssociated, 1);
                Ok(())
            }
            Err(now) if now == lp => Ok(()),
            Err(_) => Err(Status::VCPU_ASSOCIATED),
        }
    }

    /// Ends the association with the current processor.
    pub(super) fn dissociate(&self, tdcs: &Tdcs<'_, P>) -> Result<(), Status> {
        let lp = u64::from(self.call.platform.current_lp());
        let former = self.at(VpField::AssociatedLp).cas(lp, NO_LP);
        former.map_err(|_| Status::VCPU_NOT_ASSOCIATED)?;
        tdcs.fetch_add(TdcsField::NumAssociated, u64::MAX);
        Ok(())
    }

    /// Notes an EPT violation, and remembers its address if the guest may be single-stepped by it.
    pub(super) fn count_fault(&self, rip: u64, gpa: u64) {
        if self.get(VpField::FaultRip) != rip {
            self.set(VpField::FaultRip, rip);
            self.set(VpField::FaultCount, 0);
            self.set(VpField::FaultListLength, 0);
        }
        let count = self.get(VpField::FaultCount).saturating_add(1);
        self.set(VpField::FaultCount, count);
        let length = self.get(VpField::FaultListLength);
        let known = self.faults().any(|fault| fault == gpa);
        if count > SUSPICIOUS_FAULTS && !known && length < MAX_FAULTS {
            self.fault(length).store(gpa);
            self.set(VpField::FaultListLength, length.wrapping_add(1));
        }
    }

    /// The remembered addresses of EPT violations.
    pub(super) fn faults(&self) -> impl Iterator<Item = u64> + use<'_, 'c, P> {
        let length = self.get(VpField::FaultListLength).min(MAX_FAULTS);
        (0..length).map(|index| self.fault(index).load())
    }

    fn fault(&self, index: u64) -> Place<'c, P> {
        let offset = index.min(MAX_FAULTS).wrapping_mul(8);
        self.at(VpField::FaultList).at(offset)
    }
}
