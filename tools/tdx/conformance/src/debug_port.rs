// SPDX-License-Identifier: GPL-2.0

//! The port at which an emulated machine hands on what it is told, and at once: whatever becomes of
//! the kernel the next moment, it has been said.

use std::arch::asm;

/// Bochs has it there if it is configured to, for programs, too.
const PORT: u16 = 0xe9;

/// Says a line. In a machine that has no such port, this is the end of the process.
pub fn say(line: &str) {
    for bytes in [line.as_bytes(), b"\n"] {
        // SAFETY: The instruction reads the bytes and nothing else; it has no effect on this machine.
        unsafe {
            asm!(
                "rep outsb",
                in("dx") PORT,
                inout("rcx") bytes.len() => _,
                inout("rsi") bytes.as_ptr() => _,
                options(readonly, nostack, preserves_flags),
            );
        }
    }
}
