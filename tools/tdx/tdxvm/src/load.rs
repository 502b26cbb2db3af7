// SPDX-License-Identifier: GPL-2.0

//! Works out what goes where: the TD's memory, and what is put into it before the TD starts.
//!
//! Loading a TD and computing its MRTD both follow this plan, in its order.

use std::borrow::Cow;
use std::iter;
use std::ops::Range;

use thiserror::Error;

use crate::td_hob;
use crate::tdvf::SectionType;
use crate::tdvf::Tdvf;
use crate::tdvf::FIRMWARE_END;
use crate::tdvf::PAGE_SIZE;

/// RAM beyond this goes above 4 GiB, to leave room for firmware and devices.
const LOW_RAM_END: u64 = 2 << 30;

/// Why a firmware cannot be loaded into a TD of this size.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LoadError {
    #[error("{0:#x} bytes of memory are not a whole number of 4 KiB pages, or none at all")]
    BadMemory(u64),
    #[error(
        "section {index} ({kind}, {size:#x} bytes at {address:#x}) lies neither in the TD's memory \
         nor in the firmware's range {firmware:#x?}: give the TD more memory"
    )]
    Outside {
        index: usize,
        kind: SectionType,
        address: u64,
        size: u64,
        firmware: Range<u64>,
    },
    #[error("the TD HOB takes {need} bytes, its section has {size}")]
    HobTooLong { need: usize, size: u64 },
}

/// Guest memory of a TD.
#[derive(Clone, Debug)]
pub struct Layout {
    /// RAM in ascending order.
    pub ram: Vec<Range<u64>>,
    /// Where the firmware image is mapped.
    pub firmware: Range<u64>,
}

impl Layout {
    /// Lays out `memory` bytes of RAM and the firmware.
    pub fn new(memory: u64, firmware: &Tdvf) -> Result<Self, LoadError> {
        if memory == 0 || memory % PAGE_SIZE != 0 || memory > 1 << 40 {
            return Err(LoadError::BadMemory(memory));
        }
        let low = memory.min(LOW_RAM_END);
        let mut ram: Vec<_> = iter::once(0..low).collect();
        if memory > low {
            ram.push(FIRMWARE_END..FIRMWARE_END + (memory - low));
        }
        Ok(Self {
            ram,
            firmware: firmware.base()..FIRMWARE_END,
        })
    }

    /// All ranges with a name for each.
    pub fn ranges(&self) -> impl Iterator<Item = (&'static str, Range<u64>)> + '_ {
        self.ram
            .iter()
            .map(|range| ("RAM", range.clone()))
            .chain([("firmware", self.firmware.clone())])
    }
}

/// One section to load.
#[derive(Debug)]
pub struct Load<'a> {
    /// Which of the metadata's sections this is.
    pub index: usize,
    /// What it is for.
    pub kind: SectionType,
    /// Guest physical address.
    pub gpa: u64,
    /// Number of pages.
    pub pages: u64,
    /// What it holds; the rest is zero.
    pub data: Cow<'a, [u8]>,
    /// Whether its content goes into MRTD.
    pub measured: bool,
}

impl Load<'_> {
    /// First address after it.
    pub fn end(&self) -> u64 {
        self.gpa + self.pages * PAGE_SIZE
    }

    /// The content of one of its pages.
    pub fn page(&self, index: u64) -> Cow<'_, [u8]> {
        let size = PAGE_SIZE as usize;
        let start = (index as usize).saturating_mul(size).min(self.data.len());
        let data = &self.data[start..(start + size).min(self.data.len())];
        if data.len() == size {
            return Cow::Borrowed(data);
        }
        let mut page = vec![0; size];
        page[..data.len()].copy_from_slice(data);
        Cow::Owned(page)
    }
}

