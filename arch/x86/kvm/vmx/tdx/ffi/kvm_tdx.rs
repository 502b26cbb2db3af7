// SPDX-License-Identifier: GPL-2.0

//! Views of KVM's `struct kvm_tdx` and `struct vcpu_tdx`.
//!
//! C owns both. What a lock guards is written only by methods of the value that proves the lock
//! held: [`Td`] for the VM, [`LoadedTdVcpu`] for a vCPU.

use kernel::{
    bindings,
    error::to_result,
    kvm::{
        Gfn,
        GmemPage,
        LoadedVcpu,
        LockedVcpu,
        MmuWriteLocked,
        Vcpu,
        Vm, //
    },
    prelude::*,
    types::Opaque, //
};

use core::{
    ops::Deref,
    ptr, //
};

use super::{
    Charge,
    ControlPage,
    ControlPages,
    KeyId,
    SourcePage,
    TdParams, //
};

use crate::{
    td::{
        Initialized,
        StateFrozen,
        Td,
        Uninitialized, //
    },
    vm_state_guard::TdxVmStateGuard, //
};

/// A VM that is a TD: KVM's `struct kvm_tdx`.
///
/// # Invariants
///
/// `self.0` is a `struct kvm_tdx` whose VM is a valid [`Vm`].
#[repr(transparent)]
pub(crate) struct KvmTdx(Opaque<bindings::kvm_tdx>);

impl KvmTdx {
    /// Creates a reference from a pointer to the generic part.
    ///
    /// # Safety
    ///
    /// As for [`Vm::from_raw`], and the VM is a TD.
    pub(crate) unsafe fn from_raw<'a>(kvm: *mut bindings::kvm) -> &'a Self {
        // SAFETY: The `struct kvm` of a TD is a field of a `struct kvm_tdx`.
        let kvm_tdx = unsafe { kernel::container_of!(kvm, bindings::kvm_tdx, kvm) };

        // INVARIANT: The caller promises a valid VM.
        // SAFETY: `KvmTdx` is a transparent wrapper, and the VM lives for `'a`.
        unsafe { &*kvm_tdx.cast::<Self>() }
    }

    fn as_raw(&self) -> *mut bindings::kvm_tdx {
        self.0.get()
    }

    /// Returns the part that the SEAMCALL wrappers of C take.
    pub(crate) fn td(&self) -> *mut bindings::tdx_td {
        // SAFETY: The field is part of a structure that is alive.
        unsafe { &raw mut (*self.as_raw()).td }
    }

    /// Tells whether the TD has a key id, that is, whether KVM_TDX_INIT_VM has succeeded.
    pub(crate) fn is_hkid_assigned(&self) -> bool {
        // SAFETY: The field is part of a structure that is alive.
        unsafe { (&raw const (*self.as_raw()).hkid).read_volatile() > 0 }
    }

    /// Tells whether KVM_TDX_FINALIZE_VM has succeeded.
    pub(crate) fn is_runnable(&self) -> bool {
        // SAFETY: The field is part of a structure that is alive.
        let state = unsafe { (&raw const (*self.as_raw()).state).read_volatile() };

        state == bindings::kvm_tdx_state_TD_STATE_RUNNABLE
    }

    /// Tells whether the TD is between KVM_TDX_INIT_VM and KVM_TDX_FINALIZE_VM.
    pub(crate) fn is_being_built(&self) -> bool {
        self.is_hkid_assigned() && !self.is_runnable()
    }

    /// Returns the number of pages that a vCPU has beside its TDVPR.
    pub(crate) fn tdcx_nr_pages(&self) -> usize {
        // SAFETY: Set by KVM_TDX_INIT_VM and not changed by anybody else.
        let n = unsafe { (*self.td()).tdcx_nr_pages };

        // CAST: A small count that is never negative.
        n as usize
    }

    /// Returns the bit of a guest frame number that makes it shared; 0 before KVM_TDX_INIT_VM.
    pub(crate) fn shared_gfn_bit(&self) -> Gfn {
        // SAFETY: Written only under the VM's state guard, and before the first vCPU exists.
        Gfn(unsafe { (*self.as_raw()).kvm.arch.gfn_direct_bits })
    }

    /// Returns the frequency of the TSC that the VM's vCPUs start with, in kHz.
    pub(crate) fn default_tsc_khz(&self) -> u32 {
        // SAFETY: Written under `kvm->lock`.
        unsafe { (*self.as_raw()).kvm.arch.default_tsc_khz }
    }

