// SPDX-License-Identifier: GPL-2.0

//! The locks around the state of a TD, in every order in which threads can take them.
//!
//! The guard is the kernel's own source: `rust/kernel/kvm/`, and `vm_state_guard.rs` and `td.rs` of
//! `arch/x86/kvm/vmx/tdx/`. Around it stands what they call: [`bindings`] is KVM's C in so far as
//! locks are concerned, and `ffi` the TD, whose module has a lock that never waits. [`ledger`] notes
//! which thread holds what, [`protocol`] lets threads do what user space can make them do, and
//! `explore` tries every order.
//!
//! [`flaw`] leaves a part of the protocol out, to show that it is needed and that its absence is
//! noticed.

// So that the kernel's source finds `kernel::kvm` here.
extern crate self as kernel;

// A path on a module in braces is a folder; the module inside then finds its own files as in the
// kernel.
#[path = "../../../../rust/kernel"]
mod rust_kernel {
    pub mod kvm;
}

#[path = "../../../../arch/x86/kvm/vmx/tdx"]
mod tdx {
    // Not every state, and not every method of one, is of use to the model.
    #[allow(dead_code)]
    pub(crate) mod td;
    pub(crate) mod vm_state_guard;
}

pub use rust_kernel::kvm;
pub(crate) use tdx::{
    td,
    vm_state_guard, //
};

pub mod bindings;
pub mod error;
mod explore;
mod ffi;
pub mod flaw;
pub mod ledger;
pub mod prelude;
pub mod protocol;
pub mod types;
pub mod uaccess;
