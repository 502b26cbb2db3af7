// SPDX-License-Identifier: GPL-2.0

//! Depth-first search of every state that threads can come to.
//!
//! A thread stops where it takes a lock, in the midst of a SEAMCALL, and before it closes the VM. It
//! goes on only when the lock is free, so nothing is tried for the sake of an attempt that has to
//! wait. Between two such places nothing happens that another thread could notice: what they share
//! is guarded by the locks, and the ledger complains where it is not.
//!
//! Shuttle runs the threads, one at a time. An execution that comes to a state in which another one
//! has been is ended there.

use crate::ledger::{
    self,
    Ledger, //
};
use shuttle::{
    scheduler::{
        Schedule,
        Scheduler,
        Task,
        TaskId, //
    },
    Config,
    FailurePersistence,
    Runner, //
};
use std::{
    collections::HashSet,
    sync::{
        Arc,
        Mutex, //
    },
};

/// Runs `body` in as many orders as it takes to see every state. It spawns threads, as many as the
/// ledger has been told, and waits for them. Returns the number of states.
pub(crate) fn every_order(body: impl Fn() + Send + Sync + 'static) -> usize {
    let mut config = Config::new();

    config.stack_size = 0x4_0000;
    config.failure_persistence = FailurePersistence::None;

    let seen = Arc::new(Mutex::new(HashSet::new()));
    let search = DepthFirst {
        seen: seen.clone(),
        ..DepthFirst::default()
    };

    Runner::new(search, config).run(body);

    let seen = seen.lock().unwrap();

    seen.len()
}

#[derive(Default)]
struct DepthFirst {
    began: bool,
    /// The choices of this execution: which was taken, and of how many.
    choices: Vec<(usize, usize)>,
    /// How many have been made so far. Those that are left repeat what the execution before did.
    made: usize,
    /// The states in which an execution was.
    seen: Arc<Mutex<HashSet<Ledger>>>,
}

impl DepthFirst {
    fn choose(&mut self, of: usize) -> usize {
        if self.made == self.choices.len() {
            self.choices.push((0, of));
        }

        let (choice, of_before) = self.choices[self.made];

        assert_eq!(of, of_before, "an execution did not repeat");
        self.made += 1;
        choice
    }
}

impl Scheduler for DepthFirst {
    fn new_execution(&mut self) -> Option<Schedule> {
        if self.began {
            while matches!(self.choices.last(), Some((choice, of)) if choice + 1 == *of) {
                self.choices.pop();
            }
            self.choices.last_mut()?.0 += 1;
        }
        self.began = true;
        self.made = 0;
        Some(Schedule::new(0))
    }

    fn next_task(
        &mut self,
        runnable: &[&Task],
        _current: Option<TaskId>,
        _is_yielding: bool,
    ) -> Option<TaskId> {
        let ids: Vec<TaskId> = runnable.iter().map(|task| task.id()).collect();
        // The first spawns the others and waits for them. Nobody notices what else does not matter.
        let at_once = |id: &&TaskId| usize::from(**id) == 0 || ledger::has_not_begun((**id).into());

        if let Some(id) = ids.iter().find(at_once) {
            return Some(*id);
        }

        let repeats = self.made < self.choices.len();

        if !repeats && !self.seen.lock().unwrap().insert(ledger::snapshot()) {
            return None;
        }

        let able: Vec<TaskId> = ids
            .iter()
            .copied()
            .filter(|id| ledger::can_go_on((*id).into()))
            .collect();

        match able[..] {
            [] => {
                ledger::set_deadlock();
                Some(ids[0])
            }
            [only] => Some(only),
            _ => Some(able[self.choose(able.len())]),
        }
    }

    fn next_u64(&mut self) -> u64 {
        0
    }
}
