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
//! by `finish`, a used-up session left in the index.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, DefaultHasher};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use weir::base::Key;
use weir::flow::{
    Admit, After, CONFIRM, Endpoints, Full, ListenerIx, OnError, PARKED_TIME, Places, Policy,
    Proof, RECENT, State, Step, Table,
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
    held: usize,
    elsewhere: usize,
    by_listener: HashMap<ListenerIx, usize>,
    by_source: HashMap<(ListenerIx, IpAddr), usize>,
}

impl Places for Caps {
    fn take(&mut self, listener: ListenerIx, source: Option<IpAddr>) -> Result<(), Full> {
        if self.held + self.elsewhere >= self.process {
            return Err(Full::Process);
        }
        if self.by_listener.get(&listener).copied().unwrap_or(0)
            >= self.listener[listener.0 as usize]
        {
            return Err(Full::Listener);
        }
        if let Some(ip) = source {
            let of_source = self.by_source.entry((listener, ip)).or_default();
            if *of_source >= self.source {
                return Err(Full::Source);
            }
            *of_source += 1;
        }
        *self.by_listener.entry(listener).or_default() += 1;
        self.held += 1;
        Ok(())
    }

    fn give(&mut self, listener: ListenerIx, source: Option<IpAddr>) {
        self.held = self
            .held
            .checked_sub(1)
            .expect("given back more than taken");
        let n = self.by_listener.get_mut(&listener).expect("never taken");
        *n = n.checked_sub(1).expect("given back more than taken");
        if let Some(ip) = source {
            let n = self
                .by_source
                .get_mut(&(listener, ip))
                .expect("never taken");
            *n = n.checked_sub(1).expect("given back more than taken");
        }
    }
}

/// What the shell keeps: its own idea of who the session is, to be compared with everything the table says.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Data {
    serial: u64,
    key: Endpoints,
    backend: usize,
}

