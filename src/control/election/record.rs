//! The last inputs of the machine, kept so that an incident replays as a unit test.
//!
//! A recording is the machine as it was, and everything it was told since. [`Recording::replay`] tells it again.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::failover::table::Table;
use crate::failover::words::{Action, Input};

/// Inputs after which the older half of the recording is dropped.
const HALF: usize = 512;

/// A machine and its inputs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recording {
    /// The machine before the first input.
    pub base: Table,
    /// The time of its last step.
    pub from: Duration,
    /// Time, and the input.
    pub inputs: Vec<(Duration, Input)>,
}

/// Keeps the last 512 to 1,024 inputs.
pub struct Recorder {
    began: Instant,
    older: Option<Recording>,
    newer: Recording,
}

impl Recorder {
    /// Begins with the machine as it is.
    pub fn new(now: Instant, table: &Table) -> Recorder {
        Recorder {
            began: table.last_step().min(now),
            older: None,
            newer: Recording {
                base: table.clone(),
                from: Duration::ZERO,
                inputs: Vec::new(),
            },
        }
    }

    /// To be called before each step.
    pub fn record(&mut self, now: Instant, table: &Table, input: &Input) {
        if self.newer.inputs.len() >= HALF {
            let next = Recording {
                base: table.clone(),
                from: table.last_step().saturating_duration_since(self.began),
                inputs: Vec::with_capacity(HALF),
            };
            self.older = Some(std::mem::replace(&mut self.newer, next));
        }
        let at = now.saturating_duration_since(self.began);
        self.newer.inputs.push((at, input.clone()));
    }

    /// Everything that is kept.
    pub fn recording(&self) -> Recording {
        match &self.older {
            None => self.newer.clone(),
            Some(older) => {
                let mut all = older.clone();
                all.inputs.extend(self.newer.inputs.iter().cloned());
                all
            }
        }
    }
}

impl Recording {
    /// The record as one line of JSON, as the log has it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Steps the machine through its inputs again; returns it with all its actions.
    pub fn replay(&self) -> (Table, Vec<Action>) {
        let now = Instant::now();
        let mut table = self.base.clone().resume(now);
        let mut actions = Vec::new();
        for (at, input) in &self.inputs {
            table.step(now + (*at - self.from), input.clone(), &mut actions);
        }
        (table, actions)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failover::timers::Timers;
    use crate::failover::words::{Holders, Local, Rule, Setup};

    /// What is written down and read back does the same again.
    #[test]
    fn a_recording_replays() {
        let ms = Duration::from_millis;
        let setup = Setup {
            me: 0,
            names: vec!["a".into(), "b".into()],
            witnesses: 0,
            quorum: 1,
            timers: Timers::derive(ms(50), ms(250)),
            startup_delay: ms(0),
            boot: 1,
            tracks: vec![],
            arbiter: None,
            vips: vec![Rule {
                hold: Holders::One,
                prefer: vec![0, 1],
                preempt: true,
                preempt_delay: ms(0),
                requires: vec![],
                group: None,
            }],
        };
        let start = Instant::now();
        let mut table = Table::new(start, setup);
        let mut recorder = Recorder::new(start, &table);
        let mut actions = Vec::new();
        let mut since_base = 0;
        for i in 0..3 * HALF as u64 {
            let input = match i {
                1 => Input::Local(Local {
                    serving: true,
                    ..Local::default()
                }),
                _ => Input::Tick,
            };
            let now = start + ms(10 * i + i % 3);
            recorder.record(now, &table, &input);
            if i == HALF as u64 {
                since_base = actions.len();
            }
            table.step(now, input, &mut actions);
        }
        let json = recorder.recording().to_json();
        let read: Recording = serde_json::from_str(&json).unwrap();
        assert_eq!(read.inputs.len(), 2 * HALF);
        let (again, replayed) = read.replay();
        assert_eq!(replayed, actions[since_base..]);
        assert_eq!(again.claims(), table.claims());
    }
}
