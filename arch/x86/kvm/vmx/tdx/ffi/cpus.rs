// SPDX-License-Identifier: GPL-2.0

//! The CPUs and packages of the machine.

use kernel::{
    bindings,
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    cpumask::{
        Cpumask,
        CpumaskVar, //
    },
    prelude::*,
    types::NotThreadSafe, //
};

/// No CPU comes or goes: `cpus_read_lock()` is held.
///
/// # Invariants
///
/// The current task holds the CPU hotplug lock for read for as long as the guard exists.
#[must_use = "CPUs may come and go as soon as the guard is dropped"]
pub(crate) struct CpusReadLocked {
    _not_send: NotThreadSafe,
}

impl CpusReadLocked {
    /// Takes the lock.
    ///
    /// # Context
    ///
    /// May sleep.
    pub(crate) fn lock() -> Self {
        // SAFETY: May be called in any context that may sleep.
        unsafe { bindings::cpus_read_lock() };
        // INVARIANT: The lock has just been taken.
        Self {
            _not_send: NotThreadSafe,
        }
    }
}

impl Drop for CpusReadLocked {
    fn drop(&mut self) {
        // SAFETY: By the type invariant the current task holds the lock for read.
        unsafe { bindings::cpus_read_unlock() };
    }
}

/// A set of packages, by physical package id.
pub(crate) struct Packages(CpumaskVar);

impl Packages {
    /// Allocates an empty set.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: no memory.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(CpumaskVar::new_zero(GFP_KERNEL)?))
    }

    /// Checks that each package that is present has a CPU online, for each has to be programmed.
    /// Leaves the set empty.
    ///
    /// # Errors
    ///
    /// - `EIO`: a package has none. Says so in the log, since the operator can mend it.
    pub(crate) fn check_all_online(&mut self, _cpus: &CpusReadLocked) -> Result {
        for cpu in cpus().filter(|&cpu| is_present(cpu)) {
            self.0.set(package_of(cpu)?);
        }
        for cpu in cpus().filter(|&cpu| is_online(cpu)) {
            self.0.clear(package_of(cpu)?);
        }

        if !self.0.empty() {
            // SAFETY: Only prints.
            unsafe { bindings::tdx_rust_warn_package_offline() };
            return Err(EIO);
        }
        Ok(())
    }

    /// Calls `f` with the first online CPU of each package that is not in the set, and adds the
    /// package. Stops at the first error, which it returns.
    // Inlined: no frame of it is on the way down to where `f` goes.
    #[inline(always)]
    pub(crate) fn for_each_first_online_cpu(
        &mut self,
        _cpus: &CpusReadLocked,
        mut f: impl FnMut(CpuId) -> Result,
    ) -> Result {
        for cpu in cpus().filter(|&cpu| is_online(cpu)) {
            let package = package_of(cpu)?;

            if !self.0.test(package) {
                self.0.set(package);
                f(cpu)?;
            }
        }
        Ok(())
    }
}

fn cpus() -> impl Iterator<Item = CpuId> {
    (0..nr_cpu_ids()).filter_map(CpuId::from_u32)
}

fn is_present(cpu: CpuId) -> bool {
    // SAFETY: The mask of present CPUs is a global that is always initialised.
    unsafe { Cpumask::from_raw(&raw const bindings::__cpu_present_mask) }.test(cpu)
}

fn is_online(cpu: CpuId) -> bool {
    // SAFETY: The mask of online CPUs is a global that is always initialised.
    unsafe { Cpumask::from_raw(&raw const bindings::__cpu_online_mask) }.test(cpu)
}

/// Returns the physical package id of `cpu`, as the index in a mask of packages that it serves as.
/// There are no more packages than CPUs.
fn package_of(cpu: CpuId) -> Result<CpuId> {
    // CAST: A CPU number fits in a C `int`.
    // SAFETY: `cpu` is a valid CPU number.
    let package = unsafe { bindings::tdx_rust_package_id(cpu.as_u32() as c_int) };

    CpuId::from_i32(package).ok_or(EIO)
}
