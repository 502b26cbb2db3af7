// SPDX-License-Identifier: GPL-2.0

//! A host that cannot read what the module writes, and what the module tells of pages.

use tdx_emulator_host::{
    host::{
        leaf,
        Host,
        Td,
        FIRST_PAGE,
        GLOBAL_HKID,
        PAMT_BASE, //
    },
    machine,
    module::{
        Event,
        PageRecord,
        PageType,
        PROFILE_1_5_05, //
    },
};

const TDR: u64 = FIRST_PAGE;
const HKID: u16 = 33;

fn start(hidden: bool) -> Host {
    let host = Host::load(machine::server(1), &PROFILE_1_5_05);
    if hidden {
        host.machine.hide();
    }
    host.bring_up();
    host
}

/// A runnable TD with one page of memory that holds `contents`.
fn build(host: &Host, contents: &[u8; 4096]) -> (Td, u64) {
    let mut td = Td::create(host, TDR, HKID);
    td.init(host);
    td.add_tables(host);
    td.add_vcpu(host);
    let page = td.add_page(host, 0, contents);
    host.ok(leaf::MR_FINALIZE, &[TDR]);
    (td, page)
}

#[test]
fn nothing_depends_on_what_the_host_can_read() {
    let contents = [0x5a; 4096];
    let mrtd = [false, true].map(|hidden| {
        let host = start(hidden);
        let (td, page) = build(&host, &contents);
        let seen = |pa: u64| host.machine.read_bytes(pa, 4096);
        let zeros = |pa: u64| seen(pa).iter().filter(|byte| **byte == 0).count();
        assert_eq!(seen(page) == contents, !hidden);
        for pa in [TDR, td.pages[0], td.pages[6], PAMT_BASE + 0x10_0000] {
            assert_eq!(zeros(pa) < 100, hidden, "{pa:#x}");
        }
        let info = host.module.td_info(&host.machine.lp(0), TDR).unwrap();
        td.destroy(&host);
        assert_eq!(seen(page) == contents, !hidden, "it comes back as it is");
        info.mrtd.unwrap()
    });
    assert_eq!(mrtd[0], mrtd[1]);
}

/// The events that are about the page at `pa`, and those about keys.
fn events_of(host: &Host, pa: u64) -> Vec<Event> {
    let mut events = host.machine.take_events();
    events.retain(|event| match event {
        Event::PageTaken(page) | Event::PageMeasured(page) => page.range.base == pa,
        Event::PageReturned { page, .. } => page.range.base == pa,
        Event::KeyFreed(_) => true,
        _ => false,
    });
    events
}

#[test]
fn pages_are_taken_and_returned_with_type_owner_and_hkid() {
    let record = |pa: u64, page_type, owner| PageRecord {
        range: tdx_emulator_host::module::MemoryRange {
            base: pa,
            size: 4096,
        },
        page_type,
        owner,
    };
    let returned = |page, unflushed| Event::PageReturned { page, unflushed };

    // A page of memory that is removed while the TD lives: lines of the TD's HKID are left.
    let host = start(false);
    let (td, page) = build(&host, &[1; 4096]);
    host.ok(leaf::MEM_RANGE_BLOCK, &[0, TDR]);
    host.ok(leaf::MEM_TRACK, &[TDR]);
    host.ok(leaf::MEM_PAGE_REMOVE, &[0, TDR]);
    let memory = record(page, PageType::Reg, TDR);
    assert_eq!(
        events_of(&host, page),
        [
            Event::PageTaken(memory),
            Event::PageMeasured(memory),
            returned(memory, Some(HKID)),
        ]
    );
    drop(td);

    // Pages that are reclaimed: all caches were written back, but the module has used the TDR.
    for (pick, page_type, owner, unflushed) in [
        (None, PageType::Tdr, 0, Some(GLOBAL_HKID)),
        (Some(0), PageType::Tdcx, TDR, None),
        (Some(6), PageType::Ept, TDR, None),
        (Some(9), PageType::Tdvpr, TDR, None),
    ] {
        let host = start(false);
        let (td, _) = build(&host, &[1; 4096]);
        let pa = pick.map_or(TDR, |index: usize| td.pages[index]);
        td.destroy(&host);
        let page = record(pa, page_type, owner);
        assert_eq!(
            events_of(&host, pa),
            [
                Event::PageTaken(page),
                Event::KeyFreed(HKID),
                returned(page, unflushed),
            ]
        );
    }
}

#[test]
fn pamts_are_taken_page_by_page() {
    let host = start(false);
    let mut taken: Vec<u64> = (host.machine.take_events().iter())
        .filter_map(|event| match event {
            Event::PamtTaken(range) => Some(range.base).filter(|_| range.size == 4096),
            _ => None,
        })
        .collect();
    taken.sort_unstable();
    // One page of entries for 1 GiB, two for 2 MiB each, a thousand for 4 KiB.
    let expected: Vec<u64> = [(0, 1), (0x1000, 2), (0x10_0000, 1024)]
        .iter()
        .flat_map(|(offset, pages)| (0..*pages).map(move |page| PAMT_BASE + offset + page * 4096))
        .collect();
    assert_eq!(taken, expected);
}
