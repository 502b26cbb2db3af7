// SPDX-License-Identifier: GPL-2.0

//! The dispatcher and the SYS leaves.

use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        GLOBAL_HKID,
        HOST_PAGE,
        PAMT_BASE,
        TDMR_BASE,
        TDMR_INFO,
        TDMR_SIZE,
        VERSION_1, //
    },
    machine,
    module::{
        KeyProgram,
        KotState,
        LeafInfo,
        Lock,
        LockMode,
        LockRecord,
        MemoryRange,
        Module,
        Operand,
        Platform,
        Profile,
        Smrr,
        Status,
        SysState,
        PROFILES,
        PROFILE_1_5_01,
        PROFILE_1_5_05,
        PROFILE_1_5_05_SHARED, //
    },
};

fn loaded() -> Host {
    Host::load(machine::server(1), &PROFILE_1_5_05)
}

fn initialized() -> Host {
    let host = loaded();
    host.init();
    host
}

fn configured() -> Host {
    let host = initialized();
    host.ok(leaf::SYS_CONFIG, &host.describe_tdmr());
    host
}

fn global(mode: LockMode) -> LockRecord {
    LockRecord {
        lock: Lock::Global,
        mode,
    }
}

#[test]
fn profiles_are_chosen_by_name() {
    for profile in PROFILES {
        let found = Profile::by_name(profile.name).unwrap();
        assert!(std::ptr::eq(found, profile));
    }
    assert!(Profile::by_name("2.0").is_none());
    let host = loaded();
    assert!(host.module.set_profile(&PROFILE_1_5_01));
    assert_eq!(host.module.profile().name, "1.5.01");
    host.ok(leaf::SYS_INIT, &[]);
    assert!(!host.module.set_profile(&PROFILE_1_5_05));
}

#[test]
fn reserved_bits_of_rax_are_refused() {
    let host = Host::start(&PROFILE_1_5_05);
    for bit in (24..63).filter(|bit| *bit != 63) {
        let rax = leaf::SYS_RD | 1 << bit;
        host.fails(rax, &[], Status::OPERAND_INVALID.on(Operand::Rax));
    }
}

#[test]
fn only_some_leaves_have_versions() {
    let host = Host::start(&PROFILE_1_5_05);
    let refused = Status::OPERAND_INVALID.on(Operand::Rax);
    for info in LeafInfo::all().filter(|info| info.modelled) {
        let number = u64::from(info.number);
        let versions = [
            leaf::MEM_SEPT_ADD,
            leaf::MEM_SEPT_REMOVE,
            leaf::MNG_RD,
            leaf::VP_RD,
            leaf::VP_INIT,
        ];
        let (status, _) = host.call(number | VERSION_1, &[1, 1, 1]);
        let other = status != refused.raw();
        assert_eq!(other, versions.contains(&number), "{}", info.name);
        host.fails(number | 2 << 16, &[1, 1, 1], refused);
    }
    let old = Host::start(&PROFILE_1_5_01);
    old.fails(leaf::VP_INIT | VERSION_1, &[], refused);
}

#[test]
fn the_seamldr_is_not_there() {
    let host = Host::start(&PROFILE_1_5_05);
    let (status, regs) = host.call(1 << 63, &[1, 2, 3]);
    assert_eq!(status, 0x8000_ff00_ffff_0000);
    assert_eq!((regs.rax, regs.rcx, regs.rdx), (1 << 63, 1, 2));
}

#[test]
fn most_leaves_need_a_module_that_is_ready() {
    for host in [loaded(), initialized(), configured()] {
        let state = host.module.sys_state();
        for info in LeafInfo::all().filter(|info| !info.early) {
            host.fails(u64::from(info.number), &[], Status::SYS_NOT_READY);
        }
        host.fails(200, &[], Status::SYS_NOT_READY);
        assert_eq!(host.module.sys_state(), state);
    }
    let host = Host::start(&PROFILE_1_5_05);
    for number in [200, 0xffff] {
        host.fails(number, &[], Status::OPERAND_INVALID.on(Operand::Rax));
    }
}

