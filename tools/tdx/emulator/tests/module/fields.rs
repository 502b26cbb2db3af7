// SPDX-License-Identifier: GPL-2.0

//! Metadata fields.

use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE,
        VERSION_1, //
    },
    module::{
        Status,
        PROFILES,
        PROFILE_1_5_01,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
const NO_FIELD: u64 = u64::MAX;

/// What Linux 7.3 reads at boot.
const LINUX_FIELDS: [u64; 18] = [
    0x0800_0001_0000_0003,
    0x0800_0001_0000_0004,
    0x0800_0001_0000_0005,
    0x0a00_0003_0000_0008,
    0x9100_0001_0000_0008,
    0x9100_0001_0000_0009,
    0x9100_0001_0000_0010,
    0x9100_0001_0000_0011,
    0x9100_0001_0000_0012,
    0x9800_0001_0000_0000,
    0x9800_0001_0000_0100,
    0x9800_0001_0000_0200,
    0x1900_0003_0000_0000,
    0x1900_0003_0000_0001,
    0x1900_0003_0000_0002,
    0x1900_0003_0000_0003,
    0x9900_0001_0000_0004,
    0x9900_0001_0000_0008,
];

#[test]
fn linux_finds_what_it_needs() {
    let host = Host::start(&PROFILE_1_5_05);
    let read = |id: u64| host.ok(leaf::SYS_RD, &[0, id]).r8;
    let values = LINUX_FIELDS.map(read);
    let expected = [
        5,
        1,
        5,
        0x1f_0fbf,
        64,
        16,
        16,
        16,
        16,
        4096,
        0x6000,
        0x6000,
        0x8000_0000_7000_0001,
        0,
        0x6_dbe7,
        3,
        18,
        576,
    ];
    assert_eq!(values, expected);
    assert_eq!(read(0x9900_0003_0000_0400), 0xffff_ffff_0000_0001);
    assert_eq!(read(0x9900_0003_0000_0411), 0x5_0000_001f);
    // CPUID(7,0): what can be configured and the processor has.
    let [_, ebx, ecx, edx] = (host.machine.config().cpuid)(7, 0).map(u64::from);
    let values = read(0x9900_0003_0000_050a);
    assert_eq!(values, (ebx & 0xdc2b_9b18) << 32);
    let values = read(0x9900_0003_0000_050b);
    assert_eq!(values, (edx & 0x5_411c) << 32 | ecx & 0x241_7f65);
}

#[test]
fn the_older_module_lacks_one() {
    let host = Host::start(&PROFILE_1_5_01);
    for id in LINUX_FIELDS {
        let (status, regs) = host.call(leaf::SYS_RD, &[0, id]);
        if id == 0x9900_0001_0000_0008 {
            let unknown = Status::METADATA_FIELD_ID_INCORRECT.raw();
            assert_eq!((status, regs.rdx, regs.r8), (unknown, NO_FIELD, 0));
        } else {
            assert_eq!(status, 0, "{id:#x}");
        }
    }
}

#[test]
fn processors_that_are_not_initialised_read_nothing() {
    let host = Host::load(tdx_emulator_host::machine::server(1), &PROFILE_1_5_05);
    let regs = host.fails(leaf::SYS_RD, &[0, NO_FIELD], Status::SYS_LP_INIT_NOT_DONE);
    assert_eq!((regs.rdx, regs.r8), (NO_FIELD, 0));
}

#[test]
fn fields_are_chained() {
    for profile in PROFILES {
        let host = Host::start(profile);
        let first = Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT;
        let mut id = host.fails(leaf::SYS_RD, &[0, NO_FIELD], first).rdx;
        let mut count = 0;
        while id != NO_FIELD {
            id = host.ok(leaf::SYS_RD, &[0, id]).rdx;
            count += 1;
            assert!(count < 1000, "no end");
        }
        assert!(count > 300, "{count} fields");
    }
}

#[test]
fn a_tds_fields_are_chained() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    let tdvpr = td.add_vcpu(&host);
    for (rax, owner, least) in [(leaf::MNG_RD, TDR, 200), (leaf::VP_RD, tdvpr, 39)] {
        let rax = rax | VERSION_1;
        let first = Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT;
        let mut id = host.fails(rax, &[owner, NO_FIELD], first).rdx;
        let mut count = 0;
        while id != NO_FIELD {
            let (status, regs) = host.call(rax, &[owner, id]);
            let not_readable = Status::METADATA_FIELD_NOT_READABLE.raw();
            assert!(status == 0 || status == not_readable, "{id:#x}");
            if status != 0 {
                assert_eq!((regs.rdx, regs.r8), (NO_FIELD, 0));
                break;
            }
            id = regs.rdx;
            count += 1;
            assert!(count < 1000, "no end");
        }
        assert!(count > least, "{count} fields");
    }
}

