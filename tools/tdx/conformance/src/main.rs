// SPDX-License-Identifier: GPL-2.0

//! Runs programs of KVM ioctls for TDs through C and through Rust, and compares what comes of it.
//!
//! Each program runs three times on this kernel: served by C, by Rust, and call by call by one of
//! them, all on one VM. See [`record::Record`] for what is compared.

mod check;
mod debug_port;
mod edges;
mod fuzz;
mod generate;
mod kcov;
mod kernel;
mod memory;
mod program;
mod record;
mod requests;
mod shrink;
mod trace;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs;
use std::iter;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::Parser;
use clap::Subcommand;
use serde_json::json;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_INIT_VM;

use crate::check::check;
use crate::check::Finding;
use crate::check::Runner;
use crate::check::Verdict;
use crate::check::SHRINK_BUDGET;
use crate::fuzz::Fuzz;
use crate::generate::generate;
use crate::generate::generate_for_one;
use crate::generate::refused_charge;
use crate::generate::Threads;
use crate::kernel::Kernel;
use crate::kernel::Refusal;
use crate::kernel::Server;
use crate::program::Call;
use crate::program::Program;
use crate::program::Step;
use crate::record::bytes;
use crate::record::result;
use crate::record::Record;
use crate::record::StepRecord;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the programs of a range of seeds
    Run(Run),
    /// Runs one program, and says what each step led to
    Replay(Replay),
    /// Lets the module misbehave when Rust serves, and sees that it is found and made small
    SelfTest,
    /// Looks for programs that lead where none has before, and for what breaks there
    Fuzz(Fuzz),
    /// Makes a program smaller that the kernel may not survive
    Shrink(fuzz::Shrink),
}

#[derive(Args)]
struct Run {
    /// The first seed
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// How many programs
    #[arg(long, default_value_t = 1000)]
    count: u64,
    /// Which of them
    #[arg(long, value_enum, default_value_t = Threads::Both)]
    threads: Threads,
    /// Say how far it is after so many seconds
    #[arg(long, default_value_t = 10)]
    progress: u64,
    /// Leave out the known difference: a flaw of C after which no TD can be made until a reboot
    #[arg(long)]
    no_flaw: bool,
    /// Give up after so many findings
    #[arg(long, default_value_t = 5)]
    findings: usize,
    /// Try so many programs to make one smaller that shows a difference
    #[arg(long, default_value_t = SHRINK_BUDGET)]
    shrink: usize,
    /// Say at the end where the time went
    #[arg(long)]
    profile: bool,
}

