// SPDX-License-Identifier: GPL-2.0

//! The memory that programs hand to the kernel, at the same addresses in each run.
//!
//! Each of the two threads has places of its own, [`THREAD_STRIDE`] apart:
//!
//! | place | pages | |
//! | --- | --- | --- |
//! | [`DATA`] | 4 | structures; what follows is inaccessible |
//! | [`COMMAND`] | 1 | `struct kvm_tdx_cmd`; what follows is inaccessible |
//! | [`READ_ONLY`] | 5 | both, if they are not to be written |
//! | [`HELD`] | 8 | structures; the first access to the second half waits |
//!
//! Before a call all of a place is poisoned. What differs afterwards was written by the kernel.

use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::ptr;
use std::slice;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::program::Place;

pub const PAGE: u64 = 4096;

pub const DATA: u64 = 0x10_0000_0000;
pub const COMMAND: u64 = 0x10_0010_0000;
pub const READ_ONLY: u64 = 0x10_0020_0000;
pub const HELD: u64 = 0x10_0030_0000;
pub const THREAD_STRIDE: u64 = 0x1000_0000;

/// Contents for private memory: [`SOURCE_PAGES`] pages, and then nothing.
pub const SOURCE: u64 = 0x20_0000_0000;
pub const SOURCE_PAGES: u64 = 8;

/// What memory slots have as their shared memory.
pub const SHARED: u64 = 0x30_0000_0000;
pub const SHARED_PAGES: u64 = 64;

const DATA_PAGES: u64 = 4;
const HELD_PAGES: u64 = 8;
/// Where the part of [`HELD`] begins whose first access waits.
const HELD_GATE: u64 = HELD_PAGES / 2 * PAGE;

const POISON: u8 = 0xa5;

// userfaultfd's interface, of which libc knows nothing.
const UFFD_API: u64 = 0xaa;
const UFFDIO_API: u64 = 0xc018_aa3f;
const UFFDIO_REGISTER: u64 = 0xc020_aa00;
const UFFDIO_COPY: u64 = 0xc028_aa03;
const UFFDIO_REGISTER_MODE_MISSING: u64 = 1;

/// What an argument of a call is put into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    Command,
    Data,
}

/// Bytes that a call changed, relative to the start of the structure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    pub offset: i64,
    pub bytes: Vec<u8>,
}

/// A place that is as it was last time but for a structure, which is all that has to be changed.
#[derive(Debug)]
struct Area {
    address: u64,
    /// What is there, if `is_known`.
    image: Vec<u8>,
    is_known: bool,
    /// Where the structure is: all else is poison.
    structure: Range<usize>,
}

/// The memory around a structure that can be looked at.
#[derive(Debug)]
enum Around {
    /// There is none.
    Nothing,
    /// The place for such structures, which knows what is there.
    Area(Use),
    /// Where it starts, and what is there.
    Image(u64, Vec<u8>),
}

/// A structure that was put somewhere for a call.
#[derive(Debug)]
pub struct Placed {
    /// What the kernel is told.
    pub address: u64,
    around: Around,
    /// What the kernel shall find behind the gate.
    behind_gate: Option<Vec<u8>>,
}

/// The memory of one thread.
///
/// # Invariants
///
/// What [`Memory::new`] maps stays mapped, and nothing but this type and the kernel accesses it.
#[derive(Debug)]
pub struct Memory {
    base: u64,
    gate: OwnedFd,
    data: Area,
    command: Area,
}

