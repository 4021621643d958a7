//! What control has of all sources: which there are, who is in each pool because of them, and who said so.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::dns::{Dns, Records};
use super::docker::Docker;
use super::etcd::Etcd;
use super::file::File;
use super::thread::Thread;
use super::{Bell, Notify, Source, Tell};
use crate::api::status;
use crate::config::model::{Backend, BackendAddress, EtcdServers, MemberSource, MembersFrom, Pool, Resolver};
use crate::config::{Config, Rules};
use crate::control::etcd::Settings;
use crate::discovery::{Known, Merged, Origin, merge};

/// All sources of all pools.
pub struct Discovery {
    notify: Notify,
    bell: Arc<Bell>,
    thread: Option<Thread>,
    /// How to reach etcd, as it was said and with its files read.
    etcd: Option<(EtcdServers, Settings)>,
    /// It is another way than that of those who watch.
    etcd_moved: bool,
    /// The sources of each pool, by the pool's name.
    pools: HashMap<String, Sources>,
    /// What a predecessor knew, until it is put to use.
    inherited: Vec<Told>,
}

/// Those of one pool.
struct Sources {
    fixed: Vec<Backend>,
    watched: Vec<Watched>,
    /// Who was there before a source came that has not answered yet.
    held: Vec<Backend>,
    merged: Merged,
}

/// A source, and what is known of it.
struct Watched {
    source: MemberSource,
    resolver: Resolver,
    rules: Rules,
    known: Arc<Mutex<Known>>,
    task: u64,
}

/// What a process tells the one after it about a source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    pool: String,
    source: String,
    age_ms: u64,
    members: Vec<ToldMember>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct ToldMember {
    name: String,
    address: String,
    weight: u32,
    max_connections: Option<u32>,
    backup: bool,
}

impl Discovery {
    /// Nothing is watched yet. `inherited`: see [`Self::told`].
    pub fn new(notify: Notify, inherited: Vec<Told>) -> Discovery {
        Discovery {
            notify,
            bell: Arc::default(),
            thread: None,
            etcd: None,
            etcd_moved: false,
            pools: HashMap::new(),
            inherited,
        }
    }

    /// Gets hold of what the sources of `config` take. Those that are watched go on as they are.
    ///
    /// # Errors
    /// What cannot be had: the settings for etcd, or the thread that watches.
    pub fn prepare(&mut self, config: &Config) -> Result<(), String> {
        if let Some(servers) = config.member_etcd() {
            let settings = Settings::load(servers).map_err(|error| format!("etcd: {error}"))?;
            self.etcd_moved |= self.etcd.as_ref().is_some_and(|(before, _)| before != servers);
            // Files are read again: a certificate that was renewed counts for whoever begins from now on.
            self.etcd = Some((servers.clone(), settings));
        }
        if self.thread.is_none() && config.pools.iter().any(|pool| !pool.members.is_empty()) {
            let thread = Thread::start();
            self.thread = Some(thread.map_err(|error| format!("cannot watch their sources: {error}"))?);
        }
        Ok(())
    }