#[derive(Args)]
struct Replay {
    /// A seed, or a file with a program
    program: String,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => run(&args),
        Command::Replay(args) => replay(&args),
        Command::SelfTest => self_test(),
        Command::Fuzz(args) => fuzz::fuzz(&args),
        Command::Shrink(args) => fuzz::shrink_fatal(&args),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// A line for programs: @NAME and JSON.
fn emit(name: &str, value: &serde_json::Value) {
    println!("@{name} {value}");
}

fn report(seed: Option<u64>, finding: &Finding) {
    let seed_text = seed.map_or_else(String::new, |seed| format!(" (seed {seed})"));
    println!("{}{seed_text}: {}", finding.kind, finding.difference);
    println!(
        "the smallest program that shows it, after {} others:",
        finding.tried
    );
    print!("{}", finding.program);
    emit(
        "finding",
        &json!({
            "seed": seed,
            "kind": finding.kind,
            "difference": finding.difference.to_string(),
            "program": finding.program,
        }),
    );
}

/// A kernel that runs programs, and what takes how long.
struct Profiled {
    kernel: Kernel,
    /// Of each kind of call: how often, and how many ticks.
    spent: BTreeMap<&'static str, (u64, u64)>,
}

impl Runner for Profiled {
    fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record> {
        let record = self.kernel.run(program, server)?;
        let steps = (0..program.steps.len())
            .filter(|index| !program.is_overlapping(*index))
            .map(|index| match program.holds_next(index) {
                true => "two calls at once",
                false => program.steps[index].call.name(),
            });
        let names = iter::once("KVM_CREATE_VM")
            .chain(steps)
            .chain(["close() of what is left", "seeing what came of it"]);
        for (name, ticks) in names.zip(&self.kernel.spent) {
            let (count, sum) = self.spent.entry(name).or_default();
            *count += 1;
            *sum += ticks;
        }
        Ok(record)
    }
}

impl Profiled {
    fn print(&self) {
        let all: u64 = self.spent.values().map(|(_, ticks)| ticks).sum();
        let mut rows: Vec<_> = self.spent.iter().collect();
        rows.sort_by_key(|(_, (_, ticks))| Reverse(*ticks));
        println!("   share     times  ticks each");
        for (name, (count, ticks)) in rows {
            let share = 100.0 * *ticks as f64 / all.max(1) as f64;
            println!(
                "{share:7.1}%  {count:8}  {:10}  {name}",
                ticks / count.max(&1)
            );
        }
    }
}

/// What many programs led to.
#[derive(Default)]
struct Tally {
    programs: u64,
    threaded: u64,
    steps: u64,
    tdx: u64,
    tdx_failed: u64,
    overlaps: u64,
    seamcalls: u64,
    finalized: u64,
    explained: u64,
    unsteady: u64,
    findings: u64,
}

impl Tally {
    fn count(&mut self, program: &Program, verdict: &Verdict) {
        self.programs += 1;
        self.threaded += u64::from(program.is_threaded());
        self.steps += program.steps.len() as u64;
        let record = &verdict.record;
        for (index, (step, outcome)) in program.steps.iter().zip(&record.steps).enumerate() {
            if matches!(step.call, Call::Tdx { .. }) {
                self.tdx += 1;
                self.tdx_failed += u64::from(outcome.errno != 0);
            }
            self.overlaps += u64::from(program.holds_next(index));
            self.seamcalls += outcome.seamcalls.len() as u64;
        }
        self.seamcalls += record.teardown.len() as u64;
        let finalized = |(step, outcome): (&Step, &StepRecord)| {
            outcome.errno == 0
                && matches!(
                    step.call,
                    Call::Tdx {
                        id: KVM_TDX_FINALIZE_VM,
                        ..
                    }
                )
        };
        self.finalized += u64::from(program.steps.iter().zip(&record.steps).any(finalized));
        self.explained += u64::from(verdict.explained.is_some());
        self.unsteady += u64::from(verdict.unsteady);
        self.findings += u64::from(verdict.finding.is_some());
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "programs": self.programs,
            "threaded": self.threaded,
            "steps": self.steps,
            "tdx": self.tdx,
            "tdx_failed": self.tdx_failed,
            "overlaps": self.overlaps,
            "seamcalls": self.seamcalls,
            "finalized": self.finalized,
            "explained": self.explained,
            "unsteady": self.unsteady,
            "findings": self.findings,
        })
    }
}

fn run(args: &Run) -> Result<bool> {
    let mut runner = Profiled {
        kernel: Kernel::open()?,
        spent: BTreeMap::new(),
    };
    for missing in runner.kernel.blind_to() {
        println!("not compared: {missing}");
    }
    let start = Instant::now();
    let mut said = start;
    let mut tally = Tally::default();
    let last = args.first + args.count;
    let tell = |next: u64, tally: &Tally| {
        let seconds = start.elapsed().as_secs_f64();
        let mut progress = tally.json();
        progress["next"] = next.into();
        progress["seconds"] = seconds.into();
        emit("progress", &progress);
        let share = (next - args.first) as f64 / args.count as f64;
        println!(
            "{} programs, {:.0} % of the seeds, {:.1} programs a second, {:.0} s left, {} findings",
            tally.programs,
            100.0 * share,
            tally.programs as f64 / seconds.max(0.001),
            seconds / share.max(0.001) - seconds,
            tally.findings
        );
    };
    let mut next = last;
    for seed in (args.first..last).filter(|seed| args.threads.include(*seed)) {
        let program = generate(seed, &runner.kernel.offer);
        let verdict = check(&mut runner, &program, seed, args.shrink)
            .with_context(|| format!("seed {seed}\n{program}"))?;
        tally.count(&program, &verdict);
        if let Some(finding) = &verdict.finding {
            report(Some(seed), finding);
        }
        if tally.findings as usize >= args.findings {
            println!("that is enough: {} findings", tally.findings);
            next = seed + 1;
            break;
        }
        if said.elapsed().as_secs() >= args.progress {
            said = Instant::now();
            tell(seed + 1, &tally);
        }
    }
    tell(next, &tally);
    if args.profile {
        runner.print();
    }
    let mut good = tally.findings == 0;
    if args.no_flaw {
        emit("tally", &tally.json());
        return Ok(good);
    }
    // Last, as no TD can be made after it.
    let program = refused_charge();
    let verdict = check(&mut runner, &program, 0, args.shrink)?;
    tally.explained += u64::from(verdict.explained.is_some());
    match (verdict.explained, &verdict.finding) {
        (Some(reason), None) => println!("a difference that is right: {reason}"),
        (_, Some(finding)) => report(None, finding),
        (None, None) => println!("C no longer gives back a charge that it was refused"),
    }
    good &= verdict.explained.is_some() && verdict.finding.is_none();
    emit("tally", &tally.json());
    Ok(good)
}

