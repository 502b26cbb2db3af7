// SPDX-License-Identifier: GPL-2.0

//! Which physical addresses a leaf accepts.

use super::platform::{
    MemoryRange,
    Platform, //
};

/// The size of a page.
pub(super) const PAGE_SIZE: u64 = 4096;
/// The bits of a page's address.
pub(super) const PAGE_ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// The size of a block of the PAMT that is initialised as one.
pub(super) const GIB: u64 = 1 << 30;

/// The number of bytes that a page of that level has: 4 KiB, 2 MiB, 1 GiB, …
pub(super) const fn level_size(level: u8) -> u64 {
    1 << (12 + 9 * if level > 4 { 4 } else { level as u32 })
}

/// The number of 4 KiB pages in a page of that level.
pub(super) const fn level_pages(level: u8) -> u64 {
    level_size(level) / PAGE_SIZE
}

impl MemoryRange {
    /// The first byte after the range; the highest address if there is none.
    pub(super) const fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    /// Whether the ranges share a byte.
    pub(super) const fn overlaps(&self, other: &MemoryRange) -> bool {
        self.size != 0 && other.size != 0 && self.base < other.end() && other.base < self.end()
    }
}

/// Whether `pa` can be a page of a TD or of the module: no HKID bits, aligned.
#[inline(always)]
pub(super) fn is_private<P: Platform>(platform: &P, pa: u64, align: u64) -> bool {
    let bits = platform.address_bits().min(52);
    is_aligned(pa, align) && pa >> bits == 0
}

/// The address proper of memory that the host shares with the module, if `pa` can be that.
pub(super) fn shared<P: Platform>(platform: &P, pa: u64, align: u64) -> Option<u64> {
    let layout = platform.layout();
    let address_bits = layout.address_bits.min(52);
    let hkid = pa >> address_bits;
    let plain = pa & (1u64 << address_bits).wrapping_sub(1);
    let in_seam = platform.seam_range().is_some_and(|seam| {
        seam.overlaps(&MemoryRange {
            base: plain,
            size: align,
        })
    });
    let valid = is_aligned(pa, align)
        && hkid <= u64::from(platform.keys().mktme_keys)
        && hkid >> layout.hkid_bits.min(12) == 0
        && !in_seam;
    valid.then_some(plain)
}

/// Splits an address into the address proper and the HKID; [`None`] if it has bits beyond.
pub(super) fn split<P: Platform>(platform: &P, pa: u64) -> Option<(u64, u16)> {
    let layout = platform.layout();
    let address_bits = layout.address_bits.min(52);
    let hkid = pa >> address_bits;
    (hkid >> layout.hkid_bits.min(12) == 0)
        .then_some((pa & (1u64 << address_bits).wrapping_sub(1), hkid as u16))
}

/// Whether the HKID is one for TDs.
pub(super) fn is_private_hkid<P: Platform>(platform: &P, hkid: u16) -> bool {
    let keys = platform.keys();
    let last = keys.mktme_keys.saturating_add(keys.tdx_keys);
    (keys.mktme_keys.saturating_add(1)..=last).contains(&u32::from(hkid))
}

/// Whether `value` is a multiple of `align`, a power of two.
pub(super) const fn is_aligned(value: u64, align: u64) -> bool {
    value & align.wrapping_sub(1) == 0
}

/// Reads 8 bytes that the host wrote, at a multiple of 8.
pub(super) fn read_host64<P: Platform>(platform: &P, pa: u64) -> u64 {
    let mut bytes = [0; 8];
    platform.read_host(pa, &mut bytes);
    u64::from_le_bytes(bytes)
}
