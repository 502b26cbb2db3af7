// SPDX-License-Identifier: GPL-2.0

//! Looks for programs that take the kernel where none has been, and for what breaks there.
//!
//! A program that leads to something new is kept, and others are made of it. It is also compared, as
//! in a conformance run. What the kernel says of itself, and whether it goes on, is watched. Each
//! program is told to the machine's debug port before it runs, so that it is known even if the
//! kernel does not survive it.
//!
//! New is an edge between two places of the kernel's code, if it has KCOV, and a behaviour: what a
//! call returns after what, and with which SEAMCALLs.

use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::hash::DefaultHasher;
use std::hash::Hash;
use std::hash::Hasher;
use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::mem::discriminant;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Args;
use serde_json::json;

use crate::check::check;
use crate::check::SHRINK_BUDGET as CHECK_BUDGET;
use crate::debug_port;
use crate::emit;
use crate::generate::generate_for_one;
use crate::generate::Generator;
use crate::generate::MAX_STEPS;
use crate::kcov::Coverage;
use crate::kcov::Kcov;
use crate::kernel::Kernel;
use crate::kernel::Server;
use crate::program::command_name;
use crate::program::Call;
use crate::program::On;
use crate::program::Program;
use crate::program::Step;
use crate::read_program;
use crate::record::Record;
use crate::report;
use crate::shrink::shrink;

/// Where the program is that is being run, for who survives it.
const CURRENT: &str = "/tmp/current.json";

/// How long one program may take, all that follows from it included.
const PATIENCE: Duration = Duration::from_secs(300);

/// Programs that are tried to make one smaller that the kernel complains about.
const SHRINK_BUDGET: usize = 200;

/// Programs that may leave something in the module before there is not enough left for TDs.
const MAX_LEAKS: u32 = 10;

/// What is only a new behaviour, no new edge, is compared once in so many times.
const COMPARE_ONE_IN: u64 = 4;

/// C serves one program in so many, Rust all others.
const C_ONE_IN: u64 = 4;

/// What a kernel says when something is wrong, but for what programs may well bring about: a
/// SEAMCALL that fails makes KVM warn and give up the VM.
const COMPLAINTS: &[&str] = &[
    "WARNING:",
    "BUG:",
    "kernel BUG at",
    "Oops",
    "general protection fault",
    "INFO: possible",
    "INFO: task",
    "possible circular",
    "possible recursive",
    "held lock freed",
    "sleeping function called",
    "scheduling while atomic",
    "list_add corruption",
    "list_del corruption",
    "refcount_t:",
    "panicked at",
    "UBSAN:",
    "KASAN:",
];
const EXPECTED: &[&str] = &[
    "at tdx_vm_ioctl+",
    "at __tdx_td_init+",
    "at tdx_rust_seamcall_failed+",
];

#[derive(Args)]
pub struct Fuzz {
    /// What random numbers begin with
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Stop after so many seconds
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Programs to begin with, one a line
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Tell the machine's debug port of each program
    #[arg(long)]
    debug_port: bool,
    /// Take each warning for a finding, those of failed SEAMCALLs, too
    #[arg(long)]
    strict: bool,
    /// Run programs, watched by another process
    #[arg(long, hide = true)]
    watched: bool,
}

#[derive(Args)]
pub struct Shrink {
    /// A file with a program that the kernel does not survive, or complains about
    program: PathBuf,
}

/// Runs programs in a process of its own, so that somebody can tell what it died of.
pub fn fuzz(args: &Fuzz) -> Result<bool> {
    if args.watched {
        return Fuzzer::open(args)?.run(args);
    }
    let mut command = Command::new("/proc/self/exe");
    command.args(["fuzz", "--watched", "--seed", &args.seed.to_string()]);
    command.args(["--seconds", &args.seconds.to_string()]);
    if let Some(corpus) = &args.corpus {
        command.arg("--corpus").arg(corpus);
    }
    if args.debug_port {
        command.arg("--debug-port");
    }
    if args.strict {
        command.arg("--strict");
    }
    let mut child = command
        .stdin(Stdio::null())
        .spawn()
        .context("cannot start the process that runs programs")?;
    watch(&mut child)
}

