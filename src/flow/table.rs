//! The table itself; [`super`] tells how it works.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use super::key::{Key, ListenerIx, pack};
use super::list::{Ends, Link, Linked, NONE};
use super::sources::Sources;

/// An ICMP error counts only when the session sent something this recently. Covers the 3 s after which the kernel gives
/// up on a neighbour that does not answer ARP.
pub const RECENT: Duration = Duration::from_secs(5);

/// How long "unreachable" must go on, without one reply, before it moves a session whose backend has replied before.
/// RFC 1122 4.2.3.9 calls these errors soft because routes flap.
pub const CONFIRM: Duration = Duration::from_secs(3);

/// Parked sessions of one listener at most: parking is worth a descriptor only for clients that come back soon.
pub const PARKED_MAX: u32 = 1024;

/// How long a session stays parked, if the idle time is not shorter still.
pub const PARKED_TIME: Duration = Duration::from_secs(2);

/// Generations wrap here, so that a [`SessionId`] fits into an event token.
const GENERATION_MASK: u32 = (1 << 28) - 1;

const BY_AGE: usize = 0;
const BY_SOURCE: usize = 1;

/// Names one session; never another one, except after 2^28 reuses of its slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SessionId {
    /// Slot.
    pub index: u32,
    /// Which tenant of the slot; 28 bits.
    pub generation: u32,
}

/// When sessions of a listener end; `None` = unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Silence in both directions.
    pub idle: Duration,
    /// Client datagrams of one session.
    pub requests: Option<u32>,
    /// Backend datagrams for each client datagram.
    pub replies: Option<u32>,
}

/// Which cap is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// Sessions of the process.
    Process,
    /// Sessions of the listener.
    Listener,
    /// Sessions of the source address at the listener.
    Source,
}

/// The caps, counted over all workers.
pub trait Places {
    /// Takes one place in the process and in `listener`, and with `source` also one of that source; all or nothing.
    fn take(&mut self, listener: ListenerIx, source: Option<IpAddr>) -> Result<(), Full>;
    /// Gives back what `take` with the same arguments took.
    fn give(&mut self, listener: ListenerIx, source: Option<IpAddr>);
}

/// A place taken for a session that is not open yet: goes to [`Table::open`] or [`Table::cancel`].
#[derive(Debug)]
#[must_use = "a place that is neither opened nor cancelled is lost for ever"]
pub struct Place {
    key: Key,
    counted: bool,
}

/// What to do with datagrams from a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// No session: check access, then [`Table::admit`].
    Unknown,
    /// Send `take` datagrams to the session's backend, then ask again about the rest.
    Forward {
        /// Session.
        id: SessionId,
        /// How many of the datagrams, at least one.
        take: u32,
        /// No reply is expected: [`Table::finish`] once they are sent.
        finishes: bool,
    },
    /// As `Forward`, but pick a backend and call [`Table::rebound`] first. Without a backend drop the datagrams and leave
    /// the session as it is.
    Repick {
        /// Session.
        id: SessionId,
        /// How many of the datagrams, at least one.
        take: u32,
        /// As in `Forward`.
        finishes: bool,
        /// The session had ended: for accounting this is a new one.
        reopened: bool,
    },
}

/// Answer to a new client.
#[derive(Debug)]
pub enum Admit {
    /// Pick, make a socket, then [`Table::open`].
    Granted(Place),
    /// End this session, then ask once more.
    Evict(SessionId),
    /// Drop the datagrams and count them.
    Shed(Full),
}

/// What replies mean for their session. They are delivered in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum After {
    /// Nothing.
    Continue,
    /// All replies have come: account for the session, then [`Table::finish`].
    Finished,
}

/// How well an ICMP error proves itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// Quotes a datagram that the session sent lately and says that nobody listens there.
    Firm,
    /// Quotes a datagram that the session sent lately and says that host or network cannot be reached.
    Soft,
    /// Quotes nothing that could be checked.
    Bare,
}

