//! How far the keeper is relied on: pure.
//!
//! | state | legal here | leaves by |
//! |---|---|---|
//! | works | it is asked, and its answers count | a proof of life that it does not acknowledge within its patience, an address that it does not remove: stuck |
//! | stuck | nothing is asked, and what it answers is void | the next tick: it is told to begin anew, and is silent |
//! | silent | the same | its answer to just that: works |
//! | useless | the same | never: it has ended, or lacks what it needs |

use std::time::{Duration, Instant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Works,
    Stuck,
    /// Has been told to begin anew, by this number.
    Silent(u64),
    Useless,
}

/// What is known of the keeper.
#[derive(Debug)]
pub struct Trust {
    state: State,
    resets: u64,
    unacknowledged: Option<Instant>,
    ended: Option<Instant>,
}

impl Trust {
    /// `resets`: how often it has been told to begin anew. One that failed a predecessor is told so again, or nobody would ever
    /// hear that it works.
    pub fn new(resets: u64, failed: bool) -> Trust {
        Trust {
            state: if failed { State::Stuck } else { State::Works },
            resets,
            unacknowledged: None,
            ended: None,
        }
    }

    /// Whether it is asked, and its answers count.
    pub fn works(&self) -> bool {
        self.state == State::Works
    }

    /// How often it has been told to begin anew.
    pub fn resets(&self) -> u64 {
        self.resets
    }

    /// It has been given a proof of life.
    pub fn proved(&mut self, now: Instant) {
        self.unacknowledged.get_or_insert(now);
    }

    /// It has acknowledged them all.
    pub fn acknowledged(&mut self) {
        self.unacknowledged = None;
    }

    /// Whether it should have acknowledged a proof by now.
    pub fn is_late(&self, now: Instant, patience: Duration) -> bool {
        let late = |at: Instant| now.saturating_duration_since(at) > patience;
        self.works() && self.unacknowledged.is_some_and(late)
    }

    /// It does not do what it should; whether that is news.
    pub fn doubt(&mut self) -> bool {
        let news = self.works();
        if news {
            self.state = State::Stuck;
        }
        news
    }

    /// The number by which it is to be told to begin anew, once.
    pub fn reset(&mut self) -> Option<u64> {
        if self.state != State::Stuck {
            return None;
        }
        self.resets += 1;
        self.state = State::Silent(self.resets);
        Some(self.resets)
    }

    /// It says that it has begun anew; whether that makes it work again.
    pub fn begun_anew(&mut self, number: u64) -> bool {
        let news = self.state == State::Silent(number);
        if news {
            self.state = State::Works;
            self.unacknowledged = None;
        }
        news
    }

    /// It lacks what it needs.
    pub fn give_up(&mut self) {
        self.state = State::Useless;
    }

    /// It has ended; whether that is news.
    pub fn end(&mut self, now: Instant) -> bool {
        let news = self.state != State::Useless;
        if news {
            self.state = State::Useless;
            self.ended = Some(now);
        }
        news
    }

    /// Whether it has ended so long ago.
    pub fn ended_before(&self, now: Instant, length: Duration) -> bool {
        self.ended.is_some_and(|at| now.saturating_duration_since(at) >= length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_reset_for_each_doubt_and_only_its_own_answer_counts() {
        let now = Instant::now();
        let ms = Duration::from_millis;
        let mut trust = Trust::new(7, false);
        trust.proved(now);
        trust.proved(now + ms(50));
        assert!(!trust.is_late(now + ms(200), ms(200)) && trust.is_late(now + ms(201), ms(200)));
        assert_eq!(trust.reset(), None, "it works");
        assert!(trust.doubt() && !trust.doubt(), "news once");
        assert!(!trust.works() && !trust.is_late(now + ms(900), ms(200)));
        assert_eq!((trust.reset(), trust.reset()), (Some(8), None), "told once");
        assert!(!trust.begun_anew(7) && !trust.works(), "the answer to an older one");
        assert!(trust.begun_anew(8) && trust.works() && !trust.begun_anew(8));
        assert!(
            !trust.is_late(now + ms(900), ms(200)),
            "what it was told before is void"
        );
        assert_eq!(trust.resets(), 8);
    }

    #[test]
    fn one_that_failed_a_predecessor_is_told_to_begin_anew() {
        let mut trust = Trust::new(3, true);
        assert!(!trust.works());
        assert_eq!(trust.reset(), Some(4));
    }

    #[test]
    fn nothing_brings_back_one_that_has_ended() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        let mut trust = Trust::new(0, false);
        assert!(trust.end(now) && !trust.end(now + second), "news once");
        assert!(trust.ended_before(now + second, second) && !trust.ended_before(now, second));
        assert!(!trust.doubt() && trust.reset().is_none() && !trust.begun_anew(0) && !trust.works());
        // One that lacks privileges is there: nothing ends with it.
        let mut trust = Trust::new(0, false);
        trust.give_up();
        assert!(!trust.end(now) && !trust.ended_before(now + second, second));
    }
}
