// SPDX-License-Identifier: GPL-2.0

//! Prints which test reaches which status of which leaf.

use anyhow::Result;
use clap::Parser;
use std::{
    path::PathBuf,
    process::ExitCode, //
};
use tdx_emulator_host::reached;

/// Prints each status that a leaf of the emulated TDX module declares, with a test that reached it.
///
/// The tests write the file if TDX_EMULATOR_REACHED names it. Fails if a status was not reached.
#[derive(Parser)]
struct Arguments {
    /// What the tests have written.
    file: PathBuf,
}

fn main() -> Result<ExitCode> {
    let all = reached::check(&Arguments::parse().file)?;
    for declared in &all {
        let test = declared.test.as_deref().unwrap_or("NO TEST");
        println!("{:<21} {:<44} {test}", declared.leaf.name, declared.name());
    }
    let missing = all.iter().filter(|declared| declared.test.is_none());
    let missing = missing.count();
    println!(
        "{} statuses, {missing} of them reached by no test",
        all.len()
    );
    Ok(ExitCode::from(u8::from(missing != 0)))
}
