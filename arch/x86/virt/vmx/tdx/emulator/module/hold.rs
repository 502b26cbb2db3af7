// SPDX-License-Identifier: GPL-2.0

//! Locks taken from outside, as if a leaf on another processor held them.
//!
//! For tests that must be certain of a race.

use super::{
    dispatch::Call,
    locks::{
        Lock,
        LockRecord,
        Way,
        Word, //
    },
    place::Place,
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
        let LockRecord { lock, mode } = record;
        let word = self.locked_word(&call, record);
        // The call ends without giving it back.
        word.is_some_and(|(word, way)| call.take(word, way, lock, mode).is_ok())
    }

    /// Gives back a lock that [`Self::hold`] took.
    pub fn release<P: Platform>(&self, platform: &P, record: LockRecord) {
        let call = Call::new(self, platform, 0);
        if let Some((word, way)) = self.locked_word(&call, record) {
            call.hold(word, way, record);
            call.release_to(0);
        }
    }

    /// Where a lock is, and how it is held.
    fn locked_word<'c, P: Platform>(
        &'c self,
        call: &'c Call<'c, P>,
        LockRecord { lock, mode }: LockRecord,
    ) -> Option<(Word<'c, P>, Way)> {
        let (sharex, host_priority) = (Way::sharex(mode), Way::sharex_host_priority(mode));
        let tdcs_word = |tdr: u64, field: TdcsField| {
            let tdcs: Tdcs<'c, P> = Td::new(call, tdr).tdcs()?;
            Some(Word::Memory(tdcs.at(field).word()))
        };
        Some(match lock {
            Lock::Global => (Word::Local(&self.global_lock), sharex),
            Lock::Kot => (self.kot.lock_word(), sharex),
            Lock::Wbcache(package) => {
                let write_back = self.write_back.get(package as usize)?;
                (write_back.lock_word(), sharex)
            }
            Lock::Tdmr(index) => {
                let tdmr = self.tdmrs.iter().nth(index as usize)?;
                (tdmr.lock_word(), sharex)
            }
            Lock::Page { pa, level } => {
                let (tdmr, offset) = self.tdmrs.find(pa)?;
                let entry = Place::find(call.platform, tdmr.entry(offset, level));
                (Word::Memory(entry.word()), host_priority)
            }
            Lock::OpState(tdr) => (tdcs_word(tdr, TdcsField::OpStateLock)?, host_priority),
            Lock::SeptTree(tdr) => (tdcs_word(tdr, TdcsField::SeptLock)?, sharex),
            Lock::Epoch(tdr) => (tdcs_word(tdr, TdcsField::EpochLock)?, sharex),
            Lock::SeptEntry { entry, .. } => {
                let entry = Place::find(call.platform, entry);
                (Word::Memory(entry.word()), Way::SEPT_ENTRY)
            }
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
            entry: walk.place.pa(),
            gpa,
        })
    }
}
