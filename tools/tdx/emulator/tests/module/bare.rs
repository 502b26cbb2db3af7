// SPDX-License-Identifier: GPL-2.0

//! The module on a machine that has only what every machine must have.

use tdx_emulator_host::{
    host::{
        leaf,
        regs,
        Host,
        FIRST_PAGE,
        HOST_PAGE,
        TDMR_BASE,
        TDMR_SIZE,
        VERSION_1, //
    },
    machine::{
        self,
        Lp,
        Page, //
    },
    module::{
        KeyPartition,
        LeafInfo,
        MemoryRange,
        PhysicalLayout,
        Platform,
        Status,
        PROFILE_1_5_05, //
    },
};

/// A processor without anything that a platform may leave out.
struct Bare<'a>(Lp<'a>);

impl<'a> Platform for Bare<'a> {
    type Page<'p>
        = Page<'a>
    where
        Self: 'p;

    fn page(&self, pa: u64) -> Page<'a> {
        self.0.page(pa)
    }

    fn read(&self, pa: u64, buffer: &mut [u8]) {
        self.0.read(pa, buffer);
    }

    fn write(&self, pa: u64, bytes: &[u8]) {
        self.0.write(pa, bytes);
    }

    fn fill(&self, pa: u64, len: u64, byte: u8) {
        self.0.fill(pa, len, byte);
    }

    fn copy_page(&self, to: u64, from: u64) {
        self.0.copy_page(to, from);
    }

    fn cmr(&self, index: usize) -> Option<MemoryRange> {
        self.0.cmr(index)
    }

    fn layout(&self) -> PhysicalLayout {
        self.0.layout()
    }

    fn keys(&self) -> KeyPartition {
        self.0.keys()
    }

    fn current_lp(&self) -> u32 {
        0
    }

    fn lp_count(&self) -> u32 {
        1
    }

    fn current_package(&self) -> u32 {
        0
    }

    fn package_count(&self) -> u32 {
        1
    }

    fn random64(&self) -> Option<u64> {
        self.0.random64()
    }

    fn tsc(&self) -> u64 {
        self.0.tsc()
    }

    fn tsc_hz(&self) -> u64 {
        self.0.tsc_hz()
    }

    fn cpuid(&self, leaf: u32, subleaf: u32) -> [u32; 4] {
        self.0.cpuid(leaf, subleaf)
    }

    fn rdmsr(&self, msr: u32) -> u64 {
        self.0.rdmsr(msr)
    }

    fn xfam(&self) -> u64 {
        self.0.xfam()
    }

    fn sha384_blocks(&self, state: &mut [u64; 8], blocks: &[u8]) {
        self.0.sha384_blocks(state, blocks);
    }
}

#[test]
fn a_td_comes_and_goes() {
    let host = Host::load(machine::server(1), &PROFILE_1_5_05);
    let lp = Bare(host.machine.lp(0));
    let call = |rax: u64, operands: &[u64]| {
        let mut regs = regs(rax, operands);
        tdx_emulator_host::host::seamcall(&host.module, &lp, &mut regs);
        regs
    };
    let ok = |rax: u64, operands: &[u64]| {
        let regs = call(rax, operands);
        assert_eq!(regs.rax, 0, "{rax:#x}");
        regs
    };
    ok(leaf::SYS_INIT, &[]);
    ok(leaf::SYS_LP_INIT, &[]);
    ok(leaf::SYS_CONFIG, &host.describe_tdmr());
    ok(leaf::SYS_KEY_CONFIG, &[]);
    while ok(leaf::SYS_TDMR_INIT, &[TDMR_BASE]).rdx < TDMR_BASE + TDMR_SIZE {}
    // No reports that others can verify.
    let features = ok(leaf::SYS_RD, &[0, 0x0a00_0003_0000_0008]).r8;
    assert_eq!(features & 1 << 8, 0);

    let tdr = FIRST_PAGE;
    let page = |index: u64| tdr + 0x1000 * index;
    ok(leaf::MNG_CREATE, &[tdr, 33]);
    ok(leaf::MNG_KEY_CONFIG, &[tdr]);
    for index in 1..=6 {
        ok(leaf::MNG_ADDCX, &[page(index), tdr]);
    }
    host.write_td_params();
    ok(leaf::MNG_INIT, &[tdr, HOST_PAGE]);
    ok(leaf::VP_CREATE, &[page(7), tdr]);
    for index in 8..=12 {
        ok(leaf::VP_ADDCX, &[page(index), page(7)]);
    }
    ok(leaf::VP_INIT | VERSION_1, &[page(7)]);
    ok(leaf::MR_FINALIZE, &[tdr]);
    // It cannot run.
    assert_eq!(call(leaf::VP_ENTER, &[page(7)]).rax, 0x4000_0001_8000_0021);
    ok(leaf::VP_FLUSH, &[page(7)]);
    ok(leaf::MNG_VPFLUSHDONE, &[tdr]);
    // Nothing interrupts this.
    ok(leaf::PHYMEM_CACHE_WB, &[0]);
    ok(leaf::MNG_KEY_FREEID, &[tdr]);
    for index in 1..=12 {
        ok(leaf::PHYMEM_PAGE_RECLAIM, &[page(index)]);
    }
    ok(leaf::PHYMEM_PAGE_RECLAIM, &[tdr]);
    ok(leaf::PHYMEM_PAGE_WBINVD, &[tdr]);
}

#[test]
fn what_is_refused_is_known_before() {
    let host = Host::load(machine::server(1), &PROFILE_1_5_05);
    let check = || {
        for info in LeafInfo::all() {
            for rax in [0, 1 << 16, 1 << 24].map(|bits| u64::from(info.number) | bits) {
                let refusal = host.module.refusal(rax);
                if let Some(status) = refusal {
                    host.fails(rax, &[1, 1, 1], status);
                } else if !info.modelled {
                    assert_eq!(rax >> 16, u64::from(rax >> 16 == 1), "{}", info.name);
                }
            }
        }
    };
    check();
    assert_eq!(
        host.module.refusal(leaf::MNG_CREATE),
        Some(Status::SYS_NOT_READY)
    );
    host.bring_up();
    check();
    assert_eq!(host.module.refusal(leaf::MNG_CREATE), None);
    host.ok(leaf::SYS_SHUTDOWN, &[]);
    check();
    assert_eq!(
        host.module.refusal(leaf::SYS_RD),
        Some(Status::SYS_SHUTDOWN)
    );
}