/// What an ICMP error means for its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnError {
    /// Nothing: nothing was sent lately, or forged for all we know.
    Ignored,
    /// Noted; the same again after [`CONFIRM`] without a reply is believed.
    Suspected,
    /// The session is astray.
    Failed {
        /// Whether this counts against the backend.
        blame: bool,
        /// Whether the refused datagram may be sent again (to another backend, after [`Table::rebound`]).
        resend: bool,
    },
}

/// Where a session is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Bound to a backend.
    Live,
    /// Needs another backend.
    Astray,
    /// Ended; kept for the same client.
    Parked,
}

/// One session as seen from outside.
#[derive(Debug, Clone, Copy)]
pub struct View<'a, T> {
    /// Addresses.
    pub key: &'a Key,
    /// State.
    pub state: State,
    /// Its backend has replied.
    pub proven: bool,
    /// Datagrams from the client.
    pub requests: u32,
    /// Datagrams from the backend.
    pub replies: u32,
    /// The shell's part.
    pub data: &'a T,
}

#[derive(Debug)]
struct Session<T> {
    key: Key,
    /// Last datagram either way.
    last: u64,
    /// Last datagram from the client.
    sent: u64,
    /// First soft error since the last reply.
    suspect: Option<u64>,
    requests: u32,
    replies: u32,
    source: u32,
    state: State,
    keyed: bool,
    proven: bool,
    /// The latest client datagram has been sent a second time.
    resent: bool,
    data: T,
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    links: [Link; 2],
    body: Option<Session<T>>,
}

impl<T> Linked for Slot<T> {
    fn link(&mut self, which: usize) -> &mut Link {
        &mut self.links[which]
    }
}

#[derive(Debug)]
struct Line {
    idle: u64,
    requests: Option<u32>,
    replies: Option<u32>,
    active: Ends,
    parked: Ends,
}

/// Sessions of one worker. `T` is what the shell keeps with each of them (socket, backend, counters).
#[derive(Debug)]
pub struct Table<T, S = RandomState> {
    epoch: Instant,
    hasher: S,
    slots: Vec<Slot<T>>,
    free: u32,
    len: u32,
    parked: u32,
    index: HashTable<u32>,
    lines: Vec<Option<Line>>,
    sources: Sources,
    /// No session expires before.
    next_expiry: u64,
    /// Where the current sweep stands.
    sweep: usize,
    /// No live session is past half of its idle time before.
    next_victim: u64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Line {
    fn parked_time(&self) -> u64 {
        self.idle.min(nanos(PARKED_TIME))
    }
}

impl<T> Table<T> {
    /// An empty table. No `now` given later may be before `epoch`.
    pub fn new(epoch: Instant) -> Self {
        Self::with_hasher(epoch, RandomState::new())
    }
}

impl<T, S: BuildHasher> Table<T, S> {
    /// As [`Table::new`]. Clients choose their keys, so the hasher should be keyed with a secret.
    pub fn with_hasher(epoch: Instant, hasher: S) -> Self {
        Self {
            epoch,
            hasher,
            slots: Vec::new(),
            free: NONE,
            len: 0,
            parked: 0,
            index: HashTable::new(),
            lines: Vec::new(),
            sources: Sources::new(),
            next_expiry: u64::MAX,
            sweep: 0,
            next_victim: u64::MAX,
        }
    }

    /// Adds a listener or changes its policy; sessions that it has follow at once.
    pub fn set_policy(&mut self, listener: ListenerIx, policy: Policy) {
        let ix = listener.0 as usize;
        if self.lines.len() <= ix {
            self.lines.resize_with(ix + 1, || None);
        }
        let line = self.lines[ix].get_or_insert(Line {
            idle: 0,
            requests: None,
            replies: None,
            active: Ends::EMPTY,
            parked: Ends::EMPTY,
        });
        line.idle = nanos(policy.idle);
        line.requests = policy.requests.map(|limit| limit.max(1));
        line.replies = policy.replies;
        // Both bounds may have come nearer.
        self.next_expiry = 0;
        self.next_victim = 0;
    }

