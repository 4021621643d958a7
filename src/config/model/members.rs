//! Where members come from that the configuration does not list.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::{Backend, BackendAddress, ClientAddress, Config, Engine, EtcdServers, Listener, Pool};

/// `pools.NAME.resolver`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Resolver {
    /// Name servers; empty = the system's.
    pub servers: Vec<SocketAddr>,
    /// How long one question may take.
    pub timeout: Duration,
    /// Least time between two questions.
    pub min_ttl: Duration,
    /// Greatest time between two questions.
    pub max_ttl: Duration,
}

/// One entry of `pools.NAME.members`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemberSource {
    /// The kind and place of the source.
    pub from: MembersFrom,
    /// What the source does not say of its members.
    pub like: MemberDefaults,
    /// Whether an answer without members counts.
    pub allow_empty: bool,
}

/// What members are like of which a source says only the address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct MemberDefaults {
    /// Name of one that is alone.
    pub name: Option<String>,
    /// Share of the traffic, relative to other members.
    pub weight: u32,
    /// Live connections at most; `None` = unlimited.
    pub max_connections: Option<u32>,
    /// Serves only while no primary is up.
    pub backup: bool,
}

impl Default for MemberDefaults {
    fn default() -> MemberDefaults {
        MemberDefaults {
            name: None,
            weight: 1,
            max_connections: None,
            backup: false,
        }
    }
}

impl MemberDefaults {
    /// A member at this address; `alone`: the source has no other.
    pub fn member(&self, address: BackendAddress, alone: bool) -> Backend {
        let name = self.name.clone().filter(|_| alone);
        Backend {
            name: name.unwrap_or_else(|| address.to_string()),
            address,
            weight: self.weight,
            max_connections: self.max_connections,
            backup: self.backup,
        }
    }
}

/// What a source of members watches.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum MembersFrom {
    /// A file with a list of backends.
    File(PathBuf),
    /// Addresses of a name.
    Dns {
        /// The host name that is resolved.
        name: String,
        /// Port of the members; `None` = the one that the client used.
        port: Option<u16>,
        /// Which of its addresses are members.
        family: Family,
    },
    /// A service of DNS.
    Srv {
        /// Name of the service, as in its SRV record.
        name: String,
        /// Which addresses of its hosts are members.
        family: Family,
    },
    /// Keys of etcd.
    Etcd {
        /// What all keys of members begin with.
        prefix: String,
    },
    /// Containers with a label.
    Docker {
        /// `KEY` or `KEY=VALUE`.
        label: String,
        /// Port of the members.
        port: u16,
        /// Network in which they have their addresses; `None` = any.
        network: Option<String>,
        /// Path of the container engine's socket.
        socket: PathBuf,
    },
}

/// `pools.NAME.members.family`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Both IPv4 and IPv6 addresses.
    Any,
    /// IPv4 addresses only.
    V4,
    /// IPv6 addresses only.
    V6,
}

impl fmt::Display for MembersFrom {
    /// What it is called in logs, labels and documents.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            MembersFrom::File(path) => write!(f, "file:{}", path.display()),
            MembersFrom::Dns {
                name, port: Some(port), ..
            } => write!(f, "dns:{name}:{port}"),
            MembersFrom::Dns { name, port: None, .. } => write!(f, "dns:{name}"),
            MembersFrom::Srv { name, .. } => write!(f, "srv:{name}"),
            MembersFrom::Etcd { prefix } => write!(f, "etcd:{prefix}"),
            MembersFrom::Docker { label, port, .. } => write!(f, "docker:{label}:{port}"),
        }
    }
}

impl Config {
    /// Where members come from.
    pub fn sources(&self) -> impl Iterator<Item = &MembersFrom> {
        let sources = self.pools.iter().flat_map(|pool| &pool.members);
        sources.map(|source| &source.from)
    }

    /// The cluster that members by etcd come from, if there are such.
    pub fn member_etcd(&self) -> Option<&EtcdServers> {
        let wanted = self.sources().any(|from| matches!(from, MembersFrom::Etcd { .. }));
        let arbiter = self.failover.as_ref().and_then(|failover| failover.arbiter.as_ref());
        let servers = self.etcd.as_ref().or(arbiter.map(|arbiter| &arbiter.servers));
        servers.filter(|_| wanted)
    }

    /// Pools of the proxy engine whose backends see their clients' addresses, each with a listener that uses it.
    pub fn kept_pools(&self) -> impl Iterator<Item = (&Listener, &Pool)> {
        let proxied = self
            .listeners
            .iter()
            .filter(|listener| listener.engine == Engine::Proxy);
        let pools = proxied.flat_map(|listener| {
            let pools = listener.pools().filter_map(|ix| self.pools.get(ix));
            pools.map(move |pool| (listener, pool))
        });
        pools.filter(|(_, pool)| pool.policy.client_address == ClientAddress::Keep)
    }

    /// The first pool whose packets have a mark.
    pub fn marking_pool(&self) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.policy.connect.mark.is_some())
    }

    /// Files with lists of members.
    pub fn member_files(&self) -> impl Iterator<Item = &PathBuf> {
        self.sources().filter_map(|from| match from {
            MembersFrom::File(path) => Some(path),
            _ => None,
        })
    }
}
