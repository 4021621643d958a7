use proptest::prelude::*;

use super::*;

#[path = "../../../tests/failover_sim/etcd.rs"]
mod etcd;

use etcd::{Etcd, Said};

const MS: u64 = 1_000;

fn terms() -> Terms {
    Terms::derive(&Timers::derive(Duration::from_millis(50), Duration::from_millis(250)))
}

/// A voter on one unit, with times in milliseconds.
struct Rig {
    voter: Voter,
}

impl Rig {
    fn new() -> Rig {
        Rig {
            voter: Voter::new(terms(), 1),
        }
    }

    fn at(&mut self, ms: u64, wish: Wish) -> Vec<Question> {
        let mut out = Vec::new();
        self.voter.wish(ms * MS, 0, wish);
        self.voter.step(ms * MS, &mut out);
        out
    }

    fn says(&mut self, ms: u64, number: u64, outcome: Outcome) {
        let outcomes = vec![(0, outcome)];
        self.voter.answer(ms * MS, Answer::Voted { number, outcomes });
    }

    fn counts(&self, ms: u64) -> bool {
        self.voter.counts_until(0).is_some_and(|until| ms * MS < until)
    }
}

fn vote(number: u64) -> Vec<Question> {
    vec![Question::Vote { number, units: vec![0] }]
}

fn back(number: u64, leases: &[u64]) -> Vec<Question> {
    vec![Question::Return {
        number,
        units: vec![0],
        leases: leases.to_vec(),
    }]
}

#[test]
fn the_default_terms() {
    let terms = terms();
    assert_eq!(terms.ttl, Duration::from_secs(5));
    assert_eq!(terms.counts(), Duration::from_millis(4_650));
    // A stall of two seconds right before a renewal costs nothing.
    assert!(terms.renew + 2 * terms.patience + Duration::from_secs(2) < terms.counts());
}

/// Whatever the timers are, a vote lasts long enough to be renewed several times.
#[test]
fn terms_for_all_timers() {
    for (beat, dead_after) in [(10, 40), (50, 250), (1_000, 4_000), (10_000, 60_000)] {
        let timers = Timers::derive(Duration::from_millis(beat), Duration::from_millis(dead_after));
        let terms = Terms::derive(&timers);
        assert!(terms.counts() >= Duration::from_secs(3), "{terms:?}");
        assert!(terms.margin > timers.keeper_patience + terms.ttl / CLOCK_RATE);
    }
}

#[test]
fn it_is_asked_once_and_counts_from_then() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(0, Wish::Spare), []);
    assert_eq!(rig.at(10, Wish::Have), vote(1));
    assert_eq!(rig.voter.view(10 * MS, 0), View::Asking { since: 10 * MS });
    assert_eq!(rig.at(20, Wish::Have), []);
    assert!(!rig.counts(20));
    rig.says(300, 1, Outcome::Granted);
    assert!(rig.counts(300));
    assert_eq!(rig.voter.view(300 * MS, 0), View::Granted { until: 4_660 * MS });
    assert!(rig.counts(4_659) && !rig.counts(4_660));
    // Renewed a second after it was asked for, not after it was answered.
    assert_eq!(rig.at(1_009, Wish::Have), []);
    assert_eq!(rig.at(1_010, Wish::Have), vote(2));
    rig.says(1_020, 2, Outcome::Granted);
    assert!(rig.counts(5_659) && !rig.counts(5_660));
}

#[test]
fn silence_is_asked_again_and_late_answers_count() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(0, Wish::Have), vote(1));
    assert_eq!(rig.at(499, Wish::Have), []);
    assert_eq!(rig.at(500, Wish::Have), vote(2));
    rig.says(900, 1, Outcome::Granted);
    assert!(rig.counts(4_649) && !rig.counts(4_650));
    rig.says(950, 2, Outcome::Granted);
    assert!(rig.counts(5_149) && !rig.counts(5_150));
    // The older one again, or that it came too late for the newer one, shortens nothing.
    rig.says(960, 1, Outcome::Granted);
    rig.says(970, 1, Outcome::Superseded);
    rig.says(970, 1, Outcome::Taken { by: "b".into() });
    assert!(rig.counts(5_149));
    // An answer that comes when its time is over is of no use.
    let mut rig = Rig::new();
    rig.at(0, Wish::Have);
    rig.says(4_650, 1, Outcome::Granted);
    assert!(!rig.counts(4_650));
}

