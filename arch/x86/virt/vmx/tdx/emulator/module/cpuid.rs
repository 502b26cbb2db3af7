// SPDX-License-Identifier: GPL-2.0

//! The virtual CPUID of a TD.

use super::{
    dispatch::Call,
    place::Place,
    platform::Platform,
    profile::Profile,
    regs::Regs,
    status::Status,
    td::{
        Tdcs,
        TdcsField, //
    },
};

use core::sync::atomic::{
    AtomicU64,
    Ordering, //
};

/// A CPUID leaf that `TD_PARAMS` configures.
#[derive(Clone, Copy, Debug)]
pub(super) struct CpuidConfig {
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

/// How a leaf's value is made beyond its masks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// It is not.
    Plain,
    /// It cannot be read: the guest gets an exception.
    Fault,
    /// It is zero unless all these XFAM bits are set.
    NeedsXfam(u64),
    /// It is zero unless the TD may use the performance monitor.
    NeedsPerfmon,
    /// The same, except EAX, and the extended leaves must be enabled too.
    NeedsPerfmonExtended,
    /// It is zero unless the guest may use MONITOR.
    NeedsMonitor,
    /// It is zero in a TD that can migrate.
    NotMigratable,
    /// Family, model and stepping: native unless configured.
    Signature,
    /// Features, some of which follow attributes.
    Features,
    /// Features, one of which follows an attribute.
    MoreFeatures,
    /// Extended state: only what XFAM has.
    ExtendedState,
    /// The time-stamp counter's frequency.
    Frequency,
    /// Address widths.
    AddressWidths,
    /// A level of the topology, native unless any is configured.
    Topology,
    /// A level of the topology as the older leaf tells it.
    OldTopology,
}

/// A leaf of the virtual CPUID.
#[derive(Clone, Copy, Debug)]
struct VirtualLeaf {
    leaf: u32,
    /// [`None`] if there are no subleaves: then any number means the same.
    subleaf: Option<u32>,
    /// Bits that are 1.
    set: [u32; 4],
    /// Bits that are 0, or that the rule computes.
    clear: [u32; 4],
    rule: Rule,
    /// The leaf came with topology enumeration.
    newer: bool,
}

impl VirtualLeaf {
    /// The bits of the processor's own value that TDs may get, and that must not depend on the
    /// processor.
    fn native<P: Platform>(&self, platform: &P) -> [u32; 4] {
        if matches!(self.rule, Rule::Fault | Rule::OldTopology) {
            return NONE;
        }
        let mut native = platform.cpuid(self.leaf, self.subleaf.unwrap_or(0));
        for (value, clear) in native.iter_mut().zip(self.clear) {
            *value &= !clear;
        }
        native
    }

    /// Whether reading the leaf gives the guest an exception.
    fn faults(&self, profile: &Profile) -> bool {
        self.rule == Rule::Fault || self.rule == Rule::Topology && !profile.topology_enumeration
    }
}

const ALL: u32 = u32::MAX;

const fn leaf(leaf: u32, clear: [u32; 4], rule: Rule) -> VirtualLeaf {
    VirtualLeaf {
        leaf,
        subleaf: None,
        set: NONE,
        clear,
        rule,
        newer: false,
    }
}

const fn subleaf(number: u32, subleaf: u32, clear: [u32; 4], rule: Rule) -> VirtualLeaf {
    VirtualLeaf {
        subleaf: Some(subleaf),
        ..leaf(number, clear, rule)
    }
}

const fn zero(number: u32) -> VirtualLeaf {
    leaf(number, [ALL; 4], Rule::Plain)
}

const fn state(component: u32) -> VirtualLeaf {
    let xfam = Rule::NeedsXfam(1 << component);
    subleaf(0xd, component, [0, 0, 0, ALL], xfam)
}

const fn topology(level: u32) -> VirtualLeaf {
    let clear = [0xffff_ffe0, 0xffff_0000, 0xffff_0000, ALL];
    subleaf(0x1f, level, clear, Rule::Topology)
}

const fn newer(leaf: VirtualLeaf) -> VirtualLeaf {
    VirtualLeaf {
        newer: true,
        ..leaf
    }
}

