//! What an operator does: reload, drain, kill, list; and what is refused.

use super::common::client::{connect, fetch, round_trip};
use super::common::operator::{ask, json, said, status};
use super::common::{Launch, may_make_namespaces, wait_until};
use super::hosts::{Net, V4};

fn config(weights: [u32; 2], more: &str) -> String {
    format!(
        "
listeners: {{web: {{engine: kernel, bind: ['{}'], pool: web{more}}}}}
pools:
  web:
    balance: round_robin
    backends: [{{name: a, address: '{}', weight: {}}}, {{name: b, address: '{}', weight: {}}}]
",
        V4.service(80),
        V4.backend(0, 8080),
        weights[0],
        V4.backend(1, 8080),
        weights[1]
    )
}

/// A connection lives through weights, drains and reloads; new ones go by what is in force.
#[test]
fn reloads_and_orders_count_for_new_connections() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = [0, 1].map(|ix| net.echo(ix, &V4.backend(ix, 8080)));
    let weir = net.weir(&config([1, 0], ""));
    let mut kept = net.client.enter(|| connect(&V4.service(80)));
    round_trip(&mut kept, b"a");
    let active = |ix: usize| status(&weir)["pools"][0]["backends"][ix]["active"].as_u64().unwrap();
    assert_eq!([active(0), active(1)], [1, 0]);
    weir.rewrite(&format!(
        "workers: 1\nkernel: {{restart_grace: 1s}}\n{}",
        config([0, 1], "")
    ));
    said(&weir, &["reload"]);
    let mut second = net.client.enter(|| connect(&V4.service(80)));
    round_trip(&mut second, b"b");
    round_trip(&mut kept, b"a");
    assert_eq!([active(0), active(1)], [1, 1]);
    said(&weir, &["backend", "web/a", "weight", "5"]);
    said(&weir, &["backend", "web/b", "drain"]);
    let mut third = net.client.enter(|| connect(&V4.service(80)));
    round_trip(&mut third, b"c");
    round_trip(&mut second, b"b");
    assert_eq!([active(0), active(1)], [2, 1]);

    let rows = json(&weir, &["conns"]);
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 3);
    let ours = second.local_addr().unwrap().to_string();
    let row = rows.iter().find(|row| row["client"] == ours.as_str()).unwrap();
    assert_eq!((&row["state"], &row["backend"]), (&"open".into(), &"b".into()));
    said(&weir, &["kill", &row["id"].to_string()]);
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((&*record.cause, &*record.client), ("killed", &*ours));
    assert_eq!([active(0), active(1)], [2, 0]);
    round_trip(&mut kept, b"a");
}

/// `dsr`: packets keep their addresses, and the backend answers the client by itself.
#[test]
fn backends_answer_clients_themselves_in_mode_dsr() {
    if !may_make_namespaces() {
        return;
    }
    let service = V4.host(8, 8);
    let net = Net::unlinked();
    // All are neighbours; the address is on the balancer, and on the loopback of the backends, who keep it to themselves.
    let bridge = super::common::netns::Bridge::new();
    bridge.plug(&net.client, "10.7.0.10/24");
    bridge.plug(&net.balancer, "10.7.0.1/24");
    for (ix, backend) in net.backends.iter().enumerate() {
        backend.sysctl("net.ipv4.conf.all.arp_ignore", "1");
        backend.sysctl("net.ipv4.conf.all.arp_announce", "2");
        bridge.plug(backend, &format!("10.7.0.2{ix}/24"));
        backend.ip(&["addr", "add", &format!("{service}/32"), "dev", "lo"]);
    }
    net.balancer.ip(&["addr", "add", &format!("{service}/32"), "dev", "lo"]);
    net.client
        .ip(&["route", "add", &format!("{service}/32"), "via", "10.7.0.1"]);
    // On every address, for probes come to the backend's own.
    let _servers = [0, 1].map(|ix| net.named(ix, "0.0.0.0:80"));
    let weir = net.weir(&format!(
        "
listeners: {{web: {{engine: kernel, bind: ['{service}:80'], pool: web}}}}
pools:
  web: {{kernel: {{mode: dsr}}, balance: round_robin, backends: ['10.7.0.20:80', '10.7.0.21:80']}}
"
    ));
    // A change of state begins a new round.
    wait_until("both have been probed", || {
        (0..2).all(|ix| status(&weir)["pools"][0]["backends"][ix]["state"] == "up")
    });
    net.client.enter(|| {
        let answers: Vec<String> = (0..6).map(|_| fetch(&format!("{service}:80")).unwrap()).collect();
        assert_eq!(answers.iter().filter(|answer| *answer == "0").count(), 3, "{answers:?}");
    });
    wait_until("their ends are told", || weir.access_log().len() == 6);
}

/// A reload that begins to need what was not loaded at the start is refused, and changes nothing.
#[test]
fn an_engine_that_was_not_loaded_takes_a_restart() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = [0, 1].map(|ix| net.named(ix, &V4.backend(ix, 8080)));
    let proxy = config([1, 1], "").replace("engine: kernel", "engine: proxy");
    let weir = Launch::new(&format!("workers: 1\n{proxy}"))
        .inside(&net.balancer)
        .start();
    weir.rewrite(&format!("workers: 1\n{}", config([1, 1], "")));
    let output = ask(&weir, &["reload"]);
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("needs a restart"), "{said}");
    net.client.enter(|| fetch(&V4.service(80)).unwrap());
}

/// Without the capability it does not start, and says what is missing and what would help.
#[test]
fn a_missing_capability_is_named() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let mut weir = Launch::new(&format!("workers: 1\n{}", config([1, 1], "")))
        .inside(&net.balancer)
        .behind(&["setpriv", "--bounding-set", "-bpf", "--inh-caps", "-bpf"])
        .spawn();
    weir.wait_for_line_with(&["CAP_BPF missing", "docs/kernel-engine.md", "engine: proxy"]);
    assert_eq!(weir.wait_for_end().code(), Some(1));
}
