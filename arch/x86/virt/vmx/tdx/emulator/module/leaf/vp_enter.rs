// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.ENTER: run a vCPU.
//!
//! The module itself cannot run guests. It checks all that a real module checks and then asks the
//! platform. A platform that cannot run guests either makes the leaf answer
//! `TDX_NON_RECOVERABLE_VCPU` with [`CANNOT_RUN`], which ends KVM_RUN with `KVM_EXIT_FAIL_ENTRY`;
//! the vCPU stays as it was.

use super::{
    prelude::*,
    sys_init::LIMIT_CPUID, //
};
use crate::module::{
    cpuid,
    guest::{
        self,
        Tdcall, //
    },
    open::{
        OpenVp,
        VpAccess, //
    },
    platform::{
        GuestExit,
        GuestVcpu, //
    },
    sept::{
        self,
        SeptState, //
    },
    td::TdcsField,
    td_params::ATTRIBUTE_SEPT_VE_DISABLE,
    vp::{
        VcpuState,
        VpField, //
    },
    IA32_MISC_ENABLE,
    IA32_TSC_ADJUST, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 0,
    name: "VP.ENTER",
    op_states: 0x20c,
    locks: &[
        LeafLock::shared(LockOf::Tdvpr, Operand::Rcx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
        LeafLock::shared(LockOf::OpState, Operand::OpState),
        LeafLock::shared(LockOf::Epoch, Operand::TdEpoch),
    ],
    operands: &[(
        "RCX",
        "TDVPR, with bit 52: hint on recovery, and bit 53: resume L1",
    )],
    results: &[
        ("RCX, RDX, R8, R9", "about the exit"),
        ("others", "0, though RBP may stay"),
    ],
    answers: &[
        Answer::Plain(Status::LIMIT_CPUID_MAXVAL_SET),
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
        Answer::ASSOCIATION,
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::Detailed(Status::INCONSISTENT_MSR, "MSR"),
        Answer::Plain(Status::TSC_ROLLBACK),
        Answer::Detailed(Status::INCORRECT_MSR_VALUE, "MSR"),
        Answer::About(Status::OPERAND_BUSY, &[Operand::SeptTree]),
        Answer::Detailed(Status::SUCCESS, "exit reason"),
        Answer::Detailed(Status::NON_RECOVERABLE_VCPU, "exit reason"),
        Answer::Plain(Status::HOST_PRIORITY_BUSY_TIMEOUT),
    ],
    ..LeafInfo::NEW
};

const VP: VpAccess = VpAccess::of(&INFO);

/// The exit reason of a vCPU that nobody can run: entry failed because of the guest's state.
///
/// Without bit 31, the mark of an entry that failed, Linux would look for the guest's RIP, which it
/// must not have.
const CANNOT_RUN: u32 = (1 << 31) | 33;
/// The exit reason of a triple fault.
const TRIPLE_FAULT: u32 = 2;
const EXTERNAL_INTERRUPT: u32 = 1;
const EPT_VIOLATION: u32 = 48;
const EPT_MISCONFIGURATION: u32 = 49;
/// The bit of an EPT violation's qualification for a write.
const QUALIFICATION_WRITE: u64 = 1 << 1;
/// The extended qualification of an access to a page that is not accepted.
const PENDING_PAGE: u64 = 6;
/// The exit reason that stands for TDG.VP.VMCALL.
const TDVMCALL_REASON: u32 = 77;
/// How often a guest goes on by itself before the host gets its turn.
const MAX_RESUMES: u32 = 1000;

/// The bits of RCX that are the TDVPR.
const TDVPR: u64 = address::PAGE_ADDRESS;
/// The bit of RCX that says how the host handled the last exit.
const HOST_RECOVERABILITY_HINT: u64 = 1 << 52;
/// The bit of RCX that makes the L1 VM run instead of an L2 VM.
const RESUME_L1: u64 = 1 << 53;

/// The last exit was like a trap.
const ASYNC_TRAP: u64 = 1;
/// The last exit was for what the guest asked.
const TDVMCALL: u64 = 2;

/// The bit of `IA32_MISC_ENABLE` without which MONITOR does not work.
const MONITOR_FSM: u64 = 1 << 18;

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let invalid = Status::OPERAND_INVALID.on(Operand::Rcx);

    let misc_enable = platform.rdmsr(IA32_MISC_ENABLE);
    if misc_enable & LIMIT_CPUID != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    if regs.rcx & !(TDVPR | HOST_RECOVERABILITY_HINT | RESUME_L1) != 0 {
        return Err(invalid);
    }
    let vp = VP.open(call, regs.rcx & TDVPR)?;
    vp.associate_complete(false)?;
    let hint = regs.rcx & HOST_RECOVERABILITY_HINT != 0;
    // There are no L2 VMs, so it is always the L1 VM that runs.
    if hint && vp.get(VpField::LastExit) != ASYNC_TRAP || regs.rcx & RESUME_L1 != 0 {
        return Err(invalid);
    }
    if !module.tsc_adjust_unchanged(platform) {
        return Err(Status::INCONSISTENT_MSR.detail(IA32_TSC_ADJUST));
    }
    if platform.tsc() < vp.get(VpField::LastExitTsc) {
        return Err(Status::TSC_ROLLBACK);
    }

    if misc_enable & MONITOR_FSM == 0 && cpuid::has_monitor(&vp.td) {
        return Err(Status::INCORRECT_MSR_VALUE.detail(IA32_MISC_ENABLE));
    }

    let epoch = call.scoped(|| {
        vp.td.lock_epoch(LockMode::Shared)?;
        let epoch = vp.td.get(TdcsField::Epoch);
        vp.td.epoch_users(epoch).fetch_add(1);
        Ok(epoch)
    })?;
    let users = vp.td.epoch_users(epoch);
    match stepped_fault(&vp) {
        Ok(None) => {}
        Ok(Some(gpa)) => {
            users.fetch_add(u64::MAX);
            clear_outputs(regs);
            regs.rcx = QUALIFICATION_WRITE;
            regs.r8 = gpa & !0xfff;
            return Err(Status::SUCCESS.detail(EPT_VIOLATION));
        }
        Err(status) => {
            users.fetch_add(u64::MAX);
            return Err(status);
        }
    }

    let exit = if platform.runs_guests() {
        enter(&vp, epoch, regs)
    } else {
        Exit::Unsupported
    };
    users.fetch_add(u64::MAX);
    leave(&vp, &exit, regs)
}

