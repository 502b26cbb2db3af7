// SPDX-License-Identifier: GPL-2.0

//! Runs a program through each implementation, and judges what is different.

use anyhow::Result;
use tdx_uapi::KVM_TDX_FINALIZE_VM;
use tdx_uapi::KVM_TDX_GET_CPUID;

use crate::kernel::Kernel;
use crate::kernel::Server;
use crate::kernel::CHARGES;
use crate::program::Call;
use crate::program::On;
use crate::program::Program;
use crate::record::Difference;
use crate::record::Record;
use crate::shrink::shrink;
use crate::trace::VP_FLUSH;

/// Programs that are tried to make one smaller, if nobody says otherwise.
pub const SHRINK_BUDGET: usize = 300;

/// What runs programs.
pub trait Runner {
    /// Runs a program; `server` says who serves which step.
    fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record>;
}

impl Runner for Kernel {
    fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record> {
        Kernel::run(self, program, server)
    }
}

/// A difference that nothing explains.
#[derive(Debug)]
pub struct Finding {
    pub kind: &'static str,
    pub difference: Difference,
    /// The smallest program that shows it.
    pub program: Program,
    /// How many programs were tried for that.
    pub tried: usize,
}

/// What became of a program.
#[derive(Debug)]
pub struct Verdict {
    /// What it led to when C served it.
    pub record: Record,
    /// Why a difference is right.
    pub explained: Option<&'static str>,
    /// Whether there was a difference that C showed to itself as well, and that did not come again.
    pub unsteady: bool,
    pub finding: Option<Finding>,
}

/// Chooses who serves a step when both do: by the bits of a number that the seed gives.
fn mixed(seed: u64) -> impl Fn(usize) -> Server {
    // Half of the bits are set, and neighbouring seeds have little in common.
    let bits = (seed ^ 0x5bd1_e995).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    move |step| {
        if bits.rotate_left(step as u32 * 7) & 1 == 0 {
            Server::C
        } else {
            Server::Rust
        }
    }
}

/// How a program is served, besides by C alone.
#[derive(Clone, Copy, Debug)]
enum Way {
    Rust,
    Mixed,
    /// By C once more: what differs then is due to neither.
    C,
}

impl Way {
    fn kind(self) -> &'static str {
        match self {
            Self::Rust => "C and Rust differ",
            Self::Mixed => "C and both in turn differ",
            Self::C => "C differs from itself",
        }
    }

    fn run<R: Runner>(self, runner: &mut R, program: &Program, seed: u64) -> Result<Record> {
        match self {
            Self::Rust => runner.run(program, &|_| Server::Rust),
            Self::Mixed => runner.run(program, &mixed(seed)),
            Self::C => runner.run(program, &|_| Server::C),
        }
    }
}

/// Differences that are right. Documentation/virt/kvm/x86/intel-tdx-rust.rst has them in a table.
///
/// The reason must be one that nothing else could be taken for: all else has to be the same.
fn explain(program: &Program, by_c: &Record, other: &Record) -> Option<&'static str> {
    let reasons: [(bool, _); 3] = [
        (
            gives_a_charge_back(program, by_c, other),
            "C uncharges the misc cgroup for what it was not charged",
        ),
        (
            loads_what_was_finalized(program, by_c, other),
            "KVM_TDX_GET_CPUID that waited for KVM_TDX_FINALIZE_VM has loaded its vCPU",
        ),
        (
            loads_while_another_is_held(program, by_c, other),
            "KVM_TDX_GET_CPUID has loaded its vCPU while another call was held",
        ),
    ];
    reasons
        .into_iter()
        .find_map(|(is_it, reason)| is_it.then_some(reason))
}

