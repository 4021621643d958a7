//! What a seed starts with: its nature, a configuration, workers; and what control publishes later.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::bounded;

use super::kernel::{File, Kernel, Port, Queue, with};
use super::{Nature, World, reach};
use crate::balance::{Member, Picker, Shares, identity};
use crate::base::Rng;
use crate::config;
use crate::gate::Gate;
use crate::health::{Candidate, Eligibility, Standing};
use crate::link::{Address, Command, ListenSocket, Shared, SocketMove};
use crate::routing::Routing;
use crate::snapshot::{Backend, Listener, Listeners, Owner, Pool, Snapshot};
use crate::stats::{BackendStats, ListenerStats};
use crate::worker::{Settings, Worker};

pub(super) const WEB: &str = "10.0.0.1:80";
pub(super) const DNS: &str = "10.0.0.1:53";
/// Port of the backends that serve whom a route sends there.
pub(super) const TLS: u16 = 8443;

pub(super) fn addr(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

impl World {
    pub(super) fn new(seed: u64) -> World {
        with(|kernel| *kernel = Kernel::new(seed));
        let mut rng = Rng::new(seed ^ 0x5eed);
        let mut odds = |one_in: u64| rng.below(one_in) == 0;
        let nature = Nature {
            timed: odds(3),
            rough: odds(3),
            resets: odds(3),
            bulk: odds(4),
            urgent: odds(2),
            faulty: !odds(4),
            by_name: odds(2),
        };
        let mut text = String::from("{limits: {connections: ");
        text += if odds(6) { "6" } else { "1000" };
        text += ", udp_sessions: ";
        text += if odds(4) { "4" } else { "1000" };
        text += "}, listeners: {web: {bind: '10.0.0.1:80', pool: web, timeouts: {idle: ";
        text += if nature.timed {
            "2s, half_close: 1s, hello: 500ms"
        } else {
            "60s, half_close: 60s, hello: 5m"
        };
        text += if nature.timed && odds(3) { ", max_age: 3s}" } else { "}" };
        text += match (odds(4), odds(4)) {
            (true, _) => ", limits: {download: 1MiB/s}",
            (_, true) => ", limits: {connections: 3, per_source: 2}",
            _ => "",
        };
        text += if nature.by_name {
            ", routes: {a.test: tls, '*.b.test': tls}"
        } else {
            ""
        };
        text += ", accept_proxy: {from: [198.51.100.0/24]}}, dns: {protocol: udp, bind: '10.0.0.1:53', pool: dns, udp: {idle: 1s";
        text += if odds(2) { ", replies: 1" } else { "" };
        text += if odds(4) { ", requests: 2}" } else { "}" };
        text += if odds(4) { ", limits: {connections: 3}" } else { "" };
        text += "}}, pools: {";
        for (name, port) in [("web", 8080), ("dns", 53), ("tls", TLS)] {
            text += &format!("{name}: {{");
            text += if name != "dns" {
                "connect: {timeout: 1s, attempts: 3}, "
            } else {
                ""
            };
            text += if odds(3) { "send_proxy: v2, " } else { "" };
            text += if odds(3) { "balance: source_hash, " } else { "" };
            let cap = if odds(3) { ", max_connections: 2" } else { "" };
            text += if name != "dns" && odds(2) {
                "queue: {length: 5, timeout: 60s}, "
            } else {
                ""
            };
            let list: Vec<String> = (1..4)
                .map(|n| format!("{{address: '10.1.0.{n}:{port}'{cap}}}"))
                .collect();
            text += &format!("backends: [{}]}}, ", list.join(", "));
        }
        text += "}}";
        let config = config::parse("sim", &text)
            .unwrap_or_else(|errors| panic!("{text}: {errors}"))
            .config;
        let (records, received) = bounded(100_000);
        let epoch = with(|kernel| kernel.now);
        let shared = Shared::new(Some(records), bounded(1).0, epoch);
        let mut world = World {
            seed,
            nature,
            listener_stats: config.listeners.iter().map(|_| ListenerStats::new(1)).collect(),
            config,
            shared,
            records: received,
            listeners: Arc::default(),
            backends: HashMap::new(),
            queues: HashMap::new(),
            snapshots: 0,
            generation: 0,
            workers: Vec::new(),
            clients: 0,
            ids: Vec::new(),
            asked: BTreeMap::new(),
            rng,
        };
        world.reload();
        world.start_workers();
        let nature = world.nature;
        with(|kernel| {
            kernel.faulty = nature.faulty;
            kernel.reach = Box::new(move |rng, to, who| reach(rng, to, who, nature));
        });
        world
    }

    pub(super) fn start_workers(&mut self) {
        for id in 0..=self.rng.below(3) as usize {
            let settings = Settings {
                pipes_max: self.rng.below(4) as usize,
                seed: self.seed,
            };
            let (mut worker, handle) = Worker::new(id, self.shared.clone(), settings).unwrap();
            worker.context.adopt();
            for (listener, address) in [(0, addr(WEB)), (1, addr(DNS))] {
                let merges = self.rng.below(2) == 0;
                let fd = with(|kernel| match listener {
                    0 => kernel.open(File::Queue(Queue::default())),
                    _ => kernel.open(File::Port(Port::new(address, None, merges))),
                });
                let socket = ListenSocket {
                    listener,
                    local: Address::Ip(address),
                    fd,
                };
                let sessions = Vec::new();
                handle.send(Command::Sockets(SocketMove::Serve { socket, sessions }));
            }
            self.workers.push((worker, handle));
        }
        self.announce_workers(usize::MAX);
    }

    pub(super) fn announce_workers(&self, retiring: usize) {
        let handles = self.workers.iter().map(|(_, handle)| handle.clone());
        let (retired, serving) = handles.partition(|handle| handle.id == retiring);
        self.shared.set_workers(serving, retired);
    }

    /// A configuration comes into force.
    pub(super) fn reload(&mut self) {
        let listeners = self.config.listeners.iter().zip(&self.listener_stats).enumerate();
        let listeners = listeners.map(|(id, (config, stats))| {
            let before = self.listeners.get(id as u32).map(|known| &*known.gate);
            let gate = Gate::new(config, stats.clone(), before);
            let pool = |ix: usize| self.config.pools[ix].policy.name.as_str().into();
            let known = self.listeners.get(id as u32).and_then(|known| known.routing.as_ref());
            let routing = Routing::new(config, pool, 1, known);
            Arc::new(Listener {
                id: id as u32,
                config: config.clone(),
                pool: config.pool.map(pool),
                routing,
                owner: Owner::WORKERS,
                stats: stats.clone(),
                gate,
            })
        });
        self.listeners = Arc::new(Listeners::new(listeners.collect()));
        self.generation += 1;
        self.publish(false);
    }

    /// Backends are as they are now; `some_down`: not all of them are well.
    pub(super) fn publish(&mut self, some_down: bool) {
        let mut pools = Vec::new();
        for pool in &self.config.pools {
            let queue = self.queues.entry(pool.policy.name.clone()).or_default().clone();
            queue.configure(true);
            let mut members = Vec::new();
            let mut backends = Vec::new();
            let mut candidates = Vec::new();
            for config in &pool.backends {
                let identity = identity(&pool.policy.name, &config.address.to_string());
                let stats = self.backends.entry(identity).or_insert_with(|| BackendStats::new(1));
                members.push(Member { identity, weight: 1 });
                backends.push(Arc::new(Backend {
                    identity,
                    pool: pool.policy.name.as_str().into(),
                    config: config.clone(),
                    send_proxy: pool.policy.send_proxy,
                    stats: stats.clone(),
                    queue: queue.clone(),
                }));
                let down = some_down && self.rng.below(3) == 0;
                candidates.push(Candidate {
                    standing: if down { Standing::Unhealthy } else { Standing::Ready },
                    weight: 1,
                    backup: false,
                    share: Shares::WHOLE,
                });
            }
            pools.push(Arc::new(Pool {
                picker: Picker::new(pool.policy.balance, &pool.policy.source_hash, &members),
                eligibility: Eligibility::new(&candidates, pool.policy.all_down),
                config: Arc::new(pool.policy.clone()),
                backends,
                queue,
            }));
        }
        self.snapshots += 1;
        let limits = if self.config.pools[0].backends.is_empty() {
            0
        } else {
            1_000
        };
        self.shared.publish(Arc::new(Snapshot {
            version: self.snapshots,
            generation: self.generation,
            listeners: self.listeners.clone(),
            pools,
            connections_max: self.config.limits.connections.unwrap_or(limits),
            connections_stated: self.seed.is_multiple_of(2),
            sessions_max: self.config.limits.udp_sessions.unwrap_or(limits),
            sessions_stated: self.seed.is_multiple_of(2),
            interim: (self.seed.is_multiple_of(5)).then_some(Duration::from_millis(300)),
        }));
    }
}
