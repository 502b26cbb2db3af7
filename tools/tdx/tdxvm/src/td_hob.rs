// SPDX-License-Identifier: GPL-2.0

//! Builds the TD HOB: the list of hand-off blocks by which the VMM tells firmware what memory the
//! TD has.
//!
//! The list is a hand-off table, one resource descriptor for each range of memory, and an end
//! mark. Memory that was added before the TD starts is ordinary system memory; the rest has to be
//! accepted by the guest first and is described as such.

use std::ops::Range;

const TYPE_HANDOFF: u16 = 0x0001;
const TYPE_RESOURCE: u16 = 0x0003;
const TYPE_END: u16 = 0xffff;

const HANDOFF_SIZE: u16 = 56;
const RESOURCE_SIZE: u16 = 48;
const END_SIZE: u16 = 8;

const HANDOFF_VERSION: u32 = 9;
const BOOT_WITH_FULL_CONFIGURATION: u32 = 0;

const RESOURCE_SYSTEM_MEMORY: u32 = 0;
const RESOURCE_MEMORY_UNACCEPTED: u32 = 7;

/// Present, initialized, tested.
const RESOURCE_ATTRIBUTES: u32 = 0x7;

/// Builds the list that lies at `address`.
///
/// `ram` are the TD's ranges of RAM, `added` those parts of them that are there from the start.
/// Both are in ascending order and do not overlap within themselves.
pub fn build(address: u64, ram: &[Range<u64>], added: &[Range<u64>]) -> Vec<u8> {
    let mut resources = Vec::new();
    for range in ram {
        let mut at = range.start;
        for part in added {
            let part = part.start.max(range.start)..part.end.min(range.end);
            if part.is_empty() {
                continue;
            }
            if at < part.start {
                resources.push((RESOURCE_MEMORY_UNACCEPTED, at..part.start));
            }
            at = part.end;
            resources.push((RESOURCE_SYSTEM_MEMORY, part));
        }
        if at < range.end {
            resources.push((RESOURCE_MEMORY_UNACCEPTED, at..range.end));
        }
    }

    let end = address + u64::from(HANDOFF_SIZE) + resources.len() as u64 * u64::from(RESOURCE_SIZE);
    let mut list = List(Vec::new());
    list.header(TYPE_HANDOFF, HANDOFF_SIZE);
    list.u32(HANDOFF_VERSION);
    list.u32(BOOT_WITH_FULL_CONFIGURATION);
    // Top and bottom of memory, and of what is free of it: firmware finds its own.
    for _ in 0..4 {
        list.u64(0);
    }
    list.u64(end);

    for (kind, range) in resources {
        list.header(TYPE_RESOURCE, RESOURCE_SIZE);
        // The owner's GUID: nobody in particular.
        list.u64(0);
        list.u64(0);
        list.u32(kind);
        list.u32(RESOURCE_ATTRIBUTES);
        list.u64(range.start);
        list.u64(range.end - range.start);
    }

    list.header(TYPE_END, END_SIZE);
    list.0
}

struct List(Vec<u8>);

impl List {
    fn header(&mut self, kind: u16, size: u16) {
        self.0.extend(kind.to_le_bytes());
        self.0.extend(size.to_le_bytes());
        self.u32(0);
    }

    fn u32(&mut self, value: u32) {
        self.0.extend(value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend(value.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader of the list that shares nothing with the writer.
    fn read(list: &[u8]) -> Vec<(u16, &[u8])> {
        let mut blocks = Vec::new();
        let mut at = 0;
        loop {
            let kind = u16::from_le_bytes(list[at..at + 2].try_into().unwrap());
            let size = u16::from_le_bytes(list[at + 2..at + 4].try_into().unwrap()) as usize;
            assert_eq!(size % 8, 0, "blocks are multiples of 8 bytes");
            blocks.push((kind, &list[at..at + size]));
            at += size;
            if kind == 0xffff {
                assert_eq!(at, list.len(), "nothing follows the end mark");
                return blocks;
            }
        }
    }

    fn u64_at(block: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(block[at..at + 8].try_into().unwrap())
    }

    #[test]
    fn list_covers_all_memory_once() {
        let ram = [0..0x1000_0000, 0x1_0000_0000..0x1_8000_0000];
        let added = [0x80_0000..0x80_6000, 0x80_9000..0x80_d000];
        let list = build(0x80_9000, &ram, &added);
        let blocks = read(&list);

        let (kind, handoff) = blocks[0];
        assert_eq!((kind, handoff.len()), (1, 56));
        // The hand-off table points at the end mark.
        assert_eq!(u64_at(handoff, 48), 0x80_9000 + list.len() as u64 - 8);

        let resources: Vec<_> = blocks[1..blocks.len() - 1]
            .iter()
            .map(|(kind, block)| {
                assert_eq!(*kind, 3);
                let resource = u32::from_le_bytes(block[24..28].try_into().unwrap());
                let start = u64_at(block, 32);
                (resource, start..start + u64_at(block, 40))
            })
            .collect();
        assert_eq!(
            resources,
            [
                (7, 0..0x80_0000),
                (0, 0x80_0000..0x80_6000),
                (7, 0x80_6000..0x80_9000),
                (0, 0x80_9000..0x80_d000),
                (7, 0x80_d000..0x1000_0000),
                (7, 0x1_0000_0000..0x1_8000_0000),
            ]
        );
    }

    #[test]
    fn parts_outside_ram_are_left_out() {
        let list = build(
            0,
            &[0x1000..0x2000, 0x2000..0x3000],
            &[0..0x2000, 0x2000..0x9000],
        );
        let blocks = read(&list);
        assert_eq!(blocks.len(), 4);
        assert_eq!(u64_at(blocks[1].1, 32), 0x1000);
        assert_eq!(u64_at(blocks[2].1, 40), 0x1000);
    }
}
