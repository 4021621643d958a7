//! The arbiter among the voters, told move by move.

use super::super::arbiter::{Answer, Outcome, Question, Terms};
use super::super::words::Arbiter;
use super::tests::*;
use super::*;

const NODE_B: NodeIx = 1;

fn with_arbiter(me: NodeIx, nodes: usize, strict: bool) -> Desk {
    let mut setup = setup(me, nodes, 2);
    setup.quorum = (nodes as u32).div_ceil(2) + 1;
    setup.arbiter = Some(Arbiter {
        prefix: "/weir".into(),
        place: "/weir".into(),
        terms: Terms::derive(&setup.timers),
        strict,
    });
    let mut desk = Desk::with(setup);
    desk.tell(serving(true));
    desk
}

fn backs(n: NodeIx) -> Claim {
    Claim { backs: Some(n), ..IDLE }
}

fn holds(n: NodeIx) -> Claim {
    Claim { backs: Some(n), ..HELD }
}

impl Desk {
    /// Ticks with these beats; the first question to the arbiter, and how long it took until then.
    fn until_asked(&mut self, limit: u64, beats: &[(NodeIx, Claim)]) -> Option<(u64, Question)> {
        let began = self.now;
        while self.now < began + limit {
            self.pass(25, beats);
            if let Some(question) = self.asked.pop() {
                return Some((self.now - began, question));
            }
        }
        None
    }

    fn answer(&mut self, number: u64, outcome: Outcome) -> Vec<&'static str> {
        let outcomes = vec![(0, outcome)];
        self.tell(Input::Arbiter(Answer::Voted { number, outcomes }))
    }

    /// Holds by the vote of the other node.
    fn holding(strict: bool) -> Desk {
        let mut desk = with_arbiter(0, 2, strict);
        // With `strict` a process that has just begun does not know what the one before it has left.
        desk.pass(3_100, &[(NODE_B, backs(0))]);
        desk.done(Effect::Hold);
        assert_eq!(desk.state(), State::Active, "strict {strict}");
        desk.pass(6_000, &[(NODE_B, backs(0))]);
        desk.asked.clear();
        desk
    }
}

fn vote(number: u64) -> Question {
    let units = vec![0];
    Question::Vote { number, units }
}

#[test]
fn nothing_is_asked_while_the_nodes_hear_each_other() {
    let mut desk = Desk::holding(false);
    assert_eq!(desk.until_asked(60_000, &[(NODE_B, backs(0))]), None);
    let mut standby = with_arbiter(1, 2, false);
    assert_eq!(standby.until_asked(60_000, &[(0, holds(0))]), None);
}

#[test]
fn the_holder_asks_before_the_last_vote_ends() {
    let mut desk = Desk::holding(false);
    let (after, question) = desk.until_asked(1_000, &[]).unwrap();
    // The last vote echoes a beat of up to 50 ms before.
    assert!((50..=150).contains(&after), "{after} ms");
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    assert!(desk.answer(number, Outcome::Granted).is_empty());
    assert!(desk.pass(900, &[]).is_empty(), "it stays");
    // Renewed, and given back when the other one is heard again for a while.
    assert_eq!(
        desk.until_asked(200, &[]).map(|(_, question)| question),
        Some(vote(number + 1))
    );
    desk.answer(number + 1, Outcome::Granted);
    let (after, question) = desk.until_asked(1_000, &[(NODE_B, backs(0))]).unwrap();
    assert!((250..=350).contains(&after), "{after} ms");
    assert!(
        matches!(question, Question::Return { number: n, .. } if n == number + 1),
        "{question:?}"
    );
    assert_eq!(desk.state(), State::Active);
}

#[test]
fn without_an_answer_the_holder_lets_go_in_time() {
    let mut desk = Desk::holding(false);
    let began = desk.now;
    while desk.state() == State::Active {
        desk.pass(5, &[]);
        desk.now += 5;
        desk.tell(Input::Tick);
    }
    assert!(desk.now - began <= 250, "{} ms", desk.now - began);
    // What comes late does not bring it back before it is gone.
    assert!(desk.answer(1_000, Outcome::Granted).is_empty());
}

