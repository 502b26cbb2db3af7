// SPDX-License-Identifier: GPL-2.0

//! KUnit tests of the lock ladder, on the mutexes of a `struct kvm` that no vendor module has seen.

use super::*;

use crate::{
    alloc::KVBox,
    bindings,
    prelude::*,
    static_lock_class, //
};

use core::{
    mem::MaybeUninit,
    ptr,
    sync::atomic::{
        AtomicU32,
        Ordering, //
    },
};

/// A VM with vCPUs, of which only the locks are of use.
struct Fixture {
    kvm: KVBox<MaybeUninit<bindings::kvm>>,
    vcpus: KVec<KVBox<MaybeUninit<bindings::kvm_vcpu>>>,
}

impl Fixture {
    fn new(nr_vcpus: u32) -> Result<Self> {
        let zeroed = GFP_KERNEL | __GFP_ZERO;
        let mut fixture = Self {
            kvm: KVBox::new_uninit(zeroed)?,
            vcpus: KVec::new(),
        };
        let kvm = fixture.kvm();

        // SAFETY: All of it is zeroed memory that belongs to the fixture. The names and keys are
        // static.
        unsafe {
            let (vm_key, slots_key) = (static_lock_class!(), static_lock_class!());

            bindings::__mutex_init(
                &raw mut (*kvm).lock,
                c"kvm->lock".as_char_ptr(),
                vm_key.as_ptr(),
            );
            bindings::__mutex_init(
                &raw mut (*kvm).slots_lock,
                c"kvm->slots_lock".as_char_ptr(),
                slots_key.as_ptr(),
            );
            bindings::xa_init_flags(&raw mut (*kvm).vcpu_array, 0);
        }

        for i in 0..nr_vcpus {
            fixture.vcpus.push(KVBox::new_uninit(zeroed)?, GFP_KERNEL)?;

            let vcpu = fixture.vcpu(i as usize);

            // SAFETY: As above. The fixture takes the vCPU out of the array before freeing it.
            unsafe {
                let vcpu_key = static_lock_class!();

                bindings::__mutex_init(
                    &raw mut (*vcpu).mutex,
                    c"vcpu->mutex".as_char_ptr(),
                    vcpu_key.as_ptr(),
                );
                (*vcpu).kvm = kvm;
                (*vcpu).vcpu_idx = i as c_int;

                bindings::xa_lock(&raw mut (*kvm).vcpu_array);
                bindings::__xa_store(
                    &raw mut (*kvm).vcpu_array,
                    i as usize,
                    vcpu.cast(),
                    bindings::GFP_ATOMIC,
                );
                bindings::xa_unlock(&raw mut (*kvm).vcpu_array);

                (*kvm).created_vcpus += 1;
                (*kvm).online_vcpus.counter += 1;
            }
        }
        Ok(fixture)
    }

    fn kvm(&self) -> *mut bindings::kvm {
        self.kvm.as_ptr().cast_mut()
    }

    fn vm(&self) -> &Vm {
        // SAFETY: The fixture has what the lock ladder looks at.
        unsafe { Vm::from_raw(self.kvm()) }
    }

    fn vcpu(&self, i: usize) -> *mut bindings::kvm_vcpu {
        self.vcpus[i].as_ptr().cast_mut()
    }

    fn vm_lock(&self) -> *mut bindings::mutex {
        // SAFETY: The field is part of memory that is alive.
        unsafe { &raw mut (*self.kvm()).lock }
    }

    fn slots_lock(&self) -> *mut bindings::mutex {
        // SAFETY: The field is part of memory that is alive.
        unsafe { &raw mut (*self.kvm()).slots_lock }
    }

    fn vcpu_mutex(&self, i: usize) -> *mut bindings::mutex {
        // SAFETY: The field is part of memory that is alive.
        unsafe { &raw mut (*self.vcpu(i)).mutex }
    }

