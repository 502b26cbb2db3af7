// SPDX-License-Identifier: GPL-2.0

//! Reads the TDX metadata of a virtual firmware image (TDVF).
//!
//! The image ends in a table of GUIDed entries that is read backwards. One entry says how far
//! from the end of the file the TDX metadata lies: a descriptor ("TDVF") with one record for each
//! range of guest memory that has to be set up before the TD starts.
//!
//! The file is untrusted: every offset is checked before it is used, and what makes no sense is
//! refused with a reason a person can act on.

use std::fmt;

use serde::Serialize;
use thiserror::Error;

/// Size of a page, and the alignment of everything a TD is loaded from.
pub const PAGE_SIZE: u64 = 4096;

/// End of the memory that firmware is mapped in, right below 4 GiB.
pub const FIRMWARE_END: u64 = 1 << 32;

/// Where a vCPU of a TD starts.
const RESET_VECTOR: u64 = FIRMWARE_END - 16;

/// Lowest GPA that can never be private, whatever the guest's address width.
const PRIVATE_END: u64 = 1 << 47;

/// Larger files are not firmware: they would not leave room for devices below 4 GiB.
pub const MAX_IMAGE: u64 = 64 << 20;

/// Bytes after the GUIDed table: the reset vector's code.
const TABLE_TRAILER: usize = 32;

/// Length and GUID, which end every entry of the table.
const ENTRY_TAIL: usize = 18;

const DESCRIPTOR_HEADER: usize = 16;
const SECTION_RECORD: usize = 32;
const SIGNATURE: [u8; 4] = *b"TDVF";
const VERSION: u32 = 1;

/// More records than any firmware needs, few enough to compare them all with each other.
const MAX_SECTIONS: u32 = 64;

const ATTR_MR_EXTEND: u32 = 1 << 0;
const ATTR_PAGE_AUG: u32 = 1 << 1;

/// A GUID in the order of bytes in which it is stored.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Guid([u8; 16]);

impl Guid {
    /// Makes a GUID from its five printed groups.
    const fn new(a: u32, b: u16, c: u16, d: u16, e: u64) -> Self {
        let (a, b, c) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
        let (d, e) = (d.to_be_bytes(), e.to_be_bytes());
        Self([
            a[0], a[1], a[2], a[3], b[0], b[1], c[0], c[1], d[0], d[1], e[2], e[3], e[4], e[5],
            e[6], e[7],
        ])
    }
}

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let g = &self.0;
        let a = u32::from_le_bytes([g[0], g[1], g[2], g[3]]);
        let b = u16::from_le_bytes([g[4], g[5]]);
        let c = u16::from_le_bytes([g[6], g[7]]);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{:02x}{:02x}-", g[8], g[9])?;
        g[10..].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Ends the table of GUIDed entries.
const TABLE_FOOTER: Guid = Guid::new(0x96b5_82de, 0x1fb2, 0x45f7, 0xbaea, 0xa366_c55a_082d);

/// Entry whose data is the distance of the TDX metadata from the end of the file.
const TDX_METADATA: Guid = Guid::new(0xe47a_6535, 0x984a, 0x4798, 0x865e, 0x4685_a7bf_8ec2);

