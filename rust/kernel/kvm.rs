// SPDX-License-Identifier: GPL-2.0

//! Kernel-based Virtual Machine (KVM).
//!
//! Vendor-neutral abstractions of what the vendor modules of KVM share: a VM ([`Vm`]), its vCPUs
//! ([`Vcpu`]), the locks that guard them, and the population of guest_memfd.
//!
//! # Locking
//!
//! The locks that freeze a whole VM are taken in this order and released in reverse:
//!
//! ```text
//!   kvm->lock            Vm::lock()                   -> VmLocked
//!     vcpu->mutex (all)    VmLocked::lock_all_vcpus() -> AllVcpusLocked
//!       kvm->slots_lock      AllVcpusLocked::lock_slots() -> SlotsLocked
//!         kvm->mmu_lock        SlotsLocked::lock_mmu_for_write() -> MmuWriteLocked
//! ```
//!
//! Each step consumes the guard before it and keeps it inside, so another order, a missing lock or
//! an early release does not compile. That `vcpu->mutex` is outside `kvm->slots_lock` is the order
//! of `Documentation/virt/kvm/locking.rst`.
//!
//! # Modular KVM
//!
//! KVM may be a module, `kvm.ko`, while this crate is built in and cannot call into a module. So
//! whatever calls a function of KVM is generic or `#[inline]`: it becomes part of the vendor module
//! that uses it. If something is not, `vmlinux` does not link with `KVM=m`.
//!
//! C header: [`include/linux/kvm_host.h`](srctree/include/linux/kvm_host.h)

mod gmem;
mod locks;
#[cfg(CONFIG_RUST_KVM_KUNIT_TEST)]
mod tests;
mod vcpu;
mod vm;

pub use self::{
    gmem::GmemPage,
    locks::{
        AllVcpusLocked,
        MmuWriteLocked,
        SlotsLocked,
        VmLocked, //
    },
    vcpu::{
        LoadedVcpu,
        LockedVcpu,
        Vcpu, //
    },
    vm::{
        Gfn,
        Pfn,
        Vm, //
    },
};
