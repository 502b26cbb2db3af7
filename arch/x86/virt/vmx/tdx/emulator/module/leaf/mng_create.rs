// SPDX-License-Identifier: GPL-2.0

//! TDH.MNG.CREATE: create a TD.

use super::prelude::*;
use crate::module::{
    address::PAGE_SIZE,
    keys::KotState,
    pamt::{
        self,
        PageType, //
    },
    td::{
        LifeCycle,
        Td,
        TdrField, //
    },
};

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 9,
    name: "MNG.CREATE",
    locks: &[
        LeafLock::exclusive(LockOf::PageRcx, Operand::Rcx),
        LeafLock::exclusive(LockOf::Kot, Operand::Kot),
    ],
    operands: &[("RCX", "page to give, free"), ("RDX", "HKID")],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rdx]),
        Answer::Page(Operand::Rcx),
        Answer::Plain(Status::HKID_NOT_FREE),
        Answer::Plain(Status::RND_NO_ENTROPY),
    ],
    ..LeafInfo::NEW
};

const PAGE: LeafLock = INFO.lock(LockOf::PageRcx);

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let tdr = regs.rcx;
    let hkid = regs.rdx as u16;

    if regs.rdx >> 16 != 0 || !address::is_private_hkid(platform, hkid) {
        return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
    }
    let page = pamt::lock_free(call, tdr, &PAGE, 0)?;
    module.kot.lock(call, LockMode::Exclusive)?;
    if module.kot.get(hkid).state != KotState::Free {
        return Err(Status::HKID_NOT_FREE);
    }

    platform.fill(tdr, PAGE_SIZE, 0);
    for word in 0..4u64 {
        let random = platform.random64().ok_or(Status::RND_NO_ENTROPY)?;
        let uuid = tdr.wrapping_add(TdrField::Uuid as u64);
        platform.write64(uuid.wrapping_add(word.wrapping_mul(8)), random);
    }
    let td = Td::new(call, tdr);
    td.set(TdrField::LifeCycle, LifeCycle::HkidAssigned as u64);
    td.set(TdrField::Hkid, u64::from(hkid));
    module.kot.set(hkid, KotState::Assigned, 0);
    page.assign(PageType::Tdr, 0);
    module.list_td(tdr);
    Ok(())
}
