// SPDX-License-Identifier: GPL-2.0

//! What a program led to, and how two runs of it differ.

use std::fmt;

use tdx_uapi::errno_name;

use crate::memory::Written;
use crate::trace::Named;

/// What one step led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StepRecord {
    /// What the call returned; a file descriptor is a 0.
    pub value: i64,
    /// 0 if the call succeeded.
    pub errno: i32,
    /// What the kernel changed in the structure and around it.
    pub written: Vec<Written>,
    /// What it changed in `struct kvm_tdx_cmd`, `hw_error` for one.
    pub command_written: Vec<Written>,
    /// The SEAMCALLs. Those of two steps at once are all in the record of the first, those of
    /// each processor together.
    pub seamcalls: Vec<Named>,
    /// Whether the call got to where it was to be held, and what the other one did meanwhile.
    pub held: Option<Meanwhile>,
}

/// What became of a call that was made while another one was held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Meanwhile {
    /// It was not made: nothing held the first one.
    NotHeld,
    /// It ended.
    Ended,
    /// It waited for the first one.
    Blocked,
    /// It ended, and was KVM_TDX_GET_CPUID: that waits for all vCPUs in C, for its own in Rust.
    Passed,
    /// It was made at the same time, and neither had to wait to be told.
    AtOnce,
}

impl Meanwhile {
    /// Whether the other implementation may do as `other` says where C does as `self` says.
    fn allows(self, other: Self) -> bool {
        self == other || (self, other) == (Self::Blocked, Self::Passed)
    }
}

/// What a program led to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub steps: Vec<StepRecord>,
    /// What the kernel changed where no structure had been put.
    pub elsewhere: Vec<Written>,
    /// The TD as the module sees it at the end: states, vCPUs, pages, MRTD.
    pub td: String,
    /// The SEAMCALLs that took it down.
    pub teardown: Vec<Named>,
    /// What is left of it in the module and in the control group.
    pub left: String,
}

/// The first difference of two records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The step, or none for what comes after the last.
    pub step: Option<usize>,
    /// What kind of thing differs: a name that is the same for like differences.
    pub kind: &'static str,
    pub first: String,
    pub second: String,
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.step {
            Some(step) => write!(f, "step {}: ", step + 1)?,
            None => f.write_str("at the end: ")?,
        }
        write!(f, "{}: {} | {}", self.kind, self.first, self.second)
    }
}

/// A result as people write it.
pub fn result(value: i64, errno: i32) -> String {
    match errno {
        0 => value.to_string(),
        errno => errno_name(errno).map_or_else(|| format!("errno {errno}"), str::to_string),
    }
}

/// What was written, and where, as people read it.
pub fn bytes(written: &[Written]) -> String {
    if written.is_empty() {
        return "nothing".to_string();
    }
    let shown = written.iter().take(8).map(|Written { offset, bytes }| {
        let hex: String = bytes
            .iter()
            .take(16)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let more = if bytes.len() > 16 { "…" } else { "" };
        format!("{} at {offset:#x}: {hex}{more}", bytes.len())
    });
    let more = if written.len() > 8 { " …" } else { "" };
    shown.collect::<Vec<_>>().join(", ") + more
}

/// The first places in which two lists of writes differ.
fn differing(a: &[Written], b: &[Written]) -> (String, String) {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let (a, b) = (&a[same..], &b[same..]);
    // Of much that was written to the same place, from the first byte that differs.
    match (a.first(), b.first()) {
        (Some(x), Some(y)) if x.offset == y.offset => {
            let common = x.bytes.iter().zip(&y.bytes).take_while(|(x, y)| x == y);
            let skip = common.count();
            let rest = |list: &[Written]| {
                let mut list = list.to_vec();
                list[0].offset += skip as i64;
                list[0].bytes.drain(..skip);
                list.retain(|written| !written.bytes.is_empty());
                bytes(&list)
            };
            (rest(a), rest(b))
        }
        _ => (bytes(a), bytes(b)),
    }
}

fn seamcalls(a: &[Named], b: &[Named]) -> (String, String) {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    let show = |list: &[Named]| match list.get(same) {
        Some(seamcall) => format!("number {}: {seamcall}", same + 1),
        None => format!("only {}", list.len()),
    };
    (show(a), show(b))
}

impl StepRecord {
    fn difference(&self, other: &Self) -> Option<(&'static str, String, String)> {
        if (self.value, self.errno) != (other.value, other.errno) {
            return Some((
                "result",
                result(self.value, self.errno),
                result(other.value, other.errno),
            ));
        }
        let is_allowed = match (self.held, other.held) {
            (Some(by_c), Some(other)) => by_c.allows(other),
            (by_c, other) => by_c == other,
        };
        if !is_allowed {
            return Some((
                "held",
                format!("{:?}", self.held),
                format!("{:?}", other.held),
            ));
        }
        if self.command_written != other.command_written {
            let (a, b) = differing(&self.command_written, &other.command_written);
            return Some(("written to the command", a, b));
        }
        if self.written != other.written {
            let (a, b) = differing(&self.written, &other.written);
            return Some(("written", a, b));
        }
        if self.seamcalls != other.seamcalls {
            let (a, b) = seamcalls(&self.seamcalls, &other.seamcalls);
            return Some(("SEAMCALLs", a, b));
        }
        None
    }
}

