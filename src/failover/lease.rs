//! What the keeper does to the kernel, and when.
//!
//! # How it works
//! An address is installed with a finite lifetime, the *lease*. Three clocks guard it, each covering for the one before:
//!
//! 1. the main process proves life several times a beat; it says [`Input::Release`] when it wants to let go;
//! 2. without a proof for `keeper_patience` (process hung), or at [`Input::Closed`] (process gone), the keeper removes it;
//! 3. without a renewal for `lease` (keeper hung or gone too), the kernel removes it.
//!
//! # Invariants
//! * An address is renewed only while the newest proof is fresh.
//! * After a release, a missing proof or `Closed`, nothing is installed, renewed or announced until the next `Hold`.
//! * An address that somebody else removed is put back once in [`READD_WINDOW`]; the next time it is given up.
//!
//! # What it never does
//! It never removes an address that it did not install, nor one whose lease must have lapsed by itself while the keeper
//! was frozen: by then a successor on this very machine may own it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::VipIx;
use super::timers::{KERNEL_LATENESS, Timers};

/// Somebody else's removal is repaired once in this time.
pub const READD_WINDOW: Duration = Duration::from_secs(60);

/// When an announcement is repeated: at once, and again for those who missed it.
const REPEATS: [Duration; 3] = [Duration::ZERO, Duration::from_secs(1), Duration::from_secs(5)];

/// Period of repeats while a frozen predecessor may still answer for the address.
const INSIST_EVERY: Duration = Duration::from_millis(250);

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Time has passed.
    Tick,
    /// The main process was alive at this time.
    Proof {
        /// When it said so (not when it was read).
        at: Instant,
    },
    /// Hold this address from now on.
    Hold {
        /// Which.
        vip: VipIx,
    },
    /// Hold it no longer.
    Release {
        /// Which.
        vip: VipIx,
    },
    /// Tell the neighbours where it is.
    Announce {
        /// Which.
        vip: VipIx,
        /// A predecessor may still answer for it: keep telling until its lease must have lapsed.
        insist: bool,
    },
    /// The outcome of an [`Op`].
    Did {
        /// Which operation.
        op: Op,
        /// Whether the kernel did it; else its words.
        result: Result<(), String>,
    },
    /// The kernel no longer has an address that we hold, and we did not remove it.
    Vanished {
        /// Which.
        vip: VipIx,
    },
    /// The main process has closed its end.
    Closed,
}

/// What the shell carries out; it answers each of the first three with [`Input::Did`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Put the address on its interface with a fresh lease.
    Install(VipIx),
    /// Make the lease fresh.
    Renew(VipIx),
    /// Take the address off.
    Remove(VipIx),
    /// Send gratuitous ARP or unsolicited neighbour advertisements.
    Announce(VipIx),
}

/// What the main process is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// The address is installed.
    Held(VipIx),
    /// The address is gone, as asked.
    Released(VipIx),
    /// The address could not be installed.
    Failed(VipIx, String),
    /// The address is gone: somebody removed it, or the kernel refuses to renew it.
    Lost(VipIx, String),
    /// The address is gone because no proof of life came.
    Expired(VipIx),
}

/// One effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Do this to the kernel.
    Do(Op),
    /// Say this to the main process.
    Say(Report),
}

#[derive(Debug, Clone, Default)]
struct Entry {
    /// The kernel has it because of us.
    held: bool,
    renewed: Option<Instant>,
    readded: Option<Instant>,
    announcements: VecDeque<Instant>,
}

/// All addresses of one keeper.
#[derive(Debug, Clone)]
pub struct Leases {
    timers: Timers,
    entries: Vec<Entry>,
    proof: Option<Instant>,
}

impl Leases {
    /// No address held.
    pub fn new(timers: Timers, vips: usize) -> Leases {
        Leases {
            timers,
            entries: vec![Entry::default(); vips],
            proof: None,
        }
    }

