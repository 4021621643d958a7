//! What the engine knows: who stands where in the maps, and what control has published. Writes snapshots into the maps.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::NAME;
use super::flows::{Fading, Patience};
use super::guards;
use super::layout::{
    BACKEND_LIVE, Backend as BackendShape, LISTENER_ACTIVE, Listener as ListenerShape, Plain, Pool as PoolShape,
    SERVICE_ANSWERS, SERVICE_ANSWERS_MANY, SERVICE_HOST, Service, ServiceKey, Slot, Tally, Tuple, address,
};
use super::maps::{Maps, put_around};
use super::news::{Served, news};
use super::places::{Identified, Places};
use super::ports;
use super::tables;
use crate::base::rng::mix;
use crate::config::model::{self, BackendAddress, Balance, Bind, ClientAddress, KernelMode, Protocol};
use crate::config::{Config, KERNEL_POOLS_MAX as POOLS_MAX};
use crate::relay::Cause;
use crate::snapshot::{Backend, Listener, Listeners, Owner, Pool, Snapshot};
use crate::sys::netlink::Netlink;

/// A bank that has just been left may be in use for so long by a packet under way.
const GRACE: Duration = Duration::from_millis(2);

/// So many addresses of this host are known to the program, where it must tell them from clients'.
pub(super) const HOST_ADDRESSES_MAX: usize = 256;

/// What is known of listeners, backends and this host.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) listeners: Places<Listener>,
    pub(super) backends: Places<Backend>,
    /// When flows at each place of a listener end.
    pub(super) patiences: HashMap<u32, Patience>,
    /// Addresses of this host and their interfaces.
    pub(super) locals: BTreeMap<IpAddr, u32>,
    /// Interfaces of virtual addresses, held or not: connections may come before the address does, and after it.
    pub(super) homes: BTreeMap<IpAddr, u32>,
    /// How each backend is reached: our address towards it.
    ways: HashMap<IpAddr, Option<IpAddr>>,
    /// Local ports that mode `nat` uses.
    ports: Vec<RangeInclusive<u16>>,
    /// Where each pool stands in the bank in force.
    pool_places: HashMap<String, u32>,
    turned: Option<Instant>,
    /// The listeners, and their places, whose guards stand in each bank.
    guarded: [Option<(Arc<Listeners>, Vec<Option<u32>>)>; 2],
    /// What the process's gauges have from here.
    pub(super) totals: [u32; 2],
    /// Workers choose among these backends as well.
    pub(super) is_shared: bool,
    said: BTreeSet<String>,
    /// What the event log was told of it.
    served: Served,
    /// Flows that were told to end, and why; the program tells when it is done.
    pub(super) asked: HashMap<Tuple, EndOrder>,
    /// Flows that have ended, in the order in which their entries are removed.
    pub(super) fading: VecDeque<Fading>,
}

/// Why a flow was told to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct EndOrder {
    pub(super) cause: Cause,
    /// When it is ended by other means.
    pub(super) until: Instant,
}

/// Addresses of this host with their interfaces, but for those that mean nothing outside.
pub(super) fn locals() -> io::Result<BTreeMap<IpAddr, u32>> {
    let addresses = Netlink::open()?.addresses()?;
    let mut locals = BTreeMap::new();
    for found in addresses {
        let ip = found.net.addr();
        let is_inner = ip.is_loopback() || matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        if !is_inner {
            locals.insert(ip, found.interface);
        }
    }
    Ok(locals)
}

/// Interfaces of the virtual addresses that this host may come to hold.
pub(super) fn homes(config: &Config) -> io::Result<BTreeMap<IpAddr, u32>> {
    let vips = config.failover.iter().flat_map(|failover| &failover.vips);
    let interfaces = Netlink::open()?.interfaces()?;
    let home = |vip: &model::Vip| {
        let interface = interfaces.iter().find(|interface| interface.name == vip.interface)?;
        Some((vip.address.addr(), interface.index))
    };
    Ok(vips.filter_map(home).collect())
}

