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
        Held,
        Lock,
        LockMode,
        Word,
        SEPT_ENTRY_HOST_PRIORITY,
        SEPT_ENTRY_LOCK, //
    },
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
            .find(|state| *state as u64 == self.0 & STATE)
            .unwrap_or(SeptState::Removed)
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
    for index in 0..PAGE_SIZE / 8 {
        let pa = pa.wrapping_add(index.wrapping_mul(8));
        platform.write64(pa, SeptEntry::FREE.0);
    }
}

/// Whether no entry of a table maps anything.
pub(super) fn is_all_free<P: Platform>(platform: &P, pa: u64) -> bool {
    (0..PAGE_SIZE / 8).all(|index| {
        let pa = pa.wrapping_add(index.wrapping_mul(8));
        SeptEntry(platform.read64(pa)).state() == SeptState::Free
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
#[derive(Clone, Copy, Debug)]
pub(super) struct Walk {
    /// Where the entry is.
    pub(super) pa: u64,
    /// What it held.
    pub(super) entry: SeptEntry,
    /// Its level: 0 for one that can point to a 4 KiB page.
    pub(super) level: u8,
}

impl Walk {
    /// The same entry, as it is now.
    pub(super) fn again<P: Platform>(&self, platform: &P) -> Self {
        let value = platform.read64(self.pa);
        let entry = SeptEntry(value & !(SEPT_ENTRY_LOCK | SEPT_ENTRY_HOST_PRIORITY));
        Self { entry, ..*self }
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
pub(super) fn walk<P: Platform>(tdcs: &Tdcs<'_, P>, gpa: u64, level: u8) -> (Walk, bool) {
    let platform = tdcs.call().platform;
    let mut table = tdcs.tdcs_page(TDCS_SEPT_ROOT);
    let mut current = tdcs.root_level();
    loop {
        let index = (gpa >> (12 + 9 * u32::from(current))) & 0x1ff;
        let pa = table.wrapping_add(index.wrapping_mul(8));
        let walk = Walk {
            pa,
            entry: SeptEntry(platform.read64(pa)),
            level: current,
        };
        if current <= level {
            return (walk, true);
        }
        if walk.entry.state() != SeptState::Table {
            return (walk, false);
        }
        table = walk.entry.address();
        current = current.saturating_sub(1);
    }
}

/// Locks the tree.
pub(super) fn lock_tree<'c, P: Platform>(
    tdcs: &Tdcs<'c, P>,
    mode: LockMode,
) -> Result<Held<'c, P>, Status> {
    let word = Word::Memory(tdcs.field_pa(TdcsField::SeptLock));
    Held::sharex(tdcs.call(), word, Lock::SeptTree(tdcs.tdr), mode)
        .map_err(|_| Status::OPERAND_BUSY.on(Operand::SeptTree))
}

/// An entry that nobody else changes.
pub(super) struct Entry<'c, P: Platform> {
    call: &'c Call<'c, P>,
    gpa: u64,
    /// The entry, without its lock bits.
    walk: Walk,
    // Fields are dropped, and locks given back, in this order.
    held: Option<Held<'c, P>>,
    _tree: Option<Held<'c, P>>,
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
        let tree = match tree {
            Some(lock) => Some(lock_tree(tdcs, lock.mode)?),
            None => None,
        };
        let (mut walk, complete) = walk(tdcs, operand.gpa, operand.level);
        if !complete {
            return Err(walk.fail(regs, Status::EPT_WALK_FAILED));
        }
        let held = match &tree {
            Some(_) => match Held::sept_entry(call, walk.pa, operand.gpa) {
                Ok(held) => Some(held),
                Err(_) => return Err(walk.fail(regs, Status::OPERAND_BUSY)),
            },
            None => None,
        };
        if held.is_some() {
            walk = walk.again(call.platform);
        }
        Ok(Self {
            call,
            gpa: operand.gpa,
            walk,
            held,
            _tree: tree,
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
        match &self.held {
            Some(held) => held.set_sept_entry(entry.0),
            None => self.call.platform.write64(self.walk.pa, entry.0),
        }
    }
}
