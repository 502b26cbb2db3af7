// SPDX-License-Identifier: GPL-2.0

//! Locks that another processor holds: every lock against every leaf, in both modes.
//!
//! What must happen follows from the leaves' declarations, so this also shows that they say what
//! the leaves do.

use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        GLOBAL_HKID,
        HOST_PAGE,
        TDMR_BASE,
        VERSION_1, //
    },
    module::{
        LeafInfo,
        Lock,
        LockMode,
        LockRecord,
        Operand,
        PageType,
        Platform,
        Status,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
/// A free page in the same 2 MiB as the TD.
const NEW: u64 = TDR + 0x10_0000;
const GPA: u64 = 0x1000;

/// A call that would succeed.
pub(super) struct Prepared {
    pub(super) host: Host,
    pub(super) rax: u64,
    pub(super) operands: Vec<u64>,
    tdvpr: u64,
    /// The page that the call removes, if it does.
    removed: u64,
}

fn finalized(host: &Host, td: &mut Td) -> u64 {
    let tdvpr = td.add_vcpu(host);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    tdvpr
}

/// Prepares a call of the leaf of that number.
pub(super) fn prepare(number: u64) -> Option<Prepared> {
    let host = Host::start(&PROFILE_1_5_05);
    let mut rax = number;
    let mut tdvpr = 0;
    let mut removed = 0;
    let created = |host: &Host| Td::create(host, TDR, 33);
    let initialized = |host: &Host| {
        let td = created(host);
        td.init(host);
        td
    };
    let with_tables = |host: &Host| {
        let mut td = initialized(host);
        td.add_tables(host);
        td
    };
    let uninitialized_vcpu = |host: &Host, pages: usize| {
        let mut td = initialized(host);
        let tdvpr = td.page();
        host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
        for _ in 1..pages {
            let page = td.page();
            host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
        }
        tdvpr
    };
    let operands = match number {
        leaf::MNG_CREATE => vec![NEW, 34],
        leaf::MNG_KEY_CONFIG => {
            host.ok(leaf::MNG_CREATE, &[TDR, 33]);
            vec![TDR]
        }
        leaf::MNG_ADDCX => {
            created(&host);
            vec![NEW, TDR]
        }
        leaf::MNG_INIT => {
            created(&host);
            host.write_td_params();
            vec![TDR, HOST_PAGE]
        }
        leaf::MNG_RD => {
            initialized(&host);
            vec![TDR, 0x1100_0000_0000_000a]
        }
        leaf::MNG_VPFLUSHDONE => {
            created(&host);
            vec![TDR]
        }
        leaf::MNG_KEY_FREEID => {
            created(&host);
            host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
            host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
            vec![TDR]
        }
        leaf::VP_CREATE => {
            initialized(&host);
            vec![NEW, TDR]
        }
        leaf::VP_ADDCX => {
            tdvpr = uninitialized_vcpu(&host, 1);
            vec![NEW, tdvpr]
        }
        leaf::VP_INIT => {
            tdvpr = uninitialized_vcpu(&host, 6);
            rax |= VERSION_1;
            vec![tdvpr]
        }
        leaf::VP_RD => {
            tdvpr = finalized(&host, &mut initialized(&host));
            vec![tdvpr, 0x4024]
        }
        leaf::VP_WR => {
            tdvpr = finalized(&host, &mut initialized(&host));
            vec![tdvpr, 0x4024, 1, u64::MAX]
        }
        leaf::VP_FLUSH => {
            tdvpr = finalized(&host, &mut initialized(&host));
            vec![tdvpr]
        }
        leaf::MEM_SEPT_ADD => {
            initialized(&host);
            vec![3, TDR, NEW]
        }
        leaf::MEM_PAGE_ADD => {
            with_tables(&host);
            vec![GPA, TDR, NEW, HOST_PAGE]
        }
        leaf::MEM_PAGE_AUG => {
            with_tables(&host);
            vec![GPA, TDR, NEW]
        }
        leaf::MEM_RANGE_BLOCK | leaf::MEM_PAGE_REMOVE => {
            with_tables(&host);
            host.ok(leaf::MEM_PAGE_AUG, &[GPA, TDR, NEW]);
            removed = NEW;
            vec![GPA, TDR]
        }
        leaf::MEM_SEPT_RD => {
            with_tables(&host);
            vec![GPA, TDR]
        }
        leaf::MEM_RANGE_UNBLOCK => {
            with_tables(&host);
            host.ok(leaf::MEM_PAGE_AUG, &[GPA, TDR, NEW]);
            host.ok(leaf::MEM_RANGE_BLOCK, &[GPA, TDR]);
            vec![GPA, TDR]
        }
        leaf::MEM_SEPT_REMOVE => {
            removed = *with_tables(&host).pages.last().unwrap();
            vec![1, TDR]
        }
        leaf::MNG_KEY_RECLAIMID => vec![TDR],
        leaf::MEM_TRACK => {
            initialized(&host);
            vec![TDR]
        }
        leaf::MR_EXTEND => {
            with_tables(&host).add_page(&host, GPA, &[0; 4096]);
            vec![GPA, TDR]
        }
        leaf::MR_FINALIZE => {
            initialized(&host).add_vcpu(&host);
            vec![TDR]
        }
        leaf::PHYMEM_PAGE_RDMD | leaf::PHYMEM_PAGE_WBINVD => vec![NEW],
        leaf::PHYMEM_PAGE_RECLAIM => {
            let td = created(&host);
            host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
            host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
            host.ok(leaf::MNG_KEY_FREEID, &[TDR]);
            vec![td.pages[5]]
        }
        leaf::PHYMEM_CACHE_WB => {
            host.ok(leaf::MNG_CREATE, &[TDR, 33]);
            host.ok(leaf::MNG_VPFLUSHDONE, &[TDR]);
            vec![0]
        }
        leaf::SYS_RD => vec![0, 0x9100_0001_0000_0008],
        _ => return None,
    };
    Some(Prepared {
        host,
        rax,
        operands,
        tdvpr,
        removed,
    })
}

impl Prepared {
    /// The lock that a declaration speaks of.
    fn lock(&self, what: &str) -> Option<Lock> {
        let page = |pa: u64| Lock::Page { pa, level: 0 };
        let has_td = || {
            let lp = self.host.machine.lp(0);
            let info = self.host.module.td_info(&lp, TDR);
            info.is_some_and(|info| info.control_pages >= 6)
        };
        Some(match what {
            "global" => Lock::Global,
            "KOT" => Lock::Kot,
            "WBT entry" => Lock::Wbcache(0),
            "TDMR" => Lock::Tdmr(0),
            "TDR" => page(TDR),
            "TDVPR" if self.tdvpr != 0 => page(self.tdvpr),
            "page RCX" if self.operands[0] > TDMR_BASE => page(self.operands[0]),
            "page R8" => page(NEW),
            "page of the entry" if self.removed != 0 => page(self.removed),
            "OP_STATE" if has_td() => Lock::OpState(TDR),
            "SEPT tree" if has_td() => Lock::SeptTree(TDR),
            "epoch" if has_td() => Lock::Epoch(TDR),
            "SEPT entry" => {
                let level = (self.operands[0] & 7) as u8;
                let gpa = self.operands[0] & !7;
                let lp = self.host.machine.lp(0);
                self.host.module.sept_entry_lock(&lp, TDR, gpa, level)?
            }
            _ => return None,
        })
    }
}

const WHATS: [&str; 13] = [
    "global",
    "KOT",
    "WBT entry",
    "TDMR",
    "TDR",
    "TDVPR",
    "page RCX",
    "page R8",
    "page of the entry",
    "OP_STATE",
    "SEPT tree",
    "SEPT entry",
    "epoch",
];

const MODES: [LockMode; 2] = [LockMode::Shared, LockMode::Exclusive];

/// How a leaf takes a lock, by its declaration, and its answer if it cannot.
fn declared(prepared: &Prepared, info: &LeafInfo, what: &str) -> Option<(LockMode, Status)> {
    let lock = info.locks.iter().find(|lock| lock.what.name() == what)?;
    let version = (prepared.rax >> 16) as u8;
    let mode = lock.mode_in(version, prepared.host.module.profile());
    Some((mode, lock.busy()))
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn every_lock_against_every_leaf() {
    let (mut busy, mut free) = (0, 0);
    for info in LeafInfo::all() {
        let number = u64::from(info.number);
        let Some(mut prepared) = prepare(number) else {
            continue;
        };
        let mut tried = Vec::new();
        for what in WHATS {
            let Some(lock) = prepared.lock(what) else {
                continue;
            };
            // Two names of the same lock, of which the leaf uses the other.
            let is_declared = declared(&prepared, info, what).is_some();
            let same_as = |other: &str| prepared.lock(other) == Some(lock);
            let used = WHATS.iter().any(|other| {
                *other != what && same_as(other) && declared(&prepared, info, other).is_some()
            });
            if !is_declared && (used || tried.contains(&lock)) {
                continue;
            }
            tried.push(lock);
            for mode in MODES {
                let record = LockRecord { lock, mode };
                let conflict = declared(&prepared, info, what).filter(|(own, _)| {
                    *own == LockMode::Exclusive
                        || mode == LockMode::Exclusive
                        || what == "SEPT entry"
                });
                let Prepared {
                    host,
                    rax,
                    operands,
                    ..
                } = &prepared;
                if let Some((_, status)) = conflict {
                    host.busy(record, *rax, operands, status);
                    busy += 1;
                } else {
                    host.not_busy(record, *rax, operands);
                    free += 1;
                    prepared = prepare(number).unwrap();
                }
            }
        }
        // Nothing that was tried hinders it now.
        prepared.host.ok(prepared.rax, &prepared.operands);
    }
    assert!(busy > 80 && free > 200, "{busy} busy, {free} free");
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn larger_pages_against_every_leaf() {
    for info in LeafInfo::all() {
        let number = u64::from(info.number);
        let Some(prepared) = prepare(number) else {
            continue;
        };
        let page_locks = ["TDR", "TDVPR", "page RCX", "page R8"];
        // What an operand names is found from the top; the rest is known already.
        let first = info
            .locks
            .iter()
            .find(|lock| page_locks.contains(&lock.what.name()));
        for level in [1, 2] {
            for mode in MODES {
                let lock = Lock::Page { pa: NEW, level };
                let record = LockRecord { lock, mode };
                match first {
                    Some(first) if mode == LockMode::Exclusive => {
                        let status = first.busy();
                        let Prepared {
                            host,
                            rax,
                            operands,
                            ..
                        } = &prepared;
                        host.busy(record, *rax, operands, status);
                    }
                    _ => {
                        let prepared = prepare(number).unwrap();
                        prepared
                            .host
                            .not_busy(record, prepared.rax, &prepared.operands);
                    }
                }
            }
        }
    }
}

/// What each leaf answers about a TD from which something went wrong for good, by its declaration.
#[test]
fn fatal_tds() {
    let mut refused = 0;
    for info in LeafInfo::all() {
        let Some(prepared) = prepare(u64::from(info.number)) else {
            continue;
        };
        let lp = prepared.host.machine.lp(0);
        if prepared.host.module.td_info(&lp, TDR).is_none() {
            continue;
        }
        prepared.host.module.make_fatal(&lp, TDR);
        let Prepared {
            host,
            rax,
            operands,
            ..
        } = &prepared;
        if info.can_answer(Status::TD_FATAL) {
            host.fails(*rax, operands, Status::TD_FATAL);
            refused += 1;
        } else {
            // It can be taken apart.
            host.ok(*rax, operands);
        }
    }
    assert!(refused >= 17, "{refused}");
}

#[test]
fn a_large_page_against_a_small_one() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    td.add_tables(&host);
    let page = TDMR_BASE + 0x1000_0000;
    let operands = [0x20_0000 | 1, TDR, page];
    for (level, mode, operand) in [
        (1, LockMode::Shared, Operand::R8),
        (1, LockMode::Exclusive, Operand::R8),
        // The TDR lies in the same 1 GiB.
        (2, LockMode::Exclusive, Operand::Rdx),
    ] {
        let lock = Lock::Page { pa: page, level };
        let busy = Status::OPERAND_BUSY.on(operand);
        host.busy(
            LockRecord { lock, mode },
            leaf::MEM_PAGE_AUG,
            &operands,
            busy,
        );
    }
    let lock = Lock::Page { pa: page, level: 2 };
    let record = LockRecord {
        lock,
        mode: LockMode::Shared,
    };
    host.not_busy(record, leaf::MEM_PAGE_AUG, &operands);
}

#[test]
fn a_host_that_waits_keeps_guests_away() {
    let prepared = prepare(leaf::MEM_PAGE_AUG).unwrap();
    let lock = prepared.lock("SEPT entry").unwrap();
    let Lock::SeptEntry { entry, .. } = lock else {
        panic!("{lock:?}");
    };
    let lp = prepared.host.machine.lp(0);
    let mark = || lp.read64(entry) & 1 << 52 != 0;
    assert!(!mark());
    let record = LockRecord {
        lock,
        mode: LockMode::Exclusive,
    };
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    let Prepared { host, operands, .. } = &prepared;
    host.busy(record, leaf::MEM_PAGE_AUG, operands, busy);
    assert!(mark());
    host.ok(leaf::MEM_PAGE_AUG, operands);
    assert!(!mark());
}

#[test]
fn busy_comes_before_the_wrong_type() {
    let host = Host::start(&PROFILE_1_5_05);
    let lock = Lock::Page { pa: TDR, level: 0 };
    let record = LockRecord {
        lock,
        mode: LockMode::Shared,
    };
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    host.busy(record, leaf::MNG_INIT, &[TDR, HOST_PAGE], busy);
    let wrong = Status::PAGE_METADATA_INCORRECT.on(Operand::Rcx);
    host.fails_with_effects(leaf::MNG_INIT, &[TDR, HOST_PAGE], wrong);
    let hkid = u64::from(GLOBAL_HKID);
    host.fails(leaf::MNG_CREATE, &[TDR, hkid], Status::HKID_NOT_FREE);
}

/// Several processors add, block, track and remove pages of one TD, each its own, until each has
/// done so often enough.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn processors_work_on_one_td() {
    const ROUNDS: u64 = 60;
    let host = Host::start_with_packages(&PROFILE_1_5_05, 2);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    td.add_tables(&host);
    let pages = host.module.pages(PageType::Reg);
    std::thread::scope(|scope| {
        for lp in 0..4 {
            let host = &host;
            scope.spawn(move || {
                let lp_host = host.on(lp);
                let lp = u64::from(lp);
                // A leaf may find a lock taken; nothing else may go wrong.
                let retry = |rax: u64, operands: &[u64]| loop {
                    let (status, regs) = lp_host.call_on(rax, operands);
                    match status >> 32 {
                        0 => return regs,
                        0x8000_0200 => std::thread::yield_now(),
                        _ => panic!("leaf {rax} {operands:x?}: {status:#x}"),
                    }
                };
                for round in 0..ROUNDS {
                    let gpa = (lp * ROUNDS + round) * 0x1000;
                    let page = NEW + gpa;
                    retry(leaf::MEM_PAGE_AUG, &[gpa, TDR, page]);
                    retry(leaf::MEM_RANGE_BLOCK, &[gpa, TDR]);
                    retry(leaf::MEM_TRACK, &[TDR]);
                    if round % 2 == 0 {
                        let regs = retry(leaf::MEM_PAGE_REMOVE, &[gpa, TDR]);
                        assert_eq!(regs.rcx, page);
                    }
                }
            });
        }
    });
    let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
    assert_eq!(host.module.pages(PageType::Reg), pages + 4 * ROUNDS / 2);
    assert_eq!(info.pages, 6 + 3 + 4 * ROUNDS / 2);
    assert_eq!(info.epoch, 1 + 4 * ROUNDS);
    let events = host.machine.take_events();
    let mut count = 0i64;
    for event in events {
        match event {
            tdx_emulator_host::module::Event::LockTaken(_) => count += 1,
            tdx_emulator_host::module::Event::LockReleased(_) => count -= 1,
            _ => {}
        }
    }
    assert_eq!(count, 0);
}
