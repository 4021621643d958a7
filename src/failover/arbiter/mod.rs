//! A voter with memory: what one node asks of an arbiter, and how long each answer counts.
//!
//! # How it works
//! For each unit (an address, or a group of them) the arbiter keeps one vote, which one node has at a time. It goes with a lease: a
//! time after which the arbiter takes it back by itself, and never before.
//!
//! ```text
//!  we ask (number 7)        the arbiter grants lease 7                         lease 7 ends, here at the earliest
//!        |-----------------------------|--------------------- ttl ---------------------|
//!        |----------- the vote counts: ttl - margin -----------|
//!        |---- renew ----| we ask again (number 8)
//! ```
//!
//! * **A vote counts from before it was asked for**, on our own clock. So no delay of the question, of the answer or within the
//!   arbiter makes it count too long; what has to be trusted is that clocks run equally fast, within one per cent.
//! * **Every question has a number and a lease of its own**, and the newest wins: a question that was delayed never shortens
//!   what a later one has got. Leases are not kept alive: etcd's leader renews a lease from memory, and one that has been
//!   deposed and does not know it would renew what its successor ends. Granting a lease and giving it the vote are decided
//!   by a majority of the arbiter's members.
//! * **An answer that comes late is as good**, for what is left of its time. One that never comes changes nothing.
//! * **A vote is returned** when it is not wanted any more: everything up to a number is void then, here first and at the arbiter
//!   after that. A return whose answer does not come is repeated until the leases must have ended.
//!
//! | view | means |
//! |---|---|
//! | [`View::Idle`] | not wanted, not had |
//! | [`View::Asking`] | wanted; not had |
//! | [`View::Granted`] | counts until then; renewed as long as it is wanted |
//! | [`View::GivingBack`] | counts no more; the arbiter may not know that yet |
//!
//! # What it never does
//! It does not know why a vote is wanted, nor what follows from having it: that is [`super::table`].

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::timers::Timers;

/// Microseconds on the caller's clock, which never goes back.
type At = u64;

/// Index of what is voted on.
pub type UnitIx = usize;

/// Questions under way at a time.
const ASKED_MAX: usize = 4;

/// How much faster or slower than another a clock may run: one part in so many.
pub const CLOCK_RATE: u32 = 100;

/// Periods and patiences.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terms {
    /// Life of a lease, whole seconds.
    pub ttl: Duration,
    /// How much sooner than the lease the vote ends here.
    pub margin: Duration,
    /// Age of a vote at which it is asked for again.
    pub renew: Duration,
    /// How long an answer is waited for before the question is put again.
    pub patience: Duration,
    /// Pause after a question that failed.
    pub pause: Duration,
    /// Pause after a vote was found to be another's.
    pub taken: Duration,
    /// How long a vote must have been unnecessary before it is returned.
    pub calm: Duration,
}

impl Terms {
    /// The set that goes with these timers.
    pub fn derive(timers: &Timers) -> Terms {
        let ttl_s = (timers.keeper_patience + Duration::from_millis(4_500))
            .as_millis()
            .div_ceil(1_000);
        let ttl = Duration::from_secs(ttl_s as u64);
        Terms {
            ttl,
            // A main process that stands still just before the end leaves the address to its keeper, which needs its patience and the
            // time to remove it.
            margin: timers.keeper_patience + ttl / CLOCK_RATE + Duration::from_millis(100),
            renew: Duration::from_secs(1),
            patience: Duration::from_millis(500),
            pause: Duration::from_millis(100),
            taken: Duration::from_millis(250),
            calm: timers.dead_after,
        }
    }

    /// How long a vote counts from the moment it was asked for.
    pub fn counts(&self) -> Duration {
        self.ttl - self.margin
    }
}

/// What is asked of the arbiter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Question {
    /// The votes on these units, with the lease of this number.
    Vote {
        /// Rises with every question.
        number: u64,
        /// The units whose votes are asked for.
        units: Vec<UnitIx>,
    },
    /// Give back what was got with questions up to this number.
    Return {
        /// Votes got by later questions stay.
        number: u64,
        /// The units whose votes are given back.
        units: Vec<UnitIx>,
        /// Leases that nothing goes with any more.
        leases: Vec<u64>,
    },
}

/// How the vote on one unit went.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It is ours, with the lease of the question.
    Granted,
    /// It is another's.
    Taken {
        /// Whose, as far as that can be read.
        by: String,
    },
    /// A later question of ours was carried out before this one.
    Superseded,
}