fn watch(child: &mut Child) -> Result<bool> {
    let mut last = String::new();
    let mut since = Instant::now();
    loop {
        let ended = child.try_wait()?;
        let current = fs::read_to_string(CURRENT).unwrap_or_default();
        if current != last {
            last = current;
            since = Instant::now();
        }
        let died_of = match ended {
            Some(status) if status.code().is_some() => return Ok(status.success()),
            Some(status) => format!("the process that ran it ended: {status}"),
            None if since.elapsed() > PATIENCE => "it does not come to an end".to_string(),
            None => {
                thread::sleep(Duration::from_millis(500));
                continue;
            }
        };
        let program: Program = serde_json::from_str(&last).unwrap_or_default();
        println!("{died_of}");
        print!("{program}");
        // Who can boot again can make it smaller.
        emit(
            "crash",
            &json!({ "title": died_of, "fatal": true, "program": program }),
        );
        let _ = child.kill();
        return Ok(false);
    }
}

/// Makes a program smaller that the kernel may not survive: then the last one that the debug port
/// was told of is smaller and no better, and whoever reads it is to begin with that again.
pub fn shrink_fatal(args: &Shrink) -> Result<bool> {
    let (program, _) = read_program(&args.program)?;
    let mut kernel = Kernel::open()?;
    let mut log = Log::open(EXPECTED)?;
    let (small, tried) = shrink(&program, SHRINK_BUDGET, |candidate| {
        debug_port::say(&serde_json::to_string(candidate).unwrap_or_default());
        let _ = fs::write("/sys/kernel/debug/clear_warn_once", "1");
        log.complaint();
        for server in [Server::Rust, Server::C] {
            if kernel.run(candidate, &|_| server).is_err() || log.complaint().is_some() {
                return true;
            }
        }
        false
    });
    println!("the smallest program, after {tried} others:");
    print!("{small}");
    emit("smallest", &serde_json::to_value(&small)?);
    Ok(true)
}

/// What the kernel says.
struct Log {
    file: File,
    /// The complaints that are none have one of these in them.
    expected: &'static [&'static str],
}

impl Log {
    fn open(expected: &'static [&'static str]) -> Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .context("cannot read the kernel's log")?;
        file.seek(SeekFrom::End(0))?;
        Ok(Self { file, expected })
    }

    /// The first line of a complaint since the last time.
    fn complaint(&mut self) -> Option<String> {
        let mut found = None;
        let mut record = [0; 8192];
        loop {
            match self.file.read(&mut record) {
                Ok(0) => return found,
                Ok(len) => {
                    let text = String::from_utf8_lossy(&record[..len]);
                    let line = text.split_once(';').map_or("", |(_, rest)| rest);
                    let line = line.lines().next().unwrap_or("");
                    let is_complaint = COMPLAINTS.iter().any(|word| line.contains(word))
                        && !self.expected.iter().any(|place| line.contains(place));
                    if is_complaint && found.is_none() {
                        found = Some(line.to_string());
                    }
                }
                // Records that were overwritten before they were read.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(_) => return found,
            }
        }
    }
}

/// What is the same in complaints about the same.
fn title(line: &str) -> String {
    line.split(|c: char| c == '+' || c == '#' || c.is_ascii_digit())
        .collect::<Vec<_>>()
        .concat()
}

/// Adds what a program was seen to do, and says how much of it is new.
fn collect_behaviours(program: &Program, record: &Record, seen: &mut HashSet<u64>) -> usize {
    let before = seen.len();
    let mut last = 0;
    for (step, outcome) in program.steps.iter().zip(&record.steps) {
        let mut behaviour = DefaultHasher::new();
        match &step.call {
            Call::Tdx { on, id, .. } => {
                let is_vcpu = matches!(on, On::Vcpu(_));
                (is_vcpu, command_name(*id)).hash(&mut behaviour);
            }
            Call::Kvm { request, .. } => request.number().hash(&mut behaviour),
            other => discriminant(other).hash(&mut behaviour),
        }
        (outcome.errno, outcome.command_written.len()).hash(&mut behaviour);
        // Which SEAMCALLs, but not how often each in a row.
        let mut row = None;
        for seamcall in &outcome.seamcalls {
            let seamcall = Some((seamcall.leaf, seamcall.status >> 32));
            if seamcall != row {
                seamcall.hash(&mut behaviour);
            }
            row = seamcall;
        }
        let behaviour = behaviour.finish();
        seen.insert(behaviour);
        seen.insert(behaviour ^ last);
        last = behaviour.rotate_left(17);
    }
    seen.len() - before
}

