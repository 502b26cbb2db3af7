// SPDX-License-Identifier: GPL-2.0

//! Prints the documentation of the leaves. With an argument, into that file instead.

use anyhow::{
    Context,
    Result, //
};
use std::path::PathBuf;
use tdx_emulator_host::leaf_table;

fn main() -> Result<()> {
    let text = leaf_table::rst();
    match std::env::args_os().nth(1).map(PathBuf::from) {
        None => print!("{text}"),
        Some(file) => std::fs::write(&file, text)
            .with_context(|| format!("cannot write {}", file.display()))?,
    }
    Ok(())
}
