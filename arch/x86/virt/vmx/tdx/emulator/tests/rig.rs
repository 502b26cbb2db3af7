// SPDX-License-Identifier: GPL-2.0

//! Two CPUs, memory, and TDs of which each pair of leaves gets a new one.

#![deny(unsafe_code)]

use super::{
    facts::{
        self,
        leaf,
        Row,
        Stage,
        Want,
        What, //
    },
    say,
    write_page,
    Answer,
    Call,
    Memory,
    StartedCall, //
};
use crate::{
    ffi,
    machine::Machine,
    memory,
    module::{
        LeafInfo,
        Lock,
        LockMode,
        Module,
        Operand,
        PageType,
        Platform,
        Status,
        SysState,
        PROFILE_1_5_05_SHARED, //
    },
    show::Text,
    MODULE, //
};
use core::fmt::Write;
use kernel::{
    fmt,
    prelude::*, //
};

/// Enough for two TDs with two tables, three vCPUs and a few pages each.
const PAGES: usize = 112;
/// The first TDMR of a PC.
const TDMR_BASE: u64 = 0;
/// Version 1 of a leaf.
const VERSION_1: u64 = 1 << 16;
/// A field of the module, one of the TDCS, and one of the VMCS.
const MAJOR_VERSION: u64 = 0x0800_0001_0000_0004;
const TSC_MULTIPLIER: u64 = 0x1100_0000_0000_000b;
const NOTIFY_WINDOW: u64 = 0x4024;
/// The bits of a Secure EPT entry that are its lock, and the mark of a host that waits for it.
const ENTRY_LOCK: u64 = 1 << 11;
pub(super) const ENTRY_HOST_PRIORITY: u64 = 1 << 52;

/// What two leaves have in common, apart from the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The TD.
    SameTd,
    /// The TD and the vCPU.
    SameVcpu,
    /// The TD and the address in it.
    SameGpa,
    /// The TD and the page.
    SamePage,
    /// Nothing: each has a TD of its own.
    OtherTd,
}

/// Who calls a leaf.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The other CPU, whose leaf holds its locks.
    Holder = 0,
    /// This CPU.
    Contender = 1,
}

/// A TD.
#[derive(Clone, Copy)]
pub(super) struct Td {
    pub(super) tdr: u64,
    /// A page of its TDCS for each role.
    children: [u64; 2],
}

/// A call that is ready to be made.
#[derive(Clone, Copy)]
pub(super) struct Prepared {
    leaf: u16,
    rax: u64,
    operands: [u64; 4],
    // What it may lock, 0 for what it does not come to.
    tdr: u64,
    tdvpr: u64,
    page: u64,
    /// The address in the TD and the level, as RCX has it.
    gpa: Option<u64>,
    /// Whether the TD is in one of the leaf's states.
    right_state: bool,
}

/// What a lock is of.
type Object = (What, u64, u64);

impl Prepared {
    /// What a lock of this call is of. All locks of pages are alike.
    fn object(&self, what: What) -> Option<Object> {
        let of_page = |pa: u64| (pa != 0).then_some((What::Page, pa, 0));
        let of_td = (self.tdr != 0).then_some((what, self.tdr, 0));
        match what {
            What::Tdr => of_page(self.tdr),
            What::Tdvpr => of_page(self.tdvpr),
            What::Page => of_page(self.page),
            What::OpState | What::Tree | What::Epoch => of_td,
            What::Entry => self.gpa.map(|gpa| (what, self.tdr, gpa)),
            What::Kot | What::WriteBack | What::Tdmr | What::Global => Some((what, 0, 0)),
        }
    }

