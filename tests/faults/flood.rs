//! A flood of SYNs: established connections do not notice, and new clients are served while it lasts.

use std::process::Stdio;
use std::time::{Duration, Instant};

use super::common::netns::{Netns, link};
use super::common::{self, Launch, Server, client, server};

#[test]
fn a_syn_flood_harms_no_established_connection() {
    if !common::may_make_namespaces() || !common::have(&["hping3"]) {
        return;
    }
    let (outside, host) = (Netns::new("outside"), Netns::new("host"));
    link("eth0", [(&outside, "10.97.0.1/24"), (&host, "10.97.0.2/24")]);
    // Spoofed sources must have somewhere to be answered to.
    host.ip(&["route", "add", "default", "via", "10.97.0.1"]);
    host.sysctl("net.ipv4.tcp_syncookies", "1");
    let backend = host.enter(|| Server::each_on(server::bind(([127, 0, 0, 1], 0)), server::echo));
    let yaml = format!(
        "listeners: {{web: {{bind: '10.97.0.2:0', pool: web}}}}\n\
         pools: {{web: {{backends: '{}', health: {{type: none}}, passive: off}}}}\n",
        backend.address
    );
    let weir = Launch::new(&yaml).inside(&host).start();
    let address = weir.address("web");
    let mut established = outside.enter(|| client::connect(&address));
    client::round_trip(&mut established, b"before");
    let connections = weir.sockets();

    let port = address.rsplit_once(':').unwrap().1;
    let mut flood = outside
        .command("hping3")
        .args([
            "-S",
            "-i",
            "u20",
            "--rand-source",
            "-q",
            "-c",
            "100000",
            "-p",
            port,
            "10.97.0.2",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    let mut waits = Vec::new();
    while start.elapsed() < Duration::from_secs(3) || waits.len() <= 100 {
        assert!(start.elapsed() < common::PATIENCE, "{} round trips", waits.len());
        let one = Instant::now();
        client::round_trip(&mut established, b"during");
        waits.push(one.elapsed());
        if waits.len() % 100 == 0 {
            let mut new = outside.enter(|| client::connect(&address));
            client::round_trip(&mut new, b"new");
        }
    }
    let _ = flood.kill();
    let _ = flood.wait();
    // Not the worst: a packet that the flood pushes out of a queue costs its sender a retransmission.
    waits.sort_unstable();
    let most = waits[waits.len() * 95 / 100];
    assert!(most < Duration::from_millis(500), "round trips took {most:?}");
    // Half-open connections are the kernel's affair: none has become a socket of ours.
    super::settles_at(&weir, connections);
    assert!(weir.stderr().len() < 20, "{}", weir.stderr().join("\n"));
}