/// Why a file is not a TDVF.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum TdvfError {
    #[error("the file is {0} bytes long: too short to be firmware")]
    TooShort(u64),
    #[error("the file is {0} bytes long: firmware is at most {MAX_IMAGE} bytes")]
    TooLong(u64),
    #[error("the file is {0} bytes long: not a whole number of 4 KiB pages")]
    NotPages(u64),
    #[error(
        "no table of GUIDed entries at the end of the file (found {found}, expected {TABLE_FOOTER}): \
         this is not OVMF-style firmware"
    )]
    NoTable { found: Guid },
    #[error("the table of GUIDed entries is said to be {length} bytes long, which is {problem}")]
    BadTable {
        length: usize,
        problem: &'static str,
    },
    #[error(
        "entry {index} of the GUIDed table is said to be {length} bytes long, which is {problem}"
    )]
    BadEntry {
        index: usize,
        length: usize,
        problem: &'static str,
    },
    #[error(
        "none of the {entries} entries of the GUIDed table points at TDX metadata: \
         the firmware was built without TDX"
    )]
    NoMetadata { entries: usize },
    #[error("the pointer to the TDX metadata is {0} bytes long instead of 4")]
    BadPointer(usize),
    #[error(
        "the TDX metadata is said to lie {offset} bytes before the end of the file, {problem}"
    )]
    BadOffset { offset: u32, problem: &'static str },
    #[error("the TDX metadata starts with {0:02x?} instead of \"TDVF\"")]
    BadSignature([u8; 4]),
    #[error("the TDX metadata has version {0}, only version {VERSION} is known")]
    BadVersion(u32),
    #[error("the TDX metadata has {0} sections, 1 to {MAX_SECTIONS} make sense")]
    BadCount(u32),
    #[error(
        "the TDX metadata is said to be {length} bytes long, its {count} sections need {need}"
    )]
    BadLength { length: u32, count: u32, need: u64 },
    #[error("the TDX metadata runs over the end of the file")]
    Truncated,
    #[error("section {index} has type {kind}, which is not known")]
    UnknownType { index: usize, kind: u32 },
    #[error("section {index} ({kind}): {problem}")]
    BadSection {
        index: usize,
        kind: SectionType,
        problem: SectionProblem,
    },
    #[error("sections {first} and {second} overlap in guest memory")]
    Overlap { first: usize, second: usize },
    #[error("sections {first} and {second} are both of type {kind}, at most one is allowed")]
    Twice {
        first: usize,
        second: usize,
        kind: SectionType,
    },
    #[error("there is no BFV section: no code to start with")]
    NoBfv,
    #[error("no section puts anything at the reset vector (0xfffffff0): the TD could not start")]
    NoResetVector,
}

/// What is wrong with one section.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SectionProblem {
    #[error("attributes {0:#x} have bits set that mean nothing")]
    Attributes(u32),
    #[error("it is to be measured and to be added later, which exclude each other")]
    MeasuredLater,
    #[error("only PermMem can be added later")]
    NotPermMem,
    #[error("guest address {0:#x} is not 4 KiB aligned")]
    UnalignedAddress(u64),
    #[error("size {0:#x} in guest memory is not a multiple of 4 KiB")]
    UnalignedSize(u64),
    #[error("it has no size in guest memory")]
    Empty,
    #[error("{size:#x} bytes at {address:#x} do not lie in private guest memory")]
    OutOfReach { address: u64, size: u64 },
    #[error("it has {raw:#x} bytes of data for {size:#x} bytes of guest memory")]
    DataTooLong { raw: u32, size: u64 },
    #[error("its data ({raw:#x} bytes at offset {offset:#x}) runs over the end of the file")]
    DataOutside { offset: u32, raw: u32 },
    #[error("it has no data in the file")]
    NoData,
    #[error(
        "it has data in the file (offset {offset:#x}, {raw:#x} bytes), but is filled otherwise"
    )]
    UnexpectedData { offset: u32, raw: u32 },
}

/// What a section is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum SectionType {
    /// Boot firmware volume: code.
    #[serde(rename = "BFV")]
    Bfv,
    /// Configuration firmware volume: variables.
    #[serde(rename = "CFV")]
    Cfv,
    /// Filled by the VMM with a list that describes guest memory.
    #[serde(rename = "TD_HOB")]
    TdHob,
    /// Zeroed memory for the firmware's first steps.
    TempMem,
    /// Memory added while the TD runs.
    PermMem,
    /// A kernel or a second firmware.
    Payload,
    /// The payload's command line.
    PayloadParam,
    /// Describes the firmware, may not take any memory.
    #[serde(rename = "TD_INFO")]
    TdInfo,
    /// Parameters of the TD.
    #[serde(rename = "TD_PARAMS")]
    TdParams,
}

impl SectionType {
    fn from_raw(raw: u32) -> Option<Self> {
        Some(match raw {
            0 => Self::Bfv,
            1 => Self::Cfv,
            2 => Self::TdHob,
            3 => Self::TempMem,
            4 => Self::PermMem,
            5 => Self::Payload,
            6 => Self::PayloadParam,
            7 => Self::TdInfo,
            8 => Self::TdParams,
            _ => return None,
        })
    }

    /// The name the metadata's specification uses.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bfv => "BFV",
            Self::Cfv => "CFV",
            Self::TdHob => "TD_HOB",
            Self::TempMem => "TempMem",
            Self::PermMem => "PermMem",
            Self::Payload => "Payload",
            Self::PayloadParam => "PayloadParam",
            Self::TdInfo => "TD_INFO",
            Self::TdParams => "TD_PARAMS",
        }
    }
}