/// What a program led to that none had before.
struct New {
    edges: usize,
    behaviours: usize,
}

struct Fuzzer {
    kernel: Kernel,
    kcov: Option<Kcov>,
    log: Log,
    current: File,
    debug_port: bool,
    coverage: Coverage,
    behaviours: HashSet<u64>,
    corpus: Vec<Program>,
    programs: u64,
    bad_inputs: u64,
    crashes: HashSet<String>,
    findings: u64,
    leaks: u32,
}

impl Fuzzer {
    fn open(args: &Fuzz) -> Result<Self> {
        let kernel = Kernel::open()?;
        let mut fuzzer = Self {
            kcov: Kcov::start()?,
            kernel,
            behaviours: HashSet::new(),
            log: Log::open(if args.strict { &[] } else { EXPECTED })?,
            current: File::create(CURRENT).with_context(|| format!("cannot write {CURRENT}"))?,
            debug_port: args.debug_port,
            coverage: Coverage::default(),
            corpus: Vec::new(),
            programs: 0,
            bad_inputs: 0,
            crashes: HashSet::new(),
            findings: 0,
            leaks: 0,
        };
        if let Some(path) = &args.corpus {
            fuzzer.load(path)?;
        }
        Ok(fuzzer)
    }

    /// Runs what an earlier run has kept.
    fn load(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        for line in BufReader::new(file).lines() {
            // The last line may be half of one.
            if let Ok(program) = serde_json::from_str::<Program>(&line?) {
                let new = self.execute(&program, Server::Rust)?;
                if new.edges + new.behaviours > 0 {
                    self.corpus.push(program);
                }
            }
        }
        // From here on it is this run's.
        self.programs = 0;
        self.bad_inputs = 0;
        println!(
            "{} programs kept from before, {} edges, {} behaviours",
            self.corpus.len(),
            self.coverage.edges.len(),
            self.behaviours.len()
        );
        Ok(())
    }

    /// Runs a program, and says how much of what it led to is new.
    fn execute(&mut self, program: &Program, server: Server) -> Result<New> {
        let text = serde_json::to_string(program)?;
        if self.debug_port {
            debug_port::say(&text);
        }
        self.current.set_len(0)?;
        self.current.seek(SeekFrom::Start(0))?;
        self.current.write_all(text.as_bytes())?;
        if let Some(kcov) = &self.kcov {
            kcov.reset();
        }
        let record = self
            .kernel
            .run(program, &|_| server)
            .with_context(|| format!("a program failed to run\n{program}"))?;
        let new = New {
            edges: match &self.kcov {
                Some(kcov) => kcov.collect(&mut self.coverage),
                None => 0,
            },
            behaviours: collect_behaviours(program, &record, &mut self.behaviours),
        };
        self.programs += 1;
        self.leaks += u32::from(!record.left.is_empty());
        for (step, outcome) in program.steps.iter().zip(&record.steps) {
            let is_tdx = matches!(step.call, Call::Tdx { .. });
            self.bad_inputs += u64::from(is_tdx && outcome.errno != 0);
        }
        Ok(new)
    }

    /// Makes a program of those that were kept, or from nothing.
    fn next(&self, seed: u64) -> Program {
        let offer = &self.kernel.offer;
        let mut generator = Generator::new(seed, offer);
        if self.corpus.is_empty() || generator.one_in(8) {
            return generate_for_one(seed, offer);
        }
        let mut program = self.corpus[generator.below(self.corpus.len())].clone();
        for _ in 0..1 + generator.below(4) {
            let steps = &mut program.steps;
            let at = generator.below(steps.len());
            match generator.below(8) {
                0 => steps.insert(at, Step::new(generator.any_call())),
                1 if steps.len() > 1 => {
                    steps.remove(at);
                }
                2 if !steps.is_empty() => steps.insert(at, steps[at].clone()),
                3 if !steps.is_empty() => {
                    let to = generator.below(steps.len());
                    steps.swap(at, to);
                }
                4 => {
                    let other = &self.corpus[generator.below(self.corpus.len())];
                    let from = generator.below(other.steps.len());
                    steps.truncate(at);
                    steps.extend(other.steps.iter().skip(from).cloned());
                }
                _ => {
                    if let Some(step) = steps.get_mut(at) {
                        generator.change(&mut step.call);
                    }
                }
            }
        }
        program.steps.truncate(MAX_STEPS);
        // A second thread finds no new code, but perhaps a new order.
        if generator.one_in(10) {
            generator.thread(&mut program);
        }
        program
    }

