// SPDX-License-Identifier: GPL-2.0

//! The leaves: one file each, and the table of all.

mod mem_page_add;
mod mem_page_aug;
mod mem_page_remove;
mod mem_range_block;
mod mem_range_unblock;
mod mem_sept_add;
mod mem_sept_rd;
mod mem_sept_remove;
mod mem_track;
mod mng_addcx;
mod mng_create;
mod mng_init;
mod mng_key_config;
mod mng_key_freeid;
mod mng_key_reclaimid;
mod mng_rd;
mod mng_vpflushdone;
mod mr_extend;
mod mr_finalize;
mod phymem_cache_wb;
mod phymem_page_rdmd;
mod phymem_page_reclaim;
mod phymem_page_wbinvd;
mod sys_config;
mod sys_disable;
mod sys_init;
mod sys_key_config;
mod sys_lp_init;
mod sys_rd;
mod sys_shutdown;
mod sys_tdmr_init;
mod sys_update;
mod vp_addcx;
mod vp_create;
mod vp_enter;
mod vp_flush;
mod vp_init;
mod vp_rd;
mod vp_wr;

use super::{
    dispatch::{
        Call,
        LeafResult, //
    },
    locks::LockMode,
    platform::Platform,
    profile::Profile,
    regs::Regs,
    status::{
        Operand,
        Status, //
    },
};

/// What every leaf needs.
mod prelude {
    pub(super) use super::{
        Answer,
        LeafInfo,
        LeafLock,
        LockOf,
        Versions,
        ENTRY_IF_IT_FAILS, //
    };
    pub(super) use crate::module::{
        address,
        dispatch::{
            Call,
            LeafResult, //
        },
        locks::LockMode,
        platform::Platform,
        regs::Regs,
        status::{
            Operand,
            Status, //
        },
        SysState, //
    };
}

/// What a leaf locks.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LockOf {
    Global,
    Kot,
    Ket,
    WbtEntry,
    Tdmr,
    Tdr,
    Tdvpr,
    OpState,
    SeptTree,
    SeptEntry,
    Epoch,
    /// The page that RCX names, which becomes a TD's.
    PageRcx,
    /// The page that R8 names, which becomes a TD's.
    PageR8,
    /// The page or table that a Secure EPT entry points to.
    EntryPage,
}

impl LockOf {
    /// The name of what is locked.
    pub const fn name(self) -> &'static str {
        match self {
            LockOf::Global => "global",
            LockOf::Kot => "KOT",
            LockOf::Ket => "KET",
            LockOf::WbtEntry => "WBT entry",
            LockOf::Tdmr => "TDMR",
            LockOf::Tdr => "TDR",
            LockOf::Tdvpr => "TDVPR",
            LockOf::OpState => "OP_STATE",
            LockOf::SeptTree => "SEPT tree",
            LockOf::SeptEntry => "SEPT entry",
            LockOf::Epoch => "epoch",
            LockOf::PageRcx => "page RCX",
            LockOf::PageR8 => "page R8",
            LockOf::EntryPage => "page of the entry",
        }
    }
}

/// A leaf's lock, as its declaration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafLock {
    /// What is locked.
    pub what: LockOf,
    /// How.
    pub mode: LockMode,
    /// How version 1 of the leaf locks it, if the profile has leaves that do so more strictly.
    pub strict: LockMode,
    /// The operand that `TDX_OPERAND_BUSY` names if the lock cannot be had; without one the status
    /// is `TDX_SYS_BUSY`.
    pub operand: Option<Operand>,
}

impl LeafLock {
    const fn new(what: LockOf, mode: LockMode, operand: Option<Operand>) -> Self {
        Self {
            what,
            mode,
            strict: mode,
            operand,
        }
    }

    const fn shared(what: LockOf, operand: Operand) -> Self {
        Self::new(what, LockMode::Shared, Some(operand))
    }

    const fn exclusive(what: LockOf, operand: Operand) -> Self {
        Self::new(what, LockMode::Exclusive, Some(operand))
    }

    /// The lock of the SYS leaves.
    const fn global(mode: LockMode) -> Self {
        Self::new(LockOf::Global, mode, None)
    }

    /// How a version of the leaf locks it.
    pub fn mode_in(&self, version: u8, profile: &Profile) -> LockMode {
        if version > 0 && profile.strict_versions {
            self.strict
        } else {
            self.mode
        }
    }

