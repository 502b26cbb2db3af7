// SPDX-License-Identifier: GPL-2.0

//! Ways to get the protocol wrong, each of which has to be noticed.
//!
//! A flaw lies in what the guard calls, so that the guard itself stays what it is in the kernel.

use std::cell::Cell;

/// A part of the protocol that is left out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Flaw {
    /// The protocol is as it should be.
    None,
    /// `kvm->lock` is not taken.
    NoVmLock,
    /// No vCPU's mutex is taken.
    NoVcpuMutexes,
    /// The mutex of the last vCPU is not taken.
    OneVcpuMutexShort,
    /// `slots_lock` is not taken.
    NoSlotsLock,
    /// `mmu_lock` is not taken for TDH.VP.INIT.
    NoMmuLock,
    /// KVM takes the TD for runnable some time after the module does.
    RunnableLate,
    /// `slots_lock` is taken before the vCPUs' mutexes, as the first version of the guard in C did.
    SlotsBeforeVcpus,
    /// `kvm->lock` is released as soon as the vCPUs are locked.
    VmReleasedEarly,
    /// `slots_lock` is released last.
    SlotsReleasedLast,
    /// Nobody looks whether a vCPU is half created.
    HalfCreatedUnnoticed,
    /// A waiter that was killed keeps the mutexes that it had got.
    KilledKeepsVcpus,
    /// No signal ends the wait for a vCPU's mutex.
    NotKillable,
}

thread_local! {
    static FLAW: Cell<Flaw> = const { Cell::new(Flaw::None) };
}

/// Sets the flaw for what this thread of the test runs from now on.
pub fn set(flaw: Flaw) {
    FLAW.set(flaw);
}

/// Whether this flaw is there.
pub(crate) fn is(flaw: Flaw) -> bool {
    FLAW.get() == flaw
}
