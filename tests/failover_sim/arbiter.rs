//! The arbiter between the nodes: questions that take their time, answers that are lost after what was asked is done, members
//! that stall, leaders that change, leases that end late, and nodes that cannot reach it.

use weir::failover::arbiter::{Answer, Outcome, Question};
use weir::failover::words::Input;

use crate::etcd::{Etcd, Said};
use crate::network::DELAY_MAX;
use crate::world::{Event, MS, S, ToMain, World};

/// An answer that does not come is given up after this time.
const PATIENCE: u64 = 2 * S;
/// How much later than it might a lease ends.
const LATE_MAX: u64 = 1_500 * MS;

#[derive(Default)]
pub struct Store {
    pub etcd: Etcd,
    /// Nothing is decided before then.
    pub stalled_until: u64,
    /// No member runs.
    pub down: bool,
    /// It answers as fast as it can, always.
    pub quick: bool,
    /// How much has been asked of it.
    pub asked: usize,
}

/// On its way to the store.
#[derive(Debug, Clone)]
pub enum Mail {
    /// The lease first, then the votes.
    Grant {
        from: usize,
        boot: u64,
        question: Question,
    },
    Vote {
        from: usize,
        boot: u64,
        question: Question,
    },
    Expire,
}

/// An owner is a process, not a node.
fn owner(node: usize, boot: u64) -> usize {
    node + 100 * boot as usize
}

impl World {
    fn place(&self) -> usize {
        self.nodes.len() + self.witnesses
    }

    pub fn reaches_store(&self, n: usize) -> bool {
        self.network.both_ways(self.now, n, self.place()) && !self.store.down
    }

    pub fn ask_store(&mut self, from: usize, question: Question) {
        self.store.asked += 1;
        self.note(|| format!("node {from} asks: {question:?}"));
        let boot = self.nodes[from].boot;
        if !self.reaches_store(from) {
            return self.no_answer(from, boot, &question);
        }
        let what = match &question {
            Question::Vote { .. } => Mail::Grant { from, boot, question },
            Question::Return { .. } => Mail::Vote { from, boot, question },
        };
        let when = self.now + self.hop();
        self.at(when, Event::Store(what));
    }

    /// Mostly quick; now and then it waits for a disk.
    fn hop(&mut self) -> u64 {
        match self.rng.below(20) {
            0 if !self.store.quick => self.rng.between(0, 400 * MS),
            _ => self.rng.between(100, 2 * DELAY_MAX),
        }
    }

    fn no_answer(&mut self, from: usize, boot: u64, question: &Question) {
        let (Question::Vote { number, .. } | Question::Return { number, .. }) = question;
        let answer = Answer::Failed {
            number: *number,
            why: "no answer".into(),
        };
        let soon = self.rng.chance(50) && self.store.down;
        let when = self.now + if soon { MS } else { PATIENCE };
        self.reply(from, boot, when, answer);
    }

    fn reply(&mut self, node: usize, boot: u64, when: u64, answer: Answer) {
        let what = ToMain::Arbiter(answer);
        self.at(when, Event::ToMain { node, boot, what });
    }

    pub fn store(&mut self, mail: Mail) {
        if self.now < self.store.stalled_until && !matches!(mail, Mail::Expire) {
            let when = self.store.stalled_until;
            return self.at(when, Event::Store(mail));
        }
        let now = self.now;
        self.store.etcd.expire(now);
        match mail {
            Mail::Expire => {}
            Mail::Grant { from, boot, question } => {
                let Question::Vote { number, .. } = &question else {
                    return;
                };
                if self.store.down {
                    return self.no_answer(from, boot, &question);
                }
                let late = [0, self.rng.between(0, LATE_MAX)][self.rng.below(2) as usize];
                let terms = self.setups[0][from].arbiter.as_ref().expect("somebody asks").terms;
                let ttl = terms.ttl.as_micros() as u64;
                self.store.etcd.grant(now, (owner(from, boot), *number), ttl, late);
                self.at(now + ttl + late, Event::Store(Mail::Expire));
                let mut when = now + self.hop();
                // Carried out twice, the second time late.
                if self.rng.chance(10) {
                    let again = now + self.rng.between(0, 3 * S);
                    let question = question.clone();
                    self.at(again, Event::Store(Mail::Vote { from, boot, question }));
                    when += MS;
                }
                self.at(when, Event::Store(Mail::Vote { from, boot, question }));
            }
            Mail::Vote { from, boot, question } => {
                if self.store.down {
                    return self.no_answer(from, boot, &question);
                }
                let who = owner(from, boot);
                let answer = self.carry_out(who, &question);
                let lost = self.rng.chance(3) && !self.store.quick || !self.reaches_store(from);
                match answer {
                    Some(answer) if !lost => {
                        let when = now + self.hop();
                        self.reply(from, boot, when, answer);
                    }
                    _ => self.no_answer(from, boot, &question),
                }
            }
        }
    }

    fn carry_out(&mut self, who: usize, question: &Question) -> Option<Answer> {
        match question {
            Question::Vote { number, units } => {
                let mut outcomes = Vec::new();
                for unit in units {
                    outcomes.push((
                        *unit,
                        match self.store.etcd.vote(*unit, who, *number) {
                            Said::Granted => Outcome::Granted,
                            Said::Taken { by } => Outcome::Taken {
                                by: format!("n{}", by % 100),
                            },
                            Said::Superseded => Outcome::Superseded,
                            Said::NoLease => return None,
                        },
                    ));
                }
                let number = *number;
                self.note(|| format!("store: {who} on {number}: {outcomes:?}"));
                Some(Answer::Voted { number, outcomes })
            }
            Question::Return { number, units, leases } => {
                for unit in units {
                    self.store.etcd.give_back(*unit, who, *number);
                }
                for lease in leases {
                    self.store.etcd.revoke((who, *lease));
                }
                let number = *number;
                self.note(|| format!("store: {who} returns {units:?} up to {number}"));
                Some(Answer::Returned { number })
            }
        }
    }

    pub fn new_leader(&mut self, pause: u64) {
        let now = self.now;
        self.store.etcd.expire(now);
        self.store.etcd.new_leader(now + pause);
        self.store.stalled_until = self.store.stalled_until.max(now + pause);
        self.at(now + pause, Event::Store(Mail::Expire));
        // Leases that were put off end later.
        self.at(now + pause + 7 * S, Event::Store(Mail::Expire));
    }

    /// A vote on which a node counts is its own in the store.
    pub fn check_votes(&mut self, n: usize) {
        // A machine whose clock stood still with it cannot know that its time is up.
        let Some(table) = self.nodes[n]
            .table
            .as_ref()
            .filter(|_| self.arbiter && self.nodes[n].lag == 0)
        else {
            return;
        };
        let counts = |(unit, (vip, _))| table.has_arbiters_vote(vip).then_some(unit);
        let counted: Vec<usize> = table.units().enumerate().filter_map(counts).collect();
        for unit in counted {
            let owner = self.store.etcd.owner(unit).map(|owner| owner % 100);
            if owner != Some(n) {
                self.fail(format!("node {n} counts the vote on {unit}, which is {owner:?}'s"));
            }
        }
    }

    pub fn arbiter_says(&mut self, n: usize, answer: Answer) {
        self.step(n, Input::Arbiter(answer));
    }
}
