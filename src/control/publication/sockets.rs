//! Binding listening sockets: everything a configuration asks for, before anything of it is published.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use super::inherited::{InheritedSocket, InheritedSockets};
use crate::config::model::{Bind, Keepalive, Listener, Protocol};
use crate::link::{Address, Endpoint, ListenSocket};
use crate::sys::socket::Place;
use crate::sys::{socket, udp};
use nix::errno::Errno;

/// A listening socket that could not be had.
#[derive(Debug, thiserror::Error)]
#[error("listener {listener}: cannot bind {address}: {error}{hint}")]
pub struct BindError {
    listener: String,
    address: String,
    error: std::io::Error,
    hint: &'static str,
}

/// One address of a listener, bound: a socket for each worker (TCP and UDP share the port among them), or one in all
/// (unix sockets cannot).
#[derive(Debug)]
pub struct Bound {
    /// Where, with the port that the kernel chose.
    pub local: Address,
    /// One for each worker, or one.
    pub sockets: Vec<ListenSocket>,
    /// No other socket can be bound to the same address: a unix socket, or one that somebody else has bound, without
    /// SO_REUSEPORT or as another user.
    pub is_alone: bool,
    /// Another process has bound it.
    pub is_inherited: bool,
}

/// Listening sockets by position among the workers.
pub type Assigned = BTreeMap<usize, Vec<ListenSocket>>;

/// The addresses that a listener asks for, ranges written out.
pub fn wanted(listener: &Listener) -> Vec<Address> {
    let addresses = listener.bind.iter().flat_map(|bind| match bind {
        Bind::Ip {
            ip,
            scope,
            ports,
            device,
        } => ports
            .clone()
            .map(|port| {
                let address: SocketAddr = match ip {
                    IpAddr::V6(ip) => SocketAddrV6::new(*ip, port, 0, *scope).into(),
                    IpAddr::V4(ip) => (*ip, port).into(),
                };
                Address::new(address, device.clone())
            })
            .collect::<Vec<_>>(),
        Bind::Unix(path) => vec![Address::Unix(path.clone())],
    });
    addresses.collect()
}

impl BindError {
    /// For another reason than bind(2).
    pub fn new(listener: &Listener, address: &Address, error: std::io::Error) -> BindError {
        BindError {
            listener: listener.name.clone(),
            address: address.to_string(),
            error,
            hint: "",
        }
    }
}

/// Binds one address for `workers` workers, as far as it was not inherited.
pub fn bind(
    listener: &Listener,
    id: u32,
    wanted: &Address,
    workers: usize,
    from_elsewhere: &mut InheritedSockets,
) -> Result<Bound, BindError> {
    let refused = |error: std::io::Error| BindError {
        listener: listener.name.clone(),
        address: wanted.to_string(),
        hint: hint(&error, wanted),
        error,
    };
    let moves = |ip: IpAddr| listener.virtual_addresses.contains(&ip);
    let open = |local: &Address| {
        let address = match local {
            Address::Unix(path) => return socket::listen_unix(path, listener.backlog),
            Address::Ip(address) | Address::Device(address, _) => *address,
        };
        let place = Place {
            address,
            device: local.device().map(|device| device.index),
            moves: moves(address.ip()),
        };
        match listener.protocol {
            Protocol::Tcp => {
                let keepalive = listener.keepalive.map(Keepalive::seconds_and_probes);
                socket::listen_tcp(place, listener.backlog, keepalive)
            }
            Protocol::Udp => udp::listen(place, udp::LISTEN_BUFFER).map(|listening| listening.fd),
        }
    };
    let mut inherited = from_elsewhere.claim(listener, wanted);
    let is_inherited = !inherited.is_empty();
    if !is_inherited {
        let fd = open(wanted).map_err(refused)?;
        let local = match wanted {
            unix @ Address::Unix(_) => unix.clone(),
            internet => Address::new(socket::local_address(&fd).map_err(refused)?, internet.device().cloned()),
        };
        inherited.push(InheritedSocket { local, fd });
    }
    let local = inherited[0].local.clone();
    let mut is_alone = match local {
        Address::Unix(_) => true,
        _ => !socket::shares_port(&inherited[0].fd).map_err(refused)?,
    };
    let mut sockets: Vec<OwnedFd> = inherited.into_iter().map(|socket| socket.fd).collect();
    while sockets.len() < workers && !is_alone {
        match open(&local) {
            Ok(fd) => sockets.push(fd),
            // SO_REUSEPORT is for sockets of one user, and systemd has bound this one as root.
            Err(error) if is_inherited && error.kind() == ErrorKind::AddrInUse => is_alone = true,
            Err(error) => return Err(refused(error)),
        }
    }
    let socket = |fd| ListenSocket {
        listener: id,
        local: local.clone(),
        fd,
    };
    Ok(Bound {
        sockets: sockets.into_iter().map(socket).collect(),
        local,
        is_alone,
        is_inherited,
    })
}

