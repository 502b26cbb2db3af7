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

/// A structure that was put somewhere for a call.
#[derive(Debug)]
pub struct Placed {
    /// What the kernel is told.
    pub address: u64,
    /// Where the memory around it starts that can be looked at, and what is there.
    around: Option<(u64, Vec<u8>)>,
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

/// Maps what does not belong to a thread: contents for private memory, and shared memory.
pub fn map_common() -> Result<()> {
    map(SOURCE, SOURCE_PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
    map(SOURCE + SOURCE_PAGES * PAGE, 1, libc::PROT_NONE)?;
    map(SHARED, SHARED_PAGES, libc::PROT_READ | libc::PROT_WRITE)?;
    for page in 0..SOURCE_PAGES {
        let address = SOURCE + page * PAGE;
        // SAFETY: These pages have just been mapped, and nobody else knows of them.
        let bytes = unsafe { slice::from_raw_parts_mut(address as *mut u8, PAGE as usize) };
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = (page as usize * 31 + index * 7) as u8;
        }
    }
    Ok(())
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
        Ok(Self { base, gate })
    }

    fn bytes(&mut self, address: u64, len: u64) -> &mut [u8] {
        // SAFETY: All callers ask for a part of a place, which is mapped by the type's invariant
        // and borrowed through `self`.
        unsafe { slice::from_raw_parts_mut(address as *mut u8, len as usize) }
    }

    /// Puts a structure where a call shall find it, and remembers what is around it.
    pub fn put(&mut self, what: Use, place: Place, bytes: &[u8]) -> Placed {
        let (base, pages) = match (what, place) {
            (_, Place::Address(address)) => {
                return Placed {
                    address,
                    around: None,
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
        let mut image = vec![POISON; len as usize];
        let fits = bytes.len().min(room as usize);
        image[offset..offset + fits].copy_from_slice(&bytes[..fits]);

        let mut behind_gate = None;
        match (what, place) {
            (_, Place::ReadOnly) => {
                protect(base, len, libc::PROT_READ | libc::PROT_WRITE);
                self.bytes(base, len).copy_from_slice(&image);
                protect(base, len, libc::PROT_READ);
            }
            (Use::Data, Place::Held(_)) => {
                self.close_gate();
                let (before, behind) = image.split_at(HELD_GATE as usize);
                self.bytes(base, HELD_GATE).copy_from_slice(before);
                behind_gate = Some(behind.to_vec());
            }
            _ => self.bytes(base, len).copy_from_slice(&image),
        }
        Placed {
            address: base + offset as u64,
            around: Some((base, image)),
            behind_gate,
        }
    }

    /// Finds out what a call has written.
    pub fn written(&mut self, placed: &mut Placed) -> Vec<Written> {
        self.open(placed);
        let Some((base, before)) = &placed.around else {
            return Vec::new();
        };
        let after = self.bytes(*base, before.len() as u64);
        let start = placed.address - base;
        let mut found: Vec<Written> = Vec::new();
        if after == &before[..] {
            return found;
        }
        for (index, (new, old)) in after.iter().zip(before).enumerate() {
            if new == old {
                continue;
            }
            let offset = index as i64 - start as i64;
            match found.last_mut() {
                Some(last) if last.offset + last.bytes.len() as i64 == offset => {
                    last.bytes.push(*new)
                }
                _ => found.push(Written {
                    offset,
                    bytes: vec![*new],
                }),
            }
        }
        found
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
