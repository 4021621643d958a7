//! Every metric of the contract moves when it should.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::UdpSocket;

use super::common::{PATIENCE, Port, Server, Weir, client, command, find, have, wait_until};
use super::{ask, get, said, samples};

/// Names of the contract. What has to do with VIPs is shown where they are rendered, in `control::operator::metrics`.
const NAMES: [&str; 29] = [
    "weir_connections_total",
    "weir_connections_active",
    "weir_connections_refused_total",
    "weir_connections_closed_total",
    "weir_bytes_total",
    "weir_spliced_bytes_total",
    "weir_connect_seconds",
    "weir_connection_seconds",
    "weir_retries_total",
    "weir_backend_up",
    "weir_backend_active",
    "weir_backend_weight",
    "weir_backend_failures_total",
    "weir_probe_seconds",
    "weir_probe_failures_total",
    "weir_udp_sessions_active",
    "weir_udp_datagrams_total",
    "weir_udp_dropped_total",
    "weir_vip_held",
    "weir_vip_transitions_total",
    "weir_node_alive",
    "weir_worker_turns_total",
    "weir_worker_turn_seconds_max",
    "weir_config_generation",
    "weir_config_reload_failures_total",
    "weir_open_fds",
    "weir_limit_fds",
    "weir_build_info",
    "weir_backend_state",
];

struct Scene {
    weir: Weir,
    metrics: String,
    good: Server,
    source: Server,
    held: Vec<std::net::TcpStream>,
}

impl Scene {
    fn new() -> Scene {
        let (port, dead) = (Port::reserve(), Port::reserve());
        let good = Server::echo();
        let source = Server::source(vec![7; 64 << 20]);
        let echo = UdpSocket::bind("127.0.0.1:0").unwrap();
        let udp = echo.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut datagram = [0; 1500];
            while let Ok((bytes, from)) = echo.recv_from(&mut datagram) {
                let _ = echo.send_to(&datagram[..bytes], from);
            }
        });
        let weir = Weir::start(&format!(
            "
workers: 1
metrics: '{metrics}'
listeners:
  main: {{bind: ['127.0.0.1:0'], pool: main}}
  closed: {{bind: ['127.0.0.1:0'], pool: main, deny: [127.0.0.0/8]}}
  flaky: {{bind: ['127.0.0.1:0'], pool: flaky}}
  bulk: {{bind: ['127.0.0.1:0'], pool: bulk}}
  dns: {{protocol: udp, bind: ['127.0.0.1:0'], pool: dns}}
  deaf: {{protocol: udp, bind: ['127.0.0.1:0'], pool: dns, deny: [127.0.0.0/8]}}
pools:
  dns: {{backends: [{{name: udp, address: '{udp}'}}], health: {{type: none}}}}
  main: {{backends: [{{name: good, address: '{good}', weight: 4}}]}}
  bulk: {{backends: [{{name: source, address: '{source}'}}], health: {{type: none}}}}
  probed:
    health: {{interval: 200ms, timeout: 100ms}}
    backends: [{{name: dead, address: '{dead}'}}, {{name: good, address: '{good}'}}]
  flaky:
    balance: round_robin
    passive: off
    health: {{type: none}}
    backends: [{{name: dead, address: '{dead}'}}, {{name: good, address: '{good}'}}]
",
            metrics = port.address(),
            good = good.address,
            source = source.address,
            dead = dead.address(),
        ));
        let metrics = port.address().to_string();
        Scene {
            weir,
            metrics,
            good,
            source,
            held: Vec::new(),
        }
    }

    fn samples(&self) -> BTreeMap<String, f64> {
        let (head, body) = get(&self.metrics, "/metrics");
        assert!(head.contains("text/plain; version=0.0.4"), "{head}");
        samples(&body)
    }

    fn echo(&mut self, listener: &str) {
        let mut stream = client::connect(&self.weir.address(listener));
        client::round_trip(&mut stream, b"hello");
        self.held.push(stream);
    }
}

/// Sends five bytes to an address.
fn datagram(address: &str) -> UdpSocket {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket.connect(address).unwrap();
    socket.send(b"hello").unwrap();
    socket
}

/// The sum of the samples whose name is `name` and whose labels contain every one of `labels`.
fn sum(samples: &BTreeMap<String, f64>, name: &str, labels: &str) -> f64 {
    let matches = |key: &str| key.split('{').next() == Some(name) && labels.split(',').all(|label| key.contains(label));
    samples
        .iter()
        .filter(|(key, _)| matches(key))
        .map(|(_, value)| value)
        .sum()
}

