//! The table itself; [`super`] tells how it works.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use crate::base::{Key, Slab};

use super::answers::{After, Full, Step};
use super::endpoints::{Endpoints, ListenerIx};
use super::errors::{Judgement, OnError, Proof, RECENT, Trust};
use super::line::{Line, SessionLimits, nanos};
use super::list::{Link, NONE, Nodes};
use super::sources::Sources;

/// Parked sessions of one listener at most: parking is worth a descriptor only for clients that come back soon.
pub const PARKED_MAX: u32 = 1024;

const BY_AGE: usize = 0;
const BY_SOURCE: usize = 1;

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Bound to a backend.
    Live,
    /// Its next datagram must go to another backend.
    Astray,
    /// Ended; kept for the same client.
    Parked,
}

/// One session as seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct SessionView<'a, T> {
    /// The session's addresses and listener.
    pub ends: &'a Endpoints,
    /// Whether it is in use, and how.
    pub state: State,
    /// Its backend has replied.
    pub proven: bool,
    /// Datagrams from the client.
    pub requests: u32,
    /// Datagrams from the backend.
    pub replies: u32,
    /// Last datagram either way, since the table's epoch.
    pub last: Duration,
    /// What the shell keeps with it.
    pub data: &'a T,
}

#[derive(Debug)]
struct Session<T> {
    ends: Endpoints,
    /// Last datagram either way.
    last: u64,
    /// Last datagram from the client.
    sent: u64,
    trust: Trust,
    requests: u32,
    replies: u32,
    /// Its listener's line.
    line: u32,
    /// Entry of its source while it is live and counted there.
    source: u32,
    /// The cap of its source applies to it.
    counted: bool,
    state: State,
    /// In the index: the next datagram finds it.
    indexed: bool,
    /// The latest client datagram has been sent a second time.
    resent: bool,
    links: [Link; 2],
    data: T,
}

impl<T> Nodes for Slab<Session<T>> {
    fn link(&mut self, ix: u32, which: usize) -> &mut Link {
        &mut entry(self, ix).links[which]
    }
}

/// Sessions of one worker. `T` is what the shell keeps with each of them (socket, backend, counters).
pub struct Table<T, S = RandomState> {
    epoch: Instant,
    hasher: S,
    sessions: Slab<Session<T>>,
    index: HashTable<u32>,
    /// One for each listener.
    lines: Vec<Option<Line>>,
    /// Places in it that forgotten listeners have left.
    free_lines: Vec<u32>,
    line_of: HashMap<ListenerIx, u32>,
    sources: Sources,
    parked: u32,
    /// No session expires before.
    next_expiry: u64,
    /// Where the current sweep stands.
    sweep: usize,
    /// No live session is past half of its idle time before.
    next_victim: u64,
}

impl<T> Table<T> {
    /// An empty table. No `now` given later may be before `epoch`.
    pub fn new(epoch: Instant) -> Self {
        Self::with_hasher(epoch, RandomState::new())
    }
}

impl<T, S: BuildHasher> Table<T, S> {
    /// As [`Table::new`]. Clients choose their endpoints, so the hasher should be keyed with a secret.
    pub fn with_hasher(epoch: Instant, hasher: S) -> Self {
        Self {
            epoch,
            hasher,
            sessions: Slab::new(),
            index: HashTable::new(),
            lines: Vec::new(),
            free_lines: Vec::new(),
            line_of: HashMap::new(),
            sources: Sources::new(),
            parked: 0,
            next_expiry: u64::MAX,
            sweep: 0,
            next_victim: u64::MAX,
        }
    }

