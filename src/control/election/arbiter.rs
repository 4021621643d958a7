//! Asking the arbiter: a thread of its own, so that nothing that etcd does or leaves undone makes the election wait.
//!
//! # How a vote is kept
//! The vote on a unit is the key `PREFIX/vote/UNIT`. Its value says whose it is and which question got it: `NODE.BOOT/NUMBER`. One
//! transaction decides: the key is not there, or it is ours from an earlier question; then it is written with the lease of this
//! one. So a question that is delayed, or carried out twice, never replaces what a later one has got, and a return never removes
//! it. [`crate::failover::arbiter`] says how long an answer counts.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Sender;
use mio::Waker;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::control::etcd::wire::{Answer as Said, Compare, Decided, Is, Keys, Op, Txn};
use crate::control::etcd::{Client, Error, Settings};
use crate::failover::arbiter::{Answer, Outcome, Question, UnitIx};
use crate::sys::sched;

/// For etcd to answer; late answers are as good, for what is left of their time.
const PATIENCE: Duration = Duration::from_secs(2);
/// Period at which it is looked whether etcd is there.
const LOOK: Duration = Duration::from_secs(5);
/// The same after it was not.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Units in one transaction; etcd's own limit is 128 by default.
const UNITS_MAX: usize = 100;
/// Leases ended at once; others end by themselves.
const REVOKED_MAX: usize = 8;
/// Questions that wait for the thread; more than it may have under way anyway.
const QUEUE: usize = 64;
/// For what is under way when the thread is to end.
const FAREWELL: Duration = Duration::from_secs(1);

/// Whom to ask, and about what.
#[derive(Clone)]
pub struct Contact {
    /// How to reach etcd.
    pub settings: Settings,
    /// What all keys of this cluster of nodes begin with.
    pub prefix: String,
    /// Name of this node.
    pub node: String,
    /// Number of this process; another one for every start.
    pub boot: u64,
    /// Seconds that a lease lives.
    pub ttl_s: i64,
    /// Names of what is voted on, by index.
    pub units: Vec<String>,
}

/// The running thread. Dropping it lets it finish what is under way, without waiting for that.
pub struct Arbiter {
    questions: mpsc::Sender<Question>,
}

impl Arbiter {
    /// Starts it. Answers go into `answers`, each followed by a wake-up; what does not fit is lost, as on a network.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(contact: Contact, answers: Sender<Answer>, waker: Arc<Waker>) -> io::Result<Arbiter> {
        let (questions, inbox) = mpsc::channel(QUEUE);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let desk = Desk {
            client: Client::new(&contact.settings),
            contact,
            answers,
            waker,
            taken: Mutex::default(),
        };
        std::thread::Builder::new().name("arbiter".into()).spawn(move || {
            // Its answers are waited for where milliseconds count, and it sleeps nearly all the time.
            sched::urgent_thread();
            runtime.block_on(serve(Arc::new(desk), inbox));
            // A name that is being looked up is not waited for.
            runtime.shutdown_background();
        })?;
        Ok(Arbiter { questions })
    }

    /// Puts a question; one that does not fit is lost, as on a network.
    pub fn ask(&self, question: Question) {
        let _ = self.questions.try_send(question);
    }
}

async fn serve(desk: Arc<Desk>, mut inbox: mpsc::Receiver<Question>) {
    let mut tasks = JoinSet::new();
    let mut look = interval(LOOK_AGAIN);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // Ticks since it was looked, and what was seen.
    let (mut age, mut well) = (u32::MAX, false);
    loop {
        tokio::select! {
            question = inbox.recv() => match question {
                Some(question) => {
                    let desk = desk.clone();
                    tasks.spawn(async move { desk.carry_out(question).await });
                }
                None => break,
            },
            _ = look.tick() => {
                age = age.saturating_add(1);
                if !well || LOOK_AGAIN * age >= LOOK {
                    let health = desk.look(well).await;
                    (age, well) = (0, health.is_ok());
                    desk.tell(Answer::Health(health));
                }
            }
            Some(_) = tasks.join_next() => {}
        }
    }
    let _ = timeout(FAREWELL, async { while tasks.join_next().await.is_some() {} }).await;
}

/// What the tasks share.
struct Desk {
    client: Client,
    contact: Contact,
    answers: Sender<Answer>,
    waker: Arc<Waker>,
    /// Units whose vote was another's when it was asked for last.
    taken: Mutex<HashSet<UnitIx>>,
}

impl Desk {
    fn tell(&self, answer: Answer) {
        let _ = self.answers.try_send(answer);
        let _ = self.waker.wake();
    }

