// SPDX-License-Identifier: GPL-2.0

//! A host that uses pages while they are not its own, or not yet its own again.

#![deny(unsafe_code)]

use super::{
    facts::{
        leaf,
        Stage, //
    },
    rig::Rig,
    say,
    write_page, //
};
use crate::{
    ffi,
    memory,
    MODULE, //
};
use kernel::prelude::*;

/// An address in the TD, and the level of its page.
const GPA: u64 = 0;

/// TDH.PHYMEM.PAGE.WBINVD of a page as it was used through an HKID.
fn flush(rig: &mut Rig, page: u64, hkid: u64) -> Result {
    let pa = page | hkid << ffi::phys_bits();
    rig.must(leaf::PHYMEM_PAGE_WBINVD.into(), [pa, 0, 0, 0])?;
    Ok(())
}

/// How many mistakes were found since `before`, and how many pages are not flushed.
fn expect(rig: &mut Rig, about: &str, before: u32, errors: u32, unflushed: u32) {
    let (found, pages) = (memory::host_errors() - before, memory::unflushed_pages());
    if (found, pages) != (errors, unflushed) {
        rig.complain(fmt!(
            "{about}: {found} mistakes instead of {errors}, {pages} pages instead of {unflushed}"
        ));
    }
}

/// Pages come back after they are removed or reclaimed, and then flushed, in this order.
pub(super) fn come_back(rig: &mut Rig) -> Result {
    let hkid = rig.hkid(0);
    let td = rig.td(Stage::Initialized, hkid)?;
    if !memory::is_owned(td.tdr) {
        say(fmt!("pages are not watched"));
        return Ok(());
    }
    rig.tables(&td)?;
    let page = rig.page()?;
    let (source, tdr) = (rig.host_page(1), td.tdr);
    let before = memory::host_errors();
    let add = |rig: &mut Rig| rig.must(leaf::MEM_PAGE_ADD.into(), [GPA, tdr, page, source]);
    let remove = |rig: &mut Rig| rig.must(leaf::MEM_PAGE_REMOVE.into(), [GPA, tdr, 0, 0]);

    add(rig)?;
    remove(rig)?;
    expect(rig, "removed", before, 0, 1);
    flush(rig, page, MODULE.global_hkid().into())?;
    expect(rig, "flushed of another HKID", before, 0, 1);
    flush(rig, page, hkid)?;
    expect(rig, "flushed", before, 0, 0);
    write_page(page, &[1]);
    add(rig)?;
    expect(rig, "given away again, written to before", before, 0, 0);

    remove(rig)?;
    write_page(page, &[2]);
    flush(rig, page, hkid)?;
    expect(rig, "written to, then flushed", before, 1, 0);

    add(rig)?;
    remove(rig)?;
    add(rig)?;
    expect(rig, "given away, not flushed", before, 2, 0);

    write_page(page, &[3]);
    remove(rig)?;
    expect(rig, "written to, then removed", before, 3, 1);

    // All that is left comes back by TDH.PHYMEM.CACHE.WB, but for the TDR.
    rig.clean()?;
    expect(rig, "the TD is gone", before, 3, 0);
    Ok(())
}
