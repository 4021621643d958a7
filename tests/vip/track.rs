//! What nodes watch beside their service, and where addresses go by it.

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;

use serde_json::{Value, json};

use crate::hosts::*;

const GW: &str = "127.0.0.1:7022";

/// Two nodes that each watch an endpoint (by weight), an interface and a script (which must hold); `a` holds the addresses.
struct Tracking {
    a: Node,
    b: Node,
    endpoints: [Option<TcpListener>; 2],
    net: Net,
}

impl Tracking {
    fn start() -> Tracking {
        let net = Net::new(&["a", "b"]);
        let script = net.dir.path().join("check");
        fs::write(&script, "#!/bin/sh\n[ -e \"${0%/*}/$WEIR_TRACK-$WEIR_NODE\" ]\n").unwrap();
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
        for host in ["a", "b"] {
            let ns = net.ns(host);
            sh(&format!(
                "ip -n {ns} link add eth1 type veth peer name far && ip -n {ns} link set eth1 up && ip -n {ns} link set far up"
            ));
            fs::write(net.dir.path().join(format!("room-{host}")), "").unwrap();
        }
        let endpoints = ["a", "b"].map(|host| Some(endpoint(&net, host)));
        let start = |host| net.start_with(host, &config(&net, host), &[]);
        let all = Tracking {
            a: start("a"),
            b: start("b"),
            endpoints,
            net,
        };
        all.wait_held_by("a");
        all
    }

    fn wait_held_by(&self, name: &str) {
        let (holder, other) = match name {
            "a" => (&self.a, &self.b),
            _ => (&self.b, &self.a),
        };
        holder.wait_holds(true);
        other.wait_holds(false);
    }

    fn wait_track(&self, node: &Node, name: &str, holds: bool) -> Value {
        let mut found = Value::Null;
        until(10_000, &format!("{name} on {}: {holds}", node.name), || {
            let tracks = node.status()["tracks"].as_array().unwrap().clone();
            found = tracks
                .into_iter()
                .find(|track| track["name"] == name)
                .unwrap_or_default();
            found["holds"] == json!(holds)
        });
        found
    }
}

fn endpoint(net: &Net, host: &str) -> TcpListener {
    in_ns(&net.ns(host), || TcpListener::bind(GW).unwrap())
}

fn config(net: &Net, node: &str) -> Value {
    let mut config = net.config(node, &["a", "b"]);
    config["track"] = json!({
        "gw": {"tcp": GW, "weight": 50},
        "uplink": {"interface": "eth1"},
        "room": {"exec": [net.dir.path().join("check")]},
    });
    config
}

#[test]
fn addresses_follow_what_is_tracked() {
    let mut all = Tracking::start();
    let ns = all.net.ns("a");
    let room = all.net.dir.path().join("room-a");

    all.endpoints[0] = None;
    all.wait_held_by("b");
    let gw = all.wait_track(&all.a, "gw", false);
    assert_eq!((&gw["weight"], &gw["what"]), (&json!(50), &json!(format!("tcp {GW}"))));
    assert!(gw["problem"].as_str().unwrap().contains("refused"), "{gw}");
    all.endpoints[0] = Some(endpoint(&all.net, "a"));
    all.wait_held_by("a");

    sh(&format!("ip -n {ns} link set far down"));
    all.wait_held_by("b");
    all.wait_track(&all.a, "uplink", false);
    let reason = all.a.status()["vips"][0]["reason"].to_string();
    assert!(reason.contains("track uplink does not hold"), "{reason}");
    let obstacle = all.b.status()["nodes"].to_string();
    assert!(obstacle.contains("\"a\""), "{obstacle}");
    sh(&format!("ip -n {ns} link set far up"));
    all.wait_held_by("a");

    fs::remove_file(&room).unwrap();
    all.wait_held_by("b");
    let script = all.wait_track(&all.a, "room", false);
    assert!(
        script["problem"].as_str().unwrap().contains("exit status: 1"),
        "{script}"
    );
    fs::write(&room, "").unwrap();
    all.wait_held_by("a");

    let log = all.a.log();
    for name in ["gw", "uplink", "room"] {
        let lines = |text: &str| {
            log.lines()
                .filter(|l| l.contains(&format!("track {name} {text}")))
                .count()
        };
        assert_eq!(
            (lines("holds"), lines("does not hold")),
            (2, 1),
            "one line a change: {log}"
        );
    }
}

/// What both have lost, a reload, an upgrade, and something new that holds: nothing of it moves an address.
#[test]
fn what_is_tracked_moves_nothing_without_need() {
    let mut all = Tracking::start();
    let seen = [all.a.watch(VIP), all.b.watch(VIP)];
    all.endpoints = [None, None];
    all.wait_track(&all.a, "gw", false);
    all.wait_track(&all.b, "gw", false);
    let mut more = config(&all.net, "a");
    more["track"]["more"] = json!({"interface": "lo"});
    let file = all.net.write("more", &more);
    assert_eq!(all.a.ask(&format!("reload {}", file.display())), "Ok(())");
    all.wait_track(&all.a, "more", true);
    all.wait_track(&all.a, "gw", false);
    assert_eq!(all.a.ask("upgrade"), "ok");
    for name in ["more", "room", "uplink"] {
        all.wait_track(&all.a, name, true);
    }
    all.endpoints[0] = Some(endpoint(&all.net, "a"));
    all.wait_track(&all.a, "gw", true);
    let seen = seen.map(|watch| watch.finish().into_iter().map(|(_, there)| there).collect::<Vec<_>>());
    assert_eq!(seen, [vec![true], vec![false]]);
}
