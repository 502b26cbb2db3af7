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
    platform::{
        GuestExit,
        GuestVcpu, //
    },
    td::TdcsField,
    vp::{
        LockedVp,
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
        LeafLock::shared("TDVPR", "RCX"),
        LeafLock::shared("TDR", "TDR"),
        LeafLock::shared("OP_STATE", "OP_STATE"),
        LeafLock::shared("epoch", "TD_EPOCH"),
    ],
    ..LeafInfo::NEW
};

/// The exit reason of a vCPU that nobody can run: entry failed because of the guest's state.
///
/// Without bit 31, the mark of an entry that failed, Linux would look for the guest's RIP, which it
/// must not have.
const CANNOT_RUN: u32 = 1 << 31 | 33;
/// The exit reason of a triple fault.
const TRIPLE_FAULT: u32 = 2;
/// The exit reasons of an EPT violation and of an EPT misconfiguration.
const EPT_EXITS: [u32; 2] = [48, 49];

/// The bits of RCX that are the TDVPR.
const TDVPR: u64 = 0x000f_ffff_ffff_f000;
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
    let tdvpr = regs.rcx & TDVPR;
    let vp = LockedVp::lock(
        call,
        tdvpr,
        Operand::Rcx,
        LockMode::Shared,
        LockMode::Shared,
    )?;
    let tdcs = vp.td.check_and_lock(INFO.op_states)?;
    vp.check_complete(&tdcs)?;
    vp.associate(&tdcs, false)?;
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
        let _lock = tdcs.lock_epoch(LockMode::Shared)?;
        let epoch = tdcs.get(TdcsField::Epoch);
        fetch_add(platform, tdcs.epoch_users_pa(epoch), 1);
        epoch
    };
    vp.set(VpField::Epoch, epoch);
    vp.set_state(VcpuState::Active);
    let users = tdcs.epoch_users_pa(epoch);
    // The guest runs without the operation state being locked.
    drop(tdcs);
    let exit = platform.enter_guest(&GuestVcpu {
        tdvpr: vp.tdvpr(),
        tdr: vp.td.tdr,
        index: vp.get(VpField::Index) as u32,
    });
    fetch_add(platform, users, u64::MAX);
    vp.set_state(VcpuState::Ready);
    vp.set(VpField::LastExit, 0);
    vp.set(VpField::LastExitTsc, platform.tsc());
    leave(&vp, exit, regs)
}

/// Sets the registers that tell the host about a VM exit.
fn leave<P: Platform>(vp: &LockedVp<'_, P>, exit: GuestExit, regs: &mut Regs) -> LeafResult {
    *regs = Regs {
        rax: regs.rax,
        rbp: regs.rbp,
        ..Regs::default()
    };
    match exit {
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
        } => {
            regs.rcx = qualification & 0xffff_ffff;
            if EPT_EXITS.contains(&(reason & 0xffff)) {
                regs.rcx &= !0xf80;
                regs.r8 = gpa & !0xfff;
            }
            regs.r9 = u64::from(interruption);
            Err(Status::SUCCESS.detail(reason))
        }
    }
}
