// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_GET_CPUID: tells which CPUID values the TD will see.

#![deny(unsafe_code)]

use kernel::{
    bindings::{
        KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        KVM_MAX_CPUID_ENTRIES, //
    },
    pr_warn_once,
    prelude::*,
    transmute::AsBytes,
    uaccess::UserSlice, //
};

use pin_init::Zeroable;

use crate::{
    cpuid::{
        halves,
        ADDRESS_SIZES, //
    },
    ffi::{
        cpuid_table,
        LockedTdVcpu, //
    },
    seamcall::{
        mng_rd,
        TDCS_CPUID_VALUES, //
    },
    status::SeamcallError,
    td::StateFrozen,
    uapi::{
        user_ptr,
        Command,
        CpuidEntry,
        CpuidHeader,
        PAGE_SIZE_U64, //
    },
};

/// The first leaf of the extended range.
const EXTENDED: u32 = 0x8000_0000;

/// Serves KVM_TDX_GET_CPUID. `data` is the address of a `struct kvm_cpuid2`, of which `nent` says
/// for how many entries there is room, and gets to say how many there are.
///
/// The flags of the command are not looked at, as in C.
///
/// # Errors
///
/// - `ENOMEM`: no memory.
/// - `EFAULT`: the structure cannot be read or written.
/// - `E2BIG`: there is room for too few entries; `nent` says how many it takes.
/// - `EIO`: the TDX module does not tell how many leaves there are.
pub(super) fn get_cpuid(vcpu: &LockedTdVcpu<'_>, cmd: &Command) -> Result {
    let mut table = Table::new()?;
    let user = user_ptr(cmd.data());
    let mut header: CpuidHeader = UserSlice::new(user, size_of::<CpuidHeader>())
        .reader()
        .read()?;

    table.read_range(vcpu, 0)?;
    table.read_range(vcpu, EXTENDED)?;

    let entries = table.0.as_slice();
    let room = header.0.nent as usize;

    // CAST: There are at most KVM_MAX_CPUID_ENTRIES.
    header.0.nent = entries.len() as u32;

    let size = size_of::<CpuidHeader>() + size_of_val(entries);
    let mut writer = UserSlice::new(user, size).writer();

    writer.write(&header)?;
    if room < entries.len() {
        return Err(E2BIG);
    }
    writer.write_slice(entries.as_bytes())
}

/// Why a CPUID value was not read.
#[derive(PartialEq, Eq)]
enum Unread {
    /// The module does not know the leaf in this form.
    Refused,
    /// The number cannot be expressed, or the table is full.
    OutOfRange,
}

/// The CPUID values read so far, with room for [`KVM_MAX_CPUID_ENTRIES`].
struct Table(KVec<CpuidEntry>);

impl Table {
    fn new() -> Result<Self> {
        Ok(Self(cpuid_table()?))
    }

    /// Reads the leaves from `first` to the one that EAX of `first` names as the last.
    ///
    /// A leaf other than the first may be missing.
    fn read_range(&mut self, vcpu: &LockedTdVcpu<'_>, first: u32) -> Result {
        self.read_leaf(vcpu, first).map_err(|_| EIO)?;

        let last = self.0.last().map_or(0, |entry| entry.0.eax);

        for leaf in first + 1..=last {
            let _ = self.read_leaf(vcpu, leaf);
        }
        Ok(())
    }

    /// Reads a leaf: its only value, or that of each subleaf until one is refused.
    fn read_leaf(
        &mut self,
        vcpu: &LockedTdVcpu<'_>,
        leaf: u32,
    ) -> core::result::Result<(), Unread> {
        match self.read(vcpu, leaf, None) {
            Err(Unread::Refused) => {}
            result => return result,
        }

        self.read(vcpu, leaf, Some(0))?;
        for subleaf in 1.. {
            if self.read(vcpu, leaf, Some(subleaf)).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Reads one value into the next free entry.
    #[inline(never)]
    fn read(
        &mut self,
        vcpu: &LockedTdVcpu<'_>,
        leaf: u32,
        subleaf: Option<u32>,
    ) -> core::result::Result<(), Unread> {
        let field = field(leaf, subleaf).ok_or(Unread::OutOfRange)?;

        if self.0.len() >= KVM_MAX_CPUID_ENTRIES as usize {
            return Err(Unread::OutOfRange);
        }

        let eax_ebx = mng_rd(vcpu, field).map_err(|_| Unread::Refused)?;
        let ecx_edx = mng_rd(vcpu, field + 1).map_err(|e| half_a_leaf(leaf, e))?;
        let mut entry = CpuidEntry::zeroed();

        (entry.0.eax, entry.0.ebx) = halves(eax_ebx);
        (entry.0.ecx, entry.0.edx) = halves(ecx_edx);
        entry.0.function = leaf;
        if let Some(subleaf) = subleaf {
            entry.0.index = subleaf;
            entry.0.flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        }

        // Old modules do not report the width of a guest physical address.
        if leaf == ADDRESS_SIZES {
            let shared_bit = vcpu.kvm_tdx().shared_gfn_bit().0 * PAGE_SIZE_U64;

            entry.set_guest_phys_bits(shared_bit.trailing_zeros() + 1);
        }

        self.0
            .push_within_capacity(entry)
            .map_err(|_| Unread::OutOfRange)
    }
}

/// Reports that the module knows EAX and EBX of a leaf, but not the rest.
#[cold]
#[inline(never)]
fn half_a_leaf(leaf: u32, e: SeamcallError) -> Unread {
    pr_warn_once!(
        "half of CPUID leaf {:#x} cannot be read: {:#x}\n",
        leaf,
        e.status().as_raw()
    );
    Unread::Refused
}

/// Returns the identifier of the field that holds EAX and EBX of a CPUID value. The next one holds
/// ECX and EDX.
///
/// | bits | meaning |
/// | --- | --- |
/// | 0 | EAX and EBX, or ECX and EDX |
/// | 7:1 | subleaf; all ones if there is none |
/// | 8 | there is no subleaf |
/// | 15:9 | leaf, bits 6:0 |
/// | 16 | leaf, bit 31 |
///
/// A number with other bits has no field.
fn field(leaf: u32, subleaf: Option<u32>) -> Option<u64> {
    if leaf & !(EXTENDED | 0x7f) != 0 || subleaf.is_some_and(|subleaf| subleaf > 0x7f) {
        return None;
    }

    let leaf = u64::from(leaf & EXTENDED != 0) << 16 | u64::from(leaf & 0x7f) << 9;
    let subleaf = subleaf.map_or(0x1fe, |subleaf| u64::from(subleaf) << 1);

    Some(TDCS_CPUID_VALUES | leaf | subleaf)
}
