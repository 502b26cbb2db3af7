// SPDX-License-Identifier: GPL-2.0

//! The general-purpose registers a SEAMCALL is made with.

/// The caller's general-purpose registers, without the stack pointer.
///
/// A leaf changes only the registers it defines as outputs; all others keep the caller's value.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Regs {
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rbx: u64,
    pub rbp: u64,
    pub rsi: u64,
    pub rdi: u64,
    pub r8: u64,
    pub r9: u64,
    pub r10: u64,
    pub r11: u64,
    pub r12: u64,
    pub r13: u64,
    pub r14: u64,
    pub r15: u64,
}
