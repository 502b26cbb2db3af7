// SPDX-License-Identifier: GPL-2.0

//! What user space hands in and gets back: the structures of `asm/kvm.h` and `linux/kvm.h`.

use kernel::{
    bindings,
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use core::{
    marker::PhantomData,
    mem::MaybeUninit,
    slice, //
};

use pin_init::Zeroable;

use crate::ffi::vec_with_capacity;

/// A user pointer out of a 64-bit field.
pub(crate) fn user_ptr(address: u64) -> UserPtr {
    // CAST: The kernel is 64-bit only here.
    UserPtr::from_addr(address as usize)
}

/// Implements the two traits that let a structure be copied from and to user space.
macro_rules! user_structure {
    ($($name:ident($inner:ident), size $size:expr;)*) => {$(
        // All of the size is accounted for, so there is no padding.
        const _: () = assert!(size_of::<bindings::$inner>() == $size);

        // SAFETY: Made of integers only, for which each bit pattern is valid.
        unsafe impl FromBytes for $name {}
        // SAFETY: Made of integers only, and without padding.
        unsafe impl AsBytes for $name {}
    )*};
}

user_structure! {
    Command(kvm_tdx_cmd), size 4 + 4 + 8 + 8;
    Region(kvm_tdx_init_mem_region), size 8 + 8 + 8;
    CpuidEntry(kvm_cpuid_entry2), size 7 * 4 + 3 * 4;
    CpuidHeader(kvm_cpuid2), size 4 + 4;
    InitVm(kvm_tdx_init_vm), size 8 + 8 + 3 * 48 + 12 * 8 + 8;
    Capabilities(kvm_tdx_capabilities), size 6 * 8 + 250 * 8 + 8;
}

/// A `struct kvm_tdx_cmd`: which command, and its operands.
#[repr(transparent)]
pub(crate) struct Command(bindings::kvm_tdx_cmd);

impl Command {
    /// Makes room for a command, to be read into: it stays where it is, as moving it takes room on
    /// the stack twice.
    pub(crate) fn empty() -> Self {
        Self(bindings::kvm_tdx_cmd::default())
    }

    /// Reads the command.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: `arg` cannot be read.
    /// - `EINVAL`: `hw_error`, which is for the kernel to write, is not zero.
    pub(crate) fn read(&mut self, arg: UserPtr) -> Result {
        read_in_place(self, arg)?;
        if self.0.hw_error != 0 {
            return Err(EINVAL);
        }
        Ok(())
    }

    /// Writes the command back.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: `arg` cannot be written.
    pub(crate) fn write(&self, arg: UserPtr) -> Result {
        UserSlice::new(arg, size_of::<Self>()).writer().write(self)
    }

    /// Returns the number of the command: an `enum kvm_tdx_cmd_id`.
    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Returns the flags of the command.
    pub(crate) fn flags(&self) -> u32 {
        self.0.flags
    }

    /// Returns the operand of the command, a user address for most.
    pub(crate) fn data(&self) -> u64 {
        self.0.data
    }

    /// Sets the completion status that user space gets to see.
    pub(crate) fn set_hw_error(&mut self, status: u64) {
        self.0.hw_error = status;
    }
}

/// Reads a number.
///
/// # Errors
///
/// - `EFAULT`: `arg` cannot be read.
pub(crate) fn read_u32(arg: UserPtr) -> Result<u32> {
    let mut number = 0;

    read_in_place(&mut number, arg)?;
    Ok(number)
}

/// Reads a structure to where it is.
///
/// # Errors
///
/// - `EFAULT`: `arg` cannot be read.
fn read_in_place<T: FromBytes>(to: &mut T, arg: UserPtr) -> Result {
    let to: *mut T = to;

    // SAFETY: `to` is valid for a write, and each bit pattern is valid for a `T`.
    match unsafe { bindings::_copy_from_user(to.cast(), arg.as_const_ptr(), size_of::<T>()) } {
        0 => Ok(()),
        _ => Err(EFAULT),
    }
}

/// A `struct kvm_tdx_init_mem_region`: which memory to add to the TD, and from where.
#[repr(transparent)]
pub(crate) struct Region(bindings::kvm_tdx_init_mem_region);

impl Region {
    /// Makes room for a region, to be read into where it stays.
    pub(crate) fn empty() -> Self {
        Self(bindings::kvm_tdx_init_mem_region::default())
    }

    /// Reads the region.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: `arg` cannot be read.
    pub(crate) fn read(&mut self, arg: UserPtr) -> Result {
        read_in_place(self, arg)
    }

    /// Writes the region back.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: `arg` cannot be written.
    pub(crate) fn write(&self, arg: UserPtr) -> Result {
        UserSlice::new(arg, size_of::<Self>()).writer().write(self)
    }

    /// Returns the user address of the next page to copy.
    pub(crate) fn source(&self) -> u64 {
        self.0.source_addr
    }

    /// Returns the guest physical address of the next page to add.
    pub(crate) fn gpa(&self) -> u64 {
        self.0.gpa
    }

    /// Returns the number of pages of 4 KiB still to be added.
    pub(crate) fn nr_pages(&self) -> u64 {
        self.0.nr_pages
    }

    /// Goes on to the next page.
    pub(crate) fn advance(&mut self) {
        self.0.source_addr = self.0.source_addr.wrapping_add(PAGE_SIZE_U64);
        self.0.gpa = self.0.gpa.wrapping_add(PAGE_SIZE_U64);
        self.0.nr_pages = self.0.nr_pages.saturating_sub(1);
    }
}

/// The size of a page in bytes, as the 64-bit quantity that the structures count in.
pub(crate) const PAGE_SIZE_U64: u64 = kernel::page::PAGE_SIZE as u64;

/// A `struct kvm_cpuid_entry2`: the value of one CPUID leaf, or of one subleaf.
#[derive(Clone, Copy, Zeroable)]
#[repr(transparent)]
pub(crate) struct CpuidEntry(pub(crate) bindings::kvm_cpuid_entry2);

impl CpuidEntry {
    /// Returns EAX, EBX, ECX and EDX.
    pub(crate) fn registers(&self) -> [u32; 4] {
        [self.0.eax, self.0.ebx, self.0.ecx, self.0.edx]
    }

    /// Finds the entry of a leaf and subleaf, by the rules that KVM has for all its CPUID tables.
    pub(crate) fn find(entries: &[Self], function: u32, index: u32) -> Option<&Self> {
        // SAFETY: `Self` is a transparent wrapper, and the callee only reads the entries.
        let entry = unsafe {
            bindings::kvm_find_cpuid_entry2(
                entries.as_ptr().cast_mut().cast(),
                // CAST: A table has at most KVM_MAX_CPUID_ENTRIES entries.
                entries.len() as c_int,
                function,
                index.into(),
            )
        };

        // SAFETY: Null, or one of `entries`.
        unsafe { entry.cast::<Self>().as_ref() }
    }
}

/// A structure that ends in CPUID entries, in one piece with them, as user space has it.
///
/// # Invariants
///
/// `words` holds a `T` and, behind it, entries.
pub(crate) struct WithCpuid<T> {
    words: KVec<u64>,
    _head: PhantomData<T>,
}

impl<T: AsBytes + FromBytes> WithCpuid<T> {
    const HEAD: usize = {
        assert!(size_of::<T>() % size_of::<u64>() == 0 && align_of::<T>() <= align_of::<u64>());
        size_of::<T>() / size_of::<u64>()
    };

    const ENTRY: usize = {
        assert!(size_of::<CpuidEntry>() % size_of::<u64>() == 0);
        assert!(align_of::<CpuidEntry>() <= align_of::<u64>());
        size_of::<CpuidEntry>() / size_of::<u64>()
    };

    /// Allocates a structure that is all zero and has no entries yet, with room for `nent`.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: no memory.
    pub(crate) fn with_room(nent: usize) -> Result<Self> {
        let n = Self::HEAD + nent * Self::ENTRY;
        let mut words = vec_with_capacity::<u64>(n, bindings::GFP_KERNEL)?;

        // SAFETY: There is room for `HEAD` words, which have just been written.
        unsafe {
            words.as_mut_ptr().write_bytes(0, Self::HEAD);
            words.inc_len(Self::HEAD);
        }

        // INVARIANT: Zeros are valid for a `T`.
        Ok(Self {
            words,
            _head: PhantomData,
        })
    }

    /// Appends an entry for each item, as `set` makes it of zeros, for as long as there is room.
    pub(crate) fn extend<I>(
        &mut self,
        items: impl Iterator<Item = I>,
        set: impl Fn(&mut CpuidEntry, I),
    ) {
        let room = self.words.spare_capacity_mut();
        // SAFETY: The room, borrowed mutably, is enough for so many entries, which are aligned like
        // words.
        let room = unsafe {
            slice::from_raw_parts_mut(
                room.as_mut_ptr().cast::<MaybeUninit<CpuidEntry>>(),
                room.len() / Self::ENTRY,
            )
        };
        let mut n = 0;

        for (place, item) in room.iter_mut().zip(items) {
            set(place.write(CpuidEntry::zeroed()), item);
            n += Self::ENTRY;
        }

        // INVARIANT: Entries are what has been appended.
        // SAFETY: So many words have just been written.
        unsafe { self.words.inc_len(n) };
    }

    /// Reads a structure with `nent` entries, whatever it says about their number by itself.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: no memory.
    /// - `EFAULT`: it cannot be read.
    // Inlined, as KVM_TDX_INIT_VM gets at its memory on little stack.
    #[inline(always)]
    pub(crate) fn read(user: UserPtr, nent: usize) -> Result<Self> {
        let n = Self::HEAD + nent * Self::ENTRY;
        let mut words = vec_with_capacity::<u64>(n, bindings::GFP_KERNEL)?;
        let bytes = n * size_of::<u64>();

        // SAFETY: The vector has room for `n` words, which need not be initialised.
        let left = unsafe {
            bindings::copy_from_user(words.as_mut_ptr().cast(), user.as_const_ptr(), bytes)
        };

        if left != 0 {
            return Err(EFAULT);
        }

        // SAFETY: There is room for `n` words, and all of them have just been written.
        unsafe { words.inc_len(n) };

        // INVARIANT: Each bit pattern is valid for both, and it is as many as it takes.
        Ok(Self {
            words,
            _head: PhantomData,
        })
    }

    /// Returns the part before the entries.
    pub(crate) fn head(&self) -> &T {
        // SAFETY: By the type invariant the words begin with a `T`, for which they are aligned.
        unsafe { &*self.words.as_ptr().cast() }
    }

    /// Returns the part before the entries, to be changed.
    pub(crate) fn head_mut(&mut self) -> &mut T {
        // SAFETY: By the type invariant the words, which are borrowed mutably, begin with a `T`.
        unsafe { &mut *self.words.as_mut_ptr().cast() }
    }

    /// Returns the entries.
    pub(crate) fn entries(&self) -> &[CpuidEntry] {
        let nent = (self.words.len() - Self::HEAD) / Self::ENTRY;

        // SAFETY: By the type invariant this is what comes after the `T`.
        unsafe { slice::from_raw_parts(self.words.as_ptr().add(Self::HEAD).cast(), nent) }
    }

    /// Writes all of it.
    ///
    /// # Errors
    ///
    /// - `EFAULT`: it cannot be written.
    pub(crate) fn write(&self, user: UserPtr) -> Result {
        let bytes = AsBytes::as_bytes(self.words.as_slice());

        UserSlice::new(user, bytes.len())
            .writer()
            .write_slice(bytes)
    }
}

/// The part of a `struct kvm_cpuid2` before its entries.
#[repr(transparent)]
pub(crate) struct CpuidHeader(pub(crate) bindings::kvm_cpuid2);

/// The part of a `struct kvm_tdx_init_vm` before its CPUID entries.
#[repr(transparent)]
pub(crate) struct InitVm(bindings::kvm_tdx_init_vm);

impl InitVm {
    /// Returns the ATTRIBUTES asked for.
    pub(crate) fn attributes(&self) -> u64 {
        self.0.attributes
    }

    /// Returns the XFAM asked for.
    pub(crate) fn xfam(&self) -> u64 {
        self.0.xfam
    }

    /// Returns MRCONFIGID.
    pub(crate) fn mrconfigid(&self) -> [u64; 6] {
        self.0.mrconfigid
    }

    /// Returns MROWNER.
    pub(crate) fn mrowner(&self) -> [u64; 6] {
        self.0.mrowner
    }

    /// Returns MROWNERCONFIG.
    pub(crate) fn mrownerconfig(&self) -> [u64; 6] {
        self.0.mrownerconfig
    }

    /// Returns the number of CPUID entries that follow.
    pub(crate) fn nr_cpuid_entries(&self) -> u32 {
        self.0.cpuid.nent
    }

    /// Tells whether anything is set that is not defined.
    pub(crate) fn has_reserved_bits(&self) -> bool {
        self.0.reserved.iter().any(|&word| word != 0)
    }

    /// Tells whether the padding of the CPUID table is set.
    pub(crate) fn has_cpuid_padding(&self) -> bool {
        self.0.cpuid.padding != 0
    }
}

/// The part of a `struct kvm_tdx_capabilities` before its CPUID entries.
#[repr(transparent)]
pub(crate) struct Capabilities(pub(crate) bindings::kvm_tdx_capabilities);

/// The offset of the number of CPUID entries in a `struct kvm_tdx_capabilities`, in bytes.
pub(crate) const CAPABILITIES_NENT: usize =
    core::mem::offset_of!(bindings::kvm_tdx_capabilities, cpuid.nent);

/// The offset of the number of CPUID entries in a `struct kvm_tdx_init_vm`, in bytes.
pub(crate) const INIT_VM_NENT: usize = core::mem::offset_of!(bindings::kvm_tdx_init_vm, cpuid.nent);