fn map(address: u64, pages: u64, prot: libc::c_int) -> Result<()> {
    // SAFETY: MAP_FIXED_NOREPLACE replaces nothing that exists.
    let mapped = unsafe {
        libc::mmap(
            address as *mut libc::c_void,
            (pages * PAGE) as usize,
            prot,
            libc::MAP_PRIVATE
                | libc::MAP_ANONYMOUS
                | libc::MAP_NORESERVE
                | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    if mapped == libc::MAP_FAILED {
        return Err(io::Error::last_os_error())
            .with_context(|| format!("cannot map memory at {address:#x}"));
    }
    if mapped as u64 != address {
        bail!("memory at {address:#x} is in use");
    }
    Ok(())
}

/// What does not belong to a thread: contents for private memory, and shared memory. Programs may
/// also have structures there, as addresses are mere numbers.
///
/// # Invariants
///
/// What [`Common::new`] maps stays mapped, and nothing but this type and the kernel accesses it.
#[derive(Debug)]
pub struct Common {
    source: Vec<u8>,
}

impl Common {
    /// Maps it, and fills it with what it has at the start of each program.
    pub fn new() -> Result<Self> {
        map(SOURCE, SOURCE_PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
        map(SOURCE + SOURCE_PAGES * PAGE, 1, libc::PROT_NONE)?;
        map(SHARED, SHARED_PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
        let page = |page: u64| (0..PAGE).map(move |index| (page * 31 + index * 7) as u8);
        let mut common = Self {
            source: (0..SOURCE_PAGES).flat_map(page).collect(),
        };
        common.restore();
        Ok(common)
    }

    fn bytes(&mut self, address: u64, len: u64) -> &mut [u8] {
        // SAFETY: Both callers ask for a part of what is mapped by the type's invariant, and which
        // is borrowed through `self`.
        unsafe { slice::from_raw_parts_mut(address as *mut u8, len as usize) }
    }

    fn restore(&mut self) {
        let source = std::mem::take(&mut self.source);
        self.bytes(SOURCE, SOURCE_PAGES * PAGE)
            .copy_from_slice(&source);
        self.source = source;
        // SAFETY: The contents of these pages, which are this type's, are of no more use.
        let result = unsafe {
            libc::madvise(
                SHARED as *mut libc::c_void,
                (SHARED_PAGES * PAGE) as usize,
                libc::MADV_DONTNEED,
            )
        };
        assert!(result == 0, "madvise: {}", io::Error::last_os_error());
    }

    /// Finds out what a program has written, by its address, and takes it back.
    pub fn written(&mut self) -> Vec<Written> {
        let source = std::mem::take(&mut self.source);
        let now = self.bytes(SOURCE, SOURCE_PAGES * PAGE);
        let mut found = differing(now, &source, 0u64.wrapping_sub(SOURCE));
        self.source = source;

        let mut there = [0u8; SHARED_PAGES as usize];
        // SAFETY: `there` has a byte for each page that is asked for.
        let result = unsafe {
            libc::mincore(
                SHARED as *mut libc::c_void,
                (SHARED_PAGES * PAGE) as usize,
                there.as_mut_ptr(),
            )
        };
        assert!(result == 0, "mincore: {}", io::Error::last_os_error());
        let is_there = |page: &u64| there[*page as usize] & 1 != 0;
        for page in (0..SHARED_PAGES).filter(is_there) {
            let address = SHARED + page * PAGE;
            let now = self.bytes(address, PAGE);
            found.extend(differing(
                now,
                &[0; PAGE as usize],
                0u64.wrapping_sub(address),
            ));
        }
        if !found.is_empty() || there.iter().any(|page| page & 1 != 0) {
            self.restore();
        }
        found
    }
}

impl Area {
    /// Puts a structure among poison. `now` are the contents of the place.
    fn put(&mut self, now: &mut [u8], structure: Range<usize>, bytes: &[u8]) {
        let old = std::mem::replace(&mut self.structure, structure.clone());
        self.image[old.clone()].fill(POISON);
        self.image[structure.clone()].copy_from_slice(bytes);
        if self.is_known {
            now[old].fill(POISON);
            now[structure].copy_from_slice(bytes);
        } else {
            now.copy_from_slice(&self.image);
        }
        // Until somebody has looked at what the kernel makes of it.
        self.is_known = false;
    }
}

/// The first place from `at` on where two pieces of memory differ.
fn first_difference(a: &[u8], b: &[u8], at: usize) -> Option<usize> {
    const CHUNK: usize = 64;

    let (a, b) = (&a[at..], &b[at..]);
    if a == b {
        return None;
    }
    let chunks = a.chunks(CHUNK).zip(b.chunks(CHUNK));
    let skip = CHUNK * chunks.take_while(|(a, b)| a == b).count();
    let within = a[skip..].iter().zip(&b[skip..]).position(|(a, b)| a != b);
    within.map(|within| at + skip + within)
}

/// What differs from `before`, by where it is from `start` on.
fn differing(after: &[u8], before: &[u8], start: u64) -> Vec<Written> {
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(first) = first_difference(after, before, at) {
        let rest = after[first..].iter().zip(&before[first..]);
        let len = rest.take_while(|(new, old)| new != old).count();
        at = first + len;
        found.push(Written {
            offset: (first as u64).wrapping_sub(start) as i64,
            bytes: after[first..at].to_vec(),
        });
    }
    found
}

impl Memory {
    /// Maps the memory of thread `thread`.
    pub fn new(thread: u8) -> Result<Self> {
        let base = u64::from(thread) * THREAD_STRIDE;
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        for (address, pages) in [
            (DATA, DATA_PAGES),
            (COMMAND, 1),
            (READ_ONLY, DATA_PAGES + 1),
            (HELD, HELD_PAGES),
        ] {
            map(base + address, pages, writable)?;
            map(base + address + pages * PAGE, 1, libc::PROT_NONE)?;
        }
        let gate = open_gate(base + HELD + HELD_GATE, (HELD_PAGES * PAGE) - HELD_GATE)
            .context("no userfaultfd that handles faults of the kernel")?;
        let area = |address, pages| Area {
            address: base + address,
            image: vec![POISON; (pages * PAGE) as usize],
            is_known: false,
            structure: 0..0,
        };
        Ok(Self {
            base,
            gate,
            data: area(DATA, DATA_PAGES),
            command: area(COMMAND, 1),
        })
    }

    fn bytes(&mut self, address: u64, len: u64) -> &mut [u8] {
        // SAFETY: All callers ask for a part of a place, which is mapped by the type's invariant
        // and borrowed through `self`.
        unsafe { slice::from_raw_parts_mut(address as *mut u8, len as usize) }
    }

    /// The place for structures that may be written to, what is in it, and its contents.
    fn area(&mut self, what: Use) -> (&mut Area, &mut [u8]) {
        let area = match what {
            Use::Data => &mut self.data,
            Use::Command => &mut self.command,
        };
        // SAFETY: Each area is a place, which is mapped by the type's invariant, and whose contents
        // nobody else borrows as long as `self` is borrowed.
        let bytes = unsafe { slice::from_raw_parts_mut(area.address as *mut u8, area.image.len()) };
        (area, bytes)
    }

    /// Puts a structure where a call shall find it, and remembers what is around it.
    pub fn put(&mut self, what: Use, place: Place, bytes: &[u8]) -> Placed {
        let (base, pages) = match (what, place) {
            (_, Place::Address(address)) => {
                return Placed {
                    address,
                    around: Around::Nothing,
                    behind_gate: None,
                }
            }
            (Use::Command, Place::ReadOnly) => (READ_ONLY + DATA_PAGES * PAGE, 1),
            (Use::Data, Place::ReadOnly) => (READ_ONLY, DATA_PAGES),
            (Use::Data, Place::Held(_)) => (HELD, HELD_PAGES),
            (Use::Command, _) => (COMMAND, 1),
            (Use::Data, _) => (DATA, DATA_PAGES),
        };
        let (base, len) = (self.base + base, pages * PAGE);
        let room = match (what, place) {
            (_, Place::Cut(room)) => u64::from(room).min(len),
            (Use::Data, Place::Held(before)) => len - HELD_GATE + u64::from(before).min(HELD_GATE),
            _ => len,
        };
        let offset = (len - room) as usize;
        let fits = bytes.len().min(room as usize);
        let (structure, bytes) = (offset..offset + fits, &bytes[..fits]);
        let address = base + offset as u64;
        let image = || {
            let mut image = vec![POISON; len as usize];
            image[structure.clone()].copy_from_slice(bytes);
            image
        };

        let mut behind_gate = None;
        let around = match (what, place) {
            (_, Place::ReadOnly) => {
                let image = image();
                protect(base, len, libc::PROT_READ | libc::PROT_WRITE);
                self.bytes(base, len).copy_from_slice(&image);
                protect(base, len, libc::PROT_READ);
                Around::Image(base, image)
            }
            (Use::Data, Place::Held(_)) => {
                let image = image();
                self.close_gate();
                let (before, behind) = image.split_at(HELD_GATE as usize);
                self.bytes(base, HELD_GATE).copy_from_slice(before);
                behind_gate = Some(behind.to_vec());
                Around::Image(base, image)
            }
            _ => {
                let (area, now) = self.area(what);
                area.put(now, structure, bytes);
                Around::Area(what)
            }
        };
        Placed {
            address,
            around,
            behind_gate,
        }
    }

    /// Finds out what a call has written.
    pub fn written(&mut self, placed: &mut Placed) -> Vec<Written> {
        self.open(placed);
        match &placed.around {
            Around::Nothing => Vec::new(),
            Around::Area(what) => {
                let (area, now) = self.area(*what);
                let found = differing(now, &area.image, placed.address - area.address);
                for changed in &found {
                    let start = (placed.address - area.address) as i64 + changed.offset;
                    let range = start as usize..start as usize + changed.bytes.len();
                    now[range.clone()].copy_from_slice(&area.image[range]);
                }
                area.is_known = true;
                found
            }
            Around::Image(base, before) => {
                let (base, start) = (*base, placed.address - base);
                differing(self.bytes(base, before.len() as u64), before, start)
            }
        }
    }

    /// Whether somebody waits for what is behind the gate.
    pub fn is_waited_for(&self) -> bool {
        let mut poll = libc::pollfd {
            fd: self.gate.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `poll` is one descriptor.
        let ready = unsafe { libc::poll(&mut poll, 1, 0) };
        ready == 1 && poll.revents & libc::POLLIN != 0
    }

    /// Fills in what is behind the gate, and lets go whoever waits for it.
    pub fn open(&self, placed: &mut Placed) {
        let Some(contents) = placed.behind_gate.take() else {
            return;
        };
        // struct uffdio_copy: dst, src, len, mode, copy
        let mut copy = [
            self.base + HELD + HELD_GATE,
            contents.as_ptr() as u64,
            contents.len() as u64,
            0,
            0,
        ];
        // SAFETY: The kernel copies `contents` to pages of this type that are not there yet.
        let result =
            unsafe { libc::ioctl(self.gate.as_raw_fd(), UFFDIO_COPY as _, copy.as_mut_ptr()) };
        assert!(
            result == 0,
            "UFFDIO_COPY failed: {}",
            io::Error::last_os_error()
        );
        // What it says of faults is of no interest any more.
        while self.is_waited_for() {
            let mut message = [0u8; 32];
            // SAFETY: `message` has room for the one message that is asked for.
            let read = unsafe {
                libc::read(
                    self.gate.as_raw_fd(),
                    message.as_mut_ptr().cast(),
                    message.len(),
                )
            };
            if read <= 0 {
                break;
            }
        }
    }

    /// Takes away what is behind the gate.
    fn close_gate(&mut self) {
        // SAFETY: The contents of these pages, which are this type's, are of no more use.
        let result = unsafe {
            libc::madvise(
                (self.base + HELD + HELD_GATE) as *mut libc::c_void,
                (HELD_PAGES * PAGE - HELD_GATE) as usize,
                libc::MADV_DONTNEED,
            )
        };
        assert!(result == 0, "madvise: {}", io::Error::last_os_error());
    }
}

fn protect(address: u64, len: u64, prot: libc::c_int) {
    // SAFETY: Only called for places of a `Memory`, while nothing is borrowed from them.
    let result = unsafe { libc::mprotect(address as *mut libc::c_void, len as usize, prot) };
    assert!(result == 0, "mprotect: {}", io::Error::last_os_error());
}

/// Makes a userfaultfd for pages that are not there yet.
fn open_gate(address: u64, len: u64) -> io::Result<OwnedFd> {
    // SAFETY: The system call takes flags and gives a file descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The kernel has just made this file descriptor for us alone.
    let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // struct uffdio_api: api, features, ioctls
    let mut api = [UFFD_API, 0, 0];
    // struct uffdio_register: start, len, mode, ioctls
    let mut register = [address, len, UFFDIO_REGISTER_MODE_MISSING, 0];
    for (request, argument) in [
        (UFFDIO_API, api.as_mut_ptr()),
        (UFFDIO_REGISTER, register.as_mut_ptr()),
    ] {
        // SAFETY: The arguments are the structures that the two requests take.
        if unsafe { libc::ioctl(fd.as_raw_fd(), request as _, argument) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(fd)
}

/// Reads the first bytes of the page that a vCPU shares with user space.
pub fn read_shared_page(vcpu: i32, bytes: &mut [u8]) -> io::Result<()> {
    let len = bytes.len().min(PAGE as usize);
    // SAFETY: A new mapping at an address of the kernel's choice touches nothing that exists.
    let page = unsafe {
        libc::mmap(
            ptr::null_mut(),
            PAGE as usize,
            libc::PROT_READ,
            libc::MAP_SHARED,
            vcpu,
            0,
        )
    };
    if page == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: The page was mapped just now, and `bytes` is not longer.
    unsafe { ptr::copy_nonoverlapping(page.cast(), bytes.as_mut_ptr(), len) };
    // SAFETY: That is the mapping from above, from which nothing is borrowed.
    unsafe { libc::munmap(page, PAGE as usize) };
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_run_of_bytes_that_differ_is_found() {
        let before = [POISON; 300];
        let mut after = before;
        after[0] = 1;
        after[63..66].copy_from_slice(&[2, 3, 4]);
        after[67] = 5;
        after[299] = 6;
        let found: Vec<_> = differing(&after, &before, 64)
            .into_iter()
            .map(|written| (written.offset, written.bytes))
            .collect();
        let expected: [(i64, &[u8]); 4] = [(-64, &[1]), (-1, &[2, 3, 4]), (3, &[5]), (235, &[6])];
        let expected = expected.map(|(offset, bytes)| (offset, bytes.to_vec()));
        assert_eq!(found, expected);
        assert!(differing(&before, &before, 0).is_empty());
    }

    #[test]
    fn a_place_is_as_if_it_were_made_anew() {
        let mut area = Area {
            address: 0,
            image: vec![POISON; 32],
            is_known: false,
            structure: 0..0,
        };
        let mut now = vec![0; 32];
        // Nobody looked after the second one: whatever is there is to be overwritten.
        for (at, bytes, looked) in [(0, [1; 8], true), (4, [2; 8], false), (24, [3; 8], true)] {
            area.put(&mut now, at..at + 8, &bytes);
            let mut expected = vec![POISON; 32];
            expected[at..at + 8].copy_from_slice(&bytes);
            assert_eq!(now, expected);
            assert_eq!(area.image, expected);
            area.is_known = looked;
            if !looked {
                now.fill(9);
            }
        }
    }
}
