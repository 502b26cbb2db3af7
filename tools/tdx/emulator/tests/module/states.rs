// SPDX-License-Identifier: GPL-2.0

//! Every leaf that works on a TD or a vCPU, in every state of the TD.
//!
//! Which register names the TD, and which states will do, is what the leaf declares.

use super::{
    OUTSIDE,
    RESERVED,
    WITH_HKID, //
};
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE, //
    },
    machine,
    module::{
        LeafInfo,
        Lock,
        LockMode,
        LockOf,
        LockRecord,
        OpState,
        Operand,
        Platform,
        Status,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
/// Where a TDR holds how many pages the TDCS has, and a TDCS the operation state.
const NUM_TDCX: u64 = 0x28;
const OP_STATE: u64 = 0x18;

/// The register that names what a leaf locks, if it checks the TD's state.
fn named_by(info: &LeafInfo, what: LockOf) -> Option<Operand> {
    let lock = info.locks.iter().find(|lock| lock.what == what)?;
    let named = lock.operand.filter(|operand| *operand != Operand::Tdr)?;
    (info.modelled && info.op_states != 0).then_some(named)
}

/// The leaves that take a TDR or TDVPR, each with the register.
fn leaves(what: LockOf) -> Vec<(&'static LeafInfo, Operand)> {
    let leaves = LeafInfo::all().filter_map(|info| Some((info, named_by(info, what)?)));
    leaves.collect()
}

/// Operands of which the register has that value.
fn with(register: Operand, value: u64) -> Vec<u64> {
    match register {
        Operand::Rcx => vec![value, 0x4024],
        _ => vec![1, value],
    }
}

/// Calls all leaves that take a TDR or TDVPR, and do not allow that operation state. Each must fail
/// with that status.
#[track_caller]
fn all_fail(host: &Host, what: LockOf, page: u64, state: Option<OpState>, status: Status) {
    let allows =
        |info: &LeafInfo| state.is_some_and(|state| info.op_states >> state as u8 & 1 != 0);
    let leaves = leaves(what).into_iter().filter(|(info, _)| !allows(info));
    for (info, register) in leaves {
        host.fails(u64::from(info.number), &with(register, page), status);
    }
}

#[test]
fn of_tds() {
    let host = Host::start(&PROFILE_1_5_05);
    assert!(leaves(LockOf::Tdr).len() >= 13);
    let tdrs = |state: Option<OpState>, status: Status| {
        all_fail(&host, LockOf::Tdr, TDR, state, status);
    };
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    tdrs(None, Status::TD_KEYS_NOT_CONFIGURED);
    host.ok(leaf::MNG_KEY_CONFIG, &[TDR]);
    for index in 1..=6 {
        tdrs(None, Status::TDCS_NOT_ALLOCATED);
        host.ok(leaf::MNG_ADDCX, &[TDR + 0x1000 * index, TDR]);
    }
    let wrong = Status::OP_STATE_INCORRECT;
    tdrs(Some(OpState::Uninitialized), wrong);
    host.write_td_params();
    host.ok(leaf::MNG_INIT, &[TDR, tdx_emulator_host::host::HOST_PAGE]);
    tdrs(Some(OpState::Initialized), wrong);
    let mut td = Td::create(&host, TDR + 0x10_0000, 34);
    td.init(&host);
    td.add_vcpu(&host);
    host.ok(leaf::MR_FINALIZE, &[td.tdr]);
    let runnable = Some(OpState::Runnable);
    all_fail(&host, LockOf::Tdr, td.tdr, runnable, wrong);
    // That it is fatal comes first.
    host.module.make_fatal(&host.machine.lp(0), td.tdr);
    all_fail(&host, LockOf::Tdr, td.tdr, None, Status::TD_FATAL);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    tdrs(None, Status::TD_KEYS_NOT_CONFIGURED);
}

#[test]
fn of_vcpus() {
    let host = Host::start(&PROFILE_1_5_05);
    assert!(leaves(LockOf::Tdvpr).len() >= 5);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    let tdvpr = td.add_vcpu(&host);
    let vcpus = |state: Option<OpState>, status: Status| {
        all_fail(&host, LockOf::Tdvpr, tdvpr, state, status);
    };
    let wrong = Status::OP_STATE_INCORRECT;
    vcpus(Some(OpState::Initialized), wrong);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    vcpus(Some(OpState::Runnable), wrong);
    // There are no vCPUs before the TD has parameters, unless the host overwrites what it gave.
    let lp = host.machine.lp(0);
    let op_state = td.pages[0] + OP_STATE;
    lp.write64(op_state, OpState::Uninitialized as u64);
    vcpus(Some(OpState::Uninitialized), wrong);
    lp.write64(op_state, OpState::Runnable as u64);
    lp.write64(TDR + NUM_TDCX, 5);
    vcpus(None, Status::TDCS_NOT_ALLOCATED);
    host.fails(leaf::VP_FLUSH, &[tdvpr], Status::TDCS_NOT_ALLOCATED);
    lp.write64(TDR + NUM_TDCX, 6);

    host.ok(leaf::VP_FLUSH, &[tdvpr]);
    host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
    vcpus(None, Status::TD_KEYS_NOT_CONFIGURED);
    host.module.make_fatal(&lp, TDR);
    vcpus(None, Status::TD_FATAL);
}

#[test]
fn of_no_td() {
    let host = Host::start(&PROFILE_1_5_05);
    // A page of another type.
    host.ok(leaf::MNG_CREATE, &[TDR, 33]);
    for what in [LockOf::Tdr, LockOf::Tdvpr] {
        for (info, register) in leaves(what) {
            let call = |pa: u64, status: Status| {
                let number = u64::from(info.number);
                host.fails(number, &with(register, pa), status.on(register));
            };
            // Bit 0 of RDX means something else to TDH.MEM.SEPT.ADD, and all of them to
            // TDH.VP.ENTER.
            for pa in [TDR + 2, TDR + 0x800, WITH_HKID, 1 << 51 | TDR, 1 << 62] {
                call(pa, Status::OPERAND_INVALID);
            }
            call(OUTSIDE, Status::OPERAND_ADDR_RANGE_ERROR);
            let other = if what == LockOf::Tdr {
                TDR + 0x1000
            } else {
                TDR
            };
            for pa in [other, RESERVED] {
                call(pa, Status::PAGE_METADATA_INCORRECT);
            }
        }
    }
}

#[test]
fn entering_under_locks() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    let tdvpr = td.add_vcpu(&host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    let page = |pa: u64| Lock::Page { pa, level: 0 };
    for (lock, operand) in [
        (page(tdvpr), Operand::Rcx),
        (page(TDR), Operand::Tdr),
        (Lock::OpState(TDR), Operand::OpState),
        (Lock::Epoch(TDR), Operand::TdEpoch),
    ] {
        let record = LockRecord {
            lock,
            mode: LockMode::Exclusive,
        };
        let busy = Status::OPERAND_BUSY.on(operand);
        host.busy(record, leaf::VP_ENTER, &[tdvpr], busy);
    }
}

#[test]
fn a_processor_that_came_later_is_in_no_known_package() {
    let mut host = Host::start(&PROFILE_1_5_05);
    host.machine.set_packages(vec![0, machine::MAX_PACKAGES]);
    host.lp = 1;
    host.fails(leaf::PHYMEM_CACHE_WB, &[0], Status::INVALID_PKG_ID);
}
