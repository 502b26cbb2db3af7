// SPDX-License-Identifier: GPL-2.0

//! How leaves open what their operands name: TDs, vCPUs, Secure EPT entries.
//!
//! Which locks that takes, how, with what operand if one is busy, and in which states the TD must
//! be, is the leaf's declaration. So a leaf begins with a constant like
//! `const TD: TdAccess = TdAccess::of(&INFO)`, which does not compile if the declaration lacks what
//! the leaf is about to lock, and then with `TD.open(…)`.
//!
//! What is opened stays locked until the leaf ends. All of this is inlined: what a leaf declares is
//! constant, so little is left of looking at it.

use super::{
    dispatch::Call,
    leaf::{
        LeafInfo,
        LeafLock,
        LockOf, //
    },
    platform::Platform,
    regs::Regs,
    sept::{
        Entry,
        GpaOperand, //
    },
    status::Status,
    td::{
        LockedTd,
        Tdcs, //
    },
    vp::{
        LockedVp,
        Vp, //
    },
};
use core::ops::{
    Deref,
    RangeInclusive, //
};

/// How a leaf opens a TD: its locks, and the operation states that it allows.
pub(super) struct TdAccess {
    tdr: LeafLock,
    op_state: Option<LeafLock>,
    op_states: u16,
}

impl TdAccess {
    /// How the leaf with this declaration does it.
    pub(super) const fn of(info: &LeafInfo) -> Self {
        Self {
            tdr: info.lock(LockOf::Tdr),
            op_state: info.lock_if_any(LockOf::OpState),
            op_states: info.op_states,
        }
    }

    /// Opens the TD with this TDR.
    #[inline(always)]
    pub(super) fn open<'c, P: Platform>(
        &self,
        call: &'c Call<'c, P>,
        tdr: u64,
    ) -> Result<OpenTd<'c, P>, Status> {
        self.check(LockedTd::lock(call, tdr, &self.tdr)?)
    }

    /// Checks that the TD's memory is accessible, it has a TDCS, and is in an operation state that
    /// the leaf allows, which stays so if the leaf locks it.
    #[inline(always)]
    fn check<'c, P: Platform>(&self, td: LockedTd<'c, P>) -> Result<OpenTd<'c, P>, Status> {
        let tdcs = td.accessible_tdcs()?;
        let locks_before = tdcs.call().held_locks();
        if let Some(lock) = &self.op_state {
            tdcs.lock_op_state(lock)?;
        }
        tdcs.check_op_state(self.op_states)?;
        Ok(OpenTd { tdcs, locks_before })
    }
}

/// A TD that is locked and in a state as the leaf's declaration says.
pub(super) struct OpenTd<'c, P: Platform> {
    tdcs: Tdcs<'c, P>,
    /// How many locks were held before that of the operation state.
    locks_before: usize,
}

impl<P: Platform> OpenTd<'_, P> {
    /// Lets the operation state change. Its lock must be the last that the leaf holds.
    pub(super) fn unlock_op_state(&self) {
        self.tdcs.call().release_to(self.locks_before);
    }
}

impl<'c, P: Platform> Deref for OpenTd<'c, P> {
    type Target = Tdcs<'c, P>;

    fn deref(&self) -> &Self::Target {
        &self.tdcs
    }
}

/// How a leaf opens a vCPU, and the TD that owns it.
pub(super) struct VpAccess {
    tdvpr: LeafLock,
    td: TdAccess,
}

impl VpAccess {
    /// How the leaf with this declaration does it.
    pub(super) const fn of(info: &LeafInfo) -> Self {
        Self {
            tdvpr: info.lock(LockOf::Tdvpr),
            td: TdAccess::of(info),
        }
    }

    /// Locks the vCPU with this TDVPR and its TD, whatever their states.
    #[inline(always)]
    pub(super) fn lock<'c, P: Platform>(
        &self,
        call: &'c Call<'c, P>,
        tdvpr: u64,
    ) -> Result<LockedVp<'c, P>, Status> {
        LockedVp::lock(call, tdvpr, &self.tdvpr, &self.td.tdr)
    }

    /// Opens the vCPU with this TDVPR.
    #[inline(always)]
    pub(super) fn open<'c, P: Platform>(
        &self,
        call: &'c Call<'c, P>,
        tdvpr: u64,
    ) -> Result<OpenVp<'c, P>, Status> {
        let LockedVp { vp, td } = self.lock(call, tdvpr)?;
        Ok(OpenVp {
            vp,
            td: self.td.check(td)?,
        })
    }
}

/// A vCPU that is locked, with its TD, which is in a state as the leaf's declaration says.
pub(super) struct OpenVp<'c, P: Platform> {
    vp: Vp<'c, P>,
    /// The TD.
    pub(super) td: OpenTd<'c, P>,
}

impl<P: Platform> OpenVp<'_, P> {
    /// Checks that the vCPU has all its pages, and associates it with the current processor. It may
    /// be disabled if `disabled_too`.
    pub(super) fn associate_complete(&self, disabled_too: bool) -> Result<(), Status> {
        self.vp.check_complete(&self.td)?;
        self.vp.associate(&self.td, disabled_too)
    }
}

impl<'c, P: Platform> Deref for OpenVp<'c, P> {
    type Target = Vp<'c, P>;

    fn deref(&self) -> &Self::Target {
        &self.vp
    }
}

/// How a leaf opens an entry of a TD's Secure EPT.
pub(super) struct SeptAccess {
    /// The lock of the tree, if the leaf takes it, and that of the entry with it. Without them the
    /// TDR must be locked alone, so that nobody else changes the tree.
    tree: Option<LeafLock>,
}

impl SeptAccess {
    /// How the leaf with this declaration does it.
    pub(super) const fn of(info: &LeafInfo) -> Self {
        let tree = info.lock_if_any(LockOf::SeptTree);
        assert!(
            tree.is_some() == info.lock_if_any(LockOf::SeptEntry).is_some(),
            "the leaf declares one of the locks of a Secure EPT entry"
        );
        Self { tree }
    }

    /// Opens the entry for the GPA and level in `rcx`, where the level must be one of `levels`.
    ///
    /// If an entry stands in the way, it is described in `regs`.
    #[inline(always)]
    pub(super) fn open<'c, P: Platform>(
        &self,
        td: &OpenTd<'c, P>,
        rcx: u64,
        levels: RangeInclusive<u8>,
        regs: &mut Regs,
    ) -> Result<Entry<'c, P>, Status> {
        let operand = GpaOperand::decode(rcx, levels)?;
        Entry::open(td, operand, self.tree.as_ref(), regs)
    }
}
