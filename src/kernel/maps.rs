//! The maps as the engine uses them.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use nix::time::{ClockId, clock_gettime};

use super::elsewhere;
use super::layout::{
    BACKEND_ACTIVE, Backend, Bucket, DropReason, Ended, FLOW_SOURCED, Flow, Guard, LISTENER_ACTIVE, Listener, Network,
    PROCESS_ACTIVE, PROCESS_ACTIVE_MAX, Plain, Pool, Ports, Process, Removal, Service, ServiceKey, Slot, State, Tally,
    Tuple,
};
use super::program::{NAMES, Sizes};
use super::sources;
use crate::link::PacketFigures;
use crate::sys::bpf::{self, Array, Map, Ring, Walk};

/// Nanoseconds as the program counts them.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every Linux has it");
    now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64
}

/// What counts a flow: its listener, its backend, the process, its source.
pub(super) const GAUGES: u32 = 4;

/// Entries read at a time, more than share a bucket.
const AT_ONCE: usize = 256;

/// The maps that the program and this process share.
#[derive(Debug)]
pub struct Maps {
    state: Array,
    services: Map,
    /// Pools, in both banks.
    pub pools: Array,
    /// Slots of the pools, in both banks.
    pub table: Array,
    /// Places of listeners.
    pub listeners: Array,
    /// Places of backends.
    pub backends: Array,
    flows: Map,
    half: Map,
    listener_tallies: Map,
    backend_tallies: Map,
    drops: Map,
    events: Ring,
    ports: Array,
    /// Who may come, in both banks.
    pub guards: Array,
    networks: Map,
    sources: Array,
    process: Array,
    /// What is being taken out.
    pub(super) removal: Array,
}

/// Which of the two tables of flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Those that are established.
    Settled,
    /// Those that are not.
    Half,
}

impl Maps {
    /// From descriptors in the order of [`NAMES`].
    pub fn new(descriptors: Vec<OwnedFd>) -> io::Result<Maps> {
        let count = descriptors.len();
        let descriptors: [OwnedFd; NAMES.len()] = descriptors
            .try_into()
            .map_err(|_| io::Error::other(format!("{count} maps of {} have come", NAMES.len())))?;
        let [
            state,
            services,
            pools,
            table,
            listeners,
            backends,
            flows,
            half,
            listener_tallies,
            backend_tallies,
            drops,
            events,
            ports,
            guards,
            networks,
            sources,
            process,
            removal,
        ] = descriptors;
        let maps = Maps {
            state: Array::new(state)?,
            services: Map::new(services)?,
            pools: Array::new(pools)?,
            table: Array::new(table)?,
            listeners: Array::new(listeners)?,
            backends: Array::new(backends)?,
            flows: Map::new(flows)?,
            half: Map::new(half)?,
            listener_tallies: Map::new(listener_tallies)?,
            backend_tallies: Map::new(backend_tallies)?,
            drops: Map::new(drops)?,
            events: Ring::new(events)?,
            ports: Array::new(ports)?,
            guards: Array::new(guards)?,
            networks: Map::new(networks)?,
            sources: Array::new(sources)?,
            process: Array::new(process)?,
            removal: Array::new(removal)?,
        };
        maps.assert_shapes();
        Ok(maps)
    }

    /// The program and this process mean the same by their bytes.
    fn assert_shapes(&self) {
        let arrays = [
            (&self.state, State::SIZE),
            (&self.pools, Pool::SIZE),
            (&self.table, Slot::SIZE),
            (&self.listeners, Listener::SIZE),
            (&self.backends, Backend::SIZE),
            (&self.ports, Ports::SIZE),
            (&self.guards, Guard::SIZE),
            (&self.sources, Bucket::SIZE),
            (&self.process, Process::SIZE),
            (&self.removal, Removal::SIZE),
        ];
        for (array, size) in arrays {
            assert_eq!(array.words(0).len() * 4, size);
        }
        let tables = [
            (&self.services, ServiceKey::SIZE, Service::SIZE),
            (&self.flows, Tuple::SIZE, Flow::SIZE),
            (&self.half, Tuple::SIZE, Flow::SIZE),
            (&self.networks, Network::SIZE, u32::SIZE),
        ];
        for (map, key, value) in tables {
            assert_eq!((map.key_size(), map.value_size()), (key, value));
        }
    }