#[test]
fn sys_init() {
    let host = loaded();
    let call = |expected| host.fails(leaf::SYS_INIT, &[0, 7, 7], expected);
    for mode in [LockMode::Shared, LockMode::Exclusive] {
        host.busy(global(mode), leaf::SYS_INIT, &[], Status::SYS_BUSY);
    }
    host.fails(
        leaf::SYS_INIT,
        &[1],
        Status::OPERAND_INVALID.on(Operand::Rcx),
    );
    host.machine.conditions().msrs.misc_enable |= 1 << 22;
    call(Status::LIMIT_CPUID_MAXVAL_SET);
    host.machine.conditions().msrs.misc_enable &= !(1 << 22);
    host.machine.conditions().entropy = false;
    call(Status::RND_NO_ENTROPY);
    host.machine.conditions().entropy = true;
    assert_eq!(host.module.sys_state(), SysState::InitPending);
    let regs = host.ok(leaf::SYS_INIT, &[0, 7, 7]);
    assert_eq!((regs.rdx, regs.r8, regs.r9, regs.r10), (0, 0, 0, 0));
    call(Status::SYS_INIT_NOT_PENDING);
}

#[test]
fn sys_init_refuses_machines() {
    let with = |change: fn(&mut machine::Config)| {
        let mut config = machine::server(1).config().clone();
        change(&mut config);
        Host::load(machine::Machine::new(config), &PROFILE_1_5_05)
    };
    let host = with(|config| config.keys.tdx_keys = 2048);
    host.fails(
        leaf::SYS_INIT,
        &[],
        Status::NUM_ACTIVATED_HKIDS_NOT_SUPPORTED,
    );
    let host = with(|config| config.cmrs[0].base += 1);
    host.fails(leaf::SYS_INIT, &[], Status::CMR_LIST_INVALID);
    let host = with(|config| config.cmrs = vec![config.cmrs[0]; 2]);
    host.fails(leaf::SYS_INIT, &[], Status::CMR_LIST_INVALID);
    let host = with(|config| config.cmrs.clear());
    host.fails(leaf::SYS_INIT, &[], Status::CMR_LIST_INVALID);
}

#[test]
fn sys_init_looks_at_cpuid() {
    let with = |cpuid: fn(u32, u32) -> [u32; 4]| {
        let mut machine = machine::server(1);
        machine.set_cpuid(cpuid);
        Host::load(machine, &PROFILE_1_5_05)
    };
    let unsupported = |leaf| Status::CPUID_LEAF_NOT_SUPPORTED.detail(leaf);
    let host = with(|leaf, subleaf| match leaf {
        0 => [0xc, 0, 0, 0],
        _ => machine::server_cpuid(leaf, subleaf),
    });
    let regs = host.fails(leaf::SYS_INIT, &[0, 7, 7], unsupported(0xd));
    assert_eq!((regs.rcx, regs.rdx, regs.r8), (0, 0, 0));
    let host = with(|leaf, subleaf| match leaf {
        0x8000_0000 => [0x8000_0007, 0, 0, 0],
        _ => machine::server_cpuid(leaf, subleaf),
    });
    host.fails(leaf::SYS_INIT, &[], unsupported(0x8000_0008));
    // "AuthenticAMD".
    let host = with(|leaf, subleaf| match leaf {
        0 => [0x23, 0x6874_7541, 0x444d_4163, 0x6974_6e65],
        _ => machine::server_cpuid(leaf, subleaf),
    });
    let regs = host.fails(leaf::SYS_INIT, &[], Status::INCORRECT_CPUID_VALUE);
    assert_eq!(regs.rcx, 0xffff_ffff_0000_0000);
    assert_eq!((regs.rdx, regs.r8), (0xffff_ffff << 32, u64::MAX));
    let vendor = (0x756e_6547 << 32, 0x4965_6e69_6c65_746e);
    assert_eq!((regs.r9, regs.r10), vendor);
}

#[test]
fn sys_init_looks_at_smrr() {
    let host = loaded();
    let cmr = host.machine.config().cmrs[0];
    let good = Smrr {
        can_lock: true,
        locked: true,
        range: Some(MemoryRange {
            base: cmr.base - 0x80_0000,
            size: 0x80_0000,
        }),
    };
    let call = |smrr, expected| {
        host.machine.conditions().smrr = Some(smrr);
        host.fails(leaf::SYS_INIT, &[], expected);
    };
    let unlockable = Smrr {
        can_lock: false,
        ..good
    };
    call(unlockable, Status::SMRR_LOCK_NOT_SUPPORTED);
    let unlocked = Smrr {
        locked: false,
        ..good
    };
    call(unlocked, Status::SMRR_NOT_LOCKED);
    let invalid = Smrr {
        range: None,
        ..good
    };
    call(invalid, Status::INVALID_SMRR_CONFIGURATION);
    let inside = Smrr {
        range: Some(MemoryRange {
            base: cmr.base + cmr.size - 4096,
            size: 8192,
        }),
        ..good
    };
    call(inside, Status::SMRR_OVERLAPS_CMR);
    host.machine.conditions().smrr = Some(good);
    host.ok(leaf::SYS_INIT, &[]);
}