/// While nothing is answered, the number of questions stays small.
#[test]
fn an_arbiter_that_is_silent_is_not_flooded() {
    let mut rig = Rig::new();
    let asked: usize = (0..60_000).step_by(25).map(|ms| rig.at(ms, Wish::Have).len()).sum();
    assert!((100..=121).contains(&asked), "{asked} questions in a minute");
    let mut rig = Rig::new();
    let mut refused = 0;
    for ms in (0..60_000).step_by(25) {
        for question in rig.at(ms, Wish::Have) {
            let Question::Vote { number, .. } = question else {
                panic!()
            };
            rig.says(ms, number, Outcome::Taken { by: "b".into() });
            refused += 1;
        }
    }
    assert!(refused <= 241, "{refused} questions in a minute");
    assert_eq!(rig.voter.taken_by(0), Some("b"));
}

#[test]
fn what_is_not_needed_is_given_back() {
    let mut rig = Rig::new();
    rig.at(0, Wish::Have);
    rig.says(5, 1, Outcome::Granted);
    // For the length of `dead_after` it may be wanted again.
    assert_eq!(rig.at(100, Wish::Spare), []);
    assert_eq!(rig.at(200, Wish::Have), []);
    assert_eq!(rig.at(300, Wish::Spare), []);
    assert_eq!(rig.at(549, Wish::Spare), []);
    assert!(rig.counts(549));
    assert_eq!(rig.at(550, Wish::Spare), back(1, &[1]));
    assert!(!rig.counts(550), "it counts no more before the arbiter is told");
    assert_eq!(rig.voter.view(550 * MS, 0), View::GivingBack { since: 550 * MS });
    // An answer that was under way does not bring it back.
    rig.says(560, 1, Outcome::Granted);
    assert!(!rig.counts(560));
    assert_eq!(rig.at(1_049, Wish::Spare), []);
    assert_eq!(rig.at(1_050, Wish::Spare), back(1, &[1]), "no answer: once more");
    rig.voter.answer(1_060 * MS, Answer::Returned { number: 1 });
    assert_eq!(rig.voter.view(1_060 * MS, 0), View::Idle);
    assert_eq!(rig.at(9_000, Wish::Spare), []);
}

#[test]
fn what_is_of_no_use_is_given_back_at_once() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(0, Wish::Have), vote(1));
    assert_eq!(rig.at(10, Wish::Drop), back(1, &[1]));
    // Wanted again before that is answered: a new number, which the return does not touch.
    assert_eq!(rig.at(20, Wish::Have), vote(2));
    rig.says(30, 1, Outcome::Granted);
    assert!(!rig.counts(30));
    rig.says(40, 2, Outcome::Granted);
    rig.voter.answer(50 * MS, Answer::Returned { number: 1 });
    assert!(rig.counts(50));
}

/// Kept as it is: neither renewed nor returned.
#[test]
fn it_can_be_kept_for_a_while() {
    let mut rig = Rig::new();
    rig.at(0, Wish::Have);
    rig.says(5, 1, Outcome::Granted);
    for ms in (100..4_650).step_by(50) {
        assert_eq!(rig.at(ms, Wish::Keep), []);
        assert!(rig.counts(ms));
    }
    assert_eq!(rig.at(4_650, Wish::Drop), back(1, &[1]));
}

#[test]
fn somebody_meddles_with_the_store() {
    let mut rig = Rig::new();
    rig.at(0, Wish::Have);
    rig.says(5, 1, Outcome::Granted);
    assert_eq!(rig.at(1_000, Wish::Have), vote(2));
    rig.says(1_005, 2, Outcome::Taken { by: "b".into() });
    assert!(!rig.counts(1_005));
}

