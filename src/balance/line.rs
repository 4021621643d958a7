//! Who waits for a place at a pool's backends, in order of arrival: pure.
//!
//! One line serves all workers. Whoever is first is *called* when a place may be free, and then tries to take one: if it
//! gets it, it leaves, and leaving calls the next, since there may be more than one place; if not, it waits on, until it
//! is called again. So one call for any number of places is enough, nobody is passed by a later one, and a call that finds
//! nothing costs one look.
//!
//! # Invariants
//!
//! 1. Nobody but the first is called.
//! 2. A call is never lost: it stands until the one who was called has [answered](Line::answer) or left.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Who somebody is in a line. Later ones have larger tickets; 0 is nobody's.
pub type Ticket = u64;

/// Who waits, in order of arrival. `W` is how somebody is woken.
#[derive(Debug)]
pub struct Line<W> {
    waiting: BTreeMap<Ticket, (Instant, W)>,
    latest: Ticket,
    called: Option<Ticket>,
}

impl<W> Default for Line<W> {
    fn default() -> Line<W> {
        Line {
            waiting: BTreeMap::new(),
            latest: 0,
            called: None,
        }
    }
}

impl<W: Clone> Line<W> {
    /// Joins at the end, unless so many wait already.
    pub fn join(&mut self, now: Instant, wake: W, length_max: usize) -> Option<Ticket> {
        if self.waiting.len() >= length_max {
            return None;
        }
        self.latest += 1;
        self.waiting.insert(self.latest, (now, wake));
        Some(self.latest)
    }

    /// A place may be free: whom to wake, unless the first knows already.
    pub fn call(&mut self) -> Option<W> {
        let (&first, (_, wake)) = self.waiting.first_key_value()?;
        let known = self.called.replace(first) == Some(first);
        (!known).then(|| wake.clone())
    }

    /// This one looks for a place now: whatever becomes free from here on is worth another call.
    pub fn answer(&mut self, ticket: Ticket) {
        self.called = self.called.filter(|&called| called != ticket);
    }

    /// This one does not wait any more; whom to wake in its place.
    pub fn leave(&mut self, ticket: Ticket) -> Option<W> {
        let was_first = self.is_first(ticket);
        self.waiting.remove(&ticket)?;
        self.answer(ticket);
        if was_first { self.call() } else { None }
    }

    /// Nobody has waited longer.
    pub fn is_first(&self, ticket: Ticket) -> bool {
        self.waiting
            .first_key_value()
            .is_some_and(|(&first, _)| first == ticket)
    }

    /// Who is called.
    pub fn called(&self) -> Option<Ticket> {
        self.called
    }

    /// How many wait in line.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether nobody waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// How long the first has waited.
    pub fn longest(&self, now: Instant) -> Option<Duration> {
        let (_, (since, _)) = self.waiting.first_key_value()?;
        Some(now.saturating_duration_since(*since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::Rng;

    /// Each step: what is done, and whom that wakes (0 = nobody). `j`: joins, `c`: a place may be free, `aN`: N answers,
    /// `lN`: N leaves. At most three wait.
    ///
    /// Seen to fail: a call that is repeated for one that is called; leaving that calls nobody; leaving from the middle
    /// that calls the first.
    #[test]
    fn whom_a_step_wakes() {
        #[rustfmt::skip]
        let stories: &[&[(&str, u64)]] = &[
            &[("c", 0), ("j", 0), ("c", 1), ("c", 0), ("l1", 0)],
            &[("j", 0), ("j", 0), ("c", 1), ("a1", 0), ("c", 1), ("l1", 2), ("c", 0), ("a2", 0), ("c", 2)],
            &[("j", 0), ("j", 0), ("j", 0), ("l2", 0), ("c", 1), ("l1", 3), ("l3", 0), ("c", 0)],
            // The first gives up, called or not: a place that it was told of is the next one's.
            &[("j", 0), ("j", 0), ("l1", 2)],
            &[("j", 0), ("j", 0), ("c", 1), ("l1", 2)],
            // A late answer of one that is not called any more means nothing.
            &[("j", 0), ("j", 0), ("c", 1), ("l1", 2), ("a1", 0), ("c", 0)],
            &[("j", 0), ("j", 0), ("j", 0), ("j", 0), ("l4", 0), ("l1", 2)],
        ];
        for story in stories {
            let now = Instant::now();
            let mut line = Line::default();
            for (step, woken) in *story {
                let ticket = step[1..].parse().unwrap_or(0);
                let got = match &step[..1] {
                    "j" => {
                        let name = line.latest + 1;
                        let full = line.len() == 3;
                        assert_eq!(line.join(now, name, 3).is_none(), full);
                        None
                    }
                    "c" => line.call(),
                    "a" => {
                        line.answer(ticket);
                        None
                    }
                    _ => line.leave(ticket),
                };
                assert_eq!(got.unwrap_or(0), *woken, "{step} of {story:?}");
            }
        }
    }

    /// Places, arrivals, workers that take their time, clients that give up: everybody who stays is served, in order of
    /// arrival, and no place is free while somebody waits and nobody is on the way to it.
    ///
    /// Seen to fail: leaving that calls nobody. Meant to notice: answering after the look instead of before it (a place that
    /// becomes free in between is lost).
    #[test]
    fn served_in_order_and_never_forgotten() {
        for seed in 0..2_000 {
            let mut rng = Rng::new(seed);
            let mut line: Line<()> = Line::default();
            let now = Instant::now();
            let (mut free, mut served, mut busy) = (0, 0, 1 + rng.below(3));
            // Woken, and where it stands: about to answer, or about to look.
            let mut on_the_way: Option<(Ticket, bool)> = None;
            for _ in 0..200 {
                match rng.below(6) {
                    0 | 1 => {
                        let joined = line.join(now, (), 8);
                        // Whoever joins looks once more: a place may have become free just before.
                        if joined.is_some_and(|ticket| line.is_first(ticket)) && free > 0 {
                            line.call();
                        }
                    }
                    2 if busy > 0 => {
                        busy -= 1;
                        free += 1;
                        line.call();
                    }
                    3 if !line.is_empty() => {
                        let nth = rng.below(line.len() as u64) as usize;
                        let ticket = *line.waiting.keys().nth(nth).unwrap();
                        on_the_way = on_the_way.filter(|way| way.0 != ticket);
                        line.leave(ticket);
                    }
                    _ => match on_the_way {
                        None => on_the_way = line.called().map(|ticket| (ticket, false)),
                        Some((ticket, false)) => {
                            line.answer(ticket);
                            on_the_way = Some((ticket, true));
                        }
                        Some((ticket, true)) => {
                            on_the_way = None;
                            if free > 0 {
                                assert!(ticket > served && line.is_first(ticket), "seed {seed}: out of turn");
                                (free, busy, served) = (free - 1, busy + 1, ticket);
                                line.leave(ticket);
                            }
                        }
                    },
                }
                let forgotten = free > 0 && !line.is_empty() && line.called().is_none() && on_the_way.is_none();
                assert!(!forgotten, "seed {seed}: a free place, and nobody knows");
            }
        }
    }
}