const CACHE_CLEAR: [u32; 4] = [0x3c00, 0, 0, 4];
const XFAM_PT: u64 = 1 << 8;
const XFAM_LBR: u64 = 1 << 15;
const XFAM_AMX: u64 = 3 << 17;

const LEAF_COUNT: usize = 67;

/// The virtual CPUID, in the order in which fields of it are enumerated.
static LEAVES: [VirtualLeaf; LEAF_COUNT] = [
    leaf(
        1,
        [0xf000_c000, 0xff00_00ff, 0x801_0060, 0x4012_0400],
        Rule::Signature,
    ),
    subleaf(4, 0, CACHE_CLEAR, Rule::Plain),
    subleaf(4, 1, CACHE_CLEAR, Rule::Plain),
    subleaf(4, 2, CACHE_CLEAR, Rule::Plain),
    subleaf(4, 3, [0x3c00, 0, 0, 0xffff_fff8], Rule::Plain),
    subleaf(7, 0, [0, 0x40_4006, 0x643e_8010, 0x22_98c3], Rule::Features),
    subleaf(7, 1, [0xffff_e2cf, ALL, ALL, ALL], Rule::MoreFeatures),
    leaf(0xa, [0, 0, 0, 0xffff_6000], Rule::NeedsPerfmon),
    leaf(0x1c, NONE, Rule::NeedsXfam(XFAM_LBR)),
    leaf(
        0x8000_0008,
        [0xffff_0000, 0xffff_fdff, ALL, ALL],
        Rule::AddressWidths,
    ),
    VirtualLeaf {
        set: [0x23, 0, 0, 0],
        ..leaf(0, [0xffff_ffdc, 0, 0, 0], Rule::Plain)
    },
    zero(3),
    subleaf(4, 4, [ALL; 4], Rule::Plain),
    leaf(6, NONE, Rule::Fault),
    leaf(
        5,
        [0xffff_0000, 0xffff_0000, 0xffff_fffc, 0],
        Rule::NeedsMonitor,
    ),
    subleaf(7, 2, [ALL, ALL, ALL, 0xffff_ffc0], Rule::Plain),
    zero(8),
    newer(subleaf(0xb, 0, NONE, Rule::OldTopology)),
    newer(subleaf(0xb, 1, NONE, Rule::OldTopology)),
    subleaf(0xd, 0, [0xfff9_fd18, ALL, 0, ALL], Rule::ExtendedState),
    subleaf(
        0xd,
        1,
        [0xffff_ffe0, ALL, 0xffff_26ff, ALL],
        Rule::ExtendedState,
    ),
    state(2),
    state(3),
    state(4),
    state(5),
    state(6),
    state(7),
    state(8),
    state(9),
    state(10),
    state(11),
    state(12),
    state(13),
    state(14),
    state(15),
    state(16),
    state(17),
    state(18),
    zero(0xe),
    zero(0x11),
    zero(0x12),
    zero(0x13),
    subleaf(
        0x14,
        0,
        [0, 0xffff_fe00, 0x7fff_fff0, ALL],
        Rule::NeedsXfam(XFAM_PT),
    ),
    subleaf(0x14, 1, [0xfff8, 0, ALL, ALL], Rule::NeedsXfam(XFAM_PT)),
    leaf(0x15, [ALL; 4], Rule::Frequency),
    zero(0x19),
    newer(leaf(0x1a, NONE, Rule::NotMigratable)),
    subleaf(0x1d, 0, NONE, Rule::NeedsXfam(XFAM_AMX)),
    subleaf(0x1d, 1, NONE, Rule::NeedsXfam(XFAM_AMX)),
    topology(0),
    topology(1),
    topology(2),
    topology(3),
    topology(4),
    topology(5),
    zero(0x20),
    VirtualLeaf {
        // "IntelTDX    ", in the order of a vendor's name.
        set: [0, 0x6574_6e49, 0x2020_2020, 0x5844_546c],
        ..subleaf(0x21, 0, [ALL; 4], Rule::Plain)
    },
    VirtualLeaf {
        set: [0x8000_0008, 0, 0, 0],
        ..leaf(0x8000_0000, [0x7fff_fff7, ALL, ALL, ALL], Rule::Plain)
    },
    leaf(
        0x8000_0001,
        [ALL, ALL, 0xffff_fede, 0xd3ef_ffff],
        Rule::Plain,
    ),
    leaf(0x8000_0006, NONE, Rule::Fault),
    leaf(0x8000_0007, [ALL, ALL, ALL, 0xffff_feff], Rule::Plain),
    leaf(0x1e, NONE, Rule::Plain),
    zero(0x22),
    subleaf(0x23, 0, NONE, Rule::NeedsPerfmonExtended),
    subleaf(0x23, 1, NONE, Rule::NeedsPerfmonExtended),
    subleaf(0x23, 2, NONE, Rule::NeedsPerfmonExtended),
    subleaf(0x23, 3, NONE, Rule::NeedsPerfmonExtended),
];

