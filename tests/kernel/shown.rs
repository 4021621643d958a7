//! What an operator sees of the engine.

use std::io::Read;

use super::common::client::{connect, fetch, round_trip};
use super::common::operator::{json, said, status, tell};
use super::common::{Record, Weir, command, may_make_namespaces, run, wait_until};
use super::hosts::{Net, V4};

/// The page of Prometheus.
fn metrics(weir: &Weir) -> String {
    let page = tell(&weir.admin(), &serde_json::json!({"command": "metrics"})).unwrap();
    page.as_str().unwrap().to_string()
}

/// One sample, named as it is written.
#[track_caller]
pub fn sample(weir: &Weir, name: &str) -> f64 {
    let page = metrics(weir);
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    value.unwrap_or_else(|| panic!("{name} in\n{page}")).parse().unwrap()
}

/// `weir check` looks at the host that it runs on; what it says is no error.
#[test]
fn check_warns_of_what_the_host_lacks() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("weir.yaml");
    let yaml = |interfaces: &str, backend: &str| {
        format!(
            "kernel: {{interfaces: {interfaces}}}\nlisteners: {{web: {{engine: kernel, bind: '{}', pool: web}}}}\n\
             pools: {{web: {{backends: [{{name: a, address: '{backend}'}}]}}}}\n",
            V4.service(80)
        )
    };
    let check = |yaml: &str| {
        std::fs::write(&file, yaml).unwrap();
        let weir = env!("CARGO_BIN_EXE_weir");
        let output = net
            .balancer
            .command(weir)
            .args(["check", "-c"])
            .arg(&file)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(0));
        let said = String::from_utf8(output.stderr).unwrap();
        // What the machine has set for all namespaces is not this test's affair.
        let lines = said
            .lines()
            .filter(|line| !line.contains("bpf_jit_enable") && !line.contains("rp_filter"));
        lines.map(str::to_owned).collect::<Vec<_>>()
    };
    let none: [&str; 0] = [];
    assert_eq!(check(&yaml("[eth0, eth1]", &V4.backend(0, 8080))), none);
    let said = check(&yaml("[lo, eth7]", &V4.backend(0, 8080)));
    assert!(
        said[0].contains("kernel.interfaces: warning: `lo` is not Ethernet"),
        "{said:?}"
    );
    assert!(said[1].contains("there is no interface `eth7`"), "{said:?}");
    let said = check(&yaml("[]", &V4.service(8080)));
    assert!(said[0].contains("is an address of this host (`eth0`)"), "{said:?}");
    let range = "echo 1024 65535 > /proc/sys/net/ipv4/ip_local_port_range; ip addr flush dev eth1";
    run(net.balancer.command("sh").args(["-c", range]));
    let said = check(&yaml("auto", &V4.backend(0, 8080)));
    assert!(
        said.iter()
            .any(|line| line.contains("ip_local_port_range is 1024 65535")),
        "{said:?}"
    );
    assert!(
        said.iter().any(|line| line.contains("there is no route to")),
        "{said:?}"
    );
}

