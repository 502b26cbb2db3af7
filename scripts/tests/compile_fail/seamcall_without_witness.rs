//! error: E0277
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// A SEAMCALL that reads a TD takes a proof that the TD does not change meanwhile.

use crate::{
    ffi::{KvmTdx, LockedTdVcpu},
    seamcall::{mng_rd, TDCS_TSC_OFFSET},
};

fn case(kvm_tdx: &KvmTdx, vcpu: &LockedTdVcpu<'_>) {
    let _ = mng_rd(kvm_tdx, TDCS_TSC_OFFSET); // FAIL
    let _ = mng_rd(vcpu, TDCS_TSC_OFFSET); // PASS
}