impl Record {
    /// Finds the first difference to another run of the same program. This one is C's.
    pub fn difference(&self, other: &Self) -> Option<Difference> {
        for (step, (a, b)) in self.steps.iter().zip(&other.steps).enumerate() {
            if let Some((kind, first, second)) = a.difference(b) {
                return Some(Difference {
                    step: Some(step),
                    kind,
                    first,
                    second,
                });
            }
        }
        let at_end = |kind, first: &str, second: &str| {
            Some(Difference {
                step: None,
                kind,
                first: first.to_string(),
                second: second.to_string(),
            })
        };
        if self.steps.len() != other.steps.len() {
            let count = |record: &Self| record.steps.len().to_string();
            return at_end("number of steps", &count(self), &count(other));
        }
        if self.elsewhere != other.elsewhere {
            let (a, b) = differing(&self.elsewhere, &other.elsewhere);
            return at_end("written elsewhere", &a, &b);
        }
        if self.td != other.td {
            return at_end("the TD", &self.td, &other.td);
        }
        if self.teardown != other.teardown {
            let (a, b) = seamcalls(&self.teardown, &other.teardown);
            return at_end("SEAMCALLs of the teardown", &a, &b);
        }
        if self.left != other.left {
            return at_end("left over", &self.left, &other.left);
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_of_a_record_counts() {
        let step = StepRecord {
            written: vec![Written {
                offset: 8,
                bytes: vec![1, 2],
            }],
            ..StepRecord::default()
        };
        let record = Record {
            steps: vec![StepRecord::default(), step],
            ..Record::default()
        };
        assert_eq!(record.difference(&record), None);

        let kinds = |change: &dyn Fn(&mut Record)| {
            let mut other = record.clone();
            change(&mut other);
            let difference = record.difference(&other).unwrap();
            (difference.step, difference.kind)
        };
        assert_eq!(kinds(&|r| r.steps[1].errno = 5), (Some(1), "result"));
        assert_eq!(kinds(&|r| r.steps[0].value = 5), (Some(0), "result"));
        assert_eq!(
            kinds(&|r| r.steps[1].written[0].bytes[1] = 9),
            (Some(1), "written")
        );
        assert_eq!(
            kinds(&|r| r.steps[0].command_written = r.steps[1].written.clone()),
            (Some(0), "written to the command")
        );
        assert_eq!(
            kinds(&|r| r.steps[0].held = Some(Meanwhile::Ended)),
            (Some(0), "held")
        );
        assert_eq!(
            kinds(&|r| r.steps[0].held = Some(Meanwhile::Passed)),
            (Some(0), "held")
        );
        assert_eq!(
            kinds(&|r| r.elsewhere = r.steps[1].written.clone()),
            (None, "written elsewhere")
        );
        assert_eq!(kinds(&|r| r.td.push('x')), (None, "the TD"));
        assert_eq!(kinds(&|r| r.left.push('x')), (None, "left over"));
        assert_eq!(
            kinds(&|r| {
                r.steps.pop();
            }),
            (None, "number of steps")
        );
    }

    #[test]
    fn what_differs_of_much_is_shown() {
        let written = |last: u8| {
            let mut bytes = vec![0; 64];
            bytes[40] = last;
            [Written { offset: 0, bytes }]
        };
        let (one, two) = differing(&written(1), &written(2));
        assert!(one.starts_with("24 at 0x28: 0100") && two.starts_with("24 at 0x28: 0200"));
        let (one, none) = differing(&written(1), &[]);
        assert!(one.starts_with("64 at 0x0: ") && none == "nothing");
        let [mut short] = written(1);
        short.bytes.truncate(8);
        let (long, short) = differing(&written(1), &[short]);
        assert!(long.starts_with("56 at 0x8: ") && short == "nothing");
    }

    #[test]
    fn only_get_cpuid_may_pass_and_only_in_rust() {
        let record = |held| Record {
            steps: vec![StepRecord {
                held: Some(held),
                ..StepRecord::default()
            }],
            ..Record::default()
        };
        let [blocked, passed, ended] =
            [Meanwhile::Blocked, Meanwhile::Passed, Meanwhile::Ended].map(record);
        assert_eq!(blocked.difference(&passed), None);
        assert!(passed.difference(&blocked).is_some());
        assert!(blocked.difference(&ended).is_some());
        assert!(ended.difference(&blocked).is_some());
    }
}