#[test]
fn processors_must_be_alike() {
    let mut host = loaded();
    host.ok(leaf::SYS_INIT, &[]);
    host.ok(leaf::SYS_LP_INIT, &[]);
    host.machine.conditions().msrs.arch_capabilities ^= 1;
    host.lp = 1;
    host.fails(
        leaf::SYS_LP_INIT,
        &[],
        Status::INCONSISTENT_MSR.detail(0x10a),
    );
    host.machine.conditions().msrs.arch_capabilities ^= 1;
    host.machine.set_cpuid(|leaf, subleaf| {
        let mut values = machine::server_cpuid(leaf, subleaf);
        match (leaf, subleaf) {
            // What tells one processor from another, and what follows CR4, may differ.
            (1, _) => {
                values[1] ^= 0xff00_0000;
                values[2] ^= 1 << 27;
            }
            (0xb | 0x1f, _) => values[3] = 7,
            (7, 0) => values[1] ^= 1 << 3,
            _ => {}
        }
        values
    });
    let regs = host.fails(
        leaf::SYS_LP_INIT,
        &[1, 2, 3, 4],
        Status::INCONSISTENT_CPUID_FIELD,
    );
    assert_eq!((regs.rcx, regs.rdx, regs.r8, regs.r9), (7, 1 << 35, 0, 4));
    host.machine.set_cpuid(|leaf, subleaf| {
        let mut values = machine::server_cpuid(leaf, subleaf);
        match leaf {
            1 => values[1] ^= 0xff00_0000,
            0xb | 0x1f => values[3] = 7,
            _ => {}
        }
        values
    });
    host.ok(leaf::SYS_LP_INIT, &[]);
}

#[test]
fn sys_lp_init() {
    let host = loaded();
    host.fails(leaf::SYS_LP_INIT, &[], Status::SYS_LP_INIT_NOT_PENDING);
    host.ok(leaf::SYS_INIT, &[]);
    let exclusive = global(LockMode::Exclusive);
    host.busy(exclusive, leaf::SYS_LP_INIT, &[], Status::SYS_BUSY);
    host.machine.conditions().entropy = false;
    host.fails(leaf::SYS_LP_INIT, &[], Status::RND_NO_ENTROPY);
    host.machine.conditions().entropy = true;
    host.machine.conditions().msrs.tsc_adjust = 1;
    host.fails(
        leaf::SYS_LP_INIT,
        &[],
        Status::INCONSISTENT_MSR.detail(0x3b),
    );
    host.machine.conditions().msrs.tsc_adjust = 0;
    host.not_busy(global(LockMode::Shared), leaf::SYS_LP_INIT, &[1, 2, 3]);
    host.fails(leaf::SYS_LP_INIT, &[], Status::SYS_LP_INIT_DONE);
}

#[test]
fn sys_lp_init_knows_eight_packages() {
    let mut config = machine::server(1).config().clone();
    config.packages = vec![8];
    let machine = machine::Machine::new(config);
    let host = Host::load(machine, &PROFILE_1_5_05);
    host.ok(leaf::SYS_INIT, &[]);
    host.fails(leaf::SYS_LP_INIT, &[], Status::INVALID_PKG_ID);
}