impl fmt::Display for SectionType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One range of guest memory that the metadata describes.
///
/// # Invariants
///
/// The data lies inside the image, is not longer than the memory, and the memory is a whole number
/// of pages below the first shared address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Section {
    /// What it is for.
    pub kind: SectionType,
    /// Where its data starts in the file.
    pub data_offset: u32,
    /// Length of its data in the file.
    pub data_size: u32,
    /// Guest physical address.
    pub address: u64,
    /// Size in guest memory; what the data does not fill is zero.
    pub size: u64,
    /// Whether its content goes into MRTD.
    pub measured: bool,
    /// Whether it is left to be added while the TD runs.
    pub added_later: bool,
}

impl Section {
    /// First address after the section.
    pub fn end(&self) -> u64 {
        self.address + self.size
    }

    /// The section's data in the image it was parsed from.
    pub fn data<'a>(&self, image: &'a [u8]) -> &'a [u8] {
        let start = self.data_offset as usize;
        &image[start..start + self.data_size as usize]
    }

    fn parse(index: usize, record: &[u8], image_size: u64) -> Result<Self, TdvfError> {
        let raw_kind = u32_at(record, 24).ok_or(TdvfError::Truncated)?;
        let kind = SectionType::from_raw(raw_kind).ok_or(TdvfError::UnknownType {
            index,
            kind: raw_kind,
        })?;
        let bad = |problem| TdvfError::BadSection {
            index,
            kind,
            problem,
        };

        let data_offset = u32_at(record, 0).ok_or(TdvfError::Truncated)?;
        let data_size = u32_at(record, 4).ok_or(TdvfError::Truncated)?;
        let address = u64_at(record, 8).ok_or(TdvfError::Truncated)?;
        let size = u64_at(record, 16).ok_or(TdvfError::Truncated)?;
        let attributes = u32_at(record, 28).ok_or(TdvfError::Truncated)?;

        if attributes & !(ATTR_MR_EXTEND | ATTR_PAGE_AUG) != 0 {
            return Err(bad(SectionProblem::Attributes(attributes)));
        }
        let measured = attributes & ATTR_MR_EXTEND != 0;
        let added_later = attributes & ATTR_PAGE_AUG != 0;
        if measured && added_later {
            return Err(bad(SectionProblem::MeasuredLater));
        }
        if added_later && kind != SectionType::PermMem {
            return Err(bad(SectionProblem::NotPermMem));
        }

        if address % PAGE_SIZE != 0 {
            return Err(bad(SectionProblem::UnalignedAddress(address)));
        }
        if size % PAGE_SIZE != 0 {
            return Err(bad(SectionProblem::UnalignedSize(size)));
        }
        // A TD_INFO section may be there for tools only.
        let no_memory = kind == SectionType::TdInfo && size == 0;
        if size == 0 && !no_memory {
            return Err(bad(SectionProblem::Empty));
        }
        if address
            .checked_add(size)
            .is_none_or(|end| end > PRIVATE_END)
        {
            return Err(bad(SectionProblem::OutOfReach { address, size }));
        }

        if u64::from(data_size) > size && !no_memory {
            return Err(bad(SectionProblem::DataTooLong {
                raw: data_size,
                size,
            }));
        }
        if u64::from(data_offset) + u64::from(data_size) > image_size {
            return Err(bad(SectionProblem::DataOutside {
                offset: data_offset,
                raw: data_size,
            }));
        }
        match kind {
            SectionType::Bfv | SectionType::Cfv if data_size == 0 => {
                return Err(bad(SectionProblem::NoData));
            }
            SectionType::TdHob | SectionType::TempMem | SectionType::PermMem
                if data_size != 0 || data_offset != 0 =>
            {
                return Err(bad(SectionProblem::UnexpectedData {
                    offset: data_offset,
                    raw: data_size,
                }));
            }
            _ => {}
        }

        // INVARIANT: All of it was checked just above.
        Ok(Self {
            kind,
            data_offset,
            data_size,
            address,
            size,
            measured,
            added_later,
        })
    }
}

/// A firmware image that can start a TD.
#[derive(Clone, Debug)]
pub struct Tdvf {
    image: Vec<u8>,
    descriptor: u64,
    sections: Vec<Section>,
}

