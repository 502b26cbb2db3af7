// SPDX-License-Identifier: GPL-2.0

//! Random calls, held against a small model of the life cycles and of who owns which page.

use proptest::prelude::*;
use std::collections::BTreeMap;
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        FIRST_PAGE,
        HOST_PAGE,
        VERSION_1, //
    },
    machine::Machine,
    module::{
        Operand,
        PageType,
        Status,
        PROFILE_1_5_05, //
    },
};

/// The number of pages that calls name.
const POOL: usize = 48;

fn pa(page: usize) -> u64 {
    FIRST_PAGE + 0x1000 * page as u64
}

/// Which page or GPA a call names: the one that fits, among those that do, or just any.
#[derive(Clone, Copy, Debug)]
struct Pick {
    fitting: bool,
    number: usize,
}

fn pick() -> impl Strategy<Value = Pick> {
    (prop::bool::weighted(0.93), 0..1000usize)
        .prop_map(|(fitting, number)| Pick { fitting, number })
}

#[derive(Clone, Copy, Debug)]
enum Call {
    Create,
    KeyConfig,
    AddCx,
    Init,
    VpCreate,
    VpAddCx,
    VpInit,
    VpFlush,
    SeptAdd,
    PageAdd,
    PageAug,
    Block,
    Unblock,
    Track,
    Remove,
    SeptRemove,
    Finalize,
    VpFlushDone,
    CacheWb,
    FreeId,
    Reclaim,
}

