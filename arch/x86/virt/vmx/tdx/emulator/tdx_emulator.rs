// SPDX-License-Identifier: GPL-2.0

//! An Intel TDX module in software, in place of the one in SEAM.
//!
//! On a CPU without SEAM the SEAMCALL instruction raises #UD. `emulator_glue.c` catches it and
//! hands the registers to [`module::Module`], which does what a TDX module would do, on the memory
//! that Linux has given to it. So Linux's own TDX host code runs unmodified.
//!
//! | part | what it is |
//! | --- | --- |
//! | `emulator_glue.c` | the trap, the boot parameter, the start before `subsys_initcall` |
//! | `ffi` | the border between C and Rust, the only unsafe code but for tests |
//! | `bench` | the debugfs files that measure what a SEAMCALL costs |
//! | `machine` | the machine as [`module::Platform`] wants to see it |
//! | `memory` | what the module stores, unreadable to the host, and who wrote to it |
//! | `emulator_memory.c` | where RAM is, and how the host sees it |
//! | `module` | the module proper: no kernel in it, also built and tested on any host |
//! | `show` | the tracepoint, the counters and the debugfs files |
//! | `tests`, `emulator_test.c` | KUnit tests: leaves on two CPUs at once |
//!
//! Nothing is confidential. See `Documentation/arch/x86/tdx-emulator.rst`.

#![deny(unsafe_code)]

#[cfg(CONFIG_INTEL_TDX_EMULATOR_BENCH)]
mod bench;
#[allow(unsafe_code)]
mod ffi;
mod machine;
mod memory;
pub mod module;
mod show;
#[cfg(CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST)]
#[allow(unsafe_code)]
mod tests;

use kernel::prelude::*;
use machine::{
    LockTrace,
    Machine, //
};
use module::{
    CallResult,
    Module,
    Outcome,
    Profile,
    Regs,
    PROFILE_1_5_05, //
};

/// The prefix of what this prints.
const __LOG_PREFIX: &[u8] = b"tdx_emulator\0";

/// The one module of this machine.
static MODULE: Module = Module::new(&PROFILE_1_5_05);

/// Makes the module behave like the published one of that name. `plain`: the host can read what it
/// stores.
fn start(profile: &CStr, plain: bool) -> Result {
    memory::hide(!plain);
    let name = profile.to_str().map_err(|_| EINVAL)?;
    let profile = Profile::by_name(name).ok_or(EINVAL)?;

    if MODULE.set_profile(profile) {
        Ok(())
    } else {
        Err(EBUSY)
    }
}

#[cfg(CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST)]
use tests::answering;

/// The module that answers SEAMCALLs.
#[cfg(not(CONFIG_INTEL_TDX_EMULATOR_KUNIT_TEST))]
fn answering() -> &'static Module {
    &MODULE
}

/// Answers a SEAMCALL. Returns false if there is no module to answer it.
///
/// # Context
///
/// In the #UD handler, with interrupts off; the caller may hold any lock. Does not sleep, wait or
/// allocate.
fn seamcall(regs: &mut Regs) -> bool {
    if ffi::traced() {
        return seamcall_traced(regs);
    }

    counted(&answering().seamcall(&Machine::new(None), regs))
}

/// The same with a report to the tracepoint. Apart, for what that needs is large.
#[cold]
#[inline(never)]
fn seamcall_traced(regs: &mut Regs) -> bool {
    let before = *regs;
    let locks = LockTrace::new();
    let outcome = answering().seamcall(&Machine::new(Some(&locks)), regs);
    let answered = counted(&outcome);

    if answered {
        show::trace(&before, regs, outcome.leaf, &locks);
    }
    answered
}

fn counted(outcome: &Outcome) -> bool {
    match outcome.result {
        CallResult::Returned(status) => {
            show::count(outcome.leaf, status);
            true
        }
        CallResult::VmFailInvalid => false,
    }
}
