//! error: E0308
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// TDH.MNG.CREATE takes a lock of the whole module, which the guard of one VM does not cover.

use kernel::prelude::*;

use crate::{
    ffi::{Charge, ControlPage, KeyId, ModuleLocked},
    td::{Td, Uninitialized},
};

fn case(td: &Td<'_, Uninitialized>, tdr: ControlPage, key_id: KeyId, charge: Charge) -> Result {
    td.mng_create(td.guard(), tdr, key_id, charge)?; // FAIL
    td.mng_create(&ModuleLocked::lock(), tdr, key_id, charge)?; // PASS
    Ok(())
}
