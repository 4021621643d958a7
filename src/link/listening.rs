//! Listening sockets and the sessions that go with them.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::time::Duration;

use socket2::{SockRef, Type};

use crate::config::model::Device;
use crate::gate::ListenerPermit;
use crate::snapshot::BackendPermit;

/// A bound, listening socket and where it belongs.
#[derive(Debug)]
pub struct ListenSocket {
    /// [`Listener::id`](crate::snapshot::Listener::id).
    pub listener: u32,
    /// The address it is bound to (the port that the kernel chose, if the file says 0).
    pub local: Address,
    /// Its descriptor; dropping it closes the socket unless a duplicate is open.
    pub fd: OwnedFd,
}

impl ListenSocket {
    /// The same socket behind another descriptor.
    pub fn duplicate(&self) -> std::io::Result<ListenSocket> {
        Ok(ListenSocket {
            listener: self.listener,
            local: self.local.clone(),
            fd: self.fd.try_clone()?,
        })
    }

    /// Whether it is a UDP socket.
    pub fn is_datagram(&self) -> bool {
        SockRef::from(&self.fd).r#type().is_ok_and(|kind| kind == Type::DGRAM)
    }
}

/// A UDP session that goes to another process or worker, together with the listening socket that its client sends to.
#[derive(Debug)]
pub struct HandedSession {
    /// What is known of it.
    pub state: SessionState,
    /// Its socket, connected to its backend.
    pub fd: OwnedFd,
    /// What it holds under the limits of listener and backend, if it was opened in this process: it keeps that, and has been
    /// counted already.
    pub held: Option<(ListenerPermit, BackendPermit)>,
}

/// See [`HandedSession`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct SessionState {
    /// [`socket::identity`](crate::sys::socket::identity) of the listening socket.
    pub socket: u64,
    /// Address of the client.
    pub client: SocketAddr,
    /// The address that the client sends to.
    pub local: SocketAddr,
    /// [`Backend::identity`](crate::snapshot::Backend::identity).
    pub backend: u64,
    /// Time since its first datagram.
    pub age: Duration,
    /// Datagrams from the client.
    pub requests: u32,
    /// Datagrams from the backend.
    pub replies: u32,
    /// Bytes from the client.
    pub bytes_up: u64,
    /// Bytes to the client.
    pub bytes_down: u64,
    /// How many backends were tried.
    pub attempts: u16,
    /// The backend still has to be told who the client is.
    pub introduce: bool,
    /// The kernel merges datagrams on its socket.
    pub merges: bool,
    /// The buffers of its socket are large.
    pub grown: bool,
    /// Its backend is down: it goes to another one with its next datagram.
    #[serde(default)]
    pub astray: bool,
}

/// A listener ([`Listener::id`](crate::snapshot::Listener::id)) and one of its addresses.
pub type Endpoint = (u32, Address);

/// An address that a listener is bound to, or that a client has used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum Address {
    /// An IP address and port.
    Ip(SocketAddr),
    /// The same for what comes in by one interface.
    Device(SocketAddr, Device),
    /// The path of a unix socket.
    Unix(std::path::PathBuf),
}

impl Address {
    /// The IP address and port in it.
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Address::Ip(address) | Address::Device(address, _) => Some(*address),
            Address::Unix(_) => None,
        }
    }

    /// The interface that it is limited to.
    pub fn device(&self) -> Option<&Device> {
        match self {
            Address::Device(_, device) => Some(device),
            Address::Ip(_) | Address::Unix(_) => None,
        }
    }

    /// An IP address and port, perhaps limited to an interface.
    pub fn new(address: SocketAddr, device: Option<Device>) -> Address {
        match device {
            Some(device) => Address::Device(address, device),
            None => Address::Ip(address),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Device(address, device) => write!(f, "{address}%{}", device.name),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
