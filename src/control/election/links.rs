//! Beat connections: one kept TCP connection a pair of nodes, dialled by the node whose name comes first.
//!
//! # How it works
//! Whoever dials tries once a beat until a connection is authenticated, and again as soon as the present one has been silent
//! for a while, because TCP's own retransmission would be seconds late after a broken link is mended. The first connection
//! on which a frame verifies becomes *the* connection of the pair; the one before it is closed with a farewell.
//!
//! A connection that ends without a farewell is a hint, not a verdict: something between the nodes could have reset it. The
//! node is asked again at once; when its port is closed its process has ended ([`News::Gone`]); when it answers under
//! another boot number, likewise; when nothing answers, silence decides.
//!
//! # Bounds
//! At most [`STRANGERS_MAX`] connections wait to be authenticated, each for [`PATIENCE`]; when there are more, the oldest one
//! from an address that is not a node's goes first. A connection buffers one frame in, and what the kernel did not take out.
//! Beats that cannot be sent are not queued: the next one says it all.

use std::collections::HashMap;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::net::{TcpListener, TcpStream};
use mio::{Interest, Registry, Token};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::failover::NodeIx;
use crate::failover::beat::{Hello, Message, Rejected, Side, Signer, Verifier, WireClaim, session};

/// Connections that may wait to be authenticated.
pub const STRANGERS_MAX: usize = 64;
/// How long each may wait.
pub const PATIENCE: Duration = Duration::from_secs(1);
/// Attempts to reach one node that may be under way.
const DIALS_MAX: usize = 6;
/// Connections accepted in one round.
const ACCEPTS_MAX: usize = 64;
/// Bytes read from one connection in one round.
const READ_MAX: usize = 128 * 1024;

/// What a link has to tell.
#[derive(Debug)]
pub enum News {
    /// A verified beat.
    Beat(NodeIx, Vec<WireClaim>),
    /// The node's process has ended.
    Gone(NodeIx),
    /// A connection of this node was authenticated: it should hear from us at once.
    Linked(NodeIx),
    /// Something was refused.
    Rejected(Rejected, Option<SocketAddr>),
}

/// A node as the links know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Name in the configuration.
    pub name: String,
    /// Where it listens for beats.
    pub address: SocketAddr,
}

/// What does not change while the links live.
#[derive(Debug, Clone)]
pub struct Identity {
    /// All nodes, this one included.
    pub nodes: Vec<Peer>,
    /// This node.
    pub me: NodeIx,
    /// Differs for every start of the process; survives an upgrade.
    pub boot: u64,
    /// Shared by all nodes.
    pub secret: Vec<u8>,
    /// Period of beats, and of attempts.
    pub beat: Duration,
    /// Silence after which a node counts as dead.
    pub dead_after: Duration,
}

struct Conn {
    stream: TcpStream,
    side: Side,
    /// Known from the start for those that we dial.
    node: Option<NodeIx>,
    remote: Option<SocketAddr>,
    opened: Instant,
    connected: bool,
    /// Only made to see whether the port is open.
    probe: bool,
    ours: Hello,
    boot: u64,
    hello: Vec<u8>,
    session: Option<(Signer, Verifier)>,
    authenticated: bool,
    farewell: bool,
    out: Vec<u8>,
}

#[derive(Default)]
struct Node {
    /// The authenticated connection.
    active: Option<usize>,
    heard: Option<Instant>,
    boot: Option<u64>,
    next_dial: Option<Instant>,
    /// The connection ended without a farewell: ask at every tick until then whether the port is still open. Once is not
    /// enough, because the sockets of a process that was killed do not close at the same instant.
    ask_until: Option<Instant>,
}

/// All beat connections of this process.
pub struct Links {
    identity: Identity,
    listener: TcpListener,
    listener_token: Token,
    accept_more: bool,
    next: usize,
    conns: HashMap<usize, Conn>,
    nodes: Vec<Node>,
    unfinished: Vec<usize>,
}

/// Binds the beat address; it need not be on an interface yet.
pub fn listen(address: SocketAddr) -> io::Result<OwnedFd> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM.nonblocking(),
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    } else {
        socket.set_freebind_v4(true)?;
    }
    socket.bind(&SockAddr::from(address))?;
    socket.listen(128)?;
    Ok(socket.into())
}

