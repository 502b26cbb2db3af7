// SPDX-License-Identifier: GPL-2.0

//! Looks at the module's state from outside, without locks, for showing it and for tests.

use super::{
    cpuid,
    dispatch::Call,
    pamt::{
        self,
        PageType, //
    },
    platform::{
        MemoryRange,
        Platform, //
    },
    td::{
        LifeCycle,
        OpState,
        Td,
        Tdcs,
        TdcsField,
        TdrField, //
    },
    vp::{
        VcpuState,
        VpField,
        NO_LP, //
    },
    Module, //
};
use core::sync::atomic::Ordering;

/// What can be seen of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageInfo {
    /// What it is used for.
    pub page_type: PageType,
    /// Its owner's TDR; of a free page, the last owner's.
    pub owner: u64,
    /// Its size: 0 is 4 KiB, 1 is 2 MiB, 2 is 1 GiB.
    pub level: u8,
}

/// What can be seen of a TD.
#[derive(Clone, Copy, Debug)]
pub struct TdInfo {
    /// Its TDR.
    pub tdr: u64,
    /// Its HKID; still the former one once it was given back.
    pub hkid: u16,
    /// How far its key is configured.
    pub life_cycle: LifeCycle,
    /// What can be done with it.
    pub op_state: OpState,
    /// Whether something went wrong from which it does not recover.
    pub fatal: bool,
    /// The number of initialised vCPUs.
    pub vcpus: u64,
    /// The number of vCPUs that are associated with a processor.
    pub associated_vcpus: u64,
    /// The number of 4 KiB pages it owns, the TDR not counted.
    pub pages: u64,
    /// The number of its control pages.
    pub control_pages: u64,
    /// The TLB epoch.
    pub epoch: u64,
    /// A checksum of what TDH.MNG.INIT was told, once it was.
    pub config: Option<u64>,
    /// The measurement, once it is final.
    pub mrtd: Option<[u8; 48]>,
}

/// What can be seen of a vCPU.
#[derive(Clone, Copy, Debug)]
pub struct VcpuInfo {
    /// What it is doing.
    pub state: VcpuState,
    /// The processor it is associated with.
    pub associated_lp: Option<u32>,
    /// The number of its control pages, the TDVPR included.
    pub pages: u64,
    /// Its index in its TD.
    pub index: u64,
    /// The TLB epoch of its last entry.
    pub epoch: u64,
    /// How its last run ended: 0 fault-like, 1 trap-like, 2 by TDVMCALL.
    pub last_exit: u64,
}

/// What can be seen of a TDMR.
#[derive(Clone, Copy, Debug)]
pub struct TdmrView {
    /// What memory it is.
    pub range: MemoryRange,
    /// Where its PAMTs for pages of 4 KiB, 2 MiB and 1 GiB lie.
    pub pamt: [MemoryRange; 3],
}

/// FNV-1a of a TD's parameters, by words: what differs in one of them differs here.
fn config<P: Platform>(tdcs: &Tdcs<'_, P>) -> u64 {
    const FIELDS: [TdcsField; 9] = [
        TdcsField::Attributes,
        TdcsField::Xfam,
        TdcsField::MaxVcpus,
        TdcsField::NumL2Vms,
        TdcsField::EptpControls,
        TdcsField::ConfigFlags,
        TdcsField::TscFrequency,
        TdcsField::ArchCapabilities,
        TdcsField::HpLockTimeout,
    ];
    /// MRCONFIGID, MROWNER and MROWNERCONFIG.
    const IDENTITIES: u64 = 3 * 48 / 8;

    let mut sum = 0xcbf2_9ce4_8422_2325u64;
    let mut add = |word: u64| sum = (sum ^ word).wrapping_mul(0x100_0000_01b3);

    FIELDS.iter().for_each(|field| add(tdcs.get(*field)));
    let first = tdcs.at(TdcsField::MrConfigId);
    (0..IDENTITIES).for_each(|word| add(first.at(word.wrapping_mul(8)).load()));
    cpuid::for_each_stored(tdcs, add);
    sum
}

