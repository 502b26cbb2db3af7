// SPDX-License-Identifier: GPL-2.0

//! Makes a program that shows something as small as it can be.

use crate::program::Call;
use crate::program::Data;
use crate::program::Hold;
use crate::program::Place;
use crate::program::Program;
use crate::program::Step;

/// Removes and simplifies what it can, as long as `shows` holds. Tries at most `budget` programs.
///
/// Returns the program and how many were tried.
pub fn shrink(
    program: &Program,
    budget: usize,
    mut shows: impl FnMut(&Program) -> bool,
) -> (Program, usize) {
    let mut smallest = program.clone();
    let mut tried = 0;
    let mut attempt = |candidate: Program, smallest: &mut Program, tried: &mut usize| {
        if *tried >= budget || candidate == *smallest {
            return false;
        }
        *tried += 1;
        let better = shows(&candidate);
        if better {
            *smallest = candidate;
        }
        better
    };
    loop {
        let before = smallest.clone();

        // Whole runs of steps, from long to short, the last ones first.
        let mut length = smallest.steps.len() / 2;
        while length > 0 {
            let mut end = smallest.steps.len();
            while end >= length && end > 0 {
                let mut candidate = smallest.clone();
                candidate.steps.drain(end - length..end);
                attempt(candidate, &mut smallest, &mut tried);
                end = (end - length).min(smallest.steps.len());
            }
            length /= 2;
        }
        for index in (0..smallest.steps.len()).rev() {
            let mut candidate = smallest.clone();
            candidate.steps.remove(index);
            attempt(candidate, &mut smallest, &mut tried);
        }
        // What is simpler about one step.
        for index in 0..smallest.steps.len() {
            // Each is simpler than the step as it is now: again, until none will do.
            while simpler(&smallest.steps[index]).into_iter().any(|simpler| {
                let mut candidate = smallest.clone();
                candidate.steps[index] = simpler;
                attempt(candidate, &mut smallest, &mut tried)
            }) {}
        }
        if smallest == before {
            return (smallest, tried);
        }
    }
}

/// Steps that do nearly the same, and need less to be said about them.
fn simpler(step: &Step) -> Vec<Step> {
    let mut found = Vec::new();
    let mut offer = |change: &dyn Fn(&mut Step)| {
        let mut simpler = step.clone();
        change(&mut simpler);
        if simpler != *step {
            found.push(simpler);
        }
    };
    offer(&|step| {
        step.thread = 0;
        step.hold = None;
    });
    offer(&|step| step.hold = None);
    offer(&|step| step.thread = 0);
    if matches!(step.hold, Some(Hold::Seamcall(_))) {
        offer(&|step| step.hold = None);
    }
    if let Call::Tdx { .. } = step.call {
        offer(&|step| {
            if let Call::Tdx { flags, .. } = &mut step.call {
                *flags = 0;
            }
        });
        offer(&|step| {
            if let Call::Tdx { hw_error, .. } = &mut step.call {
                *hw_error = 0;
            }
        });
        offer(&|step| {
            if let Call::Tdx { at, .. } = &mut step.call {
                *at = Place::Normal;
            }
        });
    }
    match step.call.data() {
        Some(Data::Value(value)) => {
            for smaller in [0, 1, value / 2] {
                if smaller < *value {
                    offer(&|step| {
                        if let Some(Data::Value(value)) = step.call.data_mut() {
                            *value = smaller;
                        }
                    });
                }
            }
        }
        Some(Data::Struct { patches, .. }) => {
            offer(&|step| {
                if let Some(Data::Struct { at, .. }) = step.call.data_mut() {
                    *at = Place::Normal;
                }
            });
            for index in 0..patches.len() {
                offer(&|step| {
                    if let Some(Data::Struct { patches, .. }) = step.call.data_mut() {
                        patches.remove(index);
                    }
                });
                for smaller in [0, 1, !0 >> (64 - 8 * u32::from(patches[index].width))] {
                    offer(&|step| {
                        if let Some(Data::Struct { patches, .. }) = step.call.data_mut() {
                            patches[index].value = smaller;
                        }
                    });
                }
            }
        }
        None => {}
    }
    // Values that are no simpler than others would be exchanged for ever.
    found.retain(|simpler| complexity(simpler) < complexity(step));
    found
}

