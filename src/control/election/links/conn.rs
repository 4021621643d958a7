//! One beat connection: handshake, frames in, frames out.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use super::Identity;
use crate::failover::NodeIx;
use crate::failover::beat::{Hello, Message, Rejected, Side, Signer, Verifier, signer, verifier};

/// Bytes read from one connection in one round.
const READ_MAX: usize = 128 * 1024;

/// Why a connection is of no use any more.
pub(super) enum End {
    Closed,
    Rejected(Rejected),
}

impl From<Rejected> for End {
    fn from(why: Rejected) -> End {
        End::Rejected(why)
    }
}

pub(super) struct Conn {
    pub stream: TcpStream,
    pub side: Side,
    /// Known from the start for those that we dial.
    pub node: Option<NodeIx>,
    pub path: usize,
    /// Index of our own address, for those that we accepted.
    pub local: usize,
    pub remote: Option<SocketAddr>,
    pub opened: Instant,
    pub connected: bool,
    /// Only made to see whether the port is open.
    pub probe: bool,
    /// Everything signed that we read was signed after this.
    pub challenged: Instant,
    pub boot: u64,
    pub authenticated: bool,
    pub farewell: bool,
    /// The secrets in force when it was made.
    pub epoch: u64,
    /// The secret that a dialer signs with.
    pub secret: usize,
    ours: Hello,
    theirs: Option<Hello>,
    hello: Vec<u8>,
    signer: Option<Signer>,
    verifier: Option<Verifier>,
    out: Vec<u8>,
}

impl Conn {
    pub fn new(
        identity: &Identity,
        stream: TcpStream,
        side: Side,
        node: Option<NodeIx>,
        remote: Option<SocketAddr>,
        now: Instant,
    ) -> Conn {
        let mut nonce = [0; 16];
        // The kernel's generator does not fail once it is seeded, and it is before user space runs services.
        getrandom::fill(&mut nonce).expect("the kernel gives random bytes");
        Conn {
            stream,
            side,
            node,
            path: 0,
            local: 0,
            remote,
            opened: now,
            connected: side == Side::Acceptor,
            probe: false,
            challenged: now,
            boot: 0,
            authenticated: false,
            farewell: false,
            epoch: 0,
            secret: 0,
            ours: Hello {
                name: identity.nodes[identity.me].name.clone(),
                boot: identity.boot,
                nonce,
            },
            theirs: None,
            hello: Vec::new(),
            signer: None,
            verifier: None,
            out: Vec::new(),
        }
    }

    /// The other end has taken the connection: a dialer speaks first.
    pub fn begin(&mut self) {
        let _ = self.stream.set_nodelay(true);
        self.out = self.ours.encode();
    }

    /// Reads what is there; whether there may be more.
    pub fn read(&mut self, identity: &Identity, messages: &mut Vec<Message>) -> Result<bool, End> {
        self.flush()?;
        let mut chunk = [0; 16 * 1024];
        let mut total = 0;
        loop {
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(End::Closed),
                Ok(n) => {
                    total += n;
                    self.take(identity, &chunk[..n], messages)?;
                    if total > READ_MAX {
                        return Ok(true);
                    }
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Closed),
            }
        }
    }

    fn take(&mut self, identity: &Identity, bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), End> {
        if self.verifier.is_some() {
            return self.verify(identity, bytes, messages);
        }
        self.hello.extend_from_slice(bytes);
        let Some((hello, length)) = Hello::decode(&self.hello)? else {
            return Ok(());
        };
        let node = identity
            .nodes
            .iter()
            .position(|n| n.name == hello.name)
            .filter(|n| *n != identity.me && self.node.is_none_or(|c| c == *n))
            .ok_or(Rejected::UnknownNode)?;
        self.node = Some(node);
        self.boot = hello.boot;
        self.verifier = Some(verifier(&identity.secrets, self.side, &self.ours, &hello));
        match self.side {
            Side::Dialer => {
                let secret = &identity.secrets[self.secret];
                self.signer = Some(signer(secret, self.side, &self.ours, &hello));
            }
            // Nothing signed before the dialer has shown that it knows a secret.
            Side::Acceptor => self.out = self.ours.encode(),
        }
        self.theirs = Some(hello);
        let rest = self.hello.split_off(length);
        self.flush()?;
        self.verify(identity, &rest, messages)
    }

    fn verify(&mut self, identity: &Identity, bytes: &[u8], messages: &mut Vec<Message>) -> Result<(), End> {
        let Some(verifier) = &mut self.verifier else {
            return Ok(());
        };
        verifier.feed(bytes);
        while let Some(message) = verifier.message()? {
            messages.push(message);
        }
        if let (None, Some(secret), Some(theirs)) = (&self.signer, verifier.chosen(), &self.theirs) {
            let secret = &identity.secrets[secret];
            self.signer = Some(signer(secret, self.side, &self.ours, theirs));
        }
        Ok(())
    }

    /// Whether something signed can be sent.
    pub fn speaks(&self) -> bool {
        self.signer.is_some()
    }

    /// Sends a message, unless one waits already: the next one says it all.
    pub fn send(&mut self, message: &Message) -> Result<(), End> {
        if self.out.is_empty()
            && let Some(signer) = &mut self.signer
        {
            self.out.extend(signer.frame(message));
        }
        self.flush()
    }

    pub fn flush(&mut self) -> Result<(), End> {
        while !self.out.is_empty() {
            match self.stream.write(&self.out) {
                Ok(n) => {
                    self.out.drain(..n);
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(_) => return Err(End::Closed),
            }
        }
        Ok(())
    }
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

/// Begins to connect, from our own node's address if it is given and this host has it.
pub fn connect(from: Option<IpAddr>, to: SocketAddr, user_timeout: Duration) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(to), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    // Behind address translation our configured address is not on this host; then the route decides.
    if let Some(from) = from {
        let _ = socket.bind(&SockAddr::from(SocketAddr::new(from, 0)));
    }
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