/// What the arbiter said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// To [`Question::Vote`].
    Voted {
        /// Number of the question.
        number: u64,
        /// How the vote on each unit of the question went.
        outcomes: Vec<(UnitIx, Outcome)>,
    },
    /// To [`Question::Return`].
    Returned {
        /// Number of the question.
        number: u64,
    },
    /// No answer to the question of this number, or none that is one; whether it was carried out is not known.
    Failed {
        /// Number of the question.
        number: u64,
        /// The failure in words for people.
        why: String,
    },
    /// The result of a look at whether it answers at all.
    Health(Result<(), String>),
}

/// What is wanted of the vote on one unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Wish {
    /// To have it: it decides.
    Have,
    /// To keep what is there for now, without asking for more.
    Keep,
    /// It is not needed: to be returned, after a while.
    Spare,
    /// It is of no use: to be returned at once.
    Drop,
}

/// One vote, as shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum View {
    /// Neither wanted nor had.
    Idle,
    /// Wanted, but not had.
    Asking {
        /// Since when it has been wanted.
        since: At,
    },
    /// Had, and counted.
    Granted {
        /// Until when it counts.
        until: At,
    },
    /// No longer counted; the arbiter may not know that yet.
    GivingBack {
        /// Since when it has not counted.
        since: At,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Ballot {
    wanted_since: Option<At>,
    spare_since: Option<At>,
    /// Number and time of the newest question that was granted; the vote counts from that time.
    granted: Option<(u64, At)>,
    /// The newest question about it.
    asked: u64,
    /// Answers to questions up to this number mean nothing any more.
    void: u64,
    /// Until then the arbiter may still have our name on it.
    owes_until: At,
    /// When what we owe was returned last, and by which number.
    returning: Option<(At, u64)>,
    /// Not asked for before.
    pause_until: At,
    taken_by: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Asked {
    number: u64,
    at: At,
    units: Vec<UnitIx>,
    answered: bool,
}

/// One node's side of all votes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Voter {
    terms: Terms,
    number: u64,
    asked: Vec<Asked>,
    ballots: Vec<Ballot>,
    /// Whether its last answer was a good one; none before the first answer.
    up: Option<bool>,
    problem: String,
}

impl Voter {
    /// Nothing asked yet.
    pub fn new(terms: Terms, units: usize) -> Voter {
        Voter {
            terms,
            number: 0,
            asked: Vec::new(),
            ballots: vec![Ballot::default(); units],
            up: None,
            problem: String::new(),
        }
    }

    /// Takes over what `old` knew; `units` gives, for each index here, the index there.
    pub fn carry(&mut self, old: &Voter, units: &[Option<UnitIx>]) {
        self.number = old.number;
        (self.up, self.problem) = (old.up, old.problem.clone());
        for (unit, then) in units.iter().enumerate() {
            let Some(was) = then.and_then(|then| old.ballots.get(then)) else {
                continue;
            };
            self.ballots[unit] = was.clone();
        }
        let forward = |then: &UnitIx| units.iter().position(|unit| *unit == Some(*then));
        self.asked = old.asked.clone();
        for asked in &mut self.asked {
            asked.units = asked.units.iter().filter_map(forward).collect();
        }
    }

    /// Leaves out some numbers.
    pub fn skip(&mut self, numbers: u64) {
        self.number += numbers;
    }

    /// The clock has not moved for so long in which time has passed: the machine was suspended.
    pub fn stood_still(&mut self, gap: u64) {
        for ballot in &mut self.ballots {
            let older = |(number, at): (u64, At)| at.checked_sub(gap).map(|at| (number, at));
            ballot.granted = ballot.granted.and_then(older);
        }
        // Answers that are under way would count from when they were asked for on a clock that has stood still.
        self.asked.clear();
    }

    /// Until when the vote on a unit counts; none, or in the past, if it does not.
    pub fn counts_until(&self, unit: UnitIx) -> Option<At> {
        let (_, asked) = self.ballots.get(unit)?.granted?;
        Some(asked + micros(self.terms.counts()))
    }

    /// Says what is wanted; [`Voter::step`] acts on it.
    pub fn wish(&mut self, now: At, unit: UnitIx, wish: Wish) {
        let counts = self.counts_until(unit).is_some_and(|until| now < until);
        let calm = micros(self.terms.calm);
        let ballot = &mut self.ballots[unit];
        let (wanted, spare) = match wish {
            Wish::Have => (Some(ballot.wanted_since.unwrap_or(now)), None),
            Wish::Keep => (None, None),
            Wish::Spare => (None, Some(ballot.spare_since.unwrap_or(now))),
            Wish::Drop => (None, Some(0)),
        };
        (ballot.wanted_since, ballot.spare_since) = (wanted, spare);
        if ballot.granted.is_some() && !counts {
            ballot.granted = None;
        }
        let returned = spare.is_some_and(|since| now >= since + calm) || wish == Wish::Drop;
        if returned && ballot.void < ballot.asked {
            ballot.granted = None;
            ballot.void = ballot.asked;
            ballot.returning = None;
            ballot.taken_by = None;
        }
    }

    /// Puts the questions that are due.
    pub fn step(&mut self, now: At, out: &mut Vec<Question>) {
        let (ttl, patience) = (micros(self.terms.ttl), micros(self.terms.patience));
        // Its lease has ended, whatever became of it; a late answer would be of no use.
        self.asked.retain(|asked| now < asked.at + ttl);
        let waited_for = |unit: UnitIx| {
            let mut young = self.asked.iter().filter(|a| !a.answered && now < a.at + patience);
            let void = self.ballots[unit].void;
            young.any(|asked| asked.number > void && asked.units.contains(&unit))
        };
        let due: Vec<UnitIx> = (0..self.ballots.len())
            .filter(|unit| self.due(now, *unit) && !waited_for(*unit))
            .collect();
        let open = self.asked.iter().filter(|a| !a.answered && now < a.at + 4 * patience);
        if !due.is_empty() && open.count() < ASKED_MAX {
            // What is asked for anyway soon goes with it: one lease for all.
            let half = micros(self.terms.renew) / 2;
            let soon = |unit: &UnitIx| {
                let ballot = &self.ballots[*unit];
                let old = ballot.granted.is_some_and(|(_, at)| now >= at + half);
                ballot.wanted_since.is_some() && old
            };
            let units: Vec<UnitIx> = (0..self.ballots.len())
                .filter(|unit| due.contains(unit) || soon(unit))
                .collect();
            self.number += 1;
            for unit in &units {
                let ballot = &mut self.ballots[*unit];
                ballot.asked = self.number;
                ballot.owes_until = now + ttl + ttl / u64::from(CLOCK_RATE);
            }
            let number = self.number;
            self.asked.push(Asked {
                number,
                at: now,
                units: units.clone(),
                answered: false,
            });
            out.push(Question::Vote { number, units });
        }
        self.give_back(now, out);
    }

    /// Whether the vote is to be asked for now.
    fn due(&self, now: At, unit: UnitIx) -> bool {
        let ballot = &self.ballots[unit];
        let old = ballot
            .granted
            .is_none_or(|(_, at)| now >= at + micros(self.terms.renew));
        ballot.wanted_since.is_some() && old && now >= ballot.pause_until
    }

    /// Whether the arbiter may have our name on it although we have given the vote up.
    fn owes(&self, now: At, unit: UnitIx) -> bool {
        let ballot = &self.ballots[unit];
        ballot.wanted_since.is_none() && ballot.asked <= ballot.void && now < ballot.owes_until
    }

    fn give_back(&mut self, now: At, out: &mut Vec<Question>) {
        let patience = micros(self.terms.patience);
        let units: Vec<UnitIx> = (0..self.ballots.len())
            .filter(|unit| {
                let again = self.ballots[*unit].returning.is_none_or(|(at, _)| now >= at + patience);
                self.owes(now, *unit) && again
            })
            .collect();
        if units.is_empty() {
            return;
        }
        // Leases on which nobody counts any more, nor will when an answer comes.
        let void = |asked: &&Asked| asked.units.iter().all(|unit| asked.number <= self.ballots[*unit].void);
        let leases = self.asked.iter().filter(void).map(|asked| asked.number).collect();
        let number = self.number;
        for unit in &units {
            self.ballots[*unit].returning = Some((now, number));
        }
        out.push(Question::Return { number, units, leases });
    }

    /// Takes an answer.
    pub fn answer(&mut self, now: At, answer: Answer) {
        match answer {
            Answer::Voted { number, outcomes } => {
                self.seems(Ok(()));
                let Some(asked) = self.asked.iter_mut().find(|asked| asked.number == number) else {
                    return;
                };
                asked.answered = true;
                let at = asked.at;
                for (unit, outcome) in outcomes {
                    self.voted(now, number, at, unit, outcome);
                }
            }
            Answer::Returned { number } => {
                self.seems(Ok(()));
                for ballot in &mut self.ballots {
                    if ballot.returning.is_some_and(|(_, by)| by == number) && ballot.void <= number {
                        ballot.owes_until = 0;
                    }
                }
            }
            Answer::Failed { number, why } => {
                self.seems(Err(why));
                let pause = now + micros(self.terms.pause);
                let Some(asked) = self.asked.iter_mut().find(|asked| asked.number == number) else {
                    return;
                };
                asked.answered = true;
                for unit in asked.units.clone() {
                    self.ballots[unit].pause_until = pause;
                }
            }
            Answer::Health(health) => self.seems(health),
        }
    }

    fn voted(&mut self, now: At, number: u64, at: At, unit: UnitIx, outcome: Outcome) {
        let until = at + micros(self.terms.counts());
        let Some(ballot) = self.ballots.get_mut(unit).filter(|ballot| number > ballot.void) else {
            return;
        };
        match outcome {
            Outcome::Granted => {
                ballot.taken_by = None;
                let newer = ballot.granted.is_none_or(|(known, _)| known < number);
                if newer && now < until {
                    ballot.granted = Some((number, at));
                }
            }
            Outcome::Taken { .. } if ballot.granted.is_some_and(|(known, _)| known > number) => {}
            Outcome::Taken { by } => {
                // Had we counted on an earlier one, somebody has meddled with the store, and nothing that was promised holds.
                ballot.granted = None;
                ballot.taken_by = Some(by);
                ballot.pause_until = now + micros(self.terms.taken);
            }
            Outcome::Superseded => {}
        }
    }

    fn seems(&mut self, how: Result<(), String>) {
        self.up = Some(how.is_ok());
        self.problem = how.err().unwrap_or_default();
    }

    /// When [`Voter::step`] has something to do, or a vote ends.
    pub fn deadline(&self, now: At) -> Option<At> {
        let patience = micros(self.terms.patience);
        let mut next: Option<At> = None;
        let mut consider = |at: At| {
            if at > now {
                next = Some(next.map_or(at, |next: At| next.min(at)));
            }
        };
        for (unit, ballot) in self.ballots.iter().enumerate() {
            if let Some((_, at)) = ballot.granted {
                consider(at + micros(self.terms.counts()));
                consider(at + micros(self.terms.renew));
            }
            if let Some(since) = ballot.spare_since.filter(|_| ballot.granted.is_some()) {
                consider(since + micros(self.terms.calm));
            }
            if ballot.wanted_since.is_some() {
                consider(ballot.pause_until);
            }
            if let Some((at, _)) = ballot.returning.filter(|_| self.owes(now, unit)) {
                consider(at + patience);
            }
        }
        for asked in self.asked.iter().filter(|asked| !asked.answered) {
            consider(asked.at + patience);
            consider(asked.at + 4 * patience);
        }
        next
    }

    /// The vote on one unit, as shown.
    pub fn view(&self, now: At, unit: UnitIx) -> View {
        let ballot = &self.ballots[unit];
        match (self.counts_until(unit), ballot.wanted_since) {
            (Some(until), _) if now < until => View::Granted { until },
            (_, Some(since)) => View::Asking { since },
            _ if self.owes(now, unit) => View::GivingBack {
                since: ballot.returning.map_or(now, |(at, _)| at),
            },
            _ => View::Idle,
        }
    }

    /// Who has the vote that we want, as far as that is known.
    pub fn taken_by(&self, unit: UnitIx) -> Option<&str> {
        self.ballots[unit].taken_by.as_deref()
    }

    /// Votes that count now.
    pub fn votes(&self, now: At) -> usize {
        let counts = |unit: &UnitIx| self.counts_until(*unit).is_some_and(|until| now < until);
        (0..self.ballots.len()).filter(counts).count()
    }

    /// Whether it answered when it was asked last, else why not; none before the first answer.
    pub fn up(&self) -> Option<Result<(), &str>> {
        self.up.map(|up| if up { Ok(()) } else { Err(self.problem.as_str()) })
    }

    /// Periods and patiences.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }
}

fn micros(d: Duration) -> u64 {
    d.as_micros() as u64
}

#[cfg(test)]
mod tests;
