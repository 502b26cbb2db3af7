//! error: E0521
//! shows: SEAMCALL without a witness
// SPDX-License-Identifier: GPL-2.0
//
// A page is there to be added only while the lock of its file is held.

use kernel::{
    kvm::{Gfn, GmemPage, Pfn, SlotsLocked},
    prelude::*,
    uaccess::UserPtr,
};

fn case(slots: &SlotsLocked<'_>, source: UserPtr) -> Result {
    let mut kept: Option<&GmemPage<'_>> = None;
    let mut pfn: Option<Pfn> = None;

    slots.gmem_populate(Gfn(0), Some(source), 1, |page| {
        kept = Some(page); // FAIL
        pfn = Some(page.pfn()); // PASS
        Ok(())
    })?;
    drop((kept, pfn));
    Ok(())
}
