//! Beat connections: one kept TCP connection for each path between a pair of nodes, dialled by the node whose name comes first.
//!
//! # How it works
//! Whoever dials tries once a beat until a connection is authenticated, and again as soon as the present one has been silent
//! for a while, or the other node does not hear us on it, because TCP's own retransmission would be seconds late after a broken link is mended. The first connection
//! on which a frame verifies becomes *the* connection of the path; the one before it is closed with a farewell. Nodes with
//! several addresses have several paths, the first address of one with the first of the other and so on; beats go over all of them.
//!
//! A connection that ends without a farewell is a hint, not a verdict: something between the nodes could have reset it. The
//! node is asked again at once; when its port is closed its process has ended ([`News::Gone`]); when it answers under
//! another boot number, likewise; when nothing answers, silence decides.
//!
//! When secrets change, connections stay: they were authenticated. The dialer makes new ones under the new secrets, which replace
//! the old ones as soon as the other node has the secrets too; so secrets can be changed node by node.
//!
//! # Bounds
//! At most [`STRANGERS_MAX`] connections wait to be authenticated, each for [`PATIENCE`]; when there are more, the oldest one
//! from an address that is not a node's goes first. A connection buffers one frame in, and what the kernel did not take out of one
//! other. Beats that cannot be sent are not queued: the next one says it all.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};

use crate::failover::NodeIx;
use crate::failover::beat::{Message, Rejected, Side, WireBeat};
use conn::{Conn, End};

mod conn;
pub use conn::{connect, listen};

/// Connections that may wait to be authenticated.
pub const STRANGERS_MAX: usize = 64;
/// How long each may wait.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts over one path that may be under way.
const DIALS_MAX: usize = 6;
/// Connections accepted in one round.
const ACCEPTS_MAX: usize = 64;
/// How often a connection under former secrets is tried anew.
const REKEY: Duration = Duration::from_secs(1);

/// What a link has to tell.
#[derive(Debug)]
pub enum News {
    /// A verified beat, and the time before which it cannot have been sent.
    Beat(NodeIx, WireBeat, Instant),
    /// The node's process has ended.
    Gone(NodeIx),
    /// A connection of this node can be spoken on: it should hear from us at once.
    Linked(NodeIx),
    /// Something was refused, by a sender at this address if it is known.
    Rejected(Rejected, Option<SocketAddr>),
}

/// A node as the links know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name in the configuration.
    pub name: String,
    /// Where it listens for beats; the first is the one in `nodes`.
    pub addresses: Vec<SocketAddr>,
}

/// What does not change while the links live.
#[derive(Debug, Clone)]
pub struct Identity {
    /// All nodes, this one included.
    pub nodes: Vec<Peer>,
    /// Index of this node.
    pub me: NodeIx,
    /// Differs for every start of the process; survives an upgrade.
    pub boot: u64,
    /// Shared by all nodes; the first one signs, all are accepted.
    pub secrets: Vec<Vec<u8>>,
    /// Period of beats, and of attempts.
    pub beat: Duration,
    /// Silence after which a node counts as dead.
    pub dead_after: Duration,
    /// How long to ask, after a start, whether the others' ports are open.
    pub startup_delay: Duration,
}

#[derive(Default)]
struct Path {
    /// Index of our own address that it uses.
    local: usize,
    /// The authenticated connection.
    active: Option<usize>,
    heard: Option<Instant>,
    next_dial: Option<Instant>,
    next_rekey: Option<Instant>,
    /// The secret for the next attempt.
    secret: usize,
}

#[derive(Default)]
struct Node {
    paths: Vec<Path>,
    boot: Option<u64>,
    /// The connection ended without a farewell: ask at every tick until then whether the port is still open. Once is not
    /// enough, because the sockets of a process that was killed do not close at the same instant.
    ask_until: Option<Instant>,
}

impl Node {
    fn is_linked(&self) -> bool {
        self.paths.iter().any(|p| p.active.is_some())
    }
}

/// All beat connections of this process.
pub struct Links {
    identity: Identity,
    /// One for each of our own addresses.
    listeners: Vec<(Token, TcpListener)>,
    accept_more: bool,
    next: usize,
    /// Counts how often the secrets have been replaced.
    epoch: u64,
    conns: HashMap<usize, Conn>,
    nodes: Vec<Node>,
    unfinished: Vec<usize>,
}