    /// Adds a listener or changes its policy; sessions that it has follow at once.
    pub fn set_limits(&mut self, listener: ListenerIx, policy: SessionLimits) {
        let (lines, free) = (&mut self.lines, &mut self.free_lines);
        let ix = *self.line_of.entry(listener).or_insert_with(|| {
            free.pop().unwrap_or_else(|| {
                lines.push(None);
                lines.len() as u32 - 1
            })
        });
        match &mut self.lines[ix as usize] {
            Some(line) => line.set(policy),
            free => *free = Some(Line::new(policy)),
        }
        // Both bounds may have come nearer.
        self.next_expiry = 0;
        self.next_victim = 0;
    }

    /// Forgets a listener; false if it has sessions, parked ones too. Until it has a policy again, none may be opened in it.
    pub fn forget(&mut self, listener: ListenerIx) -> bool {
        let Some(&ix) = self.line_of.get(&listener) else {
            return true;
        };
        let line = &mut self.lines[ix as usize];
        if line.as_ref().is_some_and(|line| line.active.len + line.parked.len > 0) {
            return false;
        }
        *line = None;
        self.line_of.remove(&listener);
        self.free_lines.push(ix);
        true
    }

    /// Datagrams arrived from a client: `count` in a row with the same endpoints, at least one.
    pub fn on_client(&mut self, now: Instant, ends: &Endpoints, count: u32) -> Step {
        debug_assert!(count > 0);
        let Some(ix) = self.find(ends) else {
            return Step::Unknown;
        };
        let (now, id) = (self.at(now), self.id(ix));
        let session = entry(&mut self.sessions, ix);
        let line = line_mut(&mut self.lines, session.line);

        let was = session.state;
        if was == State::Parked {
            session.state = State::Astray;
            session.requests = 0;
            session.replies = 0;
        }
        let take = line.allowed(session.requests, count);
        if take == 0 {
            // The limit was lowered under a running session.
            self.unindex(ix);
            return Step::Unknown;
        }
        session.requests = session.requests.saturating_add(take);
        session.last = now;
        session.sent = now;
        session.trust.asked = true;
        session.resent = false;
        let (requests, source) = (session.requests, session.source);
        let finishes = line.expects_no_reply();
        let used_up = line.is_used_up(requests);

        if was == State::Parked {
            self.parked -= 1;
            line.parked.unlink(&mut self.sessions, BY_AGE, ix);
            self.activate(now, ix);
        } else {
            line.active.move_to_back(&mut self.sessions, BY_AGE, ix);
        }
        self.touch_source(source, ix);
        if used_up {
            self.unindex(ix);
        }
        match was {
            State::Live => Step::Forward { id, take, finishes },
            _ => Step::Repick {
                id,
                take,
                finishes,
                reopened: was == State::Parked,
            },
        }
    }

    /// Opens a session. The datagrams that asked for it are then given to [`Table::on_client`]. `counted`: the cap of its
    /// source applies to it.
    pub fn open(&mut self, now: Instant, ends: Endpoints, counted: bool, data: T) -> Key {
        self.resume(now, ends, counted, [0, 0], data)
    }

    /// Goes on with a session that has begun elsewhere and had so many `[requests, replies]` there. If they are used up, or
    /// its client has another session already, it lives on for its replies alone.
    pub fn resume(&mut self, now: Instant, ends: Endpoints, counted: bool, had: [u32; 2], data: T) -> Key {
        let now = self.at(now);
        let [requests, replies] = had;
        let line = self.line_of[&ends.listener()];
        let used_up = line_mut(&mut self.lines, line).is_used_up(requests);
        let indexed = !used_up && self.find(&ends).is_none();
        let id = self.sessions.insert(Session {
            ends,
            last: now,
            sent: now,
            trust: Trust::new(replies > 0),
            requests,
            replies,
            line,
            source: NONE,
            counted,
            state: State::Live,
            indexed,
            resent: false,
            links: [Link::OUT; 2],
            data,
        });
        if indexed {
            let (sessions, hasher) = (&self.sessions, &self.hasher);
            self.index.insert_unique(hasher.hash_one(ends), id.index, |&ix| {
                hasher.hash_one(sessions.at(ix).expect("the index names live sessions").ends)
            });
        }
        self.activate(now, id.index);
        id
    }