    /// Returns which locks are held, by whomever: bit 0 `kvm->lock`, bit 1 `kvm->slots_lock`, from
    /// bit 2 on the vCPUs.
    fn held(&self) -> u32 {
        let is_locked = |lock| {
            // SAFETY: The mutex is initialised.
            u32::from(unsafe { bindings::mutex_is_locked(lock) })
        };
        let mut held = is_locked(self.vm_lock()) | is_locked(self.slots_lock()) << 1;

        for i in 0..self.vcpus.len() {
            held |= is_locked(self.vcpu_mutex(i)) << (2 + i);
        }
        held
    }

    fn nr_vcpus_locked(&self) -> usize {
        (0..self.vcpus.len())
            // SAFETY: The mutex is initialised.
            .filter(|&i| unsafe { bindings::mutex_is_locked(self.vcpu_mutex(i)) })
            .count()
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        // SAFETY: The array was initialised, and nobody looks at it any more.
        unsafe { bindings::xa_destroy(&raw mut (*self.kvm()).vcpu_array) };
    }
}

/// A number of vCPUs.
const MANY: u32 = 150;

const VM: u32 = 1 << 0;
const SLOTS: u32 = 1 << 1;
const VCPUS: u32 = 1 << 2 | 1 << 3;

/// A thread beside the test that takes a lock and keeps it until told.
struct OtherThread {
    lock: *mut bindings::mutex,
    /// One of the constants below.
    phase: AtomicU32,
}

const STARTED: u32 = 0;
const HAS_LOCK: u32 = 1;
const RELEASE: u32 = 2;
const DONE: u32 = 3;

impl OtherThread {
    fn new(lock: *mut bindings::mutex) -> Self {
        Self {
            lock,
            phase: AtomicU32::new(STARTED),
        }
    }

    /// Starts the thread. The caller has to wait for `DONE`.
    fn start(&self) -> Result {
        start_thread(other_thread, (&raw const *self).cast_mut().cast())
    }

    fn wait_for(&self, phase: u32) -> bool {
        wait_for(&self.phase, phase)
    }

    fn release(&self) -> bool {
        self.phase.store(RELEASE, Ordering::Release);
        self.wait_for(DONE)
    }
}

/// Starts a thread beside the test. `data` has to live until the thread says that it is `DONE`.
fn start_thread(body: unsafe extern "C" fn(*mut c_void) -> c_int, data: *mut c_void) -> Result {
    // SAFETY: The caller keeps `data` for as long as the thread uses it.
    let task = crate::error::from_err_ptr(unsafe {
        bindings::kthread_create_on_node(
            Some(body),
            data,
            bindings::NUMA_NO_NODE,
            c"kvm_lock_test".as_char_ptr(),
        )
    })?;

    // SAFETY: The task has just been created and has not run yet.
    unsafe { bindings::wake_up_process(task) };
    Ok(())
}

/// Waits for a thread to come to a phase; gives up after ten seconds.
fn wait_for(phase: &AtomicU32, wanted: u32) -> bool {
    for _ in 0..1000 {
        if phase.load(Ordering::Acquire) == wanted {
            return true;
        }
        sleep_ms(10);
    }
    false
}

/// Body of an [`OtherThread`].
///
/// # Safety
///
/// `data` is an [`OtherThread`] that lives until it is `DONE`.
unsafe extern "C" fn other_thread(data: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let this = unsafe { &*data.cast_const().cast::<OtherThread>() };

    // SAFETY: The mutex is initialised and lives as long as the fixture.
    unsafe { bindings::mutex_lock(this.lock) };
    this.phase.store(HAS_LOCK, Ordering::Release);
    while this.phase.load(Ordering::Acquire) != RELEASE {
        sleep_ms(1);
    }
    // SAFETY: Taken above.
    unsafe { bindings::mutex_unlock(this.lock) };
    this.phase.store(DONE, Ordering::Release);
    0
}

fn sleep_ms(ms: u32) {
    // SAFETY: Tests may sleep.
    unsafe { bindings::msleep(ms) };
}