impl Tdvf {
    /// Checks an image and finds its sections.
    pub fn parse(image: Vec<u8>) -> Result<Self, TdvfError> {
        let size = image.len() as u64;
        if size < (TABLE_TRAILER + ENTRY_TAIL) as u64 {
            return Err(TdvfError::TooShort(size));
        }
        if size > MAX_IMAGE {
            return Err(TdvfError::TooLong(size));
        }
        if size % PAGE_SIZE != 0 {
            return Err(TdvfError::NotPages(size));
        }

        let offset = metadata_offset(&image)?;
        let bad_offset = |problem| TdvfError::BadOffset { offset, problem };
        if (offset as usize) < DESCRIPTOR_HEADER {
            return Err(bad_offset("which leaves no room for it"));
        }
        let descriptor = image
            .len()
            .checked_sub(offset as usize)
            .ok_or_else(|| bad_offset("which is before the file's start"))?;
        let sections = parse_descriptor(&image, descriptor)?;
        check_together(&sections)?;

        Ok(Self {
            image,
            descriptor: descriptor as u64,
            sections,
        })
    }

    /// The file's bytes.
    pub fn image(&self) -> &[u8] {
        &self.image
    }

    /// The file's size.
    pub fn size(&self) -> u64 {
        self.image.len() as u64
    }

    /// Where the image ends up in guest memory: right below 4 GiB.
    pub fn base(&self) -> u64 {
        FIRMWARE_END - self.size()
    }

    /// Where the metadata's descriptor lies in the file.
    pub fn descriptor(&self) -> u64 {
        self.descriptor
    }

    /// The sections in the order of the metadata.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Guest address of the TD HOB, which the first vCPU is given.
    pub fn hob_address(&self) -> Option<u64> {
        self.sections
            .iter()
            .find(|section| section.kind == SectionType::TdHob)
            .map(|section| section.address)
    }
}

/// Finds the pointer to the TDX metadata in the table at the image's end.
fn metadata_offset(image: &[u8]) -> Result<u32, TdvfError> {
    let end = image.len() - TABLE_TRAILER;
    let (length, guid) = entry_tail(image, end).ok_or(TdvfError::Truncated)?;
    if guid != TABLE_FOOTER {
        return Err(TdvfError::NoTable { found: guid });
    }
    let bad_table = |problem| TdvfError::BadTable { length, problem };
    if length < ENTRY_TAIL {
        return Err(bad_table("shorter than its own footer"));
    }
    let start = end
        .checked_sub(length)
        .ok_or_else(|| bad_table("longer than the file"))?;

    let mut position = end - ENTRY_TAIL;
    let mut index = 0;
    while position > start {
        let room = position - start;
        if room < ENTRY_TAIL {
            return Err(TdvfError::BadEntry {
                index,
                length: room,
                problem: "too little for a length and a GUID",
            });
        }
        let (length, guid) = entry_tail(image, position).ok_or(TdvfError::Truncated)?;
        let bad_entry = |problem| TdvfError::BadEntry {
            index,
            length,
            problem,
        };
        if length < ENTRY_TAIL {
            return Err(bad_entry("shorter than a length and a GUID"));
        }
        if length > room {
            return Err(bad_entry("longer than what is left of the table"));
        }
        if guid == TDX_METADATA {
            if length != ENTRY_TAIL + 4 {
                return Err(TdvfError::BadPointer(length - ENTRY_TAIL));
            }
            return u32_at(image, position - length).ok_or(TdvfError::Truncated);
        }
        position -= length;
        index += 1;
    }
    Err(TdvfError::NoMetadata { entries: index })
}

/// Reads the length and the GUID that end right before `end`.
fn entry_tail(image: &[u8], end: usize) -> Option<(usize, Guid)> {
    let tail = image.get(end.checked_sub(ENTRY_TAIL)?..end)?;
    let length = u16::from_le_bytes(tail[..2].try_into().ok()?);
    Some((length.into(), Guid(tail[2..].try_into().ok()?)))
}

fn parse_descriptor(image: &[u8], start: usize) -> Result<Vec<Section>, TdvfError> {
    let header = image
        .get(start..start + DESCRIPTOR_HEADER)
        .ok_or(TdvfError::Truncated)?;
    if header[..4] != SIGNATURE {
        return Err(TdvfError::BadSignature([
            header[0], header[1], header[2], header[3],
        ]));
    }
    let length = u32_at(header, 4).ok_or(TdvfError::Truncated)?;
    let version = u32_at(header, 8).ok_or(TdvfError::Truncated)?;
    let count = u32_at(header, 12).ok_or(TdvfError::Truncated)?;
    if version != VERSION {
        return Err(TdvfError::BadVersion(version));
    }
    if count == 0 || count > MAX_SECTIONS {
        return Err(TdvfError::BadCount(count));
    }
    let records = count as usize * SECTION_RECORD;
    let need = (DESCRIPTOR_HEADER + records) as u64;
    if u64::from(length) != need {
        return Err(TdvfError::BadLength {
            length,
            count,
            need,
        });
    }
    let start = start + DESCRIPTOR_HEADER;
    image
        .get(start..start + records)
        .ok_or(TdvfError::Truncated)?
        .chunks_exact(SECTION_RECORD)
        .enumerate()
        .map(|(index, record)| Section::parse(index, record, image.len() as u64))
        .collect()
}

