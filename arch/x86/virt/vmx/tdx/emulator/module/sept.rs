// SPDX-License-Identifier: GPL-2.0

//! A TD's page tables for private memory: the Secure EPT.

use super::{
    address::{
        is_aligned,
        level_size,
        PAGE_ADDRESS,
        PAGE_SIZE, //
    },
    dispatch::Call,
    leaf::LeafLock,
    locks::{
        Busy,
        Lock,
        LockMode,
        Way,
        Word,
        SEPT_ENTRY_HOST_PRIORITY,
        SEPT_ENTRY_LOCK, //
    },
    place::Place,
    platform::Platform,
    regs::Regs,
    status::{
        Operand,
        Status, //
    },
    td::{
        Tdcs,
        TdcsField,
        TDCS_SEPT_ROOT, //
    },
};

const READ_WRITE_EXECUTE: u64 = 7;
const MEMORY_TYPE: u64 = 7 << 3;
const WRITE_BACK: u64 = 6 << 3;
const IGNORE_PAT: u64 = 1 << 6;
const LEAF: u64 = 1 << 7;
const SUPPRESS_VE: u64 = 1 << 63;
/// The bits that together say which state an entry is in.
const STATE: u64 = 0x01e0_0000_0000_02c0;

/// The state of an entry that maps something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum SeptState {
    /// Maps nothing.
    Free = 0x00e0_0000_0000_0000,
    /// Maps nothing since an import removed the page.
    Removed = 0x00c0_0000_0000_0000,
    /// A page that the guest can use.
    Mapped = 0x0000_0000_0000_00c0,
    /// A page that the guest must accept before it can use it.
    Pending = 0x0100_0000_0000_00c0,
    /// A page that the guest could use.
    Blocked = 0x0080_0000_0000_00c0,
    /// A page that the guest did not accept, and now cannot.
    PendingBlocked = 0x0180_0000_0000_00c0,
    /// A page that the guest can only read.
    BlockedWrite = 0x0040_0000_0000_00c0,
    /// The same, not accepted.
    PendingBlockedWrite = 0x0140_0000_0000_00c0,
    /// A table.
    Table = 0,
    /// A table whose range the guest cannot use.
    TableBlocked = 0x0080_0000_0000_0000,
}

impl SeptState {
    const ALL: [SeptState; 10] = [
        SeptState::Free,
        SeptState::Removed,
        SeptState::Mapped,
        SeptState::Pending,
        SeptState::Blocked,
        SeptState::PendingBlocked,
        SeptState::BlockedWrite,
        SeptState::PendingBlockedWrite,
        SeptState::Table,
        SeptState::TableBlocked,
    ];

    /// The number by which statuses describe the state.
    const fn public_code(self) -> u64 {
        match self {
            SeptState::Free => 0,
            SeptState::Blocked => 1,
            SeptState::Pending => 2,
            SeptState::PendingBlocked => 3,
            SeptState::Mapped => 4,
            SeptState::Removed => 5,
            SeptState::BlockedWrite => 8,
            SeptState::PendingBlockedWrite => 16,
            SeptState::TableBlocked => 129,
            SeptState::Table => 132,
        }
    }

    /// Whether the entry points to a page, which may be blocked or not accepted.
    pub(super) const fn is_leaf(self) -> bool {
        self as u64 & LEAF != 0
    }

    /// Whether the guest cannot use the page or table, because the host blocked it.
    pub(super) const fn is_blocked(self) -> bool {
        matches!(
            self,
            SeptState::Blocked | SeptState::PendingBlocked | SeptState::TableBlocked
        )
    }

    /// The state after TDH.MEM.RANGE.BLOCK, if that can be done.
    pub(super) const fn blocked(self) -> Option<Self> {
        Some(match self {
            SeptState::Mapped | SeptState::BlockedWrite => SeptState::Blocked,
            SeptState::Pending | SeptState::PendingBlockedWrite => SeptState::PendingBlocked,
            SeptState::Table => SeptState::TableBlocked,
            _ => return None,
        })
    }
}

/// The value of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SeptEntry(pub(super) u64);

impl SeptEntry {
    /// An entry that maps nothing.
    pub(super) const FREE: Self = Self(SeptState::Free as u64 | SUPPRESS_VE);

    /// An entry that points to a table.
    pub(super) const fn table(pa: u64) -> Self {
        Self(SeptState::Table as u64 | READ_WRITE_EXECUTE | pa & PAGE_ADDRESS)
    }

    /// An entry that points to a page the guest can use.
    pub(super) const fn mapped(pa: u64) -> Self {
        Self(
            SeptState::Mapped as u64
                | READ_WRITE_EXECUTE
                | WRITE_BACK
                | SUPPRESS_VE
                | pa & PAGE_ADDRESS,
        )
    }

    /// An entry that points to a page the guest must accept.
    pub(super) const fn pending(pa: u64) -> Self {
        Self(SeptState::Pending as u64 | WRITE_BACK | SUPPRESS_VE | pa & PAGE_ADDRESS)
    }

