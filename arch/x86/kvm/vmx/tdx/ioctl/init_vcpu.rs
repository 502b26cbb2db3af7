// SPDX-License-Identifier: GPL-2.0

//! KVM_TDX_INIT_VCPU: gives a vCPU its control structures.

#![deny(unsafe_code)]

use kernel::{
    bindings,
    prelude::*, //
};

use crate::{
    ffi::{
        ControlPages,
        LoadedTdVcpu, //
    },
    td::{
        Initialized,
        StateFrozen,
        Td, //
    },
    uapi::Command, //
};

/// In the pin-based controls: interrupts are posted.
const PIN_BASED_POSTED_INTR: u64 = 1 << 7;
/// In the secondary controls: exit when the guest lets no event in for the notify window.
const SECONDARY_EXEC_NOTIFY_VM_EXITING: u64 = 1 << 31;
/// In the secondary controls: exit when the guest has locked the bus.
const SECONDARY_EXEC_BUS_LOCK_DETECTION: u64 = 1 << 30;

/// Serves KVM_TDX_INIT_VCPU. `data` is not an address: the guest's firmware finds it in RCX.
///
/// # Errors
///
/// - `EINVAL`: a flag is set, the vCPU is initialised already, or its CPUID does not allow x2APIC.
/// - `ENOMEM`: no memory for the pages; the vCPU is as before, but for its APIC mode.
/// - `EIO`: the TDX module refused; the VM is marked as broken.
#[inline(never)]
pub(super) fn init_vcpu(td: &Td<'_, Initialized>, vcpu: LoadedTdVcpu<'_>, cmd: &Command) -> Result {
    if cmd.flags() != 0 || vcpu.is_initialized() {
        return Err(EINVAL);
    }

    vcpu.enable_x2apic()?;
    create(td, &vcpu, cmd.data())?;
    configure(td, &vcpu);
    Ok(())
}

/// Brings the vCPU to life in the TDX module.
fn create(td: &Td<'_, Initialized>, vcpu: &LoadedTdVcpu<'_>, rcx: u64) -> Result {
    let mut tdcx = ControlPages::alloc(td.kvm_tdx().tdcx_nr_pages() + 1)?;
    let tdvpr = tdcx.take_last()?;

    td.vp_create(vcpu, tdvpr)?;
    vcpu.give_tdcx_pages(tdcx, |page| td.vp_addcx(vcpu, page))?;

    // The MMU must not stay locked while a failure is being reported.
    let result = {
        let mmu = td.guard().lock_mmu_for_write();

        // This associates the vCPU with this CPU. Should the task move to another one, KVM flushes
        // the vCPU only if it is initialised. Locked as the MMU is, the task cannot move before.
        td.vp_init(&mmu, vcpu, rcx)
            .to_result()
            .inspect(|()| vcpu.set_initialized())
    };

    result.map_err(|e| td.vp_init_failed(e))?;
    vcpu.set_mp_state_runnable();
    Ok(())
}

/// Sets the VMCS fields that the host chooses.
fn configure(td: &Td<'_, Initialized>, vcpu: &LoadedTdVcpu<'_>) {
    let set_bit = |field, bit| td.vmcs_write(vcpu, field, bit, bit);

    td.vmcs_write(
        vcpu,
        bindings::vmcs_field_POSTED_INTR_NV,
        bindings::POSTED_INTR_VECTOR.into(),
        u16::MAX.into(),
    );
    td.vmcs_write(
        vcpu,
        bindings::vmcs_field_POSTED_INTR_DESC_ADDR,
        vcpu.posted_interrupt_descriptor(),
        u64::MAX,
    );
    set_bit(
        bindings::vmcs_field_PIN_BASED_VM_EXEC_CONTROL,
        PIN_BASED_POSTED_INTR,
    );

    if cfg!(CONFIG_KVM_INTEL_TDX_OPTIONAL_EXITS) {
        configure_optional_exits(td, vcpu);
    }
}

/// Sets the VMCS fields for the exits that user space has asked for.
fn configure_optional_exits(td: &Td<'_, Initialized>, vcpu: &LoadedTdVcpu<'_>) {
    let set_bit = |field, bit| td.vmcs_write(vcpu, field, bit, bit);

    if let Some(window) = td.kvm_tdx().notify_window() {
        set_bit(
            bindings::vmcs_field_SECONDARY_VM_EXEC_CONTROL,
            SECONDARY_EXEC_NOTIFY_VM_EXITING,
        );
        td.vmcs_write(
            vcpu,
            bindings::vmcs_field_NOTIFY_WINDOW,
            window.into(),
            u32::MAX.into(),
        );
    }

    if td.kvm_tdx().is_bus_lock_detection_enabled() {
        set_bit(
            bindings::vmcs_field_SECONDARY_VM_EXEC_CONTROL,
            SECONDARY_EXEC_BUS_LOCK_DETECTION,
        );
    }
}
