// SPDX-License-Identifier: GPL-2.0

//! The fields that TDH.SYS.RD, TDH.MNG.RD, TDH.VP.RD and TDH.VP.WR name by identifiers.
//!
//! Fields are kept in tables of runs, in the order in which the module enumerates them. What a
//! field holds is found by its class and code. Of a TD, the measurement (MRTD) is class 0x13, codes
//! 0 to 5: 8 bytes each, the first at identifier `0x1310000300000000`.

use super::{
    address::PAGE_SIZE,
    cpuid,
    dispatch::Call,
    platform::Platform,
    status::Status,
    td::{
        Tdcs,
        TdcsField,
        TdrField,
        MAX_TDCS_PAGES,
        TDCS_MSR_BITMAPS,
        TDCS_SEPT_ROOT, //
    },
    td_params,
    tdmr::{
        MAX_RESERVED,
        MAX_TDMRS,
        PAMT_ENTRY_SIZE, //
    },
    vp::{
        LockedVp,
        VpField,
        BASE_TDVPS_PAGES,
        L2_TDVPS_PAGES,
        MAX_TDVPS_PAGES, //
    },
};

/// The identifier that stands for no field, or asks for the first.
pub(super) const NO_FIELD: u64 = u64::MAX;

const CODE: u64 = 0xff_ffff;
/// Bits of an identifier that name more than one element, or mean nothing.
const SINGLE_ELEMENT: u64 = 0x4083_fffc_ff00_0000;
const CLASS_SHIFT: u32 = 56;
const CLASS_MASK: u64 = 0x3f;

/// Some fields with consecutive codes.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The first one's identifier.
    id: u64,
    count: u32,
    /// It came with 1.5.05.
    newer: bool,
}

const fn run(id: u64, count: u32) -> Run {
    Run {
        id,
        count,
        newer: false,
    }
}

impl Run {
    const fn class(&self) -> u64 {
        self.id >> CLASS_SHIFT & CLASS_MASK
    }

    /// The index of a field in the run.
    fn index(&self, field: Field) -> Option<u64> {
        let index = field.code.checked_sub(self.id & CODE)?;
        (field.class == self.class() && index < u64::from(self.count)).then_some(index)
    }
}

/// The part of an identifier by which a field is looked up.
#[derive(Clone, Copy, Debug)]
struct Field {
    class: u64,
    code: u64,
}

impl Field {
    fn decode(id: u64) -> Result<Self, Status> {
        if id & SINGLE_ELEMENT != 0 {
            return Err(Status::METADATA_FIELD_ID_INCORRECT);
        }
        Ok(Self {
            class: id >> CLASS_SHIFT & CLASS_MASK,
            code: id & CODE,
        })
    }
}

/// Finds a field. Returns its place in its run and the identifier of the next field.
fn find(runs: &[Run], id: u64, field: Field, newer: bool) -> Result<u64, Status> {
    let mut known = runs.iter().filter(|run| newer || !run.newer);
    let run = known
        .find(|run| run.index(field).is_some())
        .ok_or(Status::METADATA_FIELD_ID_INCORRECT)?;
    let last = run.index(field) == Some(u64::from(run.count).wrapping_sub(1));
    Ok(if last {
        known.next().map_or(NO_FIELD, |next| next.id)
    } else {
        id.wrapping_add(1)
    })
}