    /// How this call of the leaf locks it.
    #[inline(always)]
    pub(super) fn mode_of<P: Platform>(&self, call: &Call<'_, P>) -> LockMode {
        if self.mode as u8 == self.strict as u8 {
            return self.mode;
        }
        self.mode_in(call.version, call.module.profile())
    }

    /// The status if the lock cannot be had.
    pub const fn busy(&self) -> Status {
        match self.operand {
            Some(operand) => Status::OPERAND_BUSY.on(operand),
            None => Status::SYS_BUSY,
        }
    }

    /// A status about what is locked.
    pub(super) const fn about(&self, status: Status) -> Status {
        match self.operand {
            Some(operand) => status.on(operand),
            None => status,
        }
    }
}

/// Some of the statuses that a leaf can answer with, apart from success, busy locks and what every
/// leaf can answer.
#[derive(Clone, Copy, Debug)]
pub enum Answer {
    /// This status, without details.
    Plain(Status),
    /// This status, about one of these operands.
    About(Status, &'static [Operand]),
    /// This status, with details that tell this.
    Detailed(Status, &'static str),
    /// What may be wrong with the page that an operand names.
    Page(Operand),
    /// What several leaves have in common.
    Any(&'static [Answer]),
}

impl Answer {
    /// The TD is not in a state that the leaf allows.
    const TD_STATE: Answer = Answer::Any(&[
        Answer::Plain(Status::TD_FATAL),
        Answer::Plain(Status::TD_KEYS_NOT_CONFIGURED),
        Answer::Plain(Status::TDCS_NOT_ALLOCATED),
        Answer::Plain(Status::OP_STATE_INCORRECT),
    ]);
    /// There is no Secure EPT entry for what RCX holds.
    const SEPT_WALK: Answer = Answer::Any(&[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::About(Status::EPT_WALK_FAILED, &[Operand::Rcx]),
    ]);
    /// The vCPU cannot be associated with the current processor.
    const ASSOCIATION: Answer = Answer::Any(&[
        Answer::Plain(Status::TDCX_NUM_INCORRECT),
        Answer::Plain(Status::VCPU_STATE_INCORRECT),
        Answer::Plain(Status::VCPU_ASSOCIATED),
    ]);
    /// The field cannot be read.
    const FIELD: Answer = Answer::Any(&[
        Answer::Plain(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT),
        Answer::Plain(Status::METADATA_FIELD_ID_INCORRECT),
        Answer::Plain(Status::METADATA_FIELD_NOT_READABLE),
    ]);

    /// What may be wrong with a page that an operand names.
    pub const PAGE: [Status; 3] = [
        Status::OPERAND_INVALID,
        Status::OPERAND_ADDR_RANGE_ERROR,
        Status::PAGE_METADATA_INCORRECT,
    ];

    /// Calls `visit` for each of these statuses, with details of zero where they are no operand.
    fn visit(&self, visit: &mut dyn FnMut(Status)) {
        match *self {
            Answer::Plain(status) | Answer::Detailed(status, _) => visit(status),
            Answer::About(status, operands) => {
                for operand in operands {
                    visit(status.on(*operand));
                }
            }
            Answer::Page(operand) => {
                for status in Self::PAGE {
                    visit(status.on(operand));
                }
            }
            Answer::Any(answers) => {
                for answer in answers {
                    answer.visit(visit);
                }
            }
        }
    }

    /// Whether the status is one of these.
    fn has(&self, status: Status) -> bool {
        match *self {
            Answer::Plain(plain) => status == plain,
            Answer::About(about, operands) => {
                operands.iter().any(|operand| status == about.on(*operand))
            }
            Answer::Detailed(detailed, _) => status.detail(0) == detailed,
            Answer::Page(operand) => Self::PAGE.iter().any(|page| status == page.on(operand)),
            Answer::Any(answers) => answers.iter().any(|answer| answer.has(status)),
        }
    }
}

/// The results of a leaf that tells about a Secure EPT entry only if it fails.
const ENTRY_IF_IT_FAILS: &[(&str, &str)] = &[
    ("RCX", "on failure, the Secure EPT entry"),
    ("RDX", "on failure, its level and state"),
];

/// A leaf's declaration.
#[derive(Debug)]
pub struct LeafInfo {
    /// The leaf's number in RAX.
    pub number: u16,
    /// Its name, without the leading `TDH.`.
    pub name: &'static str,
    /// Whether version 1 exists.
    pub versions: Versions,
    /// Whether it can be called before the module is ready.
    pub early: bool,
    /// The operation states in which a TD must be, one bit each; 0 if that is not checked.
    pub op_states: u16,
    /// The locks it takes, in order.
    pub locks: &'static [LeafLock],
    /// The registers it takes, each with what it means.
    pub operands: &'static [(&'static str, &'static str)],
    /// The registers it returns something in, apart from RAX.
    pub results: &'static [(&'static str, &'static str)],
    /// The statuses it can answer with; see [`Self::for_each_status`].
    pub answers: &'static [Answer],
    /// Whether the leaf is modelled. Otherwise it answers as an unknown leaf does.
    pub modelled: bool,
}

/// Which versions a leaf has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Only version 0.
    One,
    /// Versions 0 and 1.
    Two,
    /// Version 1 came with topology enumeration.
    TwoWithTopology,
}

impl LeafInfo {
    /// What most leaves have in common.
    const NEW: LeafInfo = LeafInfo {
        number: u16::MAX,
        name: "",
        versions: Versions::One,
        early: false,
        op_states: 0,
        locks: &[],
        operands: &[],
        results: &[],
        answers: &[],
        modelled: true,
    };

    /// A leaf that real modules have and this one does not.
    const fn not_modelled(number: u16, name: &'static str) -> Self {
        Self {
            number,
            name,
            modelled: false,
            ..Self::NEW
        }
    }

    /// The declaration of a leaf, if the leaf is known.
    pub fn by_number(number: u16) -> Option<&'static LeafInfo> {
        BY_NUMBER.get(usize::from(number)).copied().flatten()
    }

    /// The lock of that, which the leaf must have.
    ///
    /// # Panics
    ///
    /// If it has not. This is for constants, so then the module does not compile.
    pub(super) const fn lock(&self, what: LockOf) -> LeafLock {
        match self.lock_if_any(what) {
            Some(lock) => lock,
            None => panic!("the leaf does not declare this lock"),
        }
    }

    /// The lock of that, if the leaf has it.
    pub(super) const fn lock_if_any(&self, what: LockOf) -> Option<LeafLock> {
        let mut rest = self.locks;
        while let [lock, others @ ..] = rest {
            if lock.what as u8 == what as u8 {
                return Some(*lock);
            }
            rest = others;
        }
        None
    }

    /// All known leaves.
    pub fn all() -> impl Iterator<Item = &'static LeafInfo> {
        MODELLED.iter().copied().chain(&NOT_MODELLED)
    }

