//! Who comes first, and how fit this node is.

use std::cmp::Reverse;

use super::*;
use crate::failover::words::Track;

/// Order among nodes; the least is the best.
pub(super) type Rank = (Reverse<u32>, usize, usize);

impl Table {
    /// Its place in the order. Tracked weights come first, then `prefer`, in which those that are not listed come last.
    /// While live nodes disagree about the rules, only the names count, on which all of them agree.
    pub(super) fn rank(&self, u: UnitIx, n: NodeIx) -> Rank {
        let unit = &self.units[u];
        if unit.disputed {
            let earlier = self
                .setup
                .names
                .iter()
                .filter(|name| **name < self.setup.names[n])
                .count();
            return (Reverse(0), earlier, n);
        }
        let place = unit.rule.prefer.iter().position(|p| *p == n).unwrap_or(usize::MAX);
        (Reverse(self.score(n)), place, n)
    }

    pub(super) fn outranks(&self, u: UnitIx, n: NodeIx) -> bool {
        self.rank(u, n) < self.rank(u, self.setup.me)
    }

    /// Sum of the weights of what a node tracks and what holds there.
    pub(super) fn score(&self, n: NodeIx) -> u32 {
        if n != self.setup.me {
            return self.peers[n].score;
        }
        let held = self.setup.tracks.iter().zip(&self.tracks).filter(|(_, holds)| **holds);
        held.filter_map(|(track, _)| track.weight).sum()
    }

    /// Something that must hold here and does not.
    pub(super) fn lacks(&self) -> Option<&Track> {
        let mut tracks = self.setup.tracks.iter().zip(&self.tracks);
        let (track, _) = tracks.find(|(track, holds)| track.weight.is_none() && !**holds)?;
        Some(track)
    }

    /// Whether a live node has other rules for it.
    pub(super) fn disputed(&self, u: UnitIx) -> bool {
        let mark = self.units[u].mark;
        (0..self.peers.len()).any(|n| self.claim(n, u).is_some_and(|c| c.rules != mark && c.rules != 0))
    }

    /// The first in order of those that could take a free address.
    pub(super) fn best(&self, u: UnitIx) -> Option<NodeIx> {
        (0..self.peers.len())
            .filter(|n| {
                if *n == self.setup.me {
                    self.fit(u).0 == Fit::Ready
                } else {
                    self.claim(*n, u)
                        .is_some_and(|c| matches!(c.fit, Fit::Ready | Fit::Soon))
                }
            })
            .min_by_key(|n| self.rank(u, *n))
    }

    /// With a quorum: a holder that went silent so recently that votes have not left it.
    pub(super) fn fading(&self, u: UnitIx) -> Option<NodeIx> {
        if self.setup.quorum <= 1 {
            return None;
        }
        (0..self.peers.len()).find(|n| {
            let peer = &self.peers[*n];
            let keep = peer.dead_after + self.vote_hold(*n);
            *n != self.setup.me
                && peer.gone.is_none()
                && !self.alive(*n)
                && self.last_claim(*n, u).phase != Phase::Free
                && peer.heard.is_some_and(|at| self.now - at < keep)
        })
    }

    /// Whether we ask the present holder for the address.
    pub(super) fn wants(&self, u: UnitIx) -> bool {
        let unit = &self.units[u];
        unit.state == State::Standby
            && unit.rule.preempt
            && !unit.is_shared()
            && !unit.disputed
            && unit
                .ready_since
                .is_some_and(|at| self.now - at >= micros(unit.rule.preempt_delay))
            && self.holders(u).any(|(n, _)| !self.outranks(u, n))
            && self.now - self.scores_since >= self.skew()
    }

    /// How long a sum of weights has to last before it moves an address: what all nodes lose, they do not notice at once.
    fn skew(&self) -> At {
        let ranking = self.setup.tracks.iter().filter(|track| track.weight.is_some());
        ranking.map(|track| micros(track.skew)).max().unwrap_or(0)
    }

    // ---- listening ----

    /// How long everybody who lives is heard at least once: by the longest patience that we know of.
    pub(super) fn listen(&self) -> At {
        let timers = &self.setup.timers;
        let known = self.peers.iter().map(|p| p.patience).max().unwrap_or(0);
        let longer = known.saturating_sub(micros(timers.dead_after));
        micros(timers.listen) + longer
    }

    /// Until when nothing is claimed because we have not listened long enough.
    pub(super) fn listens_until(&self, u: UnitIx) -> At {
        let unit = &self.units[u];
        if !self.has_peers() || unit.is_shared() {
            return 0;
        }
        let heard = match unit.heard {
            // The others that are there are heard by then as well.
            Some(at) => at + 2 * micros(self.setup.timers.beat),
            None => unit.began + micros(self.setup.startup_delay),
        };
        heard.max(unit.began + self.listen())
    }