    /// Makes room for more addresses; their indices follow the present ones.
    pub fn grow(&mut self, vips: usize) {
        if vips > self.entries.len() {
            self.entries.resize(vips, Entry::default());
        }
    }

    /// Other patiences from now on.
    pub fn set_timers(&mut self, timers: Timers) {
        self.timers = timers;
    }

    /// Whether this address is installed by us.
    pub fn holds(&self, vip: VipIx) -> bool {
        self.entries[vip].held
    }

    /// When the next step is due, if anything is held.
    pub fn deadline(&self) -> Option<Instant> {
        let held = self.entries.iter().filter(|e| e.held);
        let renewals = held.clone().filter_map(|e| e.renewed.map(|at| at + self.timers.renew));
        let announcements = held.clone().filter_map(|e| e.announcements.front().copied());
        let patience = held
            .clone()
            .next()
            .and(self.proof)
            .map(|at| at + self.timers.keeper_patience);
        renewals.chain(announcements).chain(patience).min()
    }

    /// Takes one input; effects are appended to `out` in the order in which they must happen.
    pub fn step(&mut self, now: Instant, input: Input, out: &mut Vec<Output>) {
        match input {
            Input::Proof { at } => self.proof = self.proof.max(Some(at)),
            // A request that waited in the queue of a frozen keeper is as old as the newest proof.
            Input::Hold { vip } if !self.fresh(now) => out.push(Output::Say(Report::Failed(
                vip,
                "the request was too old when the keeper read it".into(),
            ))),
            Input::Hold { vip } => {
                if self.entries[vip].held {
                    out.push(Output::Say(Report::Held(vip)));
                } else {
                    out.push(Output::Do(Op::Install(vip)));
                }
            }
            Input::Release { vip } => {
                if self.entries[vip].held {
                    self.let_go(now, vip, out);
                }
                out.push(Output::Say(Report::Released(vip)));
            }
            Input::Announce { vip, insist } => self.schedule(now, vip, insist),
            Input::Did { op, result } => self.did(now, op, result, out),
            Input::Vanished { vip } => self.vanished(now, vip, out),
            Input::Closed => {
                for vip in 0..self.entries.len() {
                    if self.entries[vip].held {
                        self.let_go(now, vip, out);
                    }
                }
            }
            Input::Tick => {}
        }
        self.due(now, out);
    }

    /// A proof is fresh for the keeper's patience.
    fn fresh(&self, now: Instant) -> bool {
        self.proof
            .is_some_and(|at| now.saturating_duration_since(at) < self.timers.keeper_patience)
    }

    /// Whether the kernel must have removed it already.
    fn lapsed(&self, now: Instant, vip: VipIx) -> bool {
        self.entries[vip]
            .renewed
            .is_some_and(|at| now.saturating_duration_since(at) > self.timers.lease + KERNEL_LATENESS)
    }

    fn let_go(&mut self, now: Instant, vip: VipIx, out: &mut Vec<Output>) {
        if !self.lapsed(now, vip) {
            out.push(Output::Do(Op::Remove(vip)));
        }
        let entry = &mut self.entries[vip];
        entry.held = false;
        entry.renewed = None;
        entry.announcements.clear();
    }

    fn schedule(&mut self, now: Instant, vip: VipIx, insist: bool) {
        let mut at: Vec<Instant> = REPEATS.iter().map(|after| now + *after).collect();
        if insist {
            let until = self.timers.lease + KERNEL_LATENESS;
            let mut after = INSIST_EVERY;
            while after <= until {
                at.push(now + after);
                after += INSIST_EVERY;
            }
            at.sort();
            at.dedup();
        }
        self.entries[vip].announcements = at.into();
    }

