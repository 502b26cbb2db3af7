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
    locks::fetch_add,
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
        Answer::Detailed(Status::INCONSISTENT_MSR, "MSR"),
        Answer::Plain(Status::TSC_ROLLBACK),
        Answer::About(Status::OPERAND_BUSY, &[Operand::SeptTree]),
        Answer::Detailed(Status::SUCCESS, "exit reason"),
        Answer::Detailed(Status::NON_RECOVERABLE_VCPU, "exit reason"),
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
/// The bit of CONFIG_FLAGS that makes exits leave RBP alone.
const NO_RBP_MOD: u64 = 1 << 2;
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

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let invalid = Status::OPERAND_INVALID.on(Operand::Rcx);

    if platform.msrs().misc_enable & LIMIT_CPUID != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    if regs.rcx & !(TDVPR | HOST_RECOVERABILITY_HINT | RESUME_L1) != 0 {
        return Err(invalid);
    }
    let mut vp = VP.open_associated(call, regs.rcx & TDVPR, false)?;
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

    let epoch = {
        let _lock = vp.td.lock_epoch(LockMode::Shared)?;
        let epoch = vp.td.get(TdcsField::Epoch);
        fetch_add(platform, vp.td.epoch_users_pa(epoch), 1);
        epoch
    };
    let users = vp.td.epoch_users_pa(epoch);
    match stepped_fault(&vp) {
        Ok(None) => {}
        Ok(Some(gpa)) => {
            fetch_add(platform, users, u64::MAX);
            clear_outputs(regs);
            regs.rcx = QUALIFICATION_WRITE;
            regs.r8 = gpa & !0xfff;
            return Err(Status::SUCCESS.detail(EPT_VIOLATION));
        }
        Err(status) => {
            fetch_add(platform, users, u64::MAX);
            return Err(status);
        }
    }

    vp.set(VpField::Epoch, epoch);
    vp.set_state(VcpuState::Active);
    vp.td.unlock_op_state();
    let exit = run_guest(&vp);
    fetch_add(platform, users, u64::MAX);
    vp.set_state(VcpuState::Ready);
    vp.set(VpField::LastExit, 0);
    vp.set(VpField::LastExitTsc, platform.tsc());
    leave(&vp, exit, regs)
}

/// An exit, with what the module adds to it.
struct Exit {
    exit: GuestExit,
    /// What RDX tells.
    extended_qualification: u64,
}

/// Runs the guest until it exits for a reason that is the host's to know.
fn run_guest<P: Platform>(vp: &OpenVp<'_, P>) -> Exit {
    let tdcs = &*vp.td;
    let mut vcpu = GuestVcpu {
        tdvpr: vp.tdvpr(),
        tdr: tdcs.tdr,
        index: vp.get(VpField::Index) as u32,
        inject_ve: false,
    };
    let ve_disabled = tdcs.get(TdcsField::Attributes) & ATTRIBUTE_SEPT_VE_DISABLE != 0;
    for _ in 0..MAX_RESUMES {
        let exit = tdcs.call().platform.enter_guest(&vcpu);
        let mut extended_qualification = 0;
        if let GuestExit::VmExit {
            reason: EPT_VIOLATION,
            gpa,
            rip,
            ..
        } = exit
        {
            if sept::check_private(tdcs, gpa).is_ok() {
                match sept::walk(tdcs, gpa, 0).0.entry.state() {
                    SeptState::Pending if !ve_disabled => {
                        vcpu.inject_ve = true;
                        continue;
                    }
                    SeptState::Pending => extended_qualification = PENDING_PAGE,
                    _ => {}
                }
                vp.count_fault(rip, gpa & !0xfff);
            }
        }
        return Exit {
            exit,
            extended_qualification,
        };
    }
    // As if an interrupt had come.
    Exit {
        exit: GuestExit::VmExit {
            reason: EXTERNAL_INTERRUPT,
            qualification: 0,
            gpa: 0,
            interruption: 0,
            rip: 0,
        },
        extended_qualification: 0,
    }
}

/// Looks for an address that the host may use to step the guest: one that faulted often at the same
/// instruction, and would again.
fn stepped_fault<P: Platform>(vp: &OpenVp<'_, P>) -> Result<Option<u64>, Status> {
    let tdcs = &*vp.td;
    if vp.get(VpField::FaultListLength) == 0 {
        return Ok(None);
    }
    let _tree = sept::lock_tree(tdcs, LockMode::Exclusive)?;
    let faults = |gpa: &u64| sept::walk(tdcs, *gpa, 0).0.entry.state() != SeptState::Mapped;
    let gpa = vp.faults().find(faults);
    Ok(gpa)
}

/// Clears the registers that tell about an exit.
fn clear_outputs(regs: &mut Regs) {
    *regs = Regs {
        rax: regs.rax,
        rbp: regs.rbp,
        ..Regs::default()
    };
}

/// Sets the registers that tell the host about a VM exit.
fn leave<P: Platform>(vp: &OpenVp<'_, P>, exit: Exit, regs: &mut Regs) -> LeafResult {
    clear_outputs(regs);
    let no_rbp_mod = vp.td.get(TdcsField::ConfigFlags) & NO_RBP_MOD != 0;
    if !(no_rbp_mod && vp.td.call().module.profile().keeps_rbp) {
        regs.rbp = 0;
    }
    match exit.exit {
        GuestExit::Unsupported => Err(Status::NON_RECOVERABLE_VCPU.detail(CANNOT_RUN)),
        GuestExit::VmExit {
            reason: TRIPLE_FAULT,
            ..
        } => {
            vp.set_state(VcpuState::Disabled);
            Err(Status::NON_RECOVERABLE_VCPU.detail(TRIPLE_FAULT))
        }
        GuestExit::VmExit {
            reason,
            qualification,
            gpa,
            interruption,
            ..
        } => {
            regs.rcx = qualification & 0xffff_ffff;
            if matches!(reason & 0xffff, EPT_VIOLATION | EPT_MISCONFIGURATION) {
                regs.rcx &= !0x1f80;
                regs.r8 = gpa & !0xfff;
            }
            regs.rdx = exit.extended_qualification;
            regs.r9 = u64::from(interruption);
            Err(Status::SUCCESS.detail(reason))
        }
    }
}
