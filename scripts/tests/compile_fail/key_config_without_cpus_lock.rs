//! error: E0308
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// TDH.MNG.KEY.CONFIG runs on a CPU of each package, of which none may go away.

use kernel::{cpu::CpuId, prelude::*};

use crate::{
    ffi::{CpusReadLocked, ModuleLocked},
    td::{Td, Uninitialized},
};

fn case(td: &Td<'_, Uninitialized>, cpu: CpuId) -> Result {
    td.mng_key_config(&ModuleLocked::lock(), cpu)?; // FAIL
    td.mng_key_config(&CpusReadLocked::lock(), cpu)?; // PASS
    Ok(())
}
