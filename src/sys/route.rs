//! Where a connection to a backend goes and what leaves this host on the way: the parameters of connecting, for stream and
//! datagram sockets alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use socket2::Socket;

use super::option::{set_int, set_transparent};

/// Where to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// An internet address.
    Ip(SocketAddr),
    /// Unix stream socket.
    Unix(PathBuf),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Ip(address) => address.fmt(f),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// From where it leaves.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Source {
    /// The kernel's choice.
    #[default]
    Any,
    /// This address of this host, from a port of the kernel's choice.
    Own(IpAddr),
    /// This address of somebody else, a client, and this port; another one if it is taken, or if it is 0.
    Client(SocketAddr),
    /// The client's, who has none that could be kept: it does not leave.
    Nobody,
}

/// The parameters of one connection towards a backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where packets go.
    pub target: Target,
    /// The address that packets leave from.
    pub source: Source,
    /// Mark of its packets.
    pub mark: Option<u32>,
    /// Their class, 0 to 63.
    pub dscp: Option<u8>,
}

/// The kind of traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Streams: the kernel sees to it that no two connections have the same addresses and ports.
    Streams,
    /// Datagrams: it does not, so only one socket has a client's address and port.
    Datagrams,
}

impl Route {
    /// A route to `target` from an address of the kernel's choice.
    pub fn to(target: Target) -> Route {
        Route {
            target,
            source: Source::Any,
            mark: None,
            dscp: None,
        }
    }

    /// Sets up a new internet socket for this route, before it connects. A port that the kernel chooses waits for connect
    /// (IP_BIND_ADDRESS_NO_PORT, ip(7)), so that the bind alone uses none up.
    pub fn prepare(&self, socket: &Socket, manner: Manner) -> io::Result<()> {
        let fd = socket.as_raw_fd();
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let (Some(class), Target::Ip(to)) = (self.dscp, &self.target) {
            // The lower two bits belong to congestion notification (RFC 3168).
            let tos = i32::from(class) << 2;
            match to {
                SocketAddr::V4(_) => set_int(fd, libc::IPPROTO_IP, libc::IP_TOS, tos)?,
                SocketAddr::V6(_) => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, tos)?,
            }
        }
        let with_any_port = |ip| {
            set_int(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            socket.bind(&SocketAddr::new(ip, 0).into())
        };
        match self.source {
            Source::Any => Ok(()),
            Source::Own(ip) => with_any_port(ip),
            Source::Client(client) => {
                set_transparent(fd, client.is_ipv6())?;
                match manner {
                    _ if client.port() == 0 => with_any_port(client.ip()),
                    Manner::Streams => {
                        // Connections to other backends from the same port, and those in TIME_WAIT, do not matter here: connect
                        // compares both ends.
                        socket.set_reuse_address(true)?;
                        socket.bind(&client.into())
                    }
                    Manner::Datagrams => bind_alone(socket, client),
                }
            }
            Source::Nobody => Err(io::Error::from_raw_os_error(libc::EADDRNOTAVAIL)),
        }
    }

    /// Makes a connection in the best way that can be had: with the client's port, or with another one if that is taken.
    ///
    /// Streams find it taken while an earlier connection of the same port of the client to the same backend is in TIME_WAIT here
    /// (EADDRNOTAVAIL), and datagrams while the client has another session from it; both where something on this host listens on
    /// that port (EADDRINUSE). As with HAProxy's `usesrc clientip`, the backend sees the client's address all the same.
    pub(super) fn by_best_source<T>(&self, connect: impl Fn(&Route) -> io::Result<T>) -> io::Result<T> {
        match (connect(self), &self.source) {
            (Err(error), Source::Client(client)) if client.port() != 0 && is_taken(&error) => {
                let any_port = SocketAddr::new(client.ip(), 0);
                connect(&Route {
                    source: Source::Client(any_port),
                    ..self.clone()
                })
            }
            (outcome, _) => outcome,
        }
    }
}

fn is_taken(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL))
}

/// Binds a datagram socket to an address and port that no other one may have, or only those that were given up.
fn bind_alone(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    match socket.bind(&client.into()) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => {
            socket.set_reuse_address(true)?;
            socket.bind(&client.into())?;
            socket.set_reuse_address(false)
        }
        outcome => outcome,
    }
}

/// Whether this process may mark packets (CAP_NET_ADMIN, or CAP_NET_RAW since Linux 5.17).
pub fn may_mark() -> io::Result<()> {
    Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?.set_mark(1)
}

/// Whether this process may make sockets with addresses that are not this host's (CAP_NET_RAW or CAP_NET_ADMIN).
pub fn may_be_transparent() -> io::Result<()> {
    let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    set_transparent(socket.as_raw_fd(), false)
}
