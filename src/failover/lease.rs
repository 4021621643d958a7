//! What the keeper does to the kernel, and when.
//!
//! # How it works
//! An address is installed with a finite lifetime, the *lease*. Three clocks guard it, each covering for the one before:
//!
//! 1. the main process proves life several times a beat; it says [`Input::Release`] when it wants to let go;
//! 2. without a proof for `keeper_patience` (process hung), or at [`Input::Closed`] (process gone), the keeper removes it;
//! 3. without a renewal for `lease` (keeper hung or gone too), the kernel removes it.
//!
//! The kernel may take long over an operation: whoever holds its lock for network configuration makes everybody wait. So
//! operations are begun here ([`Output::Do`]) and end later ([`Input::Did`]), one at a time for each address, while proofs are
//! read and time is judged all along. What is wanted and what the kernel has are compared whenever an operation ends: a release
//! that came while an installation was under way is carried out after it, and answered when it is done.
//!
//! # Invariants
//! * An address is renewed only while the newest proof is fresh, when the renewal is decided and when it is carried out: the
//!   shell asks for freshness again immediately before the call and answers [`Refusal::Stale`].
//! * A renewal may be late. The lease is long enough for that, and as long as the kernel's lock is held the kernel cannot
//!   remove the address either. A slow kernel alone is no reason to give an address up.
//! * After a release, a missing proof or `Closed`, nothing is begun for the address but its removal, until the next `Hold`.
//! * `Released` and `Expired` are said when the kernel no longer has the address, not before.
//! * An address that somebody else removed is put back once in [`READD_WINDOW`]; the next time it is given up. One that went
//!   because the primary address of its subnet went ([`Input::Dragged`]) is always put back.
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

/// What the keeper's machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// Nothing but that time has passed.
    Tick,
    /// The main process was alive at this time.
    Proof {
        /// When it said so (not when it was read).
        at: Instant,
    },
    /// Hold this address from now on.
    Hold {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Hold it no longer.
    Release {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Tell the neighbours where it is.
    Announce {
        /// The virtual address concerned.
        vip: VipIx,
        /// A predecessor may still answer for it: keep telling until its lease must have lapsed.
        insist: bool,
    },
    /// An [`Op`] has ended; `now` of the step is when it did.
    Did {
        /// The operation that ended, as [`Output::Do`] gave it.
        op: Op,
        /// `Err` tells why it was not carried out.
        result: Result<(), Refusal>,
    },
    /// The kernel no longer has an address that we hold, and we did not remove it.
    Vanished {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// The same, because the kernel removes the other addresses of a subnet with its primary one.
    Dragged {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// Somebody else has changed an address that we hold; it must become a lease again.
    Changed {
        /// The virtual address concerned.
        vip: VipIx,
    },
    /// The main process has closed its end.
    Closed,
}

/// Why an operation was not carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The newest proof had become too old when its turn came.
    Stale,
    /// The kernel refused; the text is its error.
    Kernel(String),
}

/// What the shell carries out; it answers each of the first three with [`Input::Did`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Put the address on its interface with a fresh lease.
    Install(VipIx),
    /// Make the lease fresh; an address that has gone comes back.
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

/// What the shell is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Do this to the kernel.
    Do(Op),
    /// Say this to the main process.
    Say(Report),
}

/// What is particular to one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Manner {
    /// Addresses with the same number share a subnet of one interface: the kernel may remove them all with the first of them.
    pub subnet: Option<usize>,
    /// Announced again so often while it is held.
    pub garp_refresh: Option<Duration>,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    manner: Manner,
    /// The main process wants it here.
    wanted: bool,
    /// The kernel has it because of us, as far as it has answered.
    held: bool,
    /// The operation that has not ended yet.
    flight: Option<Op>,
    /// To be said as soon as the kernel does not have it any more.
    owed: Option<Report>,
    /// When the kernel last began its lease anew.
    leased: Option<Instant>,
    /// When the next renewal is due.
    renewal: Option<Instant>,
    /// Renew at the next opportunity.
    hurry: bool,
    readded: Option<Instant>,
    /// The installation under way puts back what had gone.
    readding: bool,
    announcements: VecDeque<Instant>,
    refresh: Option<Instant>,
}

impl Entry {
    fn hold_no_longer(&mut self) {
        self.wanted = false;
        self.hurry = false;
        self.readding = false;
        self.announcements.clear();
        self.refresh = None;
    }

    fn gone(&mut self) {
        self.held = false;
        self.leased = None;
        self.renewal = None;
    }
}