/// The address that this host would speak to another one from.
fn source_towards(to: IpAddr) -> Option<IpAddr> {
    let any: SocketAddr = match to {
        IpAddr::V4(_) => (std::net::Ipv4Addr::UNSPECIFIED, 0).into(),
        IpAddr::V6(_) => (std::net::Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).ok()?;
    // Nothing is sent by it. The port is not looked at.
    socket.connect((to, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

/// Address and port of a backend; port 0 = the one that the client used.
fn whereabouts(backend: &Backend) -> Option<(IpAddr, u16)> {
    match &backend.config.address {
        BackendAddress::Ip(address) => Some((address.ip(), address.port())),
        BackendAddress::SamePort(ip) => Some((*ip, 0)),
        BackendAddress::Unix(_) => None,
    }
}

fn protocol(listener: &model::Listener) -> u8 {
    match listener.protocol {
        Protocol::Tcp => libc::IPPROTO_TCP as u8,
        Protocol::Udp => libc::IPPROTO_UDP as u8,
    }
}

/// Whether a connection of this pool can be joined by what a backend sends: its client follows from the packet. That of a pool
/// whose backends see clients of the workers as well may be theirs.
fn joins(pool: &Pool, is_shared: bool) -> bool {
    let policy = &pool.config;
    let is_known = policy.balance == Balance::SourceHash && policy.kernel_mode == KernelMode::Keep;
    is_known && !(is_shared && policy.client_address == ClientAddress::Keep)
}

/// Where backends answer clients of `service` from. One that serves several addresses or ports does not say which it means.
fn answers(wanted: &mut HashMap<ServiceKey, Service>, clients: &ServiceKey, service: &Service, pool: &Pool) {
    for (ip, port) in pool.backends.iter().filter_map(|backend| whereabouts(backend)) {
        let from = ServiceKey {
            address: address(ip),
            port: if port == 0 { clients.port } else { port.to_be_bytes() },
            ..*clients
        };
        let kind = match wanted.contains_key(&from) {
            true => SERVICE_ANSWERS_MANY,
            false => SERVICE_ANSWERS,
        };
        let answers = Service {
            kind,
            port: clients.port,
            address: clients.address,
            ..*service
        };
        wanted.insert(from, answers);
    }
}

impl Core {
    /// No listener and no backend yet.
    pub(super) fn new() -> Core {
        Core {
            snapshot: Arc::default(),
            listeners: Places::new(std::iter::empty()),
            backends: Places::new(std::iter::empty()),
            patiences: HashMap::new(),
            locals: BTreeMap::new(),
            homes: BTreeMap::new(),
            ways: HashMap::new(),
            ports: Vec::new(),
            pool_places: HashMap::new(),
            turned: None,
            guarded: [None, None],
            totals: [0; 2],
            is_shared: false,
            said: BTreeSet::new(),
            asked: HashMap::new(),
            fading: VecDeque::new(),
            served: Served::new(),
        }
    }

    /// Who stands where in maps that another process may have worked on.
    pub(super) fn find_places(&mut self, maps: &Maps) {
        let counted = |identity: u64, place: u32, tally: fn(&Maps, u32) -> Tally| match identity {
            0 => Tally::default(),
            _ => tally(maps, place),
        };
        self.listeners = Places::new((0..maps.listeners.length()).map(|place| {
            let identity = ListenerShape::of(&maps.listeners.get(place)).identity;
            (identity, counted(identity, place as u32, Maps::listener_tally))
        }));
        self.backends = Places::new((0..maps.backends.length()).map(|place| {
            let identity = BackendShape::of(&maps.backends.get(place)).identity;
            (identity, counted(identity, place as u32, Maps::backend_tally))
        }));
    }

    /// Frees places that nothing refers to any more.
    pub(super) fn sweep_places(&mut self, maps: &Maps) {
        let now = Instant::now();
        let active = |place: u32| maps.listeners.words(place as usize)[LISTENER_ACTIVE].load(Relaxed);
        for place in self.listeners.sweep(now, active) {
            self.patiences.remove(&place);
            maps.listeners.put(place as usize, &ListenerShape::default().bytes());
        }
        for place in self.backends.sweep(now, |place| maps.active_at(place)) {
            maps.backends.put(place as usize, &BackendShape::default().bytes());
        }
    }

    /// Uses the ports that sockets of this host leave now.
    pub(super) fn follow_ports(&mut self, maps: &Maps) {
        let now = ports::here();
        if self.ports != now {
            maps.set_ports(&ports::shape(&now));
            self.ports = now;
        }
    }

    /// Listeners of this engine with their pools.
    fn carried(&self) -> Vec<(Arc<Listener>, Arc<Pool>)> {
        let listeners = self.snapshot.listeners.iter().filter(|l| l.owner == Owner(NAME));
        let with_pool = listeners.filter_map(|l| Some((l.clone(), self.snapshot.pool_of(l)?.clone())));
        with_pool.collect()
    }

    /// Says something once, until it is not so any more.
    fn say(&mut self, now_so: BTreeSet<String>) {
        for line in now_so.difference(&self.said) {
            log::warn!("{line}");
        }
        self.said = now_so;
    }

    /// Looks up our address towards each backend that is not known yet, or all of them. True if one has changed.
    pub(super) fn look_up_ways(&mut self, all: bool) -> bool {
        let mut wanted = BTreeSet::new();
        for (_, pool) in self.carried() {
            wanted.extend(pool.backends.iter().filter_map(|backend| Some(whereabouts(backend)?.0)));
        }
        let before = self.ways.clone();
        self.ways.retain(|ip, way| !all && way.is_some() && wanted.contains(ip));
        for ip in wanted {
            self.ways.entry(ip).or_insert_with(|| source_towards(ip));
        }
        self.ways != before
    }

    /// Writes the snapshot into the maps and has it come into force.
    pub(super) fn publish(&mut self, maps: &Maps) {
        let now = Instant::now();
        self.look_up_ways(false);
        let carried = self.carried();
        let shared = self.snapshot.shared_pools();
        let is_shared = |listener: &Listener| listener.config.pool.is_some_and(|pool| shared[pool]);
        self.is_shared = carried.iter().any(|(listener, _)| is_shared(listener));
        let mut trouble = BTreeSet::new();

        let listeners: Vec<Arc<Listener>> = carried.iter().map(|(listener, _)| listener.clone()).collect();
        let listener_places = self
            .listeners
            .settle(&listeners, now, |place| maps.listener_tally(place));
        let mut pools: Vec<Arc<Pool>> = Vec::new();
        for (_, pool) in &carried {
            if !pools.iter().any(|known| known.config.name == pool.config.name) {
                pools.push(pool.clone());
            }
        }
        let backends: Vec<Arc<Backend>> = pools.iter().flat_map(|pool| pool.backends.clone()).collect();
        let backend_places = self.backends.settle(&backends, now, |place| maps.backend_tally(place));
        for ((listener, pool), place) in carried.iter().zip(&listener_places) {
            let Some(place) = *place else { continue };
            self.patiences
                .insert(place, Patience::new(&listener.config, &pool.config));
            let words = maps.listeners.words(place as usize);
            let shape = ListenerShape {
                identity: listener.identity(),
                active: words[LISTENER_ACTIVE].load(Relaxed),
                active_max: listener.config.limits.connections.unwrap_or(0),
            };
            put_around(words, &shape.bytes(), &[LISTENER_ACTIVE]);
        }

        let bank = 1 - maps.bank();
        if let Some(turned) = self.turned {
            std::thread::sleep((turned + GRACE).saturating_duration_since(now));
        }
        let half = maps.table.length() / 2;
        let mut next_slot = half * usize::from(bank);
        let mut backend_places = backend_places.into_iter();
        let mut pool_places = HashMap::new();
        for (ix, pool) in pools.iter().enumerate().take(POOLS_MAX) {
            let places: Vec<Option<u32>> = pool
                .backends
                .iter()
                .enumerate()
                .map(|(ix, backend)| {
                    let Some(place) = backend_places.next().flatten() else {
                        let name = format!("{}/{}", backend.pool, backend.config.name);
                        trouble.insert(format!(
                            "kernel engine: there is no room for backend {name}, which gets no connections: a restart makes it"
                        ));
                        return None;
                    };
                    let is_reached = self.put_backend(maps, place, pool, ix, backend, &mut trouble);
                    is_reached.then_some(place)
                })
                .collect();
            let mut slots: Vec<Slot> = tables::slots(pool, |ix| places[ix]);
            slots.truncate(half * usize::from(bank) + half - next_slot);
            for (at, slot) in slots.iter().enumerate() {
                maps.table.put(next_slot + at, &slot.bytes());
            }
            let sources = self.sources(pool, &mut trouble);
            let mut shape = tables::shape(pool, &slots, next_slot as u32, &sources);
            // From where the one before has come to.
            shape.turn = match self.pool_places.get(&pool.config.name) {
                Some(&before) => PoolShape::of(&maps.pools.get(before as usize)).turn,
                None => mix(self.snapshot.version) >> 1,
            };
            let place = usize::from(bank) * POOLS_MAX + ix;
            maps.pools.put(place, &shape.bytes());
            pool_places.insert(pool.config.name.clone(), place as u32);
            next_slot += slots.len();
        }

        let mut wanted: HashMap<ServiceKey, Service> = HashMap::new();
        let mut served = Served::new();
        for ((listener, pool), &place) in carried.iter().zip(&listener_places) {
            let (Some(place), Some(&place_of_pool)) = (place, pool_places.get(&pool.config.name)) else {
                continue;
            };
            let addresses = self.addresses(&listener.config);
            let at = addresses.iter().map(|&address| address.into());
            served.insert(listener.config.name.clone(), at.collect());
            for (ip, port) in addresses {
                let key = ServiceKey {
                    address: address(ip),
                    port: port.to_be_bytes(),
                    protocol: protocol(&listener.config),
                    bank,
                };
                let is_guarded = guards::guard(&listener.config).is_some();
                let service = Service {
                    listener: place,
                    pool: place_of_pool,
                    guard: if is_guarded {
                        maps.guard_place(bank, place) + 1
                    } else {
                        0
                    },
                    ifindex: *self.locals.get(&ip).or(self.homes.get(&ip)).unwrap_or(&0),
                    ..Service::default()
                };
                wanted.insert(key, service);
                if joins(pool, is_shared(listener)) {
                    answers(&mut wanted, &key, &service, pool);
                }
            }
        }
        let joins = carried.iter().any(|(listener, pool)| joins(pool, is_shared(listener)));
        if joins {
            // Whatever a backend has to say to this host itself.
            for ip in self.locals.keys().take(HOST_ADDRESSES_MAX) {
                let key = ServiceKey {
                    address: address(*ip),
                    bank,
                    ..ServiceKey::default()
                };
                let kind = SERVICE_HOST;
                wanted.insert(
                    key,
                    Service {
                        kind,
                        ..Service::default()
                    },
                );
            }
        }
        let outcome = self.put_guards(maps, bank, &carried, &listener_places);
        let outcome = outcome.and_then(|()| maps.services(bank)).and_then(|there| {
            let gone = there.iter().filter(|key| !wanted.contains_key(key));
            gone.map(|key| maps.withdraw(key)).collect::<io::Result<Vec<_>>>()?;
            wanted.iter().try_for_each(|(key, service)| maps.serve(key, service))
        });
        match outcome {
            Ok(()) => {
                maps.turn_over(joins);
                self.pool_places = pool_places;
                for line in news(&self.served, &served) {
                    log::info!("kernel engine: {line}");
                }
                self.served = served;
                self.turned = Some(Instant::now());
            }
            Err(error) => {
                trouble.insert(format!(
                    "kernel engine: the tables cannot be written, the ones before stay in force: {error}"
                ));
            }
        }
        self.say(trouble);
    }

    /// Writes who may come to each listener into a bank, unless that stands there already.
    fn put_guards(
        &mut self,
        maps: &Maps,
        bank: u8,
        carried: &[(Arc<Listener>, Arc<Pool>)],
        places: &[Option<u32>],
    ) -> io::Result<()> {
        let listeners = &self.snapshot.listeners;
        let there = &mut self.guarded[usize::from(bank)];
        if there
            .as_ref()
            .is_some_and(|(known, at)| Arc::ptr_eq(known, listeners) && at == places)
        {
            return Ok(());
        }
        *there = None;
        let mut networks = HashMap::new();
        for ((listener, _), place) in carried.iter().zip(places) {
            let (Some(place), Some(guard)) = (*place, guards::guard(&listener.config)) else {
                continue;
            };
            let place = maps.guard_place(bank, place);
            maps.guards.put(place as usize, &guard.bytes());
            networks.extend(guards::networks(&listener.config, place));
        }
        maps.put_networks(bank, &networks)?;
        *there = Some((listeners.clone(), places.to_vec()));
        Ok(())
    }

    /// Addresses and ports that a listener serves; a wildcard stands for every address of this host.
    fn addresses(&self, listener: &model::Listener) -> Vec<(IpAddr, u16)> {
        let of = |bind: &Bind| match bind {
            Bind::Ip { ip, ports, .. } if ip.is_unspecified() => {
                let own = self
                    .locals
                    .keys()
                    .copied()
                    .filter(|local| local.is_ipv4() == ip.is_ipv4());
                own.flat_map(|local| ports.clone().map(move |port| (local, port)))
                    .collect::<Vec<_>>()
            }
            Bind::Ip { ip, ports, .. } => ports.clone().map(|port| (*ip, port)).collect(),
            Bind::Unix(_) => Vec::new(),
        };
        listener.bind.iter().flat_map(of).collect()
    }

    /// Where connections to a pool's backends come from, if it states several addresses.
    fn sources(&self, pool: &Pool, trouble: &mut BTreeSet<String>) -> Vec<IpAddr> {
        let (used, absent) = tables::sources(&pool.config.kernel_sources, |ip| self.locals.contains_key(&ip));
        trouble.extend(absent.iter().map(|source| {
            format!(
                "kernel engine: pool {}: {source} of source_addresses is no address of this host: answers to it do not come here",
                pool.config.name
            )
        }));
        used
    }

    /// Writes a backend to its place; whether it can be reached.
    fn put_backend(
        &self,
        maps: &Maps,
        place: u32,
        pool: &Pool,
        ix: usize,
        backend: &Backend,
        trouble: &mut BTreeSet<String>,
    ) -> bool {
        let Some((ip, port)) = whereabouts(backend) else {
            return false;
        };
        let name = format!("{}/{}", backend.pool, backend.config.name);
        let way = self.ways.get(&ip).copied().flatten();
        let is_here = self.locals.contains_key(&ip);
        if is_here && pool.config.kernel_mode != KernelMode::Dsr {
            trouble.insert(format!(
                "kernel engine: backend {name} is on this host and gets no connections: write an address of another host, or `engine: proxy`"
            ));
        } else if way.is_none() {
            trouble.insert(format!(
                "kernel engine: there is no route to backend {name}: it gets no connections"
            ));
        }
        let source = match pool.config.source_address {
            Some(stated) => Some(stated),
            None => way,
        };
        let ready = pool.eligibility.first.get(ix) && pool.picker.members()[ix].weight > 0;
        let words = maps.backends.words(place as usize);
        let shape = BackendShape {
            identity: backend.identity,
            address: address(ip),
            source: source.map_or([0; 16], address),
            port: port.to_be_bytes(),
            ifindex: way.and_then(|way| self.locals.get(&way)).copied().unwrap_or(0),
            active_max: backend.config.max_connections.unwrap_or(0),
            ready: u32::from(ready),
            weight: pool.picker.members()[ix].weight,
            ..BackendShape::default()
        };
        put_around(words, &shape.bytes(), &BACKEND_LIVE);
        way.is_some() && !is_here
    }
}
