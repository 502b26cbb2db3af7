// SPDX-License-Identifier: GPL-2.0

//! What may be configured of a TD, as KVM tells it to user space.

#![deny(unsafe_code)]

use kernel::bindings::tdx_sys_info_td_conf;

use crate::{
    ffi::{
        supported_xcr0_and_xss,
        td_conf, //
    },
    uapi::CpuidEntry, //
};

/// The leaf whose EAX holds the width of a guest physical address in bits 23 to 16.
pub(crate) const ADDRESS_SIZES: u32 = 0x8000_0008;

/// Attributes that KVM lets a TD have: a private page that is not accepted gives an exit, no #VE.
const SUPPORTED_ATTRIBUTES: u64 = 1 << 28;

/// In the module's list, the subleaf of a leaf that has none.
const NO_SUBLEAF: u32 = u32::MAX;

/// CPUID(7, 0).EBX: HLE and RTM. The module ties them to an MSR that KVM does not handle for TDs.
const TSX: u32 = 1 << 4 | 1 << 11;
/// CPUID(7, 0).ECX: WAITPKG. It comes with an MSR that KVM does not handle for TDs.
const WAITPKG: u32 = 1 << 5;

/// The bits of EAX that hold the width of a guest physical address.
pub(crate) const GUEST_PHYS_BITS: u32 = 0xff << 16;

/// Returns the attributes that user space may ask for; none if the module insists on others.
pub(crate) fn supported_attributes() -> u64 {
    supported(
        SUPPORTED_ATTRIBUTES,
        td_conf().attributes_fixed0,
        td_conf().attributes_fixed1,
    )
}

/// Returns the XFAM bits that user space may ask for; none if the module insists on others.
pub(crate) fn supported_xfam() -> u64 {
    supported(
        supported_xcr0_and_xss(),
        td_conf().xfam_fixed0,
        td_conf().xfam_fixed1,
    )
}

/// Cuts what KVM supports down to what the module allows, `fixed0`. What the module insists on,
/// `fixed1`, KVM has to support.
fn supported(by_kvm: u64, fixed0: u64, fixed1: u64) -> u64 {
    match by_kvm & fixed1 == fixed1 {
        true => by_kvm & fixed0,
        false => 0,
    }
}

/// Returns the number of CPUID entries that can be configured.
pub(crate) fn nr_configurable() -> usize {
    td_conf().num_cpuid_config.into()
}

/// Returns the module's list of CPUID entries that can be configured: the leaf with its subleaf,
/// and the bits that can be set in the registers.
pub(crate) fn configurable() -> impl Iterator<Item = (&'static u64, &'static [u64; 2])> {
    let td_conf: &'static tdx_sys_info_td_conf = td_conf();

    first(nr_configurable(), &td_conf.cpuid_config_leaves)
        .iter()
        .zip(&td_conf.cpuid_config_values)
}

/// Returns the leaf and the subleaf of each entry that can be configured.
pub(crate) fn configurable_leaves() -> impl Iterator<Item = (u32, u32)> {
    first(nr_configurable(), &td_conf().cpuid_config_leaves)
        .iter()
        .map(|&leaf| leaf_and_subleaf(leaf))
}

fn first<T>(n: usize, list: &[T]) -> &[T] {
    list.get(..n).unwrap_or(list)
}

fn leaf_and_subleaf(leaf: u64) -> (u32, u32) {
    match halves(leaf) {
        (function, NO_SUBLEAF) => (function, 0),
        both => both,
    }
}

/// Returns the lower and the upper half.
pub(crate) fn halves(value: u64) -> (u32, u32) {
    // CAST: Both truncate on purpose.
    (value as u32, (value >> 32) as u32)
}

impl CpuidEntry {
    /// Makes this an entry of the list that [`configurable`] returns, as KVM tells it.
    pub(crate) fn set_configurable(&mut self, (&leaf, values): (&u64, &[u64; 2])) {
        (self.0.function, self.0.index) = leaf_and_subleaf(leaf);
        (self.0.eax, self.0.ebx) = halves(values[0]);
        (self.0.ecx, self.0.edx) = halves(values[1]);

        // The module derives the width from other parameters and takes none here, but this is where
        // user space tells KVM which one it wants.
        if self.0.function == ADDRESS_SIZES {
            self.set_guest_phys_bits(0xff);
        }

        if self.is_features() {
            self.0.ebx &= !TSX;
            self.0.ecx &= !WAITPKG;
        }
    }

    /// Returns the width of a guest physical address, out of leaf [`ADDRESS_SIZES`].
    pub(crate) fn guest_phys_bits(&self) -> u32 {
        (self.0.eax & GUEST_PHYS_BITS) >> 16
    }

    /// Sets the width of a guest physical address, in leaf [`ADDRESS_SIZES`].
    pub(crate) fn set_guest_phys_bits(&mut self, bits: u32) {
        self.0.eax = self.0.eax & !GUEST_PHYS_BITS | (bits & 0xff) << 16;
    }

    /// Tells whether the entry asks for something that KVM does not support in a TD.
    pub(crate) fn is_unsupported(&self) -> bool {
        self.is_features() && (self.0.ebx & TSX != 0 || self.0.ecx & WAITPKG != 0)
    }

    /// Tells whether this is CPUID(7, 0).
    fn is_features(&self) -> bool {
        self.0.function == 7 && self.0.index == 0
    }
}