/// Bits of a leaf that are 0 if one of some XFAM bits is 0.
struct XfamFilter {
    leaf: u32,
    subleaf: u32,
    xfam: u64,
    clear: [u32; 4],
}

const fn filter(leaf: u32, subleaf: u32, xfam: u64, clear: [u32; 4]) -> XfamFilter {
    XfamFilter {
        leaf,
        subleaf,
        xfam,
        clear,
    }
}

static XFAM_FILTERS: [XfamFilter; 20] = [
    filter(1, 0, 1 << 2, [0, 0, 0x3000_1000, 0]),
    filter(7, 0, 1 << 2, [0, 0x20, 0x600, 0]),
    filter(7, 0, 7 << 5, [0, 0xdc23_0000, 0x5842, 0x80_010c]),
    filter(7, 0, 1 << 8, [0, 0x200_0000, 0, 0]),
    filter(7, 0, 1 << 9, [0, 0, 8, 0]),
    filter(7, 0, 3 << 11, [0, 0, 0x80, 0x10_0000]),
    filter(7, 0, 1 << 14, [0, 0, 0, 0x20]),
    filter(7, 0, 1 << 15, [0, 0, 0, 0x8_0000]),
    filter(7, 0, 3 << 17, [0, 0, 0, 0x340_0000]),
    filter(7, 1, 1 << 2, [0x10, 0, 0, 0x430]),
    filter(7, 1, 7 << 5, [0x20, 0, 0, 0]),
    filter(0xd, 0, 1 << 2, [0x4, 0, 0, 0]),
    filter(0xd, 0, 7 << 5, [0xe0, 0, 0, 0]),
    filter(0xd, 0, 1 << 9, [0x200, 0, 0, 0]),
    filter(0xd, 0, 3 << 17, [0x6_0000, 0, 0, 0]),
    filter(0xd, 1, 3 << 17, [0x10, 0, 0, 0]),
    filter(0xd, 1, 1 << 8, [0, 0, 0x100, 0]),
    filter(0xd, 1, 3 << 11, [0, 0, 0x1800, 0]),
    filter(0xd, 1, 1 << 14, [0, 0, 0x4000, 0]),
    filter(0xd, 1, 1 << 15, [0, 0, 0x8000, 0]),
];

const ATTRIBUTE_LASS: u64 = 1 << 27;
const ATTRIBUTE_MIGRATABLE: u64 = 1 << 29;
const ATTRIBUTE_PKS: u64 = 1 << 30;
const ATTRIBUTE_PERFMON: u64 = 1 << 63;

const FEATURE_MONITOR: u32 = 1 << 3;
const FEATURE_LA57: u32 = 1 << 16;
const FEATURE_KEY_LOCKER: u32 = 1 << 23;
const FEATURE_PKS: u32 = 1 << 31;
const FEATURE_LASS: u32 = 1 << 6;
const FEATURE_PERFMON_EXTENDED: u32 = 1 << 8;

/// The number of topology subleaves that can be configured.
const TOPOLOGY_LEVELS: u32 = 6;
/// A core, among the types of topology levels.
const LEVEL_CORE: u32 = 2;

/// What `TD_PARAMS` asks for: the values of the leaf with that index.
pub(super) type Configured<'a> = &'a dyn Fn(usize) -> [u32; 4];