#[test]
fn sys_config_operands() {
    let host = loaded();
    host.ok(leaf::SYS_INIT, &[]);
    let good = host.describe_tdmr();
    let call = |operands: &[u64], expected| host.fails(leaf::SYS_CONFIG, operands, expected);
    call(&good, Status::SYS_CONFIG_NOT_PENDING);
    host.ok(leaf::SYS_LP_INIT, &[]);
    call(&good, Status::SYS_CONFIG_NOT_PENDING);
    host.on(1).ok_on(leaf::SYS_LP_INIT, &[]);

    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    call(&[good[0] + 8, 1, good[2]], rcx);
    call(&[good[0] | 1 << 51, 1, good[2]], rcx);
    call(&[0xff_f000_0000, 1, good[2]], rcx);
    let rdx = Status::OPERAND_INVALID.on(Operand::Rdx);
    call(&[good[0], 0, good[2]], rdx);
    call(&[good[0], 65, good[2]], rdx);
    let r8 = Status::OPERAND_INVALID.on(Operand::R8);
    for hkid in [0, 31, 64, 1 << 16 | 32] {
        call(&[good[0], 1, hkid], r8);
    }
    host.machine.lp(0).write64(good[0], TDMR_INFO + 8);
    call(&good, rcx);
    host.machine.lp(0).write64(good[0], TDMR_INFO);
    let exclusive = global(LockMode::Shared);
    host.busy(exclusive, leaf::SYS_CONFIG, &good, Status::SYS_BUSY);

    host.ok(leaf::SYS_CONFIG, &good);
    assert_eq!(host.module.sys_state(), SysState::ConfigDone);
    assert_eq!(host.module.global_hkid(), GLOBAL_HKID);
    assert_eq!(host.module.kot_entry(GLOBAL_HKID).state, KotState::Reserved);
    call(&good, Status::SYS_CONFIG_NOT_PENDING);
}

/// The words of a TDMR's description.
mod word {
    pub(super) const BASE: u64 = 0;
    pub(super) const SIZE: u64 = 1;
    pub(super) const PAMT_1G: u64 = 2;
    pub(super) const PAMT_2M: u64 = 4;
    pub(super) const PAMT_4K: u64 = 6;
    pub(super) const PAMT_4K_SIZE: u64 = 7;
    pub(super) const RESERVED: u64 = 8;
}

#[test]
fn sys_config_tdmrs() {
    let host = initialized();
    let lp = host.machine.lp(0);
    let check = |changes: &[(u64, u64)], expected: Status| {
        let good = host.describe_tdmr();
        for (word, value) in changes {
            lp.write64(TDMR_INFO + 8 * word, *value);
        }
        host.fails(leaf::SYS_CONFIG, &good, expected);
        assert_eq!(host.module.sys_state(), SysState::InitDone);
        for (word, _) in changes {
            lp.write64(TDMR_INFO + 8 * word, 0);
        }
    };
    use word::*;
    const AREA: u64 = TDMR_SIZE - 0x100_0000;

    check(&[(BASE, u64::MAX - 1)], Status::INVALID_TDMR);
    check(&[(BASE, TDMR_BASE + 0x1000)], Status::INVALID_TDMR);
    check(&[(BASE, 1 << 46)], Status::INVALID_TDMR);
    check(&[(SIZE, 0)], Status::INVALID_TDMR);
    check(&[(SIZE, TDMR_SIZE + 0x1000)], Status::INVALID_TDMR);

    // An entry after the end of the list.
    let disorder = Status::NON_ORDERED_RESERVED_IN_TDMR;
    let after_end = [(RESERVED + 4, 0x1000), (RESERVED + 5, 0x1000)];
    check(&after_end, disorder.detail(2 << 8));
    // One that overlaps the one before.
    let overlap = [(RESERVED + 2, AREA), (RESERVED + 3, 0x1000)];
    check(&overlap, disorder.detail(1 << 8));
    let invalid = Status::INVALID_RESERVED_IN_TDMR;
    check(&[(RESERVED, u64::MAX)], invalid);
    check(&[(RESERVED, AREA + 1)], invalid);
    check(&[(RESERVED + 1, 0x200_0000)], invalid);

    check(&[(PAMT_4K, PAMT_BASE + 1)], Status::INVALID_PAMT);
    check(&[(PAMT_4K_SIZE, 0x3f_f000)], Status::INVALID_PAMT);
    check(&[(PAMT_2M, 1 << 51)], Status::INVALID_PAMT.detail(1 << 8));
    check(&[(PAMT_1G, 1 << 52)], Status::INVALID_PAMT.detail(2 << 8));
    // In another PAMT of the same TDMR, and in memory that TDs may get.
    check(
        &[(PAMT_2M, PAMT_BASE + 0x10_0000)],
        Status::PAMT_OVERLAP.detail(1 << 8),
    );
    check(&[(PAMT_4K, TDMR_BASE)], Status::PAMT_OVERLAP);
    check(&[(PAMT_4K, 0)], Status::PAMT_OUTSIDE_CMRS);
    let outside = [(BASE, 0x40_0000_0000)];
    check(&outside, Status::TDMR_OUTSIDE_CMRS);
    // A PAMT in the reserved area is what Linux does.
    let good = host.describe_tdmr();
    lp.write64(TDMR_INFO + 8 * PAMT_4K, TDMR_BASE + AREA);
    host.ok(leaf::SYS_CONFIG, &good);
}

