//! error: E0308
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// TDH.VP.INIT needs the MMU locked for write, on top of the guard.

use crate::{
    ffi::LoadedTdVcpu,
    td::{Initialized, Td},
};

fn case(td: &Td<'_, Initialized>, vcpu: &LoadedTdVcpu<'_>) {
    let _ = td.vp_init(td.guard(), vcpu, 0); // FAIL
    let _ = td.vp_init(&td.guard().lock_mmu_for_write(), vcpu, 0); // PASS
}
