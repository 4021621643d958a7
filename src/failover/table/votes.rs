//! Whom this node backs, and whether enough back it.
//!
//! # How it works
//! A vote is a promise with an end. A node that backs `a` says so in its beats, each of which echoes the newest beat of `a`.
//!
//! ```text
//!  a sends beat k           a counts the vote until here
//!        |-------------- a's dead_after --------|
//!           |------------ a's dead_after --------------|-- vote_hold --|
//!      the voter hears it                        the voter may back another
//! ```
//!
//! * **The holder counts from when it sent** what the vote echoes, the voter keeps its word from when it heard it, which is later. Both
//!   by the same length, the holder's `dead_after`; so no clocks are compared, and no delay, queue or lost direction on the way
//!   makes a vote last too long. `vote_hold` covers late steps and the little by which clocks run differently.
//! * **A vote ends by age alone.** That the voter has died, or that its connection broke, does not take back what it promised.
//! * **A vote is given back** when its owner says, in a later beat, that it backs another or nobody. To make that safe, a candidate
//!   only counts votes that echo a beat in which it already backed itself (`candidate_since`).
//! * **A voter that wants to back another** says that it backs nobody, until its promise has ended or was given back.
//! * **A voter without memory**, one whose process has just started, backs nobody for as long as a promise of its former life can last.
//! * **A witness** answers everybody, so it promises nothing: its answer counts for `dead_after` from when it was asked.
//!
//! Every voter is one line of [`Table::ballots`]: when its vote for us ends. A voter with a memory of its own, which others
//! cannot have promised to somebody else (an arbiter), is one more line there.
//!
//! # Invariants
//! * Two nodes that each count a majority of the same nodes share a voter, and no node's votes for two of them overlap.
//! * A holder is warned of the end of its majority by [`Table::deadline`], to the microsecond.

use super::*;

/// A node's promise to back one holder, for a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Vote {
    /// Whom we back, or have backed last.
    pub to: NodeIx,
    /// Until then nobody else, unless it is given back.
    pub until: At,
}

/// The promise kept, and whom we say that we back: `wish`, if we are free to.
///
/// `free`: what the present owner of the vote says lately gives it back.
pub(super) fn cast(
    now: At,
    me: NodeIx,
    vote: Option<Vote>,
    free: bool,
    wish: Option<NodeIx>,
) -> (Option<Vote>, Option<NodeIx>) {
    match vote {
        // To ourselves we owe nothing: we would know if we counted on it.
        Some(Vote { to, until }) if to != me && wish != Some(to) && !free && now < until => (vote, None),
        Some(same) if wish == Some(same.to) => (vote, wish),
        _ => (wish.map(|to| Vote { to, until: now }), wish),
    }
}

impl Table {
    /// How much longer than the owner counts a vote its voter stands by it.
    pub(super) fn vote_hold(&self, n: NodeIx) -> At {
        let timers = &self.setup.timers;
        let slower = self.peers[n].beat > micros(timers.beat);
        if slower {
            self.peers[n].beat
        } else {
            micros(timers.vote_hold)
        }
    }

    /// Casts our vote anew.
    pub(super) fn cast(&mut self, u: UnitIx) {
        if self.units[u].is_shared() {
            return;
        }
        let me = self.setup.me;
        let wish = self.wish(u);
        let unit = &self.units[u];
        let free = unit.vote.is_some_and(|vote| {
            let owner = &self.peers[vote.to];
            owner.gone.is_some() || self.last_claim(vote.to, u).backs != Some(vote.to)
        });
        let (mut vote, backs) = cast(self.now, me, unit.vote, free, wish);
        if let (Some(vote), Some(to)) = (&mut vote, backs)
            && let Some(heard) = self.peers[to].heard
        {
            let end = heard + self.peers[to].dead_after + self.vote_hold(to);
            vote.until = vote.until.max(end);
        }
        let next = self.number + 1;
        let unit = &mut self.units[u];
        unit.candidate_since = match backs == Some(me) {
            true => unit.candidate_since.or(Some(next)),
            false => None,
        };
        (unit.vote, unit.backs) = (vote, backs);
    }

    /// The node that should get our vote: whom we yield to, ourselves if we hold, else the holder, else the best.
    fn wish(&self, u: UnitIx) -> Option<NodeIx> {
        match self.phase(u) {
            Phase::Yielding(to) => return Some(to),
            Phase::Held | Phase::Claiming => return Some(self.setup.me),
            Phase::Free | Phase::Leaving => {}
        }
        if self.forgetful() {
            return None;
        }
        let held = self
            .holders(u)
            .filter(|(n, phase)| *phase != Phase::Leaving && self.fresh(*n))
            .min_by_key(|(n, _)| self.rank(u, *n))
            .map(|(n, phase)| match phase {
                Phase::Yielding(to) => to,
                _ => n,
            });
        held.or_else(|| self.best(u))
    }

