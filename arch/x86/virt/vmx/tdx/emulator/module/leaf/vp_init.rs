// SPDX-License-Identifier: GPL-2.0

//! TDH.VP.INIT: make a vCPU ready to run.

use super::prelude::*;
use crate::module::{
    cpuid,
    open::VpAccess,
    place::Place,
    td::{
        Tdcs,
        TdcsField, //
    },
    vp::{
        VcpuState,
        VpField, //
    },
    IA32_TSC_ADJUST, //
};

/// With x2APIC ids, which no two vCPUs of a TD may share, it is exclusive.
const TDR_LOCK: LeafLock = LeafLock {
    strict: LockMode::Exclusive,
    ..LeafLock::shared(LockOf::Tdr, Operand::Tdr)
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 22,
    name: "VP.INIT",
    versions: Versions::TwoWithTopology,
    op_states: 0x002,
    locks: &[
        LeafLock::exclusive(LockOf::Tdvpr, Operand::Rcx),
        TDR_LOCK,
        LeafLock::shared(LockOf::OpState, Operand::OpState),
    ],
    operands: &[
        ("RCX", "TDVPR"),
        ("RDX", "what the guest finds in RCX and R8"),
        ("R8", "version 1: x2APIC id"),
    ],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::MAX_VCPUS_EXCEEDED),
        Answer::About(Status::OPERAND_INVALID, &[Operand::R8]),
        Answer::Detailed(Status::X2APIC_ID_NOT_UNIQUE, "x2APIC id"),
        Answer::Detailed(Status::INCONSISTENT_MSR, "MSR"),
    ],
    ..LeafInfo::NEW
};

const VP: VpAccess = VpAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let with_x2apic_id = call.version == 1;

    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    let vp = VP.open(call, regs.rcx)?;
    let tdcs = &*vp.td;
    vp.check_complete(tdcs)?;
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
        take_x2apic_id(tdcs, index, id)?;
        vp.set(VpField::X2apicId, u64::from(id));
    } else {
        tdcs.set(TdcsField::TopologyConfigured, 0);
    }
    if !module.tsc_adjust_unchanged(platform) {
        return Err(Status::INCONSISTENT_MSR.detail(IA32_TSC_ADJUST));
    }

    vp.set(VpField::Index, index);
    vp.set_guest_regs(&Regs {
        rbx: if tdcs.has_wide_gpa() { 52 } else { 48 },
        rcx: regs.rdx,
        rdx: u64::from(cpuid::signature(tdcs)),
        rsi: index,
        r8: regs.rdx,
        ..Regs::default()
    });
    vp.init_vmcs(tdcs);
    vp.set_state(VcpuState::Ready);
    vp.associate(tdcs, false)
}

/// Stores the x2APIC id of the vCPU of that index, if no other one has it.
///
/// Others may be at it too, where the TDR's lock is shared: of those with the same id at most one
/// gets it, since each says what it wants before it looks.
fn take_x2apic_id<P: Platform>(tdcs: &Tdcs<'_, P>, index: u64, id: u32) -> LeafResult {
    // 0 is where no vCPU has told its id. (The id for which this is 0 addresses all: it is none.)
    let key = id.wrapping_add(1);
    set_x2apic_key(tdcs, index, key);
    let vcpus = tdcs.get(TdcsField::NumVcpus);
    let mut others = (0..vcpus).filter(|other| *other != index);
    if key != 0 && others.any(|other| x2apic_key(tdcs, other) == key) {
        set_x2apic_key(tdcs, index, 0);
        return Err(Status::X2APIC_ID_NOT_UNIQUE.detail(id));
    }
    Ok(())
}

/// The word with the key of the vCPU of that index, and how far up it is.
fn x2apic_word<'c, P: Platform>(tdcs: &Tdcs<'c, P>, index: u64) -> (Place<'c, P>, u32) {
    let pa = tdcs.x2apic_id_pa(index);
    let word = Place::find(tdcs.call().platform, pa & !7);
    (word, if pa & 4 != 0 { 32 } else { 0 })
}

fn x2apic_key<P: Platform>(tdcs: &Tdcs<'_, P>, index: u64) -> u32 {
    let (word, shift) = x2apic_word(tdcs, index);
    (word.load() >> shift) as u32
}

fn set_x2apic_key<P: Platform>(tdcs: &Tdcs<'_, P>, index: u64, key: u32) {
    let (word, shift) = x2apic_word(tdcs, index);
    // No carry leaves a half: what is added to it is the difference.
    let old = (word.load() >> shift) as u32;
    let delta = u64::from(key).wrapping_sub(u64::from(old));
    word.fetch_add(delta << shift);
}