    async fn carry_out(&self, question: Question) {
        let (number, result) = match question {
            Question::Vote { number, units } => {
                let outcomes = self.vote(number, &units).await;
                (number, outcomes.map(|outcomes| Answer::Voted { number, outcomes }))
            }
            Question::Return { number, units, leases } => {
                let done = self.give_back(number, &units, &leases).await;
                (number, done.map(|()| Answer::Returned { number }))
            }
        };
        self.tell(result.unwrap_or_else(|error| Answer::Failed {
            number,
            why: error.to_string(),
        }));
    }

    async fn vote(&self, number: u64, units: &[UnitIx]) -> Result<Vec<(UnitIx, Outcome)>, Error> {
        // Reading costs etcd no disk write, a lease does: votes that were another's are looked at first.
        if units.iter().all(|unit| self.taken.lock().contains(unit)) {
            let seen = self.each(units, |key| Op::Get(Keys::One(key))).await?;
            if let Some(taken) = self.all_taken(units, &seen) {
                return Ok(taken);
            }
        }
        let lease = lease_id(self.contact.boot, number);
        self.client.grant(lease, self.contact.ttl_s, PATIENCE).await?;
        let said = self.each(units, |key| self.claim(key, number, lease)).await?;
        let mut outcomes = Vec::with_capacity(units.len());
        let mut taken = self.taken.lock();
        for (unit, answer) in units.iter().zip(said) {
            let outcome = outcome(&self.owner(), number, &answer);
            let outcome = outcome.ok_or_else(|| Error::Garbled(format!("{answer:?}")))?;
            match outcome {
                Outcome::Taken { .. } => taken.insert(*unit),
                _ => taken.remove(unit),
            };
            outcomes.push((*unit, outcome));
        }
        Ok(outcomes)
    }

    async fn give_back(&self, number: u64, units: &[UnitIx], leases: &[u64]) -> Result<(), Error> {
        let ours = |key: Vec<u8>| {
            let compare = self.ours_before(&key, number + 1);
            Op::Txn(Txn {
                compare,
                success: vec![Op::Delete(Keys::One(key))],
                failure: vec![],
            })
        };
        self.each(units, ours).await?;
        for lease in leases.iter().rev().take(REVOKED_MAX) {
            let id = lease_id(self.contact.boot, *lease);
            self.client.revoke(id, PATIENCE).await?;
        }
        Ok(())
    }

    /// Whether etcd answers, and lets us read what we would have to; unless it was `well` before, also whether it would let us write.
    async fn look(&self, well: bool) -> Result<(), String> {
        let key = self.key("-");
        let words = |error: Error| error.to_string();
        if well {
            let found = self.client.get(&Keys::One(key), PATIENCE).await;
            return found.map(|_| ()).map_err(words);
        }
        // A condition that never holds: nothing is written, but whether we might is checked first.
        let txn = Txn {
            compare: vec![Compare::Created(key.clone(), Is::Less, 0)],
            success: vec![Op::Put {
                key,
                value: Vec::new(),
                lease: 0,
            }],
            failure: vec![],
        };
        self.client.txn(&txn, PATIENCE).await.map(|_| ()).map_err(words)
    }

    /// Does the same about each unit, in few transactions; one answer each, in order.
    async fn each(&self, units: &[UnitIx], op: impl Fn(Vec<u8>) -> Op) -> Result<Vec<Said>, Error> {
        let mut answers = Vec::with_capacity(units.len());
        for some in units.chunks(UNITS_MAX) {
            let names = some.iter().filter_map(|unit| self.contact.units.get(*unit));
            let txn = Txn {
                compare: vec![],
                success: names.map(|name| op(self.key(name))).collect(),
                failure: vec![],
            };
            let decided = self.client.txn(&txn, PATIENCE).await?;
            answers.extend(decided.responses);
        }
        match answers.len() == units.len() {
            true => Ok(answers),
            false => Err(Error::Garbled("too few answers".into())),
        }
    }

    fn key(&self, unit: &str) -> Vec<u8> {
        format!("{}/vote/{unit}", self.contact.prefix.trim_end_matches('/')).into_bytes()
    }

    fn owner(&self) -> String {
        format!("{}.{:016x}/", self.contact.node, self.contact.boot)
    }

    fn value(&self, number: u64) -> Vec<u8> {
        format!("{}{number:020}", self.owner()).into_bytes()
    }