#[test]
fn identifiers_name_one_element() {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    td.init(&host);
    let id = 0x1100_0000_0000_000b;
    let value = host.ok(leaf::MNG_RD, &[TDR, id]).r8;
    let unknown = Status::METADATA_FIELD_ID_INCORRECT;
    for bit in (24..32).chain(34..50).chain([55, 62]) {
        let regs = host.fails(leaf::MNG_RD, &[TDR, id | 1 << bit], unknown);
        assert_eq!((regs.rdx, regs.r8), (id | 1 << bit, 0));
    }
    // The size, the context and these flags say nothing.
    for bit in [32, 33, 50, 51, 52, 53, 54, 63] {
        assert_eq!(host.ok(leaf::MNG_RD, &[TDR, id | 1 << bit]).r8, value);
    }
}

#[test]
fn cpuid_as_kvm_reads_it() {
    let host = Host::start(&PROFILE_1_5_05);
    let td = Td::create(&host, TDR, 33);
    td.init(&host);
    let read = |leaf: u64, subleaf: Option<u64>, half: u64| {
        let subleaf = subleaf.map_or(0x1fe, |subleaf| subleaf << 1);
        let leaf = (leaf & 0x7f) << 9 | (leaf >> 31) << 16;
        let id = 0x9410_0003_0000_0000 | leaf | subleaf | half;
        let (status, regs) = host.call(leaf::MNG_RD, &[TDR, id]);
        (status == 0).then_some(regs.r8)
    };
    assert_eq!(read(0, None, 0).unwrap() as u32, 0x23);
    assert_eq!(read(0x8000_0000, None, 0).unwrap() as u32, 0x8000_0008);
    // The number of subleaves that each leaf has.
    for (leaf, count) in [
        (4, 5),
        (7, 3),
        (0xb, 2),
        (0xd, 19),
        (0x14, 2),
        (0x1d, 2),
        (0x1f, 6),
        (0x21, 1),
        (0x23, 4),
    ] {
        assert_eq!(read(leaf, None, 0), None, "leaf {leaf:#x}");
        let found = (0..127)
            .take_while(|subleaf| read(leaf, Some(*subleaf), 0).is_some())
            .count();
        assert_eq!(found, count, "leaf {leaf:#x}");
    }
    for leaf in [2, 6, 9, 0x10, 0x8000_0002, 0x8000_0006] {
        assert_eq!(read(leaf, None, 0), None, "leaf {leaf:#x}");
    }
    // "IntelTDX    "
    assert_eq!(read(0x21, Some(0), 0), Some(0x6574_6e49_0000_0000));
    assert_eq!(read(0x21, Some(0), 1), Some(0x5844_546c_2020_2020));
    // 40 times 25 MHz.
    assert_eq!(read(0x15, None, 0), Some(40 << 32 | 1));
    assert_eq!(read(0x15, None, 1), Some(25_000_000));
}

