//! Which backends of a pool take new work: one rule, for the workers' snapshot, `weir explain`, `/status` and the metrics.
//!
//! | the pool has | new work goes to | if all of those have failed a connection | [`Serving`] |
//! |---|---|---|---|
//! | a primary that is ready | primaries, ready or untested | nobody | `primary` |
//! | untested primaries only | them | backups, ready or untested | `primary` |
//! | no primary of these, but backups | backups, ready or untested | nobody | `backup` |
//! | only unhealthy ones, `all_down: try_all` | unhealthy primaries | unhealthy backups | `all` |
//! | none of these | nobody | nobody | `none` |
//!
//! Beside others that serve, a newcomer (a member that a source has brought to a pool that had members) takes nothing before it
//! has been probed. Where there is nobody else it counts as untested.
//!
//! A backend of weight 0 or one withdrawn by the operator is in none of the sets.
//!
//! An untested backend takes work as if it were up: a failed connect goes elsewhere, while a start that waits for probes
//! would pile everything on whoever is probed first. Health alone lets backups serve: neither a refused connect nor
//! `max_connections` does, because a connection that reaches the standby of a database while others write to its primary
//! does harm. So it is in HAProxy.

use crate::balance::{Mask, Shares};
use crate::base::words;
use crate::config::model::AllDown;

use super::Standing;

/// What the rule looks at, of one backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Its health and the operator's orders.
    pub standing: Standing,
    /// Weight in force.
    pub weight: u32,
    /// Whether it is a backup.
    pub backup: bool,
    /// Its share of its weight in 1/1024ths (slow start).
    pub share: u32,
}

words! {
    /// Which of a pool's backends take new work.
    pub enum Serving {
        /// No backend.
        Nobody = "none",
        /// The primaries that are up.
        Primaries = "primary",
        /// Backups: no primary is left.
        Backups = "backup",
        /// Nothing is up, and all are tried.
        All = "all",
    }
}

/// Who takes the new work of a pool. One bit a backend, in configuration order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Eligibility {
    /// Who that is.
    pub serving: Serving,
    /// New work goes to one of these.
    pub first: Mask,
    /// And to one of these if each of the first was tried in vain.
    pub then: Mask,
    /// Effective share of each backend.
    pub shares: Shares,
    /// Backends that are known to be up and have a weight.
    pub healthy: usize,
}

impl Eligibility {
    /// Applies the rule.
    pub fn new(candidates: &[Candidate], all_down: AllDown) -> Eligibility {
        let len = candidates.len();
        let of = |backup: bool, wanted: &[Standing]| {
            Mask::from_fn(len, |ix| {
                let candidate = &candidates[ix];
                candidate.backup == backup && candidate.weight > 0 && wanted.contains(&candidate.standing)
            })
        };
        let nobody = || Mask::new(len);
        let [primaries, backups] = [false, true].map(|backup| {
            let known = of(backup, &[Standing::Ready, Standing::Untested]);
            match known.is_empty() {
                true => of(backup, &[Standing::New]),
                false => known,
            }
        });
        let [ready, ready_backups] = [false, true].map(|backup| of(backup, &[Standing::Ready]));
        let [ill, ill_backups] = [false, true].map(|backup| of(backup, &[Standing::Unhealthy]));
        let (serving, first, then) = if !ready.is_empty() {
            (Serving::Primaries, primaries, nobody())
        } else if !primaries.is_empty() {
            (Serving::Primaries, primaries, backups)
        } else if !backups.is_empty() {
            (Serving::Backups, backups, nobody())
        } else if all_down == AllDown::Refuse || ill.is_empty() && ill_backups.is_empty() {
            (Serving::Nobody, nobody(), nobody())
        } else if ill.is_empty() {
            (Serving::All, ill_backups, nobody())
        } else {
            (Serving::All, ill, ill_backups)
        };
        let shares: Vec<u32> = candidates.iter().map(|candidate| candidate.share).collect();
        Eligibility {
            serving,
            shares: Shares::new(&shares, &first),
            first,
            then,
            healthy: ready.count() + ready_backups.count(),
        }
    }

