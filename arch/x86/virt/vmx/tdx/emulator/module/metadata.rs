// SPDX-License-Identifier: GPL-2.0

//! The fields that TDH.SYS.RD, TDH.MNG.RD, TDH.VP.RD and TDH.VP.WR name by identifiers.
//!
//! Fields are kept in tables of runs, in the order in which the module enumerates them. What a
//! field holds is found by its class and code. Of a TD, the measurement (MRTD) is class 0x13, codes
//! 0 to 5: 8 bytes each, the first at identifier `0x1310000300000000`.

use super::{
    address::{
        self,
        PAGE_ADDRESS,
        PAGE_SIZE, //
    },
    cpuid,
    dispatch::{
        Call,
        LeafResult, //
    },
    platform::Platform,
    regs::Regs,
    status::{
        Operand,
        Status, //
    },
    td::{
        Tdcs,
        TdcsField,
        TdrField,
        BASE_TDCS_PAGES,
        MAX_TDCS_PAGES,
        TDCS_MSR_BITMAPS,
        TDCS_SEPT_ROOT, //
    },
    td_params::{
        self,
        ATTRIBUTE_DEBUG, //
    },
    tdmr::{
        MAX_RESERVED,
        MAX_TDMRS,
        PAMT_ENTRY_SIZE, //
    },
    vp::{
        Vp,
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
        (self.id >> CLASS_SHIFT) & CLASS_MASK
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
            class: (id >> CLASS_SHIFT) & CLASS_MASK,
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
    let index = run.index(field).unwrap_or(0);
    Ok(if index == u64::from(run.count).wrapping_sub(1) {
        known.next().map_or(NO_FIELD, |next| next.id)
    } else if index == 0 {
        run.id.wrapping_add(1)
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
        (0x0a, 8) => profile.features0 | (u64::from(platform.has_local_attestation()) << 8),
        (0x10, 0) => 32,
        (0x10, code @ 0x80..=0x9f) => cmr(platform, code.wrapping_sub(0x80)).0,
        (0x10, code @ 0x100..=0x11f) => cmr(platform, code.wrapping_sub(0x100)).1,
        (0x11, 8) => MAX_TDMRS as u64,
        (0x11, 9) => MAX_RESERVED as u64,
        (0x11, 0x10..=0x12) => PAMT_ENTRY_SIZE,
        (0x18, 0) => PAGE_SIZE,
        (0x18, 0x100) => BASE_TDCS_PAGES * PAGE_SIZE,
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
                u64::from(config.leaf) | (u64::from(config.subleaf.unwrap_or(u32::MAX)) << 32)
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
    let with_hkid = |pa: u64| with_hkid(tdcs, pa);
    let word = |field: TdcsField, index: u64| tdcs.at(field).at(index.wrapping_mul(8)).load();
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
            let offset = code.wrapping_sub(0x20).wrapping_mul(8);
            td.at(TdrField::Uuid).at(offset).load()
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
        // Where the extended state's header would be, and its size.
        (0x11, 0x0e) => 64,
        (0x11, 0x0f) => extended_state_size(tdcs),
        (0x11, 0x11) => tdcs.get(TdcsField::HpLockTimeout),
        (0x11, code @ 0x80..=0xcf) => {
            let profile = tdcs.call().module.profile();
            u64::from(cpuid::is_readable(profile, code.wrapping_sub(0x80)))
        }
        (0x12, 0) => tdcs.get(TdcsField::Epoch),
        (0x12, 1) => tdcs.epoch_users(0).load(),
        (0x12, 2) => tdcs.epoch_users(1).load(),
        (0x13, code @ 0x00..=0x05) => word(TdcsField::Mrtd, code),
        (0x13, code @ 0x10..=0x15) => word(TdcsField::MrConfigId, code.wrapping_sub(0x10)),
        (0x13, code @ 0x18..=0x1d) => word(TdcsField::MrOwner, code.wrapping_sub(0x18)),
        (0x13, code @ 0x20..=0x25) => word(TdcsField::MrOwnerConfig, code.wrapping_sub(0x20)),
        (0x13, code @ 0x40..=0x57) => word(TdcsField::Rtmr, code.wrapping_sub(0x40)),
        _ => 0,
    }
}

/// The size of a compacted XSAVE area for the TD's XFAM.
fn extended_state_size<P: Platform>(tdcs: &Tdcs<'_, P>) -> u64 {
    let xfam = tdcs.get(TdcsField::Xfam);
    let components = (2u32..63).filter(|component| (xfam >> component) & 1 != 0);
    components.fold(512 + 64, |size: u64, component| {
        let [bytes, _, flags, _] = tdcs.call().platform.cpuid(0xd, component);
        let aligned = match flags & 2 {
            0 => size,
            _ => size.wrapping_add(63) & !63,
        };
        aligned.wrapping_add(u64::from(bytes))
    })
}

/// An address as the processor sees it with the TD's key.
pub(super) fn with_hkid<P: Platform>(tdcs: &Tdcs<'_, P>, pa: u64) -> u64 {
    let bits = tdcs.call().platform.layout().address_bits.min(52);
    pa | (u64::from(tdcs.hkid()) << bits)
}

/// The pointer to the Secure EPT.
fn eptp<P: Platform>(tdcs: &Tdcs<'_, P>) -> u64 {
    tdcs.tdcs_page(TDCS_SEPT_ROOT) | tdcs.get(TdcsField::EptpControls)
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

/// Answers a leaf that reads the field in RDX of what RCX names.
///
/// R8 gets the value and, in version 1, RDX the identifier of the next field.
pub(super) fn answer_read<P: Platform>(
    call: &Call<'_, P>,
    regs: &mut Regs,
    read: impl FnOnce(u64, u64) -> Result<(u64, u64), FieldError>,
) -> LeafResult {
    let field = regs.rdx;
    let has_next = call.version > 0;
    regs.r8 = 0;
    if has_next {
        regs.rdx = NO_FIELD;
    }
    if call.version > 1 {
        return Err(Status::OPERAND_INVALID.on(Operand::Rax));
    }
    let (result, next) = match read(regs.rcx, field) {
        Ok((value, next)) => {
            regs.r8 = value;
            (Ok(()), next)
        }
        Err(FieldError::First(id)) => (Err(Status::METADATA_FIRST_FIELD_ID_IN_CONTEXT), id),
        Err(FieldError::Status(status)) => (Err(status), NO_FIELD),
    };
    if has_next {
        regs.rdx = next;
    }
    result
}

/// A field of a vCPU that is kept in the TDVPR and may be written.
struct Writable {
    class: u64,
    code: u64,
    field: VpField,
    /// The bits that may change.
    mask: u64,
    /// Only if the TD is one that can be debugged.
    debug: bool,
}

const fn writable(class: u64, code: u64, field: VpField, mask: u64) -> Writable {
    Writable {
        class,
        code,
        field,
        mask,
        debug: false,
    }
}

const fn debug_writable(class: u64, code: u64, field: VpField, mask: u64) -> Writable {
    Writable {
        debug: true,
        ..writable(class, code, field, mask)
    }
}

/// The bit of the pin-based controls that makes posted interrupts work.
const POSTED_INTERRUPTS: u64 = 1 << 7;
const POSTED_INTERRUPT_VECTOR: u32 = 0x0002;
const POSTED_INTERRUPT_DESCRIPTOR: u32 = 0x2016;
/// The secondary controls for notification and bus-lock exits.
const SECONDARY: u64 = 3 << 30;
/// The primary control that makes each instruction exit.
const MONITOR_TRAP: u64 = 1 << 27;

static WRITABLE: [Writable; 10] = [
    writable(
        0,
        POSTED_INTERRUPT_VECTOR as u64,
        VpField::PostedInterruptVector,
        0xffff,
    ),
    writable(
        0,
        POSTED_INTERRUPT_DESCRIPTOR as u64,
        VpField::PostedInterruptDescriptor,
        u64::MAX,
    ),
    writable(0, 0x4000, VpField::PinControls, POSTED_INTERRUPTS),
    writable(0, 0x203c, VpField::SharedEptPointer, PAGE_ADDRESS),
    writable(0, 0x401e, VpField::SecondaryControls, SECONDARY),
    writable(0, 0x4024, VpField::NotifyWindow, 0xffff_ffff),
    writable(0x20, 0xb, VpField::PendingNmi, 0xff),
    debug_writable(0, 0x4002, VpField::PrimaryControls, MONITOR_TRAP),
    debug_writable(0, 0x681e, VpField::GuestRip, u64::MAX),
    debug_writable(0, 0x6820, VpField::GuestRflags, u64::MAX),
];

/// Fields of a vCPU that only a host which debugs the TD can read: the first code, the number, and
/// the difference from one to the next. Only what is in [`WRITABLE`] of them is modelled.
static DEBUG_VP_FIELDS: [(u64, u64, u64, u64); 29] = [
    (0x00, 0x0000, 4, 2),
    (0x00, 0x0800, 11, 2),
    (0x00, 0x2000, 6, 2),
    (0x00, 0x2014, 14, 2),
    (0x00, 0x2034, 7, 2),
    (0x00, 0x204a, 2, 2),
    (0x00, 0x2400, 1, 2),
    (0x00, 0x2802, 8, 2),
    (0x00, 0x2814, 3, 2),
    (0x00, 0x4002, 14, 2),
    (0x00, 0x4400, 8, 2),
    (0x00, 0x4800, 20, 2),
    (0x00, 0x482a, 1, 2),
    (0x00, 0x482e, 1, 2),
    (0x00, 0x6000, 8, 2),
    (0x00, 0x6400, 6, 2),
    (0x00, 0x6800, 23, 2),
    (0x01, 0x00, 128, 1),
    (0x02, 0x00, 2, 1),
    (0x02, 0x02, 3, 1),
    (0x02, 0x05, 1, 1),
    (0x02, 0x10, 2, 1),
    (0x10, 0x00, 4, 1),
    (0x10, 0x05, 11, 1),
    (0x11, 0x00, 4, 1),
    (0x11, 0x06, 1, 1),
    (0x11, 0x20, 1, 1),
    (0x11, 0x28, 1, 1),
    (0x12, 0x000, 594, 1),
];

fn is_debug_vp_field(field: Field) -> bool {
    DEBUG_VP_FIELDS.iter().any(|(class, first, count, step)| {
        field.class == *class
            && field.code.checked_sub(*first).is_some_and(|distance| {
                distance & step.wrapping_sub(1) == 0 && distance < count.wrapping_mul(*step)
            })
    })
}

static VP_FIELDS: [Run; 25] = [
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
];

/// Reads a field of a vCPU. Returns it with the identifier of the next one.
pub(super) fn read_vp<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    vp: &Vp<'_, P>,
    id: u64,
    version: u8,
) -> Result<(u64, u64), FieldError> {
    let first = VP_FIELDS.first().map_or(NO_FIELD, |run| run.id);
    if id == NO_FIELD && version > 0 {
        return Err(FieldError::First(first));
    }
    let field = Field::decode(id)?;
    let newer = tdcs.call().module.profile().topology_enumeration;
    match find(&VP_FIELDS, id, field, newer) {
        Ok(next) => Ok((vp_value(tdcs, vp, field), next)),
        Err(_) if is_debug_vp_field(field) => {
            if tdcs.get(TdcsField::Attributes) & ATTRIBUTE_DEBUG == 0 {
                return Err(Status::METADATA_FIELD_NOT_READABLE.into());
            }
            // The order of these is not known.
            Ok((vp_value(tdcs, vp, field), NO_FIELD))
        }
        Err(status) => Err(status.into()),
    }
}

fn vp_value<P: Platform>(tdcs: &Tdcs<'_, P>, vp: &Vp<'_, P>, field: Field) -> u64 {
    let writable = WRITABLE
        .iter()
        .find(|writable| writable.class == field.class && writable.code == field.code);
    if let Some(writable) = writable {
        return readable_bits(tdcs, writable, vp.get(writable.field));
    }
    match (field.class, field.code) {
        (0x00, 0x2004) => with_hkid(tdcs, tdcs.tdcs_page(TDCS_MSR_BITMAPS)),
        (0x00, 0x200e | 0x2024) => u64::MAX,
        (0x00, 0x2010) => tdcs.get(TdcsField::TscOffset),
        (0x00, 0x201a) => eptp(tdcs),
        (0x00, 0x2032) => tdcs.get(TdcsField::TscMultiplier),
        (0x00, 0x4026) => u64::from(tdcs.hkid()),
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
    vp: &Vp<'_, P>,
    id: u64,
    value: u64,
    mask: u64,
) -> Result<u64, Status> {
    let field = Field::decode(id)?;
    let newer = tdcs.call().module.profile().topology_enumeration;
    if let Err(status) = find(&VP_FIELDS, id, field, newer) {
        if !is_debug_vp_field(field) {
            return Err(status);
        }
    }
    let debug = tdcs.get(TdcsField::Attributes) & ATTRIBUTE_DEBUG != 0;
    let writable = WRITABLE
        .iter()
        .find(|writable| writable.class == field.class && writable.code == field.code)
        .filter(|writable| debug || !writable.debug)
        .filter(|writable| writable.mask & mask != 0)
        .ok_or(Status::METADATA_FIELD_NOT_WRITABLE)?;

    let platform = tdcs.call().platform;
    let old = vp.get(writable.field);
    let new = old & !mask | value & mask;
    let valid = (old ^ new) & !writable.mask == 0
        && match writable.field {
            VpField::PostedInterruptVector => new <= 0xff,
            VpField::PostedInterruptDescriptor => address::shared(platform, new, 64).is_some(),
            VpField::SharedEptPointer => address::shared(platform, new, PAGE_SIZE).is_some(),
            _ => true,
        };
    if !valid {
        return Err(Status::METADATA_FIELD_VALUE_NOT_VALID);
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
    Ok(readable_bits(tdcs, writable, old))
}

/// The bits of a field that the host may see.
fn readable_bits<P: Platform>(tdcs: &Tdcs<'_, P>, writable: &Writable, value: u64) -> u64 {
    let debug = tdcs.get(TdcsField::Attributes) & ATTRIBUTE_DEBUG != 0;
    match writable.field {
        VpField::PinControls | VpField::SecondaryControls if !debug => value & writable.mask,
        _ => value,
    }
}
