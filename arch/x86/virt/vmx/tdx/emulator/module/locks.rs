// SPDX-License-Identifier: GPL-2.0

//! The module's locks.
//!
//! No lock ever waits: one that cannot be had at once makes the leaf fail. Most locks can be
//! shared. A lock is the low 16 bits of a 64-bit word, which lies either in memory, beside what the
//! lock protects, or in the [`Module`](super::Module). The lock of a Secure EPT entry is a bit of
//! the entry itself.

use super::{
    dispatch::Call,
    place::WordOf,
    platform::{
        Event,
        FoundWord,
        Platform, //
    },
};
use core::{
    cell::Cell,
    sync::atomic::{
        AtomicU64,
        Ordering, //
    }, //
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
/// Set when there are 8192 holders: many more than processors, and room for one more each.
const SHARED_MANY: u64 = 1 << 14;
/// Set when the host failed to get the lock, cleared when it does: until then, guests must not.
const HOST_PRIORITY: u64 = 1 << 15;

/// The lock bit of a Secure EPT entry.
pub(super) const SEPT_ENTRY_LOCK: u64 = 1 << 11;
/// The host-priority bit of a Secure EPT entry.
pub(super) const SEPT_ENTRY_HOST_PRIORITY: u64 = 1 << 52;

/// How often a lock is tried again when its word changed for another reason than being taken.
const ATTEMPTS: u32 = 1024;

/// Where a lock's word is.
pub(super) enum Word<'c, P: Platform + 'c> {
    /// In memory.
    Memory(WordOf<'c, P>),
    /// In the module.
    Local(&'c AtomicU64),
}

impl<P: Platform> Clone for Word<'_, P> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Word<'_, P> {}

impl<'c, P: Platform + 'c> Word<'c, P> {
    #[inline(always)]
    fn load(self) -> u64 {
        match self {
            Word::Memory(word) => word.load(),
            Word::Local(word) => word.load(Ordering::Acquire),
        }
    }

    #[inline(always)]
    fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        match self {
            Word::Memory(word) => word.cas(current, new),
            Word::Local(word) => {
                word.compare_exchange(current, new, Ordering::AcqRel, Ordering::Acquire)
            }
        }
    }

    /// Changes the word with `change`, until nobody interferes.
    #[inline(always)]
    pub(super) fn update(self, attempts: u32, change: impl Fn(u64) -> u64) {
        let mut value = self.load();
        for _ in 0..attempts {
            match self.cas(value, change(value)) {
                Ok(_) => break,
                Err(now) => value = now,
            }
        }
    }

    /// Takes away what a holder of the lock has added.
    #[inline(always)]
    fn release(self, unit: u64) {
        match self {
            Word::Memory(word) => word.fetch_add(unit.wrapping_neg()),
            Word::Local(word) => word.fetch_sub(unit, Ordering::AcqRel),
        };
    }
}

/// One way to hold a lock: what that means for the word.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// What each holder adds.
    unit: u64,
    /// The bits of which none may be set.
    excluded_by: u64,
    /// The bit by which a host that did not get the lock keeps guests away. One that gets it clears
    /// it.
    mark: u64,
}

impl Way {
    /// In the low 16 bits.
    #[inline(always)]
    pub(super) const fn sharex(mode: LockMode) -> Self {
        let (unit, excluded_by) = match mode {
            LockMode::Shared => (SHARED_ONE, EXCLUSIVE | SHARED_MANY),
            LockMode::Exclusive => (EXCLUSIVE, EXCLUSIVE | SHARED_MASK),
        };
        Self {
            unit,
            excluded_by,
            mark: 0,
        }
    }

    /// The same with the mark.
    #[inline(always)]
    pub(super) const fn sharex_host_priority(mode: LockMode) -> Self {
        Self {
            mark: HOST_PRIORITY,
            ..Self::sharex(mode)
        }
    }

    /// One bit in a Secure EPT entry.
    pub(super) const SEPT_ENTRY: Self = Self {
        unit: SEPT_ENTRY_LOCK,
        excluded_by: SEPT_ENTRY_LOCK,
        mark: SEPT_ENTRY_HOST_PRIORITY,
    };

    /// The same for a guest, which leaves it to a host that waits.
    pub(super) const SEPT_ENTRY_FOR_GUEST: Self = Self {
        excluded_by: SEPT_ENTRY_LOCK | SEPT_ENTRY_HOST_PRIORITY,
        mark: 0,
        ..Self::SEPT_ENTRY
    };

    /// The word once the lock is taken; [`None`] if it cannot be had.
    #[inline(always)]
    const fn taken(self, value: u64) -> Option<u64> {
        if value & self.excluded_by != 0 {
            return None;
        }
        Some((value & !self.mark).wrapping_add(self.unit))
    }
}

/// The most locks that a leaf holds at once. These are TDH.MEM.PAGE.AUG's: the entries for the three
/// sizes of two pages, the operation state, the tree, and an entry in it.
const MAX_HELD: usize = 9;

/// The locks that a SEAMCALL holds, in the order in which it took them.
///
/// A leaf gives its locks back at its end, in reverse order. So what it opens has nothing to do when
/// it is dropped, and is no larger than what it is opened for.
pub(super) struct HeldLocks<'c, P: Platform> {
    locks: [Held<'c, P>; MAX_HELD],
    count: Cell<usize>,
}

