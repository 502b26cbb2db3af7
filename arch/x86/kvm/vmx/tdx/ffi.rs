// SPDX-License-Identifier: GPL-2.0

//! The boundary to C: everything that the ioctls need of it and that is not a SEAMCALL.
//!
//! `unsafe` and `bindings` occur here, in `seamcall.rs`, in `uapi.rs` and at the entry points in
//! `kvm_tdx.rs`, nowhere else in this crate.

mod alloc;
mod cpus;
mod key_id;
mod kvm_tdx;
mod misc;
mod pages;
mod source;
mod td_params;

pub(crate) use self::{
    alloc::{
        boxed,
        boxed_zeros,
        cpuid_table,
        vec_with_capacity, //
    },
    cpus::{
        CpusReadLocked,
        Packages, //
    },
    key_id::{
        Charge,
        KeyId, //
    },
    kvm_tdx::{
        KvmTdx,
        LoadedTdVcpu,
        LockedTdVcpu, //
    },
    misc::{
        cond_resched,
        has_5level_ept,
        signal_pending,
        supported_xcr0_and_xss,
        sysinfo,
        td_conf,
        ModuleLocked, //
    },
    pages::{
        ControlPage,
        ControlPages, //
    },
    source::{
        SourcePage,
        SourcePages, //
    },
    td_params::{
        GpaWidth,
        TdParams, //
    },
};
