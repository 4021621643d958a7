//! Clients behind a proxy that says who they are: HAProxy, which speaks the PROXY protocol.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::common::program::Program;
use super::common::{Port, Record, Server, Weir, client, command, find, have};
use super::{UNWATCHED, backend, source};

/// HAProxy before an address.
fn haproxy(version: &str, address: &str) -> Program {
    let dir = tempfile::Builder::new().prefix("weir").tempdir_in("/tmp").unwrap();
    let port = Port::reserve();
    let text = format!(
        "global
 maxconn 200
defaults
 mode tcp
 timeout connect 20s
 timeout client 60s
 timeout server 60s
listen l
 bind 127.0.0.1:{}
 server weir {address} {version}
",
        port.number
    );
    std::fs::write(dir.path().join("haproxy.cfg"), text).unwrap();
    let mut start = command(find("haproxy").unwrap());
    start.args(["-db", "-f"]).arg(dir.path().join("haproxy.cfg"));
    Program::start(start, port, dir)
}

/// What `weir explain` says of a client.
fn explained(weir: &Weir, from: IpAddr) -> String {
    let mut explain = command(env!("CARGO_BIN_EXE_weir"));
    explain.args(["explain", "--json", "--listener", "main", "--from", &from.to_string()]);
    let output = explain.arg("-c").arg(weir.dir().join("weir.yaml")).output().unwrap();
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["backend"].as_str().unwrap().to_owned()
}

/// The hash, the limits and the log are those of the client that the header names; the backend is chosen behind the header.
/// Meant to notice: the proxy's address in place of the client's in any of them. Seen to fail when nobody's address was hashed.
#[test]
fn the_clients_address_counts_not_the_proxys() {
    if !have(&["haproxy"]) {
        return;
    }
    let names = ["a", "b", "c", "d"];
    let servers = names.map(Server::named_holder);
    let backends: Vec<String> = std::iter::zip(names, &servers)
        .map(|(name, server)| backend(name, server.address, ""))
        .collect();
    for version in ["send-proxy", "send-proxy-v2"] {
        let weir = Weir::start(&format!(
            "
workers: 2
listeners: {{main: {{bind: ['127.0.0.1:0'], pool: main, accept_proxy: {{from: [127.0.0.0/8]}}, limits: {{per_source: 2}}}}}}
pools: {{main: {{balance: source_hash, {UNWATCHED}, backends: [{}]}}}}
",
            backends.join(", ")
        ));
        let proxy = haproxy(version, &weir.address("main"));
        let mut served = BTreeMap::new();
        let mut held = Vec::new();
        for n in 0..24 {
            let from = source(n * 3);
            for _ in 0..2 {
                let mut stream = client::connect_from(from, &proxy.address());
                let mut name = [0];
                std::io::Read::read_exact(&mut stream, &mut name).unwrap();
                let name = char::from(name[0]).to_string();
                assert_eq!(*served.entry(from).or_insert(name.clone()), name, "{version}: {from}");
                held.push(stream);
            }
            assert_eq!(served[&from], explained(&weir, from), "{version}: {from}");
            // A third one of this client is one too many, while others go on.
            let mut third = client::connect_from(from, &proxy.address());
            let mut got = Vec::new();
            let _ = std::io::Read::read_to_end(&mut third, &mut got);
            assert!(got.is_empty(), "{version}: {from}");
        }
        let used: BTreeSet<&String> = served.values().collect();
        assert!(used.len() > 2, "{version}: all at {used:?}");
        let records = weir.wait_for_records(24);
        for from in served.keys() {
            let of_client = |record: &&Record| record.client.starts_with(&format!("{from}:"));
            let causes: Vec<&str> = records.iter().filter(of_client).map(|record| &*record.cause).collect();
            assert_eq!(causes, ["limit_source"], "{version}: {from}");
        }
        assert_eq!(records.len(), 24, "{version}");
    }
}
