// SPDX-License-Identifier: GPL-2.0

//! TD_PARAMS: the structure that tells MNG.INIT what TD to make.

use kernel::{
    bindings,
    kvm::Gfn,
    prelude::*, //
};

use core::{
    mem::offset_of,
    slice, //
};

use super::boxed;

use crate::uapi::InitVm;

/// EAX, EBX, ECX and EDX.
type CpuidValue = [u32; 4];

/// A TD_PARAMS structure, 1024 bytes at a multiple of 1024.
pub(crate) struct TdParams(KBox<bindings::td_params>);

/// The width of a guest physical address, and with it the bit that makes one shared.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum GpaWidth {
    /// 48 bits, the shared bit is 47, four levels of tables.
    Bits48,
    /// 52 bits, the shared bit is 51, five levels of tables.
    Bits52,
}

impl TdParams {
    /// TDG.VP.VMCALL cannot change RBP. KVM relies on it, as it does not save RBP.
    const CONFIG_NO_RBP_MOD: u64 = 1 << 2;
    /// The guest physical address is as wide as the tables allow.
    const CONFIG_MAX_GPAW: u64 = 1 << 0;

    /// Allocates a structure, all zero.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: no memory.
    pub(crate) fn new() -> Result<Self> {
        let params = boxed::<bindings::td_params>(bindings::GFP_KERNEL | bindings::__GFP_ZERO)?;
        // SAFETY: All of it is zero, which is valid for a structure made of integers.
        let mut params = unsafe { params.assume_init() };

        params.config_flags = Self::CONFIG_NO_RBP_MOD;
        Ok(Self(params))
    }

    /// Sets what is taken over from the request as it is.
    pub(crate) fn set_identity(&mut self, request: &InitVm) {
        self.0.mrconfigid = request.mrconfigid();
        self.0.mrowner = request.mrowner();
        self.0.mrownerconfig = request.mrownerconfig();
    }

    /// Sets ATTRIBUTES and XFAM.
    pub(crate) fn set_features(&mut self, attributes: u64, xfam: u64) {
        self.0.attributes = attributes;
        self.0.xfam = xfam;
    }

    /// Returns ATTRIBUTES.
    pub(crate) fn attributes(&self) -> u64 {
        self.0.attributes
    }

    /// Returns XFAM.
    pub(crate) fn xfam(&self) -> u64 {
        self.0.xfam
    }

    /// Sets how many vCPUs the TD may have.
    pub(crate) fn set_max_vcpus(&mut self, n: u16) {
        self.0.max_vcpus = n;
    }

    /// Sets the frequency of the TD's TSC, in units of 25 MHz.
    pub(crate) fn set_tsc_frequency(&mut self, n: u16) {
        self.0.tsc_frequency = n;
    }

    /// Sets the width of a guest physical address.
    pub(crate) fn set_gpa_width(&mut self, width: GpaWidth) {
        let levels = match width {
            GpaWidth::Bits48 => bindings::VMX_EPTP_PWL_4,
            GpaWidth::Bits52 => bindings::VMX_EPTP_PWL_5,
        };

        self.0.eptp_controls = (bindings::VMX_EPTP_MT_WB | levels).into();
        if width == GpaWidth::Bits52 {
            self.0.config_flags |= Self::CONFIG_MAX_GPAW;
        }
    }

    /// Returns the bit of a guest frame number that makes it shared.
    pub(crate) fn shared_gfn_bit(&self) -> Gfn {
        match self.0.config_flags & Self::CONFIG_MAX_GPAW {
            0 => Gfn(1 << (47 - 12)),
            _ => Gfn(1 << (51 - 12)),
        }
    }

    /// Returns the CPUID table, which has a place for each leaf of the module's list.
    pub(crate) fn cpuid_mut(&mut self) -> &mut [CpuidValue] {
        const AT: usize = offset_of!(bindings::td_params, __bindgen_anon_1);
        const SIZE: usize = size_of::<bindings::td_params>() - AT;

        const {
            assert!(AT % align_of::<CpuidValue>() == 0 && SIZE % size_of::<CpuidValue>() == 0);
        }

        let table = &raw mut self.0.__bindgen_anon_1;

        // SAFETY: It is the rest of the structure, aligned, borrowed mutably, and made of integers.
        unsafe { slice::from_raw_parts_mut(table.cast(), SIZE / size_of::<CpuidValue>()) }
    }

    /// Returns the physical address of the structure.
    pub(crate) fn phys(&self) -> u64 {
        let va: *const bindings::td_params = &raw const *self.0;

        // SAFETY: Memory of `kmalloc()` lies in the direct map.
        unsafe { bindings::tdx_rust_virt_to_phys(va.cast()) }
    }
}