/// Makes a TD's virtual CPUID of the processor's and of what is configured.
struct Builder<'a, 'c, P: Platform> {
    tdcs: &'a Tdcs<'c, P>,
    configured: Configured<'a>,
    attributes: u64,
    xfam: u64,
}

impl<'c, P: Platform> Builder<'_, 'c, P> {
    fn call(&self) -> &'c Call<'c, P> {
        self.tdcs.call()
    }

    /// The masks and the configured value of a leaf that `TD_PARAMS` configures.
    fn config(&self, leaf: u32, subleaf: Option<u32>) -> Option<(CpuidConfig, [u32; 4])> {
        let configs = self.call().module.profile().cpuid_config;
        let same = |config: &&CpuidConfig| config.leaf == leaf && config.subleaf == subleaf;
        let index = configs.iter().position(|config| same(&config))?;
        Some((*configs.get(index)?, (self.configured)(index)))
    }

    /// The value that masks alone give.
    fn masked(&self, leaf: &VirtualLeaf) -> [u32; 4] {
        let native = self
            .call()
            .native_cpuid(leaf.leaf, leaf.subleaf.unwrap_or(0));
        let config = self.config(leaf.leaf, leaf.subleaf);
        let mut values = [0; 4];
        for (index, value) in values.iter_mut().enumerate() {
            let pick = |registers: &[u32; 4]| registers.get(index).copied().unwrap_or(0);
            let native = pick(&native);
            let (direct, allow, configured) = config.map_or((0, 0, 0), |(config, configured)| {
                (pick(&config.direct), pick(&config.allow), pick(&configured))
            });
            *value = native & !(pick(&leaf.clear) | direct | allow)
                | configured & direct
                | configured & allow & native
                | pick(&leaf.set);
        }
        values
    }

    /// Whether the guest has a feature: native, configured and not filtered.
    fn feature(&self, leaf: u32, subleaf: u32, register: usize, bit: u32) -> bool {
        let entry = LEAVES
            .iter()
            .find(|entry| entry.leaf == leaf && entry.subleaf.unwrap_or(subleaf) == subleaf);
        let values = entry.map_or([0; 4], |entry| self.masked(entry));
        values.get(register).copied().unwrap_or(0) & bit != 0
    }

    fn topology_configured(&self) -> bool {
        (0..TOPOLOGY_LEVELS).any(|level| {
            self.config(0x1f, Some(level))
                .is_some_and(|(_, configured)| configured != [0; 4])
        })
    }

    /// A level of the topology, as leaf 0x1f tells it.
    fn topology_level(&self, level: u32) -> [u32; 4] {
        let values = match self.config(0x1f, Some(level)) {
            Some((_, configured)) if self.topology_configured() => configured,
            _ => self.call().native_cpuid(0x1f, level),
        };
        let [eax, ebx, ecx, _] = values;
        [eax & 0x1f, ebx & 0xffff, ecx & 0xffff, 0]
    }

    /// A level of the topology, as leaf 0xb tells it: threads, and all above them as cores.
    fn old_topology_level(&self, level: u32) -> [u32; 4] {
        let level_type = |values: [u32; 4]| (values[2] >> 8) & 0xff;
        let with_type =
            |values: [u32; 4], kind: u32| [values[0], values[1], level | (kind << 8), 0];
        let levels = || (0..TOPOLOGY_LEVELS).map(|level| self.topology_level(level));
        if level == 0 {
            let threads = levels().find(|values| level_type(*values) == 1);
            return threads.map_or([0, 1, 0x100, 0], |values| with_type(values, 1));
        }
        let last = levels().rfind(|values| level_type(*values) != 0);
        last.map_or([0, 0, level, 0], |values| with_type(values, 2))
    }

    fn value(&self, leaf: &VirtualLeaf) -> [u32; 4] {
        let mut values = self.masked(leaf);
        let subleaf = leaf.subleaf.unwrap_or(0);
        for filter in &XFAM_FILTERS {
            let same = filter.leaf == leaf.leaf && filter.subleaf == subleaf;
            if same && self.xfam & filter.xfam != filter.xfam {
                for (value, clear) in values.iter_mut().zip(filter.clear) {
                    *value &= !clear;
                }
            }
        }
        let set = |value: &mut u32, bit: u32, on: bool| {
            *value = *value & !bit | if on { bit } else { 0 };
        };
        let perfmon = self.attributes & ATTRIBUTE_PERFMON != 0;
        let [eax, ebx, ecx, _] = &mut values;
        match leaf.rule {
            Rule::Plain | Rule::ExtendedState => {}
            Rule::Fault => return [0; 4],
            Rule::NeedsXfam(bits) if self.xfam & bits == bits => {}
            Rule::NeedsXfam(_) => return [0; 4],
            Rule::NeedsPerfmon if perfmon => {}
            Rule::NeedsPerfmon => return [0; 4],
            Rule::NeedsPerfmonExtended => {
                let extended = self.feature(7, 1, 0, FEATURE_PERFMON_EXTENDED);
                if !perfmon || !extended {
                    return [if subleaf == 0 { *eax } else { 0 }, 0, 0, 0];
                }
            }
            Rule::NeedsMonitor => {
                if !self.feature(1, 0, 2, FEATURE_MONITOR) {
                    return [0; 4];
                }
            }
            Rule::NotMigratable => {
                if self.attributes & ATTRIBUTE_MIGRATABLE != 0 {
                    return [0; 4];
                }
            }
            Rule::Signature => {
                if *eax == 0 {
                    *eax = self.call().native_cpuid(1, 0)[0];
                }
            }
            Rule::Features => {
                set(ecx, FEATURE_KEY_LOCKER, false);
                set(ecx, FEATURE_PKS, self.attributes & ATTRIBUTE_PKS != 0);
            }
            Rule::MoreFeatures => {
                if self.call().module.profile().topology_enumeration {
                    set(eax, FEATURE_LASS, self.attributes & ATTRIBUTE_LASS != 0);
                }
            }
            Rule::Frequency => {
                *eax = 1;
                *ebx = self.tdcs.get(TdcsField::TscFrequency) as u32;
                *ecx = 25_000_000;
            }
            Rule::AddressWidths => {
                let wide = self.feature(7, 0, 2, FEATURE_LA57);
                *eax = *eax & !0xff00 | if wide { 57 << 8 } else { 48 << 8 };
            }
            Rule::Topology => return self.topology_level(subleaf),
            Rule::OldTopology => return self.old_topology_level(subleaf),
        }
        values
    }
}

