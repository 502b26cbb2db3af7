// SPDX-License-Identifier: GPL-2.0

//! A TD's parameters (`TD_PARAMS`), as TDH.MNG.INIT takes them.

use super::{
    cpuid::{
        self,
        CpuidConfig, //
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
        BASE_TDCS_PAGES, //
    },
    IA32_ARCH_CAPABILITIES,
    IA32_TSC_ADJUST, //
};

/// The size and alignment of the parameters.
pub(super) const TD_PARAMS_SIZE: u64 = 1024;

/// XFAM bits that can be set if the processor has them.
pub(super) const XFAM_FIXED0: u64 = 0x6_dbe7;
/// XFAM bits that must be set.
pub(super) const XFAM_FIXED1: u64 = 3;
/// TD attributes that must be set.
pub(super) const ATTRIBUTES_FIXED1: u64 = 0;
/// Bits of `IA32_ARCH_CAPABILITIES` that can be chosen.
pub(super) const ARCH_CAPABILITIES_CONFIGURABLE: u64 = (1 << 4) | (1 << 19) | (1 << 20) | (1 << 24);

/// Bits of CONFIG_FLAGS that can be set.
pub(super) const CONFIG_FLAGS: u64 = 7;

/// The TD attribute that lets the host look into the TD.
pub(super) const ATTRIBUTE_DEBUG: u64 = 1 << 0;
/// The TD attribute that makes pages which are not accepted exit to the host.
pub(super) const ATTRIBUTE_SEPT_VE_DISABLE: u64 = 1 << 28;
const ATTRIBUTE_LASS: u64 = 1 << 27;
const ATTRIBUTE_MIGRATABLE: u64 = 1 << 29;
const ATTRIBUTE_PERFMON: u64 = 1 << 63;

/// The unit of `TSC_FREQUENCY`, in Hz.
const TSC_UNIT: u64 = 25_000_000;
/// How long guests wait for the host's turn at a lock, in microseconds.
const HP_LOCK_TIMEOUT: u64 = 1_000_000;

/// The bit of CPUID(7,0).EBX for HLE, and that for RTM.
const HLE: u32 = 1 << 4;
const RTM: u32 = 1 << 11;
/// The bit of `IA32_ARCH_CAPABILITIES` that says that `IA32_TSX_CTRL` exists.
const TSX_CTRL: u64 = 1 << 7;
/// Offset of the CPUID values.
const CPUID_VALUES: usize = 256;

/// The TD attributes that may be set here.
pub(super) fn attributes_fixed0<P: Platform>(module: &super::Module, platform: &P) -> u64 {
    let profile = module.profile();
    let has_lass = profile.lass && platform.cpuid(7, 1)[0] & (1 << 6) != 0;
    profile.attributes_fixed0 | if has_lass { ATTRIBUTE_LASS } else { 0 }
}

/// The XFAM bits that may be set here.
pub(super) fn xfam_fixed0<P: Platform>(platform: &P) -> u64 {
    platform.xfam() & XFAM_FIXED0
}

fn xfam_is_valid<P: Platform>(platform: &P, xfam: u64) -> bool {
    let all_or_none = |bits: u64| xfam & bits == 0 || xfam & bits == bits;
    xfam & !xfam_fixed0(platform) == 0
        && xfam & XFAM_FIXED1 == XFAM_FIXED1
        && all_or_none(7 << 5)
        && (xfam & (7 << 5) == 0 || xfam & (1 << 2) != 0)
        && all_or_none(3 << 11)
        && all_or_none(3 << 17)
}

/// A copy of the parameters that the host cannot change any more.
struct TdParams {
    bytes: [u8; TD_PARAMS_SIZE as usize],
}

impl TdParams {
    fn read<P: Platform>(platform: &P, pa: u64) -> Self {
        let mut bytes = [0; TD_PARAMS_SIZE as usize];
        platform.read_host(pa, &mut bytes);
        Self { bytes }
    }

    /// A little-endian field; zero beyond the end.
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut field = [0; N];
        for (to, from) in field.iter_mut().zip(self.bytes.iter().skip(offset)) {
            *to = *from;
        }
        field
    }

    fn u8(&self, offset: usize) -> u8 {
        u8::from_le_bytes(self.field(offset))
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    fn is_zero(&self, offset: usize, len: usize) -> bool {
        self.bytes
            .iter()
            .skip(offset)
            .take(len)
            .all(|byte| *byte == 0)
    }

    fn check_zero(&self, offset: usize, len: usize) -> Result<(), Status> {
        if !self.is_zero(offset, len) {
            return Err(Status::OPERAND_INVALID.on(Operand::Rdx));
        }
        Ok(())
    }

    /// The configured values of the CPUID leaf with that index.
    fn cpuid(&self, index: usize) -> [u32; 4] {
        let offset = index.saturating_mul(16).saturating_add(CPUID_VALUES);
        [0, 4, 8, 12]
            .map(|register| u32::from_le_bytes(self.field(offset.saturating_add(register))))
    }
}