/// All addresses of one keeper.
#[derive(Debug, Clone)]
pub struct Leases {
    timers: Timers,
    entries: Vec<Entry>,
    proof: Option<Instant>,
}

impl Leases {
    /// No address is wanted or held, and no proof of life has come yet.
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

    /// What is particular to an address from now on.
    pub fn set_manner(&mut self, now: Instant, vip: VipIx, manner: Manner) {
        let entry = &mut self.entries[vip];
        if entry.manner.garp_refresh != manner.garp_refresh {
            entry.refresh = manner.garp_refresh.filter(|_| entry.wanted).map(|every| now + every);
        }
        entry.manner = manner;
    }

    /// Whether this address is installed by us, as far as the kernel has answered, and is to stay.
    pub fn holds(&self, vip: VipIx) -> bool {
        self.entries[vip].held && self.entries[vip].wanted
    }

    /// Whether the kernel should have this address at this moment: nothing is under way for it.
    pub fn settled(&self, vip: VipIx) -> bool {
        self.holds(vip) && self.entries[vip].flight.is_none()
    }

    /// Whether we have nothing to do with this address: the kernel has none of ours, and nothing is under way.
    pub fn free(&self, vip: VipIx) -> bool {
        let entry = &self.entries[vip];
        !entry.wanted && !entry.held && entry.flight.is_none()
    }

    /// Whether all are free.
    pub fn idle(&self) -> bool {
        (0..self.entries.len()).all(|vip| self.free(vip))
    }

    /// Until when the newest proof is fresh.
    pub fn fresh_until(&self) -> Option<Instant> {
        self.proof.map(|at| at + self.timers.keeper_patience)
    }

