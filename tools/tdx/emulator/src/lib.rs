// SPDX-License-Identifier: GPL-2.0

//! The core of the emulated TDX module on the host.
//!
//! [`module`] is the kernel's own source. Around it are a [`machine`] for it to run on, a [`host`]
//! that calls it as Linux does, [`fuzz`], which calls it with what arbitrary bytes say,
//! [`golden`], which holds it against recorded behaviour of a real
//! module, and [`leaf_table`], the documentation of the leaves.

// A path on a module in braces is a folder; the module inside then finds its own files as in the
// kernel.
#[path = "../../../../arch/x86/virt/vmx/tdx/emulator"]
mod emulator {
    pub mod module;
}

pub use emulator::module;

pub mod fuzz;
pub mod golden;
pub mod host;
pub mod leaf_table;
pub mod machine;
pub mod reached;
pub mod watch;