static SYS_FIELDS: [Run; 42] = [
    run(0x0000_0002_0000_0000, 9),
    run(0x0800_0002_0000_0000, 1),
    run(0x8800_0002_0000_0001, 1),
    run(0x8800_0001_0000_0002, 1),
    run(0x0800_0001_0000_0003, 4),
    run(0x8900_0001_0000_0000, 2),
    run(0x8900_0000_0000_0002, 1),
    run(0x8900_0001_0000_0003, 1),
    run(0x8900_0000_0000_0004, 1),
    run(0x8900_0001_0000_0005, 1),
    run(0x8900_0002_0000_0006, 1),
    run(0x0a00_0002_0000_0000, 1),
    run(0x0a00_0000_0000_0001, 1),
    run(0x0a00_0003_0000_0008, 1),
    run(0x9000_0001_0000_0000, 1),
    run(0x9000_0003_0000_0080, 32),
    run(0x9000_0003_0000_0100, 32),
    run(0x9100_0001_0000_0008, 2),
    run(0x9100_0001_0000_0010, 3),
    run(0x9800_0001_0000_0000, 1),
    run(0x9800_0001_0000_0100, 2),
    run(0x9800_0001_0000_0200, 2),
    run(0x1900_0003_0000_0000, 4),
    run(0x9900_0001_0000_0004, 1),
    run(0x9900_0003_0000_0006, 2),
    Run {
        newer: true,
        ..run(0x9900_0001_0000_0008, 1)
    },
    run(0x9900_0003_0000_0400, 32),
    run(0x9900_0003_0000_0500, 64),
    run(0x9900_0003_0000_0600, 1),
    run(0x9900_0001_0000_0800, 2),
    run(0x9900_0003_0000_0810, 128),
    // Migration and service TDs, which are not modelled: only told of.
    run(0xa000_0003_0000_0000, 1),
    run(0x2000_0001_0000_0001, 4),
    run(0xa000_0001_0000_0010, 1),
    run(0xa000_0000_0000_0020, 3),
    run(0xa100_0001_0000_0000, 1),
    run(0xa100_0003_0000_0001, 2),
    run(0xa200_0001_0000_0000, 1),
    run(0xa200_0003_0000_0001, 2),
    run(0xa200_0003_0000_0003, 2),
    run(0xa200_0003_0000_0005, 1),
    run(0xa200_0003_0000_0006, 1),
];

/// The identifier of the first field of the module.
pub(super) fn first_sys_field() -> u64 {
    SYS_FIELDS.first().map_or(NO_FIELD, |run| run.id)
}

/// Reads a field of the module. Returns it with the identifier of the next one.
pub(super) fn read_sys<P: Platform>(call: &Call<'_, P>, id: u64) -> Result<(u64, u64), Status> {
    let field = Field::decode(id)?;
    let newer = call.module.profile().topology_enumeration;
    let next = find(&SYS_FIELDS, id, field, newer)?;
    Ok((sys_value(call, field), next))
}

fn sys_value<P: Platform>(call: &Call<'_, P>, field: Field) -> u64 {
    let (module, platform) = (call.module, call.platform);
    let profile = module.profile();
    match (field.class, field.code) {
        (0x00, 0) => 1,
        (0x00, 1) => u64::from(platform.cpuid(1, 0)[0]),
        (0x08, 0) => 0x8086,
        (0x08, 1) => 20_231_212,
        (0x08, 3) => 5,
        (0x08, 4) => 1,
        (0x08, 5) => profile.update_version,
        (0x09, 3) => 0xf,
        (0x0a, 1) => 1,
        (0x0a, 8) => profile.features0,
        (0x10, 0) => 32,
        (0x10, code @ 0x80..=0x9f) => cmr(platform, code.wrapping_sub(0x80)).0,
        (0x10, code @ 0x100..=0x11f) => cmr(platform, code.wrapping_sub(0x100)).1,
        (0x11, 8) => MAX_TDMRS as u64,
        (0x11, 9) => MAX_RESERVED as u64,
        (0x11, 0x10..=0x12) => PAMT_ENTRY_SIZE,
        (0x18, 0) => PAGE_SIZE,
        (0x18, 0x100) => super::td::BASE_TDCS_PAGES * PAGE_SIZE,
        (0x18, 0x101) => PAGE_SIZE,
        (0x18, 0x200) => BASE_TDVPS_PAGES * PAGE_SIZE,
        (0x18, 0x201) => L2_TDVPS_PAGES * PAGE_SIZE,
        (0x19, 0) => td_params::attributes_fixed0(module, platform),
        (0x19, 1) => td_params::ATTRIBUTES_FIXED1,
        (0x19, 2) => td_params::xfam_fixed0(platform),
        (0x19, 3) => td_params::XFAM_FIXED1,
        (0x19, 4) => profile.cpuid_config.len() as u64,
        (0x19, 6) => td_params::CONFIG_FLAGS,
        (0x19, 8) => profile.max_vcpus_per_td.map_or(0, u64::from),
        (0x19, code @ 0x400..=0x41f) => {
            let config = profile.cpuid_config.get((code & 0x1f) as usize);
            config.map_or(u64::MAX, |config| {
                u64::from(config.leaf) | u64::from(config.subleaf.unwrap_or(u32::MAX)) << 32
            })
        }
        (0x19, code @ 0x500..=0x53f) => cpuid::config_value(call, code & 0x3f),
        (0x19, 0x600) => td_params::ARCH_CAPABILITIES_CONFIGURABLE,
        (0x19, 0x800) => 1,
        (0x19, 0x810) => u64::from(platform.cpuid(1, 0)[0]),
        (0x20, 0x10) => 0x200,
        (0x20, 0x20) => 3,
        (0x20, 0x21) => 2,
        (0x20, 0x22) => 5,
        (0x21, 0) => 1,
        (0x21, 1) => 0x7ff_0000_0001,
        (0x22, 0) => 0x807f,
        (0x22, 1) => 1,
        (0x22, 3) => 3,
        (0x22, 5) => 7,
        _ => 0,
    }
}