    /// The statuses that any leaf can answer with.
    pub const COMMON: [Status; 4] = [
        Status::SUCCESS,
        Status::OPERAND_INVALID.on(Operand::Rax),
        Status::SYS_NOT_READY,
        Status::SYS_SHUTDOWN,
    ];

    /// Whether the leaf can answer with that status, by its declaration.
    pub fn can_answer(&self, status: Status) -> bool {
        Self::COMMON.contains(&status)
            || self.locks.iter().any(|lock| status == lock.busy())
            || self.answers.iter().any(|answer| answer.has(status))
    }

    /// Calls `visit` for each status that the leaf can answer with, by its declaration, for some of
    /// them more than once.
    pub fn for_each_status(&self, mut visit: impl FnMut(Status)) {
        for status in Self::COMMON {
            visit(status);
        }
        for lock in self.locks {
            visit(lock.busy());
        }
        for answer in self.answers {
            answer.visit(&mut visit);
        }
    }

    pub(super) fn has_versions(&self, profile: &Profile) -> bool {
        match self.versions {
            Versions::One => false,
            Versions::Two => true,
            Versions::TwoWithTopology => profile.topology_enumeration,
        }
    }
}

/// The largest number of a known leaf.
const MAX_NUMBER: usize = 96;

macro_rules! leaves {
    ($($leaf:ident,)*) => {
        static MODELLED: [&LeafInfo; [$(stringify!($leaf)),*].len()] = [$(&$leaf::INFO),*];

        /// The leaves by their numbers.
        static BY_NUMBER: [Option<&LeafInfo>; MAX_NUMBER + 1] = {
            let mut leaves = [None; MAX_NUMBER + 1];
            let mut others: &[LeafInfo] = &NOT_MODELLED;
            while let [info, rest @ ..] = others {
                leaves[info.number as usize] = Some(info);
                others = rest;
            }
            $(leaves[$leaf::INFO.number as usize] = Some(&$leaf::INFO);)*
            leaves
        };

        /// Runs the leaf of that number.
        pub(super) fn run<'c, P: Platform>(
            number: u16,
            call: &'c Call<'c, P>,
            regs: &mut Regs,
        ) -> LeafResult {
            $(
                if number == $leaf::INFO.number {
                    return $leaf::run(call, regs);
                }
            )*
            Err(Status::OPERAND_INVALID.on(Operand::Rax))
        }
    };
}

