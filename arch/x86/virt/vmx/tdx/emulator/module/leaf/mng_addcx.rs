// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.ADDCX: give a TD a page for its control structure.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    pamt::{
        self,
        PageType, //
    },
    sept,
    td::{
        LifeCycle,
        LockedTd,
        OpState,
        TdrField,
        BASE_TDCS_PAGES,
        MAX_TDCS_PAGES,
        TDCS_MSR_BITMAPS,
        TDCS_SEPT_ROOT, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 1,
    name: "MNG.ADDCX",
    locks: &[
        LeafLock::exclusive(LockOf::Tdr, Operand::Rdx),
        LeafLock::exclusive(LockOf::PageRcx, Operand::Rcx),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "TDR")],
    answers: &[
        Answer::Page(Operand::Rdx),
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::RND_NO_ENTROPY),
        Answer::Plain(Status::OP_STATE_INCORRECT),
    ],
    ..LeafInfo::NEW
};

const TDR: LeafLock = INFO.lock(LockOf::Tdr);
const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let platform = call.platform;

    let td = LockedTd::lock(call, regs.rdx, &TDR)?;
    if td.is_fatal() {
        return Err(Status::TD_FATAL);
    }
    if td.life_cycle() != LifeCycle::KeysConfigured {
        return Err(Status::TD_KEYS_NOT_CONFIGURED);
    }
    let index = td.get(TdrField::NumTdcx);
    if index >= MAX_TDCS_PAGES {
        return Err(Status::TDCX_NUM_INCORRECT);
    }
    let page = pamt::lock_free(call, regs.rcx, &PAGE, 0)?;

    // The page is filled before the last checks, as the real module does it.
    match index {
        TDCS_MSR_BITMAPS => platform.fill(page.pa, PAGE_SIZE, 0xff),
        TDCS_SEPT_ROOT => sept::fill_free(platform, page.pa),
        _ => platform.fill(page.pa, PAGE_SIZE, 0),
    }
    if index.wrapping_add(1) == BASE_TDCS_PAGES {
        platform.random64().ok_or(Status::RND_NO_ENTROPY)?;
    }
    if let Some(tdcs) = td.tdcs() {
        tdcs.check_op_state(OpState::Uninitialized.bit())?;
    }

    td.add_tdcs_page(page.pa);
    td.adopt(&page, PageType::Tdcx);
    Ok(())
}
