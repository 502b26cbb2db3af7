// SPDX-License-Identifier: GPL-2.0

//! What a program is: calls into KVM, by one or two threads, on one VM.
//!
//! A program is plain data. It says nothing of file descriptors, and its addresses are those of
//! [`crate::memory`], which are the same in each run: what a program does, and what comes back, can
//! be compared and kept.

use std::fmt;

use serde::Deserialize;
use serde::Serialize;
use tdx_uapi::KVM_TDX_CAPABILITIES;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_GET_CPUID;
use tdx_uapi::KVM_TDX_INIT_MEM_REGION;
use tdx_uapi::KVM_TDX_INIT_VCPU;
use tdx_uapi::KVM_TDX_INIT_VM;

use crate::requests::Request;
use crate::trace::leaf_name;

/// Numbers of SEAMCALLs.
const MR_EXTEND: u16 = 16;
const MR_FINALIZE: u16 = 17;

/// vCPUs that a program can refer to.
pub const MAX_VCPUS: u8 = 3;

/// Calls on a VM of type KVM_X86_TDX_VM, which is there at the beginning and gone at the end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub steps: Vec<Step>,
}

/// One call, and who makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Step {
    /// 0 or 1. Each thread has a processor of its own.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub thread: u8,
    /// Where the call is to wait until the next step, if it is the other thread's, has ended or is
    /// blocked. A step without this begins when those before it have ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    pub call: Call,
}

fn is_zero(thread: &u8) -> bool {
    *thread == 0
}

/// Where a call is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Hold {
    /// Where the kernel first touches memory whose place is [`Place::Held`].
    Memory,
    /// In its first SEAMCALL of this number, which holds its locks for some time.
    Seamcall(u16),
}

/// What a call is made on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum On {
    Vm,
    /// The vCPU that was created first, second …
    Vcpu(u8),
    /// The guest_memfd that was created last.
    Gmem,
}

/// A call into the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Call {
    /// KVM_MEMORY_ENCRYPT_OP.
    Tdx {
        on: On,
        id: u32,
        flags: u32,
        hw_error: u64,
        at: Place,
        data: Data,
    },
    /// Any other ioctl.
    Kvm {
        on: On,
        request: Request,
        data: Data,
    },
    /// KVM_CREATE_VCPU.
    CreateVcpu { id: u64 },
    /// KVM_CREATE_GUEST_MEMFD.
    CreateGmem { size: u64, flags: u64 },
    /// fallocate() that makes a hole.
    PunchHole { offset: u64, size: u64 },
    /// KVM_RUN, and what the shared page of the vCPU says afterwards.
    Run { vcpu: u8 },
    /// close(); the number of a vCPU is not used again.
    Close(On),
    /// Limits the TDs of the process's control group, until the end of the program.
    Limit { tds: u64 },
}

/// What the last argument of an ioctl is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Data {
    /// This value.
    Value(u64),
    /// The address of a structure.
    Struct {
        kind: Kind,
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        patches: Vec<Patch>,
        at: Place,
    },
}

/// A structure with its most ordinary contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Kind {
    /// `struct kvm_tdx_capabilities` with room for all entries.
    Capabilities,
    /// `struct kvm_tdx_init_vm` that is accepted.
    InitVm,
    /// `struct kvm_tdx_init_mem_region`: the first page of the source, to the start of the slot.
    MemRegion,
    /// `struct kvm_cpuid2` with room for all entries.
    Cpuid,
    /// `struct kvm_cpuid2` with all that KVM supports.
    SupportedCpuid,
    /// `struct kvm_userspace_memory_region2`: slot 0, with the guest_memfd.
    Slot,
    /// `struct kvm_memory_attributes`: makes slot 0 private.
    Attributes,
    /// `struct kvm_enable_cap`: KVM_CAP_SPLIT_IRQCHIP.
    SplitIrqchip,
    /// `struct kvm_pre_fault_memory`: all of slot 0.
    PreFault,
    /// `struct kvm_msrs` with one entry.
    Msrs,
    /// So many zeros.
    Zeros(u16),
}

/// A change to a structure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patch {
    pub offset: u16,
    /// 1, 2, 4 or 8 bytes.
    pub width: u8,
    pub value: u64,
}

/// Where a structure lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Place {
    /// In memory that can be read and written.
    Normal,
    /// So that only its first bytes, this many, can be accessed.
    Cut(u16),
    /// In memory that can only be read.
    ReadOnly,
    /// In memory whose first access waits, in a program with [`Hold::Memory`]. This many bytes of
    /// it are on the page before, on which the access does not wait.
    Held(u16),
    /// Nowhere: at this address.
    Address(u64),
}

