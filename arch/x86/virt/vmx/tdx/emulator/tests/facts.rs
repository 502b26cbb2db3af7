// SPDX-License-Identifier: GPL-2.0

//! What the published module's sources say of locks: written from them, so that the leaves'
//! declarations in `module/leaf` can be wrong.

#![deny(unsafe_code)]

use crate::module::{
    LockMode::{
        self,
        Exclusive as EX,
        Shared as SH, //
    },
    Operand::{
        self,
        Kot,
        OpState,
        Rcx,
        Rdx,
        SeptTree,
        TdEpoch,
        Tdr,
        Wbcache,
        R8, //
    },
    Status, //
};

/// The numbers of the leaves.
pub(super) mod leaf {
    pub(crate) const VP_ENTER: u16 = 0;
    pub(crate) const MNG_ADDCX: u16 = 1;
    pub(crate) const MEM_PAGE_ADD: u16 = 2;
    pub(crate) const MEM_SEPT_ADD: u16 = 3;
    pub(crate) const VP_ADDCX: u16 = 4;
    pub(crate) const MEM_PAGE_AUG: u16 = 6;
    pub(crate) const MEM_RANGE_BLOCK: u16 = 7;
    pub(crate) const MNG_KEY_CONFIG: u16 = 8;
    pub(crate) const MNG_CREATE: u16 = 9;
    pub(crate) const VP_CREATE: u16 = 10;
    pub(crate) const MNG_RD: u16 = 11;
    pub(crate) const MR_EXTEND: u16 = 16;
    pub(crate) const MR_FINALIZE: u16 = 17;
    pub(crate) const VP_FLUSH: u16 = 18;
    pub(crate) const MNG_VPFLUSHDONE: u16 = 19;
    pub(crate) const MNG_KEY_FREEID: u16 = 20;
    pub(crate) const MNG_INIT: u16 = 21;
    pub(crate) const VP_INIT: u16 = 22;
    pub(crate) const PHYMEM_PAGE_RDMD: u16 = 24;
    pub(crate) const VP_RD: u16 = 26;
    pub(crate) const PHYMEM_PAGE_RECLAIM: u16 = 28;
    pub(crate) const MEM_PAGE_REMOVE: u16 = 29;
    pub(crate) const SYS_KEY_CONFIG: u16 = 31;
    pub(crate) const SYS_INIT: u16 = 33;
    pub(crate) const SYS_RD: u16 = 34;
    pub(crate) const SYS_LP_INIT: u16 = 35;
    pub(crate) const SYS_TDMR_INIT: u16 = 36;
    pub(crate) const MEM_TRACK: u16 = 38;
    pub(crate) const PHYMEM_CACHE_WB: u16 = 40;
    pub(crate) const PHYMEM_PAGE_WBINVD: u16 = 41;
    pub(crate) const VP_WR: u16 = 43;
    pub(crate) const SYS_CONFIG: u16 = 45;
    pub(crate) const SYS_SHUTDOWN: u16 = 52;
    pub(crate) const SYS_UPDATE: u16 = 53;
    pub(crate) const SYS_DISABLE: u16 = 69;
}

/// What a leaf locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
    /// The TD's root.
    Tdr,
    /// The vCPU's root.
    Tdvpr,
    /// The page that is added, looked at, reclaimed or removed.
    Page,
    /// The TD's operation state.
    OpState,
    /// The TD's Secure EPT.
    Tree,
    /// The entry of the Secure EPT for the GPA.
    Entry,
    /// The TD's TLB epoch.
    Epoch,
    /// The key ownership table.
    Kot,
    /// The package's cache write-back.
    WriteBack,
    /// The TDMR.
    Tdmr,
    /// The whole module.
    Global,
}

impl What {
    /// How a matrix shows it.
    pub(super) fn letter(self) -> char {
        match self {
            What::Tdr => 'T',
            What::Tdvpr => 'V',
            What::Page => 'P',
            What::OpState => 'O',
            What::Tree => 'S',
            What::Entry => 'E',
            What::Epoch => 'e',
            What::Kot => 'K',
            What::WriteBack => 'W',
            What::Tdmr => 'M',
            What::Global => 'G',
        }
    }
}