/// KVM_TDX_INIT_VM in C gives back a charge that it was refused.
fn gives_a_charge_back(program: &Program, by_c: &Record, other: &Record) -> bool {
    let limited = program
        .steps
        .iter()
        .any(|step| matches!(step.call, Call::Limit { .. }));
    let refused = by_c
        .steps
        .iter()
        .filter(|step| step.errno == libc::EBUSY)
        .count() as i64;
    let charges = |record: &Record| match record.left.strip_suffix(CHARGES) {
        Some(count) => count.trim().parse().ok(),
        None if record.left.is_empty() => Some(0i64),
        None => None,
    };
    let as_c = Record {
        left: by_c.left.clone(),
        ..other.clone()
    };
    let (Some(by_c_left), Some(left)) = (charges(by_c), charges(other)) else {
        return false;
    };
    // Of those that C serves, each refusal takes one more away; Rust takes none.
    limited
        && (-refused..0).contains(&by_c_left)
        && (by_c_left..=0).contains(&left)
        && by_c.difference(&as_c).is_none()
}

/// KVM_TDX_GET_CPUID waits for KVM_TDX_FINALIZE_VM, and is refused. In C it waits for the guard, and
/// that is all. In Rust it waits for its vCPU's mutex, so that KVM loads the vCPU before: a vCPU that
/// was loaded by another processor is flushed there, now and not later.
fn loads_what_was_finalized(program: &Program, by_c: &Record, other: &Record) -> bool {
    let is = |index: usize, command: u32| match program.steps.get(index).map(|step| &step.call) {
        Some(Call::Tdx { on, id, .. }) => {
            *id == command && (*on == On::Vm) == (command == KVM_TDX_FINALIZE_VM)
        }
        _ => false,
    };
    let refused = |record: &Record, index: usize| {
        let errno = record.steps.get(index).map(|step| step.errno);
        errno == Some(libc::EINVAL)
    };
    let waits = |index: &usize| {
        program.holds_next(*index)
            && is(*index, KVM_TDX_FINALIZE_VM)
            && is(*index + 1, KVM_TDX_GET_CPUID)
            && refused(by_c, *index + 1)
            && refused(other, *index + 1)
    };
    let Some(first) = (0..program.steps.len()).find(waits) else {
        return false;
    };
    let without_flushes = |record: &Record| {
        let mut record = record.clone();
        let steps = record.steps.iter_mut().skip(first);
        for seamcalls in steps
            .map(|step| &mut step.seamcalls)
            .chain([&mut record.teardown])
        {
            seamcalls.retain(|seamcall| seamcall.leaf != VP_FLUSH);
        }
        record
    };
    without_flushes(by_c)
        .difference(&without_flushes(other))
        .is_none()
}

/// KVM_TDX_GET_CPUID does not wait in Rust for a call on another vCPU, which is held in the middle of
/// its SEAMCALLs. KVM loads the vCPU, and has it flushed on the processor of that call: among its
/// SEAMCALLs, while in C it comes after them. Nothing else may move, and no flush may be missing.
fn loads_while_another_is_held(program: &Program, by_c: &Record, other: &Record) -> bool {
    let vcpu = |index: usize| match program.steps.get(index).map(|step| &step.call) {
        Some(Call::Tdx {
            on: On::Vcpu(vcpu),
            id,
            ..
        }) => Some((*vcpu, *id)),
        _ => None,
    };
    let is_it = |index: &usize| match (vcpu(*index), vcpu(*index + 1)) {
        (Some((held, _)), Some((other, id))) => {
            program.holds_next(*index) && held != other && id == KVM_TDX_GET_CPUID
        }
        _ => false,
    };
    let flushes_last = |record: &Record| {
        let mut record = record.clone();
        for index in (0..record.steps.len()).filter(is_it) {
            let seamcalls = &mut record.steps[index].seamcalls;
            seamcalls.sort_by_key(|seamcall| seamcall.leaf == VP_FLUSH);
        }
        record
    };
    (0..program.steps.len()).any(|index| is_it(&index))
        && flushes_last(by_c)
            .difference(&flushes_last(other))
            .is_none()
}