impl Links {
    /// Takes over a listening socket for the first of our addresses, and binds the others. Tokens from `first` upwards are used.
    pub fn new(registry: &Registry, listener: OwnedFd, first: usize, identity: Identity) -> io::Result<Links> {
        let mut links = Links {
            listeners: Vec::new(),
            accept_more: true,
            next: first,
            epoch: 0,
            conns: HashMap::new(),
            nodes: Vec::new(),
            unfinished: Vec::new(),
            identity,
        };
        links.bind(registry, Some(listener))?;
        links.reset(Instant::now());
        Ok(links)
    }

    /// Listens on all our addresses; the first one is given, or stays.
    fn bind(&mut self, registry: &Registry, first: Option<OwnedFd>) -> io::Result<()> {
        let keep = usize::from(first.is_none());
        for (_, mut old) in self.listeners.split_off(keep.min(self.listeners.len())) {
            let _ = registry.deregister(&mut old);
        }
        let further = self.identity.nodes[self.identity.me].addresses[1..].to_vec();
        let further = further.into_iter().map(|address| {
            listen(address).map_err(|e| io::Error::new(e.kind(), format!("beat address {address}: {e}")))
        });
        for listener in first.map(Ok).into_iter().chain(further) {
            let listener = std::net::TcpListener::from(listener?);
            listener.set_nonblocking(true)?;
            let mut listener = TcpListener::from_std(listener);
            let token = Token(self.next);
            self.next += 1;
            registry.register(&mut listener, token, Interest::READABLE)?;
            self.listeners.push((token, listener));
        }
        self.accept_more = true;
        Ok(())
    }

    /// Forgets every connection; the paths are those of the identity.
    fn reset(&mut self, now: Instant) {
        let mine = self.identity.nodes[self.identity.me].addresses.len();
        let ask_until = Some(now + self.identity.startup_delay);
        let node = |peer: &Peer| Node {
            paths: (0..mine.max(peer.addresses.len()))
                .map(|i| Path {
                    local: i % mine,
                    ..Path::default()
                })
                .collect(),
            boot: None,
            ask_until,
        };
        self.nodes = self.identity.nodes.iter().map(node).collect();
    }

    /// Closes every connection and gives the first listening socket back.
    ///
    /// With a farewell the peers know that we live on; without one they ask, find the port closed, and know at once that we
    /// do not.
    pub fn close(mut self, registry: &Registry, farewell: bool) -> OwnedFd {
        if farewell {
            self.part_all(registry);
        }
        let (_, mut listener) = self.listeners.swap_remove(0);
        let _ = registry.deregister(&mut listener);
        std::net::TcpListener::from(listener).into()
    }

    /// Starts over with other nodes or, if given, another listening socket.
    pub fn rebuild(&mut self, registry: &Registry, listener: Option<OwnedFd>, identity: Identity) -> io::Result<()> {
        self.part_all(registry);
        self.identity = identity;
        self.bind(registry, listener)?;
        self.reset(Instant::now());
        Ok(())
    }

    /// Other secrets or times, the same nodes: connections stay.
    pub fn adjust(&mut self, identity: Identity) {
        if self.identity.secrets != identity.secrets {
            self.epoch += 1;
            for path in self.nodes.iter_mut().flat_map(|n| &mut n.paths) {
                path.secret = 0;
            }
        }
        self.identity = identity;
    }

    fn part_all(&mut self, registry: &Registry) {
        let ids: Vec<usize> = self.conns.keys().copied().collect();
        for id in ids {
            self.part(registry, id);
        }
    }

    /// Whether there is work although no event will come.
    pub fn busy(&self) -> bool {
        self.accept_more || !self.unfinished.is_empty()
    }

    // ---- time ----

