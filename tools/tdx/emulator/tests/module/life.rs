// SPDX-License-Identifier: GPL-2.0

//! Whole lives of the module and of TDs.

use sha2::{
    Digest,
    Sha384, //
};
use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE, //
    },
    module::{
        LifeCycle,
        OpState,
        PageType,
        SysState,
        PROFILES,
        PROFILE_1_5_05, //
    },
};

#[test]
fn every_profile_comes_up() {
    for profile in PROFILES {
        let host = Host::start(profile);
        assert_eq!(host.module.sys_state(), SysState::Ready, "{}", profile.name);
    }
}

/// A page whose bytes depend on `seed`.
fn contents(seed: u8) -> [u8; 4096] {
    std::array::from_fn(|index| (index as u8).wrapping_mul(seed) ^ (index >> 8) as u8)
}

/// The measurement of pages that were added and measured as a whole, computed apart.
fn expected_mrtd(pages: &[(u64, [u8; 4096])]) -> [u8; 48] {
    let mut hash = Sha384::new();
    let header = |hash: &mut Sha384, name: &[u8], gpa: u64| {
        let mut block = [0; 128];
        block[..name.len()].copy_from_slice(name);
        block[16..24].copy_from_slice(&gpa.to_le_bytes());
        hash.update(block);
    };
    for (gpa, contents) in pages {
        header(&mut hash, b"MEM.PAGE.ADD", *gpa);
        for (index, chunk) in (0..).zip(contents.chunks(256)) {
            header(&mut hash, b"MR.EXTEND", gpa + 256 * index);
            hash.update(chunk);
        }
    }
    hash.finalize().into()
}

#[test]
fn a_td_is_measured_and_taken_apart() {
    for profile in PROFILES {
        let host = Host::start(profile);
        let before = host.machine.snapshot();
        let mut td = Td::create(&host, FIRST_PAGE, 33);
        td.init(&host);
        td.add_vcpu(&host);
        td.add_vcpu(&host);
        td.add_tables(&host);
        let pages: Vec<_> = (1..=5u8)
            .map(|n| (u64::from(n) * 0x3000, contents(n)))
            .collect();
        for (gpa, contents) in &pages {
            td.add_page(&host, *gpa, contents);
        }
        host.ok(leaf::MR_FINALIZE, &[td.tdr]);

        let mut seen = Vec::new();
        host.module
            .for_each_td(&host.machine.lp(0), |info| seen.push(*info));
        let [info] = seen[..] else {
            panic!("{} TDs", seen.len());
        };
        assert_eq!(info.tdr, td.tdr);
        assert_eq!(info.hkid, 33);
        assert_eq!(info.life_cycle, LifeCycle::KeysConfigured);
        assert_eq!(info.op_state, OpState::Runnable);
        assert_eq!(info.vcpus, 2);
        assert_eq!(info.pages, 6 + 12 + 3 + 5);
        assert_eq!(info.mrtd, Some(expected_mrtd(&pages)));
        let fields: Vec<u8> = (0..6)
            .flat_map(|code| {
                let id = 0x1310_0003_0000_0000 + code;
                host.ok(leaf::MNG_RD, &[td.tdr, id]).r8.to_le_bytes()
            })
            .collect();
        assert_eq!(fields, expected_mrtd(&pages));
        assert_eq!(host.module.pages(PageType::Reg), 5);
        assert_eq!(host.module.hkids_in_use(), 1);

        td.destroy(&host);
        for page_type in PageType::OWNED {
            assert_eq!(host.module.pages(page_type), 0, "{}", page_type.name());
        }
        assert_eq!(host.module.hkids_in_use(), 0);
        drop(before);
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn a_thousand_tds_lose_nothing() {
    let host = Host::start(&PROFILE_1_5_05);
    for round in 0..1000u64 {
        host.machine.take_events();
        let mut td = Td::create(&host, FIRST_PAGE, 33 + (round % 31) as u16);
        td.init(&host);
        td.add_vcpu(&host);
        td.add_tables(&host);
        host.ok(
            leaf::MEM_PAGE_AUG,
            &[0x1000, td.tdr, FIRST_PAGE + 0x20_0000],
        );
        td.pages.push(FIRST_PAGE + 0x20_0000);
        host.ok(leaf::MR_FINALIZE, &[td.tdr]);
        td.destroy(&host);
        for page_type in PageType::OWNED {
            assert_eq!(host.module.pages(page_type), 0, "{}", page_type.name());
        }
        assert_eq!(host.module.hkids_in_use(), 0);
    }
    let mut tds = 0;
    host.module.for_each_td(&host.machine.lp(0), |_| tds += 1);
    assert_eq!(tds, 0);
}

#[test]
#[cfg_attr(miri, ignore = "takes too long")]
fn no_td_is_overlooked() {
    let host = Host::start(&PROFILE_1_5_05);
    // Torn down but for their TDRs, as many as one likes can be there.
    let tdrs: Vec<_> = (0..150)
        .map(|index| FIRST_PAGE + 0x31_5000 * index)
        .collect();
    for tdr in &tdrs {
        host.ok(leaf::MNG_CREATE, &[*tdr, 33]);
        host.ok(leaf::MNG_VPFLUSHDONE, &[*tdr]);
        host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
        host.ok(leaf::MNG_KEY_FREEID, &[*tdr]);
    }
    let seen = |host: &Host| {
        let mut seen = Vec::new();
        host.module
            .for_each_td(&host.machine.lp(0), |info| seen.push(info.tdr));
        seen.sort();
        seen
    };
    assert_eq!(seen(&host), tdrs);
    for tdr in &tdrs[..140] {
        host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[*tdr]);
    }
    assert_eq!(seen(&host), tdrs[140..]);
}

#[test]
fn orphans_can_be_taken_back() {
    let host = Host::start(&PROFILE_1_5_05);
    let mut td = Td::create(&host, FIRST_PAGE, 33);
    td.init(&host);
    td.add_vcpu(&host);
    td.add_tables(&host);
    td.add_page(&host, 0x3000, &contents(1));
    let lp = host.machine.lp(0);
    let is_orphan = |pa: &u64| host.module.is_orphan(&lp, *pa);
    assert!(!td.pages.iter().any(is_orphan));

    // The host forgets all about it, but for the key.
    host.ok(leaf::VP_FLUSH, &[td.vcpus[0]]);
    host.ok(leaf::MNG_VPFLUSHDONE, &[td.tdr]);
    host.ok(leaf::PHYMEM_CACHE_WB, &[0]);
    host.ok(leaf::MNG_KEY_FREEID, &[td.tdr]);
    assert!(td.pages.iter().all(is_orphan));
    assert!(!is_orphan(&td.tdr));
    assert!(!is_orphan(&(FIRST_PAGE + 0x100_0000)));
    for pa in &td.pages {
        host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[*pa]);
        assert!(!is_orphan(pa));
    }
    host.ok(leaf::PHYMEM_PAGE_RECLAIM, &[td.tdr]);
}
