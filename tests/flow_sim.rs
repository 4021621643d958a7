//! Seeded simulation of the UDP session table beside a plain model of its rules.
//!
//! The model keeps sessions in a vector, scans it, and knows no lists, no generations and no lower bounds. After every
//! step both agree on who exists, who may be evicted, who expires and what an error does. Requests and replies carry the
//! client and local address they belong to, and replies wait "in hand" (read from the socket, not yet sent on) while
//! other steps evict, expire and reuse slots, as they do inside one turn of a worker.
//!
//! `FLOW_SEEDS=n` sets how many seeds run, `FLOW_SEED=n` runs one alone. Breaks that were tried and are found within a few
//! seeds: generation not bumped on removal (reply goes to another client), no place given back by `remove`, source list
//! not re-ordered on a datagram, `next_victim` not lowered when a list gets its first session, `next_expiry` not lowered
//! by `finish`, a used-up session left in the index, a bare ICMP error believed at once.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

use weir::balance::limits::source;
use weir::base::Key;
use weir::flow::{
    After, CONFIRM, Endpoints, Full, ListenerIx, OnError, PARKED_TIME, Proof, RECENT, SessionLimits, State, Step, Table,
};

/// splitmix64: enough to choose steps.
struct Rng(u64);

impl Rng {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

/// Caps over all workers, some of whose places are held by workers that the simulation only hints at.
#[derive(Default)]
struct Caps {
    process: usize,
    listener: Vec<usize>,
    source: usize,
    seats: Cell<usize>,
    elsewhere: Cell<usize>,
    by_listener: RefCell<HashMap<ListenerIx, usize>>,
    by_source: RefCell<HashMap<(ListenerIx, IpAddr), usize>>,
}

/// One session's place in the process, given back when dropped.
struct Seat(Rc<Caps>);

/// One session's place in its listener and its source, given back when dropped.
struct Pass(Rc<Caps>, Endpoints, bool);

impl Caps {
    fn seat(self: &Rc<Self>) -> Option<Seat> {
        let free = self.seats.get() + self.elsewhere.get() < self.process;
        free.then(|| {
            self.seats.set(self.seats.get() + 1);
            Seat(self.clone())
        })
    }

