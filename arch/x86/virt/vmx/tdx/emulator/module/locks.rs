// SPDX-License-Identifier: GPL-2.0

//! The module's locks.
//!
//! No lock ever waits: one that cannot be had at once makes the leaf fail. Most locks can be
//! shared. A lock is the low 16 bits of a 64-bit word, which lies either in memory, beside what the
//! lock protects, or in the [`Module`](super::Module). The lock of a Secure EPT entry is a bit of
//! the entry itself.

use super::{
    dispatch::Call,
    platform::{
        Event,
        Platform, //
    },
};
use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockMode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

/// Which lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lock {
    /// The lock of the SYS leaves.
    Global,
    /// The key ownership table.
    Kot,
    /// The cache write-back of a package.
    Wbcache(u32),
    /// A TDMR, by its index.
    Tdmr(u32),
    /// The PAMT entry of the page at `pa`; `level` is 0 for 4 KiB, 1 for 2 MiB, 2 for 1 GiB.
    Page {
        /// Where the page lies.
        pa: u64,
        /// Its size.
        level: u8,
    },
    /// The operation state of the TD with this TDR.
    OpState(u64),
    /// The Secure EPT of the TD with this TDR.
    SeptTree(u64),
    /// The TLB epoch of the TD with this TDR.
    Epoch(u64),
    /// The Secure EPT entry at `entry`, which maps `gpa`.
    SeptEntry {
        /// Where the entry lies.
        entry: u64,
        /// The guest-physical address it maps.
        gpa: u64,
    },
}

/// A lock and how it is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LockRecord {
    /// Which lock.
    pub lock: Lock,
    /// How.
    pub mode: LockMode,
}

/// The error of a lock that somebody else holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Busy;

const EXCLUSIVE: u64 = 1 << 0;
const SHARED_ONE: u64 = 1 << 1;
const SHARED_MASK: u64 = 0x7ffe;
/// Set when the host failed to get the lock, cleared when it does: until then, guests must not.
const HOST_PRIORITY: u64 = 1 << 15;

/// The lock bit of a Secure EPT entry.
pub(super) const SEPT_ENTRY_LOCK: u64 = 1 << 11;
/// The host-priority bit of a Secure EPT entry.
pub(super) const SEPT_ENTRY_HOST_PRIORITY: u64 = 1 << 52;

/// How often a lock is tried again when its word changed for another reason than being taken.
const ATTEMPTS: u32 = 1024;

/// Where a lock's word is.
#[derive(Clone, Copy)]
pub(super) enum Word<'a> {
    /// In memory.
    Memory(u64),
    /// In the module.
    Local(&'a AtomicU64),
}