/// Runs the vCPU, which is counted as one that runs since that epoch.
fn enter<P: Platform>(vp: &OpenVp<'_, P>, epoch: u64, regs: &Regs) -> Exit {
    if vp.get(VpField::LastExit) == TDVMCALL {
        guest::answer_vmcall(vp, regs);
    }
    vp.set(VpField::Epoch, epoch);
    vp.set_state(VcpuState::Active);
    vp.td.unlock_op_state();
    let exit = run_guest(vp);
    vp.set_state(VcpuState::Ready);
    vp.set(VpField::LastExit, exit.kind());
    vp.set(VpField::LastExitTsc, vp.td.call().platform.tsc());
    exit
}

/// Why the host gets the processor back.
enum Exit {
    /// The platform cannot run guests.
    Unsupported,
    /// The guest asks the host for something.
    Tdvmcall,
    /// The guest has waited too long for a Secure EPT entry that the host wants too.
    HostPriorityTimeout,
    /// A VM exit, or what is to look like one.
    Vm {
        reason: u32,
        qualification: u64,
        extended_qualification: u64,
        gpa: u64,
        interruption: u32,
    },
}

impl Exit {
    /// How the guest ended: [`VpField::LastExit`].
    fn kind(&self) -> u64 {
        match self {
            Exit::Tdvmcall => TDVMCALL,
            Exit::HostPriorityTimeout => ASYNC_TRAP,
            _ => 0,
        }
    }
}

