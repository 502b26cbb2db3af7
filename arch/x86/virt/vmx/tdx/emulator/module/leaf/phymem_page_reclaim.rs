// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.PAGE.RECLAIM: take a page of a TD that is torn down.

use super::prelude::*;
use crate::module::{
    pamt::{
        self,
        PageType, //
    },
    td::{
        LifeCycle,
        LockedTd,
        Td,
        TdrField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 28,
    name: "PHYMEM.PAGE.RECLAIM",
    locks: &[
        LeafLock::exclusive(LockOf::PageRcx, Operand::Rcx),
        LeafLock::shared(LockOf::Tdr, Operand::Tdr),
    ],
    operands: &[("RCX", "page")],
    results: &[
        ("RCX", "type"),
        ("RDX", "owner"),
        ("R8", "level"),
        ("R9, R10, R11", "0"),
    ],
    answers: &[
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::LIFECYCLE_STATE_INCORRECT),
        Answer::Plain(Status::TD_ASSOCIATED_PAGES_EXIST),
    ],
    ..LeafInfo::NEW
};

const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);
const TDR: LeafLock = INFO.lock(LockOf::Tdr);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let pa = regs.take_page();

    let page = pamt::lock_any(call, pa, &PAGE)?;
    let page_type = match page.page_type() {
        None | Some(PageType::Nda | PageType::Rsvd) => {
            return Err(Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx));
        }
        Some(page_type) => page_type,
    };
    regs.rcx = page_type as u64;
    regs.rdx = page.owner();
    regs.r8 = u64::from(page.level);
    if page.pa != page.base() {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }

    if page_type == PageType::Tdr {
        let td = Td::new(call, page.pa);
        check_teardown(&td)?;
        if td.get(TdrField::Children) != 0 {
            return Err(Status::TD_ASSOCIATED_PAGES_EXIST);
        }
        call.module.unlist_td(td.tdr);
        page.free(Some(call.module.global_hkid()));
    } else {
        let td = LockedTd::lock_owner(call, page.owner(), &TDR)?;
        check_teardown(&td)?;
        // The TD's HKID could not be freed before all caches were written back.
        td.give_back(&page, None);
    }
    Ok(())
}

fn check_teardown<P: Platform>(td: &Td<'_, P>) -> LeafResult {
    if td.life_cycle() != LifeCycle::Teardown {
        return Err(Status::LIFECYCLE_STATE_INCORRECT);
    }
    Ok(())
}