    /// Datagrams arrived from a client: `count` in a row with the same key, at least one.
    pub fn on_client(&mut self, now: Instant, key: &Key, count: u32) -> Step {
        debug_assert!(count > 0);
        let slots = &self.slots;
        let found = self.index.find(self.hasher.hash_one(key), |&ix| {
            slots[ix as usize]
                .body
                .as_ref()
                .is_some_and(|s| s.key == *key)
        });
        let Some(&ix) = found else {
            return Step::Unknown;
        };
        let now = self.at(now);
        let line = line_mut(&mut self.lines, key);
        let slot = &mut self.slots[ix as usize];
        let id = SessionId {
            index: ix,
            generation: slot.generation,
        };
        let session = slot.body.as_mut().expect("indexed");

        let was = session.state;
        if was == State::Parked {
            session.state = State::Astray;
            session.requests = 0;
            session.replies = 0;
        }
        let take = match line.requests {
            None => count,
            Some(limit) => count.min(limit.saturating_sub(session.requests)),
        };
        if take == 0 {
            // The limit was lowered under a running session.
            session.keyed = false;
            self.unindex(ix);
            return Step::Unknown;
        }
        session.requests = session.requests.saturating_add(take);
        session.last = now;
        session.sent = now;
        session.resent = false;
        let finishes = line.replies == Some(0);
        let used_up = line.requests.is_some_and(|limit| session.requests >= limit);
        if used_up {
            session.keyed = false;
        }

        if was == State::Parked {
            self.parked -= 1;
            line.parked.unlink(&mut self.slots, BY_AGE, ix);
            let first = line.active.len == 0;
            line.active.push_back(&mut self.slots, BY_AGE, ix);
            if first {
                self.next_expiry = self.next_expiry.min(now.saturating_add(line.idle));
                self.next_victim = self.next_victim.min(now.saturating_add(line.idle / 2));
            }
        } else {
            line.active.move_to_back(&mut self.slots, BY_AGE, ix);
        }
        self.touch_source(ix);
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

    /// Asks for a place for a new session. `counted`: the source's own cap applies to it.
    pub fn admit(
        &mut self,
        now: Instant,
        key: Key,
        counted: bool,
        places: &mut impl Places,
    ) -> Admit {
        let source = counted.then(|| key.client().ip());
        match places.take(key.listener(), source) {
            Ok(()) => Admit::Granted(Place { key, counted }),
            Err(full) => match self.victim(self.at(now), full, &key) {
                Some(id) => Admit::Evict(id),
                None => Admit::Shed(full),
            },
        }
    }

    /// Gives back a place that was not used.
    pub fn cancel(&mut self, place: Place, places: &mut impl Places) {
        let source = place.counted.then(|| place.key.client().ip());
        places.give(place.key.listener(), source);
    }

    /// Opens a session. The datagrams that asked for it are then given to [`Table::on_client`].
    pub fn open(&mut self, now: Instant, place: Place, data: T) -> SessionId {
        let Place { key, counted } = place;
        let now = self.at(now);
        let source = match counted {
            true => self
                .sources
                .find_or_add(&self.hasher, key.listener().0, key.client_bits()),
            false => NONE,
        };
        let session = Session {
            key,
            last: now,
            sent: now,
            suspect: None,
            requests: 0,
            replies: 0,
            source,
            state: State::Live,
            keyed: true,
            proven: false,
            resent: false,
            data,
        };
        let ix = match self.free {
            NONE => {
                self.slots.push(Slot {
                    generation: 0,
                    links: [Link::OUT; 2],
                    body: None,
                });
                (self.slots.len() - 1) as u32
            }
            ix => {
                self.free = self.slots[ix as usize].links[BY_AGE].next;
                ix
            }
        };
        let slot = &mut self.slots[ix as usize];
        slot.links = [Link::OUT; 2];
        slot.body = Some(session);
        let generation = slot.generation;
        self.len += 1;

        let (slots, hasher) = (&self.slots, &self.hasher);
        self.index.insert_unique(hasher.hash_one(key), ix, |&ix| {
            hasher.hash_one(
                slots[ix as usize]
                    .body
                    .as_ref()
                    .map(|s| s.key)
                    .expect("indexed"),
            )
        });
        let line = line_mut(&mut self.lines, &key);
        if line.active.len == 0 {
            self.next_expiry = self.next_expiry.min(now.saturating_add(line.idle));
            self.next_victim = self.next_victim.min(now.saturating_add(line.idle / 2));
        }
        line.active.push_back(&mut self.slots, BY_AGE, ix);
        if source != NONE {
            self.sources
                .ends(source)
                .push_back(&mut self.slots, BY_SOURCE, ix);
        }
        SessionId {
            index: ix,
            generation,
        }
    }

    /// The session has a backend (again): a fresh one, nothing proven.
    pub fn rebound(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id) {
            session.state = State::Live;
            session.proven = false;
            session.suspect = None;
        }
    }