/// How much there is to say about a step. Each simplification makes it less.
fn complexity(step: &Step) -> u64 {
    let mut sum = u64::from(step.thread) + 2 * u64::from(step.hold.is_some());
    let value = |value: u64| match value {
        0 => 0,
        1 => 1,
        u64::MAX => 2,
        value => 3 + u64::from(value.ilog2()),
    };
    if let Call::Tdx {
        flags,
        hw_error,
        at,
        ..
    } = &step.call
    {
        sum += value((*flags).into()) + value(*hw_error) + place(at);
    }
    match step.call.data() {
        Some(Data::Value(data)) => sum += value(*data),
        Some(Data::Struct { patches, at, .. }) => {
            sum += place(at);
            for patch in patches {
                let all_ones = patch.value == !0 >> (64 - 8 * u32::from(patch.width));
                sum += 10 + if all_ones { 2 } else { value(patch.value) };
            }
        }
        None => {}
    }
    sum
}

fn place(place: &Place) -> u64 {
    u64::from(*place != Place::Normal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::Kind;
    use crate::program::On;
    use crate::program::Patch;
    use crate::requests;

    fn long_program() -> Program {
        let mut steps = Vec::new();
        for id in 0..20u32 {
            let patches = (0..4)
                .map(|index| Patch {
                    offset: index * 8,
                    width: 8,
                    value: 0x1234_5678,
                })
                .collect();
            let mut step = Step::new(Call::tdx(On::Vm, id, Data::patched(Kind::InitVm, patches)));
            step.thread = (id % 2) as u8;
            steps.push(step);
            steps.push(Step::new(Call::kvm(
                On::Vm,
                requests::ENABLE_CAP,
                Kind::SplitIrqchip,
            )));
        }
        Program { steps }
    }

    fn has(program: &Program, wanted: u32) -> bool {
        program.steps.iter().any(|step| {
            matches!(&step.call, Call::Tdx { id, data: Data::Struct { patches, .. }, .. }
                if *id == wanted && patches.iter().any(|patch| patch.offset == 16))
        })
    }

    #[test]
    fn only_what_shows_it_remains() {
        let (small, tried) = shrink(&long_program(), 1000, |p| has(p, 3) && has(p, 17));
        assert_eq!(small.steps.len(), 2);
        for step in &small.steps {
            assert_eq!(step.thread, 0);
            let Some(Data::Struct { patches, .. }) = step.call.data() else {
                panic!("{step:?}");
            };
            assert_eq!(patches.len(), 1);
            assert_eq!((patches[0].offset, patches[0].value), (16, 0));
        }
        assert!(tried < 450, "{tried}");
    }

    #[test]
    fn what_was_made_simpler_stays_so() {
        let mut step = Step::new(Call::tdx(On::Vcpu(0), 2, Data::Value(0x80_9000)));
        if let Call::Tdx { at, hw_error, .. } = &mut step.call {
            (*at, *hw_error) = (Place::ReadOnly, !0);
        }
        let program = Program { steps: vec![step] };
        let (small, tried) = shrink(&program, 100, |candidate| !candidate.steps.is_empty());
        let simplest = Call::tdx(On::Vcpu(0), 2, Data::Value(0));
        assert_eq!(small.steps, [Step::new(simplest)]);
        assert!(tried < 10, "{tried}");
    }

    #[test]
    fn the_budget_is_kept() {
        let mut calls = 0;
        let (small, tried) = shrink(&long_program(), 7, |program| {
            calls += 1;
            has(program, 3)
        });
        assert_eq!((calls, tried), (7, 7));
        assert!(has(&small, 3));
    }
}
