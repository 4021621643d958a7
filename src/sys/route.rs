//! Where a connection to a backend goes and what leaves this host on the way: the parameters of connecting, for stream and
//! datagram sockets alike.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use socket2::Socket;

use super::option::set_int;

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

/// See the module.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Route {
    /// Where to.
    pub target: Target,
    /// Local address; `None` = the kernel's choice.
    pub source: Option<IpAddr>,
}

impl Route {
    /// Sets up a new internet socket for this route, before it connects. The port waits for connect (IP_BIND_ADDRESS_NO_PORT,
    /// ip(7)), so that the bind alone uses none up.
    pub fn prepare(&self, socket: &Socket) -> io::Result<()> {
        if let Some(ip) = self.source {
            set_int(socket.as_raw_fd(), libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT, 1)?;
            socket.bind(&SocketAddr::new(ip, 0).into())?;
        }
        Ok(())
    }
}