    /// Dials what is due, gives up what has waited too long.
    ///
    /// `deaf`: whether that node does not seem to hear us.
    pub fn tick(&mut self, registry: &Registry, now: Instant, deaf: impl Fn(NodeIx) -> bool, news: &mut Vec<News>) {
        self.accept_more = true;
        let waited = |conn: &Conn| now.saturating_duration_since(conn.opened);
        let give_up: Vec<usize> = self
            .conns
            .iter()
            .filter(|(_, conn)| {
                let patience = match conn.side {
                    Side::Dialer => self.identity.dead_after.max(Duration::from_millis(100)),
                    Side::Acceptor => PATIENCE,
                };
                !conn.authenticated && waited(conn) > patience
            })
            .map(|(id, _)| *id)
            .collect();
        for id in give_up {
            self.drop_conn(registry, id);
        }
        let me = self.identity.me;
        for n in (0..self.nodes.len()).filter(|n| *n != me) {
            let node = &self.nodes[n];
            if !node.is_linked() && node.ask_until.is_some_and(|until| now < until) {
                self.dial(registry, now, n, 0, !self.dials(n), news);
            }
            for p in 0..self.nodes[n].paths.len() {
                self.tick_path(registry, now, n, p, deaf(n), news);
            }
        }
    }

    fn tick_path(&mut self, registry: &Registry, now: Instant, n: NodeIx, p: usize, deaf: bool, news: &mut Vec<News>) {
        let dials = self.dials(n);
        let Identity { beat, .. } = self.identity;
        let path = &mut self.nodes[n].paths[p];
        if !dials || path.next_dial.is_some_and(|at| at > now) {
            return;
        }
        path.next_dial = Some(now + beat);
        let late = |at: Instant| now.saturating_duration_since(at) > 3 * beat;
        let silent = deaf || path.active.is_none() || path.heard.is_none_or(late);
        let old_key = path
            .active
            .and_then(|id| self.conns.get(&id))
            .is_some_and(|c| c.epoch != self.epoch);
        let rekey = old_key && path.next_rekey.is_none_or(|at| at <= now);
        if rekey {
            path.next_rekey = Some(now + REKEY);
        }
        if silent || rekey {
            self.dial(registry, now, n, p, false, news);
        }
    }

    /// Whether we are the one of the pair that dials.
    fn dials(&self, n: NodeIx) -> bool {
        let nodes = &self.identity.nodes;
        n != self.identity.me && nodes[self.identity.me].name < nodes[n].name
    }