/// A kernel whose TDX module misbehaves where Rust serves the first step.
struct Broken {
    kernel: Kernel,
    refusal: Refusal,
}

impl Runner for Broken {
    fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record> {
        self.refusal.switch(server(0) == Server::Rust)?;
        let record = self.kernel.run(program, server);
        self.refusal.switch(false)?;
        record
    }
}

fn self_test() -> Result<bool> {
    const SEEDS: u64 = 50;

    let kernel = Kernel::open()?;
    let offer = kernel.offer.clone();
    let refusal = Refusal::new()?;
    let mut broken = Broken { kernel, refusal };
    for seed in 1..=SEEDS {
        let program = generate_for_one(seed, &offer);
        let Some(finding) = check(&mut broken, &program, seed, SHRINK_BUDGET)?.finding else {
            continue;
        };
        report(Some(seed), &finding);
        let [step] = &finding.program.steps[..] else {
            bail!("that is not as small as it can be");
        };
        if !matches!(
            step.call,
            Call::Tdx {
                id: KVM_TDX_INIT_VM,
                ..
            }
        ) {
            bail!("that is another step than the one that was made to fail");
        }
        println!("found and made small, as it should be");
        return Ok(true);
    }
    bail!("{SEEDS} programs do not show that KVM_TDX_INIT_VM fails in Rust only");
}

fn load(name: &str, kernel: &Kernel) -> Result<(Program, u64)> {
    if let Ok(seed) = name.parse() {
        return Ok((generate(seed, &kernel.offer), seed));
    }
    read_program(Path::new(name))
}

/// Reads a program from a file, and the seed that says who serves which step of it when both do.
fn read_program(path: &Path) -> Result<(Program, u64)> {
    let shown = path.display();
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {shown}"))?;
    parse_program(&text).with_context(|| format!("{shown} is no program"))
}

/// Takes a program, or a finding, which has the program in it.
fn parse_program(text: &str) -> Result<(Program, u64)> {
    let value: serde_json::Value = serde_json::from_str(text)?;
    let seed = value.get("seed").and_then(serde_json::Value::as_u64);
    let value = value.get("program").cloned().unwrap_or(value);
    Ok((serde_json::from_value(value)?, seed.unwrap_or(0)))
}

fn replay(args: &Replay) -> Result<bool> {
    let mut kernel = Kernel::open()?;
    let (program, seed) = load(&args.program, &kernel)?;
    if program.steps.is_empty() {
        bail!("the program has no steps");
    }
    print!("{program}");
    for server in [Server::C, Server::Rust] {
        let record = kernel.run(&program, &|_| server)?;
        println!("served by {server:?}:");
        for (number, step) in record.steps.iter().enumerate() {
            print!("{:3}  {}", number + 1, result(step.value, step.errno));
            if let Some(held) = step.held {
                print!(", the other: {held:?}");
            }
            println!();
            for (what, written) in [
                ("the command", &step.command_written),
                ("the structure", &step.written),
            ] {
                if !written.is_empty() {
                    println!("       written to {what}: {}", bytes(written));
                }
            }
            for seamcall in &step.seamcalls {
                println!("       {seamcall}");
            }
        }
        if !record.elsewhere.is_empty() {
            println!("     written elsewhere: {}", bytes(&record.elsewhere));
        }
        println!("     ticks: {:?}", kernel.spent);
        println!("     the TD: {}", record.td);
        println!("     {} SEAMCALLs take it down", record.teardown.len());
        if !record.left.is_empty() {
            println!("     left over: {}", record.left);
        }
    }
    // One of a file is as small as it gets.
    let is_seed = args.program.parse::<u64>().is_ok();
    let budget = if is_seed { SHRINK_BUDGET } else { 0 };
    let verdict = check(&mut kernel, &program, seed, budget)?;
    match &verdict.finding {
        Some(finding) if is_seed => report(None, finding),
        Some(_) => {}
        None => match verdict.explained {
            Some(reason) => println!("a difference that is right: {reason}"),
            None => println!("no difference"),
        },
    }
    Ok(verdict.finding.is_none())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_finding_is_replayed_as_it_was_found() {
        let program = json!({ "steps": [{ "call": { "CreateVcpu": { "id": 7 } } }] });
        let (alone, seed) = parse_program(&program.to_string()).unwrap();
        assert_eq!((alone.steps.len(), seed), (1, 0));
        let finding = json!({ "seed": 42, "kind": "", "program": program });
        let (found, seed) = parse_program(&finding.to_string()).unwrap();
        assert_eq!((found, seed), (alone, 42));
        assert!(parse_program("{}").is_err() && parse_program("no JSON").is_err());
    }
}