    /// The session has a backend (again): a fresh one, nothing proven.
    pub fn rebound(&mut self, id: Key) {
        if let Some(session) = self.sessions.get_mut(id) {
            session.state = State::Live;
            session.trust.proven = false;
            session.trust.clear();
        }
    }

    /// The session's backend left: its next datagram goes elsewhere.
    pub fn astray(&mut self, id: Key) {
        if let Some(session) = self.sessions.get_mut(id)
            && session.state == State::Live
        {
            session.state = State::Astray;
            session.trust.clear();
        }
    }

    /// Datagrams arrived on the session's socket. `None`: there is no such session, deliver nothing.
    pub fn on_backend(&mut self, now: Instant, id: Key, count: u32) -> Option<After> {
        let now = self.at(now);
        let session = self.sessions.get_mut(id)?;
        if session.state == State::Parked {
            return Some(After::Continue);
        }
        session.last = now;
        session.replies = session.replies.saturating_add(count);
        // What an astray session hears comes from the backend that it has lost.
        if session.state == State::Live {
            session.trust.note_reply();
        }
        let (requests, replies, source) = (session.requests, session.replies, session.source);
        let line = line_mut(&mut self.lines, session.line);
        let complete = line.is_answered(requests, replies);
        line.active.move_to_back(&mut self.sessions, BY_AGE, id.index);
        self.touch_source(source, id.index);
        Some(if complete { After::Finished } else { After::Continue })
    }

    /// An ICMP error arrived on the session's socket. `None`: there is no such session.
    pub fn on_error(&mut self, now: Instant, id: Key, proof: Proof) -> Option<OnError> {
        let now = self.at(now);
        let session = self.sessions.get_mut(id)?;
        if session.state != State::Live || session.requests == 0 || now - session.sent > nanos(RECENT) {
            return Some(OnError::Ignored);
        }
        let blame = match session.trust.judge(now, proof, session.requests) {
            Judgement::Ignored => return Some(OnError::Ignored),
            Judgement::Suspected => return Some(OnError::Suspected),
            Judgement::Failed { blame } => blame,
        };
        session.state = State::Astray;
        let resend = !std::mem::replace(&mut session.resent, true);
        Some(OnError::Failed { blame, resend })
    }

    /// The session has ended in order. `None`: it is parked, its data stays. `Some`: it is gone, as after `remove`.
    pub fn finish(&mut self, now: Instant, id: Key) -> Option<T> {
        let now = self.at(now);
        let session = self.sessions.get_mut(id)?;
        if session.state == State::Parked {
            return None;
        }
        let line = line_mut(&mut self.lines, session.line);
        if !session.indexed || session.state != State::Live || line.parked.len >= PARKED_MAX {
            return self.remove(id);
        }
        session.state = State::Parked;
        session.last = now;
        line.active.unlink(&mut self.sessions, BY_AGE, id.index);
        line.parked.push_back(&mut self.sessions, BY_AGE, id.index);
        self.next_expiry = self.next_expiry.min(now.saturating_add(line.parked_time()));
        self.parked += 1;
        self.leave_source(id.index);
        None
    }

    /// Ends a session and returns what the shell kept with it. `None`: there is no such session.
    pub fn remove(&mut self, id: Key) -> Option<T> {
        self.sessions.get(id)?;
        self.unindex(id.index);
        self.leave_source(id.index);
        let session = entry(&mut self.sessions, id.index);
        let line = line_mut(&mut self.lines, session.line);
        if session.state == State::Parked {
            line.parked.unlink(&mut self.sessions, BY_AGE, id.index);
            self.parked -= 1;
        } else {
            line.active.unlink(&mut self.sessions, BY_AGE, id.index);
        }
        self.sessions.remove(id).map(|session| session.data)
    }