#[derive(Debug, Clone)]
struct Model {
    id: Key,
    serial: u64,
    key: Endpoints,
    counted: bool,
    last: Instant,
    sent: Instant,
    suspect: Option<Instant>,
    state: State,
    indexed: bool,
    proven: bool,
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
    caps: Caps,
    policies: Vec<Policy>,
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

fn policy(rng: &mut Rng) -> Policy {
    Policy {
        idle: Duration::from_millis(rng.pick(&[20, 200, 1000, 5000, 30_000])),
        requests: rng.pick(&[None, None, None, Some(1), Some(3)]),
        replies: rng.pick(&[None, None, Some(0), Some(1), Some(1), Some(2)]),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng(seed);
        let now = Instant::now();
        let policies: Vec<Policy> = (0..1 + rng.below(3)).map(|_| policy(&mut rng)).collect();
        let mut table = Table::with_hasher(now, BuildHasherDefault::default());
        for (ix, policy) in policies.iter().enumerate() {
            table.set_policy(ListenerIx(ix as u32), *policy);
        }
        let caps = Caps {
            process: 1 + rng.below(30) as usize,
            listener: policies
                .iter()
                .map(|_| 1 + rng.below(20) as usize)
                .collect(),
            source: 1 + rng.below(8) as usize,
            ..Caps::default()
        };
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

    fn policy_of(&self, key: &Endpoints) -> Policy {
        self.policies[key.listener().0 as usize]
    }

    /// When a session's time is over.
    fn ends(&self, m: &Model) -> Instant {
        let idle = self.policy_of(&m.key).idle;
        m.last
            + match m.state {
                State::Parked => idle.min(PARKED_TIME),
                _ => idle,
            }
    }

    /// Whether a session may be evicted at all.
    fn evictable(&self, m: &Model) -> bool {
        m.state == State::Parked || self.now - m.last >= self.policy_of(&m.key).idle / 2
    }

    fn find(&mut self, id: Key) -> Option<&mut Model> {
        self.model.iter_mut().find(|m| m.id == id)
    }

    fn random_key(&mut self) -> Endpoints {
        let client = match self.rng.chance(20) {
            true => format!(
                "[2001:db8::{}]:{}",
                self.rng.below(3),
                1 + self.rng.below(4)
            ),
            false => format!("192.0.2.{}:{}", self.rng.below(4), 1 + self.rng.below(4)),
        };
        let local = match client.starts_with('[') {
            true => format!("[2001:db8:1::{}]:53", self.rng.below(2)),
            false => format!("198.51.100.{}:53", self.rng.below(2)),
        };
        let listener = ListenerIx(self.rng.below(self.policies.len() as u64) as u32);
        let parse = |s: String| s.parse::<SocketAddr>().expect("address");
        Endpoints::new(listener, parse(client), parse(local))
    }

    fn remove(&mut self, id: Key) {
        let at = self
            .model
            .iter()
            .position(|m| m.id == id)
            .expect("in the model");
        let m = self.model.swap_remove(at);
        let data = self.table.remove(id, &mut self.caps).expect("in the table");
        assert_eq!(
            (data.serial, data.key),
            (m.serial, m.key),
            "removed another session's data"
        );
        assert!(
            self.table.remove(id, &mut self.caps).is_none(),
            "removed twice"
        );
    }

    /// A session's requests reach its backend, which may answer each of them any number of times.
    fn send(&mut self, id: Key, take: u32) {
        let data = *self.table.view(id).expect("live").data;
        for _ in 0..take {
            for _ in 0..self.rng.pick(&[0, 1, 1, 1, 2, 3]) {
                self.in_hand.push_back(InHand {
                    id,
                    serial: data.serial,
                    to: data.key,
                });
            }
        }
    }

    fn finish(&mut self, id: Key) {
        let now = self.now;
        let m = self.find(id).expect("in the model");
        let parks = m.indexed && m.state == State::Live;
        let serial = m.serial;
        match self.table.finish(now, id, &mut self.caps) {
            None => {
                assert!(parks, "parked a session that cannot be found again");
                let m = self.find(id).expect("in the model");
                m.state = State::Parked;
                m.last = now;
            }
            Some(data) => {
                assert!(!parks);
                assert_eq!(data.serial, serial);
                self.model.retain(|m| m.id != id);
            }
        }
    }

    fn client(&mut self) {
        let key = self.random_key();
        let mut left = 1 + self.rng.below(5) as u32;
        while left > 0 {
            let step = self.table.on_client(self.now, &key, left);
            let (now, policy) = (self.now, self.policy_of(&key));
            let owner = self.model.iter_mut().find(|m| m.indexed && m.key == key);
            let (id, take, finishes, repick, reopened) = match step {
                Step::Unknown => {
                    if let Some(m) = owner {
                        assert!(
                            policy.requests.is_some_and(|n| m.requests >= n),
                            "a session was not found: {m:?}"
                        );
                        m.indexed = false;
                    }
                    if !self.open(key) {
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
                (m.requests, m.replies) = (0, 0);
                m.state = State::Astray;
            }
            let room = policy.requests.map_or(u32::MAX, |n| n - m.requests);
            assert_eq!(take, left.min(room));
            m.requests += take;
            (m.last, m.sent, m.resent) = (now, now, false);
            m.indexed = policy.requests.is_none_or(|n| m.requests < n);
            assert_eq!(finishes, policy.replies == Some(0));
            left -= take;
            self.reopened += u64::from(reopened);
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

    fn open(&mut self, key: Endpoints) -> bool {
        let counted = self.rng.chance(80);
        for _ in 0..2 {
            match self.table.admit(self.now, key, counted, &mut self.caps) {
                Admit::Granted(place) => {
                    if self.rng.chance(10) {
                        self.table.cancel(place, &mut self.caps);
                        return false;
                    }
                    self.serial += 1;
                    let data = Data {
                        serial: self.serial,
                        key,
                        backend: 0,
                    };
                    let id = self.table.open(self.now, place, data);
                    assert!(self.find(id).is_none(), "an id was given twice");
                    self.model.push(Model {
                        id,
                        serial: self.serial,
                        key,
                        counted,
                        last: self.now,
                        sent: self.now,
                        suspect: None,
                        state: State::Live,
                        indexed: true,
                        proven: false,
                        resent: false,
                        requests: 0,
                        replies: 0,
                    });
                    return true;
                }
                Admit::Evict(id) => {
                    self.check_victim(&key, Some(id));
                    self.remove(id);
                    self.evicted += 1;
                    if self.rng.chance(10) && self.caps.elsewhere < self.caps.process {
                        // Another worker is faster.
                        self.caps.elsewhere += 1;
                    }
                }
                Admit::Shed(full) => {
                    assert_eq!(Some(full), self.full(&key, counted));
                    self.check_victim(&key, None);
                    self.shed += 1;
                    return false;
                }
            }
        }
        false
    }

    /// Which cap stops a new session of `key`.
    fn full(&self, key: &Endpoints, counted: bool) -> Option<Full> {
        let listener = key.listener();
        let of_listener = self.model.iter().filter(|m| m.key.listener() == listener);
        let of_source = of_listener
            .clone()
            .filter(|m| m.counted && m.key.client().ip() == key.client().ip());
        if self.model.len() + self.caps.elsewhere >= self.caps.process {
            Some(Full::Process)
        } else if of_listener.count() >= self.caps.listener[listener.0 as usize] {
            Some(Full::Listener)
        } else if counted && of_source.count() >= self.caps.source {
            Some(Full::Source)
        } else {
            None
        }
    }

    /// The victim is within the cap that is reached, may be evicted, and nobody in its own listener (or source) who may be
    /// evicted has been idle for longer; and there is none only when nobody may be evicted.
    fn check_victim(&self, key: &Endpoints, victim: Option<Key>) {
        // `admit` has not changed anything yet, so the cap can be worked out again; counted sources are tried first.
        let full = self.full(key, true).expect("nothing is full");
        let scope: Vec<&Model> = self
            .model
            .iter()
            .filter(|m| match full {
                Full::Process => true,
                Full::Listener => m.key.listener() == key.listener(),
                Full::Source => {
                    m.counted
                        && m.key.listener() == key.listener()
                        && m.key.client().ip() == key.client().ip()
                }
            })
            .collect();
        let Some(victim) = victim else {
            assert!(
                !scope.iter().any(|m| self.evictable(m)),
                "shed although {full:?} had a victim"
            );
            return;
        };
        let victim = scope
            .iter()
            .find(|m| m.id == victim)
            .expect("victim outside of the cap");
        assert!(self.evictable(victim), "evicted too early: {victim:?}");
        if victim.state != State::Parked {
            let peers = scope
                .iter()
                .filter(|m| m.key.listener() == victim.key.listener());
            for peer in peers {
                assert!(
                    peer.state != State::Parked,
                    "a parked session should go first"
                );
                assert!(
                    peer.last >= victim.last,
                    "{peer:?} is idle for longer than {victim:?}"
                );
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
            assert!(
                self.find(id).is_none(),
                "a live session's reply was dropped"
            );
            self.stale += 1;
            return;
        };
        let view = self.table.view(id).expect("just seen");
        assert_eq!(
            *view.ends, to,
            "MISROUTED: reply to another client or from another address"
        );
        assert_eq!(
            view.data.serial, serial,
            "MISROUTED: reply of another session"
        );
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
            (m.proven, m.suspect) = (true, None);
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
        let proof = self.rng.pick(&[Proof::Firm, Proof::Soft, Proof::Bare]);
        let got = self.table.on_error(self.now, id, proof).expect("live");
        let now = self.now;
        let m = self.find(id).expect("in the model");
        let confirmed = m.suspect.is_some_and(|since| now - since >= CONFIRM);
        let expected = if m.state != State::Live || m.requests == 0 || now - m.sent > RECENT {
            OnError::Ignored
        } else {
            match (m.proven, proof) {
                (true, Proof::Bare) => OnError::Ignored,
                (true, Proof::Soft) if !confirmed => {
                    m.suspect.get_or_insert(now);
                    OnError::Suspected
                }
                (_, proof) => {
                    (m.state, m.suspect) = (State::Astray, None);
                    let resend = !std::mem::replace(&mut m.resent, true);
                    OnError::Failed {
                        blame: proof != Proof::Bare,
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
        self.table
            .set_policy(ListenerIx(ix as u32), self.policies[ix]);
    }

    fn check(&self) {
        assert_eq!(self.table.len(), self.model.len(), "leak");
        assert_eq!(self.caps.held, self.model.len(), "places leak");
        assert!(
            self.caps.held + self.caps.elsewhere <= self.caps.process,
            "above the cap"
        );
        let parked = |m: &&Model| m.state == State::Parked;
        assert_eq!(
            self.table.parked(),
            self.model.iter().filter(parked).count()
        );
        let mut sources: Vec<_> = self
            .model
            .iter()
            .filter(|m| m.counted)
            .map(|m| (m.key.listener(), m.key.client().ip()))
            .collect();
        for (listener, cap) in self.caps.listener.iter().enumerate() {
            let listener = ListenerIx(listener as u32);
            let mine = self.model.iter().filter(|m| m.key.listener() == listener);
            assert!(mine.clone().count() <= *cap);
            assert_eq!(
                mine.clone().count(),
                self.caps.by_listener.get(&listener).copied().unwrap_or(0)
            );
            assert_eq!(
                mine.filter(|m| !parked(m)).count(),
                self.table.active(listener)
            );
        }
        for (source, n) in &self.caps.by_source {
            let counted = sources.iter().filter(|s| *s == source).count();
            assert_eq!(*n, counted, "places of a source leak");
            assert!(counted <= self.caps.source);
        }
        sources.sort();
        sources.dedup();
        assert_eq!(self.table.sources(), sources.len(), "source entries leak");
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
                82..84 => match self.random_session() {
                    Some(id) => self.remove(id),
                    None => self.client(),
                },
                84..92 => self.expire(),
                92..95 => {
                    let room = self.caps.process - self.caps.held;
                    self.caps.elsewhere = self.rng.below(room as u64 + 1) as usize;
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
    std::env::var(name)
        .ok()
        .map(|value| value.parse().expect("a number"))
}

#[test]
fn never_leaks_never_exceeds_never_misroutes() {
    let seeds = match from_env("FLOW_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_env("FLOW_SEEDS").unwrap_or(3000),
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
