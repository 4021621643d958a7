use super::*;
use crate::failover::timers::Timers;

fn ms(n: u64) -> Duration {
    Duration::from_millis(n)
}

/// One machine at a desk: time, beats and answers are typed in, and what it wants is read off.
pub struct Desk {
    pub zero: Instant,
    pub now: u64,
    pub table: Table,
    /// Questions to the arbiter.
    pub asked: Vec<crate::failover::arbiter::Question>,
}

pub fn setup(me: NodeIx, nodes: usize, quorum: u32) -> Setup {
    Setup {
        me,
        names: (0..nodes).map(|n| format!("n{n}")).collect(),
        witnesses: 0,
        quorum,
        timers: Timers::derive(ms(50), ms(250)),
        startup_delay: Duration::ZERO,
        boot: 1,
        tracks: Vec::new(),
        arbiter: None,
        vips: vec![Rule {
            hold: Holders::One,
            prefer: (0..nodes).collect(),
            preempt: true,
            preempt_delay: ms(1_000),
            requires: vec!["web".into()],
            group: None,
        }],
    }
}

pub fn serving(backends: bool) -> Input {
    Input::Local(Local {
        serving: true,
        detail: String::new(),
        without_backend: if backends { vec![] } else { vec!["web".into()] },
    })
}

pub const HOLD: &str = "hold";
pub const RELEASE: &str = "release";
pub const ANNOUNCE: &str = "announce";
pub const INSIST: &str = "announce, insist";

impl Desk {
    /// Node `me` of `nodes`, serving, past listening; the order of preference is that of the indices.
    pub fn new(me: NodeIx, nodes: usize, quorum: u32) -> Desk {
        let mut desk = Desk::fresh(me, nodes, quorum);
        desk.tell(serving(true));
        desk
    }

    pub fn fresh(me: NodeIx, nodes: usize, quorum: u32) -> Desk {
        Desk::with(setup(me, nodes, quorum))
    }

    pub fn with(setup: Setup) -> Desk {
        let zero = Instant::now();
        Desk {
            zero,
            now: 0,
            table: Table::new(zero, setup),
            asked: Vec::new(),
        }
    }

    pub fn tell(&mut self, input: Input) -> Vec<&'static str> {
        let mut out = Vec::new();
        let now = self.zero + ms(self.now);
        self.table.step(now, input, &mut out);
        self.asked.extend(out.iter().filter_map(|action| match action {
            Action::Ask(question) => Some(question.clone()),
            _ => None,
        }));
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
    pub fn pass(&mut self, length: u64, beats: &[(NodeIx, Claim)]) -> Vec<&'static str> {
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

    /// A beat of a node that has heard our newest one.
    pub fn beat(&mut self, from: NodeIx, claim: Claim) -> Vec<&'static str> {
        let echo = Some(self.table.number);
        self.beat_with(from, claim, |beat| beat.echo = echo)
    }

    pub fn beat_with(&mut self, from: NodeIx, claim: Claim, change: impl FnOnce(&mut Beat)) -> Vec<&'static str> {
        let rules = self.table.units[0].mark;
        let mut beat = Beat {
            number: self.table.peers[from].number.map_or(1, |n| n + 1),
            echo: None,
            beat: ms(50),
            dead_after: ms(250),
            patience: ms(250),
            settings: 0,
            score: 0,
            claims: vec![Claim { rules, ..claim }; self.table.setup.vips.len()],
        };
        change(&mut beat);
        // The connection is older than anything here.
        let age_max = ms(3_600_000);
        self.tell(Input::Beat { from, beat, age_max })
    }

    pub fn done(&mut self, effect: Effect) -> Vec<&'static str> {
        self.tell(Input::Done {
            vip: 0,
            effect,
            result: Ok(()),
        })
    }

    pub fn held(me: NodeIx, nodes: usize, beats: &[(NodeIx, Claim)]) -> Desk {
        let mut desk = Desk::new(me, nodes, 1);
        assert_eq!(desk.pass(375, beats), [HOLD]);
        assert_eq!(desk.done(Effect::Hold), [ANNOUNCE]);
        desk
    }

    pub fn state(&self) -> State {
        self.table.vip(0).state
    }
}

