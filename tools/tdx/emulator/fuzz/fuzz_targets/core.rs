// SPDX-License-Identifier: GPL-2.0

//! The emulated TDX module's dispatcher, with registers and memory of libFuzzer's choice.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| tdx_emulator_host::fuzz::run(bytes));