    fn pass(self: &Rc<Self>, ends: &Endpoints, counted: bool) -> Result<Pass, Full> {
        let listener = ends.listener();
        let mut by_listener = self.by_listener.borrow_mut();
        let of_listener = by_listener.entry(listener).or_default();
        if *of_listener >= self.listener[listener.0 as usize] {
            return Err(Full::Listener);
        }
        if counted {
            let mut by_source = self.by_source.borrow_mut();
            let of_source = by_source.entry((listener, source(ends.client().ip()))).or_default();
            if *of_source >= self.source {
                return Err(Full::Source);
            }
            *of_source += 1;
        }
        *of_listener += 1;
        Ok(Pass(self.clone(), *ends, counted))
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.0.seats.set(self.0.seats.get() - 1);
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let Pass(caps, ends, counted) = self;
        *caps.by_listener.borrow_mut().get_mut(&ends.listener()).expect("taken") -= 1;
        if *counted {
            let source = (ends.listener(), source(ends.client().ip()));
            *caps.by_source.borrow_mut().get_mut(&source).expect("taken") -= 1;
        }
    }
}

/// What the shell keeps: its own idea of who the session is, to be compared with everything the table says.
struct Data {
    serial: u64,
    ends: Endpoints,
    backend: usize,
    _seat: Seat,
    pass: Option<Pass>,
}

#[derive(Debug, Clone)]
struct Model {
    id: Key,
    serial: u64,
    ends: Endpoints,
    counted: bool,
    last: Instant,
    sent: Instant,
    suspect: Option<(Instant, u32)>,
    state: State,
    indexed: bool,
    proven: bool,
    asked: bool,
    resent: bool,
    requests: u32,
    replies: u32,
}

/// A reply that was read but not yet delivered; `to` is what the request said.
struct InHand {
    id: Key,
    serial: u64,
    to: Endpoints,
}

struct World {
    rng: Rng,
    now: Instant,
    table: Table<Data, BuildHasherDefault<DefaultHasher>>,
    caps: Rc<Caps>,
    policies: Vec<SessionLimits>,
    model: Vec<Model>,
    in_hand: VecDeque<InHand>,
    serial: u64,
    delivered: u64,
    stale: u64,
    evicted: u64,
    shed: u64,
    reopened: u64,
    failed: u64,
    expired: u64,
}

fn policy(rng: &mut Rng) -> SessionLimits {
    SessionLimits {
        idle: Duration::from_millis(rng.pick(&[20, 200, 1000, 5000, 30_000])),
        requests: rng.pick(&[None, None, None, Some(1), Some(3)]),
        replies: rng.pick(&[None, None, Some(0), Some(1), Some(1), Some(2)]),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let now = Instant::now();
        let policies: Vec<SessionLimits> = (0..1 + rng.below(3)).map(|_| policy(&mut rng)).collect();
        let mut table = Table::with_hasher(now, BuildHasherDefault::default());
        for (ix, policy) in policies.iter().enumerate() {
            table.set_limits(ListenerIx(ix as u32), *policy);
        }
        let caps = Rc::new(Caps {
            process: 1 + rng.below(30) as usize,
            listener: policies.iter().map(|_| 1 + rng.below(20) as usize).collect(),
            source: 1 + rng.below(8) as usize,
            ..Caps::default()
        });
        Self {
            rng,
            now,
            table,
            caps,
            policies,
            model: Vec::new(),
            in_hand: VecDeque::new(),
            serial: 0,
            delivered: 0,
            stale: 0,
            evicted: 0,
            shed: 0,
            reopened: 0,
            failed: 0,
            expired: 0,
        }
    }

    fn policy_of(&self, ends: &Endpoints) -> SessionLimits {
        self.policies[ends.listener().0 as usize]
    }

    /// When a session's time is over.
    fn ends(&self, m: &Model) -> Instant {
        let idle = self.policy_of(&m.ends).idle;
        m.last
            + match m.state {
                State::Parked => idle.min(PARKED_TIME),
                _ => idle,
            }
    }

    fn find(&mut self, id: Key) -> Option<&mut Model> {
        self.model.iter_mut().find(|m| m.id == id)
    }

    fn random_ends(&mut self) -> Endpoints {
        let v6 = self.rng.chance(20);
        let (host, port, local) = (self.rng.below(4), 1 + self.rng.below(4), self.rng.below(2));
        let (client, local) = match v6 {
            // Two hosts to a /64, which counts as one source.
            true => (
                format!("[2001:db8:0:{}::{}]:{port}", host / 2, host % 2),
                format!("[2001:db8:1::{local}]:53"),
            ),
            false => (format!("192.0.2.{host}:{port}"), format!("198.51.100.{local}:53")),
        };
        let listener = ListenerIx(self.rng.below(self.policies.len() as u64) as u32);
        let parse = |s: String| s.parse::<SocketAddr>().expect("address");
        Endpoints::new(listener, parse(client), parse(local))
    }

    fn remove(&mut self, id: Key) {
        let at = self.model.iter().position(|m| m.id == id).expect("in the model");
        let m = self.model.swap_remove(at);
        let data = self.table.remove(id).expect("in the table");
        assert_eq!(
            (data.serial, data.ends),
            (m.serial, m.ends),
            "removed another session's data"
        );
        assert!(self.table.remove(id).is_none(), "removed twice");
    }

    /// A session's requests reach its backend, which may answer each of them any number of times.
    fn send(&mut self, id: Key, take: u32) {
        let view = self.table.view(id).expect("live");
        let (serial, to) = (view.data.serial, view.data.ends);
        for _ in 0..take {
            for _ in 0..self.rng.pick(&[0, 1, 1, 1, 2, 3]) {
                self.in_hand.push_back(InHand { id, serial, to });
            }
        }
    }

    fn finish(&mut self, id: Key) {
        let now = self.now;
        let m = self.find(id).expect("in the model");
        let parks = m.indexed && m.state == State::Live;
        let serial = m.serial;
        match self.table.finish(now, id) {
            None => {
                assert!(parks, "parked a session that cannot be found again");
                self.table.get_mut(id).expect("parked").pass = None;
                let m = self.find(id).expect("in the model");
                (m.state, m.last) = (State::Parked, now);
            }
            Some(data) => {
                assert!(!parks);
                assert_eq!(data.serial, serial);
                self.model.retain(|m| m.id != id);
            }
        }
    }

    fn client(&mut self) {
        let ends = self.random_ends();
        let mut left = 1 + self.rng.below(5) as u32;
        while left > 0 {
            let step = self.table.on_client(self.now, &ends, left);
            let (now, policy) = (self.now, self.policy_of(&ends));
            let owner = self.model.iter_mut().find(|m| m.indexed && m.ends == ends);
            let (id, take, finishes, repick, reopened) = match step {
                Step::Unknown => {
                    if let Some(m) = owner {
                        let used_up = policy.requests.is_some_and(|n| m.requests >= n);
                        assert!(used_up, "a session was not found: {m:?}");
                        m.indexed = false;
                    }
                    if !self.open(ends) {
                        return;
                    }
                    continue;
                }
                Step::Forward { id, take, finishes } => (id, take, finishes, false, false),
                Step::Repick {
                    id,
                    take,
                    finishes,
                    reopened,
                } => (id, take, finishes, true, reopened),
            };
            let m = owner.expect("a session that should not exist");
            assert_eq!(m.id, id, "another client's session");
            assert_eq!(repick, m.state != State::Live);
            assert_eq!(reopened, m.state == State::Parked);
            if reopened {
                (m.requests, m.replies, m.state) = (0, 0, State::Astray);
            }
            let room = policy.requests.map_or(u32::MAX, |n| n - m.requests);
            assert_eq!(take, left.min(room));
            m.requests += take;
            (m.last, m.sent, m.asked, m.resent) = (now, now, true, false);
            m.indexed = policy.requests.is_none_or(|n| m.requests < n);
            assert_eq!(finishes, policy.replies == Some(0));
            let counted = m.counted;
            left -= take;
            self.reopened += u64::from(reopened);
            if reopened {
                match self.pass(&ends, counted) {
                    Some(pass) => self.table.get_mut(id).expect("reopened").pass = Some(pass),
                    None => {
                        self.remove(id);
                        continue;
                    }
                }
            }
            if repick {
                if self.rng.chance(20) {
                    // No backend: the datagrams are lost, the session stays.
                    continue;
                }
                self.rebound(id);
            }
            self.send(id, take);
            if finishes {
                self.finish(id);
            }
        }
    }

    fn rebound(&mut self, id: Key) {
        self.table.rebound(id);
        let m = self.find(id).expect("in the model");
        (m.state, m.proven, m.suspect) = (State::Live, false, None);
        self.table.get_mut(id).expect("live").backend += 1;
    }

    fn open(&mut self, ends: Endpoints) -> bool {
        let counted = self.rng.chance(80);
        let Some(seat) = self.seat(&ends) else {
            return false;
        };
        let Some(pass) = self.pass(&ends, counted) else {
            return false;
        };
        if self.rng.chance(10) {
            // No backend.
            return false;
        }
        self.serial += 1;
        let serial = self.serial;
        let data = Data {
            serial,
            ends,
            backend: 0,
            _seat: seat,
            pass: Some(pass),
        };
        let id = self.table.open(self.now, ends, counted, data);
        assert!(self.find(id).is_none(), "an id was given twice");
        self.model.push(Model {
            id,
            serial,
            ends,
            counted,
            last: self.now,
            sent: self.now,
            suspect: None,
            state: State::Live,
            indexed: true,
            proven: false,
            asked: false,
            resent: false,
            requests: 0,
            replies: 0,
        });
        true
    }

    fn seat(&mut self, ends: &Endpoints) -> Option<Seat> {
        let seat = self.caps.seat();
        if seat.is_some() || !self.evict(ends, Full::Process) {
            return seat;
        }
        self.caps.seat()
    }

    fn pass(&mut self, ends: &Endpoints, counted: bool) -> Option<Pass> {
        match self.caps.pass(ends, counted) {
            Ok(pass) => Some(pass),
            Err(full) if self.evict(ends, full) => self.caps.pass(ends, counted).ok(),
            Err(_) => None,
        }
    }

    /// Ends the session that makes room, after judging the choice.
    fn evict(&mut self, ends: &Endpoints, full: Full) -> bool {
        let victim = self.table.victim(self.now, full, ends);
        self.judge(ends, full, victim);
        let Some(victim) = victim else {
            self.shed += 1;
            return false;
        };
        self.remove(victim);
        self.evicted += 1;
        if self.rng.chance(10) && self.caps.seat().is_some() {
            // Another worker is faster.
            self.caps.elsewhere.set(self.caps.elsewhere.get() + 1);
        }
        true
    }

    /// The victim is within the cap that is reached and may be evicted; nobody in its own listener (or source) who may be
    /// evicted has been idle for longer; and there is none only when nobody may be evicted.
    fn judge(&self, ends: &Endpoints, full: Full, victim: Option<Key>) {
        let parked = |m: &Model| m.state == State::Parked;
        let may_go = |m: &Model| parked(m) || self.now - m.last >= self.policy_of(&m.ends).idle / 2;
        let own = |m: &Model| m.ends.listener() == ends.listener();
        let source_of = |ends: &Endpoints| source(ends.client().ip());
        let scope: Vec<&Model> = self
            .model
            .iter()
            .filter(|m| match full {
                Full::Process => true,
                Full::Listener => own(m) && !parked(m),
                Full::Source => own(m) && !parked(m) && m.counted && source_of(&m.ends) == source_of(ends),
            })
            .collect();
        let Some(victim) = victim else {
            assert!(!scope.iter().any(|m| may_go(m)), "shed although {full:?} had a victim");
            return;
        };
        let victim = scope
            .iter()
            .find(|m| m.id == victim)
            .expect("victim outside of the cap");
        assert!(may_go(victim), "evicted too early: {victim:?}");
        if !parked(victim) {
            for peer in scope.iter().filter(|m| m.ends.listener() == victim.ends.listener()) {
                assert!(!parked(peer), "a parked session should go first");
                assert!(peer.last >= victim.last, "{peer:?} is idle for longer than {victim:?}");
            }
        }
    }

    fn reply(&mut self) {
        if self.in_hand.is_empty() {
            return;
        }
        let at = self.rng.below(self.in_hand.len() as u64) as usize;
        let InHand { id, serial, to } = self.in_hand.remove(at).expect("in range");
        let now = self.now;
        let Some(after) = self.table.on_backend(now, id, 1) else {
            assert!(self.find(id).is_none(), "a live session's reply was dropped");
            self.stale += 1;
            return;
        };
        let view = self.table.view(id).expect("just seen");
        assert_eq!(
            *view.ends, to,
            "MISROUTED: reply to another client or from another address"
        );
        assert_eq!(view.data.serial, serial, "MISROUTED: reply of another session");
        self.delivered += 1;
        let policy = self.policy_of(&to);
        let m = self.find(id).expect("in the model");
        if m.state == State::Parked {
            assert_eq!(after, After::Continue);
            return;
        }
        m.last = now;
        m.replies += 1;
        if m.state == State::Live {
            (m.proven, m.asked, m.suspect) = (true, false, None);
        }
        let complete = policy.replies.is_some_and(|n| m.replies >= n * m.requests);
        assert_eq!(after == After::Finished, complete);
        if complete {
            self.finish(id);
        }
    }

    fn error(&mut self) {
        let Some(id) = self.random_session() else {
            return;
        };
        let proof = self.rng.pick(&[Proof::Firm, Proof::Soft, Proof::Short, Proof::Bare]);
        let got = self.table.on_error(self.now, id, proof).expect("live");
        let now = self.now;
        let m = self.find(id).expect("in the model");
        let confirmed = m
            .suspect
            .is_some_and(|(since, requests)| now - since >= CONFIRM || proof == Proof::Short && m.requests > requests);
        let expected = if m.state != State::Live || m.requests == 0 || now - m.sent > RECENT {
            OnError::Ignored
        } else {
            match (m.proven, proof) {
                (true, Proof::Short | Proof::Bare) if !m.asked => OnError::Ignored,
                (true, Proof::Soft | Proof::Short | Proof::Bare) if !confirmed => {
                    m.suspect.get_or_insert((now, m.requests));
                    OnError::Suspected
                }
                (proven, proof) => {
                    (m.state, m.suspect) = (State::Astray, None);
                    let resend = !std::mem::replace(&mut m.resent, true);
                    OnError::Failed {
                        blame: proof == Proof::Firm || proof == Proof::Soft || proven && proof == Proof::Short,
                        resend,
                    }
                }
            }
        };
        assert_eq!(got, expected);
        if let OnError::Failed { resend, .. } = got {
            self.failed += 1;
            if resend && self.rng.chance(80) {
                self.rebound(id);
                self.send(id, 1);
            }
        }
    }

    fn random_session(&mut self) -> Option<Key> {
        if self.model.is_empty() {
            return None;
        }
        let at = self.rng.below(self.model.len() as u64) as usize;
        Some(self.model[at].id)
    }

    /// A session goes to another process and goes on there: same table here, but a session of its own.
    fn migrate(&mut self) {
        let Some(id) = self.random_session() else {
            return;
        };
        let at = self.model.iter().position(|m| m.id == id).expect("in the model");
        if self.model[at].state != State::Live {
            return;
        }
        let mut m = self.model.swap_remove(at);
        let data = self.table.remove(id).expect("in the table");
        let had = [m.requests, m.replies];
        m.id = self.table.resume(self.now, m.ends, m.counted, had, data);
        (m.last, m.sent) = (self.now, self.now);
        (m.suspect, m.asked, m.resent, m.proven) = (None, false, false, m.replies > 0);
        let used_up = self.policy_of(&m.ends).requests.is_some_and(|n| m.requests >= n);
        let has_another = self.model.iter().any(|other| other.indexed && other.ends == m.ends);
        m.indexed = !used_up && !has_another;
        self.model.push(m);
    }

    fn backend_leaves(&mut self) {
        let Some(id) = self.random_session() else {
            return;
        };
        self.table.astray(id);
        let m = self.find(id).expect("in the model");
        if m.state == State::Live {
            (m.state, m.suspect) = (State::Astray, None);
        }
    }

    fn expire(&mut self) {
        while let Some(id) = self.table.expire(self.now) {
            let m = self.find(id).cloned().expect("expired twice");
            assert!(self.ends(&m) <= self.now, "expired too early: {m:?}");
            self.remove(id);
            self.expired += 1;
        }
        for m in &self.model {
            assert!(self.ends(m) > self.now, "not expired: {m:?}");
        }
    }

    fn reload(&mut self) {
        let ix = self.rng.below(self.policies.len() as u64) as usize;
        self.policies[ix] = policy(&mut self.rng);
        if self.rng.chance(50) {
            // Gone and back again, if it is gone at all.
            let listener = ListenerIx(ix as u32);
            let is_empty = self.model.iter().all(|m| m.ends.listener() != listener);
            assert_eq!(self.table.forget(listener), is_empty);
        }
        self.table.set_limits(ListenerIx(ix as u32), self.policies[ix]);
    }

    fn check(&self) {
        let caps = &self.caps;
        assert_eq!(self.table.len(), self.model.len(), "leak");
        assert_eq!(caps.seats.get(), self.model.len(), "seats leak");
        assert!(caps.seats.get() + caps.elsewhere.get() <= caps.process, "above the cap");
        let live: Vec<&Model> = self.model.iter().filter(|m| m.state != State::Parked).collect();
        assert_eq!(self.table.parked(), self.model.len() - live.len());
        for (ix, cap) in caps.listener.iter().enumerate() {
            let listener = ListenerIx(ix as u32);
            let count = live.iter().filter(|m| m.ends.listener() == listener).count();
            let held = caps.by_listener.borrow().get(&listener).copied().unwrap_or(0);
            assert_eq!((count, held), (self.table.active(listener), count), "passes leak");
            assert!(count <= *cap);
        }
        let mut sources = HashMap::<_, usize>::new();
        for m in live.iter().filter(|m| m.counted) {
            *sources
                .entry((m.ends.listener(), source(m.ends.client().ip())))
                .or_default() += 1;
        }
        assert_eq!(self.table.sources(), sources.len(), "source entries leak");
        for (source, held) in &*caps.by_source.borrow() {
            assert_eq!(*held, sources.get(source).copied().unwrap_or(0), "passes leak");
            assert!(*held <= caps.source);
        }
        if let Some(soonest) = self.model.iter().map(|m| self.ends(m)).min() {
            let deadline = self.table.deadline().expect("someone will expire");
            assert!(deadline <= soonest, "the deadline comes too late");
        }
    }

    fn run(&mut self, steps: u32) {
        for _ in 0..steps {
            match self.rng.below(100) {
                0..40 => self.client(),
                40..70 => self.reply(),
                70..78 => self.error(),
                78..82 => self.backend_leaves(),
                82 => self.migrate(),
                83 => match self.random_session() {
                    Some(id) => self.remove(id),
                    None => self.client(),
                },
                84..92 => self.expire(),
                92..95 => {
                    let room = self.caps.process - self.caps.seats.get();
                    self.caps.elsewhere.set(self.rng.below(room as u64 + 1) as usize);
                }
                95 => self.reload(),
                _ => {
                    let ms = self.rng.pick(&[1, 1, 5, 30, 100, 600, 3000]);
                    self.now += Duration::from_millis(ms);
                }
            }
            self.check();
        }
        self.now += Duration::from_secs(60);
        self.expire();
        self.check();
        assert!(self.table.is_empty(), "sessions outlive their idle time");
        assert_eq!(self.table.sources(), 0);
        assert_eq!(self.table.deadline(), None);
    }
}

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

#[test]
fn never_leaks_never_exceeds_never_misroutes() {
    let seeds = match from_env("FLOW_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("FLOW_SEEDS").unwrap_or(2000),
    };
    let whole = seeds.end - seeds.start > 1;
    let mut sums = [0u64; 7];
    for seed in seeds {
        let ran = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            world.run(600);
            [
                world.delivered,
                world.stale,
                world.evicted,
                world.shed,
                world.reopened,
                world.failed,
                world.expired,
            ]
        });
        match ran {
            Ok(counts) => sums.iter_mut().zip(counts).for_each(|(sum, n)| *sum += n),
            Err(panic) => {
                eprintln!("failed with FLOW_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    // Each kind of event has really happened, or the run has shown nothing.
    if whole {
        assert!(sums.iter().all(|&n| n > 100), "{sums:?}");
    }
}