    /// Saves a program that the kernel complains about.
    fn crash(&mut self, complaint: &str, program: &Program, server: Server) {
        let known = title(complaint);
        if !self.crashes.insert(known.clone()) {
            return;
        }
        let (small, tried) = shrink(program, SHRINK_BUDGET, |candidate| {
            // Else each place would complain only once.
            let _ = fs::write("/sys/kernel/debug/clear_warn_once", "1");
            self.log.complaint();
            let ran = self.kernel.run(candidate, &|_| server).is_ok();
            let says = self.log.complaint();
            ran && says.is_some_and(|line| title(&line) == known)
        });
        println!("{complaint}");
        println!("the smallest program that brings it about, after {tried} others:");
        print!("{small}");
        emit(
            "crash",
            &json!({ "title": complaint, "steps": program.steps.len(), "program": small }),
        );
    }

    fn progress(&mut self, start: Instant) {
        let places: Vec<_> = self.coverage.new_places.drain(..).collect();
        emit("places", &json!(places));
        let seconds = start.elapsed().as_secs_f64();
        emit(
            "progress",
            &json!({
                "programs": self.programs,
                "edges": self.coverage.edges.len(),
                "places": self.coverage.places.len(),
                "behaviours": self.behaviours.len(),
                "corpus": self.corpus.len(),
                "bad_inputs": self.bad_inputs,
                "crashes": self.crashes.len(),
                "findings": self.findings,
                "seconds": seconds,
            }),
        );
        println!(
            "{} programs, {:.1} a second; {} edges between {} places, {} behaviours, {} programs kept; {} bad inputs; {} crashes, {} differences",
            self.programs,
            self.programs as f64 / seconds.max(0.001),
            self.coverage.edges.len(),
            self.coverage.places.len(),
            self.behaviours.len(),
            self.corpus.len(),
            self.bad_inputs,
            self.crashes.len(),
            self.findings,
        );
    }

    fn run(&mut self, args: &Fuzz) -> Result<bool> {
        let start = Instant::now();
        let mut said = start;
        let mut seed = args.seed << 32;
        while start.elapsed().as_secs() < args.seconds {
            seed += 1;
            let program = self.next(seed);
            let server = if seed % C_ONE_IN == 0 {
                Server::C
            } else {
                Server::Rust
            };
            let new = self.execute(&program, server)?;
            if let Some(complaint) = self.log.complaint() {
                self.crash(&complaint, &program, server);
            } else if new.edges + new.behaviours > 0 {
                emit("corpus", &serde_json::to_value(&program)?);
                if new.edges > 0 || seed % COMPARE_ONE_IN == 1 {
                    if let Some(finding) =
                        check(&mut self.kernel, &program, seed, CHECK_BUDGET)?.finding
                    {
                        self.findings += 1;
                        report(Some(seed), &finding);
                    }
                }
                self.corpus.push(program);
            }
            if self.leaks > MAX_LEAKS {
                println!(
                    "{} programs have left something behind: that is enough",
                    self.leaks
                );
                break;
            }
            if said.elapsed().as_secs() >= 10 {
                said = Instant::now();
                self.progress(start);
            }
        }
        self.progress(start);
        Ok(self.crashes.is_empty() && self.findings == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_complaint_has_one_title() {
        let first = "WARNING: virt/kvm/kvm_main.c:123 at kvm_bug+0x12/0x80, CPU#0: conformance/51";
        let again = "WARNING: virt/kvm/kvm_main.c:123 at kvm_bug+0x12/0x80, CPU#1: conformance/64";
        assert_eq!(title(first), title(again));
        assert_ne!(
            title(first),
            title("WARNING: virt/kvm/x.c:123 at kvm_bug+0x12/0x80")
        );
    }
}