/// The base and size of a convertible memory range, 0 if there is none of that index.
fn cmr<P: Platform>(platform: &P, index: u64) -> (u64, u64) {
    let range = platform.cmr(index as usize).unwrap_or_default();
    (range.base, range.size)
}

static TD_FIELDS: [Run; 33] = [
    run(0x8010_0000_0000_0001, 1),
    run(0x8010_0002_0000_0002, 1),
    run(0x8010_0003_0000_0004, 1),
    run(0x8010_0002_0000_0005, 1),
    run(0x8010_0003_0000_0010, 9),
    run(0x8010_0003_0000_0020, 4),
    run(0x8110_0001_0000_0001, 1),
    run(0x8110_0003_0000_0002, 1),
    run(0x8210_0001_0000_0000, 1),
    run(0x8210_0003_0000_0001, 1),
    run(0x9010_0002_0000_0001, 2),
    run(0x9010_0002_0000_0004, 1),
    run(0x9010_0001_0000_0005, 1),
    run(0x1110_0003_0000_0000, 2),
    run(0x1110_0002_0000_0002, 1),
    run(0x1110_0000_0000_0003, 1),
    run(0x1110_0003_0000_0004, 1),
    run(0x1110_0003_0000_000a, 2),
    run(0x1110_0001_0000_000c, 1),
    run(0x9110_0001_0000_000e, 1),
    run(0x9110_0002_0000_000f, 1),
    run(0x9110_0003_0000_0010, 6),
    run(0x1110_0003_0000_0016, 2),
    run(0x9110_0000_0000_0080, 80),
    run(0x9110_0002_0000_0800, 19),
    run(0x9210_0003_0000_0000, 1),
    run(0x9210_0001_0000_0001, 2),
    run(0x1310_0003_0000_0000, 6),
    run(0x1310_0003_0000_0010, 6),
    run(0x1310_0003_0000_0018, 6),
    run(0x1310_0003_0000_0020, 6),
    run(0x1310_0003_0000_0040, 24),
    // The fields of this class have an order of their own.
    run(CPUID_VALUES, 0),
];

const CPUID_VALUES: u64 = 0x9410_0003_0000_0000;
const CPUID_CLASS: u64 = 0x14;

/// Reads a field of a TD. Returns it with the identifier of the next one.
pub(super) fn read_td<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    id: u64,
    version: u8,
) -> Result<(u64, u64), FieldError> {
    let first = TD_FIELDS.first().map_or(NO_FIELD, |run| run.id);
    if id == NO_FIELD && version > 0 {
        return Err(FieldError::First(first));
    }
    let field = Field::decode(id)?;
    if field.class == CPUID_CLASS {
        let (value, next) = cpuid::read_field(tdcs, field.code)?;
        return Ok((value, next.map_or(NO_FIELD, |code| CPUID_VALUES | code)));
    }
    let newer = tdcs.call().module.profile().topology_enumeration;
    let mut next = find(&TD_FIELDS, id, field, newer)?;
    if next == CPUID_VALUES {
        next |= cpuid::first_field_code();
    }
    Ok((td_value(tdcs, field), next))
}

