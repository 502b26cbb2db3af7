// SPDX-License-Identifier: GPL-2.0

//! From the registers of a SEAMCALL to the leaf that serves it.

use super::{
    leaf::{
        self,
        LeafInfo, //
    },
    locks::HeldLocks,
    platform::Platform,
    regs::Regs,
    status::{
        Operand,
        Status, //
    },
    sys::SysState,
    Module, //
};

/// The bit of RAX that sends a call to the P-SEAMLDR instead.
const SEAMLDR: u64 = 1 << 63;
/// The bits of RAX that must be zero.
const RESERVED: u64 = 0x7fff_ffff_ff00_0000;

/// The leaf that TDX calls TDH.SYS.LP.SHUTDOWN, the only one a module that is shut down looks at.
const SYS_LP_SHUTDOWN: u16 = 44;

/// What became of a SEAMCALL.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// What the processor does.
    pub result: CallResult,
    /// The number of the leaf.
    pub leaf: u16,
    /// The version of the leaf.
    pub version: u8,
}

/// What the processor does after a SEAMCALL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallResult {
    /// The module returned: CF is 0, the status is in RAX too.
    Returned(Status),
    /// There is no module to call: CF is 1, no register changes.
    VmFailInvalid,
}

/// The ends of a leaf: with success, or with another status.
pub(super) type LeafResult = Result<(), Status>;

/// One SEAMCALL in progress.
pub(super) struct Call<'a, P: Platform> {
    pub(super) module: &'a Module,
    pub(super) platform: &'a P,
    /// The version of the leaf that was asked for.
    pub(super) version: u8,
    pub(super) locks: HeldLocks<'a, P>,
}

impl<'a, P: Platform> Call<'a, P> {
    #[inline(always)]
    pub(super) fn new(module: &'a Module, platform: &'a P, version: u8) -> Self {
        Self {
            module,
            platform,
            version,
            locks: HeldLocks::new(&module.global_lock),
        }
    }
}

/// Serves a SEAMCALL.
pub(super) fn seamcall<P: Platform>(module: &Module, platform: &P, regs: &mut Regs) -> Outcome {
    let leaf = regs.rax as u16;
    let version = (regs.rax >> 16) as u8;
    if regs.rax & SEAMLDR != 0 || module.sys_state() == SysState::Disabled {
        return Outcome {
            result: CallResult::VmFailInvalid,
            leaf,
            version,
        };
    }

    let call = Call::new(module, platform, version);
    let _inside = module.enter();
    let status = check(module, regs.rax, leaf, version)
        .and_then(|()| platform.inject(leaf).map_or(Ok(()), Err))
        .and_then(|()| leaf::run(leaf, &call, regs))
        .err()
        .unwrap_or(Status::SUCCESS);
    call.release_to(0);
    regs.rax = status.raw();
    Outcome {
        result: CallResult::Returned(status),
        leaf,
        version,
    }
}

/// The status of a SEAMCALL with this RAX if it does not get as far as to a leaf.
pub(super) fn refusal(module: &Module, rax: u64) -> Option<Status> {
    check(module, rax, rax as u16, (rax >> 16) as u8).err()
}

/// What is checked before the leaf itself is looked at.
fn check(module: &Module, rax: u64, leaf: u16, version: u8) -> LeafResult {
    let info = LeafInfo::by_number(leaf);
    if rax & RESERVED != 0 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    if version != 0 && !info.is_some_and(|info| info.has_versions(module.profile())) {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    match module.sys_state() {
        SysState::Shutdown if leaf != SYS_LP_SHUTDOWN => Err(Status::SYS_SHUTDOWN),
        SysState::Ready => Ok(()),
        _ if info.is_some_and(|info| info.early) => Ok(()),
        _ => Err(Status::SYS_NOT_READY),
    }
}