/// Checks what one section alone cannot show.
fn check_together(sections: &[Section]) -> Result<(), TdvfError> {
    for (second, b) in sections.iter().enumerate() {
        for (first, a) in sections[..second].iter().enumerate() {
            if a.address < b.end() && b.address < a.end() {
                return Err(TdvfError::Overlap { first, second });
            }
            if a.kind == b.kind && a.kind == SectionType::TdHob {
                return Err(TdvfError::Twice {
                    first,
                    second,
                    kind: a.kind,
                });
            }
        }
    }
    if !sections.iter().any(|s| s.kind == SectionType::Bfv) {
        return Err(TdvfError::NoBfv);
    }
    let starts = |s: &Section| {
        let data_end = s.address + u64::from(s.data_size);
        !s.added_later && s.address <= RESET_VECTOR && RESET_VECTOR < data_end
    };
    if !sections.iter().any(starts) {
        return Err(TdvfError::NoResetVector);
    }
    Ok(())
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    let bytes = bytes.get(at..at.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
pub mod testing {
    //! Makes firmware files for tests.

    use super::*;

    /// One record of the metadata, as it is stored.
    #[derive(Clone, Debug)]
    pub struct Record {
        pub offset: u32,
        pub raw: u32,
        pub address: u64,
        pub size: u64,
        pub kind: u32,
        pub attributes: u32,
    }

    impl Record {
        pub fn new(kind: u32, address: u64, size: u64) -> Self {
            Self {
                offset: 0,
                raw: 0,
                address,
                size,
                kind,
                attributes: 0,
            }
        }

        pub fn data(self, offset: u32, raw: u32) -> Self {
            Self {
                offset,
                raw,
                ..self
            }
        }

        pub fn attributes(self, attributes: u32) -> Self {
            Self { attributes, ..self }
        }
    }

    /// A firmware file in the making.
    #[derive(Clone, Debug)]
    pub struct Firmware {
        pub size: usize,
        pub descriptor: usize,
        pub signature: [u8; 4],
        pub version: u32,
        pub count: Option<u32>,
        pub length: Option<u32>,
        pub records: Vec<Record>,
    }

    impl Default for Firmware {
        /// What an ordinary build of OVMF looks like, only smaller.
        fn default() -> Self {
            let size = 0x4000;
            Self {
                size,
                descriptor: 0x3000,
                signature: SIGNATURE,
                version: VERSION,
                count: None,
                length: None,
                records: vec![
                    Record::new(0, FIRMWARE_END - 0x3000, 0x3000)
                        .data(0x1000, 0x3000)
                        .attributes(ATTR_MR_EXTEND),
                    Record::new(1, FIRMWARE_END - 0x4000, 0x1000).data(0, 0x1000),
                    Record::new(3, 0x81_0000, 0x2000),
                    Record::new(2, 0x80_9000, 0x2000),
                ],
            }
        }
    }

    impl Firmware {
        /// The file's bytes. What no structure takes is a pattern that tells pages apart.
        pub fn build(&self) -> Vec<u8> {
            let mut image: Vec<u8> = (0..self.size)
                .map(|at| (at / 256) as u8 ^ at as u8)
                .collect();
            let count = self.records.len() as u32;
            let mut bytes = self.signature.to_vec();
            bytes.extend(self.length.unwrap_or(16 + 32 * count).to_le_bytes());
            bytes.extend(self.version.to_le_bytes());
            bytes.extend(self.count.unwrap_or(count).to_le_bytes());
            for record in &self.records {
                bytes.extend(record.offset.to_le_bytes());
                bytes.extend(record.raw.to_le_bytes());
                bytes.extend(record.address.to_le_bytes());
                bytes.extend(record.size.to_le_bytes());
                bytes.extend(record.kind.to_le_bytes());
                bytes.extend(record.attributes.to_le_bytes());
            }
            let room = (image.len() - self.descriptor).min(bytes.len());
            image[self.descriptor..self.descriptor + room].copy_from_slice(&bytes[..room]);

            let pointer = (image.len() - self.descriptor) as u32;
            set_table(
                &mut image,
                &[
                    (Guid::new(1, 2, 3, 4, 5), vec![0; 8]),
                    (TDX_METADATA, pointer.to_le_bytes().to_vec()),
                    (Guid::new(6, 7, 8, 9, 10), vec![]),
                ],
            );
            image
        }
    }

    /// Writes a GUIDed table with these entries, in ascending order of addresses.
    pub fn set_table(image: &mut [u8], entries: &[(Guid, Vec<u8>)]) {
        let mut table = Vec::new();
        for (guid, data) in entries {
            table.extend(data);
            table.extend((data.len() as u16 + 18).to_le_bytes());
            table.extend(guid.0);
        }
        table.extend((table.len() as u16 + 18).to_le_bytes());
        table.extend(TABLE_FOOTER.0);
        let end = image.len() - TABLE_TRAILER;
        image[end - table.len()..end].copy_from_slice(&table);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::*;
    use super::*;

    fn refused(firmware: &Firmware) -> TdvfError {
        Tdvf::parse(firmware.build()).expect_err("refused")
    }

    fn with_record(record: Record) -> Firmware {
        let mut firmware = Firmware::default();
        firmware.records.push(record);
        firmware
    }

    /// The problem that a file has because of its fifth section.
    fn problem(record: Record) -> SectionProblem {
        match refused(&with_record(record)) {
            TdvfError::BadSection {
                index: 4, problem, ..
            } => problem,
            other => panic!("refused for another reason: {other}"),
        }
    }

    #[test]
    fn guids_print_as_written() {
        assert_eq!(
            TDX_METADATA.to_string(),
            "e47a6535-984a-4798-865e-4685a7bf8ec2"
        );
    }

    #[test]
    fn sections_are_found() {
        let firmware = Tdvf::parse(Firmware::default().build()).unwrap();
        assert_eq!(firmware.base(), 0xffff_c000);
        assert_eq!(firmware.descriptor(), 0x3000);
        assert_eq!(firmware.hob_address(), Some(0x80_9000));
        let kinds: Vec<_> = firmware.sections().iter().map(|s| s.kind.name()).collect();
        assert_eq!(kinds, ["BFV", "CFV", "TempMem", "TD_HOB"]);
        let bfv = &firmware.sections()[0];
        assert!(bfv.measured && !bfv.added_later);
        assert_eq!(
            bfv.data(firmware.image()),
            &firmware.image()[0x1000..0x4000]
        );
        assert!(!firmware.sections()[1].measured);
    }

    #[test]
    fn memory_added_later_is_allowed_for_permmem() {
        let record = Record::new(4, 0x1000_0000, 0x1000).attributes(ATTR_PAGE_AUG);
        let firmware = Tdvf::parse(with_record(record).build()).unwrap();
        assert!(firmware.sections()[4].added_later);
    }

    #[test]
    fn info_needs_no_memory() {
        let record = Record::new(7, 0, 0).data(0x10, 0x20);
        let firmware = Tdvf::parse(with_record(record).build()).unwrap();
        assert_eq!(firmware.sections()[4].data(firmware.image()).len(), 0x20);
    }

    #[test]
    fn files_that_are_no_firmware_are_refused() {
        for (file, reason) in [
            (vec![], "too short"),
            (b"#!/bin/sh\nexit 0\n".to_vec(), "too short"),
            (vec![0; 5000], "not a whole number of 4 KiB pages"),
            (vec![0; 8192], "no table of GUIDed entries"),
        ] {
            let error = Tdvf::parse(file).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let error = Tdvf::parse(vec![0; MAX_IMAGE as usize + 4096]).unwrap_err();
        assert_eq!(error, TdvfError::TooLong(MAX_IMAGE + 4096));
    }

    #[test]
    fn firmware_without_tdx_is_refused() {
        let mut image = vec![0; 0x2000];
        set_table(&mut image, &[(Guid::new(1, 2, 3, 4, 5), vec![1, 2, 3])]);
        assert_eq!(
            Tdvf::parse(image.clone()).unwrap_err(),
            TdvfError::NoMetadata { entries: 1 }
        );
        set_table(&mut image, &[]);
        assert_eq!(
            Tdvf::parse(image).unwrap_err(),
            TdvfError::NoMetadata { entries: 0 }
        );
    }

    #[test]
    fn broken_tables_are_refused() {
        let good = Firmware::default().build();
        let end = good.len() - TABLE_TRAILER;
        let with_length = |at: usize, length: u16| {
            let mut image = good.clone();
            image[at..at + 2].copy_from_slice(&length.to_le_bytes());
            Tdvf::parse(image).unwrap_err()
        };
        let footer = end - ENTRY_TAIL;
        assert!(matches!(
            with_length(footer, 17),
            TdvfError::BadTable { .. }
        ));
        assert!(matches!(
            with_length(footer, 0xffff),
            TdvfError::BadTable { .. }
        ));
        assert!(matches!(
            with_length(footer, 20),
            TdvfError::BadEntry { .. }
        ));
        let last_entry = footer - ENTRY_TAIL;
        for length in [0, 17, 0xffff] {
            assert!(matches!(
                with_length(last_entry, length),
                TdvfError::BadEntry { index: 0, .. }
            ));
        }
        let pointer = last_entry - ENTRY_TAIL;
        assert_eq!(with_length(pointer, 20), TdvfError::BadPointer(2));
    }

    #[test]
    fn broken_pointers_are_refused() {
        let mut image = Firmware::default().build();
        for (pointer, problem) in [
            (0u32, "which leaves no room for it"),
            (15, "which leaves no room for it"),
            (0x4001, "which is before the file's start"),
            (u32::MAX, "which is before the file's start"),
        ] {
            set_table(
                &mut image,
                &[(TDX_METADATA, pointer.to_le_bytes().to_vec())],
            );
            assert_eq!(
                Tdvf::parse(image.clone()).unwrap_err(),
                TdvfError::BadOffset {
                    offset: pointer,
                    problem
                }
            );
        }
    }

    #[test]
    fn broken_descriptors_are_refused() {
        let good = Firmware::default;
        let signature = *b"VDFT";
        assert_eq!(
            refused(&Firmware {
                signature,
                ..good()
            }),
            TdvfError::BadSignature(signature)
        );
        assert_eq!(
            refused(&Firmware {
                version: 2,
                ..good()
            }),
            TdvfError::BadVersion(2)
        );
        for count in [0, MAX_SECTIONS + 1, u32::MAX] {
            assert_eq!(
                refused(&Firmware {
                    count: Some(count),
                    ..good()
                }),
                TdvfError::BadCount(count)
            );
        }
        assert_eq!(
            refused(&Firmware {
                length: Some(143),
                ..good()
            }),
            TdvfError::BadLength {
                length: 143,
                count: 4,
                need: 144
            }
        );
        let late = Firmware {
            descriptor: 0x4000 - 32,
            ..good()
        };
        // The table is written over it, but its header comes after the table.
        assert_eq!(refused(&late), TdvfError::Truncated);
    }

    #[test]
    fn broken_sections_are_refused() {
        use SectionProblem as P;

        let at = 0x1000_0000;
        assert_eq!(
            refused(&with_record(Record::new(9, at, 0x1000))),
            TdvfError::UnknownType { index: 4, kind: 9 }
        );
        for (record, expected) in [
            (Record::new(3, at, 0x1000).attributes(4), P::Attributes(4)),
            (Record::new(4, at, 0x1000).attributes(3), P::MeasuredLater),
            (Record::new(3, at, 0x1000).attributes(2), P::NotPermMem),
            (Record::new(3, at + 1, 0x1000), P::UnalignedAddress(at + 1)),
            (Record::new(3, at, 0x800), P::UnalignedSize(0x800)),
            (Record::new(3, at, 0), P::Empty),
            (
                Record::new(3, PRIVATE_END, 0x1000),
                P::OutOfReach {
                    address: PRIVATE_END,
                    size: 0x1000,
                },
            ),
            (
                Record::new(3, 0x1000, u64::MAX - 0xfff),
                P::OutOfReach {
                    address: 0x1000,
                    size: u64::MAX - 0xfff,
                },
            ),
            (
                Record::new(5, at, 0x1000).data(0, 0x1001),
                P::DataTooLong {
                    raw: 0x1001,
                    size: 0x1000,
                },
            ),
            (
                Record::new(5, at, 0x1000).data(0x3001, 0x1000),
                P::DataOutside {
                    offset: 0x3001,
                    raw: 0x1000,
                },
            ),
            (
                Record::new(5, at, 1 << 32).data(u32::MAX, u32::MAX),
                P::DataOutside {
                    offset: u32::MAX,
                    raw: u32::MAX,
                },
            ),
            (Record::new(0, at, 0x1000), P::NoData),
            (Record::new(1, at, 0x1000), P::NoData),
            (
                Record::new(3, at, 0x1000).data(0x100, 0),
                P::UnexpectedData {
                    offset: 0x100,
                    raw: 0,
                },
            ),
            (
                Record::new(4, at, 0x1000).data(0, 1),
                P::UnexpectedData { offset: 0, raw: 1 },
            ),
        ] {
            assert_eq!(problem(record), expected);
        }
    }

    #[test]
    fn sections_that_do_not_fit_together_are_refused() {
        assert_eq!(
            refused(&with_record(Record::new(3, 0x81_1000, 0x1000))),
            TdvfError::Overlap {
                first: 2,
                second: 4
            }
        );
        assert_eq!(
            refused(&with_record(Record::new(2, 0x1000_0000, 0x1000))),
            TdvfError::Twice {
                first: 3,
                second: 4,
                kind: SectionType::TdHob
            }
        );
        let mut firmware = Firmware::default();
        firmware.records[0].kind = 5;
        assert_eq!(refused(&firmware), TdvfError::NoBfv);
        let mut firmware = Firmware::default();
        firmware.records[0].address -= 0x10_0000;
        assert_eq!(refused(&firmware), TdvfError::NoResetVector);
    }

    /// Numbers that are likely to hit an edge.
    fn edgy() -> impl Strategy<Value = u64> {
        prop_oneof![
            any::<u64>(),
            any::<u32>().prop_map(u64::from),
            prop::sample::select(vec![
                0,
                1,
                0xfff,
                0x1000,
                0x3fff,
                0x4000,
                FIRMWARE_END - 0x4000,
                FIRMWARE_END,
                PRIVATE_END - 0x1000,
                u64::MAX - 0xfff,
                u64::MAX,
            ]),
            (0..0x80u64).prop_map(|page| page << 12),
        ]
    }

    fn any_record() -> impl Strategy<Value = Record> {
        (edgy(), edgy(), edgy(), edgy(), 0..10u32, 0..5u32).prop_map(
            |(offset, raw, address, size, kind, attributes)| Record {
                offset: offset as u32,
                raw: raw as u32,
                address,
                size,
                kind,
                attributes,
            },
        )
    }

    /// What an accepted file promises to everybody else.
    fn check_promises(firmware: &Tdvf) {
        for section in firmware.sections() {
            assert_eq!(
                section.data(firmware.image()).len(),
                section.data_size as usize
            );
            assert_eq!(section.address % PAGE_SIZE, 0);
            assert_eq!(section.size % PAGE_SIZE, 0);
            assert!(section.end() <= PRIVATE_END);
            assert!(section.size == 0 || u64::from(section.data_size) <= section.size);
            assert!(!(section.measured && section.added_later));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_parsed_or_refused(
            bytes in prop::collection::vec(any::<u8>(), 0..600),
            pages in 0..3usize,
        ) {
            let mut image = vec![0; pages * 4096];
            let room = image.len().min(bytes.len());
            let start = image.len() - room;
            image[start..].copy_from_slice(&bytes[..room]);
            let _ = Tdvf::parse(image);
            let _ = Tdvf::parse(bytes);
        }

        #[test]
        fn any_table_is_parsed_or_refused(
            table in prop::collection::vec(any::<u8>(), 0..200),
            length in any::<u16>(),
        ) {
            let mut image = vec![0; 4096];
            set_table(&mut image, &[(Guid::new(1, 2, 3, 4, 5), table)]);
            let footer = image.len() - TABLE_TRAILER - ENTRY_TAIL;
            let _ = Tdvf::parse(image.clone());
            image[footer..footer + 2].copy_from_slice(&length.to_le_bytes());
            let _ = Tdvf::parse(image);
        }

        #[test]
        fn any_sections_are_parsed_or_refused(
            records in prop::collection::vec(any_record(), 0..8),
            keep in 0..5usize,
            descriptor in 0..0x4000usize,
        ) {
            let mut firmware = Firmware { descriptor, ..Default::default() };
            firmware.records.truncate(keep);
            firmware.records.extend(records);
            if let Ok(firmware) = Tdvf::parse(firmware.build()) {
                check_promises(&firmware);
            }
        }

        #[test]
        fn one_changed_byte_never_breaks_a_promise(
            at in prop_oneof![0x3000..0x3090usize, 0x3f80..0x4000usize],
            byte in any::<u8>(),
        ) {
            let mut image = Firmware::default().build();
            image[at] = byte;
            if let Ok(firmware) = Tdvf::parse(image) {
                check_promises(&firmware);
            }
        }
    }
}