leaves! {
    mem_page_add,
    mem_page_aug,
    mem_page_remove,
    mem_range_block,
    mem_range_unblock,
    mem_sept_add,
    mem_sept_rd,
    mem_sept_remove,
    mem_track,
    mng_addcx,
    mng_create,
    mng_init,
    mng_key_config,
    mng_key_freeid,
    mng_key_reclaimid,
    mng_rd,
    mng_vpflushdone,
    mr_extend,
    mr_finalize,
    phymem_cache_wb,
    phymem_page_rdmd,
    phymem_page_reclaim,
    phymem_page_wbinvd,
    sys_config,
    sys_disable,
    sys_init,
    sys_key_config,
    sys_lp_init,
    sys_rd,
    sys_shutdown,
    sys_tdmr_init,
    sys_update,
    vp_addcx,
    vp_create,
    vp_enter,
    vp_flush,
    vp_init,
    vp_rd,
    vp_wr,
}

static NOT_MODELLED: [LeafInfo; 31] = [
    LeafInfo::not_modelled(5, "MEM.PAGE.RELOCATE"),
    LeafInfo::not_modelled(12, "MEM.RD"),
    LeafInfo::not_modelled(13, "MNG.WR"),
    LeafInfo::not_modelled(14, "MEM.WR"),
    LeafInfo::not_modelled(15, "MEM.PAGE.DEMOTE"),
    LeafInfo {
        versions: Versions::Two,
        ..LeafInfo::not_modelled(23, "MEM.PAGE.PROMOTE")
    },
    LeafInfo {
        early: true,
        ..LeafInfo::not_modelled(32, "SYS.INFO")
    },
    LeafInfo {
        early: true,
        ..LeafInfo::not_modelled(37, "SYS.RDALL")
    },
    LeafInfo::not_modelled(42, "MEM.SEPT.WR"),
    LeafInfo {
        early: true,
        ..LeafInfo::not_modelled(44, "SYS.LP.SHUTDOWN")
    },
    LeafInfo::not_modelled(48, "SERVTD.BIND"),
    LeafInfo::not_modelled(49, "SERVTD.PREBIND"),
    LeafInfo::not_modelled(64, "EXPORT.ABORT"),
    LeafInfo::not_modelled(65, "EXPORT.BLOCKW"),
    LeafInfo::not_modelled(66, "EXPORT.RESTORE"),
    LeafInfo::not_modelled(68, "EXPORT.MEM"),
    LeafInfo::not_modelled(70, "EXPORT.PAUSE"),
    LeafInfo::not_modelled(71, "EXPORT.TRACK"),
    LeafInfo::not_modelled(72, "EXPORT.STATE.IMMUTABLE"),
    LeafInfo::not_modelled(73, "EXPORT.STATE.TD"),
    LeafInfo::not_modelled(74, "EXPORT.STATE.VP"),
    LeafInfo::not_modelled(75, "EXPORT.UNBLOCKW"),
    LeafInfo::not_modelled(80, "IMPORT.ABORT"),
    LeafInfo::not_modelled(81, "IMPORT.END"),
    LeafInfo::not_modelled(82, "IMPORT.COMMIT"),
    LeafInfo::not_modelled(83, "IMPORT.MEM"),
    LeafInfo::not_modelled(84, "IMPORT.TRACK"),
    LeafInfo::not_modelled(85, "IMPORT.STATE.IMMUTABLE"),
    LeafInfo::not_modelled(86, "IMPORT.STATE.TD"),
    LeafInfo::not_modelled(87, "IMPORT.STATE.VP"),
    LeafInfo::not_modelled(96, "MIG.STREAM.CREATE"),
];