impl<P: Platform> Call<'_, P> {
    fn native_cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.platform.cpuid(leaf, subleaf)
    }
}

/// EAX and EBX, and ECX and EDX, each in one word.
fn pairs(registers: [u32; 4]) -> (u64, u64) {
    let [eax, ebx, ecx, edx] = registers.map(u64::from);
    (eax | (ebx << 32), ecx | (edx << 32))
}

/// A leaf of the processor's CPUID that is not what it must be.
pub(super) struct Mismatch {
    leaf: u32,
    subleaf: Option<u32>,
    /// The bits that matter, or that differ.
    mask: [u32; 4],
    expected: [u32; 4],
}

impl Mismatch {
    /// Tells the leaf in RCX, and the bits in RDX and R8.
    pub(super) fn describe(&self, regs: &mut Regs) {
        regs.rcx = u64::from(self.leaf) | (u64::from(self.subleaf.unwrap_or(u32::MAX)) << 32);
        (regs.rdx, regs.r8) = pairs(self.mask);
    }

    /// Tells the values that the bits must have in R9 and R10.
    pub(super) fn describe_expected(&self, regs: &mut Regs) {
        (regs.r9, regs.r10) = pairs(self.expected);
    }
}

/// The vendor in EBX, ECX and EDX: "GenuineIntel", in the order of a vendor's name.
const VENDOR: [u32; 4] = [0, 0x756e_6547, 0x6c65_746e, 0x4965_6e69];

/// Finds a leaf that the processor must have and has not.
pub(super) fn missing_leaf<P: Platform>(platform: &P) -> Option<u32> {
    [7, 0xd, 0x8000_0008].into_iter().find(|leaf| {
        let [last, ..] = platform.cpuid(leaf & 0x8000_0000, 0);
        last < *leaf
    })
}

