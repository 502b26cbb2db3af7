//! error: E0599
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// A SEAMCALL that changes a TD is a method of a state that only the guard gives out.

use kernel::prelude::*;

use crate::{
    ffi::KvmTdx,
    td::{Initialized, Td},
};

fn case(kvm_tdx: &KvmTdx, td: &Td<'_, Initialized>) -> Result {
    kvm_tdx.mr_extend(0)?; // FAIL
    td.mr_extend(0)?; // PASS
    Ok(())
}