    /// A session whose time is over, which the caller then removes; call until `None`.
    pub fn expire(&mut self, now: Instant) -> Option<Key> {
        let now = self.at(now);
        if now < self.next_expiry {
            return None;
        }
        while self.sweep < self.lines.len() {
            if let Some(line) = &self.lines[self.sweep] {
                for (head, time) in [(line.parked.head, line.parked_time()), (line.active.head, line.idle)] {
                    if head != NONE && self.last(head).saturating_add(time) <= now {
                        return Some(self.id(head));
                    }
                }
            }
            self.sweep += 1;
        }
        self.sweep = 0;
        self.next_expiry = self.soonest(|line| [line.idle, line.parked_time()]);
        None
    }

    /// When [`Table::expire`] may have something to say; never late, possibly early.
    pub fn deadline(&self) -> Option<Instant> {
        match self.next_expiry {
            u64::MAX => None,
            at => Some(self.epoch + Duration::from_nanos(at)),
        }
    }

    /// A parked session that can go when something runs short (descriptors, memory): the oldest of any listener.
    pub fn spare(&self) -> Option<Key> {
        if self.parked == 0 {
            return None;
        }
        let heads = self
            .lines
            .iter()
            .flatten()
            .map(|line| line.parked.head)
            .filter(|&head| head != NONE);
        heads.min_by_key(|&head| self.last(head)).map(|head| self.id(head))
    }

    /// What the shell keeps with a session.
    pub fn get_mut(&mut self, id: Key) -> Option<&mut T> {
        self.sessions.get_mut(id).map(|session| &mut session.data)
    }

