//! `weir explain` says where clients really go.

use std::net::{IpAddr, SocketAddr};

use super::common::{Server, Weir, command};
use super::{UNWATCHED, backend, hold, in_parallel, pool, source};

/// What `weir explain --json` says of a client.
#[track_caller]
fn explained(weir: &Weir, from: &str) -> serde_json::Value {
    let mut explain = command(env!("CARGO_BIN_EXE_weir"));
    explain.args(["explain", "--json", "--listener", "main", "--from", from]);
    let output = explain.arg("-c").arg(weir.dir().join("weir.yaml")).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{from}: {error}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// 1,000 connections of 200 clients over both workers, five backends of different weights, one of them without any.
/// Broken on purpose: `weir explain` taking every weight as 1; and leaving the seed out.
#[test]
fn explain_agrees_with_a_thousand_connections() {
    let names = ["a", "b", "c", "d", "e", "f"];
    let servers = names.map(Server::named);
    let weights = [2, 3, 4, 5, 6, 0];
    let backends: Vec<String> = std::iter::zip(names, std::iter::zip(&servers, weights))
        .map(|(name, (server, weight))| backend(name, server.address, &format!("weight: {weight}")))
        .collect();
    let keys = format!("balance: source_hash, source_hash: {{prefix_v4: 30, seed: 4711}}, {UNWATCHED}");
    let weir = Weir::start(&pool(&keys, &backends));
    let address = weir.address("main");
    let client = |n: usize| source(n * 3);
    let real = in_parallel(4, 1_000, |n| (n % 200, hold(&address, Some(client(n % 200))).0));
    let expected = in_parallel(2, 200, |n| {
        (n, explained(&weir, &client(n).to_string())["backend"].clone())
    });
    let mut seen = std::collections::BTreeSet::new();
    for (n, backend) in &expected {
        let of_client: Vec<char> = real
            .iter()
            .filter(|(client, _)| client == n)
            .map(|(_, name)| *name)
            .collect();
        assert_eq!(of_client.len(), 5);
        assert!(
            of_client.iter().all(|name| *backend == *name.to_string()),
            "{}: {of_client:?}, explained: {backend}",
            client(*n)
        );
        seen.extend(of_client);
    }
    assert_eq!(seen.into_iter().collect::<String>(), "abcde");
}

/// Where the source port counts, it has to be said and is heeded. Broken on purpose: `--from`'s port dropped.
#[test]
fn explain_heeds_the_port() {
    let names = ["a", "b", "c", "d"];
    let servers = names.map(Server::named);
    let backends: Vec<String> = std::iter::zip(names, &servers)
        .map(|(name, server)| backend(name, server.address, ""))
        .collect();
    let keys = format!("balance: source_hash, source_hash: {{port: true}}, {UNWATCHED}");
    let weir = Weir::start(&pool(&keys, &backends));
    let address = weir.address("main");
    for _ in 0..40 {
        let (name, stream) = hold(&address, Some(IpAddr::from([127, 0, 0, 1])));
        let from: SocketAddr = stream.local_addr().unwrap();
        assert_eq!(
            explained(&weir, &from.to_string())["backend"],
            *name.to_string(),
            "{from}"
        );
    }
}