    /// The same entry, which the guest cannot use any more.
    pub(super) const fn block(self, state: SeptState) -> Self {
        Self(self.0 & !(STATE | READ_WRITE_EXECUTE) | state as u64 | SUPPRESS_VE)
    }

    /// The entry as it was before it was blocked, if it is.
    pub(super) fn unblock(self) -> Option<Self> {
        Some(match self.state() {
            SeptState::Blocked => Self::mapped(self.address()),
            SeptState::PendingBlocked => Self::pending(self.address()),
            SeptState::TableBlocked => Self::table(self.address()),
            _ => return None,
        })
    }

    /// The state; a value that no leaf writes counts as [`SeptState::Removed`].
    pub(super) fn state(self) -> SeptState {
        SeptState::ALL
            .into_iter()
            .find(|state| self.is(*state))
            .unwrap_or(SeptState::Removed)
    }

    /// Whether that is the state.
    const fn is(self, state: SeptState) -> bool {
        self.0 & STATE == state as u64
    }

    /// The page or table.
    pub(super) const fn address(self) -> u64 {
        self.0 & PAGE_ADDRESS
    }

    /// What is told of the entry in RCX.
    fn masked(self) -> u64 {
        let state = self.state();
        self.0
            & match state {
                SeptState::Free | SeptState::Removed => SUPPRESS_VE,
                _ if state.is_leaf() => {
                    READ_WRITE_EXECUTE
                        | MEMORY_TYPE
                        | PAGE_ADDRESS
                        | IGNORE_PAT
                        | LEAF
                        | SUPPRESS_VE
                }
                _ => READ_WRITE_EXECUTE | LEAF,
            }
    }
}

/// Fills a page with entries that map nothing.
pub(super) fn fill_free<P: Platform>(platform: &P, pa: u64) {
    let table = Place::find(platform, pa);
    for index in 0..PAGE_SIZE / 8 {
        table.at(index.wrapping_mul(8)).store(SeptEntry::FREE.0);
    }
}

/// Whether no entry of a table maps anything.
pub(super) fn is_all_free<P: Platform>(platform: &P, pa: u64) -> bool {
    let table = Place::find(platform, pa);
    (0..PAGE_SIZE / 8).all(|index| {
        let entry = table.at(index.wrapping_mul(8)).load();
        SeptEntry(entry).is(SeptState::Free)
    })
}

/// The GPA and level that RCX holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct GpaOperand {
    pub(super) gpa: u64,
    pub(super) level: u8,
}

impl GpaOperand {
    /// Decodes RCX; the level must be one of `levels`.
    pub(super) fn decode(rcx: u64, levels: core::ops::RangeInclusive<u8>) -> Result<Self, Status> {
        let invalid = Status::OPERAND_INVALID.on(Operand::Rcx);
        let level = (rcx & 7) as u8;
        let gpa = rcx & !7;
        if !levels.contains(&level) {
            return Err(invalid);
        }
        let aligned = is_aligned(gpa, level_size(level));
        if !aligned || gpa >> 52 != 0 {
            return Err(invalid);
        }
        Ok(Self { gpa, level })
    }
}

/// Checks that the GPA is one of private memory.
pub(super) fn check_private<P: Platform>(tdcs: &Tdcs<'_, P>, gpa: u64) -> Result<(), Status> {
    // The bit above these says that memory is shared.
    let bits = if tdcs.has_wide_gpa() { 51 } else { 47 };
    if gpa >> bits != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    Ok(())
}

/// An entry that a walk reached.
pub(super) struct Walk<'c, P: Platform> {
    /// Where the entry is.
    pub(super) place: Place<'c, P>,
    /// What it held.
    pub(super) entry: SeptEntry,
    /// Its level: 0 for one that can point to a 4 KiB page.
    pub(super) level: u8,
}

impl<'c, P: Platform> Walk<'c, P> {
    /// Locks the entry, which is the one for this GPA.
    #[inline(always)]
    pub(super) fn lock(&self, call: &Call<'c, P>, gpa: u64, way: Way) -> Result<(), Busy> {
        let lock = Lock::SeptEntry {
            entry: self.place.pa(),
            gpa,
        };
        call.take(
            Word::Memory(self.place.word()),
            way,
            lock,
            LockMode::Exclusive,
        )
    }

    /// Gives the entry, which is locked, a new value. It stays locked.
    pub(super) fn set_locked(&self, entry: SeptEntry) {
        // Others may only set the host-priority bit meanwhile.
        Word::<P>::Memory(self.place.word()).update(u32::MAX, |now| {
            let keep = now & SEPT_ENTRY_HOST_PRIORITY;
            entry.0 & !SEPT_ENTRY_HOST_PRIORITY | SEPT_ENTRY_LOCK | keep
        });
    }

    /// Looks at the entry again, without its lock bits.
    pub(super) fn reload(&mut self) {
        let value = self.place.load();
        self.entry = SeptEntry(value & !(SEPT_ENTRY_LOCK | SEPT_ENTRY_HOST_PRIORITY));
    }

