// SPDX-License-Identifier: GPL-2.0

//! The key ownership table and the write-back of caches.

use super::{
    dispatch::Call,
    locks::{
        Lock,
        LockMode,
        Way,
        Word, //
    },
    platform::Platform,
    status::{
        Operand,
        Status, //
    },
};
use core::sync::atomic::{
    AtomicU32,
    AtomicU64,
    Ordering, //
};

/// The number of HKIDs that the key ownership table has entries for.
pub(super) const KOT_ENTRIES: usize = 2048;
/// The number of packages a platform may have.
pub(super) const MAX_PACKAGES: usize = 8;

/// What an HKID is used for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum KotState {
    /// Nothing.
    Free = 0,
    /// A TD that runs or may run.
    Assigned = 1,
    /// A TD that is being torn down, until all caches are written back.
    Flushed = 2,
    /// The module itself.
    Reserved = 3,
}

/// An HKID's entry in the key ownership table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KotEntry {
    /// What the HKID is used for.
    pub state: KotState,
    /// The packages whose caches are not written back yet, one bit each.
    pub packages: u8,
}

impl KotEntry {
    const fn encode(self) -> u32 {
        self.state as u32 | ((self.packages as u32) << 8)
    }

    const fn decode(raw: u32) -> Self {
        let state = match raw as u8 {
            1 => KotState::Assigned,
            2 => KotState::Flushed,
            3 => KotState::Reserved,
            _ => KotState::Free,
        };
        Self {
            state,
            packages: (raw >> 8) as u8,
        }
    }
}

/// Who owns which HKID.
pub(super) struct KeyOwnershipTable {
    lock: AtomicU64,
    entries: [AtomicU32; KOT_ENTRIES],
}

impl KeyOwnershipTable {
    pub(super) const fn new() -> Self {
        Self {
            lock: AtomicU64::new(0),
            entries: [const { AtomicU32::new(0) }; KOT_ENTRIES],
        }
    }

    /// Locks the table.
    pub(super) fn lock<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        mode: LockMode,
    ) -> Result<(), Status> {
        call.take(self.lock_word(), Way::sharex(mode), Lock::Kot, mode)
            .map_err(|_| Status::OPERAND_BUSY.on(Operand::Kot))
    }

    /// The table's lock.
    pub(super) fn lock_word<P: Platform>(&self) -> Word<'_, P> {
        Word::Local(&self.lock)
    }

    /// The entry of an HKID.
    pub(super) fn get(&self, hkid: u16) -> KotEntry {
        let raw = self.entries.get(usize::from(hkid));
        KotEntry::decode(raw.map_or(0, |entry| entry.load(Ordering::Acquire)))
    }

    /// Sets the entry of an HKID.
    pub(super) fn set(&self, hkid: u16, state: KotState, packages: u8) {
        if let Some(entry) = self.entries.get(usize::from(hkid)) {
            entry.store(KotEntry { state, packages }.encode(), Ordering::Release);
        }
    }

    /// Records that a package's caches no longer hold lines of an HKID.
    fn written_back(&self, hkid: usize, package: u32) {
        if let Some(entry) = self.entries.get(hkid) {
            let bit = 1u32.checked_shl(package.wrapping_add(8)).unwrap_or(0);
            entry.fetch_and(!(bit & 0xff00), Ordering::AcqRel);
        }
    }

    /// The number of HKIDs that a TD uses.
    pub(super) fn in_use(&self) -> usize {
        let used = |entry: &&AtomicU32| {
            matches!(
                KotEntry::decode(entry.load(Ordering::Relaxed)).state,
                KotState::Assigned | KotState::Flushed
            )
        };
        self.entries.iter().filter(used).count()
    }
}

/// One package's write-back of caches, which may take several calls.
pub(super) struct WriteBack {
    lock: AtomicU64,
    /// The piece to go on with, plus one; 0 if nothing was interrupted.
    resume: AtomicU32,
    /// The HKIDs that will be done once the caches are, one bit each.
    hkids: [AtomicU64; KOT_ENTRIES / 64],
}

impl WriteBack {
    pub(super) const fn new() -> Self {
        Self {
            lock: AtomicU64::new(0),
            resume: AtomicU32::new(0),
            hkids: [const { AtomicU64::new(0) }; KOT_ENTRIES / 64],
        }
    }

    /// Locks the package's write-back.
    pub(super) fn lock<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        package: u32,
    ) -> Result<(), Status> {
        let (lock, mode) = (Lock::Wbcache(package), LockMode::Exclusive);
        call.take(self.lock_word(), Way::sharex(mode), lock, mode)
            .map_err(|_| Status::OPERAND_BUSY.on(Operand::Wbcache))
    }

    /// The lock of the package's write-back.
    pub(super) fn lock_word<P: Platform>(&self) -> Word<'_, P> {
        Word::Local(&self.lock)
    }

    /// Notes the HKIDs that wait for a write-back. Returns whether there are any.
    pub(super) fn collect(&self, kot: &KeyOwnershipTable) -> bool {
        let mut any = false;
        for (word, bits) in self.hkids.iter().enumerate() {
            let mut waiting = 0u64;
            let entries = kot.entries.iter().skip(word.wrapping_mul(64)).take(64);
            for (bit, entry) in entries.enumerate() {
                let entry = KotEntry::decode(entry.load(Ordering::Acquire));
                waiting |= u64::from(entry.state == KotState::Flushed) << (bit & 63);
            }
            any |= waiting != 0;
            bits.store(waiting, Ordering::Relaxed);
        }
        any
    }

    /// The piece to go on with, if a write-back was interrupted.
    pub(super) fn interrupted(&self) -> Option<u32> {
        self.resume.load(Ordering::Acquire).checked_sub(1)
    }

    /// Notes where to go on, or that nothing is left.
    pub(super) fn set_interrupted(&self, piece: Option<u32>) {
        let raw = piece.map_or(0, |piece| piece.wrapping_add(1));
        self.resume.store(raw, Ordering::Release);
    }

    /// Records in the table that the caches are written back for all noted HKIDs.
    pub(super) fn finish(&self, kot: &KeyOwnershipTable, package: u32) {
        for (word, bits) in self.hkids.iter().enumerate() {
            let bits = bits.swap(0, Ordering::Relaxed);
            for bit in (0..64usize).filter(|bit| (bits >> bit) & 1 != 0) {
                kot.written_back(word.wrapping_mul(64).wrapping_add(bit), package);
            }
        }
        self.set_interrupted(None);
    }
}