#[test]
fn sys_config_tdmrs_must_not_overlap() {
    let host = initialized();
    let lp = host.machine.lp(0);
    let [list, _, hkid] = host.describe_tdmr();
    let second = TDMR_INFO + 512;
    lp.write64(list + 8, second);
    let info = [
        (0, TDMR_BASE + TDMR_SIZE),
        (1, TDMR_SIZE),
        (2, PAMT_BASE + 0x80_0000),
        (3, 4096),
        (4, PAMT_BASE + 0x80_1000),
        (5, 0x2000),
        (6, PAMT_BASE + 0x90_0000),
        (7, 0x40_0000),
    ];
    for (word, value) in info {
        lp.write64(second + 8 * word, value);
    }
    let call = |word: u64, value: u64, expected: Status| {
        let before = lp.read64(second + 8 * word);
        lp.write64(second + 8 * word, value);
        host.fails(leaf::SYS_CONFIG, &[list, 2, hkid], expected);
        lp.write64(second + 8 * word, before);
    };
    call(word::BASE, TDMR_BASE, Status::NON_ORDERED_TDMR.detail(1));
    let first_pamt = PAMT_BASE + 0x10_0000;
    call(word::PAMT_4K, first_pamt, Status::PAMT_OVERLAP.detail(1));
    host.ok(leaf::SYS_CONFIG, &[list, 2, hkid]);
}

#[test]
fn sys_key_config() {
    let host = initialized();
    host.fails(
        leaf::SYS_KEY_CONFIG,
        &[],
        Status::SYS_KEY_CONFIG_NOT_PENDING,
    );
    host.ok(leaf::SYS_CONFIG, &host.describe_tdmr());
    let shared = global(LockMode::Shared);
    host.busy(shared, leaf::SYS_KEY_CONFIG, &[], Status::SYS_BUSY);
    host.machine.conditions().program_key = KeyProgram::TableBusy;
    let busy = Status::OPERAND_BUSY.on(Operand::Ket);
    host.fails(leaf::SYS_KEY_CONFIG, &[], busy);
    host.machine.conditions().program_key = KeyProgram::NoEntropy;
    host.fails(leaf::SYS_KEY_CONFIG, &[], Status::KEY_GENERATION_FAILED);
    host.machine.conditions().program_key = KeyProgram::Done;
    host.ok(leaf::SYS_KEY_CONFIG, &[]);
    assert_eq!(host.module.sys_state(), SysState::Ready);
    host.fails(
        leaf::SYS_KEY_CONFIG,
        &[],
        Status::SYS_KEY_CONFIG_NOT_PENDING,
    );
}

#[test]
fn sys_key_config_on_two_packages() {
    let host = Host::load(machine::server(2), &PROFILE_1_5_05);
    host.init();
    host.ok(leaf::SYS_CONFIG, &host.describe_tdmr());
    host.ok(leaf::SYS_KEY_CONFIG, &[]);
    host.fails(leaf::SYS_KEY_CONFIG, &[], Status::KEY_CONFIGURED);
    assert_eq!(host.module.sys_state(), SysState::ConfigDone);
    host.on(2).ok_on(leaf::SYS_KEY_CONFIG, &[]);
    assert_eq!(host.module.sys_state(), SysState::Ready);
}

