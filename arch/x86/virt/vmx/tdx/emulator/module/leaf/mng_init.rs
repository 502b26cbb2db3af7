// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.INIT: set a TD's parameters.

use super::{
    prelude::*,
    sys_init::LIMIT_CPUID, //
};
use crate::module::{
    td::{
        LockedTd,
        OpState, //
    },
    td_params::{
        self,
        TD_PARAMS_SIZE, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 21,
    name: "MNG.INIT",
    op_states: OpState::Uninitialized.bit(),
    locks: &[LeafLock::exclusive("TDR", Operand::Rcx)],
    operands: &[("RCX", "TDR"), ("RDX", "TD_PARAMS, of the host")],
    results: &[(
        "RCX",
        "on failure, the index of the CPUID value that is wrong, if any",
    )],
    answers: &[
        Answer::Plain(Status::LIMIT_CPUID_MAXVAL_SET),
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
        Answer::About(
            Status::OPERAND_INVALID,
            &[
                Operand::Rdx,
                Operand::Attributes,
                Operand::Xfam,
                Operand::ConfigFlags,
                Operand::EptpControls,
                Operand::MaxVcpus,
                Operand::NumL2Vms,
                Operand::TscFrequency,
                Operand::CpuidConfig,
                Operand::ArchCapabilitiesConfig,
            ],
        ),
        Answer::Detailed(Status::INCONSISTENT_MSR, "MSR"),
        Answer::Detailed(Status::INCORRECT_MSR_VALUE, "MSR"),
        Answer::Plain(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED),
    ],
    ..LeafInfo::NEW
};

pub(super) fn run<P: Platform>(call: &Call<'_, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;
    let tdr = regs.rcx;
    regs.rcx = 0;

    if platform.msrs().misc_enable & LIMIT_CPUID != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    let td = LockedTd::lock(call, tdr, Operand::Rcx, LockMode::Exclusive)?;
    let tdcs = td.check(INFO.op_states)?;
    let Some(params) = address::shared(platform, regs.rdx, TD_PARAMS_SIZE) else {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    };
    td_params::apply(&tdcs, params, regs)?;
    tdcs.measurement_init();
    tdcs.set_op_state(OpState::Initialized);
    Ok(())
}