    /// The session's backend left: its next datagram goes elsewhere.
    pub fn astray(&mut self, id: SessionId) {
        if let Some(session) = self.session_mut(id)
            && session.state == State::Live
        {
            session.state = State::Astray;
            session.suspect = None;
        }
    }

    /// Datagrams arrived on the session's socket. `None`: there is no such session, deliver nothing.
    pub fn on_backend(&mut self, now: Instant, id: SessionId, count: u32) -> Option<After> {
        let now = self.at(now);
        let session = self.session_mut(id)?;
        if session.state == State::Parked {
            return Some(After::Continue);
        }
        session.last = now;
        session.replies = session.replies.saturating_add(count);
        // What an astray session hears comes from the backend that it has lost.
        if session.state == State::Live {
            session.proven = true;
            session.suspect = None;
        }
        let (key, requests, replies) = (session.key, session.requests, session.replies);
        let line = line_mut(&mut self.lines, &key);
        line.active.move_to_back(&mut self.slots, BY_AGE, id.index);
        let complete = line
            .replies
            .is_some_and(|each| u64::from(replies) >= u64::from(each) * u64::from(requests));
        self.touch_source(id.index);
        Some(if complete {
            After::Finished
        } else {
            After::Continue
        })
    }

    /// An ICMP error arrived on the session's socket. `None`: there is no such session.
    pub fn on_error(&mut self, now: Instant, id: SessionId, proof: Proof) -> Option<OnError> {
        let now = self.at(now);
        let session = self.session_mut(id)?;
        if session.state != State::Live
            || session.requests == 0
            || now - session.sent > nanos(RECENT)
        {
            return Some(OnError::Ignored);
        }
        if session.proven {
            match (proof, session.suspect) {
                (Proof::Bare, _) => return Some(OnError::Ignored),
                (Proof::Soft, None) => {
                    session.suspect = Some(now);
                    return Some(OnError::Suspected);
                }
                (Proof::Soft, Some(since)) if now - since < nanos(CONFIRM) => {
                    return Some(OnError::Suspected);
                }
                (Proof::Soft, Some(_)) | (Proof::Firm, _) => {}
            }
        }
        session.state = State::Astray;
        session.suspect = None;
        let resend = !session.resent;
        session.resent = true;
        Some(OnError::Failed {
            blame: proof != Proof::Bare,
            resend,
        })
    }