#[test]
fn one_lease_serves_all_units() {
    let mut voter = Voter::new(terms(), 3);
    let mut out = Vec::new();
    for (ms, unit) in [(0, 0), (600, 1)] {
        voter.wish(ms * MS, unit, Wish::Have);
        voter.step(ms * MS, &mut out);
        let outcomes = vec![(unit, Outcome::Granted)];
        let number = out.len() as u64;
        voter.answer(ms * MS + 1, Answer::Voted { number, outcomes });
    }
    out.clear();
    voter.step(1_100 * MS, &mut out);
    let units = vec![0, 1];
    assert_eq!(out, [Question::Vote { number: 3, units }]);
    // One unit is returned, the lease that another goes with is not.
    voter.answer(
        1_101 * MS,
        Answer::Voted {
            number: 3,
            outcomes: vec![(0, Outcome::Granted), (1, Outcome::Granted)],
        },
    );
    out.clear();
    voter.wish(1_200 * MS, 0, Wish::Drop);
    voter.step(1_200 * MS, &mut out);
    let back = Question::Return {
        number: 3,
        units: vec![0],
        leases: vec![1],
    };
    assert_eq!(out, [back]);
    assert_eq!(voter.votes(1_200 * MS), 1);
}

#[test]
fn votes_move_with_their_units_when_the_configuration_changes() {
    let mut rig = Rig::new();
    rig.at(0, Wish::Have);
    rig.says(5, 1, Outcome::Granted);
    let mut voter = Voter::new(terms(), 2);
    voter.carry(&rig.voter, &[None, Some(0)]);
    assert_eq!(voter.counts_until(0), None);
    assert_eq!(voter.counts_until(1), rig.voter.counts_until(0));
    let mut out = Vec::new();
    voter.wish(1_000 * MS, 1, Wish::Have);
    voter.step(1_000 * MS, &mut out);
    let units = vec![1];
    assert_eq!(out, [Question::Vote { number: 2, units }], "numbers go on");
}

#[test]
fn health() {
    let mut rig = Rig::new();
    assert_eq!(rig.voter.up(), None);
    rig.voter.answer(0, Answer::Health(Ok(())));
    assert_eq!(rig.voter.up(), Some(Ok(())));
    rig.voter.answer(0, Answer::Health(Err("refused".into())));
    assert_eq!(rig.voter.up(), Some(Err("refused")));
    rig.at(0, Wish::Have);
    rig.says(5, 1, Outcome::Taken { by: "b".into() });
    assert_eq!(rig.voter.up(), Some(Ok(())));
}

/// What is on its way to the arbiter, or back.
#[derive(Debug, Clone)]
enum Mail {
    Grant {
        who: usize,
        number: u64,
    },
    Vote {
        who: usize,
        number: u64,
        unit: usize,
        answer: bool,
    },
    Return {
        who: usize,
        number: u64,
        unit: usize,
        leases: Vec<u64>,
    },
    Answer {
        who: usize,
        answer: Answer,
    },
}

