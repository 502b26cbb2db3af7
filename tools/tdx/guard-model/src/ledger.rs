// SPDX-License-Identifier: GPL-2.0

//! Who holds which lock, who waits for what, and what follows from it.

use std::{
    cell::RefCell,
    hash::{
        DefaultHasher,
        Hash,
        Hasher, //
    },
};

/// A lock of the protocol.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Lock {
    /// `kvm->lock`.
    Vm,
    /// `vcpu->mutex`, by the vCPU's index.
    Vcpu(usize),
    /// `kvm->slots_lock`.
    Slots,
    /// `filemap_invalidate_lock()` of the guest_memfd.
    File,
    /// `kvm->mmu_lock`, for write.
    Mmu,
}

/// How a SEAMCALL locks the TD in the TDX module.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Mode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

/// What a thread has to wait for at the place that it has come to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Wait {
    /// Nothing. Another thread may go on first, though.
    Nothing,
    /// A lock is free.
    Lock(Lock),
    /// A thread has died of a signal.
    Death,
}

/// The state of a TD.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum State {
    Uninitialized,
    Initialized,
    Runnable,
}

/// What the threads share, other than locks.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Shared {
    /// `kvm->created_vcpus`, a copy.
    pub created_vcpus: usize,
    /// `kvm->online_vcpus`.
    pub online_vcpus: usize,
    /// How many vCPUs are half created. Kept beside the counters, at which the guard looks.
    pub half_created: usize,
    /// What the TD has come to.
    pub state: State,
    /// Whether the module has finalized it. From then on it wants TLBs tracked before a page goes.
    pub finalized: bool,
    /// Whether the page that KVM_TDX_INIT_MEM_REGION adds is mapped into the TD.
    pub mapped: bool,
    /// Whether a page of another guest_memfd is.
    pub mapped_elsewhere: bool,
    /// How many threads have the VM open.
    pub users: usize,
    /// Whether a thread has died of a signal.
    pub death: bool,
}

/// What is known of a thread.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
struct Task {
    /// Where it is. [`None`] if it has not come to such a place yet.
    waits_for: Option<Wait>,
    /// How many such places it has come to.
    steps: usize,
    /// What it has seen of what the threads share, hashed. What it does next depends on nothing else.
    seen: Vec<u64>,
    /// In the order in which they were taken.
    held: Vec<Lock>,
    /// The SEAMCALL that it is in.
    seamcall: Option<Mode>,
    /// A fatal signal comes while it waits for the mutex of this vCPU.
    killed_at: Option<usize>,
    /// Whether a vCPU was half created when it got `kvm->lock`.
    saw_half_created: bool,
}

/// Where all threads are and what they share: an execution can go on in the same ways from equal
/// ones.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Ledger {
    tasks: Vec<Task>,
    shared: Shared,
    /// Whether what has no effect yet is complained of: a lock that is missing or released out of
    /// turn.
    strict: bool,
    /// Nobody can go on.
    deadlock: bool,
}

// The threads take turns on one of the system's.
thread_local! {
    static LEDGER: RefCell<Option<Ledger>> = const { RefCell::new(None) };
}

fn with<R>(f: impl FnOnce(&mut Ledger) -> R) -> R {
    LEDGER.with_borrow_mut(|ledger| f(ledger.as_mut().expect("an execution has begun")))
}

fn with_me<R>(f: impl FnOnce(&mut Task) -> R) -> R {
    let me = usize::from(shuttle::current::me());

    with(|ledger| f(&mut ledger.tasks[me]))
}

/// Begins an execution with so many threads, beside the one that spawns them. If not `strict`, only
/// effects count.
pub(crate) fn begin(shared: Shared, strict: bool) {
    let ledger = Ledger {
        tasks: vec![Task::default(); shared.users + 1],
        shared,
        strict,
        deadlock: false,
    };

    LEDGER.set(Some(ledger));
}

/// Returns the ledger as it is.
pub(crate) fn snapshot() -> Ledger {
    with(|ledger| ledger.clone())
}

/// Looks at what the threads share, or changes it.
pub(crate) fn shared<R: Hash>(f: impl FnOnce(&mut Shared) -> R) -> R {
    let result = with(|ledger| f(&mut ledger.shared));
    let mut hasher = DefaultHasher::new();

    result.hash(&mut hasher);
    with_me(|task| task.seen.push(hasher.finish()));
    result
}

/// Lets other threads go on, and comes back when there is nothing to wait for.
fn pause(wait: Wait) {
    with_me(|task| {
        task.waits_for = Some(wait);
        task.steps += 1;
    });
    shuttle::thread::yield_now();
    if with(|ledger| ledger.deadlock) {
        panic!("deadlock: {}", describe());
    }
}

/// Whether a thread has not come to any place yet where others may go on first.
pub(crate) fn has_not_begun(task: usize) -> bool {
    with(|ledger| ledger.tasks[task].waits_for.is_none())
}