    /// The session has ended in order. `None`: it is parked, its data stays. `Some`: it is gone, as after `remove`.
    pub fn finish(&mut self, now: Instant, id: SessionId, places: &mut impl Places) -> Option<T> {
        let now = self.at(now);
        let session = self.session_mut(id)?;
        if session.state == State::Parked {
            return None;
        }
        let (key, source) = (session.key, session.source);
        let worth = session.keyed && session.state == State::Live;
        let line = line_mut(&mut self.lines, &key);
        if !worth || line.parked.len >= PARKED_MAX {
            return self.remove(id, places);
        }
        line.active.unlink(&mut self.slots, BY_AGE, id.index);
        line.parked.push_back(&mut self.slots, BY_AGE, id.index);
        self.next_expiry = self.next_expiry.min(now.saturating_add(line.parked_time()));
        self.parked += 1;
        if source != NONE {
            let ends = self.sources.ends(source);
            ends.unlink(&mut self.slots, BY_SOURCE, id.index);
            ends.push_front(&mut self.slots, BY_SOURCE, id.index);
        }
        let session = self.session_mut(id)?;
        session.state = State::Parked;
        session.last = now;
        None
    }

    /// Ends a session and returns what the shell kept with it. `None`: there is no such session.
    pub fn remove(&mut self, id: SessionId, places: &mut impl Places) -> Option<T> {
        let keyed = self.session_mut(id)?.keyed;
        if keyed {
            self.unindex(id.index);
        }
        let slot = &mut self.slots[id.index as usize];
        let session = slot.body.take()?;
        slot.generation = (slot.generation + 1) & GENERATION_MASK;
        let line = line_mut(&mut self.lines, &session.key);
        if session.state == State::Parked {
            line.parked.unlink(&mut self.slots, BY_AGE, id.index);
            self.parked -= 1;
        } else {
            line.active.unlink(&mut self.slots, BY_AGE, id.index);
        }
        let counted = session.source != NONE;
        if counted {
            let ends = self.sources.ends(session.source);
            ends.unlink(&mut self.slots, BY_SOURCE, id.index);
            self.sources.release(&self.hasher, session.source);
        }
        self.slots[id.index as usize].links[BY_AGE].next = self.free;
        self.free = id.index;
        self.len -= 1;
        let source = counted.then(|| session.key.client().ip());
        places.give(session.key.listener(), source);
        Some(session.data)
    }

