// SPDX-License-Identifier: GPL-2.0

//! What a SEAMCALL returns.
//!
//! The upper half of a completion status is a class, the lower half says more: which operand, for
//! the classes below. The values are those of `arch/x86/include/asm/shared/tdx_errno.h`.

#![deny(unsafe_code)]

use core::fmt;

/// The completion status of a SEAMCALL, as the TDX module left it in RAX.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status(u64);

/// Why a SEAMCALL failed, as far as an ioctl treats one failure unlike another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SeamcallError {
    /// Another CPU holds a lock that the leaf needs; the module never waits.
    OperandBusy(Status),
    /// An operand, or a field of a structure it points at, has a value the module refuses.
    OperandInvalid(Status),
    /// The CPU ran out of entropy, after all the retries of the SEAMCALL wrapper.
    NoEntropy,
    /// Anything else: KVM or the module has a bug.
    Other(Status),
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

    /// Decodes the status. Any value but 0 is an error, including those that the module marks as
    /// mere information.
    pub(crate) fn to_result(self) -> core::result::Result<(), SeamcallError> {
        // CAST: Truncates to the class on purpose.
        let class = (self.0 >> 32) as u32;

        match self.0 {
            0 => Ok(()),
            Self::RND_NO_ENTROPY => Err(SeamcallError::NoEntropy),
            _ if class == Self::OPERAND_BUSY => Err(SeamcallError::OperandBusy(self)),
            _ if class == Self::OPERAND_INVALID => Err(SeamcallError::OperandInvalid(self)),
            _ => Err(SeamcallError::Other(self)),
        }
    }
}

impl SeamcallError {
    /// Returns the status that was decoded.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::OperandBusy(status) | Self::OperandInvalid(status) | Self::Other(status) => {
                status
            }
            Self::NoEntropy => Status(Status::RND_NO_ENTROPY),
        }
    }
}

impl fmt::Debug for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#018x}", self.0)
    }
}
