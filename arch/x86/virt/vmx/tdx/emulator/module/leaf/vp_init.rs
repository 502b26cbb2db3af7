// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.INIT: make a vCPU ready to run.

use super::prelude::*;
use crate::module::{
    cpuid,
    td::{
        Tdcs,
        TdcsField, //
    },
    vp::{
        LockedVp,
        VcpuState,
        VpField, //
    },
    IA32_TSC_ADJUST, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 22,
    name: "VP.INIT",
    versions: Versions::TwoWithTopology,
    op_states: 0x002,
    locks: &[
        LeafLock::exclusive("TDVPR", "RCX"),
        LeafLock::shared("TDR", "TDR"),
        LeafLock::shared("OP_STATE", "OP_STATE"),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let with_x2apic_id = call.version == 1;

    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    let td_mode = if with_x2apic_id {
        LockMode::Exclusive
    } else {
        LockMode::Shared
    };
    let vp = LockedVp::lock(call, regs.rcx, Operand::Rcx, LockMode::Exclusive, td_mode)?;
    let tdcs = vp.td.check_and_lock(INFO.op_states)?;
    vp.check_complete(&tdcs)?;
    if vp.state() != VcpuState::Uninitialized {
        return Err(Status::VCPU_STATE_INCORRECT);
    }
    let index = tdcs.fetch_add(TdcsField::NumVcpus, 1);
    let undo = || tdcs.fetch_add(TdcsField::NumVcpus, u64::MAX);
    if index >= tdcs.get(TdcsField::MaxVcpus) {
        undo();
        return Err(Status::MAX_VCPUS_EXCEEDED);
    }
    if with_x2apic_id {
        let Ok(id) = u32::try_from(regs.r8) else {
            undo();
            return Err(Status::OPERAND_INVALID.on(Operand::R8));
        };
        // After these failures the number of vCPUs stays, as in the real module.
        take_x2apic_id(&tdcs, index, id)?;
        vp.set(VpField::X2apicId, u64::from(id));
    } else {
        tdcs.set(TdcsField::TopologyConfigured, 0);
    }
    if !module.tsc_adjust_unchanged(platform) {
        return Err(Status::INCONSISTENT_MSR.detail(IA32_TSC_ADJUST));
    }

    vp.set(VpField::Index, index);
    let gpa_width = if tdcs.has_wide_gpa() { 52 } else { 48 };
    vp.set(VpField::GuestRbx, gpa_width);
    vp.set(VpField::GuestRcx, regs.rdx);
    vp.set(VpField::GuestR8, regs.rdx);
    vp.set(VpField::GuestRdx, u64::from(cpuid::signature(&tdcs)));
    vp.set(VpField::GuestRsi, index);
    vp.init_vmcs(&tdcs);
    vp.set_state(VcpuState::Ready);
    vp.associate(&tdcs, false)
}

/// Stores the x2APIC id of the vCPU of that index, if no earlier one has it.
fn take_x2apic_id<P: Platform>(tdcs: &Tdcs<'_, P>, index: u64, id: u32) -> LeafResult {
    let platform = tdcs.call().platform;
    for other in 0..index {
        let mut bytes = [0; 4];
        platform.read(tdcs.x2apic_id_pa(other), &mut bytes);
        if u32::from_le_bytes(bytes) == id {
            return Err(Status::X2APIC_ID_NOT_UNIQUE.detail(id));
        }
    }
    platform.write(tdcs.x2apic_id_pa(index), &id.to_le_bytes());
    Ok(())
}