impl Word<'_> {
    fn load<P: Platform>(self, platform: &P) -> u64 {
        match self {
            Word::Memory(pa) => platform.read64(pa),
            Word::Local(word) => word.load(Ordering::Acquire),
        }
    }

    fn cas<P: Platform>(self, platform: &P, current: u64, new: u64) -> Result<u64, u64> {
        match self {
            Word::Memory(pa) => platform.cas64(pa, current, new),
            Word::Local(word) => {
                word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            }
        }
    }

    /// Gives the lock back that is in the word.
    #[inline(always)]
    fn give_back<P: Platform>(self, platform: &P, format: Format, mode: LockMode) {
        // Another processor can make this try again only by succeeding itself, once for each try.
        self.update(platform, u32::MAX, |value| format.given_back(mode, value));
    }

    /// Changes the word with `change`, until nobody interferes.
    #[inline(always)]
    fn update<P: Platform>(self, platform: &P, attempts: u32, change: impl Fn(u64) -> u64) {
        let mut value = self.load(platform);
        for _ in 0..attempts {
            match self.cas(platform, value, change(value)) {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
    }
}

/// The bits of a word that are the lock, and what they mean.
#[derive(Clone, Copy)]
pub(super) enum Format {
    /// Shared or exclusive, in the low 16 bits.
    Sharex,
    /// The same with a bit by which a waiting host keeps guests away.
    SharexHostPriority,
    /// One bit in a Secure EPT entry.
    SeptEntry,
    /// The same for a guest, which leaves it to a host that waits.
    SeptEntryForGuest,
}

impl Format {
    /// The word once the lock is taken; [`None`] if it cannot be had.
    fn taken(self, mode: LockMode, value: u64) -> Option<u64> {
        match (self, mode) {
            (Format::SeptEntry, _) => (value & SEPT_ENTRY_LOCK == 0)
                .then_some((value | SEPT_ENTRY_LOCK) & !SEPT_ENTRY_HOST_PRIORITY),
            (Format::SeptEntryForGuest, _) => {
                (value & (SEPT_ENTRY_LOCK | SEPT_ENTRY_HOST_PRIORITY) == 0)
                    .then_some(value | SEPT_ENTRY_LOCK)
            }
            (_, LockMode::Exclusive) => (value & (EXCLUSIVE | SHARED_MASK) == 0)
                .then_some((value | EXCLUSIVE) & !HOST_PRIORITY),
            (_, LockMode::Shared) => (value & EXCLUSIVE == 0 && value & SHARED_MASK != SHARED_MASK)
                .then_some((value & !HOST_PRIORITY).wrapping_add(SHARED_ONE)),
        }
    }

    /// The word once the lock is given back.
    fn given_back(self, mode: LockMode, value: u64) -> u64 {
        match (self, mode) {
            (Format::SeptEntry | Format::SeptEntryForGuest, _) => value & !SEPT_ENTRY_LOCK,
            (_, LockMode::Exclusive) => value & !EXCLUSIVE,
            (_, LockMode::Shared) if value & SHARED_MASK == 0 => value,
            (_, LockMode::Shared) => value.wrapping_sub(SHARED_ONE),
        }
    }

    /// What a host that did not get the lock sets in the word, to keep guests away.
    fn mark(self) -> u64 {
        match self {
            Format::Sharex | Format::SeptEntryForGuest => 0,
            Format::SharexHostPriority => HOST_PRIORITY,
            Format::SeptEntry => SEPT_ENTRY_HOST_PRIORITY,
        }
    }
}

/// Takes a lock whose word was just found to be `value`, unless somebody else has it or what `still`
/// looks at in the word changes.
pub(super) fn take<P: Platform>(
    call: &Call<'_, P>,
    word: Word<'_>,
    format: Format,
    record: LockRecord,
    mut value: u64,
    still: impl Fn(u64) -> bool,
) -> Result<(), Busy> {
    let platform = call.platform;
    for _ in 0..ATTEMPTS {
        if !still(value) {
            return Err(Busy);
        }
        let Some(new) = format.taken(record.mode, value) else {
            break;
        };
        match word.cas(platform, value, new) {
            Ok(_) => {
                if platform.observes() {
                    platform.observe(Event::LockTaken(record));
                }
                return Ok(());
            }
            Err(now) => value = now,
        }
    }

    // Only a mark for guests: if it cannot be left, the next attempt will leave it.
    let mark = format.mark();
    if mark != 0 {
        word.update(platform, ATTEMPTS, |value| value | mark);
    }
    if platform.observes() {
        platform.observe(Event::LockBusy(record));
    }
    Err(Busy)
}

/// Gives a lock back. Which one it is, only an observer wants to know.
#[inline(always)]
pub(super) fn give_back<P: Platform>(
    call: &Call<'_, P>,
    word: Word<'_>,
    format: Format,
    mode: LockMode,
    lock: impl FnOnce() -> Lock,
) {
    let platform = call.platform;
    if platform.observes() {
        let lock = lock();
        return give_back_observed(platform, word, format, LockRecord { lock, mode });
    }
    word.give_back(platform, format, mode);
}

#[cold]
#[inline(never)]
fn give_back_observed<P: Platform>(
    platform: &P,
    word: Word<'_>,
    format: Format,
    record: LockRecord,
) {
    platform.observe(Event::LockReleasing(record));
    word.give_back(platform, format, record.mode);
    platform.observe(Event::LockReleased(record));
}

/// A lock that is held. It is given back when this is dropped.
#[must_use = "the lock is given back at once if unused"]
pub(super) struct Held<'c, P: Platform> {
    call: &'c Call<'c, P>,
    word: Word<'c>,
    lock: Lock,
    mode: LockMode,
    format: Format,
}

