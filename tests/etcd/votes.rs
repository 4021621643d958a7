//! The arbiter's thread against three members: whose vote it is, whatever is delayed or repeated.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, bounded};
use mio::{Poll, Token, Waker};

use weir::config::model::EtcdServers;
use weir::control::election::arbiter::{Arbiter, Contact};
use weir::control::etcd::Settings;
use weir::failover::arbiter::{Answer, Outcome, Question, UnitIx};

use crate::cluster::{Cluster, PATIENCE, possible};
use crate::common::wait_until;

struct Asker {
    arbiter: Arbiter,
    answers: Receiver<Answer>,
    _poll: Poll,
}

impl Asker {
    fn new(cluster: &Cluster, servers: &EtcdServers, node: &str, units: usize) -> Asker {
        let contact = Contact {
            settings: Settings::load(servers).unwrap(),
            prefix: "/weir/test/".into(),
            node: node.into(),
            boot: node.len() as u64 + u64::from(node.as_bytes()[0]),
            ttl_s: 5,
            units: (0..units).map(|i| format!("10.0.0.{i}")).collect(),
        };
        let poll = Poll::new().unwrap();
        let waker = Arc::new(Waker::new(poll.registry(), Token(0)).unwrap());
        let (sender, answers) = bounded(64);
        let arbiter = cluster.members[0]
            .netns
            .enter(|| Arbiter::start(contact, sender, waker));
        Asker {
            arbiter: arbiter.unwrap(),
            answers,
            _poll: poll,
        }
    }

    /// The next answer that is not about health.
    fn answer(&self) -> Answer {
        loop {
            match self.answers.recv_timeout(PATIENCE).unwrap() {
                Answer::Health(_) => {}
                other => return other,
            }
        }
    }

    fn health(&self) -> Result<(), String> {
        loop {
            if let Answer::Health(health) = self.answers.recv_timeout(PATIENCE).unwrap() {
                return health;
            }
        }
    }

    fn vote(&self, number: u64, units: &[UnitIx]) -> Vec<Outcome> {
        let units_ = units.to_vec();
        self.arbiter.ask(Question::Vote { number, units: units_ });
        let Answer::Voted { number: n, outcomes } = self.answer() else {
            panic!("no answer to {number}")
        };
        assert_eq!(n, number);
        assert!(outcomes.iter().map(|(unit, _)| unit).eq(units));
        outcomes.into_iter().map(|(_, outcome)| outcome).collect()
    }

    fn give_back(&self, number: u64, units: &[UnitIx], leases: &[u64]) {
        self.arbiter.ask(Question::Return {
            number,
            units: units.to_vec(),
            leases: leases.to_vec(),
        });
        assert_eq!(self.answer(), Answer::Returned { number });
    }
}

fn taken(by: &str) -> Vec<Outcome> {
    vec![Outcome::Taken { by: by.into() }]
}

const GRANTED: [Outcome; 1] = [Outcome::Granted];

#[test]
fn whose_vote_it_is() {
    if !possible() {
        return;
    }
    let cluster = Cluster::start();
    let servers = cluster.servers();
    let (a, b) = (
        Asker::new(&cluster, &servers, "node-a", 250),
        Asker::new(&cluster, &servers, "b", 250),
    );
    assert_eq!((a.health(), b.health()), (Ok(()), Ok(())));

    // One has it, twice over or anew, the other does not. Each unit is another matter.
    assert_eq!(a.vote(1, &[0]), GRANTED);
    assert_eq!(a.vote(1, &[0]), GRANTED, "carried out twice");
    assert_eq!(b.vote(1, &[0]), taken("node-a"));
    assert_eq!(b.vote(2, &[0]), taken("node-a"), "only looked at");
    assert_eq!(b.vote(3, &[0, 1]), [taken("node-a"), GRANTED.to_vec()].concat());
    assert_eq!(a.vote(3, &[0]), GRANTED);
    assert_eq!(
        a.vote(2, &[0]),
        [Outcome::Superseded],
        "an older question that comes late"
    );

    // A return of what was got before the newest question does nothing.
    a.give_back(2, &[0, 1], &[1, 2]);
    assert_eq!(b.vote(4, &[0]), taken("node-a"));
    a.give_back(3, &[0], &[3]);
    assert_eq!(b.vote(5, &[0]), GRANTED);
    b.give_back(5, &[0, 1], &[3, 4, 5]);

    // A lease that is not renewed ends, not before its time; one whose vote went over to a newer lease takes nothing with it.
    assert_eq!(a.vote(4, &[0]), GRANTED);
    // Most of the time that a lease has: what is renewed now counts from now.
    std::thread::sleep(Duration::from_secs(3));
    let asked = Instant::now();
    assert_eq!(a.vote(5, &[0]), GRANTED);
    let mut number = 5;
    wait_until("b has it", || {
        number += 1;
        b.vote(number, &[0]) == GRANTED
    });
    assert!(asked.elapsed() >= Duration::from_secs(5), "{:?}", asked.elapsed());

    // Many at once.
    let all: Vec<UnitIx> = (1..250).collect();
    assert!(a.vote(6, &all).iter().all(|outcome| *outcome == Outcome::Granted));
    assert!(
        b.vote(number + 1, &all)
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Taken { .. }))
    );
    a.give_back(6, &all, &[6]);
    assert!(
        b.vote(number + 2, &all)
            .iter()
            .all(|outcome| *outcome == Outcome::Granted)
    );

    // What somebody else has written by hand is not ours to take.
    cluster.etcdctl(&["del", "--prefix", "/weir/"]);
    cluster.etcdctl(&["put", "/weir/test/vote/10.0.0.0", "hands off"]);
    assert_eq!(a.vote(7, &[0]), taken("hands off"));
}

