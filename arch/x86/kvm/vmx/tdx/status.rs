// SPDX-License-Identifier: GPL-2.0

//! What a SEAMCALL returns.
//!
//! The upper half of a completion status is a class, the lower half says more: which operand, for
//! the classes below. The values are those of `arch/x86/include/asm/shared/tdx_errno.h`.

#![deny(unsafe_code)]

use core::{
    num::NonZeroU64,
    result::Result, //
};

/// The completion status of a SEAMCALL, as the TDX module left it in RAX.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(u64);

/// A completion status that is an error.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct SeamcallError(NonZeroU64);

/// Why a SEAMCALL failed, as far as an ioctl treats one failure unlike another.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// Another CPU holds a lock that the leaf needs; the module never waits.
    OperandBusy,
    /// An operand, or a field of a structure it points at, has a value the module refuses.
    OperandInvalid,
    /// The CPU ran out of entropy, after all the retries of the SEAMCALL wrapper.
    NoEntropy,
    /// Anything else: KVM or the module has a bug.
    Other,
}

impl Status {
    const OPERAND_BUSY: u32 = 0x8000_0200;
    const OPERAND_INVALID: u32 = 0xc000_0100;
    const RND_NO_ENTROPY: u64 = 0x8000_0203_0000_0000;

    /// Creates a status from what a SEAMCALL wrapper returned.
    pub(crate) const fn new(rax: u64) -> Self {
        Self(rax)
    }

    /// Returns the raw value, which is what user space gets to see as `hw_error`.
    pub(crate) const fn as_raw(self) -> u64 {
        self.0
    }

    /// Any value but 0 is an error, including those that the module marks as mere information.
    pub(crate) fn to_result(self) -> Result<(), SeamcallError> {
        match NonZeroU64::new(self.0) {
            None => Ok(()),
            Some(status) => Err(SeamcallError(status)),
        }
    }
}

impl SeamcallError {
    /// Returns the status.
    pub(crate) fn status(self) -> Status {
        Status(self.0.get())
    }

    /// Decodes the status.
    pub(crate) fn cause(self) -> Cause {
        let status = self.0.get();

        // CAST: Truncates to the class on purpose.
        match (status >> 32) as u32 {
            _ if status == Status::RND_NO_ENTROPY => Cause::NoEntropy,
            Status::OPERAND_BUSY => Cause::OperandBusy,
            Status::OPERAND_INVALID => Cause::OperandInvalid,
            _ => Cause::Other,
        }
    }
}