/// Two nodes with one arbiter, for twenty seconds. Questions are delayed by up to three seconds, carried out twice, answered late
/// or not at all; leases end late, leaders change, and one node's clock runs slower than the arbiter's, the other's faster.
fn play(seed: u64, terms: Terms, forgiving: bool) -> Result<(), String> {
    let mut state = seed;
    let mut below = move |n: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let rates = [991, 1_009];
    let units = 2;
    let mut voters = [Voter::new(terms, units), Voter::new(terms, units)];
    let mut wishes = [[Wish::Spare; 2]; 2];
    let mut etcd = Etcd::default();
    let mut mail: Vec<(u64, Mail)> = Vec::new();
    let ttl = micros(terms.ttl);
    let calm = 20_000 * MS;
    let end = if forgiving { 40_000 * MS } else { calm };
    for now in (0..end).step_by(10 * MS as usize) {
        etcd.expire(now);
        let quiet = now >= calm;
        let delay = |below: &mut dyn FnMut(u64) -> u64| match below(10) {
            _ if quiet => below(5) * MS,
            0 => below(3_000) * MS,
            _ => below(30) * MS,
        };
        if !quiet && below(300) == 0 {
            etcd.new_leader(now);
        }
        let (due, later): (Vec<_>, Vec<_>) = mail.into_iter().partition(|(at, _)| *at <= now);
        mail = later;
        for (_, what) in due {
            match what {
                Mail::Grant { who, number } => {
                    let late = [0, below(1_500) * MS][below(2) as usize];
                    etcd.grant(now, (who, number), ttl, late);
                }
                Mail::Vote {
                    who,
                    number,
                    unit,
                    answer,
                } => {
                    let said = etcd.vote(unit, who, number);
                    let answer_ = match said {
                        Said::Granted => Outcome::Granted,
                        Said::Taken { by } => Outcome::Taken { by: by.to_string() },
                        Said::Superseded => Outcome::Superseded,
                        Said::NoLease => continue,
                    };
                    if answer && (quiet || below(10) > 0) {
                        let outcomes = vec![(unit, answer_)];
                        let answer = Answer::Voted { number, outcomes };
                        mail.push((now + delay(&mut below), Mail::Answer { who, answer }));
                    }
                }
                Mail::Return {
                    who,
                    number,
                    unit,
                    leases,
                } => {
                    etcd.give_back(unit, who, number);
                    leases.iter().for_each(|lease| etcd.revoke((who, *lease)));
                    if quiet || below(10) > 0 {
                        let answer = Answer::Returned { number };
                        mail.push((now + delay(&mut below), Mail::Answer { who, answer }));
                    }
                }
                Mail::Answer { who, answer } => voters[who].answer(now * rates[who] / 1_000, answer),
            }
        }
        for who in 0..2 {
            let local = now * rates[who] / 1_000;
            let mut out = Vec::new();
            for (unit, wish) in wishes[who].iter_mut().enumerate() {
                if below(200) == 0 {
                    *wish = [Wish::Have, Wish::Have, Wish::Keep, Wish::Spare, Wish::Drop][below(5) as usize];
                }
                if quiet {
                    *wish = if who == unit { Wish::Have } else { Wish::Drop };
                }
                voters[who].wish(local, unit, *wish);
            }
            voters[who].step(local, &mut out);
            for question in out {
                match question {
                    Question::Vote { number, units } => {
                        let granted = now + delay(&mut below);
                        mail.push((granted, Mail::Grant { who, number }));
                        for unit in units {
                            for answer in [true, false] {
                                let at = granted + MS + delay(&mut below);
                                let vote = Mail::Vote {
                                    who,
                                    number,
                                    unit,
                                    answer,
                                };
                                // Now and then it is carried out twice.
                                if answer || below(3) == 0 {
                                    mail.push((at, vote));
                                }
                            }
                        }
                    }
                    Question::Return { number, units, leases } => {
                        for unit in units {
                            let leases = leases.clone();
                            let back = Mail::Return {
                                who,
                                number,
                                unit,
                                leases,
                            };
                            mail.push((now + delay(&mut below), back));
                        }
                    }
                }
            }
            for unit in 0..units {
                let counts = voters[who].counts_until(unit).is_some_and(|until| local < until);
                if counts && etcd.owner(unit) != Some(who) {
                    return Err(format!(
                        "seed {seed}: at {} ms node {who} counts the vote on {unit}, which is {:?}'s",
                        now / MS,
                        etcd.owner(unit)
                    ));
                }
            }
        }
    }
    if forgiving {
        for who in 0..2 {
            let local = end * rates[who] / 1_000;
            let counts = voters[who].counts_until(who).is_some_and(|until| local < until);
            if !counts {
                return Err(format!(
                    "seed {seed}: node {who} has not got its vote: {:?}",
                    voters[who]
                ));
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// A vote counts only while the arbiter has our name on it, and who alone wants it gets it.
    #[test]
    fn a_vote_that_counts_is_ours(seed: u64) {
        prop_assert_eq!(play(seed, terms(), true), Ok(()));
    }
}

/// The play notices when a vote counts from its answer on, or until the very end of its lease.
#[test]
fn broken_terms_are_noticed() {
    let longer = Terms {
        margin: Duration::ZERO,
        ..terms()
    };
    let much_longer = Terms {
        ttl: Duration::from_secs(5),
        margin: Duration::ZERO,
        renew: Duration::from_secs(10),
        ..terms()
    };
    for (what, terms) in [("no margin", longer), ("no margin, no renewal", much_longer)] {
        let failed = (0..200).filter(|seed| play(*seed, terms, false).is_err()).count();
        assert!(failed > 0, "{what}: not noticed");
    }
}