    /// When the next step is due, if anything is held or about to be.
    pub fn deadline(&self) -> Option<Instant> {
        let wanted = self.entries.iter().filter(|e| e.wanted);
        let patience = wanted.clone().next().and(self.fresh_until());
        let own = wanted.filter(|e| e.held).flat_map(|e| {
            let renewal = e.renewal.filter(|_| e.flight.is_none());
            [renewal, e.announcements.front().copied(), e.refresh]
        });
        own.flatten().chain(patience).min()
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
                let entry = &mut self.entries[vip];
                (entry.wanted, entry.owed) = (true, None);
                if entry.held && !matches!(entry.flight, Some(Op::Remove(_))) {
                    out.push(Output::Say(Report::Held(vip)));
                }
                self.settle(now, vip, out);
            }
            Input::Release { vip } => self.let_go(now, vip, Report::Released(vip), out),
            Input::Announce { vip, insist } => self.schedule(now, vip, insist),
            Input::Did { op, result } => self.did(now, op, result, out),
            Input::Vanished { vip } => self.vanished(now, vip, false, out),
            Input::Dragged { vip } => self.vanished(now, vip, true, out),
            Input::Changed { vip } => self.entries[vip].hurry = self.entries[vip].wanted,
            Input::Closed => {
                for vip in 0..self.entries.len() {
                    self.entries[vip].hold_no_longer();
                    // Nobody is left to be told.
                    self.entries[vip].owed = None;
                    self.settle(now, vip, out);
                }
            }
            Input::Tick => {}
        }
        self.due(now, out);
    }

    /// A proof is fresh for the keeper's patience.
    fn fresh(&self, now: Instant) -> bool {
        self.fresh_until().is_some_and(|until| now < until)
    }

    /// Whether the kernel must have removed it already.
    fn lapsed(&self, now: Instant, vip: VipIx) -> bool {
        self.entries[vip]
            .leased
            .is_some_and(|at| now.saturating_duration_since(at) > self.timers.lease + KERNEL_LATENESS)
    }

    /// Whether the kernel may have removed it already. A renewal would put it on anew, and another node may have waited for just
    /// its end: a keeper that goes on after it stood still, with a main process that does so too, has a fresh proof at once.
    fn may_have_lapsed(&self, now: Instant, vip: VipIx) -> bool {
        let entry = &self.entries[vip];
        let ended = |at: Instant| now.saturating_duration_since(at) >= self.timers.lease;
        entry.held && entry.flight.is_none() && entry.leased.is_some_and(ended)
    }

    fn let_go(&mut self, now: Instant, vip: VipIx, report: Report, out: &mut Vec<Output>) {
        self.entries[vip].hold_no_longer();
        self.entries[vip].owed = Some(report);
        self.settle(now, vip, out);
    }

    /// Begins what brings the kernel to what is wanted, unless something is under way: then this is asked again at its end.
    fn settle(&mut self, now: Instant, vip: VipIx, out: &mut Vec<Output>) {
        let lapsed = self.lapsed(now, vip);
        let entry = &mut self.entries[vip];
        if entry.flight.is_some() {
            return;
        }
        if !entry.wanted && entry.held && lapsed {
            entry.gone();
        }
        match (entry.wanted, entry.held) {
            (true, true) => {}
            (true, false) => {
                entry.flight = Some(Op::Install(vip));
                out.push(Output::Do(Op::Install(vip)));
            }
            (false, true) => {
                entry.flight = Some(Op::Remove(vip));
                out.push(Output::Do(Op::Remove(vip)));
                self.hurry_siblings(vip);
            }
            (false, false) => out.extend(entry.owed.take().map(Output::Say)),
        }
    }

    /// The kernel may remove the other addresses of the subnet with this one: renewing them right behind puts them back.
    fn hurry_siblings(&mut self, vip: VipIx) {
        let Some(subnet) = self.entries[vip].manner.subnet else {
            return;
        };
        for entry in &mut self.entries {
            if entry.manner.subnet == Some(subnet) && entry.wanted {
                entry.hurry = true;
            }
        }
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

    fn did(&mut self, now: Instant, op: Op, result: Result<(), Refusal>, out: &mut Vec<Output>) {
        let (Op::Install(vip) | Op::Renew(vip) | Op::Remove(vip) | Op::Announce(vip)) = op;
        let entry = &mut self.entries[vip];
        if entry.flight != Some(op) {
            return;
        }
        entry.flight = None;
        match (op, result) {
            (Op::Install(_) | Op::Renew(_), Ok(())) => {
                entry.leased = Some(now);
                entry.renewal = Some(now + self.timers.renew);
                let fresh = !std::mem::replace(&mut entry.held, true);
                if fresh && entry.wanted {
                    entry.readding = false;
                    entry.refresh = entry.manner.garp_refresh.map(|every| now + every);
                    out.push(Output::Say(Report::Held(vip)));
                }
            }
            // Whether that is so for good, time decides below: a newer proof may have come.
            (Op::Install(_), Err(Refusal::Stale)) => {}
            (Op::Renew(_), Err(Refusal::Stale)) => entry.hurry = entry.wanted,
            (Op::Install(_), Err(Refusal::Kernel(why))) if entry.wanted => {
                let lost = entry.readding;
                entry.hold_no_longer();
                entry.owed = Some(if lost {
                    Report::Lost(vip, why)
                } else {
                    Report::Failed(vip, why)
                });
            }
            (Op::Renew(_), Err(Refusal::Kernel(why))) if entry.wanted => {
                entry.hold_no_longer();
                entry.owed = Some(Report::Lost(vip, why));
            }
            // A removal that fails found nothing to remove, or the lease ends it.
            (Op::Remove(_), _) => entry.gone(),
            _ => {}
        }
        // What is wanted but no longer proved is given up below, not tried again.
        if self.fresh(now) || !self.entries[vip].wanted {
            self.settle(now, vip, out);
        }
    }

    fn vanished(&mut self, now: Instant, vip: VipIx, dragged: bool, out: &mut Vec<Output>) {
        if !self.settled(vip) {
            return;
        }
        let entry = &mut self.entries[vip];
        entry.gone();
        let again = entry
            .readded
            .is_some_and(|at| now.saturating_duration_since(at) < READD_WINDOW);
        if again && !dragged {
            let why = "somebody else removed the address, twice".to_string();
            return self.let_go(now, vip, Report::Lost(vip, why), out);
        }
        if !dragged {
            entry.readded = Some(now);
        }
        entry.readding = true;
        self.schedule(now, vip, false);
        if self.fresh(now) {
            self.settle(now, vip, out);
        }
    }

    /// Whatever time alone brings.
    fn due(&mut self, now: Instant, out: &mut Vec<Output>) {
        let fresh = self.fresh(now);
        for vip in 0..self.entries.len() {
            if !self.entries[vip].wanted {
                continue;
            }
            if !fresh || self.may_have_lapsed(now, vip) {
                self.let_go(now, vip, Report::Expired(vip), out);
                continue;
            }
            let entry = &mut self.entries[vip];
            if !entry.held {
                continue;
            }
            if entry.flight.is_none() && (entry.hurry || entry.renewal.is_some_and(|at| at <= now)) {
                entry.hurry = false;
                entry.flight = Some(Op::Renew(vip));
                out.push(Output::Do(Op::Renew(vip)));
            }
            let mut announce = false;
            while entry.announcements.front().is_some_and(|at| *at <= now) {
                entry.announcements.pop_front();
                announce = true;
            }
            if let Some(every) = entry.manner.garp_refresh
                && entry.refresh.is_some_and(|at| at <= now)
            {
                entry.refresh = Some(now + every);
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

    /// All of the node stood still, and its main process proves life before anything else happens.
    #[test]
    fn a_lease_that_may_have_lapsed_is_not_renewed() {
        let mut rig = Rig::held(0);
        let out = rig.proof(2_000);
        assert_eq!(out, [Output::Do(Op::Remove(0)), Output::Say(Report::Expired(0))]);
        let mut rig = Rig::held(0);
        assert_eq!(rig.proof(1_999), [Output::Do(Op::Renew(0))]);
        // One that is under way, and waits for the kernel's lock, is waited for: nobody else can remove it either.
        assert_eq!(rig.proof(2_100), []);
        assert!(rig.leases.holds(0));
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
                Output::Say(Report::Held(0)),
                Output::Do(Op::Announce(0)),
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

    /// A kernel that answers when the test says so.
    struct Slow {
        zero: Instant,
        leases: Leases,
    }

    impl Slow {
        fn new(vips: usize) -> Slow {
            let mut slow = Slow {
                zero: Instant::now(),
                leases: Leases::new(Timers::derive(ms(50), ms(250)), vips),
            };
            slow.proof(0);
            slow
        }
        fn at(&mut self, t: u64, input: Input) -> Vec<Output> {
            let mut out = Vec::new();
            self.leases.step(self.zero + ms(t), input, &mut out);
            out
        }
        fn proof(&mut self, t: u64) -> Vec<Output> {
            let at = self.zero + ms(t);
            self.at(t, Input::Proof { at })
        }
        fn did(&mut self, t: u64, op: Op) -> Vec<Output> {
            self.at(t, Input::Did { op, result: Ok(()) })
        }
        /// Installed at 0.
        fn held(vips: usize) -> Slow {
            let mut slow = Slow::new(vips);
            for vip in 0..vips {
                assert_eq!(slow.at(0, Input::Hold { vip }), [Output::Do(Op::Install(vip))]);
                assert_eq!(slow.did(0, Op::Install(vip)), [Output::Say(Report::Held(vip))]);
            }
            slow
        }
    }

    use Output::{Do, Say};

    /// Issue 14, repair 8: with the kernel's lock held for 271 ms the address was removed and moved.
    #[test]
    fn a_renewal_that_takes_long_costs_nothing_while_life_is_proved() {
        let mut slow = Slow::held(1);
        let mut seen = Vec::new();
        for t in (25..1_900).step_by(25) {
            seen.extend(slow.proof(t).into_iter().map(|output| (t, output)));
        }
        assert_eq!(
            seen,
            [(500, Do(Op::Renew(0)))],
            "one at a time, and nothing is given up"
        );
        assert_eq!(slow.did(1_900, Op::Renew(0)), []);
        assert!(slow.leases.holds(0));
        assert_eq!(slow.proof(2_375), []);
        assert_eq!(slow.proof(2_400), [Do(Op::Renew(0))]);
    }

    #[test]
    fn what_is_given_up_during_a_renewal_is_removed_right_after_it() {
        type Story = (&'static str, fn(&mut Slow) -> Vec<Output>, Vec<Output>);
        let stories: [Story; 3] = [
            ("silence", |s| s.at(690, Input::Tick), vec![Say(Report::Expired(0))]),
            (
                "release",
                |s| s.at(600, Input::Release { vip: 0 }),
                vec![Say(Report::Released(0))],
            ),
            ("closed", |s| s.at(600, Input::Closed), vec![]),
        ];
        for (name, fault, last) in stories {
            let mut slow = Slow::held(1);
            for t in (25..500).step_by(25) {
                slow.proof(t);
            }
            assert_eq!(slow.at(500, Input::Tick), [Do(Op::Renew(0))], "{name}");
            assert_eq!(fault(&mut slow), [], "{name}: the kernel has to answer first");
            assert!(!slow.leases.holds(0), "{name}");
            assert!(!slow.leases.idle(), "{name}");
            assert_eq!(slow.did(900, Op::Renew(0)), [Do(Op::Remove(0))], "{name}");
            assert_eq!(slow.did(901, Op::Remove(0)), last, "{name}");
            assert!(slow.leases.idle(), "{name}");
        }
    }

    #[test]
    fn a_release_overtakes_an_installation_and_a_hold_a_removal() {
        let mut slow = Slow::new(1);
        assert_eq!(slow.at(0, Input::Hold { vip: 0 }), [Do(Op::Install(0))]);
        assert_eq!(
            slow.at(1, Input::Release { vip: 0 }),
            [],
            "not released before it is gone"
        );
        assert_eq!(slow.did(2, Op::Install(0)), [Do(Op::Remove(0))]);
        assert_eq!(slow.at(3, Input::Hold { vip: 0 }), [], "not held before it is back");
        assert_eq!(slow.did(4, Op::Remove(0)), [Do(Op::Install(0))]);
        assert_eq!(slow.did(5, Op::Install(0)), [Say(Report::Held(0))]);
    }

    /// The shell asks for freshness again when the operation's turn comes: it may have waited behind others, or been frozen.
    #[test]
    fn what_was_too_late_is_tried_again_only_with_a_newer_proof() {
        let stale = |op| Input::Did {
            op,
            result: Err(Refusal::Stale),
        };
        let mut slow = Slow::new(1);
        slow.at(0, Input::Hold { vip: 0 });
        slow.proof(150);
        assert_eq!(slow.at(210, stale(Op::Install(0))), [Do(Op::Install(0))]);
        assert_eq!(slow.at(360, stale(Op::Install(0))), [Say(Report::Expired(0))]);
        assert!(slow.leases.idle());
        let mut slow = Slow::held(1);
        slow.proof(400);
        assert_eq!(slow.at(500, Input::Tick), [Do(Op::Renew(0))]);
        slow.proof(600);
        assert_eq!(slow.at(650, stale(Op::Renew(0))), [Do(Op::Renew(0))]);
        assert_eq!(slow.at(820, stale(Op::Renew(0))), [Do(Op::Remove(0))]);
    }

    /// Issue 14, repair 9: the kernel takes the secondary addresses of a subnet away with the primary one.
    #[test]
    fn siblings_are_renewed_right_behind_a_removal() {
        let mut slow = Slow::held(4);
        let now = slow.zero;
        for vip in 0..3 {
            let subnet = Some(7);
            slow.leases.set_manner(
                now,
                vip,
                Manner {
                    subnet,
                    ..Manner::default()
                },
            );
        }
        slow.leases.set_manner(
            now,
            3,
            Manner {
                subnet: Some(8),
                ..Manner::default()
            },
        );
        let out = slow.at(1, Input::Release { vip: 0 });
        assert_eq!(out, [Do(Op::Remove(0)), Do(Op::Renew(1)), Do(Op::Renew(2))]);
        // A second removal while those are under way: once more, behind it.
        assert_eq!(slow.at(2, Input::Release { vip: 1 }), []);
        assert_eq!(slow.did(3, Op::Remove(0)), [Say(Report::Released(0))]);
        assert_eq!(slow.did(3, Op::Renew(1)), [Do(Op::Remove(1))]);
        assert_eq!(slow.did(3, Op::Renew(2)), [Do(Op::Renew(2))]);
        assert!(slow.leases.holds(2) && slow.leases.holds(3));
    }

    #[test]
    fn what_was_dragged_away_always_comes_back() {
        let mut slow = Slow::held(1);
        for t in [10, 20, 30] {
            slow.proof(t);
            assert_eq!(slow.at(t, Input::Dragged { vip: 0 }), [Do(Op::Install(0))]);
            let back = slow.did(t + 1, Op::Install(0));
            assert_eq!(back, [Say(Report::Held(0)), Do(Op::Announce(0))]);
        }
        // And it does not use up the repair of somebody's removal.
        assert_eq!(slow.at(40, Input::Vanished { vip: 0 }), [Do(Op::Install(0))]);
        slow.did(41, Op::Install(0));
        let lost = slow.at(42, Input::Vanished { vip: 0 });
        assert!(matches!(&lost[..], [Say(Report::Lost(0, _))]), "{lost:?}");
    }

    #[test]
    fn a_refresh_announces_while_it_is_held() {
        let mut rig = Rig::new();
        let garp_refresh = Some(ms(300));
        rig.leases.set_manner(
            rig.zero,
            0,
            Manner {
                subnet: None,
                garp_refresh,
            },
        );
        let mut seen = Vec::new();
        for t in (0..1_500).step_by(25) {
            let mut out = rig.proof(t);
            out.extend(match t {
                100 => rig.at(t, Input::Hold { vip: 0 }),
                1_100 => rig.at(t, Input::Release { vip: 0 }),
                _ => vec![],
            });
            if out.contains(&Do(Op::Announce(0))) {
                seen.push(t);
            }
        }
        assert_eq!(seen, [400, 700, 1_000]);
    }
}
