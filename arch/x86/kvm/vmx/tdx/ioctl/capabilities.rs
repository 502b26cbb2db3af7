// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_CAPABILITIES: tells what may be configured of a TD.

#![deny(unsafe_code)]

use kernel::{
    prelude::*,
    transmute::AsBytes,
    uaccess::UserSlice, //
};

use pin_init::Zeroable;

use crate::{
    cpuid,
    uapi::{
        user_ptr,
        Capabilities,
        Command,
        CpuidEntry,
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
    let room: u32 = UserSlice::new(user.wrapping_byte_add(CAPABILITIES_NENT), size_of::<u32>())
        .reader()
        .read()?;
    let nent = cpuid::nr_configurable();

    if (room as usize) < nent {
        return Err(E2BIG);
    }

    let mut entries = KVec::<CpuidEntry>::with_capacity(nent, GFP_KERNEL)?;
    let mut caps = KBox::new(Capabilities::zeroed(), GFP_KERNEL)?;

    caps.0.supported_attrs = non_zero(cpuid::supported_attributes())?;
    caps.0.supported_xfam = non_zero(cpuid::supported_xfam())?;
    caps.0.user_tdvmcallinfo_1_r11 = SETUP_EVENT_NOTIFY_INTERRUPT;
    // CAST: The module has at most 128 entries.
    caps.0.cpuid.nent = nent as u32;

    for entry in cpuid::configurable() {
        entries.push(entry, GFP_KERNEL)?;
    }

    let size = size_of::<Capabilities>() + nent * size_of::<CpuidEntry>();
    let mut writer = UserSlice::new(user, size).writer();

    writer.write(&*caps)?;
    writer.write_slice(entries.as_slice().as_bytes())
}

fn non_zero(bits: u64) -> Result<u64> {
    match bits {
        0 => Err(EIO),
        bits => Ok(bits),
    }
}
