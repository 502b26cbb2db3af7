// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.INIT: set a TD's parameters.

use super::{
    prelude::*,
    sys_init::LIMIT_CPUID, //
};
use crate::module::{
    open::TdAccess,
    td::OpState,
    td_params::{
        self,
        TD_PARAMS_SIZE, //
    },
    IA32_MISC_ENABLE, //
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 21,
    name: "MNG.INIT",
    op_states: OpState::Uninitialized.bit(),
    locks: &[LeafLock::exclusive(LockOf::Tdr, Operand::Rcx)],
    operands: &[("RCX", "TDR"), ("RDX", "TD_PARAMS, of the host")],
    results: &[(
        "RCX",
        "on failure, the index of the CPUID value that is wrong, if any",
    )],
    answers: &[
        Answer::Plain(Status::LIMIT_CPUID_MAXVAL_SET),
        Answer::Page(Operand::Rcx),
        Answer::TD_STATE,
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

const TD: TdAccess = TdAccess::of(&INFO);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;
    let tdr = regs.rcx;
    regs.rcx = 0;

    if platform.rdmsr(IA32_MISC_ENABLE) & LIMIT_CPUID != 0 {
        return Err(Status::LIMIT_CPUID_MAXVAL_SET);
    }
    let td = TD.open(call, tdr)?;
    let Some(params) = address::shared(platform, regs.rdx, TD_PARAMS_SIZE) else {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    };
    td_params::apply(&td, params, regs)?;
    td.measurement_init();
    td.set_op_state(OpState::Initialized);
    Ok(())
}
