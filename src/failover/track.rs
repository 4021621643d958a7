//! What a node watches beside its own service: when each thing is asked about, and what the answers mean.
//!
//! # How it works
//! A thing is asked about every `interval`, counted from question to question; no answer within `timeout` is a bad one. The first
//! answer decides at once. From then on it takes `rise` good ones in a row, or `fall` bad ones, to change the verdict, so that
//! something that comes and goes moves no address. An interface is not asked about: the kernel says when its carrier comes
//! and goes, and what it says counts at once.
//!
//! # Invariants
//! * One question about a thing is under way at a time.
//! * At most [`SCRIPTS_MAX`] scripts run at once. Of those that are due, the one that waits longest is next.

use std::time::{Duration, Instant};

use crate::health::verdict::{Condition, Verdict};

/// Scripts that run at the same time; `notify` has as many places of its own in the process that runs them.
pub const SCRIPTS_MAX: usize = 4;

/// A script that has taken too long is killed, and that is told; this much later nobody will tell any more.
const KILLED_BY: Duration = Duration::from_secs(2);

/// How an answer comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Unasked, from the kernel.
    Told,
    /// From a connection that is tried.
    Connect,
    /// From a script that is run.
    Script,
}

/// Times and counts of one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// How its answers come.
    pub kind: Kind,
    /// Time from one question to the next.
    pub interval: Duration,
    /// How long an answer may take.
    pub timeout: Duration,
    /// Good answers in a row after which it holds.
    pub rise: u32,
    /// Bad answers in a row after which it does not hold.
    pub fall: u32,
}

/// One thing that is watched.
#[derive(Debug, Clone)]
pub struct Watch {
    terms: Terms,
    verdict: Verdict,
    due: Instant,
    asked: Option<Instant>,
    why: Option<String>,
}

impl Watch {
    /// It is asked about at once. `held`: it is known to have held before.
    pub fn new(now: Instant, terms: Terms, held: bool) -> Watch {
        Watch {
            terms,
            verdict: match held {
                true => Verdict::unprobed(),
                false => Verdict::default(),
            },
            due: now,
            asked: None,
            why: None,
        }
    }

    /// Whether it holds; none = nothing is known yet.
    pub fn holds(&self) -> Option<bool> {
        match self.verdict.condition() {
            Condition::Starting => None,
            Condition::Up => Some(true),
            Condition::Down => Some(false),
        }
    }

    /// What the last answer said, if it was a bad one.
    pub fn why(&self) -> Option<&str> {
        self.why.as_deref()
    }

    /// Takes an answer; whether it changes the verdict.
    pub fn answer(&mut self, answer: Result<(), String>) -> bool {
        self.asked = None;
        let good = answer.is_ok();
        self.why = answer.err();
        self.verdict.observe(good, self.terms.rise, self.terms.fall)
    }

    /// When it is to be asked about, or its answer is overdue.
    pub fn deadline(&self) -> Option<Instant> {
        match (self.terms.kind, self.asked) {
            (Kind::Told, _) => None,
            (_, None) => Some(self.due),
            (_, Some(asked)) => Some(asked + self.patience()),
        }
    }

    /// No answer has come in time; none = it has, or it may yet.
    pub fn overdue(&self, now: Instant) -> Option<String> {
        let late = self.asked.is_some_and(|asked| now >= asked + self.patience());
        late.then(|| match self.terms.kind {
            Kind::Script => "the process that runs commands does not answer".into(),
            _ => format!("no answer within {:?}", self.terms.timeout),
        })
    }

    /// What was asked will not be answered: it is asked again.
    pub fn forget_question(&mut self) {
        if let Some(asked) = self.asked.take() {
            self.due = asked;
        }
    }

    fn patience(&self) -> Duration {
        match self.terms.kind {
            Kind::Script => self.terms.timeout + KILLED_BY,
            _ => self.terms.timeout,
        }
    }

    fn runs(&self) -> bool {
        self.terms.kind == Kind::Script && self.asked.is_some()
    }
}