    fn wants(&self, shared_vp_init: bool) -> impl Iterator<Item = Want> + '_ {
        Row::of(self.leaf)
            .into_iter()
            .flat_map(move |row| row.locks(self.right_state, shared_vp_init))
    }

    /// The lock that this call cannot have while the other one holds all of its own.
    fn conflict(&self, holder: &Prepared, shared_vp_init: bool) -> Option<Want> {
        self.wants(shared_vp_init).find(|want| {
            let object = self.object(want.0);
            object.is_some()
                && holder.wants(shared_vp_init).any(|held| {
                    let exclusive = want.1 == LockMode::Exclusive || held.1 == LockMode::Exclusive;
                    exclusive && holder.object(held.0) == object
                })
        })
    }
}

/// What the tests need.
pub(super) struct Rig {
    other_cpu: u32,
    memory: Memory<PAGES>,
    used: usize,
    x2apic_id: u64,
    /// TDH.VP.INIT of several vCPUs of a TD can run at once.
    pub(super) shared_vp_init: bool,
    /// How many things were not as they should be.
    pub(super) wrong: u32,
    /// How many pairs were tried, and how many of them were in each other's way.
    pub(super) pairs: u32,
    pub(super) conflicts: u32,
}

impl Rig {
    /// Prepares CPUs and memory; [`None`] if there is no module that is ready.
    pub(super) fn new() -> Result<Option<Self>> {
        if MODULE.sys_state() != SysState::Ready {
            return Ok(None);
        }
        let Some(other_cpu) = super::begin() else {
            return Ok(None);
        };
        let rig = Self {
            other_cpu,
            memory: Memory::new()?,
            used: 0,
            x2apic_id: 0,
            shared_vp_init: MODULE.profile().name == PROFILE_1_5_05_SHARED.name,
            wrong: 0,
            pairs: 0,
            conflicts: 0,
        };
        rig.write_td_params();
        Ok(Some(rig))
    }

    /// A page of the host's that stays its own.
    pub(super) fn host_page(&self, index: usize) -> u64 {
        self.memory.host.get(index).copied().unwrap_or(0)
    }

    /// Parameters for TDH.MNG.INIT.
    fn write_td_params(&self) {
        // XFAM, MAX_VCPUS, EPTP_CONTROLS (four levels, write-back), TSC_FREQUENCY in 25 MHz.
        write_page(self.host_page(0), &[0, 3, 16, 0x1e, 0, 40]);
    }

    /// A page that the module may have.
    pub(super) fn page(&mut self) -> Result<u64> {
        let page = self.memory.pages.get(self.used).copied().ok_or(ENOMEM)?;
        self.used += 1;
        Ok(page)
    }

    /// Notes that something is not as it should be.
    pub(super) fn complain(&mut self, what: fmt::Arguments<'_>) {
        self.wrong += 1;
        if self.wrong <= 40 {
            say(what);
        }
    }

    /// Notes it if a status is not the one that was expected.
    pub(super) fn expect(&mut self, about: &str, got: Status, expected: Status) {
        if got != expected {
            let (got, expected) = (got.raw(), expected.raw());
            self.complain(fmt!("{about}: {got:#x} instead of {expected:#x}"));
        }
    }

    /// Makes a call on this CPU.
    pub(super) fn call(&self, rax: u64, operands: [u64; 4]) -> Answer {
        Call::new(rax, operands).make()
    }

    /// Makes a call on this CPU that has to succeed.
    pub(super) fn must(&mut self, rax: u64, operands: [u64; 4]) -> Result<Answer> {
        let answer = Call::new(rax, operands).make();
        self.succeeded(rax, answer)
    }

    fn succeeded(&mut self, rax: u64, answer: Answer) -> Result<Answer> {
        if answer.status.is_success() {
            return Ok(answer);
        }
        let name = name(rax as u16);
        self.complain(fmt!("{name} failed: {:#x}", answer.status.raw()));
        Err(EIO)
    }

    /// Makes a call on the CPU of a role.
    fn call_as(&self, role: Role, rax: u64, operands: [u64; 4]) -> Result<Answer> {
        let call = Call::new(rax, operands);
        match role {
            Role::Contender => Ok(call.make()),
            Role::Holder => call.start_on(self.other_cpu)?.finish(),
        }
    }

