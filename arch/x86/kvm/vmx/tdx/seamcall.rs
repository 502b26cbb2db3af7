// SPDX-License-Identifier: GPL-2.0

//! The SEAMCALLs of the ioctls, each callable only by who holds what it needs.
//!
//! A leaf that changes a TD is a method of the TD's state, which only [`TdxVmStateGuard`] gives
//! out, and reads the TD from there: without the guard, in another state or for another VM, the
//! call does not compile. A leaf that only reads a TD takes a [`StateFrozen`].
//!
//! A failure that neither user space nor a race can cause is a bug of KVM or of the TDX module:
//! [`bug`] reports it, and marks the VM as broken.
//!
//! [`TdxVmStateGuard`]: crate::vm_state_guard::TdxVmStateGuard

use kernel::{
    bindings,
    cpu::CpuId,
    error::{
        from_result,
        to_result, //
    },
    kvm::{
        MmuWriteLocked,
        Vm, //
    },
    prelude::*, //
};

use crate::{
    ffi::{
        Charge,
        ControlPage,
        CpusReadLocked,
        KeyId,
        KvmTdx,
        LoadedTdVcpu,
        ModuleLocked,
        TdParams, //
    },
    status::{
        Cause,
        SeamcallError,
        Status, //
    },
    td::{
        Initialized,
        StateFrozen,
        Td,
        Uninitialized, //
    },
    uapi::PAGE_SIZE_U64, //
};

/// Identifier of the field of the TDCS that holds the offset of the TD's TSC.
pub(crate) const TDCS_TSC_OFFSET: u64 = tdcs_execution_control(10);

/// Identifier of the field of the TDCS that holds the multiplier of the TD's TSC.
pub(crate) const TDCS_TSC_MULTIPLIER: u64 = tdcs_execution_control(11);

/// Identifier of the first field of the TDCS that holds a CPUID value.
pub(crate) const TDCS_CPUID_VALUES: u64 = 0x9410_0003_0000_0000;

/// Bytes of memory that one MR.EXTEND measures.
const MR_EXTEND_CHUNK: u64 = 256;

const fn tdcs_execution_control(field: u64) -> u64 {
    const CLASS_EXECUTION_CONTROLS: u64 = 17;

    CLASS_EXECUTION_CONTROLS << 56 | field
}

/// Reports a SEAMCALL that failed although it could not, and marks the VM as broken.
///
/// `details` is what the leaf left in other registers to explain the failure.
#[cold]
#[inline(never)]
fn bug<const N: usize>(vm: &Vm, leaf: &CStr, e: SeamcallError, details: [u64; N]) -> Error {
    let detail = |i| details.get(i).copied().unwrap_or(0);

    // SAFETY: The VM is alive and `leaf` is a C string.
    unsafe {
        bindings::tdx_rust_seamcall_failed(
            vm.as_raw(),
            leaf.as_char_ptr(),
            e.status().as_raw(),
            // CAST: At most two registers.
            N as c_int,
            detail(0),
            detail(1),
        )
    };
    EIO
}

/// TDH.MNG.RD: reads a field of the TDCS.
pub(crate) fn mng_rd(
    td: &impl StateFrozen,
    field: u64,
) -> core::result::Result<u64, SeamcallError> {
    let mut value = 0;

    // SAFETY: The TD is alive, and `value` is valid for a write.
    let status = unsafe { bindings::tdh_mng_rd(td.kvm_tdx().td(), field, &mut value) };

    Status::new(status).to_result()?;
    Ok(value)
}