/// Watches a ladder being dropped over and over.
struct Observer<'a> {
    fixture: &'a Fixture,
    /// Odd while the ladder is being built, even from then on until it is gone.
    round: AtomicU32,
    /// How often the observer has seen the locks in one round.
    samples: AtomicU32,
    /// What was held in spite of an outer lock being free.
    out_of_order: AtomicU32,
    stop: AtomicU32,
}

impl Observer<'_> {
    /// Looks once. The outer lock is looked at first: as locks are only released in an even round,
    /// an inner one that is held later was held then too.
    fn look(&self) {
        let round = self.round.load(Ordering::SeqCst);

        if round % 2 != 0 {
            return;
        }

        let vm = self.fixture.held() & VM;
        let vcpus = self.fixture.held() & VCPUS;
        let slots = self.fixture.held() & SLOTS;

        if self.round.load(Ordering::SeqCst) != round {
            return;
        }
        if vm == 0 && vcpus | slots != 0 || vcpus == 0 && slots != 0 {
            self.out_of_order.fetch_or(vcpus | slots, Ordering::Relaxed);
        }
        self.samples.fetch_add(1, Ordering::Relaxed);
    }
}

/// Body of an [`Observer`]'s thread.
///
/// # Safety
///
/// `data` is an [`Observer`] that lives until `stop` is [`DONE`].
unsafe extern "C" fn observe(data: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements.
    let this = unsafe { &*data.cast_const().cast::<Observer<'_>>() };

    while this.stop.load(Ordering::Acquire) != RELEASE {
        this.look();
    }
    this.stop.store(DONE, Ordering::Release);
    0
}

/// Rounds in which the observer may see a lock that is released too late.
const ROUNDS: u32 = 1000;

#[macros::kunit_tests(rust_kvm_locks)]
mod cases {
    use super::*;

    #[test]
    fn each_step_takes_its_lock() -> Result {
        let fixture = Fixture::new(2)?;

        let before = fixture.held();
        let vm = fixture.vm().lock();
        let with_vm = fixture.held();
        let vcpus = vm.lock_all_vcpus()?;
        let with_vcpus = fixture.held();
        let slots = vcpus.lock_slots();
        let with_slots = fixture.held();
        drop(slots);
        let after = fixture.held();

        assert_eq!(before, 0);
        assert_eq!(with_vm, VM);
        assert_eq!(with_vcpus, VM | VCPUS);
        assert_eq!(with_slots, VM | VCPUS | SLOTS);
        assert_eq!(after, 0);
        Ok(())
    }

    #[test]
    fn a_shorter_ladder_releases_what_it_took() -> Result {
        let fixture = Fixture::new(2)?;

        drop(fixture.vm().lock());
        let after_vm = fixture.held();
        drop(fixture.vm().lock().lock_all_vcpus()?);
        let after_vcpus = fixture.held();

        assert_eq!(after_vm, 0);
        assert_eq!(after_vcpus, 0);
        Ok(())
    }

    #[test]
    fn locks_are_released_in_reverse() -> Result {
        let fixture = Fixture::new(2)?;
        let observer = Observer {
            fixture: &fixture,
            round: AtomicU32::new(1),
            samples: AtomicU32::new(0),
            out_of_order: AtomicU32::new(0),
            stop: AtomicU32::new(STARTED),
        };

        start_thread(observe, (&raw const observer).cast_mut().cast())?;
        for _ in 0..ROUNDS {
            let ladder = fixture.vm().lock().lock_all_vcpus()?.lock_slots();

            observer.round.fetch_add(1, Ordering::SeqCst);
            drop(ladder);
            // On a machine with one CPU, the observer gets its turn here.
            // SAFETY: Tests may sleep.
            unsafe { bindings::schedule() };
            observer.round.fetch_add(1, Ordering::SeqCst);
        }
        observer.stop.store(RELEASE, Ordering::Release);
        let stopped = wait_for(&observer.stop, DONE);

        assert!(stopped);
        assert_ne!(observer.samples.load(Ordering::Relaxed), 0);
        assert_eq!(observer.out_of_order.load(Ordering::Relaxed), 0);
        Ok(())
    }

    #[test]
    fn a_half_created_vcpu_is_busy() -> Result {
        let fixture = Fixture::new(2)?;

        // SAFETY: The test is the only user of the fixture.
        unsafe { (*fixture.kvm()).created_vcpus += 1 };
        let result = fixture.vm().lock().lock_all_vcpus().err();

        assert_eq!(result, Some(EBUSY));
        assert_eq!(fixture.held(), 0);
        Ok(())
    }

    /// Locks the vCPUs while another thread holds the mutex of vCPU `i` and a fatal signal is
    /// pending. Returns how that ended, and how many mutexes of vCPUs were locked thereafter.
    fn lock_killed_at(fixture: &Fixture, i: usize) -> Result<(Option<Error>, usize)> {
        let other = OtherThread::new(fixture.vcpu_mutex(i));

        other.start()?;
        let started = other.wait_for(HAS_LOCK);

        // A kernel thread gets no signal that it does not ask for. This is `allow_signal()`.
        // SAFETY: The constant is the handler that stands for it, not an address.
        let allow = unsafe { core::mem::transmute::<usize, bindings::__sighandler_t>(2) };
        let me = current!().as_ptr();

        // SAFETY: The current task may send itself a signal.
        unsafe {
            bindings::kernel_sigaction(bindings::SIGKILL as c_int, allow);
            bindings::send_sig(bindings::SIGKILL as c_int, me, 1);
        }
        let result = fixture.vm().lock().lock_all_vcpus().err();
        let locked = fixture.nr_vcpus_locked();

        // SAFETY: The current task may drop its signals.
        unsafe { bindings::flush_signals(me) };
        let released = other.release();

        assert!(started && released);
        Ok((result, locked))
    }

    #[test]
    fn a_killed_waiter_holds_nothing() -> Result {
        let fixture = Fixture::new(2)?;

        // Only what the other thread holds.
        assert_eq!(lock_killed_at(&fixture, 1)?, (Some(EINTR), 1));
        assert_eq!(fixture.held(), 0);
        Ok(())
    }

    /// More vCPUs than one node of the xarray holds, and a last node that is not full.
    #[test]
    fn each_of_many_vcpus_is_locked() -> Result {
        let fixture = Fixture::new(MANY)?;
        let vcpus = fixture.vm().lock().lock_all_vcpus()?;

        assert_eq!(fixture.nr_vcpus_locked(), MANY as usize);
        drop(vcpus);
        assert_eq!(fixture.nr_vcpus_locked(), 0);

        for i in [0, MANY / 2, MANY - 1] {
            assert_eq!(lock_killed_at(&fixture, i as usize)?, (Some(EINTR), 1));
            assert_eq!(fixture.nr_vcpus_locked(), 0);
        }
        Ok(())
    }

    #[test]
    fn a_vcpu_of_another_vm_is_refused() -> Result {
        let (fixture, stranger) = (Fixture::new(2)?, Fixture::new(1)?);
        // SAFETY: The fixtures have what is looked at: the pointer to the VM, and the mutex.
        let (own, other) = unsafe {
            (
                Vcpu::from_raw(fixture.vcpu(0)),
                Vcpu::from_raw(stranger.vcpu(0)),
            )
        };

        let vcpus = fixture.vm().lock().lock_all_vcpus()?;
        let own = vcpus.locked_vcpu(own).is_ok();
        let other = vcpus.locked_vcpu(other).err();

        drop(vcpus);
        assert!(own);
        assert_eq!(other, Some(EINVAL));
        Ok(())
    }

    #[test]
    fn two_vms_are_independent() -> Result {
        let (first, second) = (Fixture::new(2)?, Fixture::new(2)?);

        let ladder = first.vm().lock().lock_all_vcpus()?;
        let (a, b) = (first.held(), second.held());

        drop(ladder);
        assert_eq!(a, VM | VCPUS);
        assert_eq!(b, 0);
        assert!(!ptr::eq(first.vm(), second.vm()));
        Ok(())
    }
}