/// Whose turn it is to be asked about; that it is asked now is noted.
pub fn turn(watches: &mut [Watch], now: Instant) -> Vec<usize> {
    let mut places = SCRIPTS_MAX.saturating_sub(watches.iter().filter(|watch| watch.runs()).count());
    let is_due = |watch: &Watch| watch.terms.kind != Kind::Told && watch.asked.is_none() && now >= watch.due;
    let mut due: Vec<usize> = (0..watches.len()).filter(|ix| is_due(&watches[*ix])).collect();
    due.sort_by_key(|ix| watches[*ix].due);
    due.retain(|ix| match watches[*ix].terms.kind {
        Kind::Script => {
            let place = places > 0;
            places -= usize::from(place);
            place
        }
        _ => true,
    });
    for ix in &due {
        let watch = &mut watches[*ix];
        watch.asked = Some(now);
        watch.due = now + watch.terms.interval;
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn terms(kind: Kind) -> Terms {
        Terms {
            kind,
            interval: ms(1_000),
            timeout: ms(500),
            rise: 2,
            fall: 3,
        }
    }

    fn bad() -> Result<(), String> {
        Err("refused".into())
    }

    /// `+` a good answer, `-` a bad one; below each, what is known after it: up, down.
    #[test]
    fn answers_and_what_they_mean() {
        for (held, answers, verdicts) in [
            // The first one decides.
            (false, "+", "u"),
            (false, "-", "d"),
            // Then it takes some in a row.
            (false, "+--+--+", "uuuuuuu"),
            (false, "+---", "uuud"),
            (false, "-+-+-+", "dddddd"),
            (false, "-++", "ddu"),
            // What held before a reload needs as many to fall as it ever does.
            (true, "--", "uu"),
            (true, "---", "uud"),
            (true, "-+--", "uuuu"),
        ] {
            let mut watch = Watch::new(Instant::now(), terms(Kind::Connect), held);
            assert_eq!(watch.holds(), held.then_some(true));
            for (n, (answer, verdict)) in answers.chars().zip(verdicts.chars()).enumerate() {
                let before = watch.holds();
                let good = answer == '+';
                let changed = watch.answer(if good { Ok(()) } else { bad() });
                assert_eq!(watch.holds(), Some(verdict == 'u'), "{answers}, answer {n}");
                assert_eq!(changed, before != watch.holds(), "{answers}, answer {n}");
                assert_eq!(watch.why(), (!good).then_some("refused"));
            }
        }
    }

    #[test]
    fn questions_come_at_their_interval_and_one_at_a_time() {
        let zero = Instant::now();
        let mut watches = [Watch::new(zero, terms(Kind::Connect), false)];
        assert_eq!(turn(&mut watches, zero), [0]);
        assert_eq!(
            watches[0].deadline(),
            Some(zero + ms(500)),
            "its answer may take so long"
        );
        assert_eq!(turn(&mut watches, zero + ms(1_500)), [0; 0], "one is under way");
        assert_eq!(watches[0].overdue(zero + ms(499)), None);
        let why = watches[0].overdue(zero + ms(500)).unwrap();
        assert_eq!(why, "no answer within 500ms");
        watches[0].answer(Err(why));
        assert_eq!(watches[0].overdue(zero + ms(600)), None, "said once");
        assert_eq!(watches[0].deadline(), Some(zero + ms(1_000)));
        assert_eq!(turn(&mut watches, zero + ms(999)), [0; 0]);
        assert_eq!(turn(&mut watches, zero + ms(1_000)), [0]);
    }

    #[test]
    fn an_interface_is_not_asked_about() {
        let zero = Instant::now();
        let told = Terms {
            rise: 1,
            fall: 1,
            ..terms(Kind::Told)
        };
        let mut watches = [Watch::new(zero, told, false)];
        assert_eq!(turn(&mut watches, zero + ms(9_000)), [0; 0]);
        assert_eq!(watches[0].deadline(), None);
        assert!(watches[0].answer(Ok(())) && watches[0].answer(bad()) && !watches[0].answer(bad()));
    }

    /// Ten scripts, none of which ends by itself in time: each gets its turn before anyone gets a second one.
    #[test]
    fn scripts_take_turns() {
        let zero = Instant::now();
        let mut watches: Vec<Watch> = (0..10).map(|_| Watch::new(zero, terms(Kind::Script), false)).collect();
        watches.push(Watch::new(zero, terms(Kind::Connect), false));
        assert_eq!(
            turn(&mut watches, zero),
            [0, 1, 2, 3, 10],
            "a connection needs no place"
        );
        let (mut order, mut now) = (vec![0, 1, 2, 3], zero);
        while order.len() < 20 {
            now += ms(500);
            let running: Vec<usize> = (0..10).filter(|ix| watches[*ix].runs()).collect();
            assert!(running.len() <= SCRIPTS_MAX);
            running.into_iter().for_each(|ix| _ = watches[ix].answer(bad()));
            order.extend(turn(&mut watches, now).into_iter().filter(|ix| *ix < 10));
        }
        let mut first: Vec<usize> = order[..10].to_vec();
        first.sort();
        assert_eq!(
            first,
            (0..10).collect::<Vec<_>>(),
            "everybody once before anybody twice: {order:?}"
        );
        // The runner has died: that is a bad answer too, a little later.
        let ix = (0..10).find(|ix| watches[*ix].runs()).unwrap();
        assert_eq!(watches[ix].overdue(now + ms(2_499)), None);
        assert!(watches[ix].overdue(now + ms(2_500)).is_some());
    }
}
