// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_INIT_VM: makes a VM a TD, with a key of its own.

#![deny(unsafe_code)]

use kernel::{
    bindings::KVM_MAX_CPUID_ENTRIES,
    page::PAGE_SIZE,
    prelude::*, //
};

use crate::{
    cpuid,
    ffi::{
        has_5level_ept,
        sysinfo,
        td_conf,
        Charge,
        ControlPages,
        CpusReadLocked,
        GpaWidth,
        KeyId,
        ModuleLocked,
        Packages,
        TdParams, //
    },
    seamcall::{
        mng_rd,
        TDCS_TSC_MULTIPLIER,
        TDCS_TSC_OFFSET, //
    },
    status::SeamcallError,
    td::{
        Td,
        Uninitialized, //
    },
    uapi::{
        read_u32,
        user_ptr,
        Command,
        CpuidEntry,
        InitVm,
        WithCpuid,
        INIT_VM_NENT, //
    },
    vm_state_guard::TdxVmStateGuard, //
};

/// The module counts TSC frequencies in units of 25 MHz.
const TSC_UNIT_KHZ: u32 = 25_000;

/// Serves KVM_TDX_INIT_VM. `data` is the address of a `struct kvm_tdx_init_vm`.
///
/// On failure the VM is as before, and the call may be repeated.
///
/// # Errors
///
/// - `EINVAL`: a flag or anything reserved is set, an attribute, XFAM bit or CPUID bit is not
///   supported, a CPUID entry cannot be configured, the width of a guest physical address is not 48
///   or 52, or the TDX module refuses a parameter: then `hw_error` says which.
/// - `EFAULT`: the structure cannot be read.
/// - `E2BIG`: there are more than KVM_MAX_CPUID_ENTRIES CPUID entries.
/// - `ENOMEM`: no memory.
/// - `EBUSY`: the VM has a vCPU, or the limit of the misc cgroup is reached.
/// - `ENOSPC`: no key id is left.
/// - `EAGAIN`: the CPU ran out of entropy.
/// - `EIO`: a package has no CPU online, or the TDX module refused; the VM is marked as broken in
///   the latter case.
#[inline(always)]
pub(super) fn init_vm(td: Td<'_, Uninitialized>, cmd: &mut Command) -> Result {
    if cmd.flags() != 0 {
        return Err(EINVAL);
    }

    let request = read_request(cmd.data())?;
    let mut params = TdParams::new()?;

    set_params(&mut params, td.guard(), request.head(), request.entries())?;
    drop(request);
    create(td, &params, cmd)
}

/// Reads the request, with its CPUID entries.
#[inline(always)]
fn read_request(address: u64) -> Result<WithCpuid<InitVm>> {
    let user = user_ptr(address);
    let nent = read_u32(user.wrapping_byte_add(INIT_VM_NENT))?;

    if nent > KVM_MAX_CPUID_ENTRIES {
        return Err(E2BIG);
    }

    let request = WithCpuid::<InitVm>::read(user, nent as usize)?;
    let head = request.head();

    // User space may have changed the number between the two reads.
    if head.has_reserved_bits() || head.has_cpuid_padding() || head.nr_cpuid_entries() != nent {
        return Err(EINVAL);
    }
    Ok(request)
}

/// Puts what is requested into TD_PARAMS.
#[inline(never)]
fn set_params(
    params: &mut TdParams,
    guard: &TdxVmStateGuard<'_>,
    request: &InitVm,
    entries: &[CpuidEntry],
) -> Result {
    if guard.created_vcpus() != 0 {
        return Err(EBUSY);
    }

    if request.attributes() & !cpuid::supported_attributes() != 0
        || request.xfam() & !cpuid::supported_xfam() != 0
    {
        return Err(EINVAL);
    }

    // CAST: Both fields are narrower than what KVM counts with, and wide enough for what occurs.
    params.set_max_vcpus(guard.kvm_tdx().max_vcpus() as u16);
    params.set_tsc_frequency((guard.kvm_tdx().default_tsc_khz() / TSC_UNIT_KHZ) as u16);
    params.set_features(
        request.attributes() | td_conf().attributes_fixed1,
        request.xfam() | td_conf().xfam_fixed1,
    );
    params.set_gpa_width(gpa_width(entries)?);
    set_cpuid(params, entries)?;
    params.set_identity(request);
    Ok(())
}

