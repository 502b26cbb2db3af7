// SPDX-License-Identifier: GPL-2.0

//! Several processors call leaves of one TD, in many of the orders in which their accesses to
//! memory can happen.
//!
//! Shuttle runs the processors as threads of which one at a time goes on, and chooses which at
//! each access to memory, at random or so that few choices are enough to be unlucky. Every lock
//! that a leaf takes and gives back is followed: two leaves never hold one in modes that exclude
//! each other, each is given back, and the mark that keeps guests away from a lock is there after
//! a leaf failed to get it and gone once one did.

use shuttle::{
    rand::{
        thread_rng,
        Rng, //
    },
    scheduler::{
        PctScheduler,
        RandomScheduler,
        Scheduler, //
    },
    sync::atomic::{
        AtomicUsize,
        Ordering, //
    },
    Config,
    Runner, //
};
use std::{
    collections::HashMap,
    sync::{
        Arc,
        Mutex, //
    },
};
use tdx_emulator_host::{
    host::{
        leaf,
        regs,
        seamcall,
        Host,
        Td,
        FIRST_PAGE,
        PAMT_BASE,
        TDMR_BASE,
        VERSION_1, //
    },
    machine::Lp,
    module::{
        Event,
        Lock,
        LockMode,
        PageType,
        Platform,
        Profile,
        Status,
        PROFILE_1_5_05,
        PROFILE_1_5_05_SHARED, //
    },
    watch::{
        Watch,
        Watched, //
    },
};

const TDR: u64 = FIRST_PAGE;
/// Pages that no TD has at first.
const NEW: u64 = TDR + 0x10_0000;
/// How many orders are tried of each test, of each kind.
const ORDERS: usize = 60;

/// The locks that are held: how many hold each shared, and whether one does alone.
type Locks = Mutex<HashMap<String, (usize, bool)>>;

/// Makes a processor wait, maybe, before each access to memory.
struct Follow<'a> {
    lp: Lp<'a>,
    /// What to touch so that another thread may go on.
    point: Arc<AtomicUsize>,
    locks: Arc<Locks>,
}

impl Follow<'_> {
    fn point(&self) {
        self.point.fetch_add(1, Ordering::SeqCst);
    }

    /// Whether guests are kept away from the lock. [`None`] if they never come near it.
    fn keeps_guests_away(&self, lock: Lock) -> Option<bool> {
        let (pa, bit) = match lock {
            Lock::Page { pa, level: 0 } => {
                let entry = (pa - TDMR_BASE) / 4096 * 16;
                (PAMT_BASE + 0x10_0000 + entry, 15)
            }
            Lock::SeptEntry { entry, .. } => (entry, 52),
            _ => return None,
        };
        Some(self.lp.read64(pa) >> bit & 1 != 0)
    }
}

impl Watch for Follow<'_> {
    fn access(&self, _pa: u64, _len: u64, _write: bool) {
        self.point();
    }

    // No other thread goes on between the access that took a lock, or gave it back, and this.
    fn event(&self, event: Event) {
        match event {
            Event::LockTaken(record) => {
                let mut locks = self.locks.lock().unwrap();
                let held = locks.entry(format!("{:?}", record.lock)).or_default();
                match record.mode {
                    LockMode::Shared => {
                        assert!(!held.1, "shared with an exclusive holder: {record:?}");
                        held.0 += 1;
                    }
                    LockMode::Exclusive => {
                        assert_eq!(*held, (0, false), "not alone: {record:?}");
                        held.1 = true;
                    }
                }
                drop(locks);
                let away = self.keeps_guests_away(record.lock);
                assert_ne!(away, Some(true), "still marked: {record:?}");
                if matches!(record.lock, Lock::Global | Lock::Kot | Lock::Wbcache(_)) {
                    // These lie in the module, so taking them was no access to memory.
                    self.point();
                }
            }
            Event::LockReleased(record) => {
                let mut locks = self.locks.lock().unwrap();
                let held = locks.entry(format!("{:?}", record.lock)).or_default();
                match record.mode {
                    LockMode::Shared => {
                        held.0 = held.0.checked_sub(1).expect("released, and not held");
                    }
                    LockMode::Exclusive => {
                        assert!(held.1, "released, and not held");
                        held.1 = false;
                    }
                }
            }
            Event::LockBusy(record) => {
                let away = self.keeps_guests_away(record.lock);
                assert_ne!(away, Some(false), "not marked: {record:?}");
            }
            _ => {}
        }
    }
}