#[test]
fn sys_tdmr_init() {
    let host = configured();
    host.ok(leaf::SYS_KEY_CONFIG, &[]);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    for base in [TDMR_BASE + 0x1000, TDMR_BASE | 1 << 51, 0, 1 << 52] {
        let regs = host.fails(leaf::SYS_TDMR_INIT, &[base, 7], rcx);
        assert_eq!(regs.rdx, 0);
    }
    let lock = LockRecord {
        lock: Lock::Tdmr(0),
        mode: LockMode::Exclusive,
    };
    let busy = Status::OPERAND_BUSY.on(Operand::Rcx);
    host.busy(lock, leaf::SYS_TDMR_INIT, &[TDMR_BASE], busy);

    let mut calls = 0;
    loop {
        calls += 1;
        let next = host.ok(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).rdx;
        if next == TDMR_BASE + TDMR_SIZE {
            break;
        }
        assert_eq!(next, TDMR_BASE);
        // Nothing can be used before all of the 1 GiB is initialised.
        host.fails(
            leaf::PHYMEM_PAGE_RDMD,
            &[TDMR_BASE],
            Status::OPERAND_ADDR_RANGE_ERROR.on(Operand::Rcx),
        );
    }
    assert!(calls > 1);
    host.fails(
        leaf::SYS_TDMR_INIT,
        &[TDMR_BASE],
        Status::TDMR_ALREADY_INITIALIZED,
    );
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn sys_tdmr_init_overwrites_what_the_host_left() {
    let host = configured();
    for page in 0..1024 {
        host.machine
            .write_bytes(PAMT_BASE + 0x10_0000 + 4096 * page, &[0x5a; 4096]);
    }
    host.ok(leaf::SYS_KEY_CONFIG, &[]);
    while host.ok(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).rdx == TDMR_BASE {}
    for pa in (TDMR_BASE..TDMR_BASE + TDMR_SIZE).step_by(0x8_1000) {
        let regs = host.ok(leaf::PHYMEM_PAGE_RDMD, &[pa]);
        let reserved = pa >= super::RESERVED;
        assert_eq!(regs.rcx, u64::from(reserved), "{pa:#x}");
        assert_eq!(regs.rdx, 0);
    }
}

#[test]
fn sys_shutdown() {
    let host = Host::start(&PROFILE_1_5_05);
    let rcx = Status::OPERAND_INVALID.on(Operand::Rcx);
    host.fails(leaf::SYS_SHUTDOWN, &[1], rcx);
    let shared = global(LockMode::Shared);
    host.busy(shared, leaf::SYS_SHUTDOWN, &[], Status::SYS_BUSY);
    host.ok(leaf::SYS_SHUTDOWN, &[]);
    for info in LeafInfo::all().filter(|info| info.number != 44) {
        host.fails(u64::from(info.number), &[], Status::SYS_SHUTDOWN);
    }
}

#[test]
fn sys_update() {
    let host = loaded();
    host.fails(leaf::SYS_UPDATE, &[], Status::SYS_STATE_INCORRECT);
    host.init();
    let shared = global(LockMode::Shared);
    host.busy(shared, leaf::SYS_UPDATE, &[], Status::SYS_BUSY);
    host.fails(leaf::SYS_UPDATE, &[], Status::SYS_INVALID_HANDOFF);
}

#[test]
fn sys_disable() {
    let host = Host::start(&PROFILE_1_5_05);
    let shared = global(LockMode::Shared);
    host.busy(shared, leaf::SYS_DISABLE, &[], Status::SYS_BUSY);
    host.ok(leaf::SYS_DISABLE, &[]);
    let (status, regs) = host.call(leaf::SYS_RD, &[]);
    assert_eq!(status, 0x8000_ff00_ffff_0000);
    assert_eq!(regs.rax, leaf::SYS_RD);

    let old = Host::start(&PROFILE_1_5_01);
    let unknown = Status::OPERAND_INVALID.on(Operand::Rax);
    old.fails(leaf::SYS_DISABLE, &[], unknown);
}

/// What TDH.SYS.RD tells must be what the leaves then do.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn metadata_agrees_with_the_profile() {
    const TDR: u64 = FIRST_PAGE;
    const LASS: u64 = 1 << 27;
    let refused = Status::OPERAND_INVALID.on(Operand::Rax);
    for profile in PROFILES {
        let mut machine = machine::server(1);
        machine.set_cpuid(|leaf, subleaf| match (leaf, subleaf) {
            (7, 1) => [0x1d70, 0, 0, 0],
            _ => machine::server_cpuid(leaf, subleaf),
        });
        let host = Host::load(machine, profile);
        host.bring_up();
        let read = |id: u64| host.call(leaf::SYS_RD, &[0, id]);
        let has = |id: u64| read(id).0 == 0;

        let features = read(0x0a00_0003_0000_0008).1.r8;
        let topology = features & 1 << 20 != 0;
        let version = format!(
            "1.5.{:02}",
            read(0x0800_0001_0000_0005).1.r8 + u64::from(!topology)
        );
        assert_eq!(&profile.name[..6], version);
        // The number of vCPUs came with their x2APIC ids.
        assert_eq!(has(0x9900_0001_0000_0008), topology, "{}", profile.name);

        // LASS.
        let attributes = read(0x1900_0003_0000_0000).1.r8;
        assert_eq!(attributes & LASS != 0, profile.name == "1.5.05");
        host.write_td_params();
        let mut td = Td::create(&host, TDR, 33);
        host.machine
            .write_bytes(HOST_PAGE, &(LASS | 1 << 28).to_le_bytes());
        let init = [TDR, HOST_PAGE];
        if attributes & LASS == 0 {
            let invalid = Status::OPERAND_INVALID.on(Operand::Attributes);
            host.fails_with_effects(leaf::MNG_INIT, &init, invalid);
            td.init(&host);
        } else {
            host.ok(leaf::MNG_INIT, &init);
        }

        // The topology, and the lock that goes with it.
        let tdvpr = td.page();
        host.ok(leaf::VP_CREATE, &[tdvpr, TDR]);
        for _ in 0..5 {
            let page = td.page();
            host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
        }
        let lock = LockRecord {
            lock: Lock::Page { pa: TDR, level: 0 },
            mode: LockMode::Shared,
        };
        let new = leaf::VP_INIT | VERSION_1;
        match profile.name {
            "1.5.01" => {
                host.fails(new, &[tdvpr, 0, 5], refused);
                host.not_busy(lock, leaf::VP_INIT, &[tdvpr, 0]);
            }
            "1.5.05" => {
                let busy = Status::OPERAND_BUSY.on(Operand::Tdr);
                host.busy(lock, new, &[tdvpr, 0, 5], busy);
                host.ok(new, &[tdvpr, 0, 5]);
            }
            _ => {
                host.not_busy(lock, new, &[tdvpr, 0, 5]);
            }
        }

        // The last, as it ends the module.
        let (status, _) = host.call(leaf::SYS_DISABLE, &[]);
        let expected = match profile.name {
            "1.5.05" => 0,
            _ => refused.raw(),
        };
        assert_eq!(status, expected, "{}", profile.name);
    }
}

