// SPDX-License-Identifier: GPL-2.0

//! Anonymous memory of this process, page-aligned as KVM wants it.

use std::io;
use std::ptr;
use std::ptr::NonNull;
use std::slice;

use crate::tdvf::PAGE_SIZE;

/// A private anonymous mapping.
///
/// # Invariants
///
/// `address` is the start of a readable and writable mapping of `size` bytes, a whole number of
/// pages, that nothing else knows of.
pub struct Mapping {
    address: NonNull<u8>,
    size: usize,
}

impl Mapping {
    /// Maps `size` zero bytes, rounded up to pages. Memory is only taken when it is written.
    pub fn new(size: u64) -> io::Result<Self> {
        let size = usize::try_from(size.max(1).next_multiple_of(PAGE_SIZE))
            .map_err(|_| io::ErrorKind::InvalidInput)?;
        // SAFETY: A new anonymous mapping at an address of the kernel's choice touches nothing
        // that exists.
        let address = unsafe {
            libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::InvalidInput)?;
        // INVARIANT: That is what was just mapped.
        Ok(Self { address, size })
    }

    /// Maps memory that starts with `data` and is zero after it.
    pub fn with_data(size: u64, data: &[u8]) -> io::Result<Self> {
        let mut mapping = Self::new(size.max(data.len() as u64))?;
        mapping.bytes_mut()[..data.len()].copy_from_slice(data);
        Ok(mapping)
    }

    /// Maps memory that is there: each page has been written to.
    pub fn filled(size: u64) -> io::Result<Self> {
        let mut mapping = Self::new(size)?;
        mapping.bytes_mut().fill(0x5a);
        Ok(mapping)
    }

    /// Where it starts.
    pub fn address(&self) -> u64 {
        self.address.as_ptr() as u64
    }

    /// Its size in bytes.
    pub fn size(&self) -> u64 {
        self.size as u64
    }

    /// The address of page `first`, from which on there are `pages` pages.
    ///
    /// # Panics
    ///
    /// If the mapping does not have those pages.
    pub fn page_address(&self, first: u64, pages: u64) -> u64 {
        let end = first.checked_add(pages);
        assert!(end.is_some_and(|end| end <= self.size() / PAGE_SIZE));
        self.address() + first * PAGE_SIZE
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: By the type's invariant these bytes are mapped, zeroed or written since, and
        // borrowed through `self` only.
        unsafe { slice::from_raw_parts_mut(self.address.as_ptr(), self.size) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant this is a mapping of ours, and nothing borrows from it
        // any more.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.size) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_is_followed_by_zeros() {
        let mut mapping = Mapping::with_data(5000, b"abc").unwrap();
        assert_eq!(mapping.size(), 8192);
        assert_eq!(mapping.address() % PAGE_SIZE, 0);
        assert_eq!(mapping.bytes_mut()[..4], *b"abc\0");
        assert!(mapping.bytes_mut()[4..].iter().all(|byte| *byte == 0));
        assert_eq!(mapping.page_address(1, 1), mapping.address() + 4096);
    }

    #[test]
    #[should_panic]
    fn pages_beyond_the_end_are_refused() {
        Mapping::new(4096).unwrap().page_address(0, 2);
    }
}