    /// The description of the entry for a host whose guest wanted to accept a page of that level.
    pub(super) fn about_accept(&self, level: u8) -> u64 {
        let state = self.entry.state();
        u64::from(level)
            | (u64::from(self.level) << 3)
            | ((state.public_code() & 0xff) << 6)
            | (u64::from(state.is_leaf()) << 14)
    }

    /// Describes the entry in RCX and RDX.
    fn describe(&self, regs: &mut Regs) {
        regs.rcx = self.entry.masked();
        regs.rdx = u64::from(self.level) | (self.entry.state().public_code() << 8);
    }

    /// A status about RCX that comes with a description of the entry.
    pub(super) fn fail(&self, regs: &mut Regs, status: Status) -> Status {
        self.describe(regs);
        status.on(Operand::Rcx)
    }
}

/// Descends to the entry of that level for a GPA. Returns whether it got there.
pub(super) fn walk<'c, P: Platform>(
    tdcs: &Tdcs<'c, P>,
    gpa: u64,
    level: u8,
) -> (Walk<'c, P>, bool) {
    let mut table = tdcs.tdcs_page(TDCS_SEPT_ROOT);
    let mut current = tdcs.root_level();
    loop {
        let index = (gpa >> (12 + 9 * u32::from(current))) & 0x1ff;
        let pa = table.wrapping_add(index.wrapping_mul(8));
        let place = Place::find(tdcs.call().platform, pa);
        let entry = SeptEntry(place.load());
        let complete = current <= level;
        if complete || !entry.is(SeptState::Table) {
            let walk = Walk {
                place,
                entry,
                level: current,
            };
            return (walk, complete);
        }
        table = entry.address();
        current = current.saturating_sub(1);
    }
}

/// Locks the tree.
pub(super) fn lock_tree<P: Platform>(tdcs: &Tdcs<'_, P>, mode: LockMode) -> Result<(), Status> {
    let word = Word::Memory(tdcs.at(TdcsField::SeptLock).word());
    tdcs.call()
        .take(word, Way::sharex(mode), Lock::SeptTree(tdcs.tdr), mode)
        .map_err(|_| Status::OPERAND_BUSY.on(Operand::SeptTree))
}

/// An entry that nobody else changes.
pub(super) struct Entry<'c, P: Platform> {
    gpa: u64,
    /// The entry, without its lock bits.
    walk: Walk<'c, P>,
    locked: bool,
}

impl<'c, P: Platform> Entry<'c, P> {
    /// Descends to an entry, with the tree and then the entry locked if `tree` says how.
    #[inline(always)]
    pub(super) fn open(
        tdcs: &Tdcs<'c, P>,
        operand: GpaOperand,
        tree: Option<&LeafLock>,
        regs: &mut Regs,
    ) -> Result<Self, Status> {
        let call = tdcs.call();
        check_private(tdcs, operand.gpa)?;
        if let Some(lock) = tree {
            lock_tree(tdcs, lock.mode)?;
        }
        let (mut walk, complete) = walk(tdcs, operand.gpa, operand.level);
        if !complete {
            return Err(walk.fail(regs, Status::EPT_WALK_FAILED));
        }
        let locked = tree.is_some();
        if locked {
            if walk.lock(call, operand.gpa, Way::SEPT_ENTRY).is_err() {
                return Err(walk.fail(regs, Status::OPERAND_BUSY));
            }
            // It may have changed before it was locked.
            walk.reload();
        }
        Ok(Self {
            gpa: operand.gpa,
            walk,
            locked,
        })
    }

    /// What the entry held when it was opened.
    pub(super) fn value(&self) -> SeptEntry {
        self.walk.entry
    }

    /// The state of the entry when it was opened.
    pub(super) fn state(&self) -> SeptState {
        self.value().state()
    }

    /// The first guest-physical address that the entry is for.
    pub(super) fn gpa(&self) -> u64 {
        self.gpa
    }

    /// The level of the entry.
    pub(super) fn level(&self) -> u8 {
        self.walk.level
    }

    /// The size of the page that the entry points to. A table is a 4 KiB page.
    pub(super) fn page_level(&self) -> u8 {
        if self.state().is_leaf() {
            self.level()
        } else {
            0
        }
    }

    /// Describes the entry in RCX and RDX.
    pub(super) fn describe(&self, regs: &mut Regs) {
        self.walk.describe(regs);
    }

    /// Checks that the state of the entry is one that the leaf works on.
    pub(super) fn check(&self, allowed: bool, regs: &mut Regs) -> Result<(), Status> {
        if !allowed {
            return Err(self.fail(regs, Status::EPT_ENTRY_STATE_INCORRECT));
        }
        Ok(())
    }

    /// A status about RCX that comes with a description of the entry.
    pub(super) fn fail(&self, regs: &mut Regs, status: Status) -> Status {
        self.walk.fail(regs, status)
    }

    /// Gives the entry a new value.
    pub(super) fn set(&self, entry: SeptEntry) {
        if self.locked {
            self.walk.set_locked(entry);
        } else {
            self.walk.place.store(entry.0);
        }
    }
}