    /// Returns how many vCPUs the VM may have.
    pub(crate) fn max_vcpus(&self) -> c_int {
        // SAFETY: Written under `kvm->lock`.
        unsafe { (*self.as_raw()).kvm.max_vcpus }
    }

    /// Returns the notify window in TSC ticks, if user space asked to be told of a vCPU that lets
    /// no event in for longer.
    pub(crate) fn notify_window(&self) -> Option<u32> {
        // SAFETY: Both fields are written under `kvm->lock`, before the first vCPU exists.
        let (flags, window) = unsafe {
            let arch = &raw const (*self.as_raw()).kvm.arch;

            ((*arch).notify_vmexit_flags, (*arch).notify_window)
        };

        (flags & bindings::KVM_X86_NOTIFY_VMEXIT_ENABLED != 0).then_some(window)
    }

    /// Tells whether user space asked for exits on bus locks.
    pub(crate) fn is_bus_lock_detection_enabled(&self) -> bool {
        // SAFETY: Written under `kvm->lock`, before the first vCPU exists.
        unsafe { (*self.as_raw()).kvm.arch.bus_lock_detection_enabled }
    }

    /// Marks the VM as broken by a bug of KVM: each later ioctl and each entry of a vCPU fails with
    /// `EIO`.
    pub(crate) fn mark_bugged(&self) {
        // SAFETY: The VM is alive.
        unsafe { bindings::tdx_rust_vm_bugged(self.deref().as_raw()) };
    }

    /// Reports that a page is added while one is being added already, and marks the VM as broken.
    #[cold]
    #[inline(never)]
    fn adds_two_pages(&self) -> Error {
        pr_err!("a page is being added to this TD already\n");
        self.mark_bugged();
        EIO
    }

    /// Returns a VM as the TD that it is.
    ///
    /// # Safety
    ///
    /// The VM is a TD.
    pub(crate) unsafe fn of_td(vm: &Vm) -> &Self {
        // SAFETY: The VM is alive and, by the safety requirements, a TD.
        unsafe { Self::from_raw(vm.as_raw()) }
    }
}

impl<'a> TdxVmStateGuard<'a> {
    /// Returns the guarded TD.
    pub(crate) fn kvm_tdx(&self) -> &'a KvmTdx {
        // SAFETY: By the type invariant.
        unsafe { KvmTdx::of_td(self.vm()) }
    }
}

/// A vCPU of a TD whose mutex is held.
///
/// # Invariants
///
/// The vCPU's VM is a TD.
pub(crate) struct LockedTdVcpu<'a> {
    vcpu: LockedVcpu<'a>,
}

impl<'a> LockedTdVcpu<'a> {
    /// States that the vCPU's VM is a TD.
    ///
    /// # Safety
    ///
    /// It is one.
    pub(crate) unsafe fn assume_td(vcpu: LockedVcpu<'a>) -> Self {
        // INVARIANT: By the safety requirements.
        Self { vcpu }
    }
}

impl StateFrozen for LockedTdVcpu<'_> {
    fn kvm_tdx(&self) -> &KvmTdx {
        // SAFETY: By the type invariant.
        unsafe { KvmTdx::of_td(self.vcpu.vm()) }
    }
}

/// A vCPU of a TD that is loaded onto the current CPU.
///
/// SEAMCALLs that touch a vCPU associate it with the CPU they run on; that it is loaded keeps the
/// association where KVM will look for it.
///
/// # Invariants
///
/// The vCPU's VM is a TD.
pub(crate) struct LoadedTdVcpu<'a> {
    vcpu: LoadedVcpu<'a>,
}

impl<'a> Deref for LoadedTdVcpu<'a> {
    type Target = LoadedVcpu<'a>;

    fn deref(&self) -> &Self::Target {
        &self.vcpu
    }
}

