// SPDX-License-Identifier: GPL-2.0

//! The KVM_TDX_* commands, and the CPUID calls that go with them, as safe functions.
//!
//! kvm-ioctls knows KVM_MEMORY_ENCRYPT_OP, but neither TDX's commands nor that it can be issued on
//! a vCPU.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use kvm_bindings::KVMIO;
use kvm_ioctls::Kvm;
use kvm_ioctls::VcpuFd;
use kvm_ioctls::VmFd;
use tdx_uapi::errno_name;
use tdx_uapi::Capabilities;
use tdx_uapi::Cmd;
use tdx_uapi::Cpuid;
use tdx_uapi::CpuidHeader;
use tdx_uapi::InitVm;
use tdx_uapi::MemRegion;
use tdx_uapi::KVM_TDX_CAPABILITIES;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_GET_CPUID;
use tdx_uapi::KVM_TDX_INIT_MEM_REGION;
use tdx_uapi::KVM_TDX_INIT_VCPU;
use tdx_uapi::KVM_TDX_INIT_VM;
use tdx_uapi::KVM_TDX_MEASURE_MEMORY_REGION;
use vmm_sys_util::errno;
use vmm_sys_util::ioctl::ioctl;
use vmm_sys_util::ioctl::ioctl_with_mut_ref;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_io_nr;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::ioctl_iowr_nr;

use crate::mem::Mapping;
use crate::status::Status;

ioctl_iowr_nr!(KVM_GET_SUPPORTED_CPUID, KVMIO, 0x05, CpuidHeader);
ioctl_iow_nr!(KVM_SET_CPUID2, KVMIO, 0x90, CpuidHeader);
ioctl_io_nr!(KVM_SET_TSC_KHZ, KVMIO, 0xa2);
ioctl_io_nr!(KVM_GET_TSC_KHZ, KVMIO, 0xa3);
ioctl_iowr_nr!(KVM_MEMORY_ENCRYPT_OP, KVMIO, 0xba, libc::c_ulong);

/// What an ioctl failed with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoctlError {
    /// The errno.
    pub errno: i32,
    /// What KVM left in `hw_error`, 0 for other ioctls.
    pub hw_error: u64,
}

impl IoctlError {
    fn last() -> Self {
        errno::Error::last().into()
    }

    /// The TDX module's status, if it was the one to refuse.
    pub fn status(self) -> Option<Status> {
        (self.hw_error != 0).then_some(Status(self.hw_error))
    }
}

impl From<errno::Error> for IoctlError {
    fn from(error: errno::Error) -> Self {
        Self {
            errno: error.errno(),
            hw_error: 0,
        }
    }
}

impl fmt::Display for IoctlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match errno_name(self.errno) {
            Some(name) => f.write_str(name)?,
            None => write!(f, "{}", io::Error::from_raw_os_error(self.errno))?,
        }
        match self.status() {
            Some(status) => write!(f, ", TDX status {:#018x} {status}", status.0),
            None => Ok(()),
        }
    }
}

/// Result of an ioctl.
pub type Result<T> = std::result::Result<T, IoctlError>;

/// Issues an ioctl: file descriptor, request, address of the command. Returns 0 or -errno.
pub type Issuer = fn(RawFd, libc::c_ulong, u64) -> i64;

thread_local! {
    /// Who issues this thread's TDX commands, if not [`command`] itself.
    static ISSUER: Cell<Option<Issuer>> = const { Cell::new(None) };
}

/// Lets somebody else issue this thread's TDX commands.
pub fn set_issuer(issuer: Option<Issuer>) {
    ISSUER.set(issuer);
}

/// Issues one TDX command.
///
/// # Safety
///
/// `data` must be what the command wants: a plain value, or the address of memory that stays valid
/// for the call and that nothing else refers to if the command writes to it.
unsafe fn command<F: AsRawFd>(fd: &F, id: u32, flags: u32, data: u64) -> Result<()> {
    let mut cmd = Cmd {
        id,
        flags,
        data,
        hw_error: 0,
    };
    if let Some(issue) = ISSUER.get() {
        let result = issue(fd.as_raw_fd(), KVM_MEMORY_ENCRYPT_OP(), &raw mut cmd as u64);
        let hw_error = cmd.hw_error;
        return match i32::try_from(-result) {
            Ok(0) => Ok(()),
            errno => Err(IoctlError {
                errno: errno.unwrap_or(libc::EIO),
                hw_error,
            }),
        };
    }
    // SAFETY: The kernel reads and writes one `struct kvm_tdx_cmd`, which `cmd` is. What it does
    // with `data` is right by this function's contract.
    if unsafe { ioctl_with_mut_ref(fd, KVM_MEMORY_ENCRYPT_OP(), &mut cmd) } == 0 {
        return Ok(());
    }
    Err(IoctlError {
        hw_error: cmd.hw_error,
        ..IoctlError::last()
    })
}