#[test]
fn another_node_asks_when_the_holders_votes_have_ended() {
    let mut desk = with_arbiter(1, 2, false);
    desk.pass(1_000, &[(0, holds(0))]);
    let (after, question) = desk.until_asked(1_000, &[]).unwrap();
    // dead_after and a beat, to the tick.
    assert!((275..=325).contains(&after), "{after} ms");
    assert_eq!(question, vote(1));
    assert!(desk.answer(1, Outcome::Taken { by: "a".into() }).is_empty());
    let reason = desk.table.vip(0).reason.text(|_| "?");
    assert_eq!(reason, "waiting for the arbiter: its vote is a's");
    let (_, question) = desk.until_asked(1_000, &[]).unwrap();
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    assert_eq!(desk.answer(number, Outcome::Granted), [HOLD]);
    // A process that has ended is not waited for.
    let mut desk = with_arbiter(1, 2, false);
    desk.pass(1_000, &[(0, holds(0))]);
    desk.tell(Input::Gone { node: 0 });
    assert!(desk.until_asked(50, &[]).is_some());
}

/// The keeper of a process that has ended has the time that it is stated to need, though the vote is there at once.
#[test]
fn the_keeper_of_a_process_that_has_ended_is_waited_for() {
    let mut desk = with_arbiter(1, 2, false);
    desk.pass(1_000, &[(0, holds(0))]);
    let ended = desk.now;
    desk.tell(Input::Gone { node: 0 });
    let Some((_, Question::Vote { number, .. })) = desk.until_asked(50, &[]) else {
        panic!("it asks at once")
    };
    let mut got = desk.answer(number, Outcome::Granted);
    while got.is_empty() {
        desk.now += 5;
        assert!(desk.now <= ended + 80, "and no longer than it must");
        got = desk.tell(Input::Tick);
    }
    assert_eq!(got, [HOLD]);
    assert!(desk.now >= ended + 40, "{} ms", desk.now - ended);
}

/// Of three nodes one that is alone could not hold with the arbiter's vote, and the other two need it: it leaves it to them.
#[test]
fn a_vote_that_would_not_do_is_not_asked_for() {
    let mut alone = with_arbiter(0, 3, false);
    alone.pass(1_000, &[(1, backs(0)), (2, backs(0))]);
    alone.done(Effect::Hold);
    alone.pass(6_000, &[(1, backs(0)), (2, backs(0))]);
    alone.asked.clear();
    assert_eq!(alone.state(), State::Active);
    // While one vote still lasts and the other does not, it would do; but it is not kept.
    let mut last = None;
    for _ in 0..80 {
        alone.pass(25, &[]);
        alone.done(Effect::Release);
        if let Some(question) = alone.asked.pop() {
            if let Question::Vote { number, .. } = question {
                alone.answer(number, Outcome::Granted);
                assert!(last.is_none(), "once at most");
            }
            last = Some(question);
        }
    }
    assert!(!matches!(last, Some(Question::Vote { .. })), "{last:?}");
    assert!(!alone.table.has_arbiters_vote(0));
    let mut two = with_arbiter(1, 3, false);
    two.pass(1_000, &[(0, holds(0)), (2, backs(0))]);
    assert!(two.until_asked(1_000, &[(2, backs(1))]).is_some());
}

#[test]
fn the_vote_is_kept_until_the_address_is_gone() {
    let mut desk = Desk::holding(false);
    let (_, question) = desk.until_asked(1_000, &[]).unwrap();
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    desk.answer(number, Outcome::Granted);
    desk.pass(500, &[]);
    assert_eq!(desk.tell(Input::Admin(Order::Demote(0))), Vec::<&str>::new());
    desk.tell(Input::Link { vip: 0, up: false });
    assert_eq!(desk.state(), State::Releasing);
    assert_eq!(desk.until_asked(150, &[]), None, "not yet");
    desk.done(Effect::Release);
    let (_, question) = desk.until_asked(100, &[]).unwrap();
    assert!(matches!(question, Question::Return { .. }), "{question:?}");
}