impl Td<'_, Uninitialized> {
    /// TDH.MNG.CREATE: makes `tdr` the root page of the TD, which uses `key_id`. The TD owns all
    /// three from then on.
    ///
    /// `_module` is there since the leaf takes a lock of the whole module.
    ///
    /// # Errors
    ///
    /// - `EAGAIN`: the CPU ran out of entropy.
    /// - `EIO`: the leaf failed otherwise; the VM is marked as broken.
    #[inline(always)]
    pub(crate) fn mng_create(
        &self,
        _module: &ModuleLocked,
        tdr: ControlPage,
        key_id: KeyId,
        charge: Charge,
    ) -> Result {
        let kvm_tdx = self.kvm_tdx();

        self.set_tdr(&tdr);

        // CAST: A key id is at most 16 bits wide.
        // SAFETY: The page and the key id belong to the caller, and the guard gives exclusive
        // access to the TD.
        let status = unsafe { bindings::tdh_mng_create(kvm_tdx.td(), key_id.get() as u16) };

        match Status::new(status).to_result() {
            Ok(()) => {
                self.hand_over(tdr, key_id, charge);
                Ok(())
            }
            Err(e) => {
                self.clear_tdr();
                Err(match e.cause() {
                    Cause::NoEntropy => EAGAIN,
                    _ => bug(kvm_tdx, c"TDH_MNG_CREATE", e, []),
                })
            }
        }
    }

    /// TDH.MNG.KEY.CONFIG: programs a new key for the TD's key id into the package of `cpu`.
    ///
    /// # Context
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// - `EIO`: the leaf failed; the VM is marked as broken.
    pub(crate) fn mng_key_config(&self, _cpus: &CpusReadLocked, cpu: CpuId) -> Result {
        let kvm_tdx: *const KvmTdx = self.kvm_tdx();

        // CAST: A CPU number fits in an `int`.
        // SAFETY: The TD outlives the call, which waits until the callback has returned.
        to_result(unsafe {
            bindings::smp_call_on_cpu(
                cpu.as_u32(),
                Some(key_config_on_this_cpu),
                kvm_tdx.cast_mut().cast(),
                true,
            )
        })
    }

    /// TDH.MNG.ADDCX: adds a page to the TDCS.
    ///
    /// # Errors
    ///
    /// - `EAGAIN`: the CPU ran out of entropy.
    /// - `EIO`: the leaf failed otherwise; the VM is marked as broken.
    pub(crate) fn mng_addcx(&self, page: &ControlPage) -> Result {
        let kvm_tdx = self.kvm_tdx();

        // SAFETY: The page belongs to the caller, and the guard gives exclusive access to the TD.
        let status = unsafe { bindings::tdh_mng_addcx(kvm_tdx.td(), page.as_ptr()) };

        Status::new(status)
            .to_result()
            .map_err(|e| match e.cause() {
                Cause::NoEntropy => EAGAIN,
                _ => bug(kvm_tdx, c"TDH_MNG_ADDCX", e, []),
            })
    }

    /// TDH.MNG.INIT: initialises the TD.
    ///
    /// # Errors
    ///
    /// - `Err((EINVAL, Some(status)))`: the module refuses a parameter, which user space chose;
    ///   the status says which.
    /// - `Err((EIO, None))`: the leaf failed otherwise; the VM is marked as broken.
    pub(crate) fn mng_init(
        &self,
        params: &TdParams,
    ) -> core::result::Result<(), (Error, Option<Status>)> {
        let kvm_tdx = self.kvm_tdx();
        let mut detail = 0;

        // SAFETY: The parameters are alive, `detail` is valid for a write, and the guard gives
        // exclusive access to the TD.
        let status = unsafe { bindings::tdh_mng_init(kvm_tdx.td(), params.phys(), &mut detail) };

        Status::new(status)
            .to_result()
            .map_err(|e| match e.cause() {
                Cause::OperandInvalid => (EINVAL, Some(e.status())),
                _ => (bug(kvm_tdx, c"TDH_MNG_INIT", e, [detail]), None),
            })
    }
}

/// Runs TDH.MNG.KEY.CONFIG.
///
/// # Safety
///
/// `kvm_tdx` is the pointer that [`Td::mng_key_config`] made, which is still waiting.
unsafe extern "C" fn key_config_on_this_cpu(kvm_tdx: *mut c_void) -> c_int {
    // SAFETY: By the safety requirements the TD is alive.
    let kvm_tdx = unsafe { &*kvm_tdx.cast_const().cast::<KvmTdx>() };

    from_result(|| {
        // SAFETY: The caller holds the guard of the TD and waits.
        let status = unsafe { bindings::tdh_mng_key_config(kvm_tdx.td()) };

        Status::new(status)
            .to_result()
            .map(|()| 0)
            .map_err(|e| bug(kvm_tdx, c"TDH_MNG_KEY_CONFIG", e, []))
    })
}