    fn did(&mut self, now: Instant, op: Op, result: Result<(), String>, out: &mut Vec<Output>) {
        match (op, result) {
            (Op::Install(vip), Ok(())) => {
                let entry = &mut self.entries[vip];
                entry.held = true;
                entry.renewed = Some(now);
                out.push(Output::Say(Report::Held(vip)));
            }
            (Op::Install(vip), Err(why)) => {
                let entry = &mut self.entries[vip];
                let was_held = entry.held;
                *entry = Entry {
                    readded: entry.readded,
                    ..Entry::default()
                };
                out.push(Output::Say(if was_held {
                    Report::Lost(vip, why)
                } else {
                    Report::Failed(vip, why)
                }));
            }
            (Op::Renew(vip), Ok(())) => self.entries[vip].renewed = Some(now),
            (Op::Renew(vip), Err(why)) if self.entries[vip].held => {
                self.let_go(now, vip, out);
                out.push(Output::Say(Report::Lost(vip, why)));
            }
            // A removal that fails found nothing to remove, or the lease ends it; announcements are best effort.
            _ => {}
        }
    }

    fn vanished(&mut self, now: Instant, vip: VipIx, out: &mut Vec<Output>) {
        if !self.entries[vip].held {
            return;
        }
        let again = self.entries[vip]
            .readded
            .is_some_and(|at| now.saturating_duration_since(at) < READD_WINDOW);
        if again || !self.fresh(now) {
            let entry = &mut self.entries[vip];
            entry.held = false;
            entry.renewed = None;
            entry.announcements.clear();
            out.push(Output::Say(Report::Lost(
                vip,
                "somebody else removed the address, twice".into(),
            )));
        } else {
            self.entries[vip].readded = Some(now);
            out.push(Output::Do(Op::Install(vip)));
            self.schedule(now, vip, false);
        }
    }