impl Links {
    /// Takes over a listening socket. Tokens from `first` upwards are used.
    pub fn new(registry: &Registry, listener: OwnedFd, first: usize, identity: Identity) -> io::Result<Links> {
        let listener = std::net::TcpListener::from(listener);
        listener.set_nonblocking(true)?;
        let mut listener = TcpListener::from_std(listener);
        let listener_token = Token(first);
        registry.register(&mut listener, listener_token, Interest::READABLE)?;
        let nodes = identity.nodes.iter().map(|_| Node::default()).collect();
        Ok(Links {
            identity,
            listener,
            listener_token,
            accept_more: true,
            next: first + 1,
            conns: HashMap::new(),
            nodes,
            unfinished: Vec::new(),
        })
    }

    /// Closes every connection and gives the listening socket back.
    ///
    /// With a farewell the peers know that we live on; without one they ask, find the port closed, and know at once that we
    /// do not.
    pub fn close(mut self, registry: &Registry, farewell: bool) -> OwnedFd {
        if farewell {
            self.part_all(registry);
        }
        let _ = registry.deregister(&mut self.listener);
        std::net::TcpListener::from(self.listener).into()
    }

    /// Starts over with other nodes, another secret or, if given, another listening socket.
    pub fn rebuild(&mut self, registry: &Registry, listener: Option<OwnedFd>, identity: Identity) -> io::Result<()> {
        self.part_all(registry);
        if let Some(listener) = listener {
            let mut listener = TcpListener::from_std(std::net::TcpListener::from(listener));
            let token = Token(self.next);
            registry.register(&mut listener, token, Interest::READABLE)?;
            let _ = registry.deregister(&mut self.listener);
            (self.listener, self.listener_token) = (listener, token);
            self.next += 1;
        }
        self.nodes = identity.nodes.iter().map(|_| Node::default()).collect();
        self.identity = identity;
        self.accept_more = true;
        Ok(())
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
    pub fn tick(&mut self, registry: &Registry, now: Instant, news: &mut Vec<News>) {
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
        for n in 0..self.nodes.len() {
            let node = &self.nodes[n];
            if node.active.is_none() && node.ask_until.is_some_and(|until| now < until) {
                self.dial(registry, now, n, !self.dials(n), news);
                continue;
            }
            if self.nodes[n].next_dial.is_some_and(|at| at > now) {
                continue;
            }
            self.nodes[n].next_dial = Some(now + self.identity.beat);
            let silent = self.nodes[n].active.is_none()
                || self.nodes[n]
                    .heard
                    .is_none_or(|at| now.saturating_duration_since(at) > 3 * self.identity.beat);
            if self.dials(n) && silent {
                self.dial(registry, now, n, false, news);
            }
        }
    }

    /// The node whose name comes first dials.
    fn dials(&self, n: NodeIx) -> bool {
        let nodes = &self.identity.nodes;
        n != self.identity.me && nodes[self.identity.me].name < nodes[n].name
    }

    fn dial(&mut self, registry: &Registry, now: Instant, n: NodeIx, probe: bool, news: &mut Vec<News>) {
        let under_way = self
            .conns
            .values()
            .filter(|c| c.node == Some(n) && !c.authenticated && c.side == Side::Dialer)
            .count();
        if under_way >= DIALS_MAX {
            return;
        }
        let remote = self.identity.nodes[n].address;
        let from = self.identity.nodes[self.identity.me].address.ip();
        match connect(from, remote, self.identity.dead_after) {
            Ok(stream) => {
                let mut conn = self.conn(stream, Side::Dialer, Some(n), Some(remote), now);
                conn.probe = probe;
                self.insert(registry, conn);
            }
            Err(e) if e.kind() == ErrorKind::ConnectionRefused => self.refused(n, news),
            // No route, no neighbour, no port: silence decides.
            Err(_) => {}
        }
    }

    fn conn(
        &self,
        stream: TcpStream,
        side: Side,
        node: Option<NodeIx>,
        remote: Option<SocketAddr>,
        now: Instant,
    ) -> Conn {
        let mut nonce = [0; 16];
        // The kernel's generator does not fail once it is seeded, and it is before user space runs services.
        getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
        let ours = Hello {
            name: self.identity.nodes[self.identity.me].name.clone(),
            boot: self.identity.boot,
            nonce,
        };
        Conn {
            stream,
            side,
            node,
            remote,
            opened: now,
            connected: side == Side::Acceptor,
            probe: false,
            ours,
            boot: 0,
            hello: Vec::new(),
            session: None,
            authenticated: false,
            farewell: false,
            out: Vec::new(),
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
        if token == self.listener_token {
            self.accept_more = true;
        } else {
            self.serve(registry, now, token.0, news);
        }
    }

    /// Work that was left over.
    pub fn proceed(&mut self, registry: &Registry, now: Instant, news: &mut Vec<News>) {
        if self.accept_more {
            self.accept(registry, now);
        }
        for id in std::mem::take(&mut self.unfinished) {
            self.serve(registry, now, id, news);
        }
    }

    fn accept(&mut self, registry: &Registry, now: Instant) {
        for _ in 0..ACCEPTS_MAX {
            match self.listener.accept() {
                Ok((stream, remote)) => {
                    let _ = stream.set_nodelay(true);
                    let conn = self.conn(stream, Side::Acceptor, None, Some(remote), now);
                    if let Some(id) = self.insert(registry, conn) {
                        self.unfinished.push(id);
                    }
                    self.evict(registry);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.accept_more = false;
                    return;
                }
                Err(e) if e.kind() == ErrorKind::ConnectionAborted => {}
                // Out of descriptors: again at the next tick.
                Err(_) => {
                    self.accept_more = false;
                    return;
                }
            }
        }
    }

    /// Keeps the number of strangers bounded.
    fn evict(&mut self, registry: &Registry) {
        let known = |ip: IpAddr| self.identity.nodes.iter().any(|n| n.address.ip() == ip);
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
                    let (node, refused) = (conn.node, e.kind() == ErrorKind::ConnectionRefused);
                    self.drop_conn(registry, id);
                    if let (Some(n), true) = (node, refused) {
                        self.refused(n, news);
                    }
                    return;
                }
            }
            conn.connected = true;
            if conn.probe {
                // The port is open; that was the question.
                return self.drop_conn(registry, id);
            }
            let _ = conn.stream.set_nodelay(true);
            conn.out = conn.ours.encode();
        }
        if let Err(end) = self.pump(registry, now, id, news) {
            self.ended(registry, now, id, end, news);
        }
    }

    fn pump(&mut self, registry: &Registry, now: Instant, id: usize, news: &mut Vec<News>) -> Result<(), End> {
        self.flush(id)?;
        let mut chunk = [0; 16 * 1024];
        let mut total = 0;
        loop {
            let Some(conn) = self.conns.get_mut(&id) else {
                return Ok(());
            };
            match conn.stream.read(&mut chunk) {
                Ok(0) => return Err(End::Closed),
                Ok(n) => {
                    total += n;
                    self.take(registry, now, id, &chunk[..n], news)?;
                    if total > READ_MAX {
                        self.unfinished.push(id);
                        return Ok(());
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Closed),
            }
        }
    }

    fn take(
        &mut self,
        registry: &Registry,
        now: Instant,
        id: usize,
        bytes: &[u8],
        news: &mut Vec<News>,
    ) -> Result<(), End> {
        let conn = self.conns.get_mut(&id).ok_or(End::Closed)?;
        if conn.session.is_none() {
            conn.hello.extend_from_slice(bytes);
            let Some((hello, length)) = Hello::decode(&conn.hello)? else {
                return Ok(());
            };
            let node = self
                .identity
                .nodes
                .iter()
                .position(|n| n.name == hello.name)
                .filter(|n| *n != self.identity.me && conn.node.is_none_or(|c| c == *n))
                .ok_or(Rejected::UnknownNode)?;
            conn.node = Some(node);
            conn.boot = hello.boot;
            conn.session = Some(session(&self.identity.secret, conn.side, &conn.ours, &hello));
            if conn.side == Side::Acceptor {
                conn.out = conn.ours.encode();
            }
            let rest = conn.hello.split_off(length);
            self.flush(id)?;
            // Each end authenticates itself with its first beat.
            news.push(News::Linked(node));
            return self.verify(registry, now, id, &rest, news);
        }
        self.verify(registry, now, id, bytes, news)
    }

    fn verify(
        &mut self,
        registry: &Registry,
        now: Instant,
        id: usize,
        bytes: &[u8],
        news: &mut Vec<News>,
    ) -> Result<(), End> {
        let conn = self.conns.get_mut(&id).ok_or(End::Closed)?;
        let node = conn.node.ok_or(End::Closed)?;
        if let Some((_, verifier)) = &mut conn.session {
            verifier.feed(bytes);
        }
        loop {
            let conn = self.conns.get_mut(&id).ok_or(End::Closed)?;
            let Some((_, verifier)) = &mut conn.session else {
                return Ok(());
            };
            let Some(message) = verifier.message()? else {
                return Ok(());
            };
            if !std::mem::replace(&mut conn.authenticated, true) {
                let boot = conn.boot;
                self.adopt(registry, id, node, boot, news);
            }
            match message {
                Message::Beat(claims) => {
                    self.nodes[node].heard = Some(now);
                    news.push(News::Beat(node, claims));
                }
                Message::Farewell => {
                    if let Some(conn) = self.conns.get_mut(&id) {
                        conn.farewell = true;
                    }
                }
            }
        }
    }

    /// A connection has proved itself: it replaces the present one.
    fn adopt(&mut self, registry: &Registry, id: usize, n: NodeIx, boot: u64, news: &mut Vec<News>) {
        if self.nodes[n].boot.replace(boot).is_some_and(|b| b != boot) {
            news.push(News::Gone(n));
        }
        if let Some(old) = self.nodes[n].active.replace(id)
            && old != id
        {
            self.part(registry, old);
        }
        let others: Vec<usize> = self
            .conns
            .iter()
            .filter(|(other, c)| **other != id && c.node == Some(n) && c.side == Side::Dialer && !c.authenticated)
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
        let (node, farewell, authenticated) = (conn.node, conn.farewell, conn.authenticated);
        let remote = conn.remote;
        if let End::Rejected(why) = end {
            news.push(News::Rejected(why, remote));
        }
        let active = node.is_some_and(|n| self.nodes[n].active == Some(id));
        self.drop_conn(registry, id);
        if let (Some(n), true) = (node, active && authenticated) {
            self.nodes[n].next_dial = Some(now);
            if !farewell {
                self.nodes[n].ask_until = Some(now + self.identity.dead_after);
                // Has the process ended, or only the connection? Ask.
                let probe = !self.dials(n);
                self.dial(registry, now, n, probe, news);
            }
        }
    }

    fn refused(&mut self, n: NodeIx, news: &mut Vec<News>) {
        if self.nodes[n].active.is_none() {
            news.push(News::Gone(n));
        }
    }

    // ---- sending ----

    /// Sends a beat to one node, or to all.
    pub fn beat(
        &mut self,
        registry: &Registry,
        now: Instant,
        to: Option<NodeIx>,
        claims: &[WireClaim],
        news: &mut Vec<News>,
    ) {
        let message = Message::Beat(claims.to_vec());
        let ids: Vec<usize> = self
            .conns
            .iter()
            .filter(|(id, c)| {
                let wanted = c.node.is_some_and(|n| to.is_none_or(|t| t == n));
                let current = c
                    .node
                    .is_some_and(|n| self.nodes[n].active == Some(**id) || !c.authenticated);
                wanted && current && c.session.is_some() && c.out.is_empty()
            })
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(conn) = self.conns.get_mut(&id)
                && let Some((signer, _)) = &mut conn.session
            {
                conn.out = signer.frame(&message);
            }
            if let Err(end) = self.flush(id) {
                self.ended(registry, now, id, end, news);
            }
        }
    }

    fn flush(&mut self, id: usize) -> Result<(), End> {
        let Some(conn) = self.conns.get_mut(&id) else {
            return Ok(());
        };
        while !conn.out.is_empty() {
            match conn.stream.write(&conn.out) {
                Ok(n) => {
                    conn.out.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(())
    }

    /// Closes a connection and says that we live.
    fn part(&mut self, registry: &Registry, id: usize) {
        if let Some(conn) = self.conns.get_mut(&id)
            && conn.out.is_empty()
            && let Some((signer, _)) = &mut conn.session
        {
            conn.out = signer.frame(&Message::Farewell);
            let _ = self.flush(id);
        }
        self.drop_conn(registry, id);
    }

    fn drop_conn(&mut self, registry: &Registry, id: usize) {
        if let Some(mut conn) = self.conns.remove(&id) {
            let _ = registry.deregister(&mut conn.stream);
            if let Some(n) = conn.node
                && self.nodes[n].active == Some(id)
            {
                self.nodes[n].active = None;
            }
        }
    }
}

/// Why a connection is of no use any more.
enum End {
    Closed,
    Rejected(Rejected),
}

impl From<Rejected> for End {
    fn from(why: Rejected) -> End {
        End::Rejected(why)
    }
}

/// Begins to connect, from our own node's address if this host has it.
pub fn connect(from: IpAddr, to: SocketAddr, user_timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Behind address translation our configured address is not on this host; then the route decides.
    let _ = socket.bind(&SockAddr::from(SocketAddr::new(from, 0)));
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_user_timeout(Some(4 * user_timeout))?;
    // Class 6, network control: beats are not to wait behind the traffic that they protect.
    let _ = match to {
        SocketAddr::V4(_) => socket.set_tos_v4(0xc0),
        SocketAddr::V6(_) => socket.set_tclass_v6(0xc0),
    };
    match socket.connect(&SockAddr::from(to)) {
        Ok(()) => {}
        Err(e) if e.raw_os_error() == Some(libc::EINPROGRESS) => {}
        Err(e) => return Err(e),
    }
    Ok(TcpStream::from_std(socket.into()))
}