    /// Makes a call without operands on both CPUs, which has to succeed.
    pub(super) fn must_on_both(&mut self, rax: u64) -> Result {
        for role in [Role::Contender, Role::Holder] {
            let answer = self.call_as(role, rax, [0; 4])?;
            self.succeeded(rax, answer)?;
        }
        Ok(())
    }

    /// Takes a TD to a stage short of being runnable.
    pub(super) fn td(&mut self, stage: Stage, hkid: u64) -> Result<Td> {
        let mut td = Td {
            tdr: 0,
            children: [0; 2],
        };
        if stage == Stage::Nothing {
            return Ok(td);
        }
        td.tdr = self.page()?;
        self.must(leaf::MNG_CREATE.into(), [td.tdr, hkid, 0, 0])?;
        if stage == Stage::Assigned {
            return Ok(td);
        }
        self.must(leaf::MNG_KEY_CONFIG.into(), [td.tdr, 0, 0, 0])?;
        for index in 0..6 {
            let page = self.page()?;
            self.must(leaf::MNG_ADDCX.into(), [page, td.tdr, 0, 0])?;
            if let Some(child) = td.children.get_mut(index) {
                *child = page;
            }
        }
        match stage {
            Stage::Initialized | Stage::Runnable => {
                let params = self.host_page(0);
                self.must(leaf::MNG_INIT.into(), [td.tdr, params, 0, 0])?;
                self.vcpu(&td, Role::Contender, 6, true)?;
            }
            Stage::Blocked | Stage::Teardown => {
                self.must(leaf::MNG_VPFLUSHDONE.into(), [td.tdr, 0, 0, 0])?;
                self.must(leaf::PHYMEM_CACHE_WB.into(), [0; 4])?;
                if stage == Stage::Teardown {
                    self.must(leaf::MNG_KEY_FREEID.into(), [td.tdr, 0, 0, 0])?;
                }
            }
            _ => {}
        }
        Ok(td)
    }

    /// Adds a vCPU of so many pages, and initialises it on the CPU of a role if wanted.
    fn vcpu(&mut self, td: &Td, role: Role, pages: usize, init: bool) -> Result<u64> {
        let tdvpr = self.page()?;
        self.must(leaf::VP_CREATE.into(), [tdvpr, td.tdr, 0, 0])?;
        for _ in 1..pages {
            let page = self.page()?;
            self.must(leaf::VP_ADDCX.into(), [page, tdvpr, 0, 0])?;
        }
        if init {
            let rax = u64::from(leaf::VP_INIT) | VERSION_1;
            let id = self.next_id();
            let answer = self.call_as(role, rax, [tdvpr, 0, id, 0])?;
            self.succeeded(rax, answer)?;
        }
        Ok(tdvpr)
    }

    fn next_id(&mut self) -> u64 {
        self.x2apic_id += 1;
        self.x2apic_id
    }

    /// Adds the Secure EPT tables of the first 2 MiB, if the TD does not have them.
    pub(super) fn tables(&mut self, td: &Td) -> Result {
        if MODULE
            .sept_entry_lock(&Machine::onlooker(), td.tdr, 0, 0)
            .is_some()
        {
            return Ok(());
        }
        for level in [3, 2, 1] {
            let page = self.page()?;
            self.must(leaf::MEM_SEPT_ADD.into(), [level, td.tdr, page, 0])?;
        }
        Ok(())
    }

