// SPDX-License-Identifier: GPL-2.0

//! Settles what a TD is given: attributes, extended features (XFAM) and CPUID.
//!
//! The TDX module virtualizes CPUID itself and lets the VMM configure some bits of some leaves.
//! KVM_TDX_CAPABILITIES says which. A bit is given to the TD if it can be configured and KVM
//! supports it on this machine; the leaves that describe topology get this TD's.

use kvm_bindings::kvm_cpuid_entry2;
use kvm_bindings::KVM_CPUID_FLAG_SIGNIFCANT_INDEX;

/// Guest physical address width that every platform has.
pub const GPA_BITS: u32 = 48;

/// Leaves with sub-leaves: KVM compares the index only where it is said to matter.
const INDEXED: &[u32] = &[
    0x4,
    0x7,
    0xb,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x17,
    0x18,
    0x1d,
    0x1e,
    0x1f,
    0x20,
    0x23,
    0x24,
    0x8000_001d,
];

/// Hypervisor leaves, which KVM itself answers.
const HYPERVISOR: std::ops::Range<u32> = 0x4000_0000..0x4001_0000;

const LEAF7_EBX_HLE: u32 = 1 << 4;
const LEAF7_EBX_RTM: u32 = 1 << 11;
const LEAF7_ECX_WAITPKG: u32 = 1 << 5;

const TOPOLOGY_SMT: u32 = 1;
const TOPOLOGY_CORE: u32 = 2;

const XFAM_AVX: u64 = 1 << 2;
/// Features that a TD has all or none of, with what they need.
const XFAM_GROUPS: &[(u64, u64)] = &[(0x7 << 5, XFAM_AVX), (0x3 << 11, 0), (0x3 << 17, 0)];

/// Names of TD attributes by bit.
pub const ATTRIBUTE_NAMES: &[(u32, &str)] = &[
    (0, "DEBUG"),
    (27, "LASS"),
    (28, "SEPT_VE_DISABLE"),
    (29, "MIGRATABLE"),
    (30, "PKS"),
    (31, "KL"),
    (63, "PERFMON"),
];

/// Names of XFAM features by bit.
pub const XFAM_NAMES: &[(u32, &str)] = &[
    (0, "x87"),
    (1, "SSE"),
    (2, "AVX"),
    (5, "AVX512-mask"),
    (6, "AVX512-ZMM-hi256"),
    (7, "AVX512-hi16-ZMM"),
    (8, "PT"),
    (9, "PKU"),
    (11, "CET-U"),
    (12, "CET-S"),
    (14, "UINTR"),
    (15, "LBR"),
    (17, "AMX-tile-config"),
    (18, "AMX-tile-data"),
];

/// Names the bits that are set.
pub fn bit_names(value: u64, names: &[(u32, &str)]) -> Vec<String> {
    (0..u64::BITS)
        .filter(|bit| value & (1 << bit) != 0)
        .map(|bit| match names.iter().find(|(known, _)| *known == bit) {
            Some((_, name)) => (*name).to_string(),
            None => format!("bit {bit}"),
        })
        .collect()
}