    /// How fit we are, and what is in the way.
    pub(super) fn fit(&self, u: UnitIx) -> (Fit, Reason) {
        let (fit, why) = self.fit_when_settled(u);
        if fit == Fit::Unable || self.units[u].is_shared() {
            return (fit, why);
        }
        if self.now < self.frozen_until && self.has_peers() {
            let gap_ms = self.frozen_ms;
            return (Fit::Unable, Reason::Frozen { gap_ms });
        }
        if self.now < self.listens_until(u).max(self.rejoins_until) {
            let soon = if fit == Fit::Ready { Fit::Soon } else { Fit::Unable };
            return (soon, Reason::Starting);
        }
        (fit, why)
    }

    /// The same, once we have listened.
    fn fit_when_settled(&self, u: UnitIx) -> (Fit, Reason) {
        let unit = &self.units[u];
        let unable = |reason| (Fit::Unable, reason);
        if !unit.rule.prefer.contains(&self.setup.me) {
            return unable(Reason::NotListed);
        }
        if self.stopping {
            return unable(Reason::Stopping);
        }
        if let Err(why) = &self.keeper {
            return unable(Reason::Keeper(why.clone()));
        }
        if unit.state == State::Standby && unit.members.iter().any(|m| m.foreign) {
            return unable(Reason::Fault(
                "somebody else has configured the address on this host".into(),
            ));
        }
        if let Some(trouble) = &unit.trouble {
            return unable(Reason::Fault(trouble.why.clone()));
        }
        if unit.members.iter().any(|m| !m.link_up) {
            return unable(Reason::LinkDown);
        }
        if unit.demoted {
            return unable(Reason::Demoted);
        }
        if !self.local.serving {
            return unable(Reason::NotServing(self.local.detail.clone()));
        }
        if let Some(track) = self.lacks() {
            return unable(Reason::Track(track.name.clone()));
        }
        let (have, need) = (self.reached(), self.setup.quorum);
        if have < need && !unit.is_shared() {
            return unable(Reason::NoQuorum { have, need });
        }
        if unit
            .rule
            .requires
            .iter()
            .any(|p| self.local.without_backend.contains(p))
        {
            return (Fit::NoBackend, Reason::NoBackend);
        }
        (Fit::Ready, Reason::First)
    }
}

/// What [`Claim::rules`] says: the order of nodes, the group, and what ranks before that order, by name.
pub(super) fn mark(setup: &Setup, rule: &Rule) -> u32 {
    let mut hash = Fnv::new();
    for n in &rule.prefer {
        hash.text(setup.names.get(*n).map_or("", String::as_str));
    }
    hash.text(rule.group.as_deref().unwrap_or(""));
    // Written only where it says something: the same mark as that of nodes which do not know it.
    if rule.hold != Holders::One {
        hash.text(rule.hold.word());
    }
    let mut weights: Vec<_> = setup.tracks.iter().filter_map(|t| Some((&t.name, t.weight?))).collect();
    weights.sort();
    for (name, weight) in weights {
        hash.text(name);
        hash.number(u64::from(weight));
    }
    // 0 says that the address is unknown.
    ((hash.0 ^ hash.0 >> 32) as u32).max(1)
}

/// What [`Beat::settings`] says: everything that all nodes should agree on.
pub(super) fn settings(setup: &Setup) -> u64 {
    let mut hash = Fnv::new();
    let mut names = setup.names.clone();
    names.sort();
    names.iter().for_each(|name| hash.text(name));
    for number in [
        u64::from(setup.quorum),
        setup.witnesses as u64,
        micros(setup.timers.beat),
        micros(setup.timers.dead_after),
    ] {
        hash.number(number);
    }
    if let Some(arbiter) = &setup.arbiter {
        hash.text(&arbiter.prefix);
        hash.number(u64::from(arbiter.strict));
    }
    // Whatever the order in which the addresses are listed.
    let rules = setup.vips.iter().map(|rule| {
        let mut one = Fnv::new();
        one.number(u64::from(mark(setup, rule)));
        one.number(u64::from(rule.preempt));
        one.number(micros(rule.preempt_delay));
        rule.requires.iter().for_each(|pool| one.text(pool));
        one.0
    });
    hash.number(rules.fold(0, u64::wrapping_add));
    hash.0
}

/// FNV-1a: the same on every node and in every version.
struct Fnv(u64);

impl Fnv {
    fn new() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
    fn bytes(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
    fn number(&mut self, number: u64) {
        self.bytes(&number.to_be_bytes());
    }
    fn text(&mut self, text: &str) {
        self.number(text.len() as u64);
        self.bytes(text.as_bytes());
    }
}
