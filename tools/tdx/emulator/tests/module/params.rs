// SPDX-License-Identifier: GPL-2.0

//! `TD_PARAMS`: each rule, in the order of the rules.

use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE, //
    },
    machine::{
        self,
        Machine, //
    },
    module::{
        Operand,
        Status,
        PROFILE_1_5_01,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
const INVALID: Status = Status::OPERAND_INVALID;

/// A TD without parameters.
struct Uninitialized {
    host: Host,
}

impl Uninitialized {
    fn new() -> Self {
        Self::on(Host::start(&PROFILE_1_5_05))
    }

    fn on(host: Host) -> Self {
        Td::create(&host, TDR, 33);
        host.write_td_params();
        Self { host }
    }

    /// Sets bytes of the parameters, tries them, and sets them back.
    #[track_caller]
    fn refuses(&self, changes: &[(u64, u64, usize)], expected: Status) -> u64 {
        let mut before = Vec::new();
        for (offset, value, len) in changes {
            let pa = HOST_PAGE + offset;
            before.push((pa, self.host.machine.read_bytes(pa, *len)));
            self.host
                .machine
                .write_bytes(pa, &value.to_le_bytes()[..*len]);
        }
        let operands = [TDR, HOST_PAGE];
        let regs = self
            .host
            .fails_with_effects(leaf::MNG_INIT, &operands, expected);
        for (pa, bytes) in before.iter().rev() {
            self.host.machine.write_bytes(*pa, bytes);
        }
        regs.rcx
    }

    #[track_caller]
    fn accepts(self, changes: &[(u64, u64, usize)]) -> Host {
        for (offset, value, len) in changes {
            let bytes = value.to_le_bytes();
            self.host
                .machine
                .write_bytes(HOST_PAGE + offset, &bytes[..*len]);
        }
        self.host.ok(leaf::MNG_INIT, &[TDR, HOST_PAGE]);
        self.host
    }
}

/// Offsets in the parameters.
mod at {
    pub(super) const ATTRIBUTES: u64 = 0;
    pub(super) const XFAM: u64 = 8;
    pub(super) const MAX_VCPUS: u64 = 16;
    pub(super) const NUM_L2_VMS: u64 = 18;
    pub(super) const MSR_CONFIG_CTLS: u64 = 19;
    pub(super) const EPTP_CONTROLS: u64 = 24;
    pub(super) const CONFIG_FLAGS: u64 = 32;
    pub(super) const TSC_FREQUENCY: u64 = 40;
    pub(super) const ARCH_CAPABILITIES: u64 = 224;

    /// A register of the CPUID leaf with that index.
    pub(super) const fn cpuid(index: u64, register: u64) -> u64 {
        256 + 16 * index + 4 * register
    }
}

#[test]
fn attributes() {
    let td = Uninitialized::new();
    let refused = INVALID.on(Operand::Attributes);
    for bit in (0..64).filter(|bit| ![0, 28, 29, 30, 63].contains(bit)) {
        td.refuses(&[(at::ATTRIBUTES, 1 << bit, 8)], refused);
    }
    // A TD that migrates cannot be debugged or profiled.
    for other in [1, 1 << 63] {
        td.refuses(&[(at::ATTRIBUTES, 1 << 29 | other, 8)], refused);
    }
    td.accepts(&[(at::ATTRIBUTES, 1 << 63 | 1 << 30 | 1 << 28 | 1, 8)]);
}

#[test]
fn xfam() {
    let td = Uninitialized::new();
    let refused = INVALID.on(Operand::Xfam);
    for bad in [
        0,
        1,
        2,
        3 | 1 << 3,
        3 | 1 << 10,
        3 | 7 << 5,
        7 | 3 << 5,
        3 | 1 << 11,
        3 | 1 << 18,
        3 | 1 << 63,
    ] {
        td.refuses(&[(at::XFAM, bad, 8)], refused);
    }
    td.host.machine.conditions().msrs.xfam = 7;
    td.refuses(&[(at::XFAM, 3 | 1 << 9, 8)], refused);
    td.accepts(&[(at::XFAM, 7, 8)]);
}

#[test]
fn numbers() {
    let td = Uninitialized::new();
    td.refuses(&[(at::MAX_VCPUS, 0, 2)], INVALID.on(Operand::MaxVcpus));
    td.refuses(&[(at::MAX_VCPUS, 577, 2)], INVALID.on(Operand::MaxVcpus));
    td.refuses(&[(at::NUM_L2_VMS, 4, 1)], INVALID.on(Operand::NumL2Vms));
    td.refuses(&[(at::NUM_L2_VMS, 1, 1)], Status::TDCS_NOT_ALLOCATED);
    let frequency = INVALID.on(Operand::TscFrequency);
    for bad in [0, 3, 401] {
        td.refuses(&[(at::TSC_FREQUENCY, bad, 2)], frequency);
    }
    td.host.machine.conditions().msrs.tsc_adjust = 1;
    td.refuses(&[], Status::INCONSISTENT_MSR.detail(0x3b));
    td.host.machine.conditions().msrs.tsc_adjust = 0;
    td.accepts(&[(at::MAX_VCPUS, 576, 2), (at::TSC_FREQUENCY, 400, 2)]);

    let old = Uninitialized::on(Host::start(&PROFILE_1_5_01));
    old.accepts(&[(at::MAX_VCPUS, 0xffff, 2)]);
}

#[test]
fn reserved_bytes() {
    let td = Uninitialized::new();
    let refused = INVALID.on(Operand::Rdx);
    for offset in [20, 23, 42, 79, 232, 255, 256 + 18 * 16, 1023] {
        td.refuses(&[(offset, 1, 1)], refused);
    }
    td.refuses(&[(at::MSR_CONFIG_CTLS, 2, 1)], refused);
    td.accepts(&[(at::MSR_CONFIG_CTLS, 1, 1)]);
}

#[test]
fn address_translation() {
    let td = Uninitialized::new();
    td.refuses(
        &[(at::CONFIG_FLAGS, 8, 8)],
        INVALID.on(Operand::ConfigFlags),
    );
    let refused = INVALID.on(Operand::EptpControls);
    for bad in [0, 0x1f, 0x18, 0x16, 0x2e, 0x5e, 0x1001e] {
        td.refuses(&[(at::EPTP_CONTROLS, bad, 8)], refused);
    }
    // 52-bit addresses need five levels.
    td.refuses(&[(at::CONFIG_FLAGS, 1, 8)], refused);
    td.accepts(&[(at::EPTP_CONTROLS, 0x26, 8), (at::CONFIG_FLAGS, 7, 8)]);

    fn four_levels(leaf: u32, subleaf: u32) -> [u32; 4] {
        let mut values = machine::server_cpuid(leaf, subleaf);
        if (leaf, subleaf) == (7, 0) {
            values[2] &= !(1 << 16);
        }
        values
    }
    let mut config = machine::server(1).config().clone();
    config.cpuid = four_levels;
    let host = Host::load(Machine::new(config), &PROFILE_1_5_05);
    host.bring_up();
    let td = Uninitialized::on(host);
    td.refuses(&[(at::EPTP_CONTROLS, 0x26, 8)], refused);
}

#[test]
fn arch_capabilities() {
    let td = Uninitialized::new();
    let refused = INVALID.on(Operand::ArchCapabilitiesConfig);
    td.refuses(&[(at::ARCH_CAPABILITIES, 1 << 4, 8)], refused);
    let given = (at::MSR_CONFIG_CTLS, 1, 1);
    td.refuses(&[given, (at::ARCH_CAPABILITIES, 1, 8)], refused);
    td.accepts(&[given, (at::ARCH_CAPABILITIES, 0x118_0010, 8)]);
}

#[test]
fn cpuid() {
    let td = Uninitialized::new();
    let refused = INVALID.on(Operand::CpuidConfig);
    // Bit 0 of CPUID(1).ECX cannot be configured, nor can that of CPUID(4,2).EDX's bit 2.
    let rcx = td.refuses(&[(at::cpuid(0, 2), 1, 4)], refused);
    assert_eq!(rcx, 0xffff_ffff_0000_0001);
    let rcx = td.refuses(&[(at::cpuid(3, 3), 4, 4)], refused);
    assert_eq!(rcx, 0x2_0000_0004);
    // Another processor's signature.
    let rcx = td.refuses(&[(at::cpuid(0, 0), 0x8_06f7, 4)], refused);
    assert_eq!(rcx, 0xffff_ffff_0000_0001);
    // HLE without RTM.
    let rcx = td.refuses(&[(at::cpuid(5, 1), 1 << 4, 4)], refused);
    assert_eq!(rcx, 0);
    // IA32_ARCH_CAPABILITIES: there is IA32_TSX_CTRL.
    const TSX_CTRL: u64 = 1 << 7;
    let tsx = (at::cpuid(5, 1), 1 << 4 | 1 << 11, 4);
    td.host.machine.conditions().msrs.arch_capabilities &= !TSX_CTRL;
    td.refuses(&[tsx], Status::INCORRECT_MSR_VALUE.detail(0x10a));
    td.host.machine.conditions().msrs.arch_capabilities |= TSX_CTRL;
    td.accepts(&[tsx, (at::cpuid(0, 0), 0x8_06f8, 4)]);
}

#[test]
fn topology() {
    let td = Uninitialized::new();
    let refused = Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED;
    let level = |index: u64, kind: u64| (at::cpuid(12 + index, 2), kind << 8 | index, 4);
    // No core; not ascending; after the end.
    td.refuses(&[level(0, 1)], refused);
    td.refuses(&[level(0, 2), level(1, 1)], refused);
    td.refuses(&[level(0, 2), level(1, 2)], refused);
    td.refuses(&[level(1, 2)], refused);
    let shift = |index: u64, bits: u64| (at::cpuid(12 + index, 0), bits, 4);
    let count = |index: u64, count: u64| (at::cpuid(12 + index, 1), count, 4);
    let host = td.accepts(&[
        level(0, 1),
        shift(0, 1),
        count(0, 2),
        level(1, 2),
        shift(1, 4),
        count(1, 8),
        level(2, 3),
        shift(2, 6),
        count(2, 32),
    ]);
    let read = |leaf: u64, subleaf: u64| {
        let field = |half: u64| {
            let id = 0x9410_0003_0000_0000 | leaf << 9 | subleaf << 1 | half;
            host.ok(leaf::MNG_RD, &[TDR, id]).r8
        };
        (field(0), field(1))
    };
    assert_eq!(read(0x1f, 0), (2 << 32 | 1, 1 << 8));
    assert_eq!(read(0x1f, 1), (8 << 32 | 4, 2 << 8 | 1));
    assert_eq!(read(0x1f, 2), (32 << 32 | 6, 3 << 8 | 2));
    assert_eq!(read(0x1f, 3), (0, 0));
    // The older leaf: threads, and everything above as cores.
    assert_eq!(read(0xb, 0), (2 << 32 | 1, 1 << 8));
    assert_eq!(read(0xb, 1), (32 << 32 | 6, 2 << 8 | 1));
}

#[test]
fn a_td_that_migrates_has_no_l2_vms() {
    let td = Uninitialized::new();
    td.host.ok(leaf::MNG_ADDCX, &[TDR + 0x10_000, TDR]);
    let l2 = (at::NUM_L2_VMS, 1, 1);
    let migratable = (at::ATTRIBUTES, 1 << 29, 8);
    td.refuses(&[l2, migratable], INVALID.on(Operand::Rdx));
    td.accepts(&[l2]);
}

#[test]
fn the_first_rule_that_is_broken_counts() {
    let td = Uninitialized::new();
    let mut changes = vec![
        (at::ATTRIBUTES, 2, 8),
        (at::XFAM, 1, 8),
        (at::MAX_VCPUS, 0, 2),
        (at::NUM_L2_VMS, 4, 1),
        (20, 1, 1),
        (at::CONFIG_FLAGS, 8, 8),
        (at::EPTP_CONTROLS, 0, 8),
        (at::TSC_FREQUENCY, 0, 2),
        (232, 1, 1),
        (at::cpuid(0, 2), 1, 4),
        (at::cpuid(12, 2), 1 << 8, 4),
        (1023, 1, 1),
        (at::ARCH_CAPABILITIES, 1, 8),
    ];
    let expected = [
        INVALID.on(Operand::Attributes),
        INVALID.on(Operand::Xfam),
        INVALID.on(Operand::MaxVcpus),
        INVALID.on(Operand::NumL2Vms),
        INVALID.on(Operand::Rdx),
        INVALID.on(Operand::ConfigFlags),
        INVALID.on(Operand::EptpControls),
        INVALID.on(Operand::TscFrequency),
        INVALID.on(Operand::Rdx),
        INVALID.on(Operand::CpuidConfig),
        Status::CPUID_LEAF_1F_FORMAT_UNRECOGNIZED,
        INVALID.on(Operand::Rdx),
        INVALID.on(Operand::ArchCapabilitiesConfig),
    ];
    for status in expected {
        td.refuses(&changes, status);
        changes.remove(0);
    }
    td.accepts(&changes);
}

#[test]
fn time_starts_at_zero() {
    let td = Uninitialized::new();
    td.host.machine.conditions().tsc = 123_456_789_000;
    td.host.machine.conditions().tsc_step = 0;
    let host = td.accepts(&[(at::TSC_FREQUENCY, 100, 2)]);
    let read = |code: u64| {
        let id = 0x1100_0000_0000_0000 | code;
        host.ok(leaf::MNG_RD, &[TDR, id]).r8
    };
    let multiplier = (2_500_000_000_u128 << 48) / 2_000_000_000;
    assert_eq!(u128::from(read(11)), multiplier);
    let offset = (123_456_789_000 * multiplier) >> 48;
    assert_eq!(read(10), (offset as u64).wrapping_neg());
}