    /// Makes a call of a leaf ready, with all that it needs to do what it is for if the TD is in
    /// the right stage. The TD still is initialised where it will be runnable.
    fn prepare(
        &mut self,
        leaf: u16,
        td: &Td,
        stage: Stage,
        role: Role,
        beside: Option<(Relation, &Prepared)>,
    ) -> Result<Prepared> {
        let index = role as u64 + 1;
        let running = matches!(stage, Stage::Initialized | Stage::Runnable);
        let stages = facts::stages(leaf);
        let same = |relation: Relation| {
            let with = beside.filter(|(with, _)| *with == relation);
            with.map(|(_, holder)| *holder)
        };
        let mut call = Prepared {
            leaf,
            rax: leaf.into(),
            operands: [0; 4],
            tdr: td.tdr,
            tdvpr: 0,
            page: 0,
            gpa: None,
            right_state: stages.is_empty() || stages.contains(&stage),
        };

        // The page to be added, or looked at.
        let new_page = match same(Relation::SamePage) {
            Some(holder) => holder.page,
            None => self.page()?,
        };
        if facts::is_about_vcpu(leaf) {
            call.tdvpr = match same(Relation::SameVcpu) {
                Some(holder) => holder.tdvpr,
                None if !running => {
                    call.tdr = 0;
                    self.page()?
                }
                None => match leaf {
                    leaf::VP_ADDCX => self.vcpu(td, role, 1, false)?,
                    leaf::VP_INIT => self.vcpu(td, role, 6, false)?,
                    _ => self.vcpu(td, role, 6, true)?,
                },
            };
        }
        // An address for each leaf and role that nobody has used.
        let own_gpa = match leaf {
            leaf::MEM_SEPT_ADD => index << 21 | 1,
            leaf::MEM_PAGE_ADD | leaf::MEM_PAGE_AUG => index << 12,
            leaf::MEM_RANGE_BLOCK | leaf::MEM_PAGE_REMOVE => index << 14,
            _ => index << 16,
        };
        let gpa = match same(Relation::SameGpa) {
            Some(holder) => holder.gpa.unwrap_or(own_gpa),
            None => own_gpa,
        };
        let own_mapping = running && gpa == own_gpa;

        call.operands = match leaf {
            leaf::MNG_CREATE => {
                call.tdr = 0;
                call.page = new_page;
                [new_page, self.hkid(1 + index), 0, 0]
            }
            leaf::MNG_ADDCX => {
                call.page = new_page;
                [new_page, td.tdr, 0, 0]
            }
            leaf::MNG_INIT => [td.tdr, self.host_page(0), 0, 0],
            leaf::MNG_RD => [td.tdr, TSC_MULTIPLIER, 0, 0],
            leaf::MNG_KEY_CONFIG
            | leaf::MNG_VPFLUSHDONE
            | leaf::MNG_KEY_FREEID
            | leaf::MEM_TRACK
            | leaf::MR_FINALIZE => [td.tdr, 0, 0, 0],
            leaf::VP_CREATE => {
                call.page = new_page;
                [new_page, td.tdr, 0, 0]
            }
            leaf::VP_ADDCX => {
                call.page = new_page;
                [new_page, call.tdvpr, 0, 0]
            }
            leaf::VP_INIT => {
                call.rax |= VERSION_1;
                [call.tdvpr, 0, self.next_id(), 0]
            }
            leaf::VP_FLUSH | leaf::VP_ENTER => [call.tdvpr, 0, 0, 0],
            leaf::VP_RD => [call.tdvpr, NOTIFY_WINDOW, 0, 0],
            leaf::VP_WR => [call.tdvpr, NOTIFY_WINDOW, 1, u64::MAX],
            leaf::MEM_SEPT_ADD | leaf::MEM_PAGE_ADD | leaf::MEM_PAGE_AUG => {
                if running {
                    self.tables(td)?;
                }
                call.page = new_page;
                call.gpa = Some(gpa);
                [gpa, td.tdr, new_page, self.host_page(1)]
            }
            leaf::MEM_RANGE_BLOCK | leaf::MEM_PAGE_REMOVE => {
                call.gpa = Some(gpa);
                if own_mapping {
                    self.tables(td)?;
                    self.must(leaf::MEM_PAGE_AUG.into(), [gpa, td.tdr, new_page, 0])?;
                    if leaf == leaf::MEM_PAGE_REMOVE {
                        call.page = new_page;
                        if stage == Stage::Runnable {
                            self.must(leaf::MEM_RANGE_BLOCK.into(), [gpa, td.tdr, 0, 0])?;
                            self.must(leaf::MEM_TRACK.into(), [td.tdr, 0, 0, 0])?;
                        }
                    }
                }
                [gpa, td.tdr, 0, 0]
            }
            leaf::MR_EXTEND => {
                if running {
                    self.tables(td)?;
                    let source = self.host_page(1);
                    self.must(leaf::MEM_PAGE_ADD.into(), [gpa, td.tdr, new_page, source])?;
                }
                [gpa, td.tdr, 0, 0]
            }
            leaf::PHYMEM_PAGE_RDMD | leaf::PHYMEM_PAGE_WBINVD => {
                call.tdr = 0;
                call.page = new_page;
                [new_page, 0, 0, 0]
            }
            leaf::PHYMEM_PAGE_RECLAIM => {
                call.page = td.children.get(role as usize).copied().unwrap_or(0);
                if call.page == 0 {
                    // The TD has no page but its TDR.
                    (call.page, call.tdr) = (td.tdr, 0);
                }
                [call.page, 0, 0, 0]
            }
            leaf::SYS_RD => [0, MAJOR_VERSION, 0, 0],
            leaf::SYS_TDMR_INIT => [TDMR_BASE, 0, 0, 0],
            _ => [0; 4],
        };
        Ok(call)
    }