impl Module {
    /// The TDMRs.
    pub fn tdmrs(&self) -> impl Iterator<Item = TdmrView> + '_ {
        self.tdmrs.iter().map(|tdmr| TdmrView {
            range: tdmr.range(),
            pamt: [0, 1, 2].map(|level| tdmr.pamt(level)),
        })
    }

    /// Calls `f` for each TD that has a TDR.
    ///
    /// A TD that is being changed may be shown half changed.
    pub fn for_each_td<P: Platform>(&self, platform: &P, mut f: impl FnMut(&TdInfo)) {
        let mut show = |tdr: u64| {
            if let Some(info) = self.td_info(platform, tdr) {
                f(&info);
            }
        };
        let listed = || self.tds.iter().map(|slot| slot.load(Ordering::Acquire));
        let listed = || listed().filter(|tdr| *tdr != 0);
        if listed().count() as u64 >= self.pages(PageType::Tdr) {
            listed().for_each(&mut show);
        } else {
            // There are more than the list has room for. The PAMT has them all.
            pamt::for_each_page(self, platform, PageType::Tdr, show);
        }
    }

    /// Whether a page is one of a TD whose HKID was freed, and not its TDR: the host may take it
    /// back.
    pub fn is_orphan<P: Platform>(&self, platform: &P, pa: u64) -> bool {
        self.page_info(platform, pa).is_some_and(|page| {
            PageType::OWNED.contains(&page.page_type)
                && page.page_type != PageType::Tdr
                && self
                    .td_info(platform, page.owner)
                    .is_some_and(|td| td.life_cycle == LifeCycle::Teardown)
        })
    }

    /// Looks at the TD with this TDR, if it is one.
    pub fn td_info<P: Platform>(&self, platform: &P, tdr: u64) -> Option<TdInfo> {
        let is_tdr = |page: PageInfo| page.page_type == PageType::Tdr;
        self.page_info(platform, tdr).filter(|page| is_tdr(*page))?;
        let call = Call::new(self, platform, 0);
        let td = Td::new(&call, tdr);
        let tdcs = td.tdcs().filter(|_| {
            // During teardown the pages may be somebody else's already.
            let page = self.page_info(platform, td.tdcs_page(0));
            page.is_some_and(|page| page.page_type == PageType::Tdcx && page.owner == tdr)
        });
        let field = |field: TdcsField| tdcs.as_ref().map_or(0, |tdcs| tdcs.get(field));
        let op_state = tdcs
            .as_ref()
            .map_or(OpState::Unallocated, |tdcs| tdcs.op_state());
        let info = TdInfo {
            tdr,
            hkid: td.hkid(),
            life_cycle: td.life_cycle(),
            op_state,
            fatal: td.is_fatal(),
            vcpus: field(TdcsField::NumVcpus),
            associated_vcpus: field(TdcsField::NumAssociated),
            pages: td.get(TdrField::Children),
            control_pages: td.get(TdrField::NumTdcx),
            epoch: field(TdcsField::Epoch),
            config: tdcs
                .as_ref()
                .filter(|_| matches!(op_state, OpState::Initialized | OpState::Runnable))
                .map(config),
            mrtd: tdcs
                .as_ref()
                .filter(|_| op_state == OpState::Runnable)
                .map(|tdcs| tdcs.mrtd()),
        };
        // If the host has got the page back meanwhile, this is nothing.
        self.page_info(platform, tdr).filter(|page| is_tdr(*page))?;
        Some(info)
    }

    /// Looks at a page, if it lies in memory that TDs may get.
    pub fn page_info<P: Platform>(&self, platform: &P, pa: u64) -> Option<PageInfo> {
        pamt::look(self, platform, pa)
    }

    /// Looks at the vCPU with this TDVPR, if it is one.
    pub fn vcpu_info<P: Platform>(&self, platform: &P, tdvpr: u64) -> Option<VcpuInfo> {
        let page = self.page_info(platform, tdvpr)?;
        if page.page_type != PageType::Tdvpr {
            return None;
        }
        let field = |field: VpField| platform.read64(tdvpr.wrapping_add(field as u64));
        let lp = field(VpField::AssociatedLp);
        Some(VcpuInfo {
            state: VcpuState::from_raw(field(VpField::State)),
            associated_lp: (lp != NO_LP).then_some(lp as u32),
            pages: field(VpField::Pages),
            index: field(VpField::Index),
            epoch: field(VpField::Epoch),
            last_exit: field(VpField::LastExit),
        })
    }

    /// Marks a TD as one that does not recover, as a machine check in it would.
    pub fn make_fatal<P: Platform>(&self, platform: &P, tdr: u64) {
        if self.td_info(platform, tdr).is_some() {
            let call = Call::new(self, platform, 0);
            Td::new(&call, tdr).set(TdrField::Fatal, 1);
        }
    }
}
