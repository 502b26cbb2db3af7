// SPDX-License-Identifier: GPL-2.0

//! Stands for `kernel::prelude`.

pub use crate::error::{
    code::*,
    Error,
    Result, //
};
pub use core::ffi::{
    c_int,
    c_void, //
};