    /// An HKID that Linux has not given to anybody: from the last one downwards.
    pub(super) fn hkid(&self, index: u64) -> u64 {
        let keys = Machine::onlooker().keys();
        u64::from(keys.mktme_keys) + u64::from(keys.tdx_keys) - index
    }

    /// All that can be seen of what the pages of the current pair are used for.
    fn fingerprint(&self, calls: [&Prepared; 2]) -> u64 {
        let machine = Machine::onlooker();
        let mut hash = 0u64;
        let mut add = |value: u64| {
            hash = (hash.rotate_left(5) ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        };
        for &pa in self.memory.pages.iter().take(self.used) {
            let Some(page) = MODULE.page_info(&machine, pa) else {
                continue;
            };
            add(page.page_type as u64);
            add(page.owner | u64::from(page.level));
            if let Some(td) = MODULE.td_info(&machine, pa) {
                add(td.life_cycle as u64);
                add(td.op_state as u64);
                add(td.vcpus);
                add(td.associated_vcpus);
                add(td.pages);
                add(td.control_pages);
                add(td.epoch);
            }
            if let Some(vcpu) = MODULE.vcpu_info(&machine, pa) {
                add(vcpu.state as u64);
                add(vcpu.associated_lp.map_or(u64::MAX, u64::from));
                add(vcpu.pages);
                add(vcpu.index);
            }
        }
        for call in calls {
            add(self.sept_entry(call) & !(ENTRY_LOCK | ENTRY_HOST_PRIORITY));
        }
        add(MODULE.hkids_in_use() as u64);
        hash
    }

    /// The Secure EPT entry that a call is about, 0 if there is none.
    pub(super) fn sept_entry(&self, call: &Prepared) -> u64 {
        let machine = Machine::onlooker();
        let lock = call.gpa.filter(|_| call.tdr != 0).and_then(|gpa| {
            let (gpa, level) = (gpa & !0xfff, (gpa & 7) as u8);
            MODULE.sept_entry_lock(&machine, call.tdr, gpa, level)
        });
        match lock {
            Some(Lock::SeptEntry { entry, .. }) => machine.read64(entry),
            _ => 0,
        }
    }

    /// Takes all TDs apart, and all pages back.
    pub(super) fn clean(&mut self) -> Result {
        let machine = Machine::onlooker();
        let page_type = |pa: u64| MODULE.page_info(&machine, pa).map(|page| page.page_type);
        let is = |wanted: PageType| move |pa: &u64| page_type(*pa) == Some(wanted);
        let pages = self.memory.pages;
        let used = || pages.iter().copied().take(self.used);

        for tdvpr in used().filter(is(PageType::Tdvpr)) {
            let info = MODULE.vcpu_info(&machine, tdvpr);
            if info.is_some_and(|info| info.associated_lp.is_some()) {
                for role in [Role::Contender, Role::Holder] {
                    // One of them is where the vCPU is.
                    self.call_as(role, leaf::VP_FLUSH.into(), [tdvpr, 0, 0, 0])?;
                }
            }
        }
        // What is done already fails.
        for rax in [
            leaf::MNG_VPFLUSHDONE,
            leaf::PHYMEM_CACHE_WB,
            leaf::MNG_KEY_FREEID,
        ] {
            for tdr in used().filter(is(PageType::Tdr)) {
                let rcx = if rax == leaf::PHYMEM_CACHE_WB { 0 } else { tdr };
                Call::new(rax.into(), [rcx, 0, 0, 0]).make();
            }
        }
        for last in [false, true] {
            for page in used().filter(|pa| {
                let page_type = page_type(*pa);
                page_type != Some(PageType::Nda) && (page_type == Some(PageType::Tdr)) == last
            }) {
                Call::new(leaf::PHYMEM_PAGE_RECLAIM.into(), [page, 0, 0, 0]).make();
                if last {
                    let pa = page | u64::from(MODULE.global_hkid()) << ffi::phys_bits();
                    Call::new(leaf::PHYMEM_PAGE_WBINVD.into(), [pa, 0, 0, 0]).make();
                }
            }
        }
        let left = used().filter(|pa| page_type(*pa) != Some(PageType::Nda));
        let left = left.count();
        let hkids = MODULE.hkids_in_use();
        let unflushed = memory::unflushed_pages();
        if left != 0 || hkids != 0 || unflushed != 0 {
            self.complain(fmt!(
                "{left} pages and {hkids} HKIDs are left, {unflushed} pages are not flushed"
            ));
            return Err(EBUSY);
        }
        self.used = 0;
        Ok(())
    }

    /// The stage of a TD in which to try a pair: one in which both leaves do what they are for, if
    /// there is one, or at least the holder.
    fn stage(holder: u16, contender: u16) -> Stage {
        let (first, second) = (facts::stages(holder), facts::stages(contender));
        first
            .iter()
            .find(|stage| second.is_empty() || second.contains(stage))
            .or(first.first())
            .or(second.first())
            .copied()
            .unwrap_or(Stage::Nothing)
    }

    /// Lets a leaf on the other CPU hold its locks while this one calls the contender, and looks
    /// at what comes of it. Returns how a matrix shows it: `!` if anything was wrong.
    pub(super) fn pair(
        &mut self,
        holder: &LeafInfo,
        contender: &LeafInfo,
        relation: Relation,
    ) -> Result<char> {
        let wrong = self.wrong;
        let letter = self.try_pair(holder, contender, relation);
        if letter.is_err() {
            let (holder, contender) = (holder.name, contender.name);
            self.complain(fmt!("{holder} and {contender}, {relation:?}: {letter:?}"));
        }
        self.clean()?;
        letter.map(|letter| if self.wrong == wrong { letter } else { '!' })
    }

    fn try_pair(
        &mut self,
        holder: &LeafInfo,
        contender: &LeafInfo,
        relation: Relation,
    ) -> Result<char> {
        let stage = Self::stage(holder.number, contender.number);
        let td = self.td(stage, self.hkid(0))?;
        let other_td = match relation {
            Relation::OtherTd => self.td(stage, self.hkid(1))?,
            _ => td,
        };
        let first = self.prepare(holder.number, &td, stage, Role::Holder, None)?;
        let beside = Some((relation, &first));
        let second = self.prepare(contender.number, &other_td, stage, Role::Contender, beside)?;
        if stage == Stage::Runnable {
            self.must(leaf::MR_FINALIZE.into(), [td.tdr, 0, 0, 0])?;
            if relation == Relation::OtherTd {
                self.must(leaf::MR_FINALIZE.into(), [other_td.tdr, 0, 0, 0])?;
            }
        }

        let conflict = second.conflict(&first, self.shared_vp_init);
        let alone = facts::alone(contender.number, stage);
        let expected = match (contender.number, conflict) {
            // This module has no such leaf.
            (leaf::SYS_DISABLE, _) if self.shared_vp_init => {
                Status::OPERAND_INVALID.on(Operand::Rax)
            }
            (_, Some(want)) => facts::busy(want),
            (leaf::VP_ENTER | leaf::VP_RD | leaf::VP_WR, None)
                if relation == Relation::SameVcpu && second.right_state =>
            {
                Status::VCPU_ASSOCIATED
            }
            // Without a status alone, a leaf that any other one keeps from going on.
            _ => alone.unwrap_or(Status::SYS_BUSY),
        };
        self.pairs += 1;
        self.conflicts += u32::from(conflict.is_some());

        let started = Call::new(first.rax, first.operands).hold_on(self.other_cpu)?;
        let before = self.fingerprint([&first, &second]);
        let answer = self.call(second.rax, second.operands);
        let mut text = Text::<96>::new();
        // Cannot fail: text that does not fit is cut off.
        let _ = write!(
            text,
            "{} held, {} ({relation:?}, {stage:?})",
            holder.name, contender.name
        );
        let about = text.as_str();
        self.expect(about, answer.status, expected);
        let refused = conflict.filter(|_| answer.status == expected);
        if let Some(want) = refused {
            self.look_at_refusal(about, &[first, second], want, answer, before, started)?;
        } else {
            self.check_holder(about, &first, stage, started)?;
        }

        if alone.is_some() && refused.is_some() {
            self.look_at_retry(about, contender, [&first, &second], relation, stage);
        }
        Ok(conflict.map_or('.', |want| want.0.letter()))
    }

    /// What has to be so of a leaf that found a lock taken: it changed nothing, and neither did
    /// the one that has it, once it began to give locks back.
    fn look_at_refusal(
        &mut self,
        about: &str,
        [first, second]: &[Prepared; 2],
        want: Want,
        answer: Answer,
        before: u64,
        started: StartedCall,
    ) -> Result {
        if self.fingerprint([first, second]) != before {
            self.complain(fmt!("{about}: the leaf that was refused changed something"));
        }
        let is_about_gpa = second.gpa.is_some();
        let has_details = answer.registers[0] != 0 || answer.registers[1] != 0;
        let after_walk = want.0 == What::Entry;
        if is_about_gpa && has_details != after_walk && want.0 != What::Page {
            let [rcx, rdx, ..] = answer.registers;
            self.complain(fmt!("{about}: RCX {rcx:#x}, RDX {rdx:#x}"));
        }
        let stage = Self::stage(first.leaf, second.leaf);
        self.check_holder(about, first, stage, started)?;
        // A vCPU runs without the lock of the epoch, and with that of the TD's state given back.
        if first.leaf != leaf::VP_ENTER && self.fingerprint([first, second]) != before {
            self.complain(fmt!(
                "{about}: something changed after a lock was given back"
            ));
        }
        Ok(())
    }

    /// Lets the holder end, which has to have done what it is for.
    fn check_holder(
        &mut self,
        about: &str,
        first: &Prepared,
        stage: Stage,
        started: StartedCall,
    ) -> Result {
        let status = started.finish()?.status;
        if Some(status) != facts::alone(first.leaf, stage) {
            self.complain(fmt!("{about}: the holder ended with {:#x}", status.raw()));
        }
        Ok(())
    }

    /// Calls the contender again, in whose way nobody is any more.
    fn look_at_retry(
        &mut self,
        about: &str,
        contender: &LeafInfo,
        [first, second]: [&Prepared; 2],
        relation: Relation,
        stage: Stage,
    ) {
        let status = Call::new(second.rax, second.operands).make().status;
        // Then all is as it was for this leaf, which works on other objects.
        let same_stage = !matches!(
            first.leaf,
            leaf::MNG_KEY_CONFIG
                | leaf::MNG_INIT
                | leaf::MNG_VPFLUSHDONE
                | leaf::MNG_KEY_FREEID
                | leaf::MR_FINALIZE
        );
        let independent = match relation {
            Relation::SameTd => same_stage,
            Relation::OtherTd => true,
            _ => false,
        };
        let busy = matches!(status.raw() >> 32, 0x8000_0200 | 0x8000_0202);
        let right = if independent {
            Some(status) == facts::alone(second.leaf, stage)
        } else {
            !busy && contender.can_answer(status)
        };
        if !right {
            self.complain(fmt!(
                "{about}: {:#x} once nobody holds a lock",
                status.raw()
            ));
        }
    }

    /// A TD with tables, to be used by hand. Returns its TDR.
    pub(super) fn td_with_tables(&mut self) -> Result<u64> {
        let td = self.td(Stage::Initialized, self.hkid(0))?;
        self.tables(&td)?;
        Ok(td.tdr)
    }

    /// Who waits for a Secure EPT entry leaves a mark in it, and takes the mark away when it has
    /// the entry.
    pub(super) fn host_priority(&mut self) -> Result {
        let stage = Stage::Initialized;
        let td = self.td(stage, self.hkid(0))?;
        let first = self.prepare(leaf::MEM_PAGE_AUG, &td, stage, Role::Holder, None)?;
        let beside = Some((Relation::SameGpa, &first));
        let second = self.prepare(leaf::MEM_PAGE_REMOVE, &td, stage, Role::Contender, beside)?;
        let is_marked = |rig: &Self| rig.sept_entry(&first) & ENTRY_HOST_PRIORITY != 0;
        let mut marks = [false; 4];

        let started = Call::new(first.rax, first.operands).hold_on(self.other_cpu)?;
        marks[0] = is_marked(self);
        let refused = self.call(second.rax, second.operands).status;
        marks[1] = is_marked(self);
        let held = started.finish()?.status;
        marks[2] = is_marked(self);
        let served = self.call(second.rax, second.operands).status;
        marks[3] = is_marked(self);

        let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
        self.expect("MEM.PAGE.REMOVE of a locked entry", refused, busy);
        self.expect("MEM.PAGE.AUG", held, Status::SUCCESS);
        self.expect("MEM.PAGE.REMOVE", served, Status::SUCCESS);
        if marks != [false, true, true, false] {
            self.complain(fmt!("the mark of a waiting host: {marks:?}"));
        }
        Ok(())
    }

    /// Lets a call on the other CPU, which has to succeed, hold its locks, and makes another one
    /// here, which has to end with this status.
    pub(super) fn hold(
        &mut self,
        about: &str,
        held: (u16, [u64; 4]),
        tried: (u16, [u64; 4]),
        expected: Status,
    ) -> Result {
        let started = Call::new(held.0.into(), held.1).hold_on(self.other_cpu)?;
        let status = self.call(tried.0.into(), tried.1).status;
        self.expect(about, status, expected);
        let status = started.finish()?.status;
        self.expect(name(held.0), status, Status::SUCCESS);
        Ok(())
    }

    /// Makes the key table busy for one request.
    pub(super) fn key_table_busy(&mut self) -> Result {
        let tdr = self.page()?;
        let config: u64 = leaf::MNG_KEY_CONFIG.into();
        self.must(leaf::MNG_CREATE.into(), [tdr, self.hkid(0), 0, 0])?;
        super::make_key_table_busy();
        let refused = self.call(config, [tdr, 0, 0, 0]).status;
        let busy = Status::OPERAND_BUSY.on(Operand::Ket);
        self.expect("MNG.KEY.CONFIG", refused, busy);
        self.must(config, [tdr, 0, 0, 0])?;
        Ok(())
    }
}

/// The name of the leaf of that number.
pub(super) fn name(number: u16) -> &'static str {
    Module::leaf_name(number).unwrap_or("?")
}