/// A lock that a leaf takes, and the operand that it names if it cannot have it. Only the global
/// lock has no operand.
pub(super) type Want = (What, LockMode, Option<Operand>);

/// The locks of a leaf, in the order in which it takes them.
pub(super) struct Row {
    pub(super) leaf: u16,
    /// Those that it takes before it looks at the state of the TD.
    pub(super) before: &'static [Want],
    /// Those that it takes only if that state is right.
    pub(super) after: &'static [Want],
}

const fn row(leaf: u16, before: &'static [Want], after: &'static [Want]) -> Row {
    Row {
        leaf,
        before,
        after,
    }
}

const OP_STATE: Want = (What::OpState, SH, Some(OpState));
const TREE: Want = (What::Tree, SH, Some(SeptTree));
const ENTRY: Want = (What::Entry, EX, Some(Rcx));
const PAGE_RCX: Want = (What::Page, EX, Some(Rcx));
const PAGE_R8: Want = (What::Page, EX, Some(R8));

/// A lock of the TDR: how, and the operand.
const fn tdr(mode: LockMode, operand: Operand) -> Want {
    (What::Tdr, mode, Some(operand))
}

/// A lock of the TDVPR: how, and the operand.
const fn tdvpr(mode: LockMode, operand: Operand) -> Want {
    (What::Tdvpr, mode, Some(operand))
}

static ROWS: [Row; 35] = [
    row(
        leaf::MNG_CREATE,
        &[PAGE_RCX, (What::Kot, EX, Some(Kot))],
        &[],
    ),
    row(leaf::MNG_KEY_CONFIG, &[tdr(EX, Rcx)], &[]),
    row(leaf::MNG_ADDCX, &[tdr(EX, Rdx)], &[PAGE_RCX]),
    row(leaf::MNG_INIT, &[tdr(EX, Rcx)], &[]),
    row(leaf::MNG_RD, &[tdr(SH, Rcx)], &[OP_STATE]),
    row(
        leaf::MNG_VPFLUSHDONE,
        &[tdr(EX, Rcx), (What::Kot, EX, Some(Kot))],
        &[],
    ),
    row(
        leaf::MNG_KEY_FREEID,
        &[tdr(EX, Rcx)],
        &[(What::Kot, EX, Some(Kot))],
    ),
    row(leaf::VP_CREATE, &[tdr(SH, Rdx)], &[OP_STATE, PAGE_RCX]),
    row(
        leaf::VP_ADDCX,
        &[tdvpr(EX, Rdx), tdr(SH, Tdr)],
        &[OP_STATE, PAGE_RCX],
    ),
    // Version 1, see `locks()`.
    row(leaf::VP_INIT, &[tdvpr(EX, Rcx), tdr(EX, Tdr)], &[OP_STATE]),
    row(leaf::VP_RD, &[tdvpr(SH, Rcx), tdr(SH, Tdr)], &[OP_STATE]),
    row(leaf::VP_WR, &[tdvpr(SH, Rcx), tdr(SH, Tdr)], &[OP_STATE]),
    row(leaf::VP_FLUSH, &[tdvpr(EX, Rcx), tdr(SH, Tdr)], &[]),
    // It holds the epoch's lock for a moment, in which the others are held, too.
    row(
        leaf::VP_ENTER,
        &[tdvpr(SH, Rcx), tdr(SH, Tdr)],
        &[OP_STATE, (What::Epoch, SH, Some(TdEpoch))],
    ),
    row(
        leaf::MEM_SEPT_ADD,
        &[tdr(SH, Rdx)],
        &[OP_STATE, TREE, ENTRY, PAGE_R8],
    ),
    row(leaf::MEM_PAGE_ADD, &[tdr(EX, Rdx)], &[PAGE_R8]),
    row(
        leaf::MEM_PAGE_AUG,
        &[tdr(SH, Rdx)],
        &[OP_STATE, TREE, ENTRY, PAGE_R8],
    ),
    row(
        leaf::MEM_RANGE_BLOCK,
        &[tdr(SH, Rdx)],
        &[OP_STATE, (What::Tree, EX, Some(SeptTree)), ENTRY],
    ),
    row(
        leaf::MEM_TRACK,
        &[tdr(SH, Rcx)],
        &[OP_STATE, (What::Epoch, EX, Some(TdEpoch))],
    ),
    row(
        leaf::MEM_PAGE_REMOVE,
        &[tdr(SH, Rdx)],
        &[OP_STATE, TREE, ENTRY, PAGE_RCX],
    ),
    row(leaf::MR_EXTEND, &[tdr(EX, Rdx)], &[]),
    row(leaf::MR_FINALIZE, &[tdr(EX, Rcx)], &[]),
    row(leaf::PHYMEM_PAGE_RDMD, &[(What::Page, SH, Some(Rcx))], &[]),
    row(
        leaf::PHYMEM_PAGE_WBINVD,
        &[(What::Page, SH, Some(Rcx))],
        &[],
    ),
    row(leaf::PHYMEM_PAGE_RECLAIM, &[PAGE_RCX, tdr(SH, Tdr)], &[]),
    row(
        leaf::PHYMEM_CACHE_WB,
        &[
            (What::WriteBack, EX, Some(Wbcache)),
            (What::Kot, SH, Some(Kot)),
        ],
        &[],
    ),
    row(leaf::SYS_INIT, &[(What::Global, EX, None)], &[]),
    row(leaf::SYS_LP_INIT, &[(What::Global, SH, None)], &[]),
    row(leaf::SYS_CONFIG, &[(What::Global, EX, None)], &[]),
    row(leaf::SYS_KEY_CONFIG, &[(What::Global, EX, None)], &[]),
    row(leaf::SYS_UPDATE, &[(What::Global, EX, None)], &[]),
    row(leaf::SYS_TDMR_INIT, &[(What::Tdmr, EX, Some(Rcx))], &[]),
    row(leaf::SYS_RD, &[], &[]),
    // They end the module, and do not as long as another processor is inside.
    row(leaf::SYS_SHUTDOWN, &[(What::Global, EX, None)], &[]),
    row(leaf::SYS_DISABLE, &[(What::Global, EX, None)], &[]),
];