    /// Second descriptors, in the order of [`NAMES`].
    pub fn duplicate(&self) -> io::Result<Vec<OwnedFd>> {
        Ok(vec![
            self.state.try_clone_fd()?,
            self.services.try_clone_fd()?,
            self.pools.try_clone_fd()?,
            self.table.try_clone_fd()?,
            self.listeners.try_clone_fd()?,
            self.backends.try_clone_fd()?,
            self.flows.try_clone_fd()?,
            self.half.try_clone_fd()?,
            self.listener_tallies.try_clone_fd()?,
            self.backend_tallies.try_clone_fd()?,
            self.drops.try_clone_fd()?,
            self.events.try_clone_fd()?,
            self.ports.try_clone_fd()?,
            self.guards.try_clone_fd()?,
            self.networks.try_clone_fd()?,
            self.sources.try_clone_fd()?,
            self.process.try_clone_fd()?,
            self.removal.try_clone_fd()?,
        ])
    }

    /// What they were made for.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            flows: self.flows.entries() as u32 / 2,
            table: self.table.length() as u32,
            services: self.services.entries() as u32,
            listeners: self.listeners.length() as u32,
            backends: self.backends.length() as u32,
            networks: self.networks.entries() as u32,
        }
    }

    /// The process as the program knows it.
    pub fn process(&self) -> Process {
        Process::of(&self.process.get(0))
    }

    /// Has the program know of the process's own: a secret for counting sources, unless a process before this one has chosen it.
    pub fn begin(&self, seed: u64) {
        let known = self.process();
        if known.buckets == 0 {
            let process = Process {
                active_max: [u32::MAX; 2],
                seed,
                buckets: self.sources.length() as u32,
                ..known
            };
            self.process.put(0, &process.bytes());
        }
    }

    /// How many TCP connections and UDP sessions there may be.
    pub fn limit(&self, most: [u32; 2]) {
        let words = &self.process.words(0)[PROCESS_ACTIVE_MAX..];
        std::iter::zip(words, most).for_each(|(word, most)| word.store(most, Relaxed));
    }

    /// Live flows at the backend in a place.
    pub fn active_at(&self, place: u32) -> u32 {
        self.backends.words(place as usize)[BACKEND_ACTIVE].load(Relaxed)
    }

    /// Has the program count what the workers have at a backend, and how long it takes by them.
    pub fn tell_elsewhere(&self, place: u32, active: u32, latency_ns: u64) {
        elsewhere::tell(&self.backends, place as usize, active, latency_ns);
    }

    /// One of what counts a flow, which is over, counts it no more. There are [`GAUGES`].
    pub(super) fn lower(&self, of: &Removal, gauge: u32) {
        let (array, place, word) = match gauge {
            0 => (&self.listeners, of.listener, LISTENER_ACTIVE),
            1 => (&self.backends, of.backend, BACKEND_ACTIVE),
            2 => (&self.process, 0, PROCESS_ACTIVE + usize::from(!of.key.is_tcp())),
            _ => {
                if of.flags & FLOW_SOURCED != 0 {
                    let hash = self.hash(of.listener, of.key.source().ip());
                    sources::leave(|ix| self.sources.longs(ix as usize), self.sources.length() as u32, hash);
                }
                return;
            }
        };
        array.words(place as usize)[word].fetch_sub(1, Relaxed);
    }

    /// What stands for a source at the listener in a place.
    pub fn hash(&self, listener: u32, client: IpAddr) -> u64 {
        let listener = Listener::of(&self.listeners.get(listener as usize)).identity;
        sources::hash(self.process().seed, listener, client)
    }

    /// Live flows of each source, as counted.
    pub fn sources(&self) -> HashMap<u64, u32> {
        sources::all(|ix| self.sources.longs(ix as usize), self.sources.length() as u32)
    }

    /// The place of a listener's guard in a bank.
    pub fn guard_place(&self, bank: u8, listener: u32) -> u32 {
        u32::from(bank) * (self.guards.length() / 2) as u32 + listener
    }

    /// Has the networks of a bank be these.
    pub fn put_networks(&self, bank: u8, wanted: &HashMap<Network, u32>) -> io::Result<()> {
        let half = (self.guards.length() / 2) as u32;
        let mut there = HashMap::new();
        self.networks.walk(AT_ONCE, |key, verdict| {
            let network = Network::of(key);
            if network.guard / 2 / half == u32::from(bank) {
                there.insert(network, u32::of(verdict));
            }
        })?;
        let gone = there.keys().filter(|network| !wanted.contains_key(network));
        gone.map(|network| self.networks.delete(&network.bytes()))
            .collect::<io::Result<Vec<_>>>()?;
        let new = wanted
            .iter()
            .filter(|(network, verdict)| there.get(network) != Some(verdict));
        new.into_iter()
            .try_for_each(|(network, verdict)| self.networks.update(&network.bytes(), &verdict.bytes()))
    }

    /// The bank in force.
    pub fn bank(&self) -> u8 {
        (self.state.words(0)[0].load(Relaxed) & 1) as u8
    }

    /// Has everything that was written to the other bank come into force at once. `joins`: there is a service of
    /// [`SERVICE_ANSWERS`](super::layout::SERVICE_ANSWERS) in it.
    pub fn turn_over(&self, joins: bool) {
        let [bank_in_force, _, joins_by_bank, _] = self.state.words(0) else {
            unreachable!("as long as its shape");
        };
        let bank = u32::from(1 - self.bank());
        let others = joins_by_bank.load(Relaxed) & !(1 << bank);
        joins_by_bank.store(others | u32::from(joins) << bank, Relaxed);
        bpf::publish();
        bank_in_force.store(bank, Relaxed);
        bpf::publish();
    }

    /// Whether nothing new is taken.
    pub fn set_closed(&self, closed: bool) {
        self.state.words(0)[1].store(u32::from(closed), Relaxed);
    }

    /// Has new connections in mode `nat` use these ports.
    pub fn set_ports(&self, ports: &Ports) {
        self.ports.put(0, &ports.bytes());
    }

    /// The services of a bank.
    pub fn services(&self, bank: u8) -> io::Result<Vec<ServiceKey>> {
        let mut keys = Vec::new();
        self.services.walk(AT_ONCE, |key, _| keys.push(ServiceKey::of(key)))?;
        keys.retain(|key| key.bank == bank);
        Ok(keys)
    }

    /// Adds or changes a service.
    pub fn serve(&self, key: &ServiceKey, service: &Service) -> io::Result<()> {
        self.services.update(&key.bytes(), &service.bytes())
    }

    /// Takes a service out.
    pub fn withdraw(&self, key: &ServiceKey) -> io::Result<bool> {
        self.services.delete(&key.bytes())
    }

    fn of(&self, kind: Kind) -> &Map {
        match kind {
            Kind::Settled => &self.flows,
            Kind::Half => &self.half,
        }
    }

    /// The next clients' entries of a table of flows, as in [`Map::step`].
    pub fn step(&self, kind: Kind, walk: &mut Walk, mut each: impl FnMut(Tuple, Flow)) -> io::Result<bool> {
        self.of(kind).step(walk, AT_ONCE, |key, flow| {
            // Half of the entries are backends': nothing else is read of those.
            if Flow::is_clients(flow) {
                each(Tuple::of(key), Flow::of(flow));
            }
        })
    }

    /// A flow of either table.
    pub fn flow(&self, key: &Tuple) -> Option<Flow> {
        let (key, mut value) = (key.bytes(), vec![0; Flow::SIZE]);
        [Kind::Settled, Kind::Half]
            .into_iter()
            .any(|kind| self.of(kind).lookup(&key, &mut value).unwrap_or(false))
            .then(|| Flow::of(&value))
    }

    /// The backend's entry of a flow, by its client's. Under its key may be another's: a port whose entry a flood has displaced
    /// serves others.
    pub fn other(&self, up: &Flow) -> Option<Flow> {
        self.flow(&up.to.turned()).filter(|down| down.id == up.id)
    }

    /// Removes a flow of either table and tells what it was.
    pub fn take(&self, key: &Tuple) -> Option<Flow> {
        let (key, mut value) = (key.bytes(), vec![0; Flow::SIZE]);
        [Kind::Settled, Kind::Half]
            .into_iter()
            .any(|kind| self.of(kind).take(&key, &mut value).unwrap_or(false))
            .then(|| Flow::of(&value))
    }

    /// Counters of a listener.
    pub fn listener_tally(&self, place: u32) -> Tally {
        tally(&self.listener_tallies, place)
    }

    /// Counters of a backend.
    pub fn backend_tally(&self, place: u32) -> Tally {
        tally(&self.backend_tallies, place)
    }

    /// Packets with that fate, on all CPUs.
    fn dropped(&self, reason: DropReason) -> u64 {
        let mut value = vec![0; self.drops.value_size()];
        let _ = self.drops.lookup(&(reason as u32).bytes(), &mut value);
        value.chunks(u64::SIZE).map(u64::of).sum()
    }

    /// What the program has counted since it was loaded.
    pub fn figures(&self) -> PacketFigures {
        let places = || 0..self.listeners.length();
        let tallies = places().map(|place| self.listener_tally(place as u32));
        PacketFigures {
            flows: places()
                .map(|place| self.listeners.words(place)[LISTENER_ACTIVE].load(Relaxed))
                .sum(),
            flows_max: self.sizes().flows,
            packets: tallies.fold([0; 2], |[up, down], tally| {
                [up + tally.packets_up, down + tally.packets_down]
            }),
            dropped: DropReason::ALL
                .iter()
                .map(|&reason| (reason.as_str(), self.dropped(reason)))
                .collect(),
        }
    }

    /// Hands every end that was told to `each`.
    pub fn ends(&self, mut each: impl FnMut(Ended)) {
        self.events.read(|bytes| each(Ended::of(bytes)));
    }

    /// Readable when there are ends.
    pub fn events(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn tally(map: &Map, place: u32) -> Tally {
    let mut value = vec![0; map.value_size()];
    // A place beyond the map has counted nothing.
    let _ = map.lookup(&place.bytes(), &mut value);
    value
        .chunks(Tally::SIZE)
        .map(Tally::of)
        .fold(Tally::default(), |a, b| Tally {
            opened: a.opened + b.opened,
            packets_up: a.packets_up + b.packets_up,
            bytes_up: a.bytes_up + b.bytes_up,
            packets_down: a.packets_down + b.packets_down,
            bytes_down: a.bytes_down + b.bytes_down,
            refused: std::array::from_fn(|why| a.refused[why] + b.refused[why]),
        })
}

/// Writes an element but for those words which belong to the program.
pub fn put_around(words: &[AtomicU32], bytes: &[u8], except: &[usize]) {
    let new = bytes.as_chunks::<4>().0;
    assert_eq!(words.len(), new.len());
    for (ix, (word, new)) in words.iter().zip(new).enumerate() {
        if !except.contains(&ix) {
            word.store(u32::from_ne_bytes(*new), Relaxed);
        }
    }
}