/// Checks the parameters at `pa` and gives them to the TD.
///
/// If they are wrong, the TD has some of them and must be given all again.
pub(super) fn apply<P: Platform>(
    tdcs: &Tdcs<'_, P>,
    pa: u64,
    regs: &mut Regs,
) -> Result<(), Status> {
    let call = tdcs.call();
    let (module, platform) = (call.module, call.platform);
    let profile = module.profile();
    let params = TdParams::read(platform, pa);
    let invalid = |operand: Operand| Err(Status::OPERAND_INVALID.on(operand));

    tdcs.set(TdcsField::Epoch, 1);
    tdcs.set(TdcsField::NumVcpus, 0);
    tdcs.set(TdcsField::NumAssociated, 0);
    tdcs.set(TdcsField::HpLockTimeout, HP_LOCK_TIMEOUT);

    let attributes = params.u64(0);
    let lacks = |bits: u64| bits & !attributes != 0;
    let migratable = attributes & ATTRIBUTE_MIGRATABLE != 0;
    if attributes & !attributes_fixed0(module, platform) != 0
        || lacks(ATTRIBUTES_FIXED1)
        || migratable && attributes & (ATTRIBUTE_DEBUG | ATTRIBUTE_PERFMON) != 0
    {
        return invalid(Operand::Attributes);
    }
    tdcs.set(TdcsField::Attributes, attributes);

    let xfam = params.u64(8);
    if !xfam_is_valid(platform, xfam) {
        return invalid(Operand::Xfam);
    }
    tdcs.set(TdcsField::Xfam, xfam);

    let max_vcpus = params.u16(16);
    if max_vcpus == 0 || u32::from(max_vcpus) > profile.max_vcpus_per_td.unwrap_or(u32::MAX) {
        return invalid(Operand::MaxVcpus);
    }
    tdcs.set(TdcsField::MaxVcpus, u64::from(max_vcpus));

    let l2_vms = u64::from(params.u8(18));
    if l2_vms > 3 {
        return invalid(Operand::NumL2Vms);
    }
    if tdcs.td().get(TdrField::NumTdcx) < l2_vms.wrapping_add(BASE_TDCS_PAGES) {
        return Err(Status::TDCS_NOT_ALLOCATED);
    }
    tdcs.set(TdcsField::NumL2Vms, l2_vms);
    params.check_zero(20, 4)?;

    let flags = params.u64(32);
    if flags & !CONFIG_FLAGS != 0 {
        return invalid(Operand::ConfigFlags);
    }
    let eptp_controls = params.u64(24);
    if !eptp_is_valid(platform, eptp_controls, flags & 1 != 0) {
        return invalid(Operand::EptpControls);
    }
    tdcs.set(TdcsField::ConfigFlags, flags);
    tdcs.set(TdcsField::EptpControls, eptp_controls);

    let frequency = u64::from(params.u16(40));
    if !(4..=400).contains(&frequency) {
        return invalid(Operand::TscFrequency);
    }
    if !module.tsc_adjust_unchanged(platform) {
        return Err(Status::INCONSISTENT_MSR.detail(IA32_TSC_ADJUST));
    }
    tdcs.set(TdcsField::TscFrequency, frequency);
    set_tsc(tdcs, frequency);

    params.check_zero(42, 38)?;
    let has_arch_capabilities = params.u8(19);
    if has_arch_capabilities & !1 != 0 {
        return invalid(Operand::Rdx);
    }
    params.check_zero(232, 24)?;

    for (index, config) in profile.cpuid_config.iter().enumerate() {
        check_cpuid(platform, config, params.cpuid(index), migratable, regs)?;
    }
    cpuid::check_topology(profile, &|index| params.cpuid(index))?;
    let end = profile
        .cpuid_config
        .len()
        .saturating_mul(16)
        .saturating_add(CPUID_VALUES);
    params.check_zero(end, TD_PARAMS_SIZE as usize)?;

    let arch_capabilities = params.u64(224);
    let configurable = match has_arch_capabilities {
        0 => 0,
        _ => ARCH_CAPABILITIES_CONFIGURABLE,
    };
    if arch_capabilities & !configurable != 0 {
        return invalid(Operand::ArchCapabilitiesConfig);
    }
    if migratable && l2_vms != 0 {
        return invalid(Operand::Rdx);
    }

    tdcs.set(TdcsField::ArchCapabilities, arch_capabilities);
    let topology = u64::from(profile.topology_enumeration);
    tdcs.set(TdcsField::TopologyConfigured, topology);
    for (field, offset) in [
        (TdcsField::MrConfigId, 80),
        (TdcsField::MrOwner, 128),
        (TdcsField::MrOwnerConfig, 176),
    ] {
        platform.write(tdcs.at(field).pa(), &params.field::<48>(offset));
    }
    platform.fill(tdcs.at(TdcsField::Rtmr).pa(), 4 * 48, 0);
    cpuid::store(tdcs, &|index| params.cpuid(index), attributes, xfam);
    Ok(())
}