/// What a processor does.
type Thread = Box<dyn FnOnce(&Caller) + Send>;

/// What a test's threads share.
struct World {
    host: Arc<Host>,
    point: Arc<AtomicUsize>,
    locks: Arc<Locks>,
}

impl World {
    /// Runs one closure on each processor, at the same time, until all are done.
    fn run<const N: usize>(&self, threads: [Thread; N]) {
        let threads: Vec<_> = (0..)
            .zip(threads)
            .map(|(lp, thread)| {
                let caller = Caller {
                    host: self.host.clone(),
                    point: self.point.clone(),
                    locks: self.locks.clone(),
                    lp,
                };
                shuttle::thread::spawn(move || thread(&caller))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap();
        }
        let locks = self.locks.lock().unwrap();
        let held: Vec<_> = locks
            .iter()
            .filter(|(_, held)| **held != (0, false))
            .collect();
        assert!(held.is_empty(), "still held: {held:?}");
        drop(locks);
        self.host.machine.take_events();
    }
}

/// A processor's thread.
struct Caller {
    host: Arc<Host>,
    point: Arc<AtomicUsize>,
    locks: Arc<Locks>,
    lp: u32,
}

impl Caller {
    /// Calls a leaf. Returns the status and RCX.
    fn call(&self, rax: u64, operands: &[u64]) -> (u64, u64) {
        let lp = self.host.machine.lp(self.lp);
        let cpu = Watched {
            lp,
            watch: Follow {
                lp,
                point: self.point.clone(),
                locks: self.locks.clone(),
            },
        };
        let mut regs = regs(rax, operands);
        seamcall(&self.host.module, &cpu, &mut regs);
        (regs.rax, regs.rcx)
    }

