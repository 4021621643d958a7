//! `failover.arbiter`.

use std::net::IpAddr;
use std::path::PathBuf;

/// `failover.arbiter:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arbiter {
    /// How its servers are reached.
    pub servers: EtcdServers,
    /// What all of its keys begin with.
    pub prefix: String,
    /// Nothing is claimed that another kernel may still have.
    pub strict: bool,
}

/// An etcd cluster and how to log in to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EtcdServers {
    /// Members, or proxies before them; at least one.
    pub endpoints: Vec<EtcdEndpoint>,
    /// Certificates that sign those of the servers.
    pub ca: Option<PathBuf>,
    /// Our own certificate, if they ask for one.
    pub cert: Option<PathBuf>,
    /// File with the private key of the certificate.
    pub key: Option<PathBuf>,
    /// User name for etcd's own authentication.
    pub user: Option<String>,
    /// File with the password.
    pub password_file: Option<PathBuf>,
}

/// `http://HOST:PORT` or `https://HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct EtcdEndpoint {
    /// Connections to it use TLS.
    pub tls: bool,
    /// Name or address, the latter without brackets.
    pub host: String,
    /// TCP port of the server.
    pub port: u16,
}

impl EtcdServers {
    /// What is read from the disk.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.ca, &self.cert, &self.key, &self.password_file]
            .into_iter()
            .flatten()
    }
}

impl EtcdEndpoint {
    /// Whether the host is a name that has to be looked up.
    pub fn is_name(&self) -> bool {
        self.host.parse::<IpAddr>().is_err()
    }

    /// `HOST:PORT`, an IPv6 address in brackets.
    pub fn authority(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

impl std::fmt::Display for EtcdEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.tls { "https" } else { "http" };
        write!(f, "{scheme}://{}", self.authority())
    }
}
