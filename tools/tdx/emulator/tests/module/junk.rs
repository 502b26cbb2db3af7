// SPDX-License-Identifier: GPL-2.0

//! Calls that make no sense, structures that are broken, and pages that the host overwrote.
//!
//! The module answers something, keeps no lock, and stays within memory it was given: the machine
//! panics when an access is unaligned or leaves its page.

use proptest::prelude::*;
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        HOST_PAGE,
        PAMT_BASE,
        TDMR_BASE,
        TDMR_INFO, //
    },
    machine::Machine,
    module::{
        LeafInfo,
        PROFILES, //
    },
};

fn number() -> impl Strategy<Value = u64> {
    let all: Vec<_> = LeafInfo::all()
        .filter(|info| {
            info.modelled
                && ![leaf::SYS_SHUTDOWN, leaf::SYS_DISABLE].contains(&u64::from(info.number))
        })
        .map(|info| u64::from(info.number))
        .collect();
    (prop::sample::select(all), prop::bool::weighted(0.2))
        .prop_map(|(number, version)| number | u64::from(version) << 16)
}

fn operand() -> impl Strategy<Value = u64> {
    prop_oneof![
        4 => (0..24u64).prop_map(|page| FIRST_PAGE + 0x1000 * page),
        2 => (0..600u64, 0..4u64).prop_map(|(page, level)| (page * 0x1000) | level),
        1 => (0..5u64).prop_map(|level| level),
        1 => Just(HOST_PAGE),
        1 => Just(TDMR_BASE),
        1 => Just(TDMR_INFO + 4096),
        1 => 0..0x100u64,
        1 => (0..64u32).prop_map(|bit| 1 << bit),
        1 => (0..64u32).prop_map(|bit| FIRST_PAGE | 1 << bit),
        1 => any::<u64>(),
    ]
}

/// Makes the calls, and checks what must hold after each.
fn make(host: &Host, calls: &[(u64, [u64; 4])]) -> Result<(), TestCaseError> {
    for (rax, operands) in calls {
        host.machine.take_events();
        let (status, _) = host.call(*rax, operands);
        prop_assert!(status >> 40 & 0xff != 0xff, "{:#x}", status);
        let held = Machine::held_locks(&host.machine.take_events());
        prop_assert!(
            held.is_empty(),
            "{:#x} {:x?} keeps {:?}",
            rax,
            operands,
            held
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 32,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn senseless_calls(
        profile in 0..PROFILES.len(),
        calls in prop::collection::vec((number(), [operand(), operand(), operand(), operand()]), 1..300)
    ) {
        let host = Host::start(PROFILES[profile]);
        host.write_td_params();
        let mut td = Td::create(&host, FIRST_PAGE, 33);
        td.init(&host);
        td.add_vcpu(&host);
        td.add_tables(&host);
        make(&host, &calls)?;
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 1..800)) {
        tdx_emulator_host::fuzz::run(&bytes);
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn broken_descriptions_of_memory(
        words in prop::collection::vec((0..40u64, operand()), 1..6)
    ) {
        let host = Host::load(tdx_emulator_host::machine::server(1), PROFILES[0]);
        host.init();
        let operands = host.describe_tdmr();
        for (word, value) in words {
            host.machine.write_bytes(TDMR_INFO + 8 * word, &value.to_le_bytes());
        }
        let [list, count, hkid] = operands;
        make(&host, &[(leaf::SYS_CONFIG, [list, count, hkid, 0])])?;
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn broken_parameters(bytes in prop::collection::vec((0..1024u64, any::<u8>()), 1..12)) {
        let host = Host::start(PROFILES[0]);
        Td::create(&host, FIRST_PAGE, 33);
        host.write_td_params();
        for (offset, byte) in bytes {
            host.machine.write_bytes(HOST_PAGE + offset, &[byte]);
        }
        make(&host, &[(leaf::MNG_INIT, [FIRST_PAGE, HOST_PAGE, 0, 0])])?;
    }

    /// On hardware that would be a machine check. Here it must only not harm the kernel.
    #[test]
    #[cfg_attr(miri, ignore = "takes too long")]
    fn overwritten_pages(
        words in prop::collection::vec((0..24u64, 0..512u64, operand()), 1..40),
        pamt in prop::collection::vec((0..64u64, any::<u64>()), 0..4),
        calls in prop::collection::vec((number(), [operand(), operand(), operand(), operand()]), 1..100)
    ) {
        let host = Host::start(PROFILES[0]);
        host.write_td_params();
        let mut td = Td::create(&host, FIRST_PAGE, 33);
        td.init(&host);
        td.add_vcpu(&host);
        td.add_tables(&host);
        for (page, word, value) in words {
            let pa = FIRST_PAGE + 0x1000 * page + 8 * word;
            host.machine.write_bytes(pa, &value.to_le_bytes());
        }
        let first = PAMT_BASE + 0x10_0000 + (FIRST_PAGE - TDMR_BASE) / 4096 * 16;
        for (word, value) in pamt {
            host.machine.write_bytes(first + 8 * word, &value.to_le_bytes());
        }
        for (rax, operands) in &calls {
            host.call(*rax, operands);
        }
        host.module.for_each_td(&host.machine.lp(0), |_| {});
    }
}