/// What a sample does in the course of an action.
#[derive(Debug, Clone, Copy)]
enum Move {
    By(f64),
    Up,
    To(f64),
}
use Move::{By, To, Up};

type Expectation = (&'static str, &'static str, Move);

/// An action and what it moves.
type Row = (&'static str, fn(&mut Scene), &'static [Expectation]);

const ROWS: &[Row] = &[
    (
        "start",
        |_| (),
        &[
            ("weir_build_info", "version=", To(1.0)),
            ("weir_config_generation", "", To(1.0)),
            ("weir_backend_weight", "pool=\"main\",backend=\"good\"", To(4.0)),
            ("weir_backend_up", "pool=\"main\"", To(1.0)),
            ("weir_backend_state", "pool=\"main\",state=\"up\"", To(1.0)),
            ("weir_backend_up", "pool=\"probed\",backend=\"dead\"", To(0.0)),
            ("weir_probe_seconds_count", "pool=\"probed\",backend=\"good\"", Up),
            ("weir_probe_failures_total", "backend=\"dead\"", Up),
            ("weir_worker_turns_total", "worker=\"0\"", Up),
            ("weir_worker_turn_seconds_max", "worker=\"0\"", Up),
            ("weir_limit_fds", "", Up),
        ],
    ),
    (
        "a connection",
        |scene| scene.echo("main"),
        &[
            (
                "weir_connections_total",
                "listener=\"main\",protocol=\"tcp\",pool=\"main\"",
                By(1.0),
            ),
            ("weir_connections_active", "listener=\"main\"", To(1.0)),
            ("weir_backend_active", "pool=\"main\"", To(1.0)),
            ("weir_backend_connections_total", "pool=\"main\"", By(1.0)),
            ("weir_bytes_total", "listener=\"main\",direction=\"in\"", By(5.0)),
            ("weir_bytes_total", "listener=\"main\",direction=\"out\"", By(5.0)),
            ("weir_backend_bytes_total", "pool=\"main\",direction=\"out\"", By(5.0)),
            ("weir_connect_seconds_count", "pool=\"main\"", By(1.0)),
            ("weir_connect_seconds_bucket", "pool=\"main\",le=\"+Inf\"", By(1.0)),
            ("weir_connect_seconds_sum", "pool=\"main\"", Up),
            ("weir_worker_connections", "worker=\"0\"", To(1.0)),
            ("weir_open_fds", "", Up),
            ("weir_connections_total", "listener=\"bulk\"", By(0.0)),
        ],
    ),
    (
        "its end",
        |scene| scene.held.clear(),
        &[
            ("weir_connections_active", "listener=\"main\"", To(0.0)),
            ("weir_backend_active", "pool=\"main\"", To(0.0)),
            (
                "weir_connections_closed_total",
                "listener=\"main\",cause=\"finished\"",
                By(1.0),
            ),
            ("weir_connection_seconds_count", "listener=\"main\"", By(1.0)),
            ("weir_connection_seconds_sum", "listener=\"main\"", Up),
        ],
    ),
    (
        "a refusal",
        |scene| {
            if let Ok(mut stream) = client::try_connect(&scene.weir.address("closed"), None) {
                let _ = stream.read(&mut [0]);
            }
        },
        &[
            (
                "weir_connections_refused_total",
                "listener=\"closed\",reason=\"denied\"",
                By(1.0),
            ),
            (
                "weir_connections_closed_total",
                "listener=\"closed\",cause=\"denied\"",
                By(1.0),
            ),
            ("weir_connections_refused_total", "listener=\"main\"", By(0.0)),
        ],
    ),
    (
        "two connections, one of them by way of a dead backend",
        |scene| {
            scene.echo("flaky");
            scene.echo("flaky");
        },
        &[
            (
                "weir_backend_failures_total",
                "pool=\"flaky\",backend=\"dead\",reason=\"refused\"",
                By(1.0),
            ),
            ("weir_retries_total", "pool=\"flaky\",backend=\"good\"", By(1.0)),
            ("weir_connections_total", "listener=\"flaky\"", By(2.0)),
        ],
    ),
    (
        "bulk",
        |scene| {
            let mut stream = client::connect(&scene.weir.address("bulk"));
            assert_eq!(client::read_to_end(&mut stream).len(), 64 << 20);
        },
        &[(
            "weir_bytes_total",
            "listener=\"bulk\",direction=\"out\"",
            By(67_108_864.0),
        )],
    ),
    (
        "bulk that fills the buffer at every read",
        // A source that gets no CPU for a while sends less at a time.
        |scene| {
            let spliced = |scene: &Scene| sum(&scene.samples(), "weir_spliced_bytes_total", "worker=\"0\"");
            let before = spliced(scene);
            for _ in 0..20 {
                let mut stream = client::connect(&scene.weir.address("bulk"));
                assert_eq!(client::read_to_end(&mut stream).len(), 64 << 20);
                if spliced(scene) > before {
                    break;
                }
            }
        },
        &[("weir_spliced_bytes_total", "worker=\"0\"", Up)],
    ),
    (
        "a datagram and its answer",
        |scene| {
            let socket = datagram(&scene.weir.address("dns"));
            assert_eq!(socket.recv(&mut [0; 100]).unwrap(), 5);
        },
        &[
            ("weir_connections_total", "listener=\"dns\",protocol=\"udp\"", By(1.0)),
            ("weir_udp_sessions_active", "listener=\"dns\"", To(1.0)),
            ("weir_udp_datagrams_total", "listener=\"dns\",direction=\"in\"", By(1.0)),
            (
                "weir_udp_datagrams_total",
                "listener=\"dns\",direction=\"out\"",
                By(1.0),
            ),
        ],
    ),
    (
        "a datagram from somebody who may not",
        |scene| drop(datagram(&scene.weir.address("deaf"))),
        &[("weir_udp_dropped_total", "reason=\"denied\"", By(1.0))],
    ),
    (
        "a drain",
        |scene| drop(said(&scene.weir, &["backend", "main/good", "drain"])),
        &[
            ("weir_backend_state", "pool=\"main\",state=\"drain\"", To(1.0)),
            ("weir_backend_state", "pool=\"main\",state=\"up\"", To(0.0)),
            ("weir_pool_eligible", "pool=\"main\"", To(0.0)),
        ],
    ),
    (
        "a new weight",
        |scene| drop(said(&scene.weir, &["backend", "main/good", "weight", "9"])),
        &[("weir_backend_weight", "pool=\"main\"", To(9.0))],
    ),
    (
        "a reload",
        |scene| drop(said(&scene.weir, &["reload"])),
        &[
            ("weir_config_generation", "", By(1.0)),
            ("weir_connections_total", "listener=\"main\"", By(0.0)),
        ],
    ),
    (
        "a refused reload",
        |scene| {
            scene.weir.rewrite("nonsense: true");
            assert!(!ask(&scene.weir, &["reload"]).status.success());
        },
        &[
            ("weir_config_reload_failures_total", "", By(1.0)),
            ("weir_config_generation", "", By(0.0)),
        ],
    ),
];

