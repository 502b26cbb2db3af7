// SPDX-License-Identifier: GPL-2.0

//! The virtual CPUID of a TD.

/// A CPUID leaf that `TD_PARAMS` configures.
#[derive(Clone, Copy, Debug)]
pub struct CpuidConfig {
    /// The leaf.
    pub leaf: u32,
    /// The subleaf, [`None`] if the leaf has none.
    pub subleaf: Option<u32>,
    /// Bits of EAX, EBX, ECX and EDX that take the configured value.
    pub direct: [u32; 4],
    /// Bits that are set if both configured and native.
    pub allow: [u32; 4],
}

const fn config(leaf: u32, subleaf: u32, direct: [u32; 4], allow: [u32; 4]) -> CpuidConfig {
    CpuidConfig {
        leaf,
        subleaf: Some(subleaf),
        direct,
        allow,
    }
}

const fn config_no_subleaf(leaf: u32, direct: [u32; 4], allow: [u32; 4]) -> CpuidConfig {
    CpuidConfig {
        leaf,
        subleaf: None,
        direct,
        allow,
    }
}

const NONE: [u32; 4] = [0; 4];
const CACHE: [u32; 4] = [0xffff_c3ff, 0xffff_f000, 0xffff_ffff, 0xffff_fffb];
const CACHE_LAST: [u32; 4] = [0xffff_c3ff, 0xffff_f000, 0xffff_ffff, 7];
const TOPOLOGY: [u32; 4] = [0x1f, 0xffff, 0xffff, 0];

const LEAF_1: CpuidConfig = config_no_subleaf(
    1,
    [0xfff_3fff, 0xff_0000, 0, 0],
    [0, 0, 0x3104_4d88, 0xb844_0000],
);
const LEAF_7: CpuidConfig = config(7, 0, NONE, [0, 0xdc2b_9b18, 0x241_7f65, 0x5_411c]);
const LEAF_A: CpuidConfig = config_no_subleaf(0xa, NONE, NONE);
const LEAF_1C: CpuidConfig = config_no_subleaf(0x1c, NONE, [0xff, 0, 0, 0]);
const LEAF_8000_0008: CpuidConfig = config_no_subleaf(0x8000_0008, NONE, [0, 0x200, 0, 0]);

/// The configurable leaves of 1.5.01.
pub(super) static CONFIG_1_5_01: [CpuidConfig; 12] = [
    LEAF_1,
    config(4, 0, CACHE, NONE),
    config(4, 1, CACHE, NONE),
    config(4, 2, CACHE, NONE),
    config(4, 3, CACHE_LAST, NONE),
    LEAF_7,
    config(7, 1, NONE, [0x1d30, 0, 0, 0]),
    LEAF_A,
    LEAF_1C,
    LEAF_8000_0008,
    config(7, 2, NONE, [0, 0, 0, 0x28]),
    config(0x23, 0, NONE, [0xf, 0, 0, 0]),
];

/// The configurable leaves of 1.5.05.
pub(super) static CONFIG_1_5_05: [CpuidConfig; 18] = [
    LEAF_1,
    config(4, 0, CACHE, NONE),
    config(4, 1, CACHE, NONE),
    config(4, 2, CACHE, NONE),
    config(4, 3, CACHE_LAST, NONE),
    LEAF_7,
    config(7, 1, NONE, [0x400_1d30, 0, 0, 0x430]),
    LEAF_A,
    LEAF_1C,
    LEAF_8000_0008,
    config(7, 2, NONE, [0, 0, 0, 0x28]),
    config(0x23, 0, NONE, [0xf, 0, 0, 0]),
    config(0x1f, 0, TOPOLOGY, NONE),
    config(0x1f, 1, TOPOLOGY, NONE),
    config(0x1f, 2, TOPOLOGY, NONE),
    config(0x1f, 3, TOPOLOGY, NONE),
    config(0x1f, 4, TOPOLOGY, NONE),
    config(0x1f, 5, TOPOLOGY, NONE),
];