/// Runs the guest until it exits for a reason that is the host's to know.
fn run_guest<P: Platform>(vp: &OpenVp<'_, P>) -> Exit {
    let mut inject_ve = false;
    for _ in 0..MAX_RESUMES {
        let vcpu = GuestVcpu {
            tdvpr: vp.tdvpr(),
            tdr: vp.td.tdr,
            index: vp.get(VpField::Index) as u32,
            inject_ve,
            regs: vp.guest_regs(),
            rip: vp.get(VpField::GuestRip),
        };
        inject_ve = false;
        match vp.td.call().platform.enter_guest(&vcpu) {
            GuestExit::Unsupported => return Exit::Unsupported,
            GuestExit::Tdcall(regs) => {
                vp.set_guest_regs(&regs);
                match guest::tdcall(vp) {
                    Tdcall::Return => {}
                    Tdcall::Vmcall => return Exit::Tdvmcall,
                    Tdcall::NotAccepted {
                        gpa,
                        extended_qualification,
                    } => {
                        return Exit::Vm {
                            reason: EPT_VIOLATION,
                            qualification: QUALIFICATION_WRITE,
                            extended_qualification,
                            gpa,
                            interruption: 0,
                        }
                    }
                    Tdcall::HostPriorityTimeout => return Exit::HostPriorityTimeout,
                }
            }
            GuestExit::VmExit {
                reason,
                qualification,
                gpa,
                interruption,
                rip,
            } => {
                vp.set(VpField::GuestRip, rip);
                let violation = match reason {
                    EPT_VIOLATION => violation(vp, rip, gpa),
                    _ => Violation::OfHost(0),
                };
                match violation {
                    Violation::OfGuest => inject_ve = true,
                    Violation::OfHost(extended_qualification) => {
                        return Exit::Vm {
                            reason,
                            qualification,
                            extended_qualification,
                            gpa,
                            interruption,
                        }
                    }
                }
            }
        }
    }
    // As if an interrupt had come.
    Exit::Vm {
        reason: EXTERNAL_INTERRUPT,
        qualification: 0,
        extended_qualification: 0,
        gpa: 0,
        interruption: 0,
    }
}

/// Who is to know of an EPT violation.
enum Violation {
    /// The guest, by an exception.
    OfGuest,
    /// The host, with this extended exit qualification.
    OfHost(u64),
}

/// Looks at an EPT violation.
fn violation<P: Platform>(vp: &OpenVp<'_, P>, rip: u64, gpa: u64) -> Violation {
    let tdcs = &*vp.td;
    if sept::check_private(tdcs, gpa).is_err() {
        return Violation::OfHost(0);
    }
    let pending = sept::walk(tdcs, gpa, 0).0.entry.state() == SeptState::Pending;
    if pending && tdcs.get(TdcsField::Attributes) & ATTRIBUTE_SEPT_VE_DISABLE == 0 {
        return Violation::OfGuest;
    }
    vp.count_fault(rip, gpa & !0xfff);
    Violation::OfHost(if pending { PENDING_PAGE } else { 0 })
}

/// Looks for an address that the host may use to step the guest: one that faulted often at the same
/// instruction, and would again.
fn stepped_fault<P: Platform>(vp: &OpenVp<'_, P>) -> Result<Option<u64>, Status> {
    let tdcs = &*vp.td;
    if vp.get(VpField::FaultListLength) == 0 {
        return Ok(None);
    }
    tdcs.call().scoped(|| {
        sept::lock_tree(tdcs, LockMode::Exclusive)?;
        let faults = |gpa: &u64| sept::walk(tdcs, *gpa, 0).0.entry.state() != SeptState::Mapped;
        Ok(vp.faults().find(faults))
    })
}

/// Clears the registers that tell about an exit.
fn clear_outputs(regs: &mut Regs) {
    *regs = Regs {
        rax: regs.rax,
        rbp: regs.rbp,
        ..Regs::default()
    };
}

/// Sets the registers that tell the host about an exit.
fn leave<P: Platform>(vp: &OpenVp<'_, P>, exit: &Exit, regs: &mut Regs) -> LeafResult {
    if let Exit::Tdvmcall = exit {
        guest::show_vmcall(vp, regs);
        return Err(Status::SUCCESS.detail(TDVMCALL_REASON));
    }
    clear_outputs(regs);
    if !(vp.td.has_no_rbp_mod() && vp.td.call().module.profile().keeps_rbp) {
        regs.rbp = 0;
    }
    match *exit {
        Exit::Tdvmcall | Exit::Unsupported => Err(Status::NON_RECOVERABLE_VCPU.detail(CANNOT_RUN)),
        Exit::HostPriorityTimeout => Err(Status::HOST_PRIORITY_BUSY_TIMEOUT),
        Exit::Vm {
            reason: TRIPLE_FAULT,
            ..
        } => {
            vp.set_state(VcpuState::Disabled);
            Err(Status::NON_RECOVERABLE_VCPU.detail(TRIPLE_FAULT))
        }
        Exit::Vm {
            reason,
            qualification,
            extended_qualification,
            gpa,
            interruption,
        } => {
            regs.rcx = qualification & 0xffff_ffff;
            if matches!(reason & 0xffff, EPT_VIOLATION | EPT_MISCONFIGURATION) {
                regs.rcx &= !0x1f80;
                regs.r8 = gpa & !0xfff;
            }
            regs.rdx = extended_qualification;
            regs.r9 = u64::from(interruption);
            Err(Status::SUCCESS.detail(reason))
        }
    }
}
