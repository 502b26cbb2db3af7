// SPDX-License-Identifier: GPL-2.0

//! Tests of the module: each leaf with each way to fail, in the order in which they are checked,
//! and what only whole lives, many processors or random calls show.

mod bare;
mod bring_up;
mod contention;
mod docs;
mod fields;
mod guest;
mod hidden;
mod junk;
mod life;
mod memory;
mod model;
mod operands;
mod pages;
mod params;
mod states;
mod td;
mod vcpu;

/// A page-aligned address that is not in a TDMR.
const OUTSIDE: u64 = 0x3000_0000;
/// A page in the TDMR's reserved area.
const RESERVED: u64 = 0x7f00_0000;
/// An address with the bits of a private HKID.
const WITH_HKID: u64 = 1 << 51 | 0x4020_0000;
