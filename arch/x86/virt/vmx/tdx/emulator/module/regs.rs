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

impl Regs {
    /// Takes RCX and RDX out, which stay 0 unless the leaf returns something there.
    pub(super) fn take_rcx_rdx(&mut self) -> (u64, u64) {
        let taken = (self.rcx, self.rdx);
        (self.rcx, self.rdx) = (0, 0);
        taken
    }

    /// Takes the page in RCX out of the registers by which a leaf describes a page. These are
    /// cleared.
    pub(super) fn take_page(&mut self) -> u64 {
        let (page, _) = self.take_rcx_rdx();
        (self.r8, self.r9, self.r10, self.r11) = (0, 0, 0, 0);
        page
    }
}