/// Finds a leaf whose value is not what the module needs.
pub(super) fn wrong_leaf<P: Platform>(platform: &P) -> Option<Mismatch> {
    let [_, vendor @ ..] = platform.cpuid(0, 0);
    let [_, expected @ ..] = VENDOR;
    (vendor != expected).then_some(Mismatch {
        leaf: 0,
        subleaf: None,
        mask: [0, ALL, ALL, ALL],
        expected: VENDOR,
    })
}

/// What the processor on which TDH.SYS.INIT ran has of CPUID.
pub(super) struct Sample {
    values: [[AtomicU64; 2]; LEAF_COUNT],
}

impl Sample {
    pub(super) const fn new() -> Self {
        Self {
            values: [const { [const { AtomicU64::new(0) }; 2] }; LEAF_COUNT],
        }
    }

    /// Takes what this processor has.
    pub(super) fn take<P: Platform>(&self, platform: &P) {
        for ([low, high], leaf) in self.values.iter().zip(&LEAVES) {
            let (eax_ebx, ecx_edx) = pairs(leaf.native(platform));
            low.store(eax_ebx, Ordering::Relaxed);
            high.store(ecx_edx, Ordering::Relaxed);
        }
    }

    /// Finds a leaf in which this processor differs.
    pub(super) fn differing_leaf<P: Platform>(&self, platform: &P) -> Option<Mismatch> {
        self.values.iter().zip(&LEAVES).find_map(|(sample, leaf)| {
            let [low, high] = sample.each_ref().map(|word| word.load(Ordering::Relaxed));
            let sampled = [low, low >> 32, high, high >> 32].map(|register| register as u32);
            let mut mask = leaf.native(platform);
            for (bits, sampled) in mask.iter_mut().zip(sampled) {
                *bits ^= sampled;
            }
            (mask != NONE).then_some(Mismatch {
                leaf: leaf.leaf,
                subleaf: leaf.subleaf,
                mask,
                expected: sampled,
            })
        })
    }
}

/// The leaves that a profile has, with their places in the TDCS.
fn leaves(profile: &Profile) -> impl Iterator<Item = (u64, &'static VirtualLeaf)> {
    let topology_enumeration = profile.topology_enumeration;
    (0..)
        .zip(&LEAVES)
        .filter(move |(_, leaf)| topology_enumeration || !leaf.newer)
}

/// Makes the virtual CPUID of a TD and stores it in the TDCS.
pub(super) fn store<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    configured: Configured<'_>,
    attributes: u64,
    xfam: u64,
) {
    let builder = Builder {
        tdcs,
        configured,
        attributes,
        xfam,
    };
    for (index, leaf) in leaves(tdcs.call().module.profile()) {
        let (eax_ebx, ecx_edx) = pairs(builder.value(leaf));
        let value = stored_value(tdcs, index);
        value.store(eax_ebx);
        value.at(8).store(ecx_edx);
    }
}

/// Calls `f` with the virtual CPUID values that a TD has, 8 bytes at a time.
pub(super) fn for_each_stored<P: Platform>(tdcs: &Tdcs<'_, P>, mut f: impl FnMut(u64)) {
    for (index, _) in leaves(tdcs.call().module.profile()) {
        let value = stored_value(tdcs, index);
        f(value.load());
        f(value.at(8).load());
    }
}

fn stored_value<'c, P: Platform>(tdcs: &Tdcs<'c, P>, index: u64) -> Place<'c, P> {
    tdcs.at(TdcsField::Cpuid).at(index.wrapping_mul(16))
}