/// A machine that was suspended has lost time that its clock does not know of.
#[test]
fn suspension_ages_votes() {
    let mut desk = Desk::holding(false);
    let (_, question) = desk.until_asked(1_000, &[]).unwrap();
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    desk.answer(number, Outcome::Granted);
    assert!(desk.table.has_arbiters_vote(0));
    desk.tell(Input::Frozen {
        gap: Duration::from_secs(60),
    });
    assert!(!desk.table.has_arbiters_vote(0));
    // Nor does an answer count that was on its way.
    desk.answer(number, Outcome::Granted);
    assert!(!desk.table.has_arbiters_vote(0));
}

#[test]
fn strictly_it_waits_for_every_kernel() {
    let mut desk = with_arbiter(1, 2, true);
    desk.pass(4_000, &[(0, holds(0))]);
    let (_, question) = desk.until_asked(1_000, &[]).unwrap();
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    let mut granted = number;
    assert!(desk.answer(number, Outcome::Granted).is_empty());
    let began = desk.now;
    while desk.state() == State::Standby {
        let reason = desk.table.vip(0).reason;
        assert_eq!(reason, Reason::Quiet, "{} ms", desk.now - began);
        if let Some((_, Question::Vote { number, .. })) = desk.until_asked(25, &[]) {
            granted = granted.max(number);
            desk.answer(number, Outcome::Granted);
        }
        assert!(desk.now < began + 5_000);
    }
    // The lease, and a second for a kernel that is late.
    assert!((3_000..=3_050).contains(&(desk.now - began)), "{} ms", desk.now - began);
    assert!(granted > number, "the vote is renewed meanwhile");
}

#[test]
fn strictly_it_does_not_wait_for_who_says_that_it_is_free() {
    let mut desk = with_arbiter(1, 2, true);
    desk.pass(4_000, &[(0, holds(0))]);
    let leaving = Claim {
        phase: Phase::Leaving,
        ..claim(Phase::Leaving, Fit::Unable)
    };
    assert!(desk.pass(500, &[(0, leaving)]).is_empty());
    let free = Claim {
        backs: Some(1),
        ..claim(Phase::Free, Fit::Unable)
    };
    assert!(desk.pass(50, &[(0, free)]).contains(&HOLD));
}

#[test]
fn strictly_a_planned_move_breaks_before_it_makes() {
    let mut desk = Desk::holding(true);
    assert_eq!(desk.tell(Input::Admin(Order::Demote(0))), [RELEASE]);
    assert_eq!(desk.table.claims()[0].phase, Phase::Leaving);
    desk.done(Effect::Release);
    assert_eq!(desk.table.claims()[0].phase, Phase::Free);
}

/// What the keeper may have left behind is not said to be free.
#[test]
fn strictly_what_is_lost_sight_of_is_not_free() {
    let mut desk = Desk::holding(true);
    desk.tell(Input::Keeper(Err("does not answer".into())));
    assert_eq!(desk.state(), State::Fault);
    desk.pass(2_900, &[(NODE_B, backs(0))]);
    assert_eq!(desk.table.claims()[0].phase, Phase::Leaving);
    desk.pass(150, &[(NODE_B, backs(0))]);
    assert_eq!(desk.table.claims()[0].phase, Phase::Free);
    // A process that has just begun does not know either.
    let mut desk = with_arbiter(0, 2, true);
    desk.pass(2_900, &[(NODE_B, IDLE)]);
    assert_eq!(desk.table.claims()[0].phase, Phase::Leaving);
    // Without `strict` the next one does not wait.
    let mut desk = Desk::holding(false);
    desk.tell(Input::Keeper(Err("does not answer".into())));
    assert_eq!(desk.table.claims()[0].phase, Phase::Free);
}

#[test]
fn votes_survive_a_reload_but_not_another_arbiter() {
    let mut desk = Desk::holding(false);
    let (_, question) = desk.until_asked(1_000, &[]).unwrap();
    let Question::Vote { number, .. } = question else {
        panic!()
    };
    desk.answer(number, Outcome::Granted);
    let carried = |setup: Setup| {
        let mut table = Table::new(Instant::now(), setup);
        table.carry(&desk.table, &[Some(0)], &[Some(0), Some(1)], &[], &[]);
        table.has_arbiters_vote(0)
    };
    let same = desk.table.setup().clone();
    assert!(carried(same.clone()));
    let mut other = same;
    other.arbiter.as_mut().unwrap().place = "elsewhere".into();
    assert!(!carried(other));
}