    /// The key is ours, from a question before this number. Texts between the two begin as both do.
    fn ours_before(&self, key: &[u8], number: u64) -> Vec<Compare> {
        vec![
            Compare::Value(key.to_vec(), Is::Greater, self.owner().into_bytes()),
            Compare::Value(key.to_vec(), Is::Less, self.value(number)),
        ]
    }

    fn claim(&self, key: Vec<u8>, number: u64, lease: i64) -> Op {
        let put = || Op::Put {
            key: key.clone(),
            value: self.value(number),
            lease,
        };
        let renewal = Txn {
            compare: self.ours_before(&key, number),
            success: vec![put()],
            failure: vec![Op::Get(Keys::One(key.clone()))],
        };
        Op::Txn(Txn {
            compare: vec![Compare::Created(key.clone(), Is::Equal, 0)],
            success: vec![put()],
            failure: vec![Op::Txn(renewal)],
        })
    }

    /// The outcomes, if every vote is another's.
    fn all_taken(&self, units: &[UnitIx], seen: &[Said]) -> Option<Vec<(UnitIx, Outcome)>> {
        let owner = self.owner();
        let taken = |(unit, answer): (&UnitIx, &Said)| match outcome_of(&owner, 0, answer)? {
            Outcome::Taken { by } => Some((*unit, Outcome::Taken { by })),
            _ => None,
        };
        units.iter().zip(seen).map(taken).collect()
    }
}

/// What the transaction of [`Desk::claim`] came to.
fn outcome(owner: &str, number: u64, answer: &Said) -> Option<Outcome> {
    let Said::Txn(Decided {
        succeeded: false,
        responses,
        ..
    }) = answer
    else {
        return matches!(answer, Said::Txn(_)).then_some(Outcome::Granted);
    };
    match responses.first()? {
        Said::Txn(Decided { succeeded: true, .. }) => Some(Outcome::Granted),
        Said::Txn(Decided { responses, .. }) => outcome_of(owner, number, responses.first()?),
        _ => None,
    }
}

/// Whose a key is that was read.
fn outcome_of(owner: &str, number: u64, answer: &Said) -> Option<Outcome> {
    let Said::Get(found) = answer else { return None };
    let value = String::from_utf8_lossy(&found.kvs.first()?.value).into_owned();
    let Some(by) = value.strip_prefix(owner) else {
        let by = value.rsplit_once('.').map_or(value.as_str(), |(node, _)| node);
        return Some(Outcome::Taken { by: by.to_owned() });
    };
    // Ours: this very question, carried out twice, or a later one.
    match by.parse::<u64>() {
        Ok(by) if by == number => Some(Outcome::Granted),
        _ => Some(Outcome::Superseded),
    }
}

/// The same for the same question, so that asking twice makes one lease; else as good as random. Never 0, which is no lease.
fn lease_id(boot: u64, number: u64) -> i64 {
    let mut z = boot.wrapping_add(number.wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 1).max(1) as i64
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::control::etcd::wire::{Done, Found, KeyValue};

    fn txn(succeeded: bool, answer: Said) -> Said {
        Said::Txn(Decided {
            succeeded,
            responses: vec![answer],
            ..Decided::default()
        })
    }

    fn found(value: &str) -> Said {
        Said::Get(Found {
            kvs: vec![KeyValue {
                value: value.into(),
                ..KeyValue::default()
            }],
            ..Found::default()
        })
    }

    #[test]
    fn outcomes() {
        let put = || Said::Put(Done::default());
        let seen = |value: &str| txn(false, txn(false, found(value)));
        let taken = |by: &str| Some(Outcome::Taken { by: by.into() });
        let rows = [
            (txn(true, put()), Some(Outcome::Granted)),
            (txn(false, txn(true, put())), Some(Outcome::Granted)),
            (seen("a.00/00000000000000000007"), Some(Outcome::Granted)),
            (seen("a.00/00000000000000000008"), Some(Outcome::Superseded)),
            (seen("a.01/00000000000000000007"), taken("a")),
            (seen("b.example.org.00/00000000000000000007"), taken("b.example.org")),
            (seen("by hand"), taken("by hand")),
            (txn(false, txn(false, Said::Get(Found::default()))), None),
            (put(), None),
        ];
        for (answer, expected) in rows {
            assert_eq!(outcome("a.00/", 7, &answer), expected, "{answer:?}");
        }
    }

    #[test]
    fn leases_differ() {
        let mut ids = HashSet::new();
        for boot in [0, 1, 2, u64::MAX] {
            for number in 0..10_000 {
                let id = lease_id(boot, number);
                assert!(id > 0 && ids.insert(id), "{boot} {number}");
            }
        }
    }
}