/// How often a program is tried again that differs for C alone: in what else the kernel is doing.
const TRIES: usize = 3;

/// What comparing the three runs of a program led to.
enum Compared {
    Same(Option<&'static str>),
    Differs(Way, Difference),
}

/// Runs a program three times and compares.
fn compare<R: Runner>(runner: &mut R, program: &Program, seed: u64) -> Result<(Record, Compared)> {
    let by_c = runner.run(program, &|_| Server::C)?;
    let mut explained = None;
    for way in [Way::Rust, Way::Mixed] {
        let other = way.run(runner, program, seed)?;
        let Some(difference) = by_c.difference(&other) else {
            continue;
        };
        explained = explain(program, &by_c, &other);
        if explained.is_some() {
            continue;
        }
        // Is it the implementations, or time?
        let again = Way::C.run(runner, program, seed)?;
        let way = match by_c.difference(&again) {
            Some(_) => Way::C,
            None => way,
        };
        return Ok((by_c, Compared::Differs(way, difference)));
    }
    Ok((by_c, Compared::Same(explained)))
}

/// Runs a program three times and compares; looks for the smallest that shows a difference, of
/// `budget` others.
pub fn check<R: Runner>(
    runner: &mut R,
    program: &Program,
    seed: u64,
    budget: usize,
) -> Result<Verdict> {
    let mut tried = 0;
    loop {
        let (record, compared) = compare(runner, program, seed)?;
        tried += 1;
        let (explained, finding) = match compared {
            Compared::Same(explained) => (explained, None),
            Compared::Differs(Way::C, difference) if tried < TRIES => {
                println!("C differs from itself, seed {seed}, to be tried again: {difference}");
                continue;
            }
            Compared::Differs(way, difference) => {
                println!("{}: {difference}", way.kind());
                if budget > 0 {
                    println!("looking for the smallest program that shows it …");
                }
                let finding = smallest(runner, program, seed, way, difference, budget);
                (None, Some(finding))
            }
        };
        return Ok(Verdict {
            record,
            explained,
            unsteady: tried > 1,
            finding,
        });
    }
}

/// Looks for the smallest program that differs in the same way.
fn smallest<R: Runner>(
    runner: &mut R,
    program: &Program,
    seed: u64,
    way: Way,
    difference: Difference,
    budget: usize,
) -> Finding {
    let mut last = difference.clone();
    let (program, tried) = shrink(program, budget, |candidate| {
        let by_c = runner.run(candidate, &|_| Server::C);
        let other = way.run(runner, candidate, seed);
        let (Ok(by_c), Ok(other)) = (by_c, other) else {
            return false;
        };
        match by_c.difference(&other) {
            Some(now)
                if now.kind == difference.kind && explain(candidate, &by_c, &other).is_none() =>
            {
                last = now;
                true
            }
            _ => false,
        }
    });
    Finding {
        kind: way.kind(),
        difference: last,
        program,
        tried,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Call;
    use crate::program::Data;
    use crate::program::Hold;
    use crate::program::Step;
    use crate::record::StepRecord;
    use crate::trace::Name;
    use crate::trace::Named;

    /// Answers each step by its number, and by how much more `wrong` says.
    struct Fake {
        wrong: fn(server: Server, id: u32, runs: i64) -> i64,
        runs: i64,
    }

    impl Runner for Fake {
        fn run(&mut self, program: &Program, server: &dyn Fn(usize) -> Server) -> Result<Record> {
            self.runs += 1;
            let steps = program.steps.iter().enumerate().map(|(index, step)| {
                let Call::Tdx { id, .. } = step.call else {
                    panic!("{step:?}");
                };
                let wrong = (self.wrong)(server(index), id, self.runs);
                StepRecord {
                    value: i64::from(id) + wrong,
                    ..StepRecord::default()
                }
            });
            Ok(Record {
                steps: steps.collect(),
                ..Record::default()
            })
        }
    }

    fn verdict(wrong: fn(Server, u32, i64) -> i64) -> Verdict {
        let steps = (0..12)
            .map(|id| Step::new(Call::tdx(On::Vm, id, Data::Value(0))))
            .collect();
        check(
            &mut Fake { wrong, runs: 0 },
            &Program { steps },
            7,
            SHRINK_BUDGET,
        )
        .unwrap()
    }

    #[test]
    fn agreement_is_no_finding() {
        assert!(verdict(|_, _, _| 0).finding.is_none());
        assert!(verdict(|_, id, _| i64::from(id == 3)).finding.is_none());
    }

    #[test]
    fn a_difference_is_found_and_made_small() {
        let found = verdict(|server, id, _| i64::from(server == Server::Rust && id == 9));
        let finding = found.finding.unwrap();
        assert_eq!(finding.kind, "C and Rust differ");
        assert_eq!(finding.program.steps.len(), 1);
        assert_eq!(finding.difference.to_string(), "step 1: result: 9 | 10");
    }

    #[test]
    fn what_is_due_to_time_is_said_to_be() {
        let found = verdict(|_, id, runs| if id == 2 { runs } else { 0 });
        assert_eq!(found.finding.unwrap().kind, "C differs from itself");
        // Not if it does not come again.
        let found = verdict(|_, id, runs| if id == 2 && runs < 4 { runs } else { 0 });
        assert!(found.unsteady && found.finding.is_none());
        assert!(!verdict(|_, _, _| 0).unsteady);
    }

    fn limited(left: &str, errno: i32) -> (Program, Record) {
        let program = Program {
            steps: vec![Step::new(Call::Limit { tds: 0 })],
        };
        let record = Record {
            steps: vec![StepRecord {
                errno,
                ..StepRecord::default()
            }],
            left: left.to_string(),
            ..Record::default()
        };
        (program, record)
    }

    #[test]
    fn only_the_charge_that_c_gives_back_is_explained() {
        let (program, by_c) = limited("-1 charges for TDs", libc::EBUSY);
        let (_, by_rust) = limited("", libc::EBUSY);
        assert!(explain(&program, &by_c, &by_rust).is_some());
        // The other way round, more than one, something else left, another result, no limit.
        assert!(explain(&program, &by_rust, &by_c).is_none());
        let (_, two) = limited("-2 charges for TDs", libc::EBUSY);
        assert!(explain(&program, &two, &by_rust).is_none());
        let (_, page) = limited("pages_TDR 1 (was 0)", libc::EBUSY);
        assert!(explain(&program, &by_c, &page).is_none());
        let (_, other) = limited("", libc::EIO);
        assert!(explain(&program, &by_c, &other).is_none());
        let none = Program::default();
        assert!(explain(&none, &by_c, &by_rust).is_none());
    }

    #[test]
    fn only_the_flush_after_finalization_is_explained() {
        let seamcall = |leaf, status| Named {
            leaf,
            version: 0,
            operands: [Name::Object; 4],
            status,
        };
        let finalize = Call::tdx(On::Vm, KVM_TDX_FINALIZE_VM, Data::Value(0));
        let get_cpuid = |on| Call::tdx(on, KVM_TDX_GET_CPUID, Data::Value(0));
        let program = |other| {
            let mut steps = vec![Step::new(finalize.clone()), Step::new(other)];
            steps[0].hold = Some(Hold::Seamcall(17));
            steps[1].thread = 1;
            Program { steps }
        };
        let record = |errno, seamcalls: &[(u16, u64)], teardown: &[(u16, u64)]| {
            let named = |list: &[(u16, u64)]| list.iter().map(|(l, s)| seamcall(*l, *s)).collect();
            let mut steps = vec![StepRecord::default(), StepRecord::default()];
            steps[0].seamcalls = named(seamcalls);
            steps[1].errno = errno;
            Record {
                steps,
                teardown: named(teardown),
                ..Record::default()
            }
        };
        let races = program(get_cpuid(On::Vcpu(0)));
        let einval = libc::EINVAL;
        let by_c = record(einval, &[(17, 0)], &[(VP_FLUSH, 0), (19, 0)]);
        let by_rust = record(einval, &[(17, 0), (VP_FLUSH, 0)], &[(VP_FLUSH, 7), (19, 0)]);
        assert!(by_c.difference(&by_rust).is_some());
        assert!(explain(&races, &by_c, &by_rust).is_some());
        // Another leaf, another status, another result, another call, one after the other.
        let other = record(einval, &[(17, 0), (22, 0)], &[(VP_FLUSH, 0), (19, 0)]);
        assert!(explain(&races, &by_c, &other).is_none());
        let other = record(einval, &[(17, 0), (VP_FLUSH, 0)], &[(VP_FLUSH, 0), (19, 1)]);
        assert!(explain(&races, &by_c, &other).is_none());
        let other = record(0, &[(17, 0), (VP_FLUSH, 0)], &[(VP_FLUSH, 7), (19, 0)]);
        assert!(explain(&races, &by_c, &other).is_none());
        assert!(explain(&races, &other, &other).is_none());
        assert!(explain(&program(get_cpuid(On::Vm)), &by_c, &by_rust).is_none());
        assert!(explain(&program(finalize.clone()), &by_c, &by_rust).is_none());
        let mut after = races.clone();
        after.steps[0].hold = None;
        assert!(explain(&after, &by_c, &by_rust).is_none());
    }

    #[test]
    fn only_a_flush_that_comes_sooner_is_explained() {
        let seamcall = |(leaf, status): &(u16, u64)| Named {
            leaf: *leaf,
            version: 0,
            operands: [Name::Object; 4],
            status: *status,
        };
        let program = |command| {
            let call = |on, id| Call::tdx(on, id, Data::Value(0));
            let mut steps = vec![
                Step::new(call(On::Vcpu(1), KVM_TDX_GET_CPUID)),
                Step::new(call(On::Vcpu(0), command)),
            ];
            steps[0].hold = Some(Hold::Seamcall(11));
            steps[1].thread = 1;
            Program { steps }
        };
        let record = |seamcalls: &[(u16, u64)]| {
            let mut steps = vec![StepRecord::default(), StepRecord::default()];
            steps[0].seamcalls = seamcalls.iter().map(seamcall).collect();
            Record {
                steps,
                ..Record::default()
            }
        };
        let races = program(KVM_TDX_GET_CPUID);
        let by_c = record(&[(11, 0), (11, 1), (VP_FLUSH, 0)]);
        let by_rust = record(&[(11, 0), (VP_FLUSH, 0), (11, 1)]);
        assert!(explain(&races, &by_c, &by_rust).is_some());
        // Another call, the same vCPU, one after the other.
        assert!(explain(&program(KVM_TDX_FINALIZE_VM), &by_c, &by_rust).is_none());
        let mut same = races.clone();
        same.steps[0].call = same.steps[1].call.clone();
        assert!(explain(&same, &by_c, &by_rust).is_none());
        let mut after = races.clone();
        after.steps[0].hold = None;
        assert!(explain(&after, &by_c, &by_rust).is_none());
        // No flush, one that fails, one more, other SEAMCALLs that come in another order.
        for other in [
            &[(11, 0), (11, 1)][..],
            &[(11, 0), (VP_FLUSH, 7), (11, 1)],
            &[(11, 0), (VP_FLUSH, 0), (VP_FLUSH, 0), (11, 1)],
            &[(11, 1), (VP_FLUSH, 0), (11, 0)],
        ] {
            assert!(explain(&races, &by_c, &record(other)).is_none());
        }
    }

    #[test]
    fn both_serve_when_mixed() {
        for seed in 0..50 {
            let rust = (0..30).filter(|step| mixed(seed)(*step) == Server::Rust);
            assert!((1..30).contains(&rust.count()));
        }
    }
}