pub fn claim(phase: Phase, fit: Fit) -> Claim {
    Claim {
        phase,
        fit,
        ..Claim::NONE
    }
}

pub const IDLE: Claim = Claim {
    fit: Fit::Ready,
    ..Claim::NONE
};
pub const HELD: Claim = Claim {
    phase: Phase::Held,
    fit: Fit::Ready,
    ..Claim::NONE
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
                without_backend: vec![],
            }),
        ),
        ("no backend", serving(false)),
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
    let mut desk = Desk::held(0, 2, &[(1, claim(Phase::Free, Fit::NoBackend))]);
    assert!(desk.tell(serving(false)).is_empty());
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
    // From when what the last vote echoed was sent, not from when the vote came.
    assert!(desk.pass(175, &[]).is_empty());
    assert_eq!(desk.pass(75, &[]), [RELEASE]);

    // A voter stays with a silent holder a beat longer than the holder stays without voters.
    let mut voter = Desk::new(2, 3, 2);
    let holds = Claim { backs: Some(0), ..HELD };
    voter.pass(400, &[(0, holds), (1, backs(0))]);
    assert_eq!(voter.table.claims()[0].backs, Some(0));
    for (after, whom) in [(225, Some(0)), (25, None), (25, None), (25, Some(1))] {
        voter.pass(after, &[(1, backs(1))]);
        let got = voter.table.claims()[0].backs;
        assert_eq!(got, whom, "after {after} ms more");
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

/// A vote counts from when what it echoes was sent, and ends by age alone.
#[test]
fn a_vote_counts_from_when_it_was_asked_for() {
    let backs = Claim { backs: Some(0), ..IDLE };
    let held = || {
        let mut desk = Desk::new(0, 3, 2);
        desk.pass(400, &[(1, IDLE), (2, IDLE)]);
        assert_eq!(desk.beat(1, backs), [HOLD]);
        desk.done(Effect::Hold);
        desk
    };
    // Whatever else it hears: the voter has not heard it lately.
    let mut desk = held();
    let old = desk.table.number;
    let mut let_go = None;
    for _ in 0..20 {
        desk.now += 25;
        let got = desk.beat_with(1, backs, |beat| beat.echo = Some(old));
        if [got, desk.tell(Input::Tick)].concat().contains(&RELEASE) {
            let_go.get_or_insert(desk.now);
        }
    }
    assert_eq!(let_go, Some(400 + 250));
    // A voter that has ended does not take back what it has promised.
    let mut desk = held();
    desk.pass(25, &[(1, backs)]);
    assert!(desk.tell(Input::Gone { node: 1 }).is_empty());
    assert!(desk.pass(200, &[]).is_empty());
    assert_eq!(desk.pass(50, &[]), [RELEASE]);
    // A vote for a candidacy of before says nothing of this one.
    let mut desk = Desk::new(0, 3, 2);
    desk.pass(400, &[(2, IDLE)]);
    let before = desk.table.units[0].candidate_since.unwrap() - 1;
    assert!(desk.beat_with(1, backs, |beat| beat.echo = Some(before)).is_empty());
    assert_eq!(desk.beat(1, backs), [HOLD]);
}

/// Who may be backed next, by what was promised to whom.
#[test]
fn what_a_voter_may_do() {
    let vote = |to, until| Some(votes::Vote { to, until });
    // now 100; we are 0: vote, its owner gives it back, wish; whom we say that we back.
    let rows = [
        (None, false, Some(1), Some(1)),
        (None, false, None, None),
        (vote(1, 200), false, Some(1), Some(1)),
        (vote(1, 200), false, Some(2), None),
        (vote(1, 200), false, Some(0), None),
        (vote(1, 200), false, None, None),
        (vote(1, 200), true, Some(2), Some(2)),
        (vote(1, 100), false, Some(2), Some(2)),
        (vote(0, 200), false, Some(2), Some(2)),
    ];
    for (vote, free, wish, says) in rows {
        let (kept, said) = votes::cast(100, 0, vote, free, wish);
        assert_eq!(said, says, "{vote:?} {free} {wish:?}");
        // A promise is never forgotten before its time.
        let owed = vote.filter(|v| v.to != 0 && v.until > 100 && !free);
        assert!(owed.is_none_or(|v| kept.map(|k| k.to) == Some(v.to)));
    }
}

/// Beats that waited in a socket are history: they neither prove life nor move anything.
#[test]
fn an_old_beat_is_no_news() {
    let mut desk = Desk::held(1, 2, &[(0, claim(Phase::Free, Fit::Unable))]);
    let old = desk.table.number;
    assert!(desk.pass(600, &[]).is_empty());
    // The rival has held before the outage; whether it does now, its next beat will tell.
    assert_eq!(desk.beat_with(0, HELD, |beat| beat.echo = Some(old)), [ANNOUNCE]);
    assert_eq!(desk.beat(0, HELD), [RELEASE]);
    // Nor is an offer of then an offer.
    let mut desk = Desk::new(1, 2, 1);
    desk.pass(400, &[(0, HELD)]);
    let old = desk.table.number;
    for _ in 0..14 {
        desk.now += 25;
        desk.beat_with(0, HELD, |beat| beat.echo = Some(old));
    }
    let offer = claim(Phase::Yielding(1), Fit::Unable);
    assert!(desk.beat_with(0, offer, |beat| beat.echo = Some(old)).is_empty());
    assert_eq!(desk.beat(0, offer), [HOLD]);
}

/// With ports that forward late, who hears nobody waits; who hears somebody does not.
#[test]
fn it_claims_nothing_before_startup_delay_unless_somebody_is_heard() {
    let late = || {
        let mut desk = Desk::with(Setup {
            startup_delay: ms(3_000),
            ..setup(0, 2, 1)
        });
        desk.tell(serving(true));
        desk
    };
    let mut desk = late();
    assert!(desk.pass(2_975, &[]).is_empty());
    assert_eq!(desk.pass(25, &[]), [HOLD]);
    let mut desk = late();
    assert_eq!(desk.pass(375, &[(1, claim(Phase::Free, Fit::Unable))]), [HOLD]);
    // A port that is closed answers, too.
    let mut desk = late();
    desk.tell(Input::Gone { node: 1 });
    assert_eq!(desk.pass(375, &[]), [HOLD]);
}

/// A link that comes up is a start: listen, and ask for the address as any other node does.
#[test]
fn a_link_that_comes_up_is_a_start() {
    let mut desk = Desk::with(Setup {
        startup_delay: ms(3_000),
        ..setup(0, 2, 1)
    });
    desk.tell(serving(true));
    assert_eq!(desk.pass(375, &[(1, IDLE)]), [HOLD]);
    desk.done(Effect::Hold);
    assert_eq!(desk.tell(Input::Link { vip: 0, up: false }), [RELEASE]);
    desk.done(Effect::Release);
    desk.pass(1_000, &[]);
    assert!(desk.tell(Input::Link { vip: 0, up: true }).is_empty());
    assert!(desk.pass(2_000, &[]).is_empty(), "its port may not forward yet");
    // The other one is heard, and holds: preempt_delay counts from the end of listening.
    assert!(desk.pass(1_000, &[(1, HELD)]).is_empty());
    assert!(!desk.table.claims()[0].wants);
    desk.pass(200, &[(1, HELD)]);
    assert!(desk.table.claims()[0].wants);
}

/// Nodes that disagree about the order go by the names, and nobody preempts.
#[test]
fn other_rules_are_settled_by_name() {
    let drift = |me: NodeIx| {
        let mut desk = Desk::with(Setup {
            arbiter: None,
            vips: vec![Rule {
                prefer: vec![1, 0],
                ..setup(me, 2, 1).vips[0].clone()
            }],
            ..setup(me, 2, 1)
        });
        desk.tell(serving(true));
        desk
    };
    let other = |desk: &mut Desk, claim: Claim| {
        let echo = Some(desk.table.number);
        desk.beat_with(1 - desk.table.setup.me, claim, |beat| {
            beat.echo = echo;
            beat.claims[0].rules = 77;
        })
    };
    // Node 0 prefers node 1, which prefers node 0: the lesser name takes it.
    let mut zero = drift(0);
    for _ in 0..16 {
        zero.now += 25;
        other(&mut zero, IDLE);
    }
    assert_eq!(zero.state(), State::Claiming);
    zero.done(Effect::Hold);
    // Both hold: the greater name lets go.
    assert_eq!(other(&mut zero, HELD), [ANNOUNCE]);
    assert!(zero.table.node(1).mismatch.unwrap().contains("prefer"));
    let mut one = drift(1);
    for _ in 0..16 {
        one.now += 25;
        other(&mut one, claim(Phase::Free, Fit::Unable));
    }
    one.done(Effect::Hold);
    assert_eq!(other(&mut one, HELD), [RELEASE]);
}

/// Silence is judged by what the silent one said of itself.
#[test]
fn a_slower_node_is_given_its_time() {
    let mut desk = Desk::new(1, 2, 1);
    for _ in 0..16 {
        desk.now += 25;
        let echo = Some(desk.table.number);
        desk.beat_with(0, HELD, |beat| {
            beat.echo = echo;
            (beat.beat, beat.dead_after) = (ms(200), ms(1_000));
        });
    }
    assert!(desk.pass(975, &[]).is_empty());
    assert_eq!(desk.pass(25, &[]), [HOLD]);
}

/// No single message to or from the keeper matters, and no state lasts for ever.
#[test]
fn the_keeper_is_asked_again_and_then_given_up() {
    let mut desk = Desk::new(0, 1, 1);
    assert_eq!(desk.state(), State::Claiming);
    let asked = desk.pass(1_000, &[]).into_iter().filter(|a| *a == HOLD).count();
    assert_eq!(asked, 5);
    let after = desk.pass(4_000, &[]);
    assert!(after.contains(&RELEASE));
    assert_eq!(desk.state(), State::Fault);
    // And the other way.
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    desk.tell(Input::Link { vip: 0, up: false });
    let asked = desk.pass(1_000, &[]).into_iter().filter(|a| *a == RELEASE).count();
    assert_eq!(asked, 5);
    let mut out = Vec::new();
    for _ in 0..160 {
        desk.now += 25;
        desk.table.step(desk.zero + ms(desk.now), Input::Tick, &mut out);
    }
    assert!(out.contains(&Action::Distrust { vip: 0 }));
}

/// The addresses of a group are one: claimed, shown, troubled and let go together.
#[test]
fn a_group_is_held_together() {
    let mut rules = setup(0, 2, 1);
    rules.vips = vec![
        Rule {
            group: Some("outside".into()),
            ..rules.vips[0].clone()
        };
        2
    ];
    let mut desk = Desk::with(rules);
    desk.tell(serving(true));
    let none = claim(Phase::Free, Fit::Unable);
    assert_eq!(desk.pass(375, &[(1, none)]), [HOLD, HOLD]);
    let done = |vip, effect, result| Input::Done { vip, effect, result };
    assert!(desk.tell(done(1, Effect::Hold, Ok(()))).is_empty());
    assert_eq!(desk.state(), State::Claiming);
    assert_eq!(desk.tell(done(0, Effect::Hold, Ok(()))), [ANNOUNCE, ANNOUNCE]);
    let why = "somebody else removed the address, twice".to_string();
    assert_eq!(desk.tell(Input::Lost { vip: 1, why }), [RELEASE]);
    assert_eq!(desk.state(), State::Releasing);
    desk.tell(done(0, Effect::Release, Ok(())));
    assert_eq!(
        (desk.table.vip(0).state, desk.table.vip(1).state),
        (State::Fault, State::Fault)
    );
}

/// More tracked weight comes first, and what must hold, must.
#[test]
fn what_is_tracked_counts() {
    let track = |name: &str, weight| crate::failover::words::Track {
        name: name.into(),
        weight,
        skew: ms(0),
    };
    let tracked = || {
        let mut desk = Desk::with(Setup {
            tracks: vec![track("gw", Some(50)), track("uplink", None)],
            ..setup(0, 2, 1)
        });
        desk.tell(serving(true));
        desk
    };
    let mut desk = tracked();
    assert!(desk.pass(500, &[]).is_empty());
    assert!(desk.table.vip(0).reason.text(|_| "?").contains("uplink"));
    assert_eq!(desk.tell(Input::Track { ix: 1, holds: true }), [HOLD]);
    // The other one has more, although it comes later in `prefer`.
    let mut desk = tracked();
    desk.tell(Input::Track { ix: 1, holds: true });
    for _ in 0..20 {
        desk.now += 25;
        let echo = Some(desk.table.number);
        let got = desk.beat_with(1, IDLE, |beat| (beat.echo, beat.score) = (echo, 10));
        assert!(got.is_empty());
    }
    assert_eq!(desk.tell(Input::Track { ix: 0, holds: true }), [HOLD]);
}

/// A node whose sum rises again takes the address back only after `preempt_delay` from then.
#[test]
fn who_ranks_first_again_waits() {
    let tracks = || {
        vec![crate::failover::words::Track {
            name: "gw".into(),
            weight: Some(50),
            skew: ms(0),
        }]
    };
    let mut desk = Desk::with(Setup {
        tracks: tracks(),
        ..setup(0, 2, 1)
    });
    desk.tell(serving(true));
    let wants = |desk: &mut Desk, length: u64| {
        for _ in 0..length / 25 {
            desk.now += 25;
            let echo = Some(desk.table.number);
            desk.beat_with(1, HELD, |beat| (beat.echo, beat.score) = (echo, 10));
            desk.tell(Input::Tick);
        }
        desk.table.claims()[0].wants
    };
    assert!(!wants(&mut desk, 3_000), "the holder has more");
    desk.tell(Input::Track { ix: 0, holds: true });
    assert!(!wants(&mut desk, 975));
    assert!(wants(&mut desk, 50));
    // Told again, nothing begins anew.
    desk.tell(Input::Track { ix: 0, holds: true });
    assert!(wants(&mut desk, 25));
    // Other weights are other rules, by which nobody preempts.
    let mark = |weight| {
        rank::mark(&desk.table.setup, &desk.table.setup.vips[0]) == {
            let mut other = desk.table.setup.clone();
            other.tracks[0].weight = weight;
            rank::mark(&other, &other.vips[0])
        }
    };
    assert!(mark(Some(50)) && !mark(Some(49)) && !mark(None));
}

/// Both lose the same, one after the other: in between nobody asks for the address.
#[test]
fn what_all_nodes_lose_moves_nothing() {
    let gw = crate::failover::words::Track {
        name: "gw".into(),
        weight: Some(50),
        skew: ms(1_500),
    };
    let mut desk = Desk::with(Setup {
        tracks: vec![gw],
        ..setup(1, 2, 1)
    });
    desk.tell(serving(true));
    desk.tell(Input::Track { ix: 0, holds: true });
    let wants = |desk: &mut Desk, score: u32, length: u64| {
        (0..length / 25).any(|_| {
            desk.now += 25;
            let echo = Some(desk.table.number);
            desk.beat_with(0, HELD, |beat| (beat.echo, beat.score) = (echo, score));
            desk.tell(Input::Tick);
            desk.table.claims()[0].wants
        })
    };
    assert!(!wants(&mut desk, 50, 3_000));
    assert!(!wants(&mut desk, 0, 1_500), "we may be the last to notice");
    assert!(wants(&mut desk, 0, 50), "it is the holder's alone");
    desk.tell(Input::Track { ix: 0, holds: false });
    assert!(!wants(&mut desk, 0, 3_000));
}

/// A holder that lacks what must hold lets go, also when nobody takes over.
#[test]
fn what_must_hold_must_hold() {
    let uplink = crate::failover::words::Track {
        name: "uplink".into(),
        weight: None,
        skew: ms(0),
    };
    let mut desk = Desk::with(Setup {
        tracks: vec![uplink],
        ..setup(0, 2, 1)
    });
    desk.tell(serving(true));
    desk.tell(Input::Track { ix: 0, holds: true });
    assert_eq!(desk.pass(375, &[]), [HOLD]);
    desk.done(Effect::Hold);
    assert_eq!(desk.tell(Input::Track { ix: 0, holds: false }), [RELEASE]);
    desk.done(Effect::Release);
    assert!(desk.pass(500, &[]).is_empty());
    assert_eq!(desk.tell(Input::Track { ix: 0, holds: true }), [HOLD]);
}

/// What a reload adds is taken to hold; what was there before is as it was.
#[test]
fn a_reload_that_adds_a_track_moves_nothing() {
    let track = |name: &str| crate::failover::words::Track {
        name: name.into(),
        weight: None,
        skew: ms(0),
    };
    let mut desk = Desk::held(0, 2, &[(1, IDLE)]);
    let more = Setup {
        tracks: vec![track("uplink")],
        ..desk.table.setup.clone()
    };
    let carried = |old: &Table, setup: &Setup, tracks: &[Option<usize>]| {
        let mut table = Table::new(Instant::now(), setup.clone());
        table.carry(old, &[Some(0)], &[Some(0), Some(1)], &[], tracks);
        table
    };
    desk.table = carried(&desk.table, &more, &[None]);
    assert!(desk.pass(500, &[(1, IDLE)]).is_empty());
    assert!(desk.table.track_holds(0));
    desk.tell(Input::Track { ix: 0, holds: false });
    assert_eq!(desk.table.claims()[0].phase, Phase::Yielding(1), "to whoever has it");
    desk.beat(1, HELD);
    desk.done(Effect::Release);
    desk.table = carried(&desk.table, &more, &[Some(0)]);
    assert!(!desk.table.track_holds(0));
}

/// Nobody holds it: said with the reason of every node.
#[test]
fn why_nobody_holds_it() {
    let mut desk = Desk::new(0, 3, 1);
    desk.tell(Input::Admin(Order::Demote(0)));
    let demoted = Claim {
        lacks: crate::failover::words::Lack::Demoted,
        ..Claim::NONE
    };
    desk.pass(400, &[(1, demoted)]);
    let said: Vec<_> = desk.table.vip(0).nobody.unwrap();
    use crate::failover::words::Lack;
    assert_eq!(said, [(0, Some(Lack::Demoted)), (1, Some(Lack::Demoted)), (2, None)]);
}

/// A reload keeps votes, promises and witnesses; what is required goes by name.
#[test]
fn a_reload_carries_what_was_said() {
    let backs = Claim { backs: Some(0), ..IDLE };
    let mut desk = Desk::with(Setup {
        witnesses: 1,
        ..setup(0, 2, 2)
    });
    desk.tell(serving(true));
    assert_eq!(desk.pass(400, &[(1, backs)]), [HOLD]);
    desk.done(Effect::Hold);
    let asked = Duration::ZERO;
    desk.tell(Input::Witness { ix: 0, asked });
    desk.tell(Input::Gone { node: 1 });
    desk.pass(200, &[]);
    desk.tell(Input::Witness { ix: 0, asked });
    let mut table = Table::new(Instant::now(), desk.table.setup.clone());
    table.carry(&desk.table, &[Some(0)], &[Some(0), Some(1)], &[Some(0)], &[]);
    desk.table = table;
    assert!(desk.pass(200, &[]).is_empty(), "the witness's answer counts on");
    assert_eq!(desk.pass(75, &[]), [RELEASE], "and no longer than before");
}

/// Node 1 of three, with a quorum of two, hearing nobody: an address with `hold: all` needs none of that. And no neighbour is told.
fn shared() -> Desk {
    let mut rules = setup(1, 3, 2);
    rules.startup_delay = ms(3_000);
    rules.vips[0].hold = Holders::All;
    let mut desk = Desk::with(rules);
    assert_eq!(desk.tell(serving(true)), [HOLD]);
    assert_eq!(desk.done(Effect::Hold), Vec::<&str>::new());
    assert_eq!(desk.state(), State::Active);
    desk
}

/// Meant to notice: `is_shared` false in `decide`, in `backed`, in `fit`, in `frozen`.
#[test]
fn with_hold_all_nobody_else_matters() {
    let mut desk = shared();
    assert_eq!(desk.table.vip(0).reason, Reason::Serves);
    let none = Vec::<&str>::new();
    // A better node holds it, hands it over, leaves it, goes.
    for says in [
        HELD,
        claim(Phase::Yielding(1), Fit::Ready),
        claim(Phase::Leaving, Fit::Unable),
        IDLE,
    ] {
        assert_eq!(desk.pass(600, &[(0, says), (2, HELD)]), none, "{says:?}");
    }
    desk.tell(Input::Gone { node: 0 });
    assert_eq!(desk.pass(2_000, &[]), none);
    // This node stood still, and its keeper has not noticed, or has.
    desk.now += 5_000;
    assert_eq!(desk.tell(Input::Tick), none);
    assert_eq!(desk.tell(Input::Expired { vip: 0 }), [HOLD]);
    assert_eq!(desk.done(Effect::Hold), none);
    let said = desk.table.claims()[0];
    assert_eq!((said.phase, said.wants, said.backs), (Phase::Held, false, None));
}

#[test]
fn with_hold_all_a_node_that_does_not_serve_lets_go_at_once() {
    let local = |serving| {
        Input::Local(Local {
            serving,
            ..Local::default()
        })
    };
    let link = |up| Input::Link { vip: 0, up };
    #[rustfmt::skip]
    let rows = [
        (serving(false), Some(serving(true)), State::Standby),
        (local(false), Some(local(true)), State::Standby),
        (link(false), Some(link(true)), State::Fault),
        (Input::Admin(Order::Demote(0)), Some(Input::Admin(Order::Allow(0))), State::Standby),
        (Input::Admin(Order::Stop), None, State::Standby),
    ];
    for (fault, repair, shown) in rows {
        let mut desk = shared();
        // Others that could take it are no reason to wait.
        assert_eq!(desk.pass(400, &[(0, IDLE)]), Vec::<&str>::new());
        assert_eq!(desk.tell(fault.clone()), [RELEASE], "{fault:?}");
        desk.done(Effect::Release);
        assert_eq!(desk.state(), shown, "{fault:?}");
        assert_eq!(desk.pass(400, &[(0, IDLE)]), Vec::<&str>::new(), "{fault:?}");
        if let Some(repair) = repair {
            assert_eq!(desk.tell(repair), [HOLD], "{fault:?}");
        }
    }
}

/// Two nodes of which one says `all` and the other `one` are configured otherwise, and say so.
#[test]
fn how_many_hold_it_is_a_rule_of_all_nodes() {
    let (mut one, mut all) = (setup(0, 2, 1), setup(0, 2, 1));
    let mark = |setup: &Setup| Table::new(Instant::now(), setup.clone()).units[0].mark;
    let before = mark(&one);
    one.vips[0].hold = Holders::One;
    all.vips[0].hold = Holders::All;
    assert_eq!(mark(&one), before);
    assert_ne!(mark(&all), before);
}
