// SPDX-License-Identifier: GPL-2.0

//! The general-purpose registers a SEAMCALL is made with.

/// The caller's general-purpose registers, without the stack pointer.
///
/// A leaf changes only the registers it defines as outputs; all others keep the caller's value.
// In the order in which Linux saves them at an exception, so that they need not be copied.
#[allow(missing_docs)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Regs {
    pub r15: u64,
    pub r14: u64,
    pub r13: u64,
    pub r12: u64,
    pub rbp: u64,
    pub rbx: u64,
    pub r11: u64,
    pub r10: u64,
    pub r9: u64,
    pub r8: u64,
    pub rax: u64,
    pub rcx: u64,
    pub rdx: u64,
    pub rsi: u64,
    pub rdi: u64,
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

    /// These registers, with those of `from` whose bits are set in `mask`, numbered as in
    /// instructions.
    pub(super) fn with(self, mask: u64, from: &Regs) -> Regs {
        let mut registers = self.to_array();
        for (bit, (to, from)) in registers.iter_mut().zip(from.to_array()).enumerate() {
            if (mask >> bit) & 1 != 0 {
                *to = from;
            }
        }
        Self::from_array(registers)
    }

    /// The registers as they are numbered in instructions; 0 for RSP.
    pub const fn to_array(self) -> [u64; 16] {
        [
            self.rax, self.rcx, self.rdx, self.rbx, 0, self.rbp, self.rsi, self.rdi, self.r8,
            self.r9, self.r10, self.r11, self.r12, self.r13, self.r14, self.r15,
        ]
    }

    /// The registers from an array in which they are numbered as in instructions.
    pub const fn from_array(registers: [u64; 16]) -> Self {
        let [rax, rcx, rdx, rbx, _, rbp, rsi, rdi, r8, r9, r10, r11, r12, r13, r14, r15] =
            registers;
        Self {
            rax,
            rcx,
            rdx,
            rbx,
            rbp,
            rsi,
            rdi,
            r8,
            r9,
            r10,
            r11,
            r12,
            r13,
            r14,
            r15,
        }
    }
}