/// One connection of each engine; then nobody takes new ones.
#[test]
fn the_engine_is_shown_wherever_an_operator_looks() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let _servers = [0, 1].map(|ix| net.echo(ix, &V4.backend(ix, 8080)));
    let weir = net.weir(&format!(
        "
listeners:
  web: {{engine: kernel, bind: ['{}'], pool: web}}
  plain: {{bind: ['{}'], pool: plain}}
pools: {{web: {{health: none, backends: [{{name: a, address: '{}'}}]}}, plain: {{health: none, backends: ['{}']}}}}
",
        V4.service(80),
        V4.service(81),
        V4.backend(0, 8080),
        V4.backend(1, 8080),
    ));
    weir.wait_for_line(&format!("kernel engine: web serves {}", V4.service(80)));
    let [mut web, mut plain] = net.client.enter(|| [80, 81].map(|port| connect(&V4.service(port))));
    for _ in 0..3 {
        round_trip(&mut web, b"hello");
        round_trip(&mut plain, b"hello");
    }

    let now = status(&weir);
    let engine = |ix: usize| now["listeners"][ix]["engine"].as_str().unwrap();
    assert_eq!([engine(0), engine(1)], ["kernel", "proxy"]);
    assert_eq!(
        (&now["kernel"]["flows"], &now["kernel"]["flows_max"]),
        (&1.into(), &262_144.into())
    );
    let table = said(&weir, &["status"]);
    assert!(table.contains("kernel engine: flows 1 of 262144, packets "), "{table}");
    let rows = json(&weir, &["conns"]);
    let mut carried: Vec<(&str, &str)> = rows
        .as_array()
        .unwrap()
        .iter()
        .map(|row| (row["listener"].as_str().unwrap(), row["engine"].as_str().unwrap()))
        .collect();
    carried.sort_unstable();
    assert_eq!(carried, [("plain", "proxy"), ("web", "kernel")]);
    assert!(said(&weir, &["conns"]).contains("ENGINE"));
    assert!(said(&weir, &["top", "--once"]).contains("weir "));
    let file = weir.dir().join("weir.yaml").display().to_string();
    let explain = ["explain", "-c", &file, "--listener", "web", "--from", "192.0.2.1"];
    let explained = run(command(env!("CARGO_BIN_EXE_weir")).args(explain));
    assert!(
        explained.contains("listener web (kernel engine) -> pool web"),
        "{explained}"
    );

    for (listener, engine) in [("web", "kernel"), ("plain", "proxy")] {
        for (labels, value) in [
            (
                format!("weir_connections_total{{listener=\"{listener}\",protocol=\"tcp\",pool=\"{listener}\""),
                1.0,
            ),
            (
                format!("weir_connections_active{{listener=\"{listener}\",protocol=\"tcp\",pool=\"{listener}\""),
                1.0,
            ),
            (
                format!("weir_bytes_total{{listener=\"{listener}\",direction=\"in\""),
                15.0,
            ),
            (
                format!("weir_bytes_total{{listener=\"{listener}\",direction=\"out\""),
                15.0,
            ),
            (
                format!("weir_connections_closed_total{{listener=\"{listener}\",cause=\"finished\""),
                0.0,
            ),
        ] {
            let name = format!("{labels},engine=\"{engine}\"}}");
            assert_eq!(sample(&weir, &name), value, "{name}");
        }
    }
    assert_eq!(sample(&weir, "weir_kernel_flows"), 1.0);
    assert_eq!(sample(&weir, "weir_limit_kernel_flows"), 262_144.0);

    drop((web, plain));
    let records = weir.wait_for_records(2);
    let of = |listener: &str| records.iter().find(|record| record.listener == listener).unwrap();
    let (web, plain) = (of("web"), of("plain"));
    assert_eq!((web.engine.as_deref(), plain.engine.as_deref()), (Some("kernel"), None));
    // A handshake, three questions with their answers, and the end.
    for (packets, direction) in [(web.packets_up, "in"), (web.packets_down, "out")] {
        let all = sample(
            &weir,
            &format!("weir_kernel_packets_total{{direction=\"{direction}\"}}"),
        );
        assert!(packets >= 5 && all >= packets as f64, "{packets} of {all} {direction}");
    }
    wait_until("nothing is open", || sample(&weir, "weir_kernel_flows") == 0.0);

    let name = "weir_kernel_dropped_total{reason=\"no_backend\"}";
    assert_eq!(sample(&weir, name), 0.0);
    said(&weir, &["backend", "web/a", "down"]);
    net.client.enter(|| assert!(fetch(&V4.service(80)).is_err()));
    assert_eq!(sample(&weir, name), 1.0);
    let table = said(&weir, &["status"]);
    assert!(table.contains("; not passed on: no_backend 1\n"), "{table}");
}

/// Seen from the program: whose FIN came first, and when the first byte of an answer did.
#[test]
fn records_tell_who_ended_first_and_when_the_answer_began() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    // This one ends first, that one when its client has.
    let (_named, _echo) = (net.named(0, &V4.backend(0, 8080)), net.echo(1, &V4.backend(1, 8080)));
    let weir = net.weir(&format!(
        "
listeners:
  quick: {{engine: kernel, bind: ['{}'], pool: quick}}
  echo: {{engine: kernel, bind: ['{}'], pool: echo}}
pools: {{quick: {{health: none, backends: ['{}']}}, echo: {{health: none, backends: ['{}']}}}}
",
        V4.service(80),
        V4.service(81),
        V4.backend(0, 8080),
        V4.backend(1, 8080),
    ));
    net.client.enter(|| {
        assert_eq!(fetch(&V4.service(80)).unwrap(), "0");
        let mut asks = connect(&V4.service(81));
        round_trip(&mut asks, b"hello");
        let mut says_nothing = connect(&V4.service(81));
        for stream in [&mut asks, &mut says_nothing] {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        }
    });
    let records = weir.wait_for_records(3);
    let rows: Vec<_> = records
        .iter()
        .map(|record| {
            (
                &*record.listener,
                record.end(),
                record.bytes_down,
                record.first_byte_ms.is_some(),
            )
        })
        .collect();
    assert!(
        rows.contains(&("quick", ("finished", "backend"), 1, true)),
        "{records:?}"
    );
    assert!(rows.contains(&("echo", ("finished", "client"), 5, true)), "{records:?}");
    assert!(
        rows.contains(&("echo", ("finished", "client"), 0, false)),
        "{records:?}"
    );
    let late = |record: &Record| record.first_byte_ms.is_some_and(|ms| ms > record.duration_ms);
    assert!(!records.iter().any(late), "{records:?}");
}