/// Returns the width of a guest physical address that the request asks for.
fn gpa_width(entries: &[CpuidEntry]) -> Result<GpaWidth> {
    let entry = CpuidEntry::find(entries, cpuid::ADDRESS_SIZES, 0).ok_or(EINVAL)?;

    match entry.guest_phys_bits() {
        48 => Ok(GpaWidth::Bits48),
        52 if has_5level_ept() => Ok(GpaWidth::Bits52),
        _ => Err(EINVAL),
    }
}

/// Puts the CPUID entries where the module looks for them: in the order of its own list.
fn set_cpuid(params: &mut TdParams, entries: &[CpuidEntry]) -> Result {
    let mut used = 0;

    for (value, (function, index)) in params
        .cpuid_mut()
        .iter_mut()
        .zip(cpuid::configurable_leaves())
    {
        let Some(entry) = CpuidEntry::find(entries, function, index) else {
            continue;
        };

        if entry.is_unsupported() {
            return Err(EINVAL);
        }

        *value = entry.registers();
        // The width is in EPTP_CONTROLS and CONFIG_FLAGS; the module wants zero here.
        if function == cpuid::ADDRESS_SIZES {
            value[0] &= !cpuid::GUEST_PHYS_BITS;
        }
        used += 1;
    }

    // An entry without a place would be dropped in silence.
    match used == entries.len() {
        true => Ok(()),
        false => Err(EINVAL),
    }
}

/// A TD that has a root page and keys, but cannot be used yet; torn down when dropped.
struct CreatedTd<'g> {
    td: Td<'g, Uninitialized>,
    finished: bool,
}

impl CreatedTd<'_> {
    /// Records that the TD is initialised: its transition, after which it stays.
    fn finish(mut self, params: &TdParams) {
        let read = |field| mng_rd(&self.td, field).unwrap_or_else(|e| unread(field, e));

        // The TDVPR, which is one of the pages of a vCPU, is counted apart.
        let tdcx_nr_pages = nr_pages(sysinfo().td_ctrl.tdvps_base_size) - 1;

        self.td.set_initialized(
            params,
            tdcx_nr_pages,
            read(TDCS_TSC_OFFSET),
            read(TDCS_TSC_MULTIPLIER),
        );
        self.finished = true;
    }
}

impl Drop for CreatedTd<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.td.tear_down();
        }
    }
}

/// Reports that a field of the TDCS cannot be read, and returns what stands for it.
#[cold]
#[inline(never)]
fn unread(field: u64, e: SeamcallError) -> u64 {
    pr_err!(
        "TDH_MNG_RD of {:#x} failed: {:#x}\n",
        field,
        e.status().as_raw()
    );
    0
}

/// Creates the TD: its root page, its key in each package, and the pages of its TDCS, which are
/// initialised as `params` says.
#[inline(never)]
fn create(td: Td<'_, Uninitialized>, params: &TdParams, cmd: &mut Command) -> Result {
    let key_id = KeyId::alloc()?;
    let charge = Charge::new()?;
    let mut tdcs = ControlPages::alloc(nr_pages(sysinfo().td_ctrl.tdcs_base_size) + 1)?;
    let tdr = tdcs.take_last()?;
    let mut packages = Packages::new()?;
    let cpus = CpusReadLocked::lock();

    packages.check_all_online(&cpus)?;
    td.mng_create(&ModuleLocked::lock(), tdr, key_id, charge)?;

    let created = CreatedTd {
        td,
        finished: false,
    };
    // Two CPUs of a package would contend for its key table. No other TD's key is being configured
    // either: the hotplug lock makes each caller choose the same CPU, where the calls queue up.
    let configured = packages.for_each_first_online_cpu(&cpus, |cpu| {
        created.td.mng_key_config(&cpus, cpu) //
    });

    // The teardown of the TD, on failure, takes the lock itself.
    drop(cpus);
    configured?;

    initialize(created, tdcs, params, cmd)
}

/// Completes a TD that has its keys.
// Not inlined: the keys have been configured on less stack.
#[inline(never)]
fn initialize(
    created: CreatedTd<'_>,
    tdcs: ControlPages,
    params: &TdParams,
    cmd: &mut Command,
) -> Result {
    let td = &created.td;

    td.give_tdcs_pages(tdcs, |page| td.mng_addcx(page))?;
    td.mng_init(params).map_err(|(e, refused)| {
        if let Some(status) = refused {
            cmd.set_hw_error(status.as_raw());
        }
        e
    })?;

    created.finish(params);
    Ok(())
}

/// Returns how many pages of 4 KiB a structure of `size` bytes takes.
fn nr_pages(size: u16) -> usize {
    usize::from(size) / PAGE_SIZE
}
