// SPDX-License-Identifier: GPL-2.0

//! Which test reached which of the statuses that leaves declare.
//!
//! If the environment variable [`VARIABLE`] names a file, each status that a leaf answers for the
//! first time in a process is added to it, with the name of the test. [`check`] reads that file and
//! finds what no test has reached.

use crate::module::{
    Answer,
    LeafInfo,
    Operand,
    Status, //
};
use anyhow::{
    Context,
    Result, //
};
use std::{
    collections::{
        BTreeMap,
        HashSet, //
    },
    fs::{
        self,
        File, //
    },
    io::Write,
    path::Path,
    sync::{
        LazyLock,
        Mutex, //
    },
    thread, //
};

/// The environment variable that names the file.
pub const VARIABLE: &str = "TDX_EMULATOR_REACHED";

/// Tests that call at random: what they reach, they may not reach the next time.
const RANDOM: [&str; 2] = ["junk::", "model::"];

/// What a leaf never answers although all leaves do: nothing is ever handed off to this module.
const NEVER: [(&str, Status); 1] = [("SYS.UPDATE", Status::SUCCESS)];

struct Log {
    file: File,
    seen: HashSet<(u16, u64)>,
}

static LOG: LazyLock<Option<Mutex<Log>>> = LazyLock::new(|| {
    let file = File::options()
        .create(true)
        .append(true)
        .open(std::env::var_os(VARIABLE)?)
        .expect("the file for what tests reach can be written");
    let seen = HashSet::new();
    Some(Mutex::new(Log { file, seen }))
});

/// Notes that a leaf answered with a status.
pub fn note(leaf: u16, status: Status) {
    let Some(log) = &*LOG else {
        return;
    };
    let current = thread::current();
    let test = current.name().unwrap_or("a thread");
    if RANDOM.iter().any(|random| test.starts_with(random)) {
        return;
    }
    let mut log = log.lock().unwrap_or_else(|error| error.into_inner());
    if log.seen.insert((leaf, status.raw())) {
        let line = format!("{leaf} {:#x} {test}\n", status.raw());
        log.file
            .write_all(line.as_bytes())
            .expect("the file for what tests reach can be written");
    }
}

/// A status that a leaf declares.
pub struct Declared {
    /// The leaf.
    pub leaf: &'static LeafInfo,
    /// The status, with its details if the declaration has them.
    status: Status,
    /// Whether the details can be anything.
    any_details: bool,
    /// The test that reached it.
    pub test: Option<String>,
}

impl Declared {
    /// The name of the status and the operand that it is about.
    pub fn name(&self) -> String {
        let name = self.status.name().unwrap_or("(unnamed)");
        let detail = self.status.raw() as u32;
        match self.any_details {
            true => format!("{name} (details)"),
            false if detail != 0 || self.status == Status::OPERAND_INVALID.on(Operand::Rax) => {
                format!("{name} (operand {detail})")
            }
            false => name.into(),
        }
    }

    fn is(&self, status: Status) -> bool {
        if self.any_details {
            status.detail(0) == self.status
        } else {
            status == self.status
        }
    }
}

/// All that a leaf declares, once each.
fn declared(leaf: &'static LeafInfo) -> Vec<Declared> {
    let mut all: Vec<Declared> = Vec::new();
    let mut add = |status: Status, any_details: bool| {
        let known = all
            .iter()
            .any(|other| other.status == status && other.any_details == any_details);
        if !known {
            all.push(Declared {
                leaf,
                status,
                any_details,
                test: None,
            });
        }
    };
    for status in LeafInfo::COMMON {
        let never =
            leaf.early && status == Status::SYS_NOT_READY || NEVER.contains(&(leaf.name, status));
        if !never {
            add(status, false);
        }
    }
    for lock in leaf.locks {
        add(lock.busy(), false);
    }
    let mut rest: Vec<_> = leaf.answers.iter().rev().collect();
    while let Some(answer) = rest.pop() {
        match *answer {
            Answer::Plain(status) => add(status, false),
            Answer::About(status, operands) => {
                for operand in operands {
                    add(status.on(*operand), false);
                }
            }
            Answer::Detailed(status, _) => add(status, true),
            Answer::Page(operand) => {
                for status in Answer::PAGE {
                    add(status.on(operand), false);
                }
            }
            Answer::Any(answers) => rest.extend(answers.iter().rev()),
        }
    }
    all
}

/// What all modelled leaves declare, each with a test that reached it, if one did.
pub fn check(file: &Path) -> Result<Vec<Declared>> {
    let text =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut reached: BTreeMap<u16, Vec<(Status, &str)>> = BTreeMap::new();
    for line in text.lines() {
        let mut words = line.splitn(3, ' ');
        let mut word = || words.next().with_context(|| format!("odd line: {line}"));
        let leaf = word()?.parse()?;
        let status = u64::from_str_radix(word()?.trim_start_matches("0x"), 16)?;
        let found = reached.entry(leaf).or_default();
        found.push((Status::from_raw(status), word()?));
    }
    let mut all = Vec::new();
    for info in LeafInfo::all().filter(|info| info.modelled) {
        let found = reached.get(&info.number).map_or(&[][..], Vec::as_slice);
        for mut declared in declared(info) {
            let tests = found.iter().filter(|(status, _)| declared.is(*status));
            declared.test = tests.map(|(_, test)| test.to_string()).min();
            all.push(declared);
        }
    }
    Ok(all)
}
