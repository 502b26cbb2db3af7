// SPDX-License-Identifier: GPL-2.0

//! Which code of the kernel a thread executes, as KCOV tells it.

use std::collections::HashSet;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use anyhow::Context;
use anyhow::Result;

const KCOV: &str = "/sys/kernel/debug/kcov";

// _IOR('c', 1, unsigned long) and _IO('c', 100)
const KCOV_INIT_TRACE: u64 = 0x8008_6301;
const KCOV_ENABLE: u64 = 0x6364;
const KCOV_TRACE_PC: u64 = 0;

/// Places that one program can be seen at.
const ENTRIES: usize = 1 << 18;

/// What was executed.
#[derive(Default)]
pub struct Coverage {
    /// The steps from one place to the next.
    pub edges: HashSet<u64>,
    /// The addresses in the kernel that KCOV reports.
    pub places: HashSet<u64>,
    /// Those that nobody was told of yet.
    pub new_places: Vec<u64>,
}

/// The record of this thread's way through the kernel.
///
/// # Invariants
///
/// `area` is a mapping of [`ENTRIES`] words that lives as long as this does. The first one says how
/// many of those behind it are in use; the kernel writes them when this thread makes a system call.
pub struct Kcov {
    _file: File,
    area: *mut AtomicU64,
}

impl Kcov {
    /// Begins to record the calling thread, if the kernel has KCOV.
    pub fn start() -> Result<Option<Self>> {
        if !Path::new(KCOV).exists() {
            return Ok(None);
        }
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(KCOV)
            .with_context(|| format!("cannot open {KCOV}"))?;
        // SAFETY: The ioctl takes a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), KCOV_INIT_TRACE as _, ENTRIES) } != 0 {
            return Err(io::Error::last_os_error()).context("KCOV_INIT_TRACE");
        }
        // SAFETY: A new mapping at an address of the kernel's choice touches nothing that exists.
        let area = unsafe {
            libc::mmap(
                ptr::null_mut(),
                ENTRIES * size_of::<u64>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if area == libc::MAP_FAILED {
            return Err(io::Error::last_os_error()).context("the memory of KCOV");
        }
        // SAFETY: The ioctl takes a number.
        if unsafe { libc::ioctl(file.as_raw_fd(), KCOV_ENABLE as _, KCOV_TRACE_PC) } != 0 {
            return Err(io::Error::last_os_error()).context("KCOV_ENABLE");
        }
        // INVARIANT: That is what was just mapped.
        Ok(Some(Self {
            _file: file,
            area: area.cast(),
        }))
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < ENTRIES);
        // SAFETY: By the type's invariant there are that many words, which are always valid.
        unsafe { &*self.area.add(index) }
    }

    /// Forgets what was executed until now.
    pub fn reset(&self) {
        self.word(0).store(0, Ordering::Relaxed);
    }

    /// Adds what was executed since the last [`Self::reset`], and says how many edges are new.
    pub fn collect(&self, coverage: &mut Coverage) -> usize {
        let count = (self.word(0).load(Ordering::Relaxed) as usize).min(ENTRIES - 1);
        let before = coverage.edges.len();
        let mut last = 0u64;
        for index in 1..=count {
            let place = self.word(index).load(Ordering::Relaxed);
            // To a new place leads a new edge.
            if coverage.edges.insert(place ^ last.rotate_left(17)) && coverage.places.insert(place)
            {
                coverage.new_places.push(place);
            }
            last = place;
        }
        coverage.edges.len() - before
    }
}

impl Drop for Kcov {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant this is a mapping of ours, of which nothing is borrowed.
        unsafe { libc::munmap(self.area.cast(), ENTRIES * size_of::<u64>()) };
    }
}
