// SPDX-License-Identifier: GPL-2.0

//! That nothing in a recording is passed silently.

use std::{
    fs,
    path::PathBuf, //
};
use tdx_emulator_host::golden::{
    self,
    Results, //
};

/// Runs one scenario with these steps, which the name tells from others.
fn run(name: &str, steps: &str) -> Results {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).unwrap();
    let pages = r#"{"P0": "0x40200000", "P1": "0x40201000"}"#;
    let scenario =
        format!(r#"{{"name": "{name}", "setup": "std1", "pages": {pages}, "steps": [{steps}]}}"#);
    fs::write(folder.join("one.jsonl"), scenario.replace('\n', " ")).unwrap();
    golden::run(&folder).unwrap()
}

const CREATE: &str = r#"{"leaf": "TDH.MNG.CREATE", "n": 9,
    "in": {"rcx": "0x40200000", "rdx": "0x21"}, "out": {"rax": "0x0"},
    "expect": {"pamt": {"P0": ["TDR", "0x0"]}, "td": {"P0": {"lifecycle": 0}}}}"#;
const TRACK: &str = r#"{"leaf": "TDH.MEM.TRACK", "n": 38,
    "in": {"rcx": "0x40200000"}, "out": {"rax": "0x8000081000000000"}}"#;

#[test]
fn equal_and_different() {
    let results = run("equal", &format!("{CREATE}, {TRACK}"));
    assert_eq!((results.total().equal, results.total().different), (2, 0));
    for (name, from, to) in [
        ("status", "0x8000081000000000", "0x8000081000000001"),
        ("state", r#""lifecycle": 0"#, r#""lifecycle": 1"#),
        ("page", r#""TDR", "0x0""#, r#""NDA", "0x0""#),
        ("register", r#""out": {"#, r#""out": {"r9": "0x1", "#),
    ] {
        let steps = format!("{CREATE}, {TRACK}").replacen(from, to, 1);
        let results = run(name, &steps);
        assert_eq!(results.total().different, 1, "{name}");
        assert_eq!(results.linux_differences(), 1, "{name}");
        assert_eq!(results.differences.len(), 1, "{name}");
    }
}

#[test]
fn what_is_not_understood_is_counted() {
    let event = r#"{"env": "the moon is full"}"#;
    let results = run("event", &format!("{CREATE}, {event}, {TRACK}"));
    let total = results.total();
    assert_eq!((total.equal, total.after, total.different), (1, 1, 0));
    assert_eq!((results.events, results.not_understood.len()), (1, 1));

    let hold = r#""hold": [{"obj": "door"}], "in""#;
    let locked = TRACK.replacen(r#""in""#, hold, 1);
    let results = run("lock", &format!("{CREATE}, {locked}, {TRACK}"));
    let total = results.total();
    assert_eq!((total.steps, total.equal), (3, 1));
    assert_eq!((total.incomplete, total.after), (1, 1));
    assert!(results.not_understood[0].contains("door"));
}

#[test]
fn what_is_not_modelled_is_counted() {
    let read = |rax: &str, expect: &str| {
        format!(
            r#"{{"leaf": "TDH.MEM.RD", "n": 12, "in": {{"rcx": "0x0", "rdx": "0x40200000"}},
                "out": {{"rax": "{rax}"}}, "expect": {{{expect}}}}}"#
        )
    };
    let fails = "0x8000081000000000";
    // It failed, and what is recorded of the state is so here too.
    let same = r#""pamt": {"P1": ["NDA", "0x0"]}"#;
    let results = run("same", &format!("{CREATE}, {}, {TRACK}", read(fails, same)));
    let total = results.total();
    assert_eq!((total.equal, total.not_modelled, total.after), (2, 1, 0));
    // It changed something, or succeeded.
    let other = r#""pamt": {"P1": ["REG", "P0"]}"#;
    for (name, step) in [("other", read(fails, other)), ("success", read("0x0", ""))] {
        let results = run(name, &format!("{CREATE}, {step}, {TRACK}"));
        let total = results.total();
        assert_eq!((total.equal, total.not_modelled, total.after), (1, 1, 1));
    }
    // What the dispatcher refuses is the same for all leaves.
    let version = read("0xc000010000000000", "").replacen(r#""n""#, r#""version": 1, "n""#, 1);
    let results = run("version", &format!("{CREATE}, {version}"));
    assert_eq!(results.total().equal, 2);
}
