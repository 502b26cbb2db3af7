// SPDX-License-Identifier: GPL-2.0

//! Locks taken from outside, as if a leaf on another processor held them.
//!
//! For tests that must be certain of a race.

use super::{
    dispatch::Call,
    locks::{
        Held,
        Lock,
        LockRecord,
        Word, //
    },
    platform::Platform,
    sept,
    td::{
        Td,
        Tdcs,
        TdcsField, //
    },
    Module, //
};

impl Module {
    /// Takes a lock as a leaf would. Returns whether it could be had.
    ///
    /// [`Self::release`] gives it back.
    pub fn hold<P: Platform>(&self, platform: &P, record: LockRecord) -> bool {
        let call = Call::new(self, platform, 0);
        let held = self.locked_word(&call, record).and_then(|(word, kind)| {
            match kind {
                Kind::Plain => Held::sharex(&call, word, record.lock, record.mode),
                Kind::HostPriority => {
                    Held::sharex_host_priority(&call, word, record.lock, record.mode)
                }
                Kind::SeptEntry { entry, gpa } => Held::sept_entry(&call, entry, gpa),
            }
            .ok()
        });
        held.map(Held::keep).is_some()
    }

    /// Gives back a lock that [`Self::hold`] took.
    pub fn release<P: Platform>(&self, platform: &P, record: LockRecord) {
        let call = Call::new(self, platform, 0);
        if let Some((word, kind)) = self.locked_word(&call, record) {
            match kind {
                Kind::SeptEntry { .. } => drop(Held::kept_sept_entry(&call, word, record)),
                _ => drop(Held::kept(&call, word, record)),
            }
        }
    }

    fn locked_word<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        record: LockRecord,
    ) -> Option<(Word<'c>, Kind)> {
        let tdcs_word = |tdr: u64, field: TdcsField| {
            let tdcs: Tdcs<'c, P> = Td::new(call, tdr).tdcs()?;
            Some(Word::Memory(tdcs.field_pa(field)))
        };
        Some(match record.lock {
            Lock::Global => (Word::Local(&self.global_lock), Kind::Plain),
            Lock::Kot => (self.kot.lock_word(), Kind::Plain),
            Lock::Wbcache(package) => {
                let write_back = self.write_back.get(package as usize)?;
                (write_back.lock_word(), Kind::Plain)
            }
            Lock::Tdmr(index) => {
                let tdmr = self.tdmrs.iter().nth(index as usize)?;
                (tdmr.lock_word(), Kind::Plain)
            }
            Lock::Page { pa, level } => {
                let (tdmr, offset) = self.tdmrs.find(pa)?;
                (Word::Memory(tdmr.entry(offset, level)), Kind::HostPriority)
            }
            Lock::OpState(tdr) => {
                let word = tdcs_word(tdr, TdcsField::OpStateLock)?;
                (word, Kind::HostPriority)
            }
            Lock::SeptTree(tdr) => (tdcs_word(tdr, TdcsField::SeptLock)?, Kind::Plain),
            Lock::Epoch(tdr) => (tdcs_word(tdr, TdcsField::EpochLock)?, Kind::Plain),
            Lock::SeptEntry { entry, gpa } => (Word::Memory(entry), Kind::SeptEntry { entry, gpa }),
        })
    }

    /// The lock of the Secure EPT entry of that level for a GPA, if the tables reach it.
    pub fn sept_entry_lock<P: Platform>(
        &self,
        platform: &P,
        tdr: u64,
        gpa: u64,
        level: u8,
    ) -> Option<Lock> {
        let call = Call::new(self, platform, 0);
        let tdcs = Td::new(&call, tdr).tdcs()?;
        let (walk, complete) = sept::walk(&tdcs, gpa, level);
        complete.then_some(Lock::SeptEntry {
            entry: walk.pa,
            gpa,
        })
    }
}

enum Kind {
    Plain,
    HostPriority,
    SeptEntry { entry: u64, gpa: u64 },
}