impl Td<'_, Initialized> {
    /// Runs `f` while a vCPU of this TD is loaded onto the current CPU.
    ///
    /// The TD is borrowed mutably, and `f` gets it shared: it cannot load a second vCPU.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the vCPU belongs to another VM.
    /// - what `f` returns.
    #[inline(always)]
    pub(crate) fn with_loaded_vcpu<T>(
        &mut self,
        vcpu: &Vcpu,
        f: impl FnOnce(&Self, LoadedTdVcpu<'_>) -> Result<T>,
    ) -> Result<T> {
        let td = &*self;
        // INVARIANT: The vCPU has been found to be of this VM, which is a TD.
        let f = |vcpu: LoadedVcpu<'_>| f(td, LoadedTdVcpu { vcpu });

        // SAFETY: An ioctl has to do with one VM. Whoever has a vCPU of it loaded already holds its
        // mutex, and does not get the guard. This is the only `Td`, and stays borrowed until the
        // vCPU has been put.
        unsafe { td.guard().with_loaded_vcpu(vcpu, f) }
    }
}

impl Deref for KvmTdx {
    type Target = Vm;

    fn deref(&self) -> &Vm {
        // SAFETY: By the type invariant the field is a valid VM.
        unsafe { Vm::from_raw(&raw mut (*self.as_raw()).kvm) }
    }
}

/// What the whole guard allows to be done to a TD that is not initialised. It has no vCPU, and
/// never ran.
impl Td<'_, Uninitialized> {
    /// Sets the TDR that MNG.CREATE is to take.
    pub(crate) fn set_tdr(&self, tdr: &ControlPage) {
        // SAFETY: The guard gives exclusive access to the TD.
        unsafe { (*self.kvm_tdx().td()).tdr_page = tdr.as_ptr() };
    }

    /// Takes back the TDR that MNG.CREATE refused.
    pub(crate) fn clear_tdr(&self) {
        // SAFETY: The guard gives exclusive access to the TD.
        unsafe { (*self.kvm_tdx().td()).tdr_page = ptr::null_mut() };
    }

    /// Hands over what a TD has once MNG.CREATE has succeeded. From now on C's teardown frees it.
    pub(crate) fn hand_over(&self, tdr: ControlPage, key_id: KeyId, charge: Charge) {
        let kvm_tdx = self.kvm_tdx().as_raw();

        // CAST: A key id is at most 16 bits wide.
        // SAFETY: The guard gives exclusive access to the TD.
        unsafe {
            (*kvm_tdx).td.tdr_page = tdr.into_raw();
            (*kvm_tdx).hkid = key_id.into_raw() as c_int;
            (*kvm_tdx).misc_cg = charge.into_raw();
        }
    }

    /// Takes down a TD that [`Self::hand_over`] has been called for: frees the key id with its
    /// charge, reclaims the pages that the module has and frees them.
    pub(crate) fn tear_down(&self) {
        let kvm = self.kvm_tdx().deref().as_raw();

        // SAFETY: The TD has no vCPU and never ran; nobody else can get at it.
        unsafe { bindings::tdx_mmu_release_hkid(kvm) };
        // SAFETY: As above. Beyond freeing the pages it only sets the state that the TD is in.
        unsafe { bindings::tdx_vm_destroy(kvm) };
    }

    /// Gives the pages of the TDCS to the module, by means of `give`.
    ///
    /// # Errors
    ///
    /// What `give` returned for the page that was refused.
    pub(crate) fn give_tdcs_pages(
        &self,
        pages: ControlPages,
        give: impl FnMut(&ControlPage) -> Result,
    ) -> Result {
        let td = self.kvm_tdx().td();

        // CAST: They are a few.
        // SAFETY: The guard gives exclusive access to the TD, whose teardown reclaims so many pages.
        unsafe {
            (*td).tdcs_nr_pages = pages.len() as c_int;
            pages.give_all(&raw mut (*td).tdcs_pages, give)
        }
    }

    /// Records what MNG.INIT has made of the TD, how many pages a vCPU of it has beside its TDVPR,
    /// and that it is initialised now.
    pub(crate) fn set_initialized(
        &self,
        params: &TdParams,
        tdcx_nr_pages: usize,
        tsc_offset: u64,
        tsc_multiplier: u64,
    ) {
        let kvm_tdx = self.kvm_tdx().as_raw();

        // CAST: They are a few.
        // SAFETY: The guard gives exclusive access to the TD.
        unsafe {
            (*kvm_tdx).td.tdcx_nr_pages = tdcx_nr_pages as c_int;
            (*kvm_tdx).tsc_offset = tsc_offset;
            (*kvm_tdx).tsc_multiplier = tsc_multiplier;
            (*kvm_tdx).attributes = params.attributes();
            (*kvm_tdx).xfam = params.xfam();
            (*kvm_tdx).kvm.arch.gfn_direct_bits = params.shared_gfn_bit().0;
            (*kvm_tdx).state = bindings::kvm_tdx_state_TD_STATE_INITIALIZED;
        }
    }
}