    /// Everything about a session.
    pub fn view(&self, id: Key) -> Option<SessionView<'_, T>> {
        self.sessions.get(id).map(Session::view)
    }

    /// All sessions in slot order, parked ones too.
    pub fn iter(&self) -> impl Iterator<Item = (Key, SessionView<'_, T>)> {
        self.sessions.iter().map(|(id, session)| (id, session.view()))
    }

    /// Sessions that hold a place, parked ones too.
    pub fn len(&self) -> usize {
        self.sessions.len()
    }

    /// Whether there is no session, not even a parked one.
    pub fn is_empty(&self) -> bool {
        self.sessions.is_empty()
    }

    /// How many sessions have ended and are kept for the same client.
    pub fn parked(&self) -> usize {
        self.parked as usize
    }

    /// Sessions of a listener, without parked ones.
    pub fn active(&self, listener: ListenerIx) -> usize {
        self.line(listener).map_or(0, |line| line.active.len as usize)
    }

    /// Source addresses that have a counted session.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    fn line(&self, listener: ListenerIx) -> Option<&Line> {
        let ix = *self.line_of.get(&listener)?;
        self.lines[ix as usize].as_ref()
    }

    /// The session that the next datagram of `ends` belongs to.
    fn find(&self, ends: &Endpoints) -> Option<u32> {
        let sessions = &self.sessions;
        let is_it = |&ix: &u32| sessions.at(ix).is_some_and(|session| session.ends == *ends);
        self.index.find(self.hasher.hash_one(ends), is_it).copied()
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    fn id(&self, ix: u32) -> Key {
        self.sessions.key_at(ix).expect("lists and index name live sessions")
    }

    fn last(&self, ix: u32) -> u64 {
        self.sessions.at(ix).map_or(u64::MAX, |session| session.last)
    }

    /// Puts a session at the young end of its listener's and its source's list.
    fn activate(&mut self, now: u64, ix: u32) {
        let session = entry(&mut self.sessions, ix);
        let ends = session.ends;
        let line = line_mut(&mut self.lines, session.line);
        if line.active.len == 0 {
            self.next_expiry = self.next_expiry.min(now.saturating_add(line.idle));
            self.next_victim = self.next_victim.min(now.saturating_add(line.idle / 2));
        }
        line.active.push_back(&mut self.sessions, BY_AGE, ix);
        if entry(&mut self.sessions, ix).counted {
            let source = self.sources.find_or_add(&self.hasher, ends.listener().0, ends.source());
            entry(&mut self.sessions, ix).source = source;
            self.sources.ends(source).push_back(&mut self.sessions, BY_SOURCE, ix);
        }
    }

    fn leave_source(&mut self, ix: u32) {
        let source = std::mem::replace(&mut entry(&mut self.sessions, ix).source, NONE);
        if source != NONE {
            self.sources.ends(source).unlink(&mut self.sessions, BY_SOURCE, ix);
            self.sources.release(&self.hasher, source);
        }
    }

    fn touch_source(&mut self, source: u32, ix: u32) {
        if source != NONE {
            self.sources
                .ends(source)
                .move_to_back(&mut self.sessions, BY_SOURCE, ix);
        }
    }

    fn unindex(&mut self, ix: u32) {
        let session = entry(&mut self.sessions, ix);
        if std::mem::replace(&mut session.indexed, false) {
            let hash = self.hasher.hash_one(session.ends);
            if let Ok(found) = self.index.find_entry(hash, |&other| other == ix) {
                found.remove();
            }
        }
    }

    /// Earliest `last + time` over the heads, with the times of active and parked sessions.
    fn soonest(&self, times: impl Fn(&Line) -> [u64; 2]) -> u64 {
        let mut soonest = u64::MAX;
        for line in self.lines.iter().flatten() {
            for (head, time) in [line.active.head, line.parked.head].into_iter().zip(times(line)) {
                if head != NONE {
                    soonest = soonest.min(self.last(head).saturating_add(time));
                }
            }
        }
        soonest
    }

    /// Whether the longest idle session of a line is past half of its idle time.
    fn is_stale(&self, line: &Line, now: u64) -> bool {
        let head = line.active.head;
        head != NONE && now - self.last(head) >= line.idle / 2
    }

    /// Who makes room for a new session of `ends` at a cap; the caller removes it. `None`: nobody, the new one is shed.
    pub fn victim(&mut self, now: Instant, full: Full, ends: &Endpoints) -> Option<Key> {
        let now = self.at(now);
        let own = self.line(ends.listener())?;
        let (own_half, own_head, own_is_stale) = (own.idle / 2, own.active.head, self.is_stale(own, now));
        let victim = match full {
            Full::Source => {
                let source = self.sources.find(&self.hasher, ends.listener().0, ends.source())?;
                let head = self.sources.ends(source).head;
                let session = self.sessions.at(head)?;
                (now - session.last >= own_half).then_some(head)
            }
            Full::Process if self.parked > 0 => return self.spare(),
            _ if own_is_stale => Some(own_head),
            Full::Listener => None,
            Full::Process if now < self.next_victim => None,
            Full::Process => {
                let stale = self.lines.iter().flatten().filter(|line| self.is_stale(line, now));
                let oldest = stale.map(|line| line.active.head).min_by_key(|&head| self.last(head));
                if oldest.is_none() {
                    self.next_victim = self.soonest(|line| [line.idle / 2, u64::MAX]);
                }
                oldest
            }
        };
        victim.map(|ix| self.id(ix))
    }
}

impl<T> Session<T> {
    fn view(&self) -> SessionView<'_, T> {
        SessionView {
            ends: &self.ends,
            state: self.state,
            proven: self.trust.proven,
            requests: self.requests,
            replies: self.replies,
            last: Duration::from_nanos(self.last),
            data: &self.data,
        }
    }
}

/// The live session in slot `ix`, which lists and index vouch for.
fn entry<T>(sessions: &mut Slab<Session<T>>, ix: u32) -> &mut Session<T> {
    sessions.at_mut(ix).expect("lists and index name live sessions")
}

fn line_mut(lines: &mut [Option<Line>], ix: u32) -> &mut Line {
    lines[ix as usize]
        .as_mut()
        .expect("a line is not forgotten while it has sessions")
}

#[cfg(test)]
mod tests;
