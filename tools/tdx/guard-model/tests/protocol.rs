// SPDX-License-Identifier: GPL-2.0

//! The protocol as it is: everything that up to three threads can do at once to a VM with up to two
//! vCPUs, in every order.

use std::time::Instant;
use tdx_guard_model::{
    error::code::*,
    protocol::{
        check,
        Act,
        Scenario, //
    },
};

fn every_scenario(vcpus: usize) -> Vec<Vec<Act>> {
    let all = Act::all(vcpus);
    let mut scenarios = Vec::new();

    for (i, first) in all.iter().enumerate() {
        scenarios.push(vec![*first]);
        for (j, second) in all.iter().enumerate().skip(i) {
            scenarios.push(vec![*first, *second]);
            for third in &all[j..] {
                scenarios.push(vec![*first, *second, *third]);
            }
        }
    }
    scenarios
}

fn check_all(vcpus: usize) {
    let begin = Instant::now();
    let scenarios = every_scenario(vcpus);
    let (mut states, mut locked, mut busy, mut killed) = (0, 0, 0, 0);

    for acts in &scenarios {
        let found = check(&Scenario {
            vcpus,
            acts: acts.clone(),
            strict: true,
        });

        states += found.states;
        assert!(!found.outcomes.is_empty(), "{acts:?}");
        for outcome in &found.outcomes {
            for (act, result) in acts.iter().zip(outcome) {
                match result {
                    Ok(()) => {
                        locked += 1;
                        assert!(!matches!(act, Act::Killed(_)), "{acts:?}: {outcome:?}");
                    }
                    Err(EBUSY) => {
                        busy += 1;
                        assert!(
                            acts.contains(&Act::CreateVcpuInTwo),
                            "{acts:?}: {outcome:?}"
                        );
                    }
                    Err(EINTR) => {
                        killed += 1;
                        assert!(matches!(act, Act::Killed(_)), "{acts:?}: {outcome:?}");
                    }
                    Err(e) => assert_eq!(*e, EINVAL, "{acts:?}: {outcome:?}"),
                }
            }
        }
    }

    // Not seen unless cargo is told to show it, and then of use.
    println!(
        "{vcpus} vCPUs: {} scenarios, {states} states, {:.1} s",
        scenarios.len(),
        begin.elapsed().as_secs_f64()
    );
    assert!(states > 10_000 && locked > 0);
    // A vCPU beyond the second is refused.
    assert_eq!(busy > 0, vcpus < 2);
    assert_eq!(killed > 0, vcpus > 0);
}

#[test]
fn without_a_vcpu() {
    check_all(0);
}

#[test]
fn with_one_vcpu() {
    check_all(1);
}

#[test]
fn with_two_vcpus() {
    check_all(2);
}

/// The search is not blind: each order of those who take the guard is among what it finds.
#[test]
fn every_order_is_found() {
    let found = check(&Scenario {
        vcpus: 1,
        acts: vec![Act::InitVm, Act::FinalizeVm, Act::InitVcpu(0)],
        strict: true,
    });
    let (ok, refused) = (Ok(()), Err(EINVAL));
    let expected = [
        [ok, ok, ok],
        [ok, ok, refused],
        [ok, refused, ok],
        [ok, refused, refused],
    ];

    assert_eq!(
        found.outcomes.into_iter().collect::<Vec<_>>(),
        expected.map(Vec::from)
    );
}

/// A vCPU that stays in its guest keeps nobody who is killed.
#[test]
fn a_killed_waiter_does_not_wait_on() {
    let found = check(&Scenario {
        vcpus: 2,
        acts: vec![Act::RunUntilKilled(1), Act::Killed(1), Act::Killed(1)],
        strict: true,
    });

    assert_eq!(
        found.outcomes.into_iter().collect::<Vec<_>>(),
        [[Ok(()), Err(EINTR), Err(EINTR)]]
    );
}

/// A half-created vCPU is refused, and one that is created before or after is not.
#[test]
fn a_half_created_vcpu_is_busy() {
    let found = check(&Scenario {
        vcpus: 0,
        acts: vec![Act::FinalizeVm, Act::CreateVcpuInTwo],
        strict: true,
    });

    assert_eq!(
        found.outcomes.into_iter().collect::<Vec<_>>(),
        [[Ok(()), Ok(())], [Err(EBUSY), Ok(())]]
    );
}
