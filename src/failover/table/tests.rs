use super::*;
use crate::failover::timers::Timers;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One machine at a desk: time, beats and answers are typed in, and what it wants is read off.
struct Desk {
    zero: Instant,
    now: u64,
    table: Table,
}

const HOLD: &str = "hold";
const RELEASE: &str = "release";
const ANNOUNCE: &str = "announce";
const INSIST: &str = "announce, insist";

impl Desk {
    /// Node `me` of `nodes`, serving, past listening; the order of preference is that of the indices.
    fn new(me: NodeIx, nodes: usize, quorum: u32) -> Desk {
        let mut desk = Desk::fresh(me, nodes, quorum);
        desk.tell(Input::Local(Local {
            serving: true,
            detail: String::new(),
            pools: vec![true],
        }));
        desk
    }

    fn fresh(me: NodeIx, nodes: usize, quorum: u32) -> Desk {
        let zero = Instant::now();
        let setup = Setup {
            me,
            nodes,
            witnesses: 0,
            quorum,
            timers: Timers::derive(ms(50), ms(250)),
            vips: vec![Rule {
                prefer: (0..nodes).collect(),
                preempt: true,
                preempt_delay: ms(1_000),
                requires: vec![0],
            }],
        };
        Desk {
            zero,
            now: 0,
            table: Table::new(zero, setup),
        }
    }

    fn tell(&mut self, input: Input) -> Vec<&'static str> {
        let mut out = Vec::new();
        let now = self.zero + ms(self.now);
        self.table.step(now, input, &mut out);
        out.iter()
            .filter_map(|action| match action {
                Action::Hold { .. } => Some(HOLD),
                Action::Release { .. } => Some(RELEASE),
                Action::Announce { insist: false, .. } => Some(ANNOUNCE),
                Action::Announce { insist: true, .. } => Some(INSIST),
                _ => None,
            })
            .collect()
    }

    /// Time passes, tick by tick, with these beats twice in each beat period.
    fn pass(&mut self, length: u64, beats: &[(NodeIx, Claim)]) -> Vec<&'static str> {
        let mut all = Vec::new();
        for _ in 0..length / 25 {
            self.now += 25;
            for (from, claim) in beats {
                all.extend(self.beat(*from, *claim));
            }
            all.extend(self.tell(Input::Tick));
        }
        all
    }

    fn beat(&mut self, from: NodeIx, claim: Claim) -> Vec<&'static str> {
        self.tell(Input::Beat {
            from,
            claims: vec![claim],
        })
    }

    fn done(&mut self, effect: Effect) -> Vec<&'static str> {
        self.tell(Input::Done {
            vip: 0,
            effect,
            result: Ok(()),
        })
    }

    fn held(me: NodeIx, nodes: usize, beats: &[(NodeIx, Claim)]) -> Desk {
        let mut desk = Desk::new(me, nodes, 1);
        assert_eq!(desk.pass(375, beats), [HOLD]);
        assert_eq!(desk.done(Effect::Hold), [ANNOUNCE]);
        desk
    }

    fn state(&self) -> State {
        self.table.vip(0).state
    }
}

fn claim(phase: Phase, fit: Fit) -> Claim {
    Claim {
        phase,
        fit,
        ..Claim::NONE
    }
}

const IDLE: Claim = Claim {
    fit: Fit::Ready,
    ..Claim::NONE
};
const HELD: Claim = Claim {
    phase: Phase::Held,
    fit: Fit::Ready,
    wants: false,
    backs: None,
};

#[test]
fn it_listens_before_it_claims() {
    let mut desk = Desk::new(0, 2, 1);
    assert_eq!(desk.pass(325, &[]), Vec::<&str>::new());
    assert_eq!(desk.pass(50, &[]), [HOLD]);
    // A node without peers has nobody to listen to.
    let mut alone = Desk::new(0, 1, 1);
    assert_eq!(alone.state(), State::Claiming);
    assert_eq!(alone.done(Effect::Hold), [ANNOUNCE]);
}