fn td_value<P: Platform>(tdcs: &Tdcs<'_, P>, field: Field) -> u64 {
    let td = tdcs.td();
    let platform = tdcs.call().platform;
    let with_hkid = |pa: u64| with_hkid(tdcs, pa);
    let word = |field: TdcsField, index: u64| {
        let offset = index.wrapping_mul(8);
        platform.read64(tdcs.field_pa(field).wrapping_add(offset))
    };
    match (field.class, field.code) {
        (0x00, 1) => u64::from(td.is_fatal()),
        (0x00, 2) => td.get(TdrField::NumTdcx),
        (0x00, 4) => td.get(TdrField::Children),
        (0x00, 5) => td.get(TdrField::LifeCycle),
        (0x00, code @ 0x10..=0x18) => {
            let index = code.wrapping_sub(0x10);
            let count = td.get(TdrField::NumTdcx).min(MAX_TDCS_PAGES);
            if index < count {
                with_hkid(td.tdcs_page(index))
            } else {
                0
            }
        }
        (0x00, code @ 0x20..=0x23) => {
            let pa = td.tdr.wrapping_add(TdrField::Uuid as u64);
            platform.read64(pa.wrapping_add(code.wrapping_sub(0x20).wrapping_mul(8)))
        }
        (0x01, 1) => u64::from(td.hkid()),
        (0x01, 2) => td.get(TdrField::Packages),
        (0x02, 1) => 1,
        (0x10, 1) => tdcs.get(TdcsField::NumVcpus),
        (0x10, 2) => tdcs.get(TdcsField::NumAssociated),
        (0x10, 4) => tdcs.get(TdcsField::OpState),
        (0x10, 5) => tdcs.get(TdcsField::NumL2Vms),
        (0x11, 0x00) => tdcs.get(TdcsField::Attributes),
        (0x11, 0x01) => tdcs.get(TdcsField::Xfam),
        (0x11, 0x02) => tdcs.get(TdcsField::MaxVcpus),
        (0x11, 0x03) => u64::from(tdcs.has_wide_gpa()),
        (0x11, 0x04) => eptp(tdcs),
        (0x11, 0x0a) => tdcs.get(TdcsField::TscOffset),
        (0x11, 0x0b) => tdcs.get(TdcsField::TscMultiplier),
        (0x11, 0x0c) => tdcs.get(TdcsField::TscFrequency),
        (0x11, 0x11) => tdcs.get(TdcsField::HpLockTimeout),
        (0x12, 0) => tdcs.get(TdcsField::Epoch),
        (0x12, 1) => tdcs.epoch_users(0),
        (0x12, 2) => tdcs.epoch_users(1),
        (0x13, code @ 0x00..=0x05) => word(TdcsField::Mrtd, code),
        (0x13, code @ 0x10..=0x15) => word(TdcsField::MrConfigId, code.wrapping_sub(0x10)),
        (0x13, code @ 0x18..=0x1d) => word(TdcsField::MrOwner, code.wrapping_sub(0x18)),
        (0x13, code @ 0x20..=0x25) => word(TdcsField::MrOwnerConfig, code.wrapping_sub(0x20)),
        (0x13, code @ 0x40..=0x57) => word(TdcsField::Rtmr, code.wrapping_sub(0x40)),
        _ => 0,
    }
}

/// An address as the processor sees it with the TD's key.
pub(super) fn with_hkid<P: Platform>(tdcs: &Tdcs<'_, P>, pa: u64) -> u64 {
    let bits = tdcs.call().platform.layout().address_bits.min(52);
    pa | u64::from(tdcs.td().hkid()) << bits
}

/// The pointer to the Secure EPT.
fn eptp<P: Platform>(tdcs: &Tdcs<'_, P>) -> u64 {
    tdcs.td().tdcs_page(TDCS_SEPT_ROOT) | tdcs.get(TdcsField::EptpControls)
}