/// Fails when any `By`, `To` or label in a row is changed.
#[test]
fn every_metric_moves_when_it_should() {
    let mut scene = Scene::new();
    let mut before = BTreeMap::new();
    for (what, action, expectations) in ROWS {
        action(&mut scene);
        for &(name, labels, movement) in *expectations {
            let old = sum(&before, name, labels);
            let mut now = 0.0;
            wait_until(&format!("{what}: {name}{{{labels}}} {movement:?} from {old}"), || {
                let samples = scene.samples();
                assert!(samples.keys().any(|key| key.starts_with(name)), "{name} has no sample");
                now = sum(&samples, name, labels);
                match movement {
                    By(step) => now == old + step,
                    To(value) => now == value,
                    Up => now > old,
                }
            });
        }
        before = scene.samples();
    }
    drop((scene.good, scene.source));
}

#[test]
fn the_page_is_what_prometheus_expects_and_every_name_is_documented() {
    let scene = Scene::new();
    let (_, page) = get(&scene.metrics, "/metrics");
    let manual = include_str!("../../docs/observability.md");
    for name in NAMES {
        assert!(
            manual.contains(&format!("`{name}`")),
            "{name} is not in docs/observability.md"
        );
    }
    for line in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let name = line.split(' ').next().unwrap();
        assert!(
            manual.contains(&format!("`{name}`")),
            "{name} is not in docs/observability.md"
        );
    }
    if !have(&["promtool"]) {
        return;
    }
    let mut promtool = command(find("promtool").unwrap());
    promtool.args(["check", "metrics"]);
    let mut child = promtool
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = format!("{}{}", super::text(&output.stdout), super::text(&output.stderr));
    assert!(output.status.success() && said.is_empty(), "{said}");
}
