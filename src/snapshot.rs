//! The immutable view that workers act on. Control publishes a new one on every change; a connection keeps what it
//! needs of the one that it was opened under (its listener and its backend) alive by itself.

use std::sync::Arc;
use std::time::Duration;

use std::borrow::Cow;
use std::net::SocketAddr;

use crate::balance::{Cursor, Loads, Picker, source_key};
use crate::config::model;
use crate::gate::Gate;
use crate::health::Eligibility;
use crate::queue::PoolQueue;
use crate::routing::Routing;
use crate::stats::{BackendStats, Gauge, ListenerStats};

/// The configuration and the state of backends, as workers see them; never changed once it is published.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Grows with every publication.
    pub version: u64,
    /// Grows with every configuration.
    pub generation: u64,
    /// Listeners; the same value as before while no configuration comes into force.
    pub listeners: Arc<Listeners>,
    /// Pools in configuration order.
    pub pools: Vec<Arc<Pool>>,
    /// Live TCP connections of the process at most.
    pub connections_max: u32,
    /// What `connections_max` comes from: a limit that the file states turns clients away, one that the descriptors set lets
    /// them wait for a while.
    pub connections_stated: bool,
    /// Live UDP sessions of the process at most.
    pub sessions_max: u32,
    /// As `connections_stated`.
    pub sessions_stated: bool,
    /// Period of interim access records; `None` = off.
    pub interim: Option<Duration>,
}

/// Listeners in configuration order, found by id: every connection asks for its own.
#[derive(Debug, Default)]
pub struct Listeners {
    listeners: Vec<Arc<Listener>>,
    /// Positions in it, sorted by id.
    by_id: Vec<u32>,
}

impl Listeners {
    /// In this order. Ids are unique.
    pub fn new(listeners: Vec<Arc<Listener>>) -> Listeners {
        let mut by_id: Vec<u32> = (0..listeners.len() as u32).collect();
        by_id.sort_unstable_by_key(|&ix| listeners[ix as usize].id);
        Listeners { listeners, by_id }
    }

    /// The one with this id.
    pub fn get(&self, id: u32) -> Option<&Arc<Listener>> {
        let listener = |ix: u32| &self.listeners[ix as usize];
        let at = self.by_id.binary_search_by_key(&id, |&ix| listener(ix).id).ok()?;
        Some(listener(self.by_id[at]))
    }
}

impl std::ops::Deref for Listeners {
    type Target = [Arc<Listener>];

    fn deref(&self) -> &[Arc<Listener>] {
        &self.listeners
    }
}

/// The engine that carries a listener, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Owner(pub &'static str);

impl Owner {
    /// The worker threads.
    pub const WORKERS: Owner = Owner("proxy");
}

/// A listener.
#[derive(Debug)]
pub struct Listener {
    /// Stable over reloads as long as the name lives.
    pub id: u32,
    /// What the file says; `config.pool` indexes [`Snapshot::pools`].
    pub config: model::Listener,
    /// Name of the pool that it sends to, unless `routing` knows better.
    pub pool: Option<Arc<str>>,
    /// Where connections go that ask for a server by its name.
    pub routing: Option<Routing>,
    /// Who carries what comes to it.
    pub owner: Owner,
    /// The listener's statistics, which outlive this snapshot.
    pub stats: Arc<ListenerStats>,
    /// Who may come in.
    pub gate: Arc<Gate>,
}

/// A pool as it is right now.
#[derive(Debug, Clone)]
pub struct Pool {
    /// What the file says.
    pub config: Arc<model::PoolPolicy>,
    /// Backends in configuration order.
    pub backends: Vec<Arc<Backend>>,
    /// The algorithm with its tables.
    pub picker: Picker,
    /// Who takes new work.
    pub eligibility: Eligibility,
    /// Who waits for room.
    pub queue: Arc<PoolQueue>,
}

/// A backend.
#[derive(Debug)]
pub struct Backend {
    /// Stable hash of pool name and address.
    pub identity: u64,
    /// Name of its pool.
    pub pool: Arc<str>,
    /// What the file says.
    pub config: model::Backend,
    /// The PROXY header that its pool wants it to see.
    pub send_proxy: model::SendProxy,
    /// The backend's statistics, which outlive this snapshot.
    pub stats: Arc<BackendStats>,
    /// Who waits for room in its pool.
    pub queue: Arc<PoolQueue>,
}

impl Snapshot {
    /// The listener with this id.
    pub fn listener(&self, id: u32) -> Option<&Arc<Listener>> {
        self.listeners.get(id)
    }

    /// What the file says of [`connections_max`](Snapshot::connections_max) and [`sessions_max`](Snapshot::sessions_max): it counts
    /// whoever has them. `None`: only descriptors set a limit.
    pub fn stated(&self) -> [Option<u32>; 2] {
        [
            self.connections_stated.then_some(self.connections_max),
            self.sessions_stated.then_some(self.sessions_max),
        ]
    }