impl Step {
    /// A step of the first thread that nothing holds.
    pub fn new(call: Call) -> Self {
        Self {
            thread: 0,
            hold: None,
            call,
        }
    }
}

impl Call {
    /// A TDX command as it should be.
    pub fn tdx(on: On, id: u32, data: Data) -> Self {
        Self::Tdx {
            on,
            id,
            flags: 0,
            hw_error: 0,
            at: Place::Normal,
            data,
        }
    }

    /// An ioctl on a structure as it should be.
    pub fn kvm(on: On, request: Request, kind: Kind) -> Self {
        Self::Kvm {
            on,
            request,
            data: Data::of(kind),
        }
    }

    /// What it is called, for a table of calls.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tdx { id, .. } => command_name(*id).unwrap_or("an unknown TDX command"),
            Self::Kvm { request, .. } => request.name(),
            Self::CreateVcpu { .. } => "KVM_CREATE_VCPU",
            Self::CreateGmem { .. } => "KVM_CREATE_GUEST_MEMFD",
            Self::PunchHole { .. } => "fallocate()",
            Self::Run { .. } => "KVM_RUN",
            Self::Close(_) => "close()",
            Self::Limit { .. } => "misc.max",
        }
    }

    /// The last argument, if there is one that can be chosen.
    pub fn data(&self) -> Option<&Data> {
        match self {
            Self::Tdx { data, .. } | Self::Kvm { data, .. } => Some(data),
            _ => None,
        }
    }

    /// As [`Self::data`], to be changed.
    pub fn data_mut(&mut self) -> Option<&mut Data> {
        match self {
            Self::Tdx { data, .. } | Self::Kvm { data, .. } => Some(data),
            _ => None,
        }
    }
}

impl Data {
    /// The address of a structure as it should be.
    pub fn of(kind: Kind) -> Self {
        Self::patched(kind, Vec::new())
    }

    /// The address of a structure with something changed.
    pub fn patched(kind: Kind, patches: Vec<Patch>) -> Self {
        Self::Struct {
            kind,
            patches,
            at: Place::Normal,
        }
    }
}

impl Program {
    /// Whether two threads have a part in it, or one is held.
    pub fn is_threaded(&self) -> bool {
        self.steps
            .iter()
            .any(|step| step.thread != 0 || step.hold.is_some())
    }

    /// Whether step `index` is begun while the one before it is held.
    pub fn is_overlapping(&self, index: usize) -> bool {
        let Some(before) = index.checked_sub(1) else {
            return false;
        };
        self.holds_next(before)
    }

    /// Whether step `index` is held while the next one is made.
    pub fn holds_next(&self, index: usize) -> bool {
        let (Some(held), Some(next)) = (self.steps.get(index), self.steps.get(index + 1)) else {
            return false;
        };
        // What overlaps a held step is not held itself: of three calls only two are at once.
        held.hold.is_some()
            && held.thread != next.thread
            && !self.is_overlapping(index)
            && !loses_pages(held, next)
    }
}

/// Whether C would lose pages of the TD if the second step was made while the first is held.
///
/// In C, TDH.MR.EXTEND and TDH.MR.FINALIZE run without `mmu_lock`, and the SEAMCALLs of a hole punch
/// find the TDR taken. The module then owns pages that the kernel uses for something else: what comes
/// later could not be compared any more.
fn loses_pages(held: &Step, next: &Step) -> bool {
    matches!(held.hold, Some(Hold::Seamcall(MR_EXTEND | MR_FINALIZE)))
        && matches!(next.call, Call::PunchHole { .. })
}

/// The name of a TDX command.
pub fn command_name(id: u32) -> Option<&'static str> {
    Some(match id {
        KVM_TDX_CAPABILITIES => "KVM_TDX_CAPABILITIES",
        KVM_TDX_INIT_VM => "KVM_TDX_INIT_VM",
        KVM_TDX_INIT_VCPU => "KVM_TDX_INIT_VCPU",
        KVM_TDX_INIT_MEM_REGION => "KVM_TDX_INIT_MEM_REGION",
        KVM_TDX_FINALIZE_VM => "KVM_TDX_FINALIZE_VM",
        KVM_TDX_GET_CPUID => "KVM_TDX_GET_CPUID",
        _ => return None,
    })
}