/// Assigns sockets to workers, by position: the sockets of one address to different workers, beginning with the newest (the
/// others have theirs already); addresses with one socket take turns.
pub fn assign(bound: Vec<Bound>, workers: usize) -> Assigned {
    let mut assigned = Assigned::new();
    for (rotation, bound) in bound.into_iter().enumerate() {
        let sockets = bound.sockets;
        let first = match bound.is_alone {
            false => workers.saturating_sub(sockets.len()),
            true => rotation,
        };
        for (ix, socket) in sockets.into_iter().enumerate() {
            assigned.entry((first + ix) % workers).or_default().push(socket);
        }
    }
    assigned
}

/// Assigns sockets that all workers have let go: those of one address to as many workers as there are, in whatever order they
/// come.
pub fn reassign(sockets: Vec<ListenSocket>, workers: usize) -> Assigned {
    let mut by_endpoint: HashMap<Endpoint, usize> = HashMap::new();
    let mut assigned = Assigned::new();
    for socket in sockets {
        let known = by_endpoint.len();
        // Addresses with fewer sockets than there are workers (a unix socket has one) do not all begin with the same worker.
        let next = by_endpoint
            .entry((socket.listener, socket.local.clone()))
            .or_insert(known);
        assigned.entry(*next % workers.max(1)).or_default().push(socket);
        *next += 1;
    }
    assigned
}

fn hint(error: &std::io::Error, wanted: &Address) -> &'static str {
    match error.kind() {
        _ if error.raw_os_error() == Some(Errno::ENODEV as i32) => {
            " (this machine has no such interface; `ip link` lists those that it has)"
        }
        ErrorKind::PermissionDenied if wanted.device().is_some() => {
            " (an interface takes Linux 5.7 or CAP_NET_RAW; ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE)"
        }
        ErrorKind::AddrInUse => " (another program has this address; `ss -lnp` shows which)",
        ErrorKind::AddrNotAvailable => {
            " (no interface has this address; if it comes later, set net.ipv4.ip_nonlocal_bind=1 or bind the wildcard)"
        }
        ErrorKind::PermissionDenied => " (ports below net.ipv4.ip_unprivileged_port_start need CAP_NET_BIND_SERVICE)",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Workers answer one after the other with all that they have: two addresses, a socket of each for each of two workers, and
    /// a unix socket that the second one has.
    ///
    /// Seen to fail with sockets assigned by their position in the list, as they once were: each worker had both of one address.
    #[test]
    fn sockets_that_come_back_are_assigned_so_that_each_worker_has_one_of_each_address() {
        let socket = |port: u16| ListenSocket {
            listener: 1,
            local: Address::Ip(([127, 0, 0, 1], port).into()),
            fd: std::fs::File::open("/dev/null").unwrap().into(),
        };
        let unix = ListenSocket {
            local: Address::Unix("/run/a".into()),
            ..socket(0)
        };
        let back = vec![socket(1), socket(2), socket(1), socket(2), unix];
        let assigned = reassign(back, 2);
        for port in [1, 2] {
            let local = socket(port).local;
            let having: Vec<usize> = assigned
                .iter()
                .filter(|(_, sockets)| sockets.iter().any(|socket| socket.local == local))
                .map(|(worker, _)| *worker)
                .collect();
            assert_eq!(having, [0, 1], "port {port}");
        }
        assert_eq!(assigned.values().map(Vec::len).sum::<usize>(), 5);
        assert_eq!(reassign(vec![socket(1)], 0).len(), 1, "nothing is lost");
    }
}