impl<'c, P: Platform> Held<'c, P> {
    /// Takes a lock that only the host takes.
    pub(super) fn sharex(
        call: &'c Call<'c, P>,
        word: Word<'c>,
        lock: Lock,
        mode: LockMode,
    ) -> Result<Self, Busy> {
        Self::take(call, word, Format::Sharex, LockRecord { lock, mode })
    }

    /// Takes a lock that guests take too.
    pub(super) fn sharex_host_priority(
        call: &'c Call<'c, P>,
        word: Word<'c>,
        lock: Lock,
        mode: LockMode,
    ) -> Result<Self, Busy> {
        let record = LockRecord { lock, mode };
        Self::take(call, word, Format::SharexHostPriority, record)
    }

    /// Takes the lock of the Secure EPT entry at `entry`.
    pub(super) fn sept_entry(call: &'c Call<'c, P>, entry: u64, gpa: u64) -> Result<Self, Busy> {
        let lock = Lock::SeptEntry { entry, gpa };
        let mode = LockMode::Exclusive;
        let record = LockRecord { lock, mode };
        Self::take(call, Word::Memory(entry), Format::SeptEntry, record)
    }

    /// Takes the lock of the Secure EPT entry at `entry` for a guest.
    pub(super) fn sept_entry_for_guest(
        call: &'c Call<'c, P>,
        entry: u64,
        gpa: u64,
    ) -> Result<Self, Busy> {
        let lock = Lock::SeptEntry { entry, gpa };
        let mode = LockMode::Exclusive;
        let record = LockRecord { lock, mode };
        Self::take(call, Word::Memory(entry), Format::SeptEntryForGuest, record)
    }

    fn take(
        call: &'c Call<'c, P>,
        word: Word<'c>,
        format: Format,
        record: LockRecord,
    ) -> Result<Self, Busy> {
        let value = word.load(call.platform);
        take(call, word, format, record, value, |_| true)?;
        Ok(Self::of(call, word, format, record))
    }

    fn of(call: &'c Call<'c, P>, word: Word<'c>, format: Format, record: LockRecord) -> Self {
        let LockRecord { lock, mode } = record;
        Self {
            call,
            word,
            lock,
            mode,
            format,
        }
    }

    /// Leaves the lock held.
    pub(super) fn keep(self) {
        core::mem::forget(self);
    }

    /// A lock that was left held.
    pub(super) fn kept(call: &'c Call<'c, P>, word: Word<'c>, record: LockRecord) -> Self {
        Self::of(call, word, Format::Sharex, record)
    }

    /// A lock of a Secure EPT entry that was left held.
    pub(super) fn kept_sept_entry(
        call: &'c Call<'c, P>,
        word: Word<'c>,
        record: LockRecord,
    ) -> Self {
        Self::of(call, word, Format::SeptEntry, record)
    }

    /// Gives the locked Secure EPT entry a new value. It stays locked.
    pub(super) fn set_sept_entry(&self, value: u64) {
        // Others may only set the host-priority bit meanwhile.
        self.word.update(self.call.platform, u32::MAX, |now| {
            let keep = now & SEPT_ENTRY_HOST_PRIORITY;
            value & !SEPT_ENTRY_HOST_PRIORITY | SEPT_ENTRY_LOCK | keep
        });
    }
}

impl<P: Platform> Drop for Held<'_, P> {
    // Inlined, as what has its address taken would be copied from caller to caller.
    #[inline(always)]
    fn drop(&mut self) {
        give_back(self.call, self.word, self.format, self.mode, || self.lock);
    }
}

/// Adds to a counter in memory that several holders of a shared lock may change.
///
/// Returns the former value.
pub(super) fn fetch_add<P: Platform>(platform: &P, pa: u64, delta: u64) -> u64 {
    let mut value = platform.read64(pa);
    for _ in 0..u32::MAX {
        match platform.cas64(pa, value, value.wrapping_add(delta)) {
            Ok(_) => break,
            Err(now) => value = now,
        }
    }
    value
}
