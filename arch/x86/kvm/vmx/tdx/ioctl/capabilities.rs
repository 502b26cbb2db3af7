// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_CAPABILITIES: tells what may be configured of a TD.

#![deny(unsafe_code)]

use kernel::prelude::*;

use crate::{
    cpuid,
    uapi::{
        read_u32,
        user_ptr,
        Capabilities,
        Command,
        CpuidEntry,
        WithCpuid,
        CAPABILITIES_NENT, //
    },
};

/// GetTdVmCallInfo, leaf 1, R11: the guest may set up an interrupt for events.
const SETUP_EVENT_NOTIFY_INTERRUPT: u64 = 1 << 1;

/// Serves KVM_TDX_CAPABILITIES. `data` is the address of a `struct kvm_tdx_capabilities`, of which
/// `cpuid.nent` says for how many entries there is room.
///
/// # Errors
///
/// - `EINVAL`: a flag is set.
/// - `EFAULT`: the structure cannot be read or written.
/// - `E2BIG`: there is room for too few entries.
/// - `ENOMEM`: no memory.
/// - `EIO`: the TDX module insists on something that KVM does not support.
#[inline(never)]
pub(super) fn capabilities(cmd: &Command) -> Result {
    if cmd.flags() != 0 {
        return Err(EINVAL);
    }

    let user = user_ptr(cmd.data());
    let room = read_u32(user.wrapping_byte_add(CAPABILITIES_NENT))?;
    let nent = cpuid::nr_configurable();

    if (room as usize) < nent {
        return Err(E2BIG);
    }

    let mut answer = WithCpuid::<Capabilities>::with_room(nent)?;
    let caps = &mut answer.head_mut().0;

    caps.supported_attrs = non_zero(cpuid::supported_attributes())?;
    caps.supported_xfam = non_zero(cpuid::supported_xfam())?;
    caps.user_tdvmcallinfo_1_r11 = SETUP_EVENT_NOTIFY_INTERRUPT;
    // CAST: The module has at most 128 entries.
    caps.cpuid.nent = nent as u32;

    answer.extend(cpuid::configurable(), CpuidEntry::set_configurable);
    answer.write(user)
}

fn non_zero(bits: u64) -> Result<u64> {
    match bits {
        0 => Err(EIO),
        bits => Ok(bits),
    }
}