/// Who claims a free address, by what the other node says of itself.
#[test]
fn who_claims() {
    let rows: [(NodeIx, Claim, bool); 10] = [
        // me, what the other says, whether I claim
        (0, IDLE, true),
        (1, IDLE, false),
        (1, claim(Phase::Free, Fit::NoBackend), true),
        (1, claim(Phase::Free, Fit::Unable), true),
        (1, claim(Phase::Free, Fit::Soon), false),
        (0, claim(Phase::Free, Fit::Soon), true),
        (0, HELD, false),
        (0, claim(Phase::Claiming, Fit::Ready), false),
        (0, claim(Phase::Leaving, Fit::Unable), false),
        (1, claim(Phase::Yielding(1), Fit::Ready), true),
    ];
    for (me, says, claims) in rows {
        let mut desk = Desk::new(me, 2, 1);
        let got = desk.pass(400, &[(1 - me, says)]);
        assert_eq!(got.contains(&HOLD), claims, "node {me}, other says {says:?}");
    }
}

#[test]
fn nobody_claims_without_what_it_takes() {
    let rows: [(&str, Input); 6] = [
        (
            "not serving",
            Input::Local(Local {
                serving: false,
                detail: "worker 2 is stuck".into(),
                pools: vec![true],
            }),
        ),
        (
            "no backend",
            Input::Local(Local {
                serving: true,
                detail: String::new(),
                pools: vec![false],
            }),
        ),
        ("demoted", Input::Admin(Order::Demote(0))),
        ("carrier", Input::Link { vip: 0, up: false }),
        ("somebody else", Input::Foreign { vip: 0, present: true }),
        ("lacks", Input::Keeper(Err("lacks CAP_NET_ADMIN".into()))),
    ];
    for (why, input) in rows {
        let mut desk = Desk::new(0, 2, 1);
        desk.tell(input);
        assert_eq!(desk.pass(600, &[]), Vec::<&str>::new(), "{why}");
        let reason = desk.table.vip(0).reason.text(|_| "?");
        assert!(reason.contains(why), "{why}: {reason}");
    }
}

#[test]
fn silence_and_a_closed_port() {
    let mut desk = Desk::new(1, 2, 1);
    assert!(desk.pass(400, &[(0, HELD)]).is_empty());
    assert!(desk.pass(225, &[]).is_empty());
    // dead_after to the millisecond, and the old holder may only be frozen: insist.
    assert_eq!(desk.pass(25, &[]), [HOLD]);
    assert_eq!(desk.done(Effect::Hold), [INSIST]);

    let mut desk = Desk::new(1, 2, 1);
    desk.pass(400, &[(0, HELD)]);
    assert_eq!(desk.tell(Input::Gone { node: 0 }), [HOLD]);
}

#[test]
fn a_conflict_has_one_loser() {
    // The better one announces, and again when the rival has gone.
    let mut better = Desk::held(0, 2, &[(1, IDLE)]);
    assert_eq!(better.beat(1, HELD), [ANNOUNCE]);
    assert!(better.beat(1, HELD).is_empty());
    assert_eq!(better.beat(1, IDLE), [ANNOUNCE]);
    // The other one releases first and asks later.
    let mut worse = Desk::held(1, 2, &[(0, claim(Phase::Free, Fit::Unable))]);
    assert_eq!(worse.beat(0, HELD), [RELEASE]);
    assert_eq!(worse.table.claims()[0].phase, Phase::Leaving);
    worse.done(Effect::Release);
    assert_eq!(worse.table.claims()[0].phase, Phase::Free);
}

#[test]
fn a_planned_move_makes_before_it_breaks() {
    let mut old = Desk::held(0, 2, &[(1, IDLE)]);
    assert!(old.tell(Input::Admin(Order::Demote(0))).is_empty());
    assert_eq!(old.table.claims()[0].phase, Phase::Yielding(1));
    assert!(old.beat(1, claim(Phase::Claiming, Fit::Ready)).is_empty());
    assert_eq!(old.beat(1, HELD), [RELEASE]);
    // Seen from the other side.
    let mut new = Desk::new(1, 2, 1);
    new.pass(400, &[(0, HELD)]);
    let yielding = claim(Phase::Yielding(1), Fit::Unable);
    assert_eq!(new.beat(0, yielding), [HOLD]);
    assert_eq!(new.done(Effect::Hold), [ANNOUNCE]);
    assert!(new.beat(0, yielding).is_empty());
    assert!(new.beat(0, claim(Phase::Leaving, Fit::Unable)).is_empty());
    // The last word is the new holder's.
    assert_eq!(new.beat(0, Claim::NONE), [ANNOUNCE]);
}

#[test]
fn a_successor_that_does_not_take_it_is_given_up() {
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    desk.tell(Input::Admin(Order::Demote(0)));
    assert!(desk.pass(225, &[(1, IDLE)]).is_empty());
    assert_eq!(desk.table.claims()[0].phase, Phase::Yielding(1));
    desk.pass(50, &[(1, IDLE)]);
    assert_eq!(desk.table.claims()[0].phase, Phase::Held);
    // A process that ends waits no longer than that.
    desk.tell(Input::Admin(Order::Stop));
    assert_eq!(desk.state(), State::Releasing);
}