fn eptp_is_valid<P: Platform>(platform: &P, controls: u64, wide_gpa: bool) -> bool {
    let five_levels = match controls {
        // Write-back, and the number of levels less one.
        0x1e => false,
        0x26 => true,
        _ => return false,
    };
    let layout = platform.layout();
    let width = layout.address_bits.saturating_add(layout.hkid_bits);
    let can_five = width >= 49 && platform.cpuid(7, 0)[2] & (1 << 16) != 0;
    if five_levels {
        can_five
    } else {
        !wide_gpa
    }
}

fn check_cpuid<P: Platform>(
    platform: &P,
    config: &CpuidConfig,
    values: [u32; 4],
    migratable: bool,
    regs: &mut Regs,
) -> Result<(), Status> {
    let error = Err(Status::OPERAND_INVALID.on(Operand::CpuidConfig));
    let where_ = u64::from(config.leaf) | (u64::from(config.subleaf.unwrap_or(u32::MAX)) << 32);
    let masks = config.direct.iter().zip(config.allow);
    if values
        .iter()
        .zip(masks)
        .any(|(value, (direct, allow))| value & !(direct | allow) != 0)
    {
        regs.rcx = where_;
        return error;
    }
    let [eax, ebx, ..] = values;
    match (config.leaf, config.subleaf) {
        (1, None) if eax != 0 && eax != platform.cpuid(1, 0)[0] && !migratable => {
            regs.rcx = where_;
            return error;
        }
        (7, Some(0)) => {
            if (ebx & HLE == 0) != (ebx & RTM == 0) {
                return error;
            }
            let has_tsx_ctrl = platform.rdmsr(IA32_ARCH_CAPABILITIES) & TSX_CTRL != 0;
            if ebx & RTM != 0 && !has_tsx_ctrl {
                return Err(Status::INCORRECT_MSR_VALUE.detail(IA32_ARCH_CAPABILITIES));
            }
        }
        _ => {}
    }
    Ok(())
}

/// Sets the parameters that make the TD's time-stamp counter start now.
fn set_tsc<P: Platform>(tdcs: &Tdcs<'_, P>, frequency: u64) {
    let platform = tdcs.call().platform;
    let multiplier = scale(frequency.wrapping_mul(TSC_UNIT), platform.tsc_hz());
    let now = multiply(platform.tsc(), multiplier);
    tdcs.set(TdcsField::TscMultiplier, multiplier);
    tdcs.set(TdcsField::TscOffset, now.wrapping_neg());
}

/// `virtual_hz / native_hz` in units of 2^-48.
fn scale(virtual_hz: u64, native_hz: u64) -> u64 {
    let Some(mut quotient) = virtual_hz.checked_div(native_hz) else {
        return 0;
    };
    let mut rest = virtual_hz.checked_rem(native_hz).unwrap_or(0);
    // The kernel has no division of 128-bit numbers.
    for _ in 0..48 {
        rest = rest.wrapping_shl(1);
        let one = rest >= native_hz;
        if one {
            rest = rest.wrapping_sub(native_hz);
        }
        quotient = (quotient << 1) | u64::from(one);
    }
    quotient
}

/// `tsc * multiplier`, in units of 2^48, less than 2^64.
fn multiply(tsc: u64, multiplier: u64) -> u64 {
    let low = |value: u64| value & 0xffff_ffff;
    let high = |value: u64| value >> 32;
    // Each product of halves fits 64 bits, with room for the carries.
    let ll = low(tsc).wrapping_mul(low(multiplier));
    let lh = low(tsc).wrapping_mul(high(multiplier));
    let hl = high(tsc).wrapping_mul(low(multiplier));
    let hh = high(tsc).wrapping_mul(high(multiplier));
    let middle = high(ll).wrapping_add(low(lh)).wrapping_add(low(hl));
    let upper = hh
        .wrapping_add(high(lh))
        .wrapping_add(high(hl))
        .wrapping_add(high(middle));
    (upper << 16) | (low(middle) >> 16)
}