fn find(entries: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<kvm_cpuid_entry2> {
    let indexed = INDEXED.contains(&function);
    entries
        .iter()
        .find(|e| e.function == function && (!indexed || e.index == index))
        .copied()
}

/// Chooses the extended features: all that can be had, in the combinations the module accepts.
pub fn choose_xfam(supported_xfam: u64, supported: &[kvm_cpuid_entry2]) -> u64 {
    let leaf = |index| find(supported, 0xd, index).unwrap_or_default();
    let (xcr0, xss) = (leaf(0), leaf(1));
    let wide = |low, high| u64::from(low) | (u64::from(high) << 32);
    let usable = wide(xcr0.eax, xcr0.edx) | wide(xss.ecx, xss.edx);
    let mut xfam = supported_xfam & usable;
    for (group, needs) in XFAM_GROUPS {
        if xfam & group != *group || xfam & needs != *needs {
            xfam &= !group;
        }
    }
    xfam
}

/// Chooses the values of the configurable leaves: what KVM_TDX_INIT_VM takes.
pub fn choose_cpuid(
    configurable: &[kvm_cpuid_entry2],
    supported: &[kvm_cpuid_entry2],
    vcpus: u32,
) -> Vec<kvm_cpuid_entry2> {
    configurable
        .iter()
        .map(|mask| {
            let mut entry = find(supported, mask.function, mask.index).unwrap_or_default();
            entry.function = mask.function;
            entry.index = mask.index;
            entry.flags = if INDEXED.contains(&mask.function) {
                KVM_CPUID_FLAG_SIGNIFCANT_INDEX
            } else {
                0
            };
            describe_td(&mut entry, vcpus);
            entry.eax &= mask.eax;
            entry.ebx &= mask.ebx;
            entry.ecx &= mask.ecx;
            entry.edx &= mask.edx;
            entry
        })
        .collect()
}

/// Puts a number into a field of a register, or the largest that fits.
fn with_bits(register: u32, shift: u32, width: u32, value: u32) -> u32 {
    let largest = (1 << width) - 1;
    (register & !(largest << shift)) | (value.min(largest) << shift)
}

/// Replaces what a leaf says of the host by what holds for the TD.
fn describe_td(entry: &mut kvm_cpuid_entry2, vcpus: u32) {
    match (entry.function, entry.index) {
        (0x1, _) => {
            entry.ebx = with_bits(entry.ebx, 16, 8, vcpus);
        }
        // Each core has its own first and second level cache, all share the third.
        (0x4, _) if entry.eax & 0x1f != 0 => {
            let level = (entry.eax >> 5) & 0x7;
            let sharing = if level >= 3 { vcpus - 1 } else { 0 };
            entry.eax = with_bits(entry.eax, 14, 12, sharing);
            entry.eax = with_bits(entry.eax, 26, 6, vcpus - 1);
        }
        // The TDX module has TSX only together with an MSR, KVM refuses it and WAITPKG.
        (0x7, 0) => {
            entry.ebx &= !(LEAF7_EBX_HLE | LEAF7_EBX_RTM);
            entry.ecx &= !LEAF7_ECX_WAITPKG;
        }
        // One package of `vcpus` cores with one thread each.
        (0x1f, level) => {
            let (shift, count, kind) = match level {
                0 => (0, 1, TOPOLOGY_SMT),
                1 => (
                    u32::BITS - (vcpus - 1).leading_zeros(),
                    vcpus,
                    TOPOLOGY_CORE,
                ),
                _ => (0, 0, 0),
            };
            entry.eax = shift;
            entry.ebx = count;
            entry.ecx = if kind == 0 { 0 } else { (kind << 8) | level };
            entry.edx = 0;
        }
        (0x8000_0008, _) => {
            entry.eax = with_bits(entry.eax, 16, 8, GPA_BITS);
        }
        _ => {}
    }
}

/// Makes a vCPU's CPUID for KVM out of what the TD will see.
///
/// The module answers CPUID in the guest; KVM needs the same table for what it emulates.
pub fn vcpu_cpuid(
    td: &[kvm_cpuid_entry2],
    supported: &[kvm_cpuid_entry2],
    id: u32,
) -> Vec<kvm_cpuid_entry2> {
    let mut entries = td.to_vec();
    for entry in &mut entries {
        match entry.function {
            0x1 => entry.ebx = with_bits(entry.ebx, 24, 8, id & 0xff),
            0xb | 0x1f => entry.edx = id,
            _ => {}
        }
    }
    entries.extend(
        supported
            .iter()
            .filter(|entry| HYPERVISOR.contains(&entry.function)),
    );
    entries
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entry(function: u32, index: u32, regs: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = regs;
        kvm_cpuid_entry2 {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Default::default()
        }
    }

    /// The leaves that module 1.5.05 lets a VMM configure.
    fn module_leaves() -> Vec<kvm_cpuid_entry2> {
        let mut leaves = vec![
            entry(0x1, 0, [0x0fff_3fff, 0x00ff_0000, 0x3104_4d88, 0xb844_0000]),
            entry(0x7, 0, [0, 0xdc2b_9b18, 0x0241_7f65, 0x0005_411c]),
            entry(0x8000_0008, 0, [0x00ff_0000, 0x200, 0, 0]),
        ];
        leaves.extend((0..4).map(|i| entry(0x4, i, [0xffff_c3ff, 0xffff_f000, !0, 0x7])));
        leaves.extend((0..6).map(|i| entry(0x1f, i, [0x1f, 0xffff, 0xffff, 0])));
        leaves
    }

    #[test]
    fn only_what_is_configurable_and_supported_is_given() {
        let supported = [
            entry(0x1, 0, [0x806c1, 0x0110_0800, !0, !0]),
            entry(0x7, 0, [2, !0, !0, !0]),
            entry(0x8000_0008, 0, [0x3027, !0, 0, 0]),
        ];
        let chosen = choose_cpuid(&module_leaves(), &supported, 2);
        assert_eq!(chosen.len(), module_leaves().len());

        let one = find(&chosen, 0x1, 0).unwrap();
        assert_eq!(one.eax, 0x806c1);
        assert_eq!(one.ebx, 2 << 16);
        assert_eq!(one.ecx, 0x3104_4d88);

        let seven = find(&chosen, 0x7, 0).unwrap();
        assert_eq!(seven.ebx, 0xdc2b_9b18 & !((1 << 4) | (1 << 11)));
        assert_eq!(seven.ecx, 0x0241_7f65 & !(1 << 5));
        assert_eq!(seven.flags, KVM_CPUID_FLAG_SIGNIFCANT_INDEX);

        let address = find(&chosen, 0x8000_0008, 0).unwrap();
        assert_eq!(address.eax, 48 << 16);
        assert_eq!(address.flags, 0);
    }

    #[test]
    fn caches_are_the_tds() {
        let supported: Vec<_> = (0..4)
            .map(|i| entry(0x4, i, [0xfc03_c121 + i * 0x20, 0x1c0_003f, 63, 0]))
            .collect();
        let chosen = choose_cpuid(&module_leaves(), &supported, 4);
        let cache = |index| find(&chosen, 0x4, index).unwrap();
        // Level 1: of its own; level 3: shared by all four. Four cores in any case.
        assert_eq!(cache(0).eax >> 14, 3 << 12);
        assert_eq!(cache(2).eax >> 14, (3 << 12) | 3);
        // A cache that is not there stays so.
        assert_eq!(
            find(&choose_cpuid(&module_leaves(), &[], 4), 4, 3)
                .unwrap()
                .eax,
            0
        );
    }

    #[test]
    fn topology_is_a_package_of_cores() {
        for (vcpus, shift) in [(1, 0), (2, 1), (3, 2), (4, 2), (5, 3)] {
            let chosen = choose_cpuid(&module_leaves(), &[], vcpus);
            let level = |index| {
                let e = find(&chosen, 0x1f, index).unwrap();
                [e.eax, e.ebx, e.ecx, e.edx]
            };
            assert_eq!(level(0), [0, 1, 0x100, 0]);
            assert_eq!(level(1), [shift, vcpus, 0x201, 0]);
            assert_eq!(level(2), [0; 4]);
        }
    }

    #[test]
    fn xfam_groups_are_whole_or_absent() {
        let xsave = |xcr0: u32, xss: u32| {
            [
                entry(0xd, 0, [xcr0, 0, 0, 0]),
                entry(0xd, 1, [0, 0, xss, 0]),
            ]
        };
        assert_eq!(choose_xfam(!0, &xsave(0xe7, 0x1800)), 0x18e7);
        assert_eq!(choose_xfam(0xe3, &xsave(0xe7, 0)), 0x3);
        assert_eq!(choose_xfam(!0, &xsave(0x67, 0x800)), 0x7);
        assert_eq!(choose_xfam(!0, &xsave(0x2_0007, 0)), 0x7);
        assert_eq!(choose_xfam(!0, &[]), 0);
    }

    #[test]
    fn vcpus_differ_in_their_ids_only() {
        let td = [
            entry(0x1, 0, [0x806c1, 0x0002_0800, 0, 0]),
            entry(0x1f, 0, [0, 1, 0x100, 0]),
        ];
        let supported = [entry(0x4000_0000, 0, [1; 4]), entry(0x2, 0, [2; 4])];
        let cpuid = vcpu_cpuid(&td, &supported, 3);
        assert_eq!(cpuid.len(), 3);
        assert_eq!(cpuid[0].ebx, 0x0302_0800);
        assert_eq!(cpuid[1].edx, 3);
        assert_eq!(cpuid[2].function, 0x4000_0000);
    }

    proptest! {
        #[test]
        fn nothing_beyond_the_masks_is_ever_set(
            regs in prop::collection::vec(any::<[u32; 4]>(), 13),
            vcpus in 1..=4096u32,
        ) {
            let leaves = module_leaves();
            let supported: Vec<_> = leaves
                .iter()
                .zip(&regs)
                .map(|(leaf, regs)| entry(leaf.function, leaf.index, *regs))
                .collect();
            for (mask, e) in leaves.iter().zip(choose_cpuid(&leaves, &supported, vcpus)) {
                prop_assert_eq!((e.function, e.index), (mask.function, mask.index));
                prop_assert_eq!(e.eax & !mask.eax, 0);
                prop_assert_eq!(e.ebx & !mask.ebx, 0);
                prop_assert_eq!(e.ecx & !mask.ecx, 0);
                prop_assert_eq!(e.edx & !mask.edx, 0);
            }
        }
    }
}