    /// Live connections and sessions of the process at most, `light` of which hold no descriptor.
    pub fn most(&self, light: &[Gauge; 2]) -> [u32; 2] {
        let carried = [self.connections_max, self.sessions_max];
        let stated = self.stated();
        std::array::from_fn(|nth| stated[nth].unwrap_or_else(|| carried[nth].saturating_add(light[nth].get())))
    }

    /// By the index of each pool: whether listeners of more than one engine send to it.
    pub fn shared_pools(&self) -> Vec<bool> {
        let mut owners: Vec<Option<Owner>> = vec![None; self.pools.len()];
        let mut shared = vec![false; self.pools.len()];
        for listener in self.listeners.iter() {
            for pool in listener.config.pools().filter(|&pool| pool < self.pools.len()) {
                shared[pool] |= *owners[pool].get_or_insert(listener.owner) != listener.owner;
            }
        }
        shared
    }

    /// The pool that a listener sends to, whatever name is asked for.
    pub fn pool_of(&self, listener: &Listener) -> Option<&Arc<Pool>> {
        self.pools.get(listener.config.pool?)
    }
}

/// The loads of a pool's backends at one moment (time since the workers' epoch).
pub struct LoadsAt<'a>(pub &'a Pool, pub Duration);

impl Loads for LoadsAt<'_> {
    fn active(&self, ix: usize) -> u32 {
        self.0.backends[ix].stats.active.get()
    }

    fn latency_ns(&self, ix: usize) -> u64 {
        self.0.backends[ix].stats.latency_ns(self.1)
    }
}

/// The right to use a backend: it is counted as active there for as long as this lives.
#[derive(Debug)]
pub struct BackendPermit(Arc<Backend>);

impl BackendPermit {
    /// One more, unless `max_connections` are out.
    pub fn take(backend: &Arc<Backend>) -> Option<BackendPermit> {
        backend
            .stats
            .active
            .try_raise(backend.config.max_connections)
            .then(|| BackendPermit(backend.clone()))
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<Backend> {
        &self.0
    }
}

/// What came of looking for a backend.
#[derive(Debug)]
pub enum Choice {
    /// A backend, with its place taken.
    Backend(BackendPermit),
    /// Those that could take the work have `max_connections`.
    Full,
    /// There is none that was not tried already.
    Nobody,
}

impl Drop for BackendPermit {
    fn drop(&mut self) {
        self.0.stats.active.lower();
        self.0.queue.place_freed();
    }
}

impl Pool {
    /// Chooses a backend that is not in `tried` (identities) and has room.
    pub fn choose(&self, cursor: &mut Cursor, key: u64, tried: &[u64], now: Duration) -> Choice {
        let Eligibility {
            first, then, shares, ..
        } = &self.eligibility;
        for set in [first, then] {
            let mut mask = Cow::Borrowed(set);
            for ix in (0..self.backends.len()).filter(|_| !tried.is_empty()) {
                if tried.contains(&self.backends[ix].identity) {
                    mask.to_mut().clear(ix);
                }
            }
            let mut full = false;
            while let Some(ix) = self.picker.pick(cursor, key, &LoadsAt(self, now), shares, &mask) {
                if let Some(place) = BackendPermit::take(&self.backends[ix]) {
                    return Choice::Backend(place);
                }
                full = true;
                mask.to_mut().clear(ix);
            }
            // The second set is for when the first is down, not for when it is busy.
            if full {
                return Choice::Full;
            }
        }
        Choice::Nobody
    }