    /// Calls a leaf until no lock is in its way, at most so many times. Returns the status.
    fn insist(&self, rax: u64, operands: &[u64]) -> u64 {
        for _ in 0..200 {
            let (status, _) = self.call(rax, operands);
            if !is_busy(status) {
                return status;
            }
            shuttle::thread::yield_now();
        }
        panic!("leaf {rax:#x} {operands:x?} never gets its locks");
    }
}

fn is_busy(status: u64) -> bool {
    [Status::OPERAND_BUSY, Status::SYS_BUSY]
        .iter()
        .any(|busy| status >> 32 == busy.raw() >> 32)
}

/// Tries a test in many orders. `set_up` prepares the TD, alone; `test` then uses it; at the end all
/// that the TD has must be there to be taken back.
fn explore(
    profile: &'static Profile,
    set_up: impl Fn(&Host, &mut Td) + Send + Sync + Clone + 'static,
    test: impl Fn(&World, &mut Td) + Send + Sync + Clone + 'static,
) {
    // It serves for all orders, as each leaves nothing behind.
    let host = Arc::new(Host::start_with_packages(profile, 2));
    let body = move || {
        let world = World {
            host: host.clone(),
            point: Arc::default(),
            locks: Arc::default(),
        };
        let mut td = Td::create(&host, TDR, 33);
        set_up(&host, &mut td);
        test(&world, &mut td);
        td.tear_down(&host);
        for page_type in PageType::OWNED {
            assert_eq!(host.module.pages(page_type), 0, "{}", page_type.name());
        }
    };
    fn run(scheduler: impl Scheduler + 'static, body: impl Fn() + Send + Sync + 'static) {
        let mut config = Config::new();
        config.stack_size = 0x4_0000;
        Runner::new(scheduler, config).run(body);
    }
    run(RandomScheduler::new(ORDERS), body.clone());
    run(PctScheduler::new(3, ORDERS), body);
}

fn with_memory(host: &Host, td: &mut Td) {
    td.init(host);
    td.add_tables(host);
}

/// A page that several want is had by one.
#[test]
fn one_gets_the_page() {
    explore(&PROFILE_1_5_05, with_memory, |world, td| {
        let winners = Arc::new(AtomicUsize::new(0));
        let thread = |gpa: u64| -> Thread {
            let winners = winners.clone();
            Box::new(move |caller| {
                match caller.insist(leaf::MEM_PAGE_AUG, &[gpa, TDR, NEW]) >> 32 {
                    0 => _ = winners.fetch_add(1, Ordering::SeqCst),
                    status => assert_eq!(status, Status::PAGE_METADATA_INCORRECT.raw() >> 32),
                }
            })
        };
        world.run([thread(0x1000), thread(0x2000), thread(0x3000)]);
        assert_eq!(winners.load(Ordering::SeqCst), 1);
        td.pages.push(NEW);
    });
}

/// An entry that several want to fill is filled by one, with its page.
#[test]
fn one_gets_the_entry() {
    explore(&PROFILE_1_5_05, with_memory, |world, td| {
        let thread = |page: u64| -> Thread {
            Box::new(move |caller| {
                match caller.insist(leaf::MEM_PAGE_AUG, &[0x1000, TDR, page]) >> 32 {
                    0 => {}
                    status => assert_eq!(status, Status::EPT_ENTRY_STATE_INCORRECT.raw() >> 32),
                }
            })
        };
        world.run([thread(NEW), thread(NEW + 0x1000), thread(NEW + 0x2000)]);
        let host = &world.host;
        let lp = host.machine.lp(0);
        let is_reg = |page: &u64| {
            let info = host.module.page_info(&lp, *page);
            info.is_some_and(|info| info.page_type == PageType::Reg)
        };
        let filled: Vec<_> = (0..3).map(|n| NEW + n * 0x1000).filter(is_reg).collect();
        let [page] = filled[..] else {
            panic!("{filled:x?}");
        };
        td.pages.push(page);
    });
}

/// Whole lives of pages, each processor its own; what is counted in common is right in the end.
#[test]
fn pages_come_and_go() {
    explore(&PROFILE_1_5_05, with_memory, |world, td| {
        let thread = |gpa: u64, remove: bool| -> Thread {
            Box::new(move |caller| {
                let ok = |rax: u64, operands: &[u64]| {
                    assert_eq!(caller.insist(rax, operands), 0, "leaf {rax}");
                };
                ok(leaf::MEM_PAGE_AUG, &[gpa, TDR, NEW + gpa]);
                ok(leaf::MEM_RANGE_BLOCK, &[gpa, TDR]);
                ok(leaf::MEM_TRACK, &[TDR]);
                if remove {
                    ok(leaf::MEM_PAGE_REMOVE, &[gpa, TDR]);
                }
            })
        };
        let before = world
            .host
            .module
            .td_info(&world.host.machine.lp(0), TDR)
            .unwrap();
        world.run([
            thread(0x1000, true),
            thread(0x2000, false),
            thread(0x3000, true),
        ]);
        let after = world
            .host
            .module
            .td_info(&world.host.machine.lp(0), TDR)
            .unwrap();
        assert_eq!(after.pages, before.pages + 1);
        assert_eq!(after.epoch, before.epoch + 3);
        td.pages.push(NEW + 0x2000);
    });
}

/// Makes the pages of vCPUs without initialising them.
fn with_vcpus(host: &Host, td: &mut Td) {
    td.init(host);
    for _ in 0..3 {
        let tdvpr = td.page();
        host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
        for _ in 0..5 {
            let page = td.page();
            host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
        }
        td.vcpus.push(tdvpr);
    }
}

/// vCPUs are initialised at the same time: their indexes differ, and so do their x2APIC ids, in
/// whichever mode the TDR is locked.
#[test]
fn vcpus_are_told_apart() {
    for profile in [&PROFILE_1_5_05, &PROFILE_1_5_05_SHARED] {
        explore(profile, with_vcpus, |world, td| {
            let wins = Arc::new(Mutex::new(Vec::new()));
            let thread = |vcpu: usize, id: u64| -> Thread {
                let (tdvpr, wins) = (td.vcpus[vcpu], wins.clone());
                Box::new(move |caller| {
                    let rax = leaf::VP_INIT | VERSION_1;
                    match caller.insist(rax, &[tdvpr, 0, id]) >> 32 {
                        0 => {
                            wins.lock().unwrap().push((tdvpr, id));
                            assert_eq!(caller.insist(leaf::VP_FLUSH, &[tdvpr]), 0);
                        }
                        status => {
                            assert_eq!(status, Status::X2APIC_ID_NOT_UNIQUE.raw() >> 32);
                        }
                    }
                })
            };
            world.run([thread(0, 7), thread(1, 7), thread(2, 8)]);
            let wins = wins.lock().unwrap();
            assert!(wins.iter().filter(|(_, id)| *id == 7).count() <= 1);
            assert!(wins.iter().any(|(_, id)| *id == 8));
            let lp = world.host.machine.lp(0);
            let mut indexes: Vec<_> = wins
                .iter()
                .map(|(tdvpr, _)| world.host.module.vcpu_info(&lp, *tdvpr).unwrap().index)
                .collect();
            indexes.sort_unstable();
            indexes.dedup();
            assert_eq!(indexes.len(), wins.len());
            td.vcpus.clear();
        });
    }
}

/// A vCPU is associated with one processor at most.
#[test]
fn a_vcpu_is_on_one_processor() {
    let set_up = |host: &Host, td: &mut Td| {
        td.init(host);
        let tdvpr = td.add_vcpu(host);
        host.ok(leaf::MR_FINALIZE, &[TDR]);
        host.ok(leaf::VP_FLUSH, &[tdvpr]);
    };
    explore(&PROFILE_1_5_05, set_up, |world, td| {
        let tdvpr = td.vcpus[0];
        // Makes it be on the processor, and leave again, unless it is on another one, where its
        // guest may be running.
        let use_it = move |caller: &Caller, rax: u64, field: u64| {
            let status = caller.insist(rax, &[tdvpr, field]);
            let refusals = [Status::VCPU_ASSOCIATED, Status::VCPU_STATE_INCORRECT];
            if !refusals.map(Status::raw).contains(&status) {
                assert!(status == 0 || rax == leaf::VP_ENTER, "{status:#x}");
                assert_eq!(caller.insist(leaf::VP_FLUSH, &[tdvpr]), 0);
            }
        };
        world.run([
            Box::new(move |caller| use_it(caller, leaf::VP_RD, 0x4024)),
            Box::new(move |caller| use_it(caller, leaf::VP_ENTER, 0)),
            Box::new(move |caller| use_it(caller, leaf::VP_RD, 0x4024)),
        ]);
        let info = world
            .host
            .module
            .td_info(&world.host.machine.lp(0), TDR)
            .unwrap();
        assert_eq!(info.associated_vcpus, 0);
        td.vcpus.clear();
    });
}

/// One ends the TD while others go on using it and give it pages: either comes first.
#[test]
fn a_td_ends_under_its_users() {
    let set_up = |host: &Host, td: &mut Td| {
        td.init(host);
        td.add_tables(host);
    };
    explore(&PROFILE_1_5_05, set_up, |world, td| {
        let added = Arc::new(Mutex::new(Vec::new()));
        let user = |gpa: u64| -> Thread {
            let added = added.clone();
            Box::new(move |caller| {
                match caller.insist(leaf::MEM_PAGE_AUG, &[gpa, TDR, NEW + gpa]) {
                    0 => added.lock().unwrap().push(NEW + gpa),
                    status => assert_eq!(status, Status::TD_KEYS_NOT_CONFIGURED.raw()),
                }
            })
        };
        let end: Thread = Box::new(|caller| {
            assert_eq!(caller.insist(leaf::MNG_VPFLUSHDONE, &[TDR]), 0);
        });
        world.run([user(0x1000), end, user(0x2000)]);
        td.pages.extend(added.lock().unwrap().iter());
        td.ended = true;
    });
}

/// Two TDs want the same HKID and the same page, while a package's caches are written back.
#[test]
fn keys_are_had_by_one() {
    explore(
        &PROFILE_1_5_05,
        |_, _| {},
        |world, _| {
            let thread = |page: u64| -> Thread {
                Box::new(
                    move |caller| match caller.insist(leaf::MNG_CREATE, &[page, 34]) {
                        0 => {
                            assert_eq!(caller.insist(leaf::MNG_VPFLUSHDONE, &[page]), 0);
                        }
                        status => assert_eq!(status, Status::HKID_NOT_FREE.raw()),
                    },
                )
            };
            let flush: Thread = Box::new(|caller| {
                let status = caller.insist(leaf::PHYMEM_CACHE_WB, &[0]);
                assert!([0, Status::NO_HKID_READY_TO_WBCACHE.raw()].contains(&status));
            });
            world.run([thread(NEW), thread(NEW + 0x1000), flush]);
            let host = &world.host;
            assert_eq!(host.module.pages(PageType::Tdr), 2);
            let lp = host.machine.lp(0);
            let other = [NEW, NEW + 0x1000];
            let mut made = other
                .iter()
                .filter(|page| host.module.td_info(&lp, **page).is_some());
            let tdr = *made.next().unwrap();
            assert!(made.next().is_none());
            for lp in [0, 2] {
                let (status, _) = host.on(lp).call_on(leaf::PHYMEM_CACHE_WB, &[0]);
                assert!([0, Status::NO_HKID_READY_TO_WBCACHE.raw()].contains(&status));
            }
            host.ok(leaf::MNG_KEY_FREEID, &[tdr]);
            host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[tdr]);
        },
    );
}

