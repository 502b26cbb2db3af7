// SPDX-License-Identifier: GPL-2.0

//! Words in memory whose page was found.

use super::platform::{
    FoundPage,
    FoundWord,
    Platform, //
};

/// A word of a page that was found.
pub(super) type WordOf<'c, P> = <<P as Platform>::Page<'c> as FoundPage>::Word;

/// A place in memory, a multiple of 8, whose page was found.
///
/// What has several words of a page to read, or a lock to take and to give back, keeps the place, so
/// that the page is looked for once.
pub(super) struct Place<'c, P: Platform + 'c> {
    pa: u64,
    page: P::Page<'c>,
}

impl<P: Platform> Clone for Place<'_, P> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<P: Platform> Copy for Place<'_, P> {}

impl<'c, P: Platform> Place<'c, P> {
    /// The place at that address.
    #[inline(always)]
    pub(super) fn find(platform: &'c P, pa: u64) -> Self {
        Self {
            pa,
            page: platform.page(pa),
        }
    }

    /// Where it is.
    #[inline(always)]
    pub(super) fn pa(self) -> u64 {
        self.pa
    }

    /// The place that many bytes further, in the same page.
    #[inline(always)]
    pub(super) fn at(self, offset: u64) -> Self {
        Self {
            pa: self.pa.wrapping_add(offset),
            page: self.page,
        }
    }

    /// The word.
    #[inline(always)]
    pub(super) fn word(self) -> WordOf<'c, P> {
        self.page.word(self.pa)
    }

    /// Reads the word.
    #[inline(always)]
    pub(super) fn load(self) -> u64 {
        self.word().load()
    }

    /// Writes the word.
    #[inline(always)]
    pub(super) fn store(self, value: u64) {
        self.word().store(value);
    }

    /// Replaces `current` by `new`, see [`FoundWord::cas`].
    #[inline(always)]
    pub(super) fn cas(self, current: u64, new: u64) -> Result<u64, u64> {
        self.word().cas(current, new)
    }

    /// Adds to the word, see [`FoundWord::fetch_add`].
    #[inline(always)]
    pub(super) fn fetch_add(self, delta: u64) -> u64 {
        self.word().fetch_add(delta)
    }
}