fn call() -> impl Strategy<Value = Call> {
    prop_oneof![
        3 => Just(Call::Create),
        3 => Just(Call::KeyConfig),
        12 => Just(Call::AddCx),
        3 => Just(Call::Init),
        3 => Just(Call::VpCreate),
        10 => Just(Call::VpAddCx),
        3 => Just(Call::VpInit),
        2 => Just(Call::VpFlush),
        6 => Just(Call::SeptAdd),
        6 => Just(Call::PageAdd),
        6 => Just(Call::PageAug),
        4 => Just(Call::Block),
        4 => Just(Call::Unblock),
        3 => Just(Call::Track),
        4 => Just(Call::Remove),
        1 => Just(Call::SeptRemove),
        2 => Just(Call::Finalize),
        1 => Just(Call::VpFlushDone),
        2 => Just(Call::CacheWb),
        2 => Just(Call::FreeId),
        10 => Just(Call::Reclaim),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaf {
    Mapped,
    Pending,
    /// Since that epoch, after it was accepted or not.
    Blocked {
        epoch: u64,
        accepted: bool,
    },
}

#[derive(Debug, Default)]
struct Td {
    hkid: u64,
    life_cycle: u64,
    control_pages: u64,
    /// Uninitialised, initialised, runnable.
    op_state: u64,
    vcpus: u64,
    associated: u64,
    children: u64,
    epoch: u64,
    /// The tables, by the level of the entry that points to them and what they cover.
    tables: BTreeMap<(u64, u64), usize>,
    leaves: BTreeMap<u64, (Leaf, usize)>,
}

impl Td {
    /// Whether no vCPU can still use what was blocked in that epoch.
    fn tracked(&self, epoch: u64) -> Expected {
        if self.op_state == 2 && epoch >= self.epoch {
            return Err(Status::TLB_TRACKING_NOT_DONE.on(Operand::Rcx));
        }
        Ok(())
    }
}

#[derive(Debug)]
struct Vcpu {
    td: usize,
    pages: u64,
    ready: bool,
    associated: bool,
}

#[derive(Default)]
struct Model {
    pages: BTreeMap<usize, (PageType, usize)>,
    tds: BTreeMap<usize, Td>,
    vcpus: BTreeMap<usize, Vcpu>,
    hkids: BTreeMap<u64, bool>,
    next_id: u64,
}

type Expected = Result<(), Status>;

impl Model {
    fn is(&self, page: usize, page_type: PageType) -> bool {
        self.pages.get(&page).map(|(found, _)| *found) == Some(page_type)
    }

    fn free(&self, page: usize, operand: Operand) -> Expected {
        if self.pages.contains_key(&page) {
            return Err(Status::PAGE_METADATA_INCORRECT.on(operand));
        }
        Ok(())
    }

    fn expect(&self, page: usize, page_type: PageType, operand: Operand) -> Expected {
        if !self.is(page, page_type) {
            return Err(Status::PAGE_METADATA_INCORRECT.on(operand));
        }
        Ok(())
    }

    /// Chooses a page: one of those that fit, or any.
    fn page(&self, pick: Pick, fits: impl Fn(usize) -> bool) -> usize {
        let fitting: Vec<_> = (0..POOL).filter(|page| fits(*page)).collect();
        match fitting.len() {
            0 => pick.number % POOL,
            _ if !pick.fitting => pick.number % POOL,
            count => fitting[pick.number % count],
        }
    }

    fn free_page(&self, pick: Pick) -> usize {
        self.page(pick, |page| !self.pages.contains_key(&page))
    }

    fn td_page(&self, pick: Pick, fits: impl Fn(&Td) -> bool) -> usize {
        self.page(pick, |page| self.tds.get(&page).is_some_and(&fits))
    }

    fn vcpu_page(&self, pick: Pick, fits: impl Fn(&Vcpu) -> bool) -> usize {
        self.page(pick, |page| self.vcpus.get(&page).is_some_and(&fits))
    }

    /// The checks that most leaves of a TD begin with.
    fn state(&self, tdr: usize, operand: Operand, allowed: &[u64]) -> Expected {
        self.expect(tdr, PageType::Tdr, operand)?;
        self.owner_state(tdr, allowed)
    }

    fn owner_state(&self, tdr: usize, allowed: &[u64]) -> Expected {
        let td = &self.tds[&tdr];
        if td.life_cycle != 1 {
            return Err(Status::TD_KEYS_NOT_CONFIGURED);
        }
        if td.control_pages < 6 {
            return Err(Status::TDCS_NOT_ALLOCATED);
        }
        if !allowed.contains(&td.op_state) {
            return Err(Status::OP_STATE_INCORRECT);
        }
        Ok(())
    }

    fn walk(&self, tdr: usize, gpa: u64, level: u64) -> Expected {
        let reached = (level + 1..=3).all(|above| {
            self.tds[&tdr]
                .tables
                .contains_key(&(above, covered(gpa, above)))
        });
        if !reached {
            return Err(Status::EPT_WALK_FAILED.on(Operand::Rcx));
        }
        Ok(())
    }

    fn take(&mut self, page: usize, page_type: PageType, tdr: usize) {
        self.pages.insert(page, (page_type, tdr));
        if page_type != PageType::Tdr {
            self.tds.get_mut(&tdr).unwrap().children += 1;
        }
    }

    fn give_back(&mut self, page: usize) {
        let (page_type, tdr) = self.pages.remove(&page).unwrap();
        if page_type == PageType::Tdr {
            self.tds.remove(&page);
        } else {
            self.tds.get_mut(&tdr).unwrap().children -= 1;
        }
        self.vcpus.remove(&page);
    }

    /// Makes a call of the module's and says what it must answer. Changes the model if it succeeds.
    fn call(&mut self, call: Call, picks: [Pick; 3]) -> (u64, Vec<u64>, Expected) {
        let [first, second, third] = picks;
        let state = Status::EPT_ENTRY_STATE_INCORRECT.on(Operand::Rcx);
        match call {
            Call::Create => {
                let page = self.free_page(first);
                let hkid = 33 + (second.number % 3) as u64;
                let expected = self.free(page, Operand::Rcx).and_then(|()| {
                    match self.hkids.contains_key(&hkid) {
                        true => Err(Status::HKID_NOT_FREE),
                        false => Ok(()),
                    }
                });
                if expected.is_ok() {
                    self.hkids.insert(hkid, false);
                    self.pages.insert(page, (PageType::Tdr, page));
                    let td = Td {
                        hkid,
                        ..Td::default()
                    };
                    self.tds.insert(page, td);
                }
                (leaf::MNG_CREATE, vec![pa(page), hkid], expected)
            }
            Call::KeyConfig => {
                let tdr = self.td_page(first, |td| td.life_cycle == 0);
                let expected = self
                    .expect(tdr, PageType::Tdr, Operand::Rcx)
                    .and_then(|()| match self.tds[&tdr].life_cycle {
                        0 => Ok(()),
                        _ => Err(Status::LIFECYCLE_STATE_INCORRECT),
                    });
                if expected.is_ok() {
                    self.tds.get_mut(&tdr).unwrap().life_cycle = 1;
                }
                (leaf::MNG_KEY_CONFIG, vec![pa(tdr)], expected)
            }
            Call::AddCx => {
                let tdr = self.td_page(first, |td| td.life_cycle == 1 && td.control_pages < 6);
                let page = self.free_page(second);
                let expected = self
                    .expect(tdr, PageType::Tdr, Operand::Rdx)
                    .and_then(|()| {
                        let td = &self.tds[&tdr];
                        if td.life_cycle != 1 {
                            return Err(Status::TD_KEYS_NOT_CONFIGURED);
                        }
                        if td.control_pages >= 9 {
                            return Err(Status::TDCX_NUM_INCORRECT);
                        }
                        if page == tdr {
                            return Err(Status::OPERAND_BUSY.on(Operand::Rcx));
                        }
                        self.free(page, Operand::Rcx)?;
                        match td.control_pages >= 6 && td.op_state != 0 {
                            true => Err(Status::OP_STATE_INCORRECT),
                            false => Ok(()),
                        }
                    });
                if expected.is_ok() {
                    self.take(page, PageType::Tdcx, tdr);
                    self.tds.get_mut(&tdr).unwrap().control_pages += 1;
                }
                (leaf::MNG_ADDCX, vec![pa(page), pa(tdr)], expected)
            }
            Call::Init => {
                let tdr = self.td_page(first, |td| td.control_pages >= 6 && td.op_state == 0);
                let expected = self.state(tdr, Operand::Rcx, &[0]);
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    (td.op_state, td.epoch) = (1, 1);
                }
                (leaf::MNG_INIT, vec![pa(tdr), HOST_PAGE], expected)
            }
            Call::VpCreate => {
                let tdr = self.td_page(first, |td| td.op_state == 1);
                let page = self.free_page(second);
                let expected = self.state(tdr, Operand::Rdx, &[1]).and_then(|()| {
                    if page == tdr {
                        return Err(Status::OPERAND_BUSY.on(Operand::Rcx));
                    }
                    self.free(page, Operand::Rcx)
                });
                if expected.is_ok() {
                    self.take(page, PageType::Tdvpr, tdr);
                    let vcpu = Vcpu {
                        td: tdr,
                        pages: 1,
                        ready: false,
                        associated: false,
                    };
                    self.vcpus.insert(page, vcpu);
                }
                (leaf::VP_CREATE, vec![pa(page), pa(tdr)], expected)
            }
            Call::VpAddCx => {
                let vp = self.vcpu_page(first, |vcpu| vcpu.pages < 6);
                let page = self.free_page(second);
                let expected = self
                    .expect(vp, PageType::Tdvpr, Operand::Rdx)
                    .and_then(|()| {
                        let vcpu = &self.vcpus[&vp];
                        self.owner_state(vcpu.td, &[1])?;
                        if vcpu.ready {
                            return Err(Status::VCPU_STATE_INCORRECT);
                        }
                        if vcpu.pages >= 15 {
                            return Err(Status::TDCX_NUM_INCORRECT);
                        }
                        if page == vp || page == vcpu.td {
                            return Err(Status::OPERAND_BUSY.on(Operand::Rcx));
                        }
                        self.free(page, Operand::Rcx)
                    });
                if expected.is_ok() {
                    self.take(page, PageType::Tdcx, self.vcpus[&vp].td);
                    self.vcpus.get_mut(&vp).unwrap().pages += 1;
                }
                (leaf::VP_ADDCX, vec![pa(page), pa(vp)], expected)
            }
            Call::VpInit => {
                let vp = self.vcpu_page(first, |vcpu| vcpu.pages >= 6 && !vcpu.ready);
                let id = self.next_id;
                self.next_id += 1;
                let expected = self
                    .expect(vp, PageType::Tdvpr, Operand::Rcx)
                    .and_then(|()| {
                        let vcpu = &self.vcpus[&vp];
                        self.owner_state(vcpu.td, &[1])?;
                        if vcpu.pages < 6 {
                            return Err(Status::TDCX_NUM_INCORRECT);
                        }
                        if vcpu.ready {
                            return Err(Status::VCPU_STATE_INCORRECT);
                        }
                        match self.tds[&vcpu.td].vcpus >= 4 {
                            true => Err(Status::MAX_VCPUS_EXCEEDED),
                            false => Ok(()),
                        }
                    });
                if expected.is_ok() {
                    let vcpu = self.vcpus.get_mut(&vp).unwrap();
                    (vcpu.ready, vcpu.associated) = (true, true);
                    let td = self.tds.get_mut(&vcpu.td).unwrap();
                    td.vcpus += 1;
                    td.associated += 1;
                }
                (leaf::VP_INIT | VERSION_1, vec![pa(vp), 0, id], expected)
            }
            Call::VpFlush => {
                let vp = self.vcpu_page(first, |vcpu| vcpu.associated);
                let expected = self
                    .expect(vp, PageType::Tdvpr, Operand::Rcx)
                    .and_then(|()| {
                        let vcpu = &self.vcpus[&vp];
                        if self.tds[&vcpu.td].life_cycle != 1 {
                            return Err(Status::TD_KEYS_NOT_CONFIGURED);
                        }
                        if vcpu.pages < 6 {
                            return Err(Status::TDCX_NUM_INCORRECT);
                        }
                        match vcpu.associated {
                            true => Ok(()),
                            false => Err(Status::VCPU_NOT_ASSOCIATED),
                        }
                    });
                if expected.is_ok() {
                    let vcpu = self.vcpus.get_mut(&vp).unwrap();
                    vcpu.associated = false;
                    self.tds.get_mut(&vcpu.td).unwrap().associated -= 1;
                }
                (leaf::VP_FLUSH, vec![pa(vp)], expected)
            }
            Call::SeptAdd => {
                let tdr = self.td_page(first, |td| td.op_state >= 1);
                let page = self.free_page(second);
                let gpa = gpa(third);
                // The next table that is missing, or any.
                let missing = [3, 2, 1].into_iter().find(|level| {
                    let tables = self.tds.get(&tdr).map(|td| &td.tables);
                    tables
                        .is_some_and(|tables| !tables.contains_key(&(*level, covered(gpa, *level))))
                });
                let level = match missing {
                    Some(level) if third.fitting => level,
                    _ => 1 + third.number as u64 % 3,
                };
                let gpa = covered(gpa, level);
                let expected = self.state(tdr, Operand::Rdx, &[1, 2]).and_then(|()| {
                    self.walk(tdr, gpa, level)?;
                    if self.tds[&tdr].tables.contains_key(&(level, gpa)) {
                        return Err(state);
                    }
                    if page == tdr {
                        return Err(Status::OPERAND_BUSY.on(Operand::R8));
                    }
                    self.free(page, Operand::R8)
                });
                if expected.is_ok() {
                    self.take(page, PageType::Ept, tdr);
                    let td = self.tds.get_mut(&tdr).unwrap();
                    td.tables.insert((level, gpa), page);
                }
                let operands = vec![gpa | level, pa(tdr), pa(page)];
                (leaf::MEM_SEPT_ADD, operands, expected)
            }
            Call::PageAdd | Call::PageAug => {
                let add = matches!(call, Call::PageAdd);
                let tdr = self.td_page(first, |td| !td.tables.is_empty());
                let page = self.free_page(second);
                let gpa = gpa(third);
                let allowed: &[u64] = if add { &[1] } else { &[1, 2] };
                let expected = self.state(tdr, Operand::Rdx, allowed).and_then(|()| {
                    self.walk(tdr, gpa, 0)?;
                    if self.tds[&tdr].leaves.contains_key(&gpa) {
                        return Err(state);
                    }
                    if page == tdr {
                        return Err(Status::OPERAND_BUSY.on(Operand::R8));
                    }
                    self.free(page, Operand::R8)
                });
                if expected.is_ok() {
                    self.take(page, PageType::Reg, tdr);
                    let leaf = if add { Leaf::Mapped } else { Leaf::Pending };
                    let td = self.tds.get_mut(&tdr).unwrap();
                    td.leaves.insert(gpa, (leaf, page));
                }
                let rax = if add {
                    leaf::MEM_PAGE_ADD
                } else {
                    leaf::MEM_PAGE_AUG
                };
                (rax, vec![gpa, pa(tdr), pa(page), HOST_PAGE], expected)
            }
            Call::Block => {
                let tdr = self.td_page(first, |td| !td.leaves.is_empty());
                let gpa = self.known_gpa(tdr, third, |_| true);
                let expected = self.state(tdr, Operand::Rdx, &[1, 2]).and_then(|()| {
                    self.walk(tdr, gpa, 0)?;
                    match self.tds[&tdr].leaves.get(&gpa) {
                        None => Err(state),
                        Some((Leaf::Blocked { .. }, _)) => {
                            Err(Status::GPA_RANGE_ALREADY_BLOCKED.on(Operand::Rcx))
                        }
                        Some(_) => Ok(()),
                    }
                });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    let leaf = &mut td.leaves.get_mut(&gpa).unwrap().0;
                    let accepted = *leaf == Leaf::Mapped;
                    let epoch = td.epoch;
                    *leaf = Leaf::Blocked { epoch, accepted };
                }
                (leaf::MEM_RANGE_BLOCK, vec![gpa, pa(tdr)], expected)
            }
            Call::Unblock => {
                let is_blocked = |(leaf, _): &(Leaf, usize)| matches!(leaf, Leaf::Blocked { .. });
                let tdr = self.td_page(first, |td| td.leaves.values().any(is_blocked));
                let gpa = self.known_gpa(tdr, third, |leaf| matches!(leaf, Leaf::Blocked { .. }));
                let expected = self.state(tdr, Operand::Rdx, &[1, 2]).and_then(|()| {
                    self.walk(tdr, gpa, 0)?;
                    let td = &self.tds[&tdr];
                    match td.leaves.get(&gpa) {
                        Some((Leaf::Blocked { epoch, .. }, _)) => td.tracked(*epoch),
                        _ => Err(state),
                    }
                });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    let leaf = &mut td.leaves.get_mut(&gpa).unwrap().0;
                    let accepted = matches!(leaf, Leaf::Blocked { accepted: true, .. });
                    *leaf = if accepted {
                        Leaf::Mapped
                    } else {
                        Leaf::Pending
                    };
                }
                (leaf::MEM_RANGE_UNBLOCK, vec![gpa, pa(tdr)], expected)
            }
            Call::SeptRemove => {
                let tdr = self.td_page(first, |td| !td.tables.is_empty());
                let level = 1 + second.number as u64 % 3;
                let gpa = covered(gpa(third), level);
                let expected = self.state(tdr, Operand::Rdx, &[1, 2]).and_then(|()| {
                    self.walk(tdr, gpa, level)?;
                    let td = &self.tds[&tdr];
                    if !td.tables.contains_key(&(level, gpa)) {
                        return Err(state);
                    }
                    if td.op_state == 2 {
                        return Err(Status::GPA_RANGE_NOT_BLOCKED.on(Operand::Rcx));
                    }
                    let inside = |other: u64| covered(other, level) == gpa;
                    let lower = td
                        .tables
                        .keys()
                        .any(|(below, at)| *below < level && inside(*at));
                    if lower || level == 1 && td.leaves.keys().any(|at| inside(*at)) {
                        return Err(Status::EPT_PAGE_NOT_FREE.on(Operand::Rcx));
                    }
                    Ok(())
                });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    let page = td.tables.remove(&(level, gpa)).unwrap();
                    self.give_back(page);
                }
                (leaf::MEM_SEPT_REMOVE, vec![gpa | level, pa(tdr)], expected)
            }
            Call::Track => {
                let tdr = self.td_page(first, |td| td.op_state >= 1);
                let expected = self.state(tdr, Operand::Rcx, &[1, 2]);
                if expected.is_ok() {
                    self.tds.get_mut(&tdr).unwrap().epoch += 1;
                }
                (leaf::MEM_TRACK, vec![pa(tdr)], expected)
            }
            Call::Remove => {
                let tdr = self.td_page(first, |td| !td.leaves.is_empty());
                let gpa = self.known_gpa(tdr, third, |_| true);
                let expected = self.state(tdr, Operand::Rdx, &[1, 2]).and_then(|()| {
                    self.walk(tdr, gpa, 0)?;
                    let td = &self.tds[&tdr];
                    let leaf = td.leaves.get(&gpa).ok_or(state)?.0;
                    match leaf {
                        _ if td.op_state == 1 => Ok(()),
                        Leaf::Blocked { epoch, .. } => td.tracked(epoch),
                        _ => Err(Status::GPA_RANGE_NOT_BLOCKED.on(Operand::Rcx)),
                    }
                });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    let (_, page) = td.leaves.remove(&gpa).unwrap();
                    self.give_back(page);
                }
                (leaf::MEM_PAGE_REMOVE, vec![gpa, pa(tdr)], expected)
            }
            Call::Finalize => {
                let tdr = self.td_page(first, |td| td.op_state == 1 && td.vcpus > 0);
                let expected =
                    self.state(tdr, Operand::Rcx, &[1])
                        .and_then(|()| match self.tds[&tdr].vcpus {
                            0 => Err(Status::NO_VCPUS),
                            _ => Ok(()),
                        });
                if expected.is_ok() {
                    self.tds.get_mut(&tdr).unwrap().op_state = 2;
                }
                (leaf::MR_FINALIZE, vec![pa(tdr)], expected)
            }
            Call::VpFlushDone => {
                let tdr = self.td_page(first, |td| td.life_cycle <= 1 && td.associated == 0);
                let expected = self
                    .expect(tdr, PageType::Tdr, Operand::Rcx)
                    .and_then(|()| {
                        let td = &self.tds[&tdr];
                        if td.life_cycle > 1 {
                            return Err(Status::LIFECYCLE_STATE_INCORRECT);
                        }
                        match td.associated {
                            0 => Ok(()),
                            _ => Err(Status::FLUSHVP_NOT_DONE),
                        }
                    });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    td.life_cycle = 2;
                    // Caches are to be written back.
                    self.hkids.insert(td.hkid, true);
                }
                (leaf::MNG_VPFLUSHDONE, vec![pa(tdr)], expected)
            }
            Call::CacheWb => {
                let waiting: Vec<_> = self
                    .tds
                    .values()
                    .filter(|td| td.life_cycle == 2)
                    .map(|td| td.hkid)
                    .collect();
                for hkid in &waiting {
                    self.hkids.insert(*hkid, false);
                }
                let expected = match waiting.len() {
                    0 => Err(Status::NO_HKID_READY_TO_WBCACHE),
                    _ => Ok(()),
                };
                (leaf::PHYMEM_CACHE_WB, vec![0], expected)
            }
            Call::FreeId => {
                let tdr = self.td_page(first, |td| td.life_cycle == 2 && !self.hkids[&td.hkid]);
                let expected = self
                    .expect(tdr, PageType::Tdr, Operand::Rcx)
                    .and_then(|()| {
                        let td = &self.tds[&tdr];
                        if td.life_cycle != 2 {
                            return Err(Status::LIFECYCLE_STATE_INCORRECT);
                        }
                        match self.hkids[&td.hkid] {
                            true => Err(Status::WBCACHE_NOT_COMPLETE),
                            false => Ok(()),
                        }
                    });
                if expected.is_ok() {
                    let td = self.tds.get_mut(&tdr).unwrap();
                    td.life_cycle = 3;
                    self.hkids.remove(&td.hkid);
                }
                (leaf::MNG_KEY_FREEID, vec![pa(tdr)], expected)
            }
            Call::Reclaim => {
                let page = self.page(first, |page| {
                    self.pages.get(&page).is_some_and(|(page_type, tdr)| {
                        let td = &self.tds[tdr];
                        td.life_cycle == 3 && (*page_type != PageType::Tdr || td.children == 0)
                    })
                });
                let expected = match self.pages.get(&page) {
                    None => Err(Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx)),
                    Some((_, tdr)) if self.tds[tdr].life_cycle != 3 => {
                        Err(Status::LIFECYCLE_STATE_INCORRECT)
                    }
                    Some((PageType::Tdr, tdr)) if self.tds[tdr].children != 0 => {
                        Err(Status::TD_ASSOCIATED_PAGES_EXIST)
                    }
                    Some(_) => Ok(()),
                };
                if expected.is_ok() {
                    self.give_back(page);
                }
                (leaf::PHYMEM_PAGE_RECLAIM, vec![pa(page)], expected)
            }
        }
    }

    /// A GPA of the TD that has a page in such a state, or any.
    fn known_gpa(&self, tdr: usize, pick: Pick, fits: impl Fn(Leaf) -> bool) -> u64 {
        let leaves = self.tds.get(&tdr).map(|td| td.leaves.iter());
        let known: Vec<_> = leaves
            .into_iter()
            .flatten()
            .filter(|(_, (leaf, _))| fits(*leaf))
            .map(|(gpa, _)| *gpa)
            .collect();
        match known.len() {
            0 => gpa(pick),
            _ if !pick.fitting => gpa(pick),
            count => known[pick.number % count],
        }
    }

    /// Holds the module's whole state against the model's.
    fn compare(&self, host: &Host) {
        let lp = host.machine.lp(0);
        let mut counts: BTreeMap<u8, u64> = BTreeMap::new();
        for page in 0..POOL {
            let info = host.module.page_info(&lp, pa(page)).unwrap();
            match self.pages.get(&page) {
                None => assert_eq!(info.page_type, PageType::Nda, "page {page}"),
                Some((page_type, tdr)) => {
                    assert_eq!(info.page_type, *page_type, "page {page}");
                    let owner = match page_type {
                        PageType::Tdr => 0,
                        _ => pa(*tdr),
                    };
                    assert_eq!(info.owner, owner, "page {page}");
                    *counts.entry(*page_type as u8).or_default() += 1;
                }
            }
        }
        for page_type in PageType::OWNED {
            let count = counts.get(&(page_type as u8)).copied().unwrap_or(0);
            assert_eq!(host.module.pages(page_type), count, "{}", page_type.name());
        }
        assert_eq!(host.module.hkids_in_use(), self.hkids.len());
        let mut seen = 0;
        host.module.for_each_td(&lp, |info| {
            seen += 1;
            let page = ((info.tdr - FIRST_PAGE) / 0x1000) as usize;
            let td = &self.tds[&page];
            assert_eq!(info.life_cycle as u64, td.life_cycle);
            assert_eq!(info.pages, td.children);
            assert_eq!(info.control_pages, td.control_pages);
            if td.life_cycle == 1 && td.control_pages >= 6 {
                assert_eq!(info.op_state as u64, td.op_state);
                assert_eq!(info.vcpus, td.vcpus);
                assert_eq!(info.associated_vcpus, td.associated);
                assert_eq!(info.epoch, td.epoch);
            }
        });
        assert_eq!(seen, self.tds.len());
        let initialized = |(_, td): &(&usize, &Td)| td.life_cycle == 1 && td.op_state >= 1;
        for (tdr, td) in self.tds.iter().filter(initialized) {
            for (gpa, (leaf, page)) in &td.leaves {
                let entry = host.ok(leaf::MEM_SEPT_RD, &[*gpa, pa(*tdr)]);
                let code = match leaf {
                    Leaf::Mapped => 4,
                    Leaf::Pending => 2,
                    Leaf::Blocked { accepted: true, .. } => 1,
                    Leaf::Blocked { .. } => 3,
                };
                assert_eq!(entry.rdx, code << 8, "GPA {gpa:#x}");
                assert_eq!(entry.rcx & 0xf_ffff_ffff_f000, pa(*page), "GPA {gpa:#x}");
            }
        }
        for (page, vcpu) in &self.vcpus {
            let info = host.module.vcpu_info(&lp, pa(*page)).unwrap();
            if self.tds[&vcpu.td].life_cycle == 1 {
                assert_eq!(info.pages, vcpu.pages);
                assert_eq!(info.associated_lp.is_some(), vcpu.associated);
            }
        }
    }
}

