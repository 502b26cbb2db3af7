// SPDX-License-Identifier: GPL-2.0

//! Runs recorded behaviour of a real module against the emulated one, and prints how they compare.

use anyhow::{
    Context,
    Result, //
};
use clap::Parser;
use serde_json::{
    json,
    Value, //
};
use std::{
    fs,
    path::PathBuf,
    process::ExitCode, //
};
use tdx_emulator_host::{
    golden::{
        self,
        Count,
        Results,
        LINUX_LEAVES, //
    },
    module::LeafInfo,
};

/// Holds the emulated TDX module, in its 1.5.01 profile, against recordings of the real one.
///
/// Fails if a step of a leaf that is modelled is answered otherwise.
#[derive(Parser)]
struct Arguments {
    /// The folder with the recordings.
    #[arg(long)]
    vectors: PathBuf,
    /// Where to write the counts, as a report of the test groups.
    #[arg(long)]
    json: Option<PathBuf>,
    /// How many differences to show.
    #[arg(long, default_value_t = 20)]
    show: usize,
    /// Show only differences of leaves whose name contains this.
    #[arg(long, default_value = "")]
    leaf: String,
}

/// A line of the table: a leaf, or all numbers that are no leaf.
struct Row {
    name: String,
    linux: bool,
    modelled: bool,
    count: Count,
}

impl Row {
    fn print(&self) {
        let Count {
            steps,
            equal,
            different,
            not_modelled,
            incomplete,
            after,
        } = self.count;
        let linux = if self.linux { "yes" } else { "-" };
        println!(
            "{:<28} {linux:<5} {steps:>7} {equal:>7} {different:>9} {not_modelled:>12} \
             {incomplete:>10} {after:>6}",
            self.name,
        );
    }

    fn json(&self) -> Value {
        json!({
            "leaf": self.name,
            "linux": self.linux,
            "modelled": self.modelled,
            "steps": self.count.steps,
            "equal": self.count.equal,
            "different": self.count.different,
            "not_modelled": self.count.not_modelled,
            "incomplete": self.count.incomplete,
            "after": self.count.after,
        })
    }
}

/// The lines of the table, in the order of the leaves' numbers.
fn rows(results: &Results) -> Vec<Row> {
    let mut rows = Vec::new();
    let mut unknown = Count::default();
    let mut numbers = 0;
    for ((number, _), count) in &results.leaves {
        match LeafInfo::by_number(*number as u16) {
            Some(info) => rows.push(Row {
                name: format!("TDH.{}", info.name),
                linux: LINUX_LEAVES.contains(number),
                modelled: info.modelled,
                count: *count,
            }),
            None => {
                unknown.add(count);
                numbers += 1;
            }
        }
    }
    rows.push(Row {
        name: format!("{numbers} numbers without a leaf"),
        linux: false,
        modelled: true,
        count: unknown,
    });
    rows
}

/// What the test groups count: each leaf that is modelled is a test; the others are skipped.
fn report(rows: &[Row], results: &Results) -> Value {
    let is_test = |row: &&Row| row.modelled && row.count.equal + row.count.different > 0;
    let failures: Vec<_> = rows
        .iter()
        .filter(is_test)
        .filter(|row| row.count.different > 0)
        .map(|row| {
            format!(
                "{}: {} of {} steps differ",
                row.name, row.count.different, row.count.steps
            )
        })
        .collect();
    let not_compared: Vec<_> = rows.iter().filter(|row| !is_test(row)).collect();
    let names: Vec<_> = not_compared.iter().map(|row| row.name.as_str()).collect();
    let mut skips = Vec::new();
    if !names.is_empty() {
        let steps = not_compared.iter().map(|row| row.count.not_modelled);
        let steps: usize = steps.sum();
        skips.push(format!(
            "{} leaves that are not modelled ({steps} steps): {}",
            names.len(),
            names.join(", ")
        ));
    }
    let total = Row {
        name: "total".into(),
        linux: false,
        modelled: true,
        count: results.total(),
    };
    if !results.not_understood.is_empty() {
        skips.push(format!(
            "what follows {} events and steps that are not understood, first {}",
            results.not_understood.len(),
            results.not_understood[0]
        ));
    }
    json!({
        "passed": rows.iter().filter(is_test).count() - failures.len(),
        "failed": failures.len(),
        "skipped": skips.len(),
        "failures": failures,
        "skips": skips,
        "scenarios": results.scenarios,
        "total": total.json(),
        "leaves": rows.iter().map(Row::json).collect::<Vec<_>>(),
    })
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let results = golden::run(&arguments.vectors)?;
    let rows = rows(&results);
    let total = results.total();
    println!(
        "{:<28} {:<5} {:>7} {:>7} {:>9} {:>12} {:>10} {:>6}",
        "leaf", "Linux", "steps", "equal", "different", "not modelled", "incomplete", "after"
    );
    for row in &rows {
        row.print();
    }
    println!(
        "incomplete: recorded without an input; after: follows a step that is not modelled or \
         incomplete and that changed the real module's state"
    );

    for what in results.not_understood.iter().take(arguments.show) {
        println!("not understood: {what}");
    }
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
    if let Some(file) = &arguments.json {
        let report = report(&rows, &results);
        fs::write(file, format!("{report:#}\n"))
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    let others: Vec<_> = rows
        .iter()
        .filter(|row| !row.modelled)
        .map(|row| row.name.as_str())
        .collect();
    println!(
        "{} leaves not modelled: {}",
        others.len(),
        others.join(", ")
    );
    println!(
        "{} scenarios, {} events, {} steps: {} equal, {} different, {} not modelled, {} incomplete, \
         {} after; {} of the different are of leaves that Linux uses",
        results.scenarios,
        results.events,
        total.steps,
        total.equal,
        total.different,
        total.not_modelled,
        total.incomplete,
        total.after,
        results.linux_differences()
    );
    Ok(if total.different == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
