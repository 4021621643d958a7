//! Who is in a pool. Members come, stay, go and return: by a reload ([`Pools::configure`]), which also brings the pools'
//! policies and ends the operator's orders, or alone ([`Pools::set_members`]), which leaves everything else as it is.
//!
//! A backend is its pool and its address. Whatever else is said of it (name, weight, cap) may change; its health, its counts,
//! its drain, the operator's orders and its turn in the schedule of probes stay. One that goes is not forgotten before its last
//! connection has ended, and takes up where it was if it returns until then.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use indexmap::IndexMap;

use super::super::probe::tls::Secured;
use super::{Entry, PoolEntry, Pools, news};
use crate::balance::{MEMBERS_MAX, Member, Picker, identity};
use crate::base::rng::mix;
use crate::config::model::{self, PoolPolicy, ProbeKind};
use crate::health::backend::Orders;
use crate::health::drain::Drain;
use crate::health::schedule::Pace;
use crate::health::{BackendState, Criteria, State};
use crate::queue::PoolQueue;
use crate::snapshot::Backend;
use crate::stats::BackendStats;

/// How a pool's members have changed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// Members that were not there before, or return.
    pub came: usize,
    /// Members that are gone.
    pub went: usize,
    /// Members of which something else is said.
    pub changed: usize,
}

impl Pools {
    /// How the probes of the configuration that follows speak TLS, by pool.
    pub fn secure(&mut self, secured: HashMap<String, Secured>) {
        self.secured = secured;
    }

    /// Takes over a configuration: pools by name with their policies, and their members. The operator's orders end. Up to
    /// `probes_max` probes may run at a time.
    pub fn configure(&mut self, pools: &[model::Pool], shards: usize, probes_max: usize, now: Instant) {
        self.schedule.set_running_max(probes_max);
        self.shards = shards;
        let before = std::mem::take(&mut self.pools);
        let mut before: HashMap<String, PoolEntry> = before
            .into_iter()
            .map(|pool| (pool.config.name.clone(), pool))
            .collect();
        for pool in pools {
            let entry = match before.remove(&pool.policy.name) {
                Some(entry) => self.follow(entry, &pool.policy, now),
                None => PoolEntry::new(&pool.policy),
            };
            self.pools.push(entry);
        }
        for pool in before.into_values() {
            for entry in pool.entries {
                self.leave(entry, pool.config.on_drain_finish, now);
            }
        }
        self.positions.clear();
        for (ix, pool) in pools.iter().enumerate() {
            self.replace(ix, &pool.backends, Orders::End, now);
        }
        self.quiet_until = None;
        self.changed = true;
    }

    /// Changes who is in a pool, and nothing else. The order of those who stay is kept, so that a source that lists the same
    /// members in another order changes nothing. Of several members with one address the first counts; one whose name
    /// is taken is called by its address.
    pub fn set_members(&mut self, pool: &str, members: &[model::Backend], now: Instant) -> Result<Changes, String> {
        let Some(ix) = self.pools.iter().position(|entry| entry.config.name == pool) else {
            return Err(format!("there is no pool {pool:?}"));
        };
        if members.len() > MEMBERS_MAX {
            return Err(format!(
                "{} members: pool {pool} can have {MEMBERS_MAX} at most",
                members.len()
            ));
        }
        let changes = self.replace(ix, members, Orders::Stand, now);
        if changes != Changes::default() {
            self.quiet_until = None;
            self.changed = true;
        }
        Ok(changes)
    }

    /// A pool under another policy, with the members of before.
    fn follow(&mut self, mut pool: PoolEntry, policy: &PoolPolicy, now: Instant) -> PoolEntry {
        let before = &pool.config;
        // What is on its way was sent by other rules.
        let probed_anew = before.health != policy.health
            || before.source_address != policy.source_address
            || before.connect.mark != policy.connect.mark
            || before.connect.dscp != policy.connect.dscp;
        let picked_anew = before.balance != policy.balance || before.source_hash != policy.source_hash;
        for entry in &mut pool.entries {
            let change = entry.state.adopt(now, Criteria::from(policy), Orders::End);
            self.news
                .extend(change.map(|change| news::changed(&entry.backend, &change)));
            entry.weight = entry.weight.filter(|ordered| ordered.keep);
            entry.drain = None;
            if probed_anew {
                self.schedule.renew(now, entry.backend.identity);
                self.schedule.renew(now, agent_key(&entry.backend));
            }
        }
        pool.config = Arc::new(policy.clone());
        pool.queue.configure(policy.queue.is_some());
        if picked_anew {
            pool.picker = Picker::new(policy.balance, &policy.source_hash, &[]);
        }
        pool
    }

