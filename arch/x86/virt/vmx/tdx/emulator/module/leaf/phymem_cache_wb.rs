// SPDX-License-Identifier: GPL-2.0

//! TDH.PHYMEM.CACHE.WB: write back the caches of the current package.

use super::prelude::*;

pub(super) const INFO: LeafInfo = LeafInfo {
    number: 40,
    name: "PHYMEM.CACHE.WB",
    locks: &[
        LeafLock::exclusive(LockOf::WbtEntry, Operand::Wbcache),
        LeafLock::shared(LockOf::Kot, Operand::Kot),
    ],
    operands: &[("RCX", "0: begin, 1: go on")],
    answers: &[
        Answer::About(Status::OPERAND_INVALID, &[Operand::Rcx]),
        Answer::Plain(Status::INVALID_PKG_ID),
        Answer::Plain(Status::NO_HKID_READY_TO_WBCACHE),
        Answer::Plain(Status::WBCACHE_RESUME_ERROR),
        Answer::Plain(Status::INTERRUPTED_RESUMABLE),
    ],
    ..LeafInfo::NEW
};

/// RCX: begin.
const START: u64 = 0;
/// RCX: go on where an interrupt came.
const RESUME: u64 = 1;

pub(super) fn run<'c, P: Platform>(call: &'c Call<'c, P>, regs: &mut Regs) -> LeafResult {
    let (module, platform) = (call.module, call.platform);
    let package = platform.current_package();

    if regs.rcx != START && regs.rcx != RESUME {
        return Err(Status::OPERAND_INVALID.on(Operand::Rcx));
    }
    let Some(write_back) = module.write_back.get(package as usize) else {
        return Err(Status::INVALID_PKG_ID);
    };
    write_back.lock(call, package)?;
    module.kot.lock(call, LockMode::Shared)?;
    let first = if regs.rcx == START {
        if !write_back.collect(&module.kot) {
            return Err(Status::NO_HKID_READY_TO_WBCACHE);
        }
        0
    } else {
        write_back
            .interrupted()
            .ok_or(Status::WBCACHE_RESUME_ERROR)?
    };

    for piece in first..platform.cache_pieces() {
        platform.flush_cache_piece(piece);
        let next = piece.wrapping_add(1);
        if next < platform.cache_pieces() && platform.interrupt_pending() {
            write_back.set_interrupted(Some(next));
            return Err(Status::INTERRUPTED_RESUMABLE);
        }
    }
    write_back.finish(&module.kot, package);
    Ok(())
}