/// Two processors give two vCPUs the same x2APIC id at the same time, as only a profile lets them
/// that does not lock the TDR exclusively.
#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn one_of_two_gets_the_x2apic_id() {
    let host = Host::start(&PROFILE_1_5_05_SHARED);
    for round in 0..40 {
        let mut td = Td::create(&host, FIRST_PAGE, 33);
        td.init(&host);
        let vcpus = [(); 2].map(|()| {
            let tdvpr = td.page();
            host.ok(leaf::VP_CREATE, &[tdvpr, td.tdr]);
            for _ in 0..5 {
                let page = td.page();
                host.ok(leaf::VP_ADDCX, &[page, tdvpr]);
            }
            tdvpr
        });
        let barrier = std::sync::Barrier::new(2);
        let init = |lp: u32| {
            barrier.wait();
            let operands = [vcpus[lp as usize], 0, round % 3];
            host.on(lp).call_on(leaf::VP_INIT | VERSION_1, &operands).0
        };
        let statuses = std::thread::scope(|scope| {
            let other = scope.spawn(|| init(1));
            [init(0), other.join().unwrap()]
        });
        let unique = Status::X2APIC_ID_NOT_UNIQUE.detail((round % 3) as u32);
        let won = statuses.iter().filter(|status| **status == 0).count();
        assert!(won <= 1, "both got the id");
        for status in statuses {
            assert!(status == 0 || status == unique.raw(), "{status:#x}");
        }
        for (lp, status) in (0..).zip(statuses) {
            if status == 0 {
                host.on(lp).ok_on(leaf::VP_FLUSH, &[vcpus[lp as usize]]);
            }
        }
        td.destroy(&host);
    }
}

#[test]
fn leaves_have_names() {
    assert_eq!(Module::leaf_name(33), Some("SYS.INIT"));
    assert_eq!(Module::leaf_name(200), None);
    let numbers: std::collections::BTreeSet<_> = LeafInfo::all().map(|info| info.number).collect();
    assert_eq!(numbers.len(), LeafInfo::all().count());
}