    /// Watches the sources of `config`, which has been [prepared](Self::prepare). What is known of those that were there
    /// before is kept. Of a pool with a source that has not answered yet, those that are in it now (`present`) stay.
    pub fn follow(&mut self, config: &Config, present: impl Fn(&str) -> Vec<Backend>) {
        let moved = std::mem::take(&mut self.etcd_moved);
        let mut before = std::mem::take(&mut self.pools);
        let with_sources = config.pools.iter().enumerate();
        for (ix, pool) in with_sources.filter(|(_, pool)| !pool.members.is_empty()) {
            let name = &pool.policy.name;
            let rules = Rules::of(config, ix);
            let (mut old, mut held) = before
                .remove(name)
                .map_or_else(Default::default, |s| (s.watched, s.held));
            let watched = pool.members.iter().map(|source| {
                let found = old.iter().position(|watched| watched.source.from == source.from);
                match found.map(|place| old.swap_remove(place)) {
                    Some(same) if same.is_of(source, pool, &rules) && !(moved && same.is_etcd()) => same,
                    Some(Watched { known, task, .. }) => {
                        self.end(task);
                        self.begin(pool, source, &rules, known)
                    }
                    None => {
                        held = present(name);
                        let known = self.inherit(name, source);
                        self.begin(pool, source, &rules, Arc::new(Mutex::new(known)))
                    }
                }
            });
            let watched = watched.collect();
            old.iter().for_each(|gone| self.end(gone.task));
            let mut sources = Sources {
                fixed: pool.backends.clone(),
                watched,
                held,
                merged: Merged::default(),
            };
            sources.merge();
            self.pools.insert(name.clone(), sources);
        }
        before
            .values()
            .flat_map(|old| &old.watched)
            .for_each(|gone| self.end(gone.task));
        self.inherited.clear();
    }

    fn begin(&mut self, pool: &Pool, source: &MemberSource, rules: &Rules, known: Arc<Mutex<Known>>) -> Watched {
        let tell = Tell {
            pool: pool.policy.name.clone(),
            source: source.from.to_string(),
            allow_empty: source.allow_empty,
            rules: rules.clone(),
            known: known.clone(),
            notify: self.notify.clone(),
            bell: self.bell.clone(),
        };
        let dns = |records, family| Dns {
            records,
            family,
            resolver: pool.resolver.clone(),
            like: source.like.clone(),
        };
        let way: Box<dyn Source> = match source.from.clone() {
            MembersFrom::File(path) => Box::new(File(path)),
            MembersFrom::Dns { name, port, family } => Box::new(dns(Records::Host { name, port }, family)),
            MembersFrom::Srv { name, family } => Box::new(dns(Records::Service { name }, family)),
            MembersFrom::Etcd { prefix } => Box::new(Etcd {
                settings: self.etcd.clone().expect("prepared").1,
                prefix,
                like: source.like.clone(),
            }),
            MembersFrom::Docker {
                label,
                port,
                network,
                socket,
            } => Box::new(Docker {
                label,
                port,
                network,
                socket,
                like: source.like.clone(),
            }),
        };
        let thread = self.thread.as_mut().expect("prepared");
        Watched {
            source: source.clone(),
            resolver: pool.resolver.clone(),
            rules: rules.clone(),
            known,
            task: thread.begin(way, tell),
        }
    }

    fn end(&self, task: u64) {
        if let Some(thread) = &self.thread {
            thread.end(task);
        }
    }

    /// What a predecessor knew of a source. Of one that is told of in parts, all parts.
    fn inherit(&self, pool: &str, source: &MemberSource) -> Known {
        let source = source.from.to_string();
        let parts = self
            .inherited
            .iter()
            .filter(|told| told.pool == pool && told.source == source);
        let mut age = None;
        let mut members = Vec::new();
        for part in parts {
            age = Some(Duration::from_millis(part.age_ms));
            members.extend(part.members.iter().filter_map(ToldMember::read));
        }
        age.map_or_else(Known::default, |age| Known::inherited(members, age, Instant::now()))
    }

    /// Waits until every source has said something, be it that it fails. False: not within `patience`.
    pub fn wait(&self, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        let mut rung = self.bell.rung.lock();
        loop {
            let mut all = self.pools.values().flat_map(|pool| &pool.watched);
            if all.all(|watched| watched.known.lock().has_spoken()) {
                return true;
            }
            if self.bell.rings.wait_until(&mut rung, deadline).timed_out() {
                return false;
            }
        }
    }

    /// The pools of a configuration, with the members that are known.
    pub fn fill(&mut self, pools: &[Pool]) -> Vec<Pool> {
        let filled = pools.iter().map(|pool| {
            let mut pool = pool.clone();
            if let Some(members) = self.members(&pool.policy.name) {
                pool.backends = members;
            }
            pool
        });
        filled.collect()
    }