    /// A process that has just started does not know what the one before it has promised.
    fn forgetful(&self) -> bool {
        self.has_peers() && self.now < self.born + self.listen()
    }

    /// Whether the quorum backs a claim. An answer that a witness gave before a node fell silent says nothing of who is cut off.
    pub(super) fn backed_to_claim(&self, u: UnitIx) -> Result<(), Reason> {
        self.backed(u)?;
        let (me, need) = (self.setup.me, self.setup.quorum);
        let silent = (0..self.peers.len()).filter(|n| *n != me && !self.alive(*n) && self.peers[*n].gone.is_none());
        let since = silent.filter_map(|n| self.peers[n].heard).max().unwrap_or(0);
        let lasts = self.vote_lasts();
        let early = self.witnesses.iter().flatten();
        let early = early.filter(|at| self.now < **at + lasts && **at < since).count();
        let have = 1 + self.ballots(u).filter(|end| self.now < *end).count() as u32;
        match (have - early as u32) >= need || need <= 1 {
            true => Ok(()),
            false => Err(Reason::NoQuorum {
                have: have - early as u32,
                need,
            }),
        }
    }

    /// When each vote for us ends, our own (which does not) aside.
    fn ballots(&self, u: UnitIx) -> impl Iterator<Item = At> {
        self.answers(u).chain(self.arbitrated(u))
    }

    /// The same without the arbiter's.
    pub(super) fn answers(&self, u: UnitIx) -> impl Iterator<Item = At> {
        let lasts = self.vote_lasts();
        let witnesses = self.witnesses.iter().flatten().map(move |at| at + lasts);
        self.ballots_of_nodes(u).chain(witnesses)
    }

    fn ballots_of_nodes(&self, u: UnitIx) -> impl Iterator<Item = At> {
        let me = self.setup.me;
        let lasts = self.vote_lasts();
        let since = self.units[u].candidate_since;
        (0..self.peers.len()).filter_map(move |n| {
            let peer = &self.peers[n];
            let asked = since.zip(peer.echo).is_some_and(|(since, echo)| echo >= since);
            let backs = n != me && self.last_claim(n, u).backs == Some(me);
            peer.echoed.filter(|_| asked && backs).map(|at| at + lasts)
        })
    }

    /// How long a vote lasts; after a reload, as long as was said when it was asked for.
    fn vote_lasts(&self) -> At {
        let dead_after = micros(self.setup.timers.dead_after);
        let (short, until) = self.short_votes;
        if self.now < until {
            short.min(dead_after)
        } else {
            dead_after
        }
    }

    /// Whether the quorum backs us.
    pub(super) fn backed(&self, u: UnitIx) -> Result<(), Reason> {
        let need = self.setup.quorum;
        if need <= 1 || self.units[u].is_shared() {
            return Ok(());
        }
        let own = u32::from(self.units[u].backs == Some(self.setup.me));
        let have = own + self.ballots(u).filter(|end| self.now < *end).count() as u32;
        if have >= need && own == 1 {
            Ok(())
        } else {
            Err(Reason::NoQuorum { have, need })
        }
    }

    /// When the votes that back us now will be too few.
    pub(super) fn backed_until(&self, u: UnitIx) -> Option<At> {
        let others = (self.setup.quorum as usize).checked_sub(2)?;
        let mut ends: Vec<At> = self.ballots(u).filter(|end| self.now < *end).collect();
        ends.sort_unstable_by(|a, b| b.cmp(a));
        ends.get(others).copied()
    }

    /// Whether the nodes alone back us, for a while yet, wherever we count on votes.
    pub(super) fn backed_by_nodes(&self) -> bool {
        let need = self.setup.quorum;
        let soon = self.now + micros(self.setup.timers.dead_after) * 6 / 10;
        let backed = |u: UnitIx| 1 + self.ballots_of_nodes(u).filter(|end| *end > soon).count() as u32 >= need;
        need <= 1 || (0..self.units.len()).all(|u| self.units[u].backs != Some(self.setup.me) || backed(u))
    }

    /// Voters within reach, ourselves included.
    pub(super) fn reached(&self) -> u32 {
        let dead_after = micros(self.setup.timers.dead_after);
        let peers = (0..self.peers.len()).filter(|n| self.alive(*n)).count();
        let witnesses = self.witnesses.iter().flatten();
        let answered = witnesses.filter(|at| self.now - **at < dead_after).count();
        // Whether it answers is known only when it is needed, and by then asked.
        let arbiter = usize::from(self.arbiter.is_some());
        1 + (peers + answered + arbiter) as u32
    }
}
