// SPDX-License-Identifier: GPL-2.0

//! Stands for `kernel::error`.

/// An errno, as a positive number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Error(i32);

/// What an ioctl comes to.
pub type Result<T = (), E = Error> = core::result::Result<T, E>;

impl Error {
    /// Creates an error from a negative errno.
    pub fn from_errno(errno: i32) -> Self {
        Self(-errno)
    }

    /// Returns the negative errno.
    pub fn to_errno(self) -> i32 {
        -self.0
    }
}

impl std::fmt::Debug for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match *self {
            code::EINTR => write!(f, "EINTR"),
            code::EBUSY => write!(f, "EBUSY"),
            code::EINVAL => write!(f, "EINVAL"),
            Self(errno) => write!(f, "errno {errno}"),
        }
    }
}

/// Takes apart what a C function returned.
pub fn to_result(ret: i32) -> Result {
    match ret {
        0.. => Ok(()),
        errno => Err(Error::from_errno(errno)),
    }
}

/// Makes what a C function returns.
pub fn from_result(f: impl FnOnce() -> Result<i32>) -> i32 {
    f().unwrap_or_else(Error::to_errno)
}

/// The errnos that occur here.
pub mod code {
    use super::Error;

    pub const EINTR: Error = Error(4);
    pub const EBUSY: Error = Error(16);
    pub const EINVAL: Error = Error(22);
}