    /// Makes these the members of a pool.
    fn replace(&mut self, pool: usize, members: &[model::Backend], orders: Orders, now: Instant) -> Changes {
        let config = self.pools[pool].config.clone();
        let name: Arc<str> = config.name.as_str().into();
        let mut changes = Changes::default();
        let mut wanted = wanted(&config.name, members);
        let queue = self.pools[pool].queue.clone();
        let before = std::mem::take(&mut self.pools[pool].entries);
        // Who comes by a reload, or to nobody, is needed at once.
        let is_joined = orders == Orders::Stand && !before.is_empty();
        if orders == Orders::Stand {
            keep_order(&mut wanted, before.iter().map(|entry| entry.backend.identity));
        }
        let mut before: HashMap<u64, Entry> = before
            .into_iter()
            .map(|entry| (entry.backend.identity, entry))
            .collect();
        let mut entries = Vec::with_capacity(wanted.len());
        for (identity, member) in wanted {
            let stayed = before.remove(&identity);
            changes.came += usize::from(stayed.is_none());
            let returned = || {
                let mut entry = self.leaving.remove(&identity)?;
                let change = entry.state.adopt(now, Criteria::from(&*config), orders);
                self.news
                    .extend(change.map(|change| news::changed(&entry.backend, &change)));
                // What it was emptied for is over, unless an operator wanted it, too.
                let finish = config.on_drain_finish.filter(|_| entry.state.state() == State::Drain);
                entry.drain = finish.map(|finish| Drain::new(now, finish));
                if orders == Orders::End {
                    entry.weight = entry.weight.filter(|ordered| ordered.keep);
                }
                Some(entry)
            };
            let queue = &queue;
            let as_wanted = |stats| {
                Arc::new(Backend {
                    identity,
                    pool: name.clone(),
                    config: member.clone(),
                    send_proxy: config.send_proxy,
                    stats,
                    queue: queue.clone(),
                })
            };
            let is_new = stayed.is_none();
            entries.push(match stayed.or_else(returned) {
                Some(mut entry) => {
                    let backend = &entry.backend;
                    if backend.config != member || backend.send_proxy != config.send_proxy {
                        changes.changed += usize::from(!is_new);
                        entry.backend = as_wanted(backend.stats.clone());
                    }
                    entry
                }
                None => Entry {
                    backend: as_wanted(BackendStats::new(self.shards)),
                    state: match is_joined {
                        true => BackendState::newcomer(now, Criteria::from(&*config)),
                        false => BackendState::new(now, Criteria::from(&*config)),
                    },
                    probes: Default::default(),
                    weight: None,
                    drain: None,
                    seen: 0,
                },
            });
        }
        changes.went = before.len();
        for entry in before.into_values() {
            self.positions.remove(&entry.backend.identity);
            self.positions.remove(&agent_key(&entry.backend));
            self.leave(entry, config.on_drain_finish, now);
        }
        let identities: Vec<u64> = entries.iter().map(|entry| entry.backend.identity).collect();
        let agents: Vec<u64> = entries.iter().map(|entry| agent_key(&entry.backend)).collect();
        let health = &config.health;
        let probed = (health.kind != ProbeKind::None).then_some(health.interval);
        let asked = health.agent.as_ref().map(|agent| agent.interval);
        let mut place = |keys: &[u64]| {
            let places = keys.iter().enumerate();
            self.positions.extend(places.map(|(ix, &key)| (key, (pool, ix))));
        };
        place(&identities);
        if asked.is_some() {
            place(&agents);
        }
        for (interval, keys) in [(probed, &identities), (asked, &agents)] {
            let timeout = health.timeout;
            match interval {
                None => keys.iter().for_each(|&key| self.schedule.remove(key)),
                Some(interval) => self.schedule.add(now, Pace { interval, timeout }, keys),
            }
        }
        self.pools[pool].entries = entries;
        self.pools[pool].refresh_picker();
        changes
    }

    /// A backend is in its pool no more. What it has may go on for a while.
    fn leave(&mut self, mut entry: Entry, finish: Option<Duration>, now: Instant) {
        let identity = entry.backend.identity;
        self.schedule.remove(identity);
        self.schedule.remove(agent_key(&entry.backend));
        entry.drain = finish.map(|finish| Drain::new(now, finish));
        self.leaving.insert(identity, entry);
    }
}

impl PoolEntry {
    /// A pool without members.
    fn new(policy: &PoolPolicy) -> PoolEntry {
        let queue = Arc::new(PoolQueue::default());
        queue.configure(policy.queue.is_some());
        PoolEntry {
            config: Arc::new(policy.clone()),
            entries: Vec::new(),
            picker: Picker::new(policy.balance, &policy.source_hash, &[]),
            supply: Default::default(),
            crowd: Default::default(),
            queue,
        }
    }

    /// Builds the tables of the algorithm anew if members or weights have changed.
    pub(super) fn refresh_picker(&mut self) {
        let member = |entry: &Entry| Member {
            identity: entry.backend.identity,
            weight: entry.weight(),
        };
        let members: Vec<Member> = self.entries.iter().map(member).collect();
        if self.picker.members() != members {
            self.picker = Picker::new(self.config.balance, &self.config.source_hash, &members);
        }
    }
}

/// Under which a backend's agent is asked: another number than the backend's own, as stable.
fn agent_key(backend: &Backend) -> u64 {
    mix(backend.identity)
}

/// Members by identity, in order, each once and with a name of its own.
fn wanted(pool: &str, members: &[model::Backend]) -> IndexMap<u64, model::Backend> {
    let mut names = HashSet::new();
    let mut wanted = IndexMap::with_capacity(members.len());
    for member in members {
        let address = member.address.to_string();
        let identity = identity(pool, &address);
        if wanted.contains_key(&identity) {
            continue;
        }
        let mut member = member.clone();
        if !names.insert(member.name.clone()) {
            member.name.clone_from(&address);
            names.insert(address);
        }
        wanted.insert(identity, member);
    }
    wanted
}

/// Those that are `present` first, in that order.
fn keep_order<T>(wanted: &mut IndexMap<u64, T>, present: impl Iterator<Item = u64>) {
    let places: HashMap<u64, usize> = present.enumerate().map(|(place, identity)| (identity, place)).collect();
    let place = |identity: &u64| places.get(identity).copied().unwrap_or(usize::MAX);
    wanted.sort_by(|a, _, b, _| place(a).cmp(&place(b)));
}