/// Checks that the configured topology makes sense.
pub(super) fn check_topology(profile: &Profile, configured: Configured<'_>) -> Result<(), Status> {
    let error = Err(Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED);
    let levels = || {
        profile
            .cpuid_config
            .iter()
            .enumerate()
            .filter(|(_, config)| config.leaf == 0x1f)
            .map(|(index, _)| configured(index))
    };
    if levels().all(|values| values == [0; 4]) {
        return Ok(());
    }
    let (mut last, mut ended, mut core) = (0, false, false);
    for [_, _, ecx, _] in levels() {
        let level_type = (ecx >> 8) & 0xff;
        if level_type == 0 {
            ended = true;
            continue;
        }
        if ended || level_type <= last {
            return error;
        }
        last = level_type;
        core |= level_type == LEVEL_CORE;
    }
    if core {
        Ok(())
    } else {
        error
    }
}

/// CPUID(1).EAX of an initialised TD.
pub(super) fn signature<P: Platform>(tdcs: &Tdcs<'_, P>) -> u32 {
    stored_value(tdcs, 0).load() as u32
}

/// Whether an initialised TD has MONITOR: CPUID(1).ECX.
pub(super) fn has_monitor<P: Platform>(tdcs: &Tdcs<'_, P>) -> bool {
    let ecx_edx = stored_value(tdcs, 0).at(8);
    ecx_edx.load() & u64::from(FEATURE_MONITOR) != 0
}

/// The code of a CPUID value as a metadata field: EAX and EBX, or ECX and EDX if `half` is 1.
fn field_code(leaf: &VirtualLeaf, half: u64) -> u64 {
    let subleaf = leaf
        .subleaf
        .map_or(0x1fe, |subleaf| u64::from(subleaf & 0x7f) << 1);
    let number = u64::from(leaf.leaf);
    half | subleaf | ((number & 0x7f) << 9) | ((number >> 31) << 16)
}

/// Reads a CPUID value by its code as a metadata field.
///
/// Returns it with the code of the next field of this class, if there is one.
pub(super) fn read_field<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    code: u64,
) -> Result<(u64, Option<u64>), Status> {
    let call = tdcs.call();
    let number = ((code >> 9) & 0x7f) as u32 | ((((code >> 16) & 1) as u32) << 31);
    let subleaf = (code & 0x100 == 0).then_some(((code >> 1) & 0x7f) as u32);
    let half = code & 1;
    let mut found = leaves(call.module.profile()).skip_while(|(_, leaf)| {
        // A leaf without subleaves answers for each.
        leaf.leaf != number || leaf.subleaf.is_some() && leaf.subleaf != subleaf
    });
    let Some((index, leaf)) = found.next().filter(|_| code >> 17 == 0) else {
        return Err(Status::METADATA_FIELD_ID_INCORRECT);
    };
    if leaf.faults(call.module.profile()) {
        return Err(Status::METADATA_FIELD_NOT_READABLE);
    }
    let value = stored_value(tdcs, index).at(half.wrapping_mul(8));
    let next = if half == 0 {
        Some(code.wrapping_add(1))
    } else {
        found.next().map(|(_, leaf)| field_code(leaf, 0))
    };
    Ok((value.load(), next))
}

/// Whether the leaf of that place in the table is there and can be read.
pub(super) fn is_readable(profile: &Profile, place: u64) -> bool {
    let mut places = (0u64..).zip(leaves(profile));
    places.any(|(index, (_, leaf))| index == place && !leaf.faults(profile))
}

/// The code of the first CPUID value as a metadata field.
pub(super) fn first_field_code() -> u64 {
    LEAVES.first().map_or(0, |leaf| field_code(leaf, 0))
}

/// What metadata tells of the configurable bits: EAX and EBX for even, ECX and EDX for odd indexes.
pub(super) fn config_value<P: Platform>(call: &Call<'_, P>, index: u64) -> u64 {
    let profile = call.module.profile();
    let Some(config) = profile.cpuid_config.get((index >> 1) as usize) else {
        return 0;
    };
    let native = call.native_cpuid(config.leaf, config.subleaf.unwrap_or(0));
    let allow = if profile.cpuid_config_reports_allowed {
        config.allow
    } else {
        NONE
    };
    let mut values = config.direct;
    for ((value, allow), native) in values.iter_mut().zip(allow).zip(native) {
        *value |= allow & native;
    }
    let (eax_ebx, ecx_edx) = pairs(values);
    match index & 1 {
        0 => eax_ebx,
        _ => ecx_edx,
    }
}
