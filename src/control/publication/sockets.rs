//! Binding listening sockets: everything a configuration asks for, before anything of it is published.

use std::collections::{BTreeMap, HashMap};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddrV6};
use std::os::fd::OwnedFd;

use super::inherited::{InheritedSocket, InheritedSockets};
use crate::config::model::{Bind, Listener, Protocol};
use crate::link::{ListenSocket, Local};
use crate::sys::{socket, udp};

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
    pub local: Local,
    /// One for each worker, or one.
    pub sockets: Vec<ListenSocket>,
    /// No other socket can be bound to the same address: a unix socket, or one that somebody else has bound, without
    /// SO_REUSEPORT or as another user.
    pub is_alone: bool,
    /// Another process has bound it.
    pub is_inherited: bool,
}

/// Listening sockets by position among the workers.
pub type Dealt = BTreeMap<usize, Vec<ListenSocket>>;

/// The addresses that a listener asks for, ranges written out.
pub fn wanted(listener: &Listener) -> Vec<Local> {
    let addresses = listener.bind.iter().flat_map(|bind| match bind {
        Bind::Ip { ip, scope, ports } => ports
            .clone()
            .map(|port| match ip {
                IpAddr::V6(ip) => Local::Ip(SocketAddrV6::new(*ip, port, 0, *scope).into()),
                IpAddr::V4(ip) => Local::Ip((*ip, port).into()),
            })
            .collect::<Vec<_>>(),
        Bind::Unix(path) => vec![Local::Unix(path.clone())],
    });
    addresses.collect()
}

impl BindError {
    /// For another reason than bind(2).
    pub fn new(listener: &Listener, address: &Local, error: std::io::Error) -> BindError {
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
    wanted: &Local,
    workers: usize,
    from_elsewhere: &mut InheritedSockets,
) -> Result<Bound, BindError> {
    let refused = |error: std::io::Error| BindError {
        listener: listener.name.clone(),
        address: wanted.to_string(),
        hint: hint(&error),
        error,
    };
    let open = |local: &Local| match (local, listener.protocol) {
        (Local::Ip(address), Protocol::Tcp) => socket::listen_tcp(*address),
        (Local::Ip(address), Protocol::Udp) => udp::listen(*address, udp::LISTEN_BUFFER).map(|listening| listening.fd),
        (Local::Unix(path), _) => socket::listen_unix(path),
    };
    let mut inherited = from_elsewhere.claim(listener, wanted);
    let is_inherited = !inherited.is_empty();
    if !is_inherited {
        let fd = open(wanted).map_err(refused)?;
        let local = match wanted {
            Local::Ip(_) => Local::Ip(socket::local_address(&fd).map_err(refused)?),
            unix @ Local::Unix(_) => unix.clone(),
        };
        inherited.push(InheritedSocket { local, fd });
    }
    let local = inherited[0].local.clone();
    let mut is_alone = match local {
        Local::Ip(_) => !socket::shares_port(&inherited[0].fd).map_err(refused)?,
        Local::Unix(_) => true,
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

/// Deals sockets out to workers, by position: the sockets of one address go to different workers, the newest workers
/// first served (the others have theirs already); those that stand alone go round.
pub fn deal(bound: Vec<Bound>, workers: usize) -> Dealt {
    let mut dealt = Dealt::new();
    for (rotation, bound) in bound.into_iter().enumerate() {
        let sockets = bound.sockets;
        let first = match bound.is_alone {
            false => workers.saturating_sub(sockets.len()),
            true => rotation,
        };
        for (ix, socket) in sockets.into_iter().enumerate() {
            dealt.entry((first + ix) % workers).or_default().push(socket);
        }
    }
    dealt
}

/// Deals sockets out again that all workers have let go: those of one address to as many workers as there are, whatever the
/// order in which they come.
pub fn deal_again(sockets: Vec<ListenSocket>, workers: usize) -> Dealt {
    let mut by_place: HashMap<(u32, Local), usize> = HashMap::new();
    let mut dealt = Dealt::new();
    for socket in sockets {
        let places = by_place.len();
        // Addresses with fewer sockets than there are workers (a unix socket has one) do not all begin with the same worker.
        let next = by_place
            .entry((socket.listener, socket.local.clone()))
            .or_insert(places);
        dealt.entry(*next % workers.max(1)).or_default().push(socket);
        *next += 1;
    }
    dealt
}

fn hint(error: &std::io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::AddrInUse => " (another program has this address; `ss -lnp` shows which)",
        ErrorKind::AddrNotAvailable => {
            " (no interface has this address; for a VIP set net.ipv4.ip_nonlocal_bind=1 or bind the wildcard)"
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
    /// Break tried: dealing by position in the list, which is how it was: each worker had both sockets of one address.
    #[test]
    fn sockets_that_come_back_are_dealt_so_that_each_worker_has_one_of_each_address() {
        let socket = |port: u16| ListenSocket {
            listener: 1,
            local: Local::Ip(([127, 0, 0, 1], port).into()),
            fd: std::fs::File::open("/dev/null").unwrap().into(),
        };
        let unix = ListenSocket {
            local: Local::Unix("/run/a".into()),
            ..socket(0)
        };
        let back = vec![socket(1), socket(2), socket(1), socket(2), unix];
        let dealt = deal_again(back, 2);
        for port in [1, 2] {
            let local = socket(port).local;
            let having: Vec<usize> = dealt
                .iter()
                .filter(|(_, sockets)| sockets.iter().any(|socket| socket.local == local))
                .map(|(worker, _)| *worker)
                .collect();
            assert_eq!(having, [0, 1], "port {port}");
        }
        assert_eq!(dealt.values().map(Vec::len).sum::<usize>(), 5);
        assert_eq!(deal_again(vec![socket(1)], 0).len(), 1, "nothing is lost");
    }
}
