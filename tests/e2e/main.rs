//! End-to-end tests: the built binary between real clients and real servers, one file a subject.

#[path = "../common/mod.rs"]
mod common;

mod addresses;
mod chaos;
mod choosing;
mod documents;
mod encrypted_hello;
mod endings;
mod frugality;
mod health;
mod integrity;
mod pressure;
mod programs;
mod server_names;
mod shutdown;
mod timeouts;
mod tool;
mod urgent;
mod vanished;
mod verdicts;

use std::net::SocketAddr;

/// A configuration for two workers: listener `main` on a port of the kernel's choice before pool `main`.
///
/// `listener` and `pool` are further keys (`timeouts: {idle: 1s}`), `backends` are `(name, address)`.
fn balanced(listener: &str, pool: &str, backends: &[(&str, SocketAddr)]) -> String {
    let backends = backends
        .iter()
        .map(|(name, address)| format!("{{name: {name}, address: '{address}'}}"));
    configuration(listener, pool, &backends.collect::<Vec<_>>())
}

/// The same with backends written out.
fn configuration(listener: &str, pool: &str, backends: &[String]) -> String {
    format!(
        "
workers: 2
listeners:
  main: {{bind: ['127.0.0.1:0'], pool: main, {listener}}}
pools:
  main: {{backends: [{}], {pool}}}
",
        backends.join(", ")
    )
}

/// Nothing but real traffic tells whether a backend works, and nothing is concluded from that.
const UNWATCHED: &str = "health: {type: none}, passive: off";