/// Members stand still in turn, another one leads, the leader is cut off: of two nodes that want the same vote all the time,
/// never both have it.
#[test]
fn members_that_fail_in_turn() {
    if !possible() {
        return;
    }
    let cluster = Cluster::start();
    let servers = cluster.servers();
    let askers = [
        Asker::new(&cluster, &servers, "a", 1),
        Asker::new(&cluster, &servers, "b", 1),
    ];
    let began = Instant::now();
    let counts = Duration::from_millis(4_900);
    let run = |asker: &Asker| {
        // From when to when the vote counted.
        let mut had: Vec<(Instant, Instant)> = Vec::new();
        let mut number = 0;
        while began.elapsed() < Duration::from_secs(20) {
            number += 1;
            let asked = Instant::now();
            asker.arbiter.ask(Question::Vote { number, units: vec![0] });
            match asker.answer() {
                Answer::Voted { outcomes, .. } if outcomes[0].1 == Outcome::Granted => {
                    had.push((Instant::now(), asked + counts));
                }
                _ => {
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            }
            // Now and then it is given back, so that the other one gets its turn. It counts no more from before that.
            if had.len().is_multiple_of(3) {
                let now = Instant::now();
                had.iter_mut().for_each(|(_, until)| *until = now.min(*until));
                asker.arbiter.ask(Question::Return {
                    number,
                    units: vec![0],
                    leases: (1..=number).rev().take(10).collect(),
                });
                asker.answer();
                std::thread::sleep(Duration::from_millis(300));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        had
    };
    let all: Vec<Vec<(Instant, Instant)>> = std::thread::scope(|scope| {
        let runs: Vec<_> = askers.iter().map(|asker| scope.spawn(move || run(asker))).collect();
        let mut next = 0;
        while began.elapsed() < Duration::from_secs(16) {
            cluster.stall(&[next], Duration::from_secs(2));
            next = (next + 1) % 3;
            cluster.move_leader();
            let leader = cluster.leader();
            let cable = &cluster.members[leader].port;
            cluster.bridge.cable(cable, false);
            cluster.leader_among_the_rest(leader);
            cluster.bridge.cable(cable, true);
        }
        runs.into_iter().map(|run| run.join().unwrap()).collect()
    });
    assert!(all.iter().all(|had| !had.is_empty()), "each had its turn: {all:?}");
    for (from, until) in &all[0] {
        for (other_from, other_until) in &all[1] {
            let overlap = from < other_until && other_from < until;
            assert!(
                !overlap,
                "both had it: {from:?} to {until:?}, {other_from:?} to {other_until:?}"
            );
        }
    }
}

/// What is missing is known before it is needed.
#[test]
fn rights_are_looked_at_first() {
    if !possible() || !crate::common::have(&["openssl"]) {
        return;
    }
    let cluster = Cluster::secure();
    let mut servers = cluster.servers();
    servers.password_file = Some(cluster.private("password", "pass"));
    servers.user = Some("weir".into());
    assert_eq!(Asker::new(&cluster, &servers, "a", 1).health(), Ok(()));
    servers.user = Some("nobody".into());
    let why = Asker::new(&cluster, &servers, "a", 1).health().unwrap_err();
    assert!(why.contains("permission denied"), "{why}");
    // Reading alone is not enough.
    cluster.etcdctl(&["role", "add", "reader"]);
    let grant = ["role", "grant-permission", "reader", "read", "/weir/", "/weir0"];
    cluster.etcdctl(&grant);
    cluster.etcdctl(&["user", "grant-role", "nobody", "reader"]);
    let why = Asker::new(&cluster, &servers, "a", 1).health().unwrap_err();
    assert!(why.contains("permission denied"), "{why}");
}