/// Leaves that Linux does not call, and of whose locks there are no facts: TDH.MEM.SEPT.RD,
/// TDH.MNG.KEY.RECLAIMID, TDH.MEM.SEPT.REMOVE, TDH.MEM.RANGE.UNBLOCK.
pub(super) const WITHOUT_FACTS: [u16; 4] = [25, 27, 30, 39];

impl Row {
    /// The locks of a leaf, if the facts know it.
    pub(super) fn of(leaf: u16) -> Option<&'static Row> {
        ROWS.iter().find(|row| row.leaf == leaf)
    }

    /// The locks in order, those after the check of the TD's state only if asked for.
    ///
    /// `shared_vp_init`: TDH.VP.INIT is that of a module in which several can run at once.
    pub(super) fn locks(
        &self,
        with_right_state: bool,
        shared_vp_init: bool,
    ) -> impl Iterator<Item = Want> + '_ {
        let is_vp_init = self.leaf == leaf::VP_INIT;
        let after = if with_right_state { self.after } else { &[] };
        self.before
            .iter()
            .chain(after)
            .map(move |&(what, mode, operand)| match what {
                What::Tdr if is_vp_init && shared_vp_init => (what, SH, operand),
                _ => (what, mode, operand),
            })
    }
}

/// The status of a leaf that cannot have a lock.
pub(super) fn busy(want: Want) -> Status {
    match want.2 {
        Some(operand) => Status::OPERAND_BUSY.on(operand),
        None => Status::SYS_BUSY,
    }
}

/// How far a TD is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// There is none.
    Nothing,
    /// It has an HKID.
    Assigned,
    /// It has its key and the pages of its TDCS.
    Keyed,
    /// It is initialised.
    Initialized,
    /// Its measurement is final.
    Runnable,
    /// Its HKID is not used any more.
    Blocked,
    /// Its HKID is free.
    Teardown,
}

use Stage::{
    Assigned,
    Blocked,
    Initialized,
    Keyed,
    Nothing,
    Runnable,
    Teardown, //
};