    /// The hash key of a client for this pool; only source hash looks at it.
    pub fn key_of(&self, client: Option<SocketAddr>) -> u64 {
        match (self.config.balance, client) {
            (model::Balance::SourceHash, Some(client)) => source_key(&self.config.source_hash, client),
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::{Member, Shares, identity};
    use crate::config;
    use crate::health::{Candidate, Standing};

    /// A pool of backends written as in `eligibility`'s table, each with the connections it has; three is the cap.
    fn pool(backends: &[(char, u32)], try_all: bool) -> Pool {
        let list: Vec<String> = backends
            .iter()
            .enumerate()
            .map(|(ix, (letter, _))| {
                let backup = letter.is_ascii_uppercase();
                format!("{{address: '10.0.0.{ix}:80', max_connections: 3, backup: {backup}}}")
            })
            .collect();
        let all_down = if try_all { "try_all" } else { "refuse" };
        let text = format!(
            "listeners: {{l: {{bind: '127.0.0.1:80', pool: p}}}}\npools: {{p: {{all_down: {all_down}, backends: [{}]}}}}",
            list.join(", ")
        );
        let config = config::parse("f", &text).unwrap().config.pools.remove(0);
        let candidates: Vec<Candidate> = backends
            .iter()
            .map(|(letter, _)| Candidate {
                standing: match letter.to_ascii_lowercase() {
                    'r' => Standing::Ready,
                    'u' => Standing::Untested,
                    _ => Standing::Unhealthy,
                },
                weight: 1,
                backup: letter.is_ascii_uppercase(),
                share: Shares::WHOLE,
            })
            .collect();
        let backends: Vec<Arc<Backend>> = std::iter::zip(&config.backends, backends)
            .map(|(config, (_, active))| {
                let stats = BackendStats::new(1);
                (0..*active).for_each(|_| stats.active.raise());
                Arc::new(Backend {
                    identity: identity("p", &config.address.to_string()),
                    pool: "p".into(),
                    config: config.clone(),
                    send_proxy: model::SendProxy::Off,
                    stats,
                    queue: Arc::default(),
                })
            })
            .collect();
        let members: Vec<Member> = backends
            .iter()
            .map(|backend| Member {
                identity: backend.identity,
                weight: 1,
            })
            .collect();
        Pool {
            picker: Picker::new(config.policy.balance, &config.policy.source_hash, &members),
            eligibility: Eligibility::new(&candidates, config.policy.all_down),
            queue: Arc::default(),
            config: Arc::new(config.policy),
            backends,
        }
    }

    /// Columns: whether the file states limits, connections that hold no descriptor; connections at most.
    #[test]
    fn only_a_stated_limit_counts_what_holds_no_descriptor() {
        for (stated, light, wanted) in [(true, 0, 10), (true, 500, 10), (false, 0, 10), (false, 500, 510)] {
            let snapshot = Snapshot {
                connections_max: 10,
                connections_stated: stated,
                ..Snapshot::default()
            };
            let gauges = [Gauge::default(), Gauge::default()];
            gauges[0].follow(0, light);
            assert_eq!(snapshot.most(&gauges), [wanted, 0], "{stated} {light}");
            assert_eq!(snapshot.stated(), [stated.then_some(10), None]);
        }
    }

    /// Columns: backends with their connections (the cap is 3), those tried in vain, the choice (backend, `f`ull, `n`obody).
    /// Broken on purpose: backups behind a full primary, behind a ready one that refused; full ones taken for nobody.
    #[test]
    fn who_is_chosen() {
        #[rustfmt::skip]
        let rows: &[(&[(char, u32)], &[usize], &str)] = &[
            (&[('r', 0), ('r', 2)], &[], "0"),
            (&[('r', 3), ('r', 2)], &[], "1"),
            (&[('r', 3), ('r', 3)], &[], "f"),
            (&[('r', 0), ('r', 0)], &[0], "1"),
            (&[('r', 0), ('r', 3)], &[0], "f"),
            (&[('r', 0), ('r', 0)], &[0, 1], "n"),
            // A backup waits for health to say that no primary is left.
            (&[('r', 3), ('R', 0)], &[], "f"),
            (&[('r', 0), ('r', 0), ('R', 0)], &[0], "1"),
            (&[('r', 0), ('r', 3), ('R', 0)], &[0], "f"),
            (&[('r', 0), ('R', 0)], &[0], "n"),
            (&[('r', 0), ('u', 0), ('R', 0)], &[0, 1], "n"),
            (&[('i', 0), ('R', 0)], &[], "1"),
            (&[('i', 0), ('R', 3)], &[], "f"),
            // Nobody knows whether the primary is up.
            (&[('u', 0), ('R', 0)], &[], "0"),
            (&[('u', 0), ('R', 0)], &[0], "1"),
            (&[('u', 3), ('R', 0)], &[], "f"),
            // Nothing is up.
            (&[('i', 0), ('I', 0)], &[], "n"),
        ];
        let check = |backends: &[(char, u32)], tried: &[usize], wanted: &str, try_all| {
            let pool = pool(backends, try_all);
            let identities: Vec<u64> = tried.iter().map(|&ix| pool.backends[ix].identity).collect();
            let before: Vec<u32> = pool.backends.iter().map(|backend| backend.stats.active.get()).collect();
            let chosen = pool.choose(&mut Cursor::new(1), 0, &identities, Duration::ZERO);
            let place = |ix: usize| pool.backends[ix].stats.active.get() - before[ix];
            let got = match &chosen {
                Choice::Full => "f".into(),
                Choice::Nobody => "n".into(),
                Choice::Backend(taken) => {
                    let is = |backend: &Arc<Backend>| Arc::ptr_eq(backend, taken.backend());
                    let ix = pool.backends.iter().position(is).unwrap();
                    assert_eq!(place(ix), 1);
                    ix.to_string()
                }
            };
            assert_eq!(got, wanted, "{backends:?} tried {tried:?}");
            drop(chosen);
            assert!((0..before.len()).all(|ix| place(ix) == 0), "every place is given back");
        };
        for (backends, tried, wanted) in rows {
            check(backends, tried, wanted, false);
        }
        // `all_down: try_all`: primaries, and backups when those have failed.
        check(&[('i', 0), ('I', 0)], &[], "0", true);
        check(&[('i', 0), ('I', 0)], &[0], "1", true);
        check(&[('i', 3), ('I', 0)], &[], "f", true);
        check(&[('i', 0), ('I', 0)], &[0, 1], "n", true);
    }
}