impl Td<'_, Initialized> {
    /// Records that MR.FINALIZE has succeeded, and lets KVM_PRE_FAULT_MEMORY in.
    ///
    /// `_mmu` has to be the lock that the leaf was called under. Who unmaps a page blocks it, has
    /// the module track the TLBs if the TD is runnable, and removes it, all under that lock:
    /// without it the module might want the TLBs tracked while KVM does not know yet.
    pub(crate) fn set_runnable(&self, _mmu: &MmuWriteLocked<'_>) {
        let kvm_tdx = self.kvm_tdx().as_raw();

        // SAFETY: The guard gives exclusive access to the TD.
        unsafe { (*kvm_tdx).state = bindings::kvm_tdx_state_TD_STATE_RUNNABLE };
        // Whoever sees that pre-faulting is allowed must see that the TD is runnable.
        // SAFETY: A barrier may stand anywhere.
        unsafe { bindings::smp_wmb() };
        // SAFETY: The guard gives exclusive access to the TD.
        unsafe { (*kvm_tdx).kvm.arch.pre_fault_allowed = true };
    }

    /// Maps a page of guest_memfd into the TD. KVM's MMU adds what tables are missing, and its
    /// S-EPT hook adds the page with the content of `source`, or of the page's own source page.
    ///
    /// # Errors
    ///
    /// - `EIO`: the page is mapped already, or the VM has a bug.
    /// - `EINTR`: a signal is pending.
    /// - `ENOMEM`: no memory for the tables.
    /// - `EBUSY`: the TDX module is busy.
    pub(crate) fn map_page(
        &self,
        vcpu: &LoadedTdVcpu<'_>,
        page: &GmemPage<'_>,
        source: Option<SourcePage<'_>>,
    ) -> Result {
        let kvm_tdx = self.guard().kvm_tdx();

        // SAFETY: `slots_lock`, part of the guard, guards the field.
        let src = unsafe { &mut (*kvm_tdx.as_raw()).page_add_src };

        if !src.is_null() {
            return Err(kvm_tdx.adds_two_pages());
        }

        let page_add_src = source.map_or(page.src_page(), |source| source.as_ptr());

        // Where a region may lack a source; see `CONFIG_KVM_INTEL_TDX_SOURCE_REQUIRED`.
        if page_add_src.is_null() {
            return Err(Error::from_errno(-(bindings::EOPNOTSUPP as c_int)));
        }

        *src = page_add_src;
        // SAFETY: The vCPU is loaded. `page` shows that `slots_lock` and the lock of the file are
        // held.
        let ret = unsafe {
            bindings::kvm_tdp_mmu_map_private_pfn(vcpu.as_raw(), page.gfn().0, page.pfn().0)
        };

        // SAFETY: As above. The hook has only read the field.
        unsafe { (*kvm_tdx.as_raw()).page_add_src = ptr::null_mut() };
        to_result(ret)
    }
}