#[test]
fn preemption_waits_and_asks() {
    let mut better = Desk::new(0, 2, 1);
    better.pass(1_300, &[(1, HELD)]);
    assert!(!better.table.claims()[0].wants);
    better.pass(50, &[(1, HELD)]);
    assert!(better.table.claims()[0].wants, "1 s after it had listened");
    let mut worse = Desk::held(1, 2, &[(0, claim(Phase::Free, Fit::Unable))]);
    worse.beat(0, IDLE);
    assert_eq!(worse.table.claims()[0].phase, Phase::Held);
    worse.beat(0, Claim { wants: true, ..IDLE });
    assert_eq!(worse.table.claims()[0].phase, Phase::Yielding(0));
}

#[test]
fn without_backends_it_moves_or_stays() {
    let none = || {
        Input::Local(Local {
            serving: true,
            detail: String::new(),
            pools: vec![false],
        })
    };
    let mut desk = Desk::held(0, 2, &[(1, claim(Phase::Free, Fit::NoBackend))]);
    assert!(desk.tell(none()).is_empty());
    assert_eq!(desk.table.claims()[0].phase, Phase::Held);
    desk.beat(1, IDLE);
    assert_eq!(desk.table.claims()[0].phase, Phase::Yielding(1));
}

#[test]
fn a_frozen_node_lets_go_and_listens() {
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    desk.now += 175;
    assert!(desk.tell(Input::Tick).is_empty());
    // Whatever is heard first, the gap counts first.
    desk.now += 200;
    assert_eq!(desk.beat(1, HELD), [RELEASE]);
    desk.done(Effect::Release);
    assert!(desk.pass(325, &[(1, IDLE)]).is_empty());
    assert_eq!(desk.pass(25, &[(1, IDLE)]), [HOLD]);
}

#[test]
fn a_majority_is_needed_all_the_time() {
    let backs = |n: NodeIx| Claim { backs: Some(n), ..IDLE };
    let mut desk = Desk::new(0, 3, 2);
    // Alive is not enough: they must back us.
    assert!(desk.pass(400, &[(1, backs(1)), (2, backs(1))]).is_empty());
    assert_eq!(desk.beat(2, backs(0)), [HOLD]);
    desk.done(Effect::Hold);
    assert!(desk.pass(300, &[(2, backs(0))]).is_empty());
    assert!(desk.pass(225, &[]).is_empty());
    assert_eq!(desk.pass(25, &[]), [RELEASE]);

    // A voter stays with a silent holder a beat longer than the holder stays without voters.
    let mut voter = Desk::new(2, 3, 2);
    voter.pass(400, &[(0, HELD), (1, backs(0))]);
    for (after, whom) in [(250, 0), (25, 0), (25, 1)] {
        voter.pass(after, &[(1, backs(1))]);
        let got = voter.table.claims()[0].backs;
        assert_eq!(got, Some(whom), "after {after} ms more");
    }
}

#[test]
fn what_fails_is_tried_again_later_and_later() {
    let mut desk = Desk::new(0, 1, 1);
    let mut tried = Vec::new();
    let fail = || Input::Done {
        vip: 0,
        effect: Effect::Hold,
        result: Err("no interface".into()),
    };
    desk.tell(fail());
    assert_eq!(desk.state(), State::Fault);
    for _ in 0..8_000 / 25 {
        if desk.pass(25, &[]).contains(&HOLD) {
            tried.push(desk.now);
            desk.tell(fail());
        }
    }
    assert_eq!(tried, [1_000, 3_000, 7_000]);
    assert_eq!(desk.tell(Input::Admin(Order::Allow(0))), [HOLD]);
}

#[test]
fn what_the_keeper_loses() {
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    desk.tell(Input::Lost {
        vip: 0,
        why: "somebody else removed the address, twice".into(),
    });
    assert_eq!(desk.state(), State::Fault);
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    desk.tell(Input::Expired { vip: 0 });
    assert_eq!(desk.state(), State::Standby);
    assert!(desk.pass(300, &[(1, IDLE)]).is_empty(), "it listens again");
    // What nobody asked for any more is let go.
    assert_eq!(desk.done(Effect::Hold), [RELEASE]);
}
