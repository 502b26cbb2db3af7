// SPDX-License-Identifier: GPL-2.0

//! The KVM_TDX_* commands as user space sees them: numbers, layouts, and what a TD can be given.
//!
//! Nothing here calls the kernel.

#![forbid(unsafe_code)]

pub mod cpuid;

use std::mem::offset_of;
use std::mem::size_of;

use kvm_bindings::kvm_cpuid_entry2;

pub const KVM_TDX_CAPABILITIES: u32 = 0;
pub const KVM_TDX_INIT_VM: u32 = 1;
pub const KVM_TDX_INIT_VCPU: u32 = 2;
pub const KVM_TDX_INIT_MEM_REGION: u32 = 3;
pub const KVM_TDX_FINALIZE_VM: u32 = 4;
pub const KVM_TDX_GET_CPUID: u32 = 5;

/// Flag of KVM_TDX_INIT_MEM_REGION.
pub const KVM_TDX_MEASURE_MEMORY_REGION: u32 = 1 << 0;

/// Entries that KVM takes or gives at most.
pub const MAX_CPUID_ENTRIES: usize = 256;

/// TD attribute: page faults on memory that is not accepted go to the host, not to the guest.
pub const ATTR_SEPT_VE_DISABLE: u64 = 1 << 28;

/// `struct kvm_tdx_cmd`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Cmd {
    pub id: u32,
    pub flags: u32,
    pub data: u64,
    pub hw_error: u64,
}

/// `struct kvm_cpuid2` without entries.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidHeader {
    pub nent: u32,
    pub padding: u32,
}

/// `struct kvm_cpuid2` with room for all entries.
#[repr(C)]
#[derive(Clone)]
pub struct Cpuid {
    pub nent: u32,
    pub padding: u32,
    pub entries: [kvm_cpuid_entry2; MAX_CPUID_ENTRIES],
}

impl Cpuid {
    /// Makes a table; what exceeds KVM's limit is left out.
    pub fn new(entries: &[kvm_cpuid_entry2]) -> Box<Self> {
        let mut cpuid = Self::with_room();
        let count = entries.len().min(MAX_CPUID_ENTRIES);
        cpuid.entries[..count].copy_from_slice(&entries[..count]);
        cpuid.nent = count as u32;
        cpuid
    }

    /// Makes an empty table that says how many entries fit, as KVM wants it for its answers.
    pub fn with_room() -> Box<Self> {
        Box::new(Self {
            nent: MAX_CPUID_ENTRIES as u32,
            padding: 0,
            entries: [kvm_cpuid_entry2::default(); MAX_CPUID_ENTRIES],
        })
    }

    /// The entries in use.
    pub fn entries(&self) -> &[kvm_cpuid_entry2] {
        &self.entries[..(self.nent as usize).min(MAX_CPUID_ENTRIES)]
    }
}

/// `struct kvm_tdx_capabilities`.
#[repr(C)]
pub struct Capabilities {
    /// TD attributes that can be set.
    pub supported_attrs: u64,
    /// Extended features that can be given to a TD.
    pub supported_xfam: u64,
    /// TDVMCALLs that the kernel serves.
    pub kernel_tdvmcallinfo_1_r11: u64,
    /// TDVMCALLs that user space has to serve.
    pub user_tdvmcallinfo_1_r11: u64,
    /// Instructions executed by TDVMCALL that the kernel serves.
    pub kernel_tdvmcallinfo_1_r12: u64,
    /// Instructions executed by TDVMCALL that user space has to serve.
    pub user_tdvmcallinfo_1_r12: u64,
    pub reserved: [u64; 250],
    /// CPUID bits that can be configured.
    pub cpuid: Cpuid,
}

impl Capabilities {
    /// Makes an empty answer with room for all CPUID entries.
    pub fn with_room() -> Box<Self> {
        Box::new(Self {
            supported_attrs: 0,
            supported_xfam: 0,
            kernel_tdvmcallinfo_1_r11: 0,
            user_tdvmcallinfo_1_r11: 0,
            kernel_tdvmcallinfo_1_r12: 0,
            user_tdvmcallinfo_1_r12: 0,
            reserved: [0; 250],
            cpuid: *Cpuid::with_room(),
        })
    }
}

/// `struct kvm_tdx_init_vm`.
#[repr(C)]
pub struct InitVm {
    pub attributes: u64,
    pub xfam: u64,
    pub mrconfigid: [u64; 6],
    pub mrowner: [u64; 6],
    pub mrownerconfig: [u64; 6],
    pub reserved: [u64; 12],
    pub cpuid: Cpuid,
}

impl InitVm {
    /// Asks for a TD that nobody in particular owns.
    pub fn new(attributes: u64, xfam: u64, cpuid: &Cpuid) -> Box<Self> {
        Box::new(Self {
            attributes,
            xfam,
            mrconfigid: [0; 6],
            mrowner: [0; 6],
            mrownerconfig: [0; 6],
            reserved: [0; 12],
            cpuid: cpuid.clone(),
        })
    }
}

/// `struct kvm_tdx_init_mem_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub struct MemRegion {
    pub source_addr: u64,
    pub gpa: u64,
    pub nr_pages: u64,
}

// The layouts are the kernel's.
const _: () = {
    assert!(size_of::<Cmd>() == 24);
    assert!(offset_of!(Cmd, data) == 8);
    assert!(offset_of!(Cmd, hw_error) == 16);
    assert!(size_of::<CpuidHeader>() == 8);
    assert!(size_of::<Cpuid>() == 8 + 40 * MAX_CPUID_ENTRIES);
    assert!(offset_of!(Cpuid, entries) == 8);
    assert!(offset_of!(Capabilities, supported_xfam) == 8);
    assert!(offset_of!(Capabilities, user_tdvmcallinfo_1_r12) == 40);
    assert!(offset_of!(Capabilities, cpuid) == 48 + 250 * 8);
    assert!(offset_of!(InitVm, xfam) == 8);
    assert!(offset_of!(InitVm, mrconfigid) == 16);
    assert!(offset_of!(InitVm, mrowner) == 64);
    assert!(offset_of!(InitVm, mrownerconfig) == 112);
    assert!(offset_of!(InitVm, reserved) == 160);
    assert!(offset_of!(InitVm, cpuid) == 256);
    assert!(size_of::<MemRegion>() == 24);
};

/// The name of an errno that KVM uses.
pub fn errno_name(errno: i32) -> Option<&'static str> {
    Some(match errno {
        libc::E2BIG => "E2BIG",
        libc::EACCES => "EACCES",
        libc::EAGAIN => "EAGAIN",
        libc::EBADF => "EBADF",
        libc::EBUSY => "EBUSY",
        libc::EEXIST => "EEXIST",
        libc::EFAULT => "EFAULT",
        libc::EINTR => "EINTR",
        libc::EINVAL => "EINVAL",
        libc::EIO => "EIO",
        libc::EMFILE => "EMFILE",
        libc::ENODEV => "ENODEV",
        libc::ENOENT => "ENOENT",
        libc::ENOMEM => "ENOMEM",
        libc::ENOSPC => "ENOSPC",
        libc::ENOTTY => "ENOTTY",
        libc::ENXIO => "ENXIO",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::EPERM => "EPERM",
        _ => return None,
    })
}
