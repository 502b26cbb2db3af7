//! error: E0308
//! shows: state of another VM
// SPDX-License-Identifier: GPL-2.0
//
// A SEAMCALL finds its TD in the proof: there is no way to name another one.

use kernel::prelude::*;

use crate::{
    ffi::KvmTdx,
    td::{Initialized, Td},
};

fn case(td: &Td<'_, Initialized>, other: &KvmTdx) -> Result {
    Td::mr_extend(other, 0)?; // FAIL
    Td::mr_extend(td, 0)?; // PASS
    Ok(())
}
