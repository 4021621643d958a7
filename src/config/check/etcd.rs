//! An etcd cluster, wherever one is named.

use crate::config::model::*;
use crate::config::notes::Notes;
use crate::config::raw::Section;
use crate::config::value::*;

/// Its members, and how to log in to it.
pub fn servers(notes: &Notes, etcd: &Section) -> EtcdServers {
    let endpoints = etcd.list::<EtcdEndpoint>("endpoints");
    for (i, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..i].iter().any(|other| other.value == endpoint.value) {
            notes.error(endpoint, format!("`{}` is here twice", endpoint.value));
        }
    }
    let path = |key: &str| etcd.optional::<AbsolutePath>(key).map(|path| path.0);
    let servers = EtcdServers {
        ca: path("ca"),
        cert: path("cert"),
        key: path("key"),
        user: etcd.optional::<Name>("user").map(|name| name.0),
        password_file: path("password_file"),
        endpoints: endpoints.iter().map(|endpoint| endpoint.value.clone()).collect(),
    };
    let tls = servers.endpoints.iter().filter(|endpoint| endpoint.tls).count();
    if tls > 0 && servers.ca.is_none() {
        etcd.error("ca", "missing: `https` endpoints are checked against it");
    }
    if tls == 0 && !servers.endpoints.is_empty() {
        for key in ["ca", "cert", "key"].into_iter().filter(|key| etcd.has(key)) {
            etcd.error(
                key,
                "has a meaning for `https` endpoints only: change them, or leave it out",
            );
        }
    }
    for (one, other) in [
        ("cert", "key"),
        ("key", "cert"),
        ("user", "password_file"),
        ("password_file", "user"),
    ] {
        if etcd.has(one) && !etcd.has(other) {
            etcd.error(one, format!("is of no use without `{other}`"));
        }
    }
    if servers.password_file.is_some() && tls < servers.endpoints.len() {
        etcd.warn(
            "password_file",
            "the password crosses the network as it is, unless endpoints are `https`",
        );
    }
    servers
}