/// Asks what TDs on this machine can have.
pub fn capabilities(vm: &VmFd) -> Result<Box<Capabilities>> {
    let mut caps = Capabilities::with_room();
    // SAFETY: The command writes to a `struct kvm_tdx_capabilities` and as many CPUID entries as
    // its `nent` says, for which `caps` has room.
    unsafe { command(vm, KVM_TDX_CAPABILITIES, 0, &raw mut *caps as u64)? };
    Ok(caps)
}

/// Gives the TD its attributes, features and CPUID, which creates it in the TDX module.
pub fn init_vm(vm: &VmFd, attributes: u64, xfam: u64, cpuid: &Cpuid) -> Result<()> {
    let init = InitVm::new(attributes, xfam, cpuid);
    // SAFETY: The command reads a `struct kvm_tdx_init_vm` with as many CPUID entries as its
    // `nent` says, which `init` has.
    unsafe { command(vm, KVM_TDX_INIT_VM, 0, &raw const *init as u64) }
}

/// Creates the vCPU in the TDX module; `rcx` is what the guest finds in RCX and R8.
pub fn init_vcpu(vcpu: &VcpuFd, rcx: u64) -> Result<()> {
    // SAFETY: The command takes a plain value.
    unsafe { command(vcpu, KVM_TDX_INIT_VCPU, 0, rcx) }
}

/// Reads the CPUID that the TD will see.
pub fn get_cpuid(vcpu: &VcpuFd) -> Result<Box<Cpuid>> {
    let mut cpuid = Cpuid::with_room();
    // SAFETY: The command writes to a `struct kvm_cpuid2` at most as many entries as its `nent`
    // says, for which `cpuid` has room.
    unsafe { command(vcpu, KVM_TDX_GET_CPUID, 0, &raw mut *cpuid as u64)? };
    Ok(cpuid)
}

/// Result of [`init_mem_region`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Pages added by this call.
    pub pages: u64,
    /// Why it stopped early, if it did.
    pub stopped: Option<IoctlError>,
}

/// Copies pages into the TD's memory at `gpa`: those of `source` from page `first` on.
///
/// The kernel says how far it came. What is left can be handed in again.
pub fn init_mem_region(
    vcpu: &VcpuFd,
    source: &Mapping,
    first: u64,
    pages: u64,
    gpa: u64,
    measure: bool,
) -> Progress {
    let mut region = MemRegion {
        source_addr: source.page_address(first, pages),
        gpa,
        nr_pages: pages,
    };
    let flags = if measure {
        KVM_TDX_MEASURE_MEMORY_REGION
    } else {
        0
    };
    // SAFETY: The command reads and writes a `struct kvm_tdx_init_mem_region`, which `region` is,
    // and reads `pages` pages of `source`, which `page_address()` has checked to be there.
    let result = unsafe { command(vcpu, KVM_TDX_INIT_MEM_REGION, flags, &raw mut region as u64) };
    Progress {
        pages: pages.saturating_sub(region.nr_pages),
        stopped: result.err(),
    }
}

/// Completes the TD's measurement; it can run from now on.
pub fn finalize_vm(vm: &VmFd) -> Result<()> {
    // SAFETY: The command takes no data.
    unsafe { command(vm, KVM_TDX_FINALIZE_VM, 0, 0) }
}

/// Asks which CPUID bits KVM can give to a guest.
pub fn supported_cpuid(kvm: &Kvm) -> Result<Box<Cpuid>> {
    let mut cpuid = Cpuid::with_room();
    // SAFETY: The kernel writes at most as many entries as `nent` says, for which there is room.
    if unsafe { ioctl_with_mut_ref(kvm, KVM_GET_SUPPORTED_CPUID(), &mut *cpuid) } != 0 {
        return Err(IoctlError::last());
    }
    Ok(cpuid)
}

/// Tells KVM the CPUID of a vCPU.
pub fn set_cpuid(vcpu: &VcpuFd, cpuid: &Cpuid) -> Result<()> {
    // SAFETY: The kernel reads as many entries as `nent` says, which are there.
    if unsafe { ioctl_with_ref(vcpu, KVM_SET_CPUID2(), cpuid) } != 0 {
        return Err(IoctlError::last());
    }
    Ok(())
}

/// The TSC frequency that the TD's vCPUs will have.
pub fn tsc_khz(vm: &VmFd) -> Result<u64> {
    // SAFETY: This ioctl takes no argument.
    let khz = unsafe { ioctl(vm, KVM_GET_TSC_KHZ()) };
    u64::try_from(khz).map_err(|_| IoctlError::last())
}

/// Sets the TSC frequency that the TD's vCPUs will have.
pub fn set_tsc_khz(vm: &VmFd, khz: u64) -> Result<()> {
    // SAFETY: This ioctl takes a plain value.
    if unsafe { ioctl_with_val(vm, KVM_SET_TSC_KHZ(), khz) } != 0 {
        return Err(IoctlError::last());
    }
    Ok(())
}