/// Why a field could not be read.
#[derive(Clone, Copy, Debug)]
pub(super) enum FieldError {
    /// There is none, or it must not be read.
    Status(Status),
    /// The identifier asked for the first field, which has this one.
    First(u64),
}

impl From<Status> for FieldError {
    fn from(status: Status) -> Self {
        FieldError::Status(status)
    }
}

impl FieldError {
    /// The status, with the identifier for RDX if there is one.
    pub(super) fn status(self, rdx: &mut u64, version: u8) -> Status {
        match self {
            FieldError::Status(status) => status,
            FieldError::First(id) => {
                if version > 0 {
                    *rdx = id;
                }
                Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT
            }
        }
    }
}

/// A field of a vCPU that is kept in the TDVPR and may be written.
struct Writable {
    class: u64,
    code: u64,
    field: VpField,
    /// The bits that may change.
    mask: u64,
    /// The bits that the field has.
    width: u64,
}

/// The bit of the pin-based controls that makes posted interrupts work.
const POSTED_INTERRUPTS: u64 = 1 << 7;
const POSTED_INTERRUPT_VECTOR: u32 = 0x0002;
const POSTED_INTERRUPT_DESCRIPTOR: u32 = 0x2016;

static WRITABLE: [Writable; 7] = [
    Writable {
        class: 0,
        code: POSTED_INTERRUPT_VECTOR as u64,
        field: VpField::PostedInterruptVector,
        mask: 0xff,
        width: 0xffff,
    },
    Writable {
        class: 0,
        code: POSTED_INTERRUPT_DESCRIPTOR as u64,
        field: VpField::PostedInterruptDescriptor,
        mask: 0x000f_ffff_ffff_ffc0,
        width: u64::MAX,
    },
    Writable {
        class: 0,
        code: 0x4000,
        field: VpField::PinControls,
        mask: POSTED_INTERRUPTS,
        width: 0xffff_ffff,
    },
    Writable {
        class: 0,
        code: 0x203c,
        field: VpField::SharedEptPointer,
        mask: 0x000f_ffff_ffff_f000,
        width: u64::MAX,
    },
    Writable {
        class: 0,
        code: 0x401e,
        field: VpField::SecondaryControls,
        mask: 0xc000_0000,
        width: 0xffff_ffff,
    },
    Writable {
        class: 0,
        code: 0x4024,
        field: VpField::NotifyWindow,
        mask: 0xffff_ffff,
        width: 0xffff_ffff,
    },
    Writable {
        class: 0x20,
        code: 0xb,
        field: VpField::PendingNmi,
        mask: 3,
        width: 0xff,
    },
];

static VP_FIELDS: [Run; 26] = [
    run(0x0024_0001_0000_0002, 1),
    run(0x0024_0003_0000_2004, 1),
    run(0x0024_0003_0000_200e, 1),
    run(0x0024_0003_0000_2010, 1),
    run(0x0024_0003_0000_2016, 1),
    run(0x0024_0003_0000_2018, 1),
    run(0x0024_0003_0000_201a, 1),
    run(0x0024_0003_0000_2024, 1),
    run(0x0024_0003_0000_2032, 1),
    run(0x0024_0003_0000_203c, 1),
    run(0x0024_0002_0000_4000, 1),
    run(0x0024_0002_0000_401e, 1),
    run(0x0024_0002_0000_4020, 1),
    run(0x0024_0002_0000_4022, 1),
    run(0x0024_0002_0000_4024, 1),
    run(0x0024_0002_0000_4026, 1),
    run(0x9120_0003_0000_0100, 1),
    run(0xa020_0002_0000_0002, 1),
    run(0xa020_0000_0000_0003, 1),
    run(0xa020_0002_0000_0004, 1),
    run(0xa020_0003_0000_0006, 1),
    run(0xa020_0000_0000_0007, 2),
    run(0x2020_0000_0000_000b, 1),
    run(0x2020_0003_0000_000c, 1),
    run(0xa020_0003_0000_0010, 15),
    run(0xa020_0003_0000_0020, 0),
];