    /// Backends that take new work now.
    pub fn count(&self) -> usize {
        match self.serving {
            Serving::All => self.first.count() + self.then.count(),
            _ => self.first.count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A backend as a letter: r(eady), u(ntested), n(ew), i(ll), w(ithdrawn), 0 (ready, without weight); a capital is a backup.
    fn candidate(letter: char) -> Candidate {
        let standing = match letter.to_ascii_lowercase() {
            'r' | '0' | 'o' => Standing::Ready,
            'u' => Standing::Untested,
            'n' => Standing::New,
            'i' => Standing::Unhealthy,
            _ => Standing::Withdrawn,
        };
        Candidate {
            standing,
            weight: u32::from(!matches!(letter, '0' | 'O')),
            backup: letter.is_ascii_uppercase(),
            share: Shares::WHOLE,
        }
    }

    fn judge(letters: &str, all_down: AllDown) -> Eligibility {
        let candidates: Vec<Candidate> = letters.chars().map(candidate).collect();
        Eligibility::new(&candidates, all_down)
    }

    fn digits(mask: &Mask) -> String {
        mask.iter_ones().map(|ix| ix.to_string()).collect()
    }

    /// Columns: backends (see [`candidate`]), then with `refuse` and with `try_all`: serving, first, then, count, healthy.
    /// Broken on purpose: untested primaries only where none is ready; backups behind ready primaries; weight not looked at.
    #[test]
    fn the_rule() {
        type Row = (&'static str, &'static str, &'static str, usize, usize);
        #[rustfmt::skip]
        let rows: &[(&str, Row, Row)] = &[
            // Primaries
            ("rr",    ("primary", "01", "", 2, 2),   ("primary", "01", "", 2, 2)),
            ("ri",    ("primary", "0", "", 1, 1),    ("primary", "0", "", 1, 1)),
            ("rw",    ("primary", "0", "", 1, 1),    ("primary", "0", "", 1, 1)),
            // `weir explain` left the untested one out, the workers did not.
            ("ru",    ("primary", "01", "", 2, 1),   ("primary", "01", "", 2, 1)),
            ("uu",    ("primary", "01", "", 2, 0),   ("primary", "01", "", 2, 0)),
            ("iu",    ("primary", "1", "", 1, 0),    ("primary", "1", "", 1, 0)),
            ("r0",    ("primary", "0", "", 1, 1),    ("primary", "0", "", 1, 1)),
            ("rn",    ("primary", "0", "", 1, 1),    ("primary", "0", "", 1, 1)),
            ("un",    ("primary", "0", "", 1, 0),    ("primary", "0", "", 1, 0)),
            ("nn",    ("primary", "01", "", 2, 0),   ("primary", "01", "", 2, 0)),
            ("in",    ("primary", "1", "", 1, 0),    ("primary", "1", "", 1, 0)),
            ("inRN",  ("primary", "1", "2", 1, 1),   ("primary", "1", "2", 1, 1)),
            ("wRN",   ("backup", "1", "", 1, 1),     ("backup", "1", "", 1, 1)),
            // Backups behind primaries
            ("rR",    ("primary", "0", "", 1, 2),    ("primary", "0", "", 1, 2)),
            ("rUI",   ("primary", "0", "", 1, 1),    ("primary", "0", "", 1, 1)),
            ("ruR",   ("primary", "01", "", 2, 2),   ("primary", "01", "", 2, 2)),
            ("uR",    ("primary", "0", "1", 1, 1),   ("primary", "0", "1", 1, 1)),
            ("uuRU",  ("primary", "01", "23", 2, 1), ("primary", "01", "23", 2, 1)),
            ("uiWI",  ("primary", "0", "", 1, 0),    ("primary", "0", "", 1, 0)),
            // Backups in place of primaries
            ("iR",    ("backup", "1", "", 1, 1),     ("backup", "1", "", 1, 1)),
            ("wR",    ("backup", "1", "", 1, 1),     ("backup", "1", "", 1, 1)),
            ("0R",    ("backup", "1", "", 1, 1),     ("backup", "1", "", 1, 1)),
            ("iiRU",  ("backup", "23", "", 2, 1),    ("backup", "23", "", 2, 1)),
            ("iU",    ("backup", "1", "", 1, 0),     ("backup", "1", "", 1, 0)),
            ("RR",    ("backup", "01", "", 2, 2),    ("backup", "01", "", 2, 2)),
            // Nothing is up
            ("",      ("none", "", "", 0, 0),        ("none", "", "", 0, 0)),
            ("ii",    ("none", "", "", 0, 0),        ("all", "01", "", 2, 0)),
            ("iiI",   ("none", "", "", 0, 0),        ("all", "01", "2", 3, 0)),
            ("wI",    ("none", "", "", 0, 0),        ("all", "1", "", 1, 0)),
            ("wW",    ("none", "", "", 0, 0),        ("none", "", "", 0, 0)),
            ("0O",    ("none", "", "", 0, 0),        ("none", "", "", 0, 0)),
            ("i0",    ("none", "", "", 0, 0),        ("all", "0", "", 1, 0)),
        ];
        for (letters, refuse, try_all) in rows {
            for (all_down, wanted) in [(AllDown::Refuse, refuse), (AllDown::TryAll, try_all)] {
                let got = judge(letters, all_down);
                let (first, then) = (digits(&got.first), digits(&got.then));
                let got = (got.serving.as_str(), &*first, &*then, got.count(), got.healthy);
                assert_eq!(got, *wanted, "{letters:?} {all_down:?}");
            }
        }
    }

    /// Shares are relative to those who serve: the only one left gets everything, whatever its ramp.
    #[test]
    fn shares_are_those_of_the_serving() {
        let mut candidates: Vec<Candidate> = "rrR".chars().map(candidate).collect();
        candidates[1].share = 256;
        candidates[2].share = 128;
        let shares = |candidates: &[Candidate]| {
            let shares = Eligibility::new(candidates, AllDown::Refuse).shares;
            [0, 1, 2].map(|ix| shares.get(ix))
        };
        assert_eq!(shares(&candidates), [1024, 256, 128]);
        candidates[0].standing = Standing::Unhealthy;
        assert_eq!(shares(&candidates)[1], 1024);
        candidates[1].standing = Standing::Withdrawn;
        assert_eq!(shares(&candidates)[2], 1024);
    }

    proptest! {
        /// Whatever the states: the sets are disjoint, whoever is in one has a weight and was not withdrawn, `then` is empty
        /// where `first` is, a backup is in `first` only if no primary is, and the word says the same.
        #[test]
        fn holds_in_every_pool(letters in "[ruinw0RUINWO]{0,70}", try_all in any::<bool>()) {
            let all_down = if try_all { AllDown::TryAll } else { AllDown::Refuse };
            let candidates: Vec<Candidate> = letters.chars().map(candidate).collect();
            let got = Eligibility::new(&candidates, all_down);
            prop_assert!(got.first.iter_ones().all(|ix| !got.then.get(ix)));
            for ix in got.first.iter_ones().chain(got.then.iter_ones()) {
                prop_assert!(candidates[ix].weight > 0 && candidates[ix].standing != Standing::Withdrawn);
                prop_assert!(candidates[ix].standing != Standing::Unhealthy || got.serving == Serving::All);
            }
            prop_assert!(!got.first.is_empty() || got.then.is_empty());
            let backups = got.first.iter_ones().filter(|&ix| candidates[ix].backup).count();
            prop_assert!(backups == 0 || backups == got.first.count());
            prop_assert_eq!(got.first.is_empty(), got.serving == Serving::Nobody);
            let up = candidates.iter().any(|c| c.weight > 0 && c.standing == Standing::Ready);
            prop_assert_eq!(up, got.healthy > 0);
            prop_assert!(!up || matches!(got.serving, Serving::Primaries | Serving::Backups));
        }
    }
}