/// The stages of a TD in which a leaf does what it is for; none if it is not about a TD.
pub(super) fn stages(leaf: u16) -> &'static [Stage] {
    match leaf {
        leaf::MNG_KEY_CONFIG => &[Assigned],
        leaf::MNG_ADDCX | leaf::MNG_INIT => &[Keyed],
        leaf::MNG_VPFLUSHDONE => &[Keyed, Assigned],
        leaf::MNG_KEY_FREEID | leaf::PHYMEM_CACHE_WB => &[Blocked],
        leaf::VP_CREATE
        | leaf::VP_ADDCX
        | leaf::VP_INIT
        | leaf::MEM_PAGE_ADD
        | leaf::MR_EXTEND
        | leaf::MR_FINALIZE => &[Initialized],
        leaf::MNG_RD
        | leaf::VP_RD
        | leaf::VP_WR
        | leaf::VP_FLUSH
        | leaf::MEM_SEPT_ADD
        | leaf::MEM_PAGE_AUG
        | leaf::MEM_RANGE_BLOCK
        | leaf::MEM_TRACK
        | leaf::MEM_PAGE_REMOVE => &[Initialized, Runnable],
        leaf::VP_ENTER => &[Runnable],
        leaf::PHYMEM_PAGE_RECLAIM => &[Teardown],
        _ => &[],
    }
}

/// Whether a leaf works on the vCPU that an operand names.
pub(super) fn is_about_vcpu(leaf: u16) -> bool {
    let row = Row::of(leaf);
    row.is_some_and(|row| row.before.iter().any(|want| want.0 == What::Tdvpr))
}

/// What a leaf answers about a TD that nobody else is using. The TD has an associated vCPU as soon
/// as it is initialised. [`None`]: it must not be tried.
pub(super) fn alone(leaf: u16, stage: Stage) -> Option<Status> {
    /// The exit reason of an entry that failed because of the guest's state.
    const CANNOT_RUN: u32 = 0x8000_0021;

    Some(match leaf {
        leaf::SYS_SHUTDOWN | leaf::SYS_DISABLE => return None,
        leaf::SYS_INIT => Status::SYS_INIT_NOT_PENDING,
        leaf::SYS_LP_INIT => Status::SYS_LP_INIT_NOT_PENDING,
        leaf::SYS_CONFIG => Status::SYS_CONFIG_NOT_PENDING,
        leaf::SYS_KEY_CONFIG => Status::SYS_KEY_CONFIG_NOT_PENDING,
        leaf::SYS_UPDATE => Status::SYS_STATE_INCORRECT,
        leaf::SYS_TDMR_INIT => Status::TDMR_ALREADY_INITIALIZED,
        leaf::PHYMEM_CACHE_WB if stage != Blocked => Status::NO_HKID_READY_TO_WBCACHE,
        leaf::VP_ENTER if stage == Runnable => Status::NON_RECOVERABLE_VCPU.detail(CANNOT_RUN),
        _ if stages(leaf).is_empty() || stages(leaf).contains(&stage) => Status::SUCCESS,
        // From here on the stage is wrong.
        leaf::MNG_VPFLUSHDONE if matches!(stage, Initialized | Runnable) => {
            Status::FLUSHVP_NOT_DONE
        }
        leaf::MNG_KEY_CONFIG
        | leaf::MNG_VPFLUSHDONE
        | leaf::MNG_KEY_FREEID
        | leaf::PHYMEM_PAGE_RECLAIM => Status::LIFECYCLE_STATE_INCORRECT,
        // There is no vCPU: the operand is a page that nobody owns.
        _ if is_about_vcpu(leaf) && !matches!(stage, Initialized | Runnable) => {
            let operand = if leaf == leaf::VP_ADDCX { Rdx } else { Rcx };
            Status::PAGE_METADATA_INCORRECT.on(operand)
        }
        _ => match stage {
            Nothing | Assigned | Blocked | Teardown => Status::TD_KEYS_NOT_CONFIGURED,
            Keyed | Initialized | Runnable => Status::OP_STATE_INCORRECT,
        },
    })
}