/// Plans what is loaded into a TD with this layout, in the order of the metadata.
pub fn plan<'a>(firmware: &'a Tdvf, layout: &Layout) -> Result<Vec<Load<'a>>, LoadError> {
    let mut loads = Vec::new();
    for (index, section) in firmware.sections().iter().enumerate() {
        if section.added_later || section.size == 0 {
            continue;
        }
        let inside =
            |range: Range<u64>| range.start <= section.address && section.end() <= range.end;
        if !layout.ranges().any(|(_, range)| inside(range)) {
            return Err(LoadError::Outside {
                index,
                kind: section.kind,
                address: section.address,
                size: section.size,
                firmware: layout.firmware.clone(),
            });
        }
        loads.push(Load {
            index,
            kind: section.kind,
            gpa: section.address,
            pages: section.size / PAGE_SIZE,
            data: Cow::Borrowed(section.data(firmware.image())),
            measured: section.measured,
        });
    }

    let mut added: Vec<_> = loads.iter().map(|load| load.gpa..load.end()).collect();
    added.sort_by_key(|range| range.start);
    for load in loads.iter_mut().filter(|l| l.kind == SectionType::TdHob) {
        let hob = td_hob::build(load.gpa, &layout.ram, &added);
        let size = load.pages * PAGE_SIZE;
        if hob.len() as u64 > size {
            return Err(LoadError::HobTooLong {
                need: hob.len(),
                size,
            });
        }
        load.data = Cow::Owned(hob);
    }
    Ok(loads)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tdvf::testing::Firmware;
    use crate::tdvf::testing::Record;

    fn firmware() -> Tdvf {
        Tdvf::parse(Firmware::default().build()).unwrap()
    }

    #[test]
    fn large_memory_is_split() {
        let layout = Layout::new(3 << 30, &firmware()).unwrap();
        assert_eq!(layout.ram, [0..2 << 30, 4 << 30..5 << 30]);
        assert_eq!(layout.firmware, 0xffff_c000..0x1_0000_0000);
        assert_eq!(layout.ranges().count(), 3);
    }

    #[test]
    fn bad_sizes_are_refused() {
        for memory in [0, 4095, 1 << 41] {
            assert_eq!(
                Layout::new(memory, &firmware()).unwrap_err(),
                LoadError::BadMemory(memory)
            );
        }
    }

    #[test]
    fn sections_are_loaded_in_order() {
        let firmware = firmware();
        let layout = Layout::new(256 << 20, &firmware).unwrap();
        let loads = plan(&firmware, &layout).unwrap();
        let seen: Vec<_> = loads
            .iter()
            .map(|l| (l.index, l.pages, l.measured))
            .collect();
        assert_eq!(
            seen,
            [(0, 3, true), (1, 1, false), (2, 2, false), (3, 2, false)]
        );
        assert_eq!(*loads[0].page(1), firmware.image()[0x2000..0x3000]);
        assert!(loads[2].page(1).iter().all(|byte| *byte == 0));
        // The HOB list is there, and zero after it.
        assert_eq!(loads[3].page(0)[..4], [1, 0, 56, 0]);
        assert!(loads[3].page(1).iter().all(|byte| *byte == 0));
    }

    #[test]
    fn what_is_added_later_is_left_out() {
        let mut file = Firmware::default();
        file.records
            .push(Record::new(4, 0x40_0000, 0x1000).attributes(2));
        file.records.push(Record::new(7, 0, 0));
        let firmware = Tdvf::parse(file.build()).unwrap();
        let layout = Layout::new(256 << 20, &firmware).unwrap();
        assert_eq!(plan(&firmware, &layout).unwrap().len(), 4);
    }

    #[test]
    fn too_little_memory_is_refused() {
        let firmware = firmware();
        let layout = Layout::new(4 << 20, &firmware).unwrap();
        assert!(matches!(
            plan(&firmware, &layout),
            Err(LoadError::Outside { index: 2, .. })
        ));
    }

    #[test]
    fn a_list_too_long_for_its_section_is_refused() {
        let mut file = Firmware::default();
        // Many pieces of memory make a long list.
        file.records[3].size = 0x1000;
        for piece in 0..60 {
            file.records
                .push(Record::new(3, 0x100_0000 + piece * 0x2000, 0x1000));
        }
        let firmware = Tdvf::parse(file.build()).unwrap();
        let layout = Layout::new(256 << 20, &firmware).unwrap();
        assert!(matches!(
            plan(&firmware, &layout),
            Err(LoadError::HobTooLong { size: 0x1000, .. })
        ));
    }
}
