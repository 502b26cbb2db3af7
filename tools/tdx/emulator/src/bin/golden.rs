// SPDX-License-Identifier: GPL-2.0

//! Runs recorded behaviour of a real module against the emulated one, and prints how they compare.

use anyhow::Result;
use clap::Parser;
use std::{
    path::PathBuf,
    process::ExitCode, //
};
use tdx_emulator_host::golden::{
    self,
    Count,
    LINUX_LEAVES, //
};

/// Holds the emulated TDX module, in its 1.5.01 profile, against recordings of the real one.
///
/// Fails if a step of a leaf that Linux uses is answered otherwise.
#[derive(Parser)]
struct Arguments {
    /// The folder with the recordings.
    #[arg(long)]
    vectors: PathBuf,
    /// How many differences to show.
    #[arg(long, default_value_t = 20)]
    show: usize,
    /// Show only differences of leaves whose name contains this.
    #[arg(long, default_value = "")]
    leaf: String,
}

fn row(name: &str, linux: bool, count: &Count) {
    println!(
        "{name:<26} {:<5} {:>7} {:>7} {:>9} {:>12} {:>10} {:>6}",
        if linux { "yes" } else { "-" },
        count.steps,
        count.equal,
        count.different,
        count.not_modelled,
        count.incomplete,
        count.after
    );
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let results = golden::run(&arguments.vectors)?;
    println!(
        "{:<26} {:<5} {:>7} {:>7} {:>9} {:>12} {:>10} {:>6}",
        "leaf", "Linux", "steps", "equal", "different", "not modelled", "incomplete", "after"
    );
    for ((number, name), count) in &results.leaves {
        let name = match name.as_str() {
            "UNKNOWN" => format!("{name} {number}"),
            _ => name.clone(),
        };
        row(&name, LINUX_LEAVES.contains(number), count);
    }
    let total = results.total();
    row("total", false, &total);
    println!(
        "incomplete: recorded without an input; after: follows a step that is not modelled or \
         incomplete and that changed the real module's state"
    );

    let shown = results
        .differences
        .iter()
        .filter(|difference| difference.leaf.contains(&arguments.leaf))
        .take(arguments.show);
    for difference in shown {
        println!(
            "{} step {}: {}: {}",
            difference.scenario, difference.step, difference.leaf, difference.what
        );
    }
    let different = results.linux_differences();
    println!(
        "{} scenarios, {} steps: {} equal, {} different, {} not modelled, {} incomplete, {} after; \
         {} of the different are of leaves that Linux uses",
        results.scenarios,
        total.steps,
        total.equal,
        total.different,
        total.not_modelled,
        total.incomplete,
        total.after,
        different
    );
    Ok(if different == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