/// What no two of these may do at once, they do not, whatever they call.
#[test]
fn anything_at_once() {
    let set_up = |host: &Host, td: &mut Td| {
        td.init(host);
        td.add_tables(host);
        td.add_vcpu(host);
    };
    explore(&PROFILE_1_5_05, set_up, |world, td| {
        let tdvpr = td.vcpus[0];
        let thread = || -> Thread {
            Box::new(move |caller| {
                for _ in 0..6 {
                    let n: u64 = thread_rng().gen_range(0..4);
                    let (gpa, page) = (n * 0x1000, NEW + n * 0x1000);
                    _ = match thread_rng().gen_range(0..13) {
                        0 | 1 => caller.call(leaf::MEM_PAGE_AUG, &[gpa, TDR, page]),
                        2 => caller.call(leaf::MEM_PAGE_ADD, &[gpa, TDR, page, 0x2000_0000]),
                        3 => caller.call(leaf::MEM_RANGE_BLOCK, &[gpa, TDR]),
                        4 => caller.call(leaf::MEM_RANGE_BLOCK, &[1, TDR]),
                        5 => caller.call(leaf::MEM_TRACK, &[TDR]),
                        6 => caller.call(leaf::MEM_PAGE_REMOVE, &[gpa, TDR]),
                        7 => caller.call(leaf::MR_EXTEND, &[gpa, TDR]),
                        8 => caller.call(leaf::PHYMEM_PAGE_RDMD, &[page]),
                        9 => caller.call(leaf::VP_RD, &[tdvpr, 0x4024]),
                        10 => caller.call(leaf::VP_FLUSH, &[tdvpr]),
                        11 => caller.call(leaf::MR_FINALIZE, &[TDR]),
                        _ => caller.call(leaf::VP_ENTER, &[tdvpr]),
                    };
                }
            })
        };
        world.run([thread(), thread(), thread()]);
        let host = &world.host;
        let lp = host.machine.lp(0);
        let vcpu = host.module.vcpu_info(&lp, tdvpr).unwrap();
        if let Some(associated) = vcpu.associated_lp {
            host.on(associated).ok_on(leaf::VP_FLUSH, &[tdvpr]);
        }
        td.vcpus.clear();
        let owned = (0..4).map(|n| NEW + n * 0x1000).filter(|page| {
            let info = host.module.page_info(&lp, *page);
            info.is_some_and(|info| info.page_type == PageType::Reg)
        });
        td.pages.extend(owned);
        let info = host.module.td_info(&lp, TDR).unwrap();
        assert_eq!(info.pages, td.pages.len() as u64);
    });
}