    /// Whatever time alone brings.
    fn due(&mut self, now: Instant, out: &mut Vec<Output>) {
        let fresh = self.fresh(now);
        for vip in 0..self.entries.len() {
            if !self.entries[vip].held {
                continue;
            }
            if !fresh {
                self.let_go(now, vip, out);
                out.push(Output::Say(Report::Expired(vip)));
                continue;
            }
            let renew = self.timers.renew;
            let entry = &mut self.entries[vip];
            if entry
                .renewed
                .is_some_and(|at| now.saturating_duration_since(at) >= renew)
            {
                // Marked now, so that one due time gives one renewal even if the answer comes later.
                entry.renewed = Some(now);
                out.push(Output::Do(Op::Renew(vip)));
            }
            let mut announce = false;
            while entry.announcements.front().is_some_and(|at| *at <= now) {
                entry.announcements.pop_front();
                announce = true;
            }
            if announce {
                out.push(Output::Do(Op::Announce(vip)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    /// A keeper whose kernel always obeys, driven in milliseconds.
    struct Rig {
        zero: Instant,
        leases: Leases,
    }

    impl Rig {
        fn new() -> Rig {
            let timers = Timers::derive(ms(50), ms(250));
            Rig {
                zero: Instant::now(),
                leases: Leases::new(timers, 1),
            }
        }
        fn at(&mut self, t: u64, input: Input) -> Vec<Output> {
            let now = self.zero + ms(t);
            let mut out = Vec::new();
            self.leases.step(now, input, &mut out);
            let mut all = Vec::new();
            let mut next: VecDeque<Output> = out.into();
            while let Some(output) = next.pop_front() {
                if let Output::Do(op) = &output
                    && !matches!(op, Op::Announce(_))
                {
                    let mut more = Vec::new();
                    let did = Input::Did {
                        op: *op,
                        result: Ok(()),
                    };
                    self.leases.step(now, did, &mut more);
                    next.extend(more);
                }
                all.push(output);
            }
            all
        }
        fn proof(&mut self, t: u64) -> Vec<Output> {
            let at = self.zero + ms(t);
            self.at(t, Input::Proof { at })
        }
        fn held(t: u64) -> Rig {
            let mut rig = Rig::new();
            rig.proof(t);
            let out = rig.at(t, Input::Hold { vip: 0 });
            assert_eq!(out, [Output::Do(Op::Install(0)), Output::Say(Report::Held(0))]);
            rig
        }
    }

    #[test]
    fn a_hold_without_a_fresh_proof_is_refused() {
        let mut rig = Rig::new();
        rig.proof(0);
        let out = rig.at(200, Input::Hold { vip: 0 });
        assert!(matches!(&out[..], [Output::Say(Report::Failed(0, _))]));
        assert!(!rig.leases.holds(0));
    }

    #[test]
    fn silence_removes_at_the_patience_and_not_before() {
        let mut rig = Rig::held(0);
        assert_eq!(rig.leases.deadline(), Some(rig.zero + ms(200)));
        assert_eq!(rig.at(199, Input::Tick), []);
        let out = rig.at(200, Input::Tick);
        assert_eq!(out[0], Output::Do(Op::Remove(0)));
        assert_eq!(out[1], Output::Say(Report::Expired(0)));
        assert_eq!(rig.leases.deadline(), None);
    }

    #[test]
    fn a_closed_channel_removes_at_once() {
        let mut rig = Rig::held(0);
        assert_eq!(rig.at(1, Input::Closed), [Output::Do(Op::Remove(0))]);
        assert_eq!(rig.at(600, Input::Tick), []);
    }

    #[test]
    fn proofs_renew_every_half_second() {
        let mut rig = Rig::held(0);
        let mut renewals = Vec::new();
        for t in (25..2_000).step_by(25) {
            if rig.proof(t).contains(&Output::Do(Op::Renew(0))) {
                renewals.push(t);
            }
        }
        assert_eq!(renewals, [500, 1000, 1500]);
    }

    #[test]
    fn a_thawed_keeper_leaves_an_address_alone_whose_lease_has_lapsed() {
        // Broken once by dropping the `lapsed` test in `let_go`: the removal below appeared.
        let mut rig = Rig::held(0);
        let out = rig.at(2_701, Input::Tick);
        assert_eq!(out, [Output::Say(Report::Expired(0))]);
        let mut rig = Rig::held(0);
        assert_eq!(rig.at(2_600, Input::Tick)[0], Output::Do(Op::Remove(0)));
    }

    #[test]
    fn announcements_repeat_and_insist() {
        let times = |insist: bool| {
            let mut rig = Rig::held(0);
            let mut seen = Vec::new();
            for t in (0..6_000).step_by(25) {
                let mut out = rig.proof(t);
                if t == 0 {
                    out.extend(rig.at(0, Input::Announce { vip: 0, insist }));
                }
                if out.contains(&Output::Do(Op::Announce(0))) {
                    seen.push(t);
                }
            }
            seen
        };
        assert_eq!(times(false), [0, 1000, 5000]);
        assert_eq!(
            times(true),
            [0, 250, 500, 750, 1000, 1250, 1500, 1750, 2000, 2250, 2500, 5000]
        );
    }

    #[test]
    fn a_foreign_removal_is_repaired_once() {
        let mut rig = Rig::held(0);
        let out = rig.at(10, Input::Vanished { vip: 0 });
        assert_eq!(
            out,
            [
                Output::Do(Op::Install(0)),
                Output::Do(Op::Announce(0)),
                Output::Say(Report::Held(0))
            ]
        );
        let out = rig.at(20, Input::Vanished { vip: 0 });
        assert!(matches!(&out[..], [Output::Say(Report::Lost(0, _))]));
        assert!(!rig.leases.holds(0));
    }

    #[test]
    fn release_is_idempotent() {
        let mut rig = Rig::held(0);
        assert_eq!(
            rig.at(1, Input::Release { vip: 0 }),
            [Output::Do(Op::Remove(0)), Output::Say(Report::Released(0))]
        );
        assert_eq!(rig.at(2, Input::Release { vip: 0 }), [Output::Say(Report::Released(0))]);
    }
}