impl fmt::Display for On {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Vm => f.write_str("vm"),
            Self::Vcpu(number) => write!(f, "vcpu{number}"),
            Self::Gmem => f.write_str("gmem"),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Normal => Ok(()),
            Self::Cut(bytes) => write!(f, ", only {bytes} bytes of it accessible"),
            Self::ReadOnly => f.write_str(", read-only"),
            Self::Held(0) => f.write_str(", held"),
            Self::Held(before) => write!(f, ", held from byte {before} on"),
            Self::Address(address) => write!(f, " at {address:#x}"),
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, patches, at) = match self {
            Self::Value(value) => return write!(f, "{value:#x}"),
            Self::Struct { kind, patches, at } => (kind, patches, at),
        };
        write!(f, "{kind:?}")?;
        for Patch {
            offset,
            width,
            value,
        } in patches
        {
            let bits = u32::from(*width) * 8;
            write!(f, " [{offset:#x}] = {value:#x} (u{bits})")?;
        }
        at.fmt(f)
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tdx {
                on,
                id,
                flags,
                hw_error,
                at,
                data,
            } => {
                match command_name(*id) {
                    Some(name) => write!(f, "{on}: {name}")?,
                    None => write!(f, "{on}: TDX command {id:#x}")?,
                }
                write!(f, "({data})")?;
                if *flags != 0 {
                    write!(f, " flags {flags:#x}")?;
                }
                if *hw_error != 0 {
                    write!(f, " hw_error {hw_error:#x}")?;
                }
                match at {
                    Place::Normal => Ok(()),
                    at => write!(f, " (command{at})"),
                }
            }
            Self::Kvm { on, request, data } => write!(f, "{on}: {}({data})", request.name()),
            Self::CreateVcpu { id } => write!(f, "vm: KVM_CREATE_VCPU({id})"),
            Self::CreateGmem { size, flags } => {
                write!(
                    f,
                    "vm: KVM_CREATE_GUEST_MEMFD(size {size:#x}, flags {flags:#x})"
                )
            }
            Self::PunchHole { offset, size } => {
                write!(f, "gmem: fallocate(punch hole, {offset:#x}, {size:#x})")
            }
            Self::Run { vcpu } => write!(f, "vcpu{vcpu}: KVM_RUN"),
            Self::Close(on) => write!(f, "{on}: close"),
            Self::Limit { tds } => write!(f, "misc.max: {tds} TDs"),
        }
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let threaded = self.is_threaded();
        for (number, step) in self.steps.iter().enumerate() {
            write!(f, "{:3}  ", number + 1)?;
            if threaded {
                write!(f, "thread {}  ", step.thread)?;
            }
            write!(f, "{}", step.call)?;
            if self.holds_next(number) {
                match step.hold {
                    Some(Hold::Memory) => write!(f, "  - held at its memory")?,
                    Some(Hold::Seamcall(leaf)) => {
                        write!(f, "  - held in SEAMCALL {}", leaf_name(leaf))?;
                    }
                    None => {}
                }
            }
            writeln!(f)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::requests;

    fn example() -> Program {
        let mut held = Step::new(Call::tdx(
            On::Vm,
            KVM_TDX_INIT_VM,
            Data::Struct {
                kind: Kind::InitVm,
                patches: vec![Patch {
                    offset: 8,
                    width: 8,
                    value: !0,
                }],
                at: Place::Held(256),
            },
        ));
        held.hold = Some(Hold::Memory);
        let mut other = Step::new(Call::kvm(On::Vm, requests::ENABLE_CAP, Kind::SplitIrqchip));
        other.thread = 1;
        Program {
            steps: vec![held, other, Step::new(Call::CreateVcpu { id: 0 })],
        }
    }

    #[test]
    fn a_program_survives_being_written_down() {
        let text = serde_json::to_string(&example()).unwrap();
        assert_eq!(serde_json::from_str::<Program>(&text).unwrap(), example());
    }

    #[test]
    fn only_the_other_threads_step_overlaps() {
        let mut program = example();
        assert!(program.holds_next(0) && program.is_overlapping(1));
        assert!(!program.is_overlapping(2) && !program.is_overlapping(0));
        program.steps[1].hold = Some(Hold::Memory);
        assert!(!program.holds_next(1));
        program.steps[1].thread = 0;
        assert!(!program.holds_next(0));
    }

    #[test]
    fn no_hole_is_punched_while_c_does_without_the_lock() {
        let mut program = example();
        program.steps[1].call = Call::PunchHole { offset: 0, size: 1 };
        assert!(program.holds_next(0));
        for (leaf, holds) in [(MR_FINALIZE, false), (MR_EXTEND, false), (22, true)] {
            program.steps[0].hold = Some(Hold::Seamcall(leaf));
            assert_eq!(program.holds_next(0), holds);
        }
    }

    #[test]
    fn people_can_read_it() {
        let text = example().to_string();
        assert!(
            text.contains("thread 0  vm: KVM_TDX_INIT_VM(InitVm [0x8] = 0xffffffffffffffff (u64)")
        );
        assert!(text.contains("held from byte 256 on)  - held at its memory"));
        assert!(text.contains("thread 1  vm: KVM_ENABLE_CAP(SplitIrqchip)"));
    }
}