/// A lock that is held, or is about to be.
struct Held<'c, P: Platform> {
    word: Cell<Word<'c, P>>,
    /// What is taken away from the word in the end.
    unit: Cell<u64>,
    /// Which lock it is, if somebody wants to know.
    record: Cell<Option<LockRecord>>,
}

impl<P: Platform> Held<'_, P> {
    /// Tries to take the lock, as long as its word changes for other reasons than being taken. Its
    /// word was `value`, of which the bits `same` must not change.
    ///
    /// If that fails, leaves the mark. For the rest see [`Way`].
    #[cold]
    #[inline(never)]
    fn take_again(&self, mut value: u64, same: u64, excluded_by: u64, mark: u64) -> bool {
        let word = self.word.get();
        let way = Way {
            unit: self.unit.get(),
            excluded_by,
            mark,
        };
        let expected = value & same;
        for _ in 0..ATTEMPTS {
            let Some(new) = way.taken(value) else {
                break;
            };
            match word.cas(value, new) {
                Ok(_) => return true,
                Err(now) => value = now,
            }
            if value & same != expected {
                return false;
            }
        }
        // Only for guests: if it cannot be left, the next attempt will leave it.
        if mark != 0 {
            word.update(ATTEMPTS, |value| value | mark);
        }
        false
    }
}

impl<'c, P: Platform> HeldLocks<'c, P> {
    /// None. Any word will do where a lock may be held later.
    #[inline(always)]
    pub(super) fn new(any: &'c AtomicU64) -> Self {
        Self {
            locks: core::array::from_fn(|_| Held {
                word: Cell::new(Word::Local(any)),
                unit: Cell::new(0),
                record: Cell::new(None),
            }),
            count: Cell::new(0),
        }
    }

    /// Where the next lock goes.
    #[inline(always)]
    fn vacant(&self) -> Option<&Held<'c, P>> {
        self.locks.get(self.count.get())
    }
}

impl<'c, P: Platform> Call<'c, P> {
    /// Takes a lock.
    #[inline(always)]
    pub(super) fn take(
        &self,
        word: Word<'c, P>,
        way: Way,
        lock: Lock,
        mode: LockMode,
    ) -> Result<(), Busy> {
        self.take_found(word, word.load(), 0, way, || LockRecord { lock, mode })
    }

    /// Takes a lock whose word was just found to be `value`, unless somebody else has it or one of
    /// the bits `same` changes.
    #[inline(always)]
    pub(super) fn take_found(
        &self,
        word: Word<'c, P>,
        value: u64,
        same: u64,
        way: Way,
        record: impl Fn() -> LockRecord,
    ) -> Result<(), Busy> {
        // Put there before it is taken, it need not be passed on if that fails.
        let next = self.locks.vacant().ok_or(Busy)?;
        next.word.set(word);
        next.unit.set(way.unit);
        let taken = match way.taken(value) {
            Some(new) => word.cas(value, new).is_ok(),
            None => false,
        };
        if !taken && !next.take_again(value, same, way.excluded_by, way.mark) {
            if self.platform.observes() {
                self.platform.observe(Event::LockBusy(record()));
            }
            return Err(Busy);
        }
        if self.platform.observes() {
            next.record.set(Some(record()));
            self.platform.observe(Event::LockTaken(record()));
        }
        self.hold_next();
        Ok(())
    }

    /// Counts the lock that was put there.
    #[inline(always)]
    fn hold_next(&self) {
        self.locks.count.set(self.held_locks().wrapping_add(1));
    }

    /// Holds a lock that another SEAMCALL took.
    pub(super) fn hold(&self, word: Word<'c, P>, way: Way, record: LockRecord) {
        if let Some(next) = self.locks.vacant() {
            next.word.set(word);
            next.unit.set(way.unit);
            next.record.set(Some(record));
            self.hold_next();
        }
    }

    /// How many locks are held.
    #[inline(always)]
    pub(super) fn held_locks(&self) -> usize {
        self.locks.count.get()
    }

    /// Gives the locks back that were taken since so many were held, the last first.
    pub(super) fn release_to(&self, count: usize) {
        let held = self.locks.locks.get(count..self.held_locks());
        let held = held.unwrap_or(&[]).iter().rev();
        if self.platform.observes() {
            held.for_each(|held| self.release_observed(held));
        } else {
            held.for_each(|held| held.word.get().release(held.unit.get()));
        }
        self.locks.count.set(count);
    }

    #[cold]
    fn release_observed(&self, held: &Held<'c, P>) {
        let record = held.record.take();
        if let Some(record) = record {
            self.platform.observe(Event::LockReleasing(record));
        }
        held.word.get().release(held.unit.get());
        if let Some(record) = record {
            self.platform.observe(Event::LockReleased(record));
        }
    }

    /// Gives the locks back that `f` takes.
    #[inline(always)]
    pub(super) fn scoped<T>(&self, f: impl FnOnce() -> T) -> T {
        let before = self.held_locks();
        let result = f();
        self.release_to(before);
        result
    }
}