/// What the mutex of a vCPU allows, beyond what [`Vcpu`] offers.
impl LoadedTdVcpu<'_> {
    fn vcpu_tdx(&self) -> *mut bindings::vcpu_tdx {
        // SAFETY: The `struct kvm_vcpu` of a TD's vCPU is a field of a `struct vcpu_tdx`.
        unsafe { kernel::container_of!(self.as_raw(), bindings::vcpu_tdx, vcpu) }
    }

    /// Returns the part that the SEAMCALL wrappers of C take.
    pub(crate) fn vp(&self) -> *mut bindings::tdx_vp {
        // SAFETY: The field is part of a structure that is alive.
        unsafe { &raw mut (*self.vcpu_tdx()).vp }
    }

    /// Tells whether KVM_TDX_INIT_VCPU has succeeded.
    pub(crate) fn is_initialized(&self) -> bool {
        // SAFETY: The vCPU's mutex is held.
        let state = unsafe { (*self.vcpu_tdx()).state };

        state == bindings::vcpu_tdx_state_VCPU_TD_STATE_INITIALIZED
    }

    /// Records that the vCPU is initialised.
    pub(crate) fn set_initialized(&self) {
        // SAFETY: The vCPU's mutex is held.
        unsafe { (*self.vcpu_tdx()).state = bindings::vcpu_tdx_state_VCPU_TD_STATE_INITIALIZED };
    }

    /// Makes the vCPU one that may be entered, as the firmware starts all of them at once.
    pub(crate) fn set_mp_state_runnable(&self) {
        // SAFETY: The vCPU's mutex is held.
        unsafe { (*self.as_raw()).arch.mp_state = bindings::KVM_MP_STATE_RUNNABLE as c_int };
    }

    /// Puts the local APIC into x2APIC mode, which TDX demands.
    ///
    /// # Errors
    ///
    /// - `EINVAL`: the vCPU's CPUID does not allow it; user space has to configure it accordingly.
    pub(crate) fn enable_x2apic(&self) -> Result {
        // SAFETY: The vCPU is alive.
        let bsp = match unsafe { bindings::kvm_vcpu_is_reset_bsp(self.as_raw()) } {
            true => bindings::MSR_IA32_APICBASE_BSP,
            false => 0,
        };
        let base = bindings::APIC_DEFAULT_PHYS_BASE | bindings::lapic_mode_LAPIC_MODE_X2APIC | bsp;

        // SAFETY: The vCPU's mutex is held.
        match unsafe { bindings::kvm_apic_set_base(self.as_raw(), base.into(), true) } {
            0 => Ok(()),
            _ => Err(EINVAL),
        }
    }

    /// Returns the physical address of the posted-interrupt descriptor.
    pub(crate) fn posted_interrupt_descriptor(&self) -> u64 {
        // SAFETY: The field is part of a structure that is alive.
        let desc = unsafe { &raw const (*self.vcpu_tdx()).vt.pi_desc };

        // SAFETY: A vCPU lies in the direct map.
        unsafe { bindings::tdx_rust_virt_to_phys(desc.cast()) }
    }

    /// Reports that TDH.VP.WR of a VMCS field failed, and marks the VM as broken.
    pub(crate) fn vmcs_write_failed(&self, field: u32, value: u64, status: u64) {
        // The callee only prints its strings.
        // SAFETY: The vCPU is alive, and both are C strings.
        unsafe {
            bindings::tdh_vp_wr_failed(
                self.vcpu_tdx(),
                c"VMCS".as_char_ptr().cast_mut(),
                c" = ".as_char_ptr().cast_mut(),
                field,
                value,
                status,
            )
        };
    }

    /// Sets the TDVPR that VP.CREATE is to take.
    pub(crate) fn set_tdvpr(&self, tdvpr: &ControlPage) {
        // SAFETY: The page is alive.
        let pa = unsafe { bindings::tdx_rust_page_to_phys(tdvpr.as_ptr()) };

        // SAFETY: The vCPU's mutex is held.
        unsafe {
            (*self.vp()).tdvpr_page = tdvpr.as_ptr();
            (*self.vp()).tdvpr_pa = pa;
        }
    }

    /// Takes back the TDVPR that VP.CREATE refused.
    pub(crate) fn clear_tdvpr(&self) {
        // SAFETY: The vCPU's mutex is held.
        unsafe {
            (*self.vp()).tdvpr_page = ptr::null_mut();
            (*self.vp()).tdvpr_pa = 0;
        }
    }

    /// Hands over the TDVPR that VP.CREATE took. From now on C's teardown frees it.
    pub(crate) fn hand_over_tdvpr(&self, tdvpr: ControlPage) {
        tdvpr.into_raw();
    }

    /// Gives the other pages of the vCPU to the module, by means of `give`.
    ///
    /// # Errors
    /// - `EINVAL`: they are too few.
    /// - what `give` returned for the page that was refused.
    pub(crate) fn give_tdcx_pages(
        &self,
        pages: ControlPages,
        give: impl FnMut(&ControlPage) -> Result,
    ) -> Result {
        // SAFETY: By the type invariant.
        let kvm_tdx = unsafe { KvmTdx::of_td(self.vm()) };

        if pages.len() < kvm_tdx.tdcx_nr_pages() {
            return Err(EINVAL);
        }

        // SAFETY: The vCPU's mutex is held, and the teardown of the vCPU reclaims so many pages.
        unsafe { pages.give_all(&raw mut (*self.vp()).tdcx_pages, give) }
    }
}
