// SPDX-License-Identifier: GPL-2.0

//! The leaves: one file each, and the table of all.

use super::{
    dispatch::{
        Call,
        LeafResult, //
    },
    platform::Platform,
    profile::Profile,
    regs::Regs,
    status::{
        Operand,
        Status, //
    },
};

/// A leaf's lock, as its declaration names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeafLock {
    /// What is locked.
    pub what: &'static str,
    /// How.
    pub mode: super::locks::LockMode,
    /// The operand that the status names if it is busy.
    pub operand: Operand,
}

/// A leaf's declaration.
#[derive(Debug)]
pub struct LeafInfo {
    /// The leaf's number in RAX.
    pub number: u16,
    /// Its name, without the leading `TDH.`.
    pub name: &'static str,
    /// Whether version 1 exists.
    pub versions: Versions,
    /// Whether it can be called before the module is ready.
    pub early: bool,
    /// The operation states in which a TD must be, one bit each; 0 if that is not checked.
    pub op_states: u16,
    /// Whether the leaf is modelled. Otherwise it answers as an unknown leaf does.
    pub modelled: bool,
}

/// Which versions a leaf has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Versions {
    /// Only version 0.
    One,
    /// Versions 0 and 1.
    Two,
    /// Version 1 came with topology enumeration.
    TwoWithTopology,
}

impl LeafInfo {
    /// The declaration of a leaf, if the leaf is known.
    pub fn by_number(number: u16) -> Option<&'static LeafInfo> {
        LEAVES.iter().copied().find(|info| info.number == number)
    }

    /// All known leaves.
    pub fn all() -> impl Iterator<Item = &'static LeafInfo> {
        LEAVES.iter().copied()
    }

    pub(super) fn has_versions(&self, profile: &Profile) -> bool {
        match self.versions {
            Versions::One => false,
            Versions::Two => true,
            Versions::TwoWithTopology => profile.topology_enumeration,
        }
    }
}

static LEAVES: [&LeafInfo; 0] = [];

pub(super) fn run<P: Platform>(number: u16, _call: &Call<'_, P>, _regs: &mut Regs) -> LeafResult {
    let _ = number;
    Err(Status::OPERAND_INVALID.on(Operand::Rax))
}