impl Td<'_, Initialized> {
    /// TDH.MR.FINALIZE: completes the measurement of the TD. After that it can run.
    ///
    /// The leaf takes the TDR exclusive, so the MMU is kept out as for [`Self::vp_init`].
    pub(crate) fn mr_finalize(&self, _mmu: &MmuWriteLocked<'_>) -> Status {
        // SAFETY: The guard gives exclusive access to the TD.
        Status::new(unsafe { bindings::tdh_mr_finalize(self.kvm_tdx().td()) })
    }

    /// Reports that TDH.MR.FINALIZE failed for a reason that KVM should have kept out.
    pub(crate) fn mr_finalize_failed(&self, e: SeamcallError) -> Error {
        bug(self.kvm_tdx(), c"TDH_MR_FINALIZE", e, [])
    }

    /// TDH.MR.EXTEND: measures the page at `gpa`, in as many portions as it takes.
    ///
    /// It cannot fail for memory that has just been mapped: `slots_lock`, part of the guard, holds
    /// off updates of memory slots, the lock of the file, which is held while it is populated,
    /// holds off those of guest_memfd, and nothing else unmaps private memory.
    ///
    /// Other files may lose other memory meanwhile. The leaf takes the TDR exclusive, so the MMU is
    /// kept out as for [`Self::vp_init`]: for the whole page at once, which is 16 SEAMCALLs or some
    /// tens of microseconds. The MMU itself holds the lock that long to take out a few pages, with
    /// four SEAMCALLs and an interrupt of each vCPU for each. Between pages it gets its turn.
    ///
    /// # Errors
    ///
    /// - `EIO`: the leaf failed; the VM is marked as broken.
    // Not inlined, as its caller has already needed the stack to map the page.
    #[inline(never)]
    pub(crate) fn mr_extend(&self, gpa: u64) -> Result {
        let kvm_tdx = self.kvm_tdx();
        let (mut entry, mut level_state) = (0, 0);
        let mmu = self.guard().lock_mmu_for_write();

        for chunk in 0..PAGE_SIZE_U64 / MR_EXTEND_CHUNK {
            let gpa = gpa + chunk * MR_EXTEND_CHUNK;

            // SAFETY: Both results are valid for a write, and the guard gives exclusive access to
            // the TD.
            let status =
                unsafe { bindings::tdh_mr_extend(kvm_tdx.td(), gpa, &mut entry, &mut level_state) };

            if let Err(e) = Status::new(status).to_result() {
                // The MMU must not stay locked while a failure is being reported.
                drop(mmu);
                return Err(bug(kvm_tdx, c"TDH_MR_EXTEND", e, [entry, level_state]));
            }
        }
        Ok(())
    }

    /// TDH.VP.CREATE: makes `tdvpr` the root page of a vCPU, which owns it from then on.
    ///
    /// # Errors
    ///
    /// - `EIO`: the leaf failed; the VM is marked as broken.
    pub(crate) fn vp_create(&self, vcpu: &LoadedTdVcpu<'_>, tdvpr: ControlPage) -> Result {
        let kvm_tdx = self.kvm_tdx();

        vcpu.set_tdvpr(&tdvpr);

        // SAFETY: The page belongs to the caller, and the guard gives exclusive access to the TD
        // and its vCPUs.
        let status = unsafe { bindings::tdh_vp_create(kvm_tdx.td(), vcpu.vp()) };

        match Status::new(status).to_result() {
            Ok(()) => {
                vcpu.hand_over_tdvpr(tdvpr);
                Ok(())
            }
            Err(e) => {
                vcpu.clear_tdvpr();
                Err(bug(kvm_tdx, c"TDH_VP_CREATE", e, []))
            }
        }
    }

    /// TDH.VP.ADDCX: adds a page to a vCPU.
    ///
    /// # Errors
    ///
    /// - `EIO`: the leaf failed; the VM is marked as broken.
    pub(crate) fn vp_addcx(&self, vcpu: &LoadedTdVcpu<'_>, page: &ControlPage) -> Result {
        // SAFETY: The page belongs to the caller, and the guard gives exclusive access to the TD
        // and its vCPUs.
        let status = unsafe { bindings::tdh_vp_addcx(vcpu.vp(), page.as_ptr()) };

        Status::new(status)
            .to_result()
            .map_err(|e| bug(self.kvm_tdx(), c"TDH_VP_ADDCX", e, []))
    }

    /// TDH.VP.INIT: initialises a vCPU. `rcx` is what the guest's firmware finds in RCX.
    ///
    /// The leaf may take the TDR exclusive. Paths of the MMU that must not fail take it shared,
    /// under `mmu_lock` and without the guard, for example when guest_memfd punches a hole:
    /// `_mmu`, the same lock taken for write, keeps them out.
    pub(crate) fn vp_init(
        &self,
        _mmu: &MmuWriteLocked<'_>,
        vcpu: &LoadedTdVcpu<'_>,
        rcx: u64,
    ) -> Status {
        // SAFETY: The guard gives exclusive access to the TD and its vCPUs.
        Status::new(unsafe { bindings::tdh_vp_init(vcpu.vp(), rcx, vcpu.id()) })
    }

    /// Reports that TDH.VP.INIT failed.
    pub(crate) fn vp_init_failed(&self, e: SeamcallError) -> Error {
        bug(self.kvm_tdx(), c"TDH_VP_INIT", e, [])
    }

    /// TDH.VP.WR of a VMCS field: sets the bits of `mask` to those of `value`.
    ///
    /// A failure is reported and marks the VM as broken, but is no error of the caller's, as in C.
    pub(crate) fn vmcs_write(&self, vcpu: &LoadedTdVcpu<'_>, field: u32, value: u64, mask: u64) {
        // The identifier of a VMCS field is its encoding: the class is 0.
        // SAFETY: The guard gives exclusive access to the TD and its vCPUs.
        let status = unsafe { bindings::tdh_vp_wr(vcpu.vp(), field.into(), value, mask) };

        if Status::new(status).to_result().is_err() {
            vcpu.vmcs_write_failed(field, value, status);
        }
    }
}