#[test]
fn what_linux_writes_to_a_vcpu() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, TDR, 33);
    td.init(&host);
    let tdvpr = td.add_vcpu(&host);
    let write = |id: u64, value: u64, mask: u64| host.ok(leaf::VP_WR, &[tdvpr, id, value, mask]).r8;
    let refused = |id: u64, value: u64, mask: u64, status: Status| {
        let regs = host.fails(leaf::VP_WR, &[tdvpr, id, value, mask], status);
        assert_eq!(regs.r8, 0);
    };
    let missing = Status::TD_VMCS_FIELD_NOT_INITIALIZED;
    refused(0x4000, 0x80, 0x80, missing.detail(2));
    assert_eq!(write(2, 0xf2, 0xffff), 0xffff);
    refused(0x4000, 0x80, 0x80, missing.detail(0x2016));
    let bad = Status::METADATA_FIELD_VALUE_NOT_VALID;
    for descriptor in [0x2100_0020, 0x2100_0000 | 33 << 46, 1 << 52] {
        refused(0x2016, descriptor, u64::MAX, bad);
    }
    assert_eq!(write(0x2016, 0x2100_0040, u64::MAX), u64::MAX);
    assert_eq!(write(0x4000, 0x80, 0x80), 0);
    assert_eq!(write(0x401e, 1 << 31, 1 << 31), 0);
    assert_eq!(write(0x401e, 1 << 30, 1 << 30), 1 << 31);
    assert_eq!(write(0x4024, 1234, 0xffff_ffff), 0);
    write(0x203c, 0x2200_0000, u64::MAX);
    assert_eq!(write(0x203c, 0x2300_0000, u64::MAX), 0x2200_0000);
    assert_eq!(write(0x2000_0000_0000_000b, 1, 0xff), 0);

    refused(2, 0x100, 0xffff, bad);
    refused(0x203c, 0x2300_0001, u64::MAX, bad);
    let not_writable = Status::METADATA_FIELD_NOT_WRITABLE;
    refused(0x4000, 1, 1, not_writable);
    refused(0x4000, 0x80, 0, not_writable);
    refused(0x9100_0000_0000_0100, 1, 1, not_writable);
    refused(0xfffe, 1, 1, Status::METADATA_FIELD_ID_INCORRECT);
    // The guest's registers are only for those who debug it.
    refused(0x681e, 1, u64::MAX, not_writable);
    let not_readable = Status::METADATA_FIELD_NOT_READABLE;
    host.fails(leaf::VP_RD, &[tdvpr, 0x681e], not_readable);
    let read = |id: u64| host.ok(leaf::VP_RD, &[tdvpr, id]).r8;
    assert_eq!((read(2), read(0x2016)), (0xf2, 0x2100_0040));
    assert_eq!(read(0x9100_0000_0000_0100), 0);
}

#[test]
fn the_extended_state_is_as_large_as_what_it_has() {
    let host = Host::start(&PROFILE_1_5_05);
    for (hkid, xfam, size) in [
        (33, 3u64, 576),
        (34, 0xe7, 576 + 0x100 + 0x40 + 0x200 + 0x400),
    ] {
        let tdr = TDR + 0x10_0000 * hkid;
        Td::create(&host, tdr, hkid as u16);
        host.write_td_params();
        host.machine.write_bytes(HOST_PAGE + 8, &xfam.to_le_bytes());
        host.ok(leaf::MNG_INIT, &[tdr, HOST_PAGE]);
        let read = host.ok(leaf::MNG_RD, &[tdr, 0x9110_0002_0000_000f]);
        assert_eq!(read.r8, size);
    }
}

#[test]
fn a_debugger_sees_more_of_a_vcpu() {
    const RIP: u64 = 0x681e;
    for debug in [false, true] {
        let host = Host::start(&PROFILE_1_5_05);
        let mut td = Td::create(&host, TDR, 33);
        host.write_td_params();
        host.machine
            .write_bytes(HOST_PAGE, &u64::from(debug).to_le_bytes());
        host.ok(leaf::MNG_INIT, &[TDR, HOST_PAGE]);
        let tdvpr = td.add_vcpu(&host);
        let write = [tdvpr, RIP, 0x1234, u64::MAX];
        if debug {
            host.ok(leaf::VP_WR, &write);
            assert_eq!(host.ok(leaf::VP_RD, &[tdvpr, RIP]).r8, 0x1234);
        } else {
            let refused = Status::METADATA_FIELD_NOT_WRITABLE;
            host.fails(leaf::VP_WR, &write, refused);
            let refused = Status::METADATA_FIELD_NOT_READABLE;
            host.fails(leaf::VP_RD, &[tdvpr, RIP], refused);
        }
    }
}