    fn dial(&mut self, registry: &Registry, now: Instant, n: NodeIx, p: usize, probe: bool, news: &mut Vec<News>) {
        let under_way = self
            .conns
            .values()
            .filter(|c| c.node == Some(n) && c.path == p && !c.authenticated && c.side == Side::Dialer)
            .count();
        if under_way >= DIALS_MAX {
            return;
        }
        let path = &self.nodes[n].paths[p];
        let to = &self.identity.nodes[n].addresses;
        let remote = to[p % to.len()];
        let from = self.identity.nodes[self.identity.me].addresses[path.local].ip();
        match connect(Some(from), remote, self.identity.dead_after) {
            Ok(stream) => {
                let mut conn = Conn::new(&self.identity, stream, Side::Dialer, Some(n), Some(remote), now);
                (conn.path, conn.probe, conn.epoch) = (p, probe, self.epoch);
                conn.secret = path.secret % self.identity.secrets.len();
                self.insert(registry, conn);
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => self.refused(n, p, news),
            // No route, no neighbour, no port: silence decides.
            Err(_) => {}
        }
    }

    fn insert(&mut self, registry: &Registry, mut conn: Conn) -> Option<usize> {
        let id = self.next;
        self.next += 1;
        registry
            .register(&mut conn.stream, Token(id), Interest::READABLE | Interest::WRITABLE)
            .ok()?;
        self.conns.insert(id, conn);
        Some(id)
    }

    // ---- events ----

    /// An event for one of our tokens.
    pub fn event(&mut self, registry: &Registry, now: Instant, token: Token, news: &mut Vec<News>) {
        if self.listeners.iter().any(|(listener, _)| *listener == token) {
            self.accept_more = true;
        } else {
            self.serve(registry, now, token.0, news);
        }
    }

    /// Work that was left over.
    pub fn proceed(&mut self, registry: &Registry, now: Instant, news: &mut Vec<News>) {
        if std::mem::take(&mut self.accept_more) {
            for local in 0..self.listeners.len() {
                self.accept(registry, now, local);
            }
        }
        for id in std::mem::take(&mut self.unfinished) {
            self.serve(registry, now, id, news);
        }
    }

    fn accept(&mut self, registry: &Registry, now: Instant, local: usize) {
        for _ in 0..ACCEPTS_MAX {
            match self.listeners[local].1.accept() {
                Ok((stream, remote)) => {
                    self.accepted(registry, now, local, stream, remote);
                    self.evict(registry);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: again at the next tick.
                Err(_) => return,
            }
        }
        self.accept_more = true;
    }

    fn accepted(&mut self, registry: &Registry, now: Instant, local: usize, stream: TcpStream, remote: SocketAddr) {
        let _ = stream.set_nodelay(true);
        let mut conn = Conn::new(&self.identity, stream, Side::Acceptor, None, Some(remote), now);
        (conn.epoch, conn.local) = (self.epoch, local);
        if let Some(id) = self.insert(registry, conn) {
            self.unfinished.push(id);
        }
    }

    /// Keeps the number of strangers bounded.
    fn evict(&mut self, registry: &Registry) {
        let known = |ip: IpAddr| {
            let mut addresses = self.identity.nodes.iter().flat_map(|n| &n.addresses);
            addresses.any(|a| a.ip() == ip)
        };
        let strangers: Vec<(bool, Instant, usize)> = self
            .conns
            .iter()
            .filter(|(_, c)| !c.authenticated && c.side == Side::Acceptor)
            .map(|(id, c)| (c.remote.is_some_and(|r| known(r.ip())), c.opened, *id))
            .collect();
        if strangers.len() > STRANGERS_MAX
            && let Some((_, _, id)) = strangers.into_iter().min()
        {
            self.drop_conn(registry, id);
        }
    }

    fn serve(&mut self, registry: &Registry, now: Instant, id: usize, news: &mut Vec<News>) {
        let Some(conn) = self.conns.get_mut(&id) else {
            return;
        };
        if !conn.connected {
            match conn.stream.take_error() {
                Ok(None) if conn.stream.peer_addr().is_ok() => {}
                Ok(None) => return,
                Ok(Some(e)) | Err(e) => {
                    let (node, path, refused) = (conn.node, conn.path, e.kind() == ErrorKind::ConnectionRefused);
                    self.drop_conn(registry, id);
                    if let (Some(n), true) = (node, refused) {
                        self.refused(n, path, news);
                    }
                    return;
                }
            }
            conn.connected = true;
            if conn.probe {
                // The port is open; that was the question.
                return self.drop_conn(registry, id);
            }
            conn.begin();
        }
        let mut messages = Vec::new();
        let spoke = conn.speaks();
        let outcome = conn.read(&self.identity, &mut messages);
        let (linked, node) = (!spoke && conn.speaks(), conn.node);
        for message in messages {
            self.message(registry, now, id, message, news);
        }
        if let (true, Some(n)) = (linked, node) {
            // Each end authenticates itself with its first beat.
            news.push(News::Linked(n));
        }
        match outcome {
            Ok(true) => self.unfinished.push(id),
            Ok(false) => {}
            Err(end) => self.ended(registry, now, id, end, news),
        }
    }

    fn message(&mut self, registry: &Registry, now: Instant, id: usize, message: Message, news: &mut Vec<News>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(n) = conn.node else { return };
        if !std::mem::replace(&mut conn.authenticated, true) {
            self.adopt(registry, id, n, news);
        }
        let Some(conn) = self.conns.get_mut(&id) else { return };
        match message {
            Message::Beat(beat) => {
                self.nodes[n].paths[conn.path].heard = Some(now);
                news.push(News::Beat(n, beat, conn.challenged));
            }
            Message::Farewell => conn.farewell = true,
        }
    }

    /// A connection has proved itself: it replaces the present one.
    fn adopt(&mut self, registry: &Registry, id: usize, n: NodeIx, news: &mut Vec<News>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if conn.side == Side::Acceptor {
            let remote = conn.remote.map(|r| r.ip());
            let theirs = &self.identity.nodes[n].addresses;
            let mut paths = (0..self.nodes[n].paths.len()).filter(|p| self.nodes[n].paths[*p].local == conn.local);
            let all: Vec<usize> = paths.by_ref().collect();
            let same = |p: &&usize| Some(theirs[**p % theirs.len()].ip()) == remote;
            conn.path = all.iter().find(same).or(all.first()).copied().unwrap_or(0);
        }
        let (path, boot) = (conn.path, conn.boot);
        if self.nodes[n].boot.replace(boot).is_some_and(|b| b != boot) {
            news.push(News::Gone(n));
        }
        if let Some(old) = self.nodes[n].paths[path].active.replace(id)
            && old != id
        {
            self.part(registry, old);
        }
        let others: Vec<usize> = self
            .conns
            .iter()
            .filter(|(other, c)| {
                let dialled = c.side == Side::Dialer && !c.authenticated;
                **other != id && c.node == Some(n) && c.path == path && dialled
            })
            .map(|(other, _)| *other)
            .collect();
        for other in others {
            self.drop_conn(registry, other);
        }
    }

    fn ended(&mut self, registry: &Registry, now: Instant, id: usize, end: End, news: &mut Vec<News>) {
        let Some(conn) = self.conns.get(&id) else {
            return;
        };
        let (node, path, farewell, authenticated) = (conn.node, conn.path, conn.farewell, conn.authenticated);
        let (remote, refused) = (
            conn.remote,
            conn.side == Side::Dialer && conn.speaks() && !authenticated,
        );
        if let End::Rejected(why) = end {
            news.push(News::Rejected(why, remote));
        }
        let active = node.is_some_and(|n| self.nodes[n].paths[path].active == Some(id));
        self.drop_conn(registry, id);
        let Some(n) = node else { return };
        if refused {
            // It hung up on what we have signed: perhaps it knows another one of our secrets.
            self.nodes[n].paths[path].secret += 1;
        }
        if active && authenticated {
            self.nodes[n].paths[path].next_dial = Some(now);
            if !farewell {
                self.nodes[n].ask_until = Some(now + self.identity.dead_after);
                // Has the process ended, or only the connection? Ask.
                let probe = !self.dials(n);
                self.dial(registry, now, n, path, probe, news);
            }
        }
    }

    /// The first path speaks for the process; the others are bound a moment later when it is replaced.
    fn refused(&mut self, n: NodeIx, path: usize, news: &mut Vec<News>) {
        if path == 0 && !self.nodes[n].is_linked() {
            news.push(News::Gone(n));
        }
    }

    // ---- sending ----

    /// Sends a beat to one node, or to all, over every path.
    pub fn beat(
        &mut self,
        registry: &Registry,
        now: Instant,
        to: Option<NodeIx>,
        words: impl Fn(NodeIx) -> WireBeat,
        news: &mut Vec<News>,
    ) {
        for n in (0..self.nodes.len()).filter(|n| to.is_none_or(|t| t == *n)) {
            let ids: Vec<usize> = self
                .conns
                .iter()
                .filter(|(id, c)| {
                    let current = || self.nodes[n].paths[c.path].active == Some(**id) || !c.authenticated;
                    c.node == Some(n) && c.speaks() && current()
                })
                .map(|(id, _)| *id)
                .collect();
            if ids.is_empty() {
                continue;
            }
            let message = Message::Beat(words(n));
            for id in ids {
                let sent = self.conns.get_mut(&id).map_or(Ok(()), |conn| conn.send(&message));
                if let Err(end) = sent {
                    self.ended(registry, now, id, end, news);
                }
            }
        }
    }

    /// Closes a connection and says that we live.
    fn part(&mut self, registry: &Registry, id: usize) {
        if let Some(conn) = self.conns.get_mut(&id) {
            let _ = conn.send(&Message::Farewell);
        }
        self.drop_conn(registry, id);
    }

    fn drop_conn(&mut self, registry: &Registry, id: usize) {
        if let Some(mut conn) = self.conns.remove(&id) {
            let _ = registry.deregister(&mut conn.stream);
            if let Some(n) = conn.node
                && self.nodes[n].paths[conn.path].active == Some(id)
            {
                self.nodes[n].paths[conn.path].active = None;
            }
        }
    }
}