/// Reads a field of a vCPU. Returns it with the identifier of the next one.
pub(super) fn read_vp<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    vp: &LockedVp<'_, P>,
    id: u64,
    version: u8,
) -> Result<(u64, u64), FieldError> {
    let first = VP_FIELDS.first().map_or(NO_FIELD, |run| run.id);
    if id == NO_FIELD && version > 0 {
        return Err(FieldError::First(first));
    }
    let field = Field::decode(id)?;
    let newer = tdcs.call().module.profile().topology_enumeration;
    let next = find(&VP_FIELDS, id, field, newer)?;
    Ok((vp_value(tdcs, vp, field), next))
}

fn vp_value<P: Platform>(tdcs: &Tdcs<'_, P>, vp: &LockedVp<'_, P>, field: Field) -> u64 {
    let writable = WRITABLE
        .iter()
        .find(|writable| writable.class == field.class && writable.code == field.code);
    if let Some(writable) = writable {
        return vp.get(writable.field) & writable.width;
    }
    match (field.class, field.code) {
        (0x00, 0x2004) => with_hkid(tdcs, tdcs.td().tdcs_page(TDCS_MSR_BITMAPS)),
        (0x00, 0x200e | 0x2024) => u64::MAX,
        (0x00, 0x2010) => tdcs.get(TdcsField::TscOffset),
        (0x00, 0x201a) => eptp(tdcs),
        (0x00, 0x2032) => tdcs.get(TdcsField::TscMultiplier),
        (0x00, 0x4026) => u64::from(tdcs.td().hkid()),
        (0x20, 0x02) => vp.get(VpField::Index),
        (0x20, 0x03) => vp.get(VpField::Pages),
        (0x20, 0x0c) => tdcs.get(TdcsField::Xfam),
        (0x20, code @ 0x10..=0x1e) => {
            let index = code.wrapping_sub(0x10);
            let count = vp.get(VpField::Pages).min(MAX_TDVPS_PAGES);
            if index < count {
                with_hkid(tdcs, vp.page(index))
            } else {
                0
            }
        }
        _ => 0,
    }
}

/// Writes the bits of `mask` of a field of a vCPU. Returns the former value.
pub(super) fn write_vp<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    vp: &LockedVp<'_, P>,
    id: u64,
    value: u64,
    mask: u64,
) -> Result<u64, Status> {
    let field = Field::decode(id)?;
    let newer = tdcs.call().module.profile().topology_enumeration;
    find(&VP_FIELDS, id, field, newer)?;
    let writable = WRITABLE
        .iter()
        .find(|writable| writable.class == field.class && writable.code == field.code)
        .filter(|writable| writable.mask & mask != 0)
        .ok_or(Status::METADATA_FIELD_NOT_WRITABLE)?;

    let old = vp.get(writable.field) & writable.width;
    let new = (old & !mask | value & mask) & writable.width;
    let invalid = Status::METADATA_FIELD_VALUE_NOT_VALID;
    // A field that was never set has no bits to keep.
    let kept = match writable.field {
        VpField::PostedInterruptVector | VpField::PostedInterruptDescriptor => 0,
        _ => old,
    };
    if (kept ^ new) & !writable.mask != 0 {
        return Err(invalid);
    }
    let platform = tdcs.call().platform;
    let valid = match writable.field {
        VpField::PostedInterruptDescriptor => super::address::shared(platform, new, 64).is_some(),
        VpField::SharedEptPointer => super::address::shared(platform, new, PAGE_SIZE).is_some(),
        _ => true,
    };
    if !valid {
        return Err(invalid);
    }
    if writable.field == VpField::PinControls && new & POSTED_INTERRUPTS != 0 {
        let missing = Status::TD_VMCS_FIELD_NOT_INITIALIZED;
        if vp.get(VpField::PostedInterruptVector) > 0xff {
            return Err(missing.detail(POSTED_INTERRUPT_VECTOR));
        }
        if vp.get(VpField::PostedInterruptDescriptor) == u64::MAX {
            return Err(missing.detail(POSTED_INTERRUPT_DESCRIPTOR));
        }
    }
    vp.set(writable.field, new);
    Ok(old)
}