    /// A session whose time is over, which the caller then removes; call until `None`.
    pub fn expire(&mut self, now: Instant) -> Option<SessionId> {
        let now = self.at(now);
        if now < self.next_expiry {
            return None;
        }
        while self.sweep < self.lines.len() {
            if let Some(line) = &self.lines[self.sweep] {
                for (head, time) in [
                    (line.parked.head, line.parked_time()),
                    (line.active.head, line.idle),
                ] {
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
    pub fn spare(&self) -> Option<SessionId> {
        if self.parked == 0 {
            return None;
        }
        self.lines
            .iter()
            .flatten()
            .map(|line| line.parked.head)
            .filter(|&head| head != NONE)
            .min_by_key(|&head| self.last(head))
            .map(|head| self.id(head))
    }

    /// What the shell keeps with a session.
    pub fn get_mut(&mut self, id: SessionId) -> Option<&mut T> {
        self.session_mut(id).map(|session| &mut session.data)
    }

    /// Everything about a session.
    pub fn view(&self, id: SessionId) -> Option<View<'_, T>> {
        let slot = self.slots.get(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.body.as_ref().map(Session::view)
    }

    /// All sessions in slot order, parked ones too.
    pub fn iter(&self) -> impl Iterator<Item = (SessionId, View<'_, T>)> {
        self.slots.iter().enumerate().filter_map(|(ix, slot)| {
            let id = SessionId {
                index: ix as u32,
                generation: slot.generation,
            };
            slot.body.as_ref().map(|session| (id, session.view()))
        })
    }

    /// Sessions that hold a place, parked ones too.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there is no session, not even a parked one.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Parked sessions.
    pub fn parked(&self) -> usize {
        self.parked as usize
    }

    /// Sessions of a listener, without parked ones.
    pub fn active(&self, listener: ListenerIx) -> usize {
        match self.lines.get(listener.0 as usize) {
            Some(Some(line)) => line.active.len as usize,
            _ => 0,
        }
    }

    /// Source addresses that have a counted session.
    pub fn sources(&self) -> usize {
        self.sources.len()
    }

    fn at(&self, now: Instant) -> u64 {
        nanos(now.saturating_duration_since(self.epoch))
    }

    fn id(&self, ix: u32) -> SessionId {
        SessionId {
            index: ix,
            generation: self.slots[ix as usize].generation,
        }
    }

    fn last(&self, ix: u32) -> u64 {
        self.slots[ix as usize]
            .body
            .as_ref()
            .map_or(u64::MAX, |session| session.last)
    }

    fn session_mut(&mut self, id: SessionId) -> Option<&mut Session<T>> {
        let slot = self.slots.get_mut(id.index as usize)?;
        if slot.generation != id.generation {
            return None;
        }
        slot.body.as_mut()
    }

    fn touch_source(&mut self, ix: u32) {
        let source = self.slots[ix as usize]
            .body
            .as_ref()
            .map_or(NONE, |session| session.source);
        if source != NONE {
            self.sources
                .ends(source)
                .move_to_back(&mut self.slots, BY_SOURCE, ix);
        }
    }

    fn unindex(&mut self, ix: u32) {
        if let Some(session) = &self.slots[ix as usize].body {
            let hash = self.hasher.hash_one(session.key);
            if let Ok(entry) = self.index.find_entry(hash, |&other| other == ix) {
                entry.remove();
            }
        }
    }

    /// Earliest `last + time` over the heads, with the times of active and parked sessions.
    fn soonest(&self, times: impl Fn(&Line) -> [u64; 2]) -> u64 {
        let mut soonest = u64::MAX;
        for line in self.lines.iter().flatten() {
            for (head, time) in [line.active.head, line.parked.head]
                .into_iter()
                .zip(times(line))
            {
                if head != NONE {
                    soonest = soonest.min(self.last(head).saturating_add(time));
                }
            }
        }
        soonest
    }

    /// Who makes room.
    fn victim(&mut self, now: u64, full: Full, key: &Key) -> Option<SessionId> {
        let own = self.lines[key.listener().0 as usize].as_ref()?;
        let stale = |ix: u32, line: &Line| ix != NONE && now - self.last(ix) >= line.idle / 2;
        let victim = match full {
            Full::Source => {
                let ip = pack(key.client().ip());
                let source = self.sources.find(&self.hasher, key.listener().0, ip)?;
                let head = self.sources.ends(source).head;
                let own = self.lines[key.listener().0 as usize].as_ref()?;
                let session = self.slots[head as usize].body.as_ref()?;
                (session.state == State::Parked || now - session.last >= own.idle / 2)
                    .then_some(head)
            }
            Full::Listener | Full::Process if own.parked.head != NONE => Some(own.parked.head),
            Full::Process if self.parked > 0 => return self.spare(),
            Full::Listener | Full::Process if stale(own.active.head, own) => Some(own.active.head),
            Full::Listener => None,
            Full::Process if now < self.next_victim => None,
            Full::Process => {
                let oldest = self
                    .lines
                    .iter()
                    .flatten()
                    .filter(|line| stale(line.active.head, line))
                    .map(|line| line.active.head)
                    .min_by_key(|&head| self.last(head));
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
    fn view(&self) -> View<'_, T> {
        View {
            key: &self.key,
            state: self.state,
            proven: self.proven,
            requests: self.requests,
            replies: self.replies,
            data: &self.data,
        }
    }
}

fn line_mut<'a>(lines: &'a mut [Option<Line>], key: &Key) -> &'a mut Line {
    lines[key.listener().0 as usize]
        .as_mut()
        .expect("a listener has its policy before its first datagram")
}