/// What an entry of that level covers.
fn covered(gpa: u64, level: u64) -> u64 {
    gpa >> (12 + 9 * level) << (12 + 9 * level)
}

fn gpa(pick: Pick) -> u64 {
    let number = pick.number as u64;
    number % 5 * 0x1000 + number / 5 % 2 * 0x20_0000
}

/// Effects that the real module has although the call fails.
fn leaves_traces(rax: u64, status: Status) -> bool {
    status == Status::OP_STATE_INCORRECT && rax == leaf::MNG_ADDCX
        || status.raw() >> 32 == 0x8000_0200
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 24,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn calls_do_what_the_model_says(
        calls in prop::collection::vec((call(), [pick(), pick(), pick()]), 1..400)
    ) {
        let host = Host::start(&PROFILE_1_5_05);
        host.write_td_params();
        let mut model = Model::default();
        let mut successes = 0;
        for (call, picks) in calls {
            let (rax, operands, expected) = model.call(call, picks);
            let before = host.memory();
            host.machine.take_events();
            let (status, _) = host.call(rax, &operands);
            let expected_raw = expected.err().map_or(0, Status::raw);
            prop_assert_eq!(status, expected_raw, "{:?} {:x?}", call, operands);
            let held = Machine::held_locks(&host.machine.take_events());
            prop_assert!(held.is_empty(), "{:?} keeps {:?}", call, held);
            match expected {
                Err(status) if !leaves_traces(rax, status) => {
                    let same = host.memory() == before;
                    prop_assert!(same, "{:?} failed and changed memory", call);
                }
                Err(_) => {}
                Ok(()) => successes += 1,
            }
            model.compare(&host);
        }
        let _ = successes;
    }
}