    /// Who is in a pool now; `None`: it has no sources.
    pub fn members(&mut self, pool: &str) -> Option<Vec<Backend>> {
        let sources = self.pools.get_mut(pool)?;
        sources.merge();
        Some(sources.merged.members.clone())
    }

    /// Who said that a member is in its pool; empty: the configuration.
    pub fn origin(&self, pool: &str, address: &BackendAddress) -> String {
        let Some(sources) = self.pools.get(pool) else {
            return String::new();
        };
        match sources.merged.origins.get(address) {
            None => String::new(),
            Some(Origin::Held) => "before the reload".into(),
            Some(Origin::Source(ix)) => sources.watched[*ix].source.from.to_string(),
        }
    }

    /// The sources of a pool, for documents.
    pub fn sources(&self, pool: &str, now: Instant) -> Vec<status::Source> {
        let Some(sources) = self.pools.get(pool) else {
            return Vec::new();
        };
        let counted = |ix: usize| {
            let origins = sources.merged.origins.values();
            origins.filter(|&&origin| origin == Origin::Source(ix)).count()
        };
        let document = |(ix, watched): (usize, &Watched)| {
            let known = watched.known.lock();
            let error = known.error(now);
            status::Source {
                source: watched.source.from.to_string(),
                members: counted(ix),
                age_s: known.age(now).map(|age| (age.as_secs_f64() * 1e3).round() / 1e3),
                error: error.map(|(error, _)| error.to_string()),
                error_s: error.map(|(_, since)| since.as_secs()),
                failures: known.failures(),
            }
        };
        sources.watched.iter().enumerate().map(document).collect()
    }

    /// Everything that the process after this one need not find out again; at most `members_max` members in each part.
    pub fn told(&self, members_max: usize, now: Instant) -> Vec<Told> {
        let mut told = Vec::new();
        for (pool, watched) in self
            .pools
            .iter()
            .flat_map(|(pool, s)| s.watched.iter().map(move |w| (pool, w)))
        {
            let known = watched.known.lock();
            let Some(age) = known.age(now) else { continue };
            let part = |members: &[Backend]| Told {
                pool: pool.clone(),
                source: watched.source.from.to_string(),
                age_ms: age.as_millis() as u64,
                members: members.iter().map(ToldMember::new).collect(),
            };
            match known.members() {
                [] => told.push(part(&[])),
                members => told.extend(members.chunks(members_max).map(part)),
            }
        }
        told
    }

    /// Watches nothing any more; what is known stays.
    pub fn stop(&mut self) {
        self.thread = None;
    }
}

impl Watched {
    fn is_etcd(&self) -> bool {
        matches!(self.source.from, MembersFrom::Etcd { .. })
    }

    /// Whether it is watched in the way that is wanted.
    fn is_of(&self, source: &MemberSource, pool: &Pool, rules: &Rules) -> bool {
        self.source == *source && self.resolver == pool.resolver && self.rules == *rules
    }
}

impl Sources {
    fn merge(&mut self) {
        let lists: Vec<Vec<Backend>> = self.watched.iter().map(|w| w.known.lock().members().to_vec()).collect();
        if self.watched.iter().all(|watched| watched.known.lock().has_answered()) {
            self.held.clear();
        }
        self.merged = merge(&self.fixed, lists.iter().map(Vec::as_slice), &self.held);
    }
}

impl ToldMember {
    fn new(backend: &Backend) -> ToldMember {
        ToldMember {
            name: backend.name.clone(),
            address: backend.address.to_string(),
            weight: backend.weight,
            max_connections: backend.max_connections,
            backup: backend.backup,
        }
    }

    fn read(&self) -> Option<Backend> {
        Some(Backend {
            name: self.name.clone(),
            address: BackendAddress::parse(&self.address).ok()?,
            weight: self.weight,
            max_connections: self.max_connections,
            backup: self.backup,
        })
    }
}
