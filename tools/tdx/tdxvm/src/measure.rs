// SPDX-License-Identifier: GPL-2.0

//! Computes MRTD the way the TDX module does, from what is loaded alone.
//!
//! MRTD is a SHA-384 over one block for each page that is added, and for a page that is measured
//! also one block and the data for each 256 bytes of it. KVM measures a page before it adds the
//! next.

use std::fmt;

use serde::Serialize;
use serde::Serializer;
use sha2::Digest;
use sha2::Sha384;

use crate::load::Load;
use crate::tdvf::PAGE_SIZE;

const BLOCK: usize = 128;
const GPA_OFFSET: usize = 16;

/// What one MR.EXTEND covers.
const CHUNK: usize = 256;

/// A TD's measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mrtd(pub [u8; 48]);

impl Mrtd {
    /// Reads the 96 hexadecimal digits that [`fmt::Display`] writes.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 96 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let mut bytes = [0; 48];
        for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        Some(Self(bytes))
    }
}

impl fmt::Display for Mrtd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl Serialize for Mrtd {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A measurement that is being built.
#[derive(Default)]
struct Measurement(Sha384);

impl Measurement {
    fn block(&mut self, name: &[u8], gpa: u64) {
        let mut block = [0; BLOCK];
        block[..name.len()].copy_from_slice(name);
        block[GPA_OFFSET..GPA_OFFSET + 8].copy_from_slice(&gpa.to_le_bytes());
        self.0.update(block);
    }

    fn add_page(&mut self, gpa: u64) {
        self.block(b"MEM.PAGE.ADD", gpa);
    }

    fn extend_page(&mut self, gpa: u64, page: &[u8]) {
        for (gpa, chunk) in (gpa..).step_by(CHUNK).zip(page.chunks_exact(CHUNK)) {
            self.block(b"MR.EXTEND", gpa);
            self.0.update(chunk);
        }
    }

    fn finish(self) -> Mrtd {
        Mrtd(self.0.finalize().into())
    }
}

/// Computes the MRTD of a TD into which `loads` are put, in this order.
pub fn mrtd(loads: &[Load<'_>]) -> Mrtd {
    let mut measurement = Measurement::default();
    for load in loads {
        for (index, gpa) in (load.gpa..load.end())
            .step_by(PAGE_SIZE as usize)
            .enumerate()
        {
            measurement.add_page(gpa);
            if load.measured {
                measurement.extend_page(gpa, &load.page(index as u64));
            }
        }
    }
    measurement.finish()
}

#[cfg(test)]
mod tests {
    use std::borrow::Cow;

    use super::*;
    use crate::tdvf::SectionType;

    fn load(gpa: u64, pages: u64, data: &[u8], measured: bool) -> Load<'_> {
        Load {
            index: 0,
            kind: SectionType::Bfv,
            gpa,
            pages,
            data: Cow::Borrowed(data),
            measured,
        }
    }

    // The digests below come from Python's hashlib, fed by hand with the blocks in their order.

    #[test]
    fn nothing_is_the_empty_hash() {
        assert_eq!(
            mrtd(&[]).to_string(),
            "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da\
             274edebfe76f65fbd51ad2f14898b95b"
        );
    }

    #[test]
    fn pages_that_are_not_measured_count_by_address() {
        let zero = mrtd(&[load(0x80_0000, 2, &[], false)]);
        assert_eq!(zero.to_string(), PAGES_NOT_MEASURED);
        assert_eq!(mrtd(&[load(0x80_0000, 2, &[7; 8192], false)]), zero);
        assert_ne!(mrtd(&[load(0x80_1000, 2, &[], false)]), zero);
    }

    #[test]
    fn measured_pages_count_by_content() {
        let data: Vec<u8> = (0..6000u32).map(|i| (i % 251) as u8).collect();
        let loads = [
            load(0xffff_e000, 2, &data, true),
            load(0x80_9000, 1, b"unmeasured", false),
        ];
        assert_eq!(mrtd(&loads).to_string(), PAGES_MEASURED);
        // What is beyond the data is zero, and counts.
        let mut padded = data.clone();
        padded.resize(8192, 0);
        assert_eq!(
            mrtd(&[load(0xffff_e000, 2, &padded, true)]),
            mrtd(&loads[..1])
        );
    }

    #[test]
    fn hexadecimal_is_read_back() {
        let mrtd = mrtd(&[]);
        assert_eq!(Mrtd::from_hex(&mrtd.to_string()), Some(mrtd));
        assert_eq!(Mrtd::from_hex("-"), None);
        assert_eq!(Mrtd::from_hex(&"+1".repeat(48)), None);
        assert_eq!(Mrtd::from_hex(&"é".repeat(48)), None);
    }

    const PAGES_NOT_MEASURED: &str =
        "19bf681720c7f66efbc85a752e881ccb92c868fc59508ecb415948265b440e13\
        cac47f60ce7203b271c7d62cb2ad5c91";
    const PAGES_MEASURED: &str = "7429f850f05f0eb0bbe8bd2ecf79da1d191e62023a4b179dc849118b389f6164\
        bb98fe280f976a89dbd649e1e99b433b";
}
