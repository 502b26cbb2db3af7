// SPDX-License-Identifier: GPL-2.0

//! The measurement of a TD's initial memory (MRTD), by SHA-384.

use super::{
    platform::Platform,
    td::{
        Tdcs,
        TdcsField, //
    },
};

/// The block size of SHA-384.
const BLOCK: usize = 128;
/// The number of bytes that one TDH.MR.EXTEND measures.
pub(super) const EXTEND_SIZE: usize = 256;

/// The initial value of SHA-384.
const INITIAL: [u64; 8] = [
    0xcbbb_9d5d_c105_9ed8,
    0x629a_292a_367c_d507,
    0x9159_015a_3070_dd17,
    0x152f_ecd8_f70e_5939,
    0x6733_2667_ffc0_0b31,
    0x8eb4_4a87_6858_1511,
    0xdb0c_2e0d_64f9_8fa7,
    0x47b5_481d_befa_4fa4,
];

/// A block that says what is measured and where.
fn header(what: &[u8], gpa: u64) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (to, from) in block.iter_mut().zip(what) {
        *to = *from;
    }
    for (to, from) in block.iter_mut().skip(16).zip(gpa.to_le_bytes()) {
        *to = from;
    }
    block
}

impl<P: Platform> Tdcs<'_, P> {
    /// Starts the measurement.
    pub(super) fn measurement_init(&self) {
        self.set_state(&INITIAL);
        self.set(TdcsField::MrtdBytes, 0);
    }

    /// Measures that a page was added.
    pub(super) fn measure_page(&self, gpa: u64) {
        self.measure(&header(b"MEM.PAGE.ADD", gpa));
    }

    /// Measures the contents of a part of a page.
    pub(super) fn measure_contents(&self, gpa: u64, contents: &[u8; EXTEND_SIZE]) {
        self.measure(&header(b"MR.EXTEND", gpa));
        self.measure(contents);
    }

    /// Ends the measurement.
    pub(super) fn measurement_finish(&self) {
        // Everything measured came in whole blocks, so the padding is a block of its own.
        let bits = self.get(TdcsField::MrtdBytes).wrapping_mul(8);
        let mut padding = [0; BLOCK];
        if let Some(first) = padding.first_mut() {
            *first = 0x80;
        }
        for (to, from) in padding.iter_mut().rev().zip(bits.to_le_bytes()) {
            *to = from;
        }
        self.measure(&padding);

        let mut mrtd = [0; 48];
        let state = self.state();
        let bytes = state.iter().flat_map(|word| word.to_be_bytes());
        for (to, from) in mrtd.iter_mut().zip(bytes) {
            *to = from;
        }
        let platform = self.call().platform;
        platform.write(self.at(TdcsField::Mrtd).pa(), &mrtd);
    }

    /// The measurement, once it is finished.
    pub(super) fn mrtd(&self) -> [u8; 48] {
        let mut mrtd = [0; 48];
        let platform = self.call().platform;
        platform.read(self.at(TdcsField::Mrtd).pa(), &mut mrtd);
        mrtd
    }

    fn measure(&self, blocks: &[u8]) {
        let mut state = self.state();
        self.call().platform.sha384_blocks(&mut state, blocks);
        self.set_state(&state);
        let bytes = self.at(TdcsField::MrtdBytes);
        bytes.fetch_add(blocks.len() as u64);
    }

    fn state(&self) -> [u64; 8] {
        let mut state = [0; 8];
        let mut place = self.at(TdcsField::MrtdState);
        for word in &mut state {
            *word = place.load();
            place = place.at(8);
        }
        state
    }

    fn set_state(&self, state: &[u64; 8]) {
        let mut place = self.at(TdcsField::MrtdState);
        for word in state {
            place.store(*word);
            place = place.at(8);
        }
    }
}
