// SPDX-License-Identifier: GPL-2.0

//! Every leaf with operands that differ in one register from those of a call that succeeds.
//!
//! Whatever the leaf answers, it is something that it declares, it keeps no lock, a call that fails
//! changes nothing, and the call that succeeds still does.

use super::{
    contention::{
        prepare,
        Prepared, //
    },
    OUTSIDE,
    RESERVED, //
};
use tdx_emulator_host::{
    host::{
        leaf,
        regs,
        FIRST_PAGE,
        HOST_PAGE,
        PAMT_BASE,
        TDMR_BASE,
        TDMR_SIZE, //
    },
    machine::Machine,
    module::{
        CallResult,
        LeafInfo,
        Status, //
    },
};

/// Values that mean something as some operand, or nearly do.
fn values(good: u64) -> Vec<u64> {
    let pages = [
        0,
        FIRST_PAGE,
        FIRST_PAGE + 0x1000,
        FIRST_PAGE + 0x5000,
        FIRST_PAGE + 0x10_0000,
        FIRST_PAGE + 0x20_0000,
        TDMR_BASE,
        TDMR_BASE + TDMR_SIZE - 0x1000,
        TDMR_BASE + TDMR_SIZE,
        RESERVED,
        OUTSIDE,
        PAMT_BASE,
        HOST_PAGE,
        1 << 30,
        1 << 39,
        1 << 46,
        0xff_f000_0000,
        u64::MAX << 12,
        u64::MAX,
    ];
    let bits = (0..64).map(|bit| good ^ 1 << bit);
    let levels = (0..8).map(|level| good & !7 | level);
    let near = [good.wrapping_add(0x1000), good.wrapping_sub(0x1000), !good];
    let all = pages.into_iter().chain(bits).chain(levels).chain(near);
    all.filter(|value| *value != good).collect()
}

/// Whether a call that fails may have changed something before, by what real modules do.
fn may_have_effects(number: u64, status: Status) -> bool {
    match number {
        // It takes parameters one by one.
        leaf::MNG_INIT => status.detail(0) != Status::OPERAND_BUSY,
        _ => false,
    }
}

/// Makes the call with these registers. Returns whether it succeeded.
fn try_call(prepared: &Prepared, rax: u64, operands: &[u64]) -> bool {
    let host = &prepared.host;
    let before = host.memory();
    host.machine.take_events();
    let mut regs = regs(rax, operands);
    let outcome = host.seamcall(&mut regs);
    let held = Machine::held_locks(&host.machine.take_events());
    assert!(
        held.is_empty(),
        "leaf {rax:#x} {operands:x?} keeps {held:?}"
    );
    match outcome.result {
        CallResult::VmFailInvalid => assert!(host.memory() == before),
        CallResult::Returned(status) if status.is_success() => return true,
        CallResult::Returned(status) => assert!(
            may_have_effects(u64::from(outcome.leaf), status) || host.memory() == before,
            "leaf {rax:#x} {operands:x?} answers {:?} and changes memory",
            status.name()
        ),
    }
    false
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn one_at_a_time() {
    let (mut failed, mut succeeded) = (0, 0);
    for info in LeafInfo::all() {
        let number = u64::from(info.number);
        let Some(mut prepared) = prepare(number) else {
            continue;
        };
        let mut calls = Vec::new();
        for index in 0..prepared.operands.len() {
            for value in values(prepared.operands[index]) {
                let mut operands = prepared.operands.clone();
                operands[index] = value;
                calls.push((prepared.rax, operands));
            }
        }
        let versions = (16..64).map(|bit| prepared.rax ^ 1 << bit);
        calls.extend(versions.map(|rax| (rax, prepared.operands.clone())));
        for (rax, operands) in calls {
            if try_call(&prepared, rax, &operands) {
                succeeded += 1;
                prepared = prepare(number).unwrap();
            } else {
                failed += 1;
            }
        }
        let Prepared {
            host,
            rax,
            operands,
            ..
        } = &prepared;
        if number == leaf::MNG_INIT {
            host.write_td_params();
        }
        host.ok(*rax, operands);
    }
    assert!(failed > 4000 && succeeded > 200, "{failed}, {succeeded}");
}