/// Whether a thread can go on.
pub(crate) fn can_go_on(task: usize) -> bool {
    with(|ledger| match ledger.tasks[task].waits_for {
        None | Some(Wait::Nothing) => true,
        Some(Wait::Death) => ledger.shared.death,
        Some(Wait::Lock(lock)) => !ledger.tasks.iter().any(|task| task.held.contains(&lock)),
    })
}

/// Makes the thread that goes on next say that nobody can.
pub(crate) fn set_deadlock() {
    with(|ledger| ledger.deadlock = true);
}

fn describe() -> String {
    with(|ledger| {
        let threads = ledger.tasks.iter().enumerate().skip(1);
        let lines: Vec<_> = threads
            .map(|(n, task)| format!("thread {n} has {:?}, {:?}", task.held, task.waits_for))
            .collect();

        lines.join("; ")
    })
}

/// Lets other threads go on first, maybe.
pub(crate) fn point() {
    pause(Wait::Nothing);
}

/// Waits until a thread has died.
pub(crate) fn wait_for_death() {
    pause(Wait::Death);
}

/// Takes a lock.
pub(crate) fn take(lock: Lock) {
    pause(Wait::Lock(lock));

    let half_created = shared(|shared| shared.half_created != 0);

    with_me(|task| {
        task.held.push(lock);
        if lock == Lock::Vm {
            task.saw_half_created = half_created;
        }
    });
}

/// Releases a lock.
pub(crate) fn release(lock: Lock) {
    // A check has failed, and the guards on the way out are dropped.
    if std::thread::panicking() {
        return;
    }

    let in_reverse = with_me(|task| {
        let n = task.held.iter().rposition(|held| *held == lock)?;
        let last = task.held[task.held.len() - 1];

        task.held.remove(n);
        // C releases the vCPUs in the order of their indices. They are all of one rank.
        Some(match (last, lock) {
            (Lock::Vcpu(_), Lock::Vcpu(_)) => true,
            (last, lock) => last == lock,
        })
    });

    match in_reverse {
        Some(false) if !with(|ledger| ledger.strict) => {}
        None => panic!("{lock:?} is released, and not held"),
        Some(false) => panic!("{lock:?} is released, not the lock that was taken last"),
        Some(true) => {}
    }
}

/// Makes a SEAMCALL. The lock in the module never waits: two that exclude each other race.
pub(crate) fn seamcall(mode: Mode) {
    with(|ledger| {
        let mut others = ledger.tasks.iter().filter_map(|task| task.seamcall);

        if others.any(|other| other == Mode::Exclusive || mode == Mode::Exclusive) {
            panic!("two SEAMCALLs race: TDX_OPERAND_BUSY");
        }
    });
    with_me(|task| task.seamcall = Some(mode));
    point();
    with_me(|task| task.seamcall = None);
}

/// Whether the current thread holds a lock.
pub(crate) fn holds(lock: Lock) -> bool {
    with_me(|task| task.held.contains(&lock))
}

/// Panics if the current thread lacks a lock.
pub(crate) fn expect_held(lock: Lock) {
    assert!(
        holds(lock) || !with(|ledger| ledger.strict),
        "{lock:?} is missing around a change of state"
    );
}

/// Panics if the current thread holds nothing that keeps the TD in its state.
pub(crate) fn expect_frozen() {
    let frozen = with_me(|task| task.held.iter().any(|lock| matches!(lock, Lock::Vcpu(_))));

    assert!(
        frozen || holds(Lock::Vm) || !with(|ledger| ledger.strict),
        "the state is looked at without a lock"
    );
}

/// Panics if the current thread holds anything.
pub(crate) fn expect_nothing_held() {
    with_me(|task| assert_eq!(task.held, [], "locks are left held"));
}

/// Panics if any thread holds anything.
pub(crate) fn expect_nothing_held_by_any() {
    with(|ledger| {
        for task in &ledger.tasks {
            assert_eq!(task.held, [], "locks of a VM that is destroyed are held");
        }
    });
}

/// Says that a fatal signal comes while the current thread waits for a vCPU.
pub(crate) fn kill_at(vcpu: usize) {
    with_me(|task| task.killed_at = Some(vcpu));
}

/// Whether the current thread is killed while it waits for this vCPU.
pub(crate) fn is_killed_at(vcpu: usize) -> bool {
    with_me(|task| task.killed_at == Some(vcpu))
}

/// Whether the current thread is killed while it waits for some vCPU.
pub(crate) fn is_killed() -> bool {
    with_me(|task| task.killed_at.is_some())
}

/// Whether a vCPU was half created when the current thread got `kvm->lock`.
pub(crate) fn saw_half_created() -> bool {
    with_me(|task| task.saw_half_created)
}
