//! Ephemeral ports towards a backend run out: connections go to another backend or source address, in good order.

use std::io::Read;
use std::time::{Duration, Instant};

use super::common::netns::{Netns, link};
use super::common::{self, Launch, Server, client, server};

/// The shipped kernel parameters.
const SYSCTL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/weir.sysctl");

fn network() -> (Netns, Netns) {
    let (weir, backends) = (Netns::new("weir"), Netns::new("backends"));
    link("eth0", [(&weir, "10.96.0.1/24"), (&backends, "10.96.0.2/24")]);
    backends.ip(&["addr", "add", "10.96.0.3/24", "dev", "eth0"]);
    (weir, backends)
}

/// A server that answers and keeps its end open until the client has ended, so that weir's FIN comes first.
fn patient(netns: &Netns, ip: [u8; 4], answer: &'static [u8]) -> Server {
    let serve = move |mut stream: std::net::TcpStream| {
        let _ = std::io::Write::write_all(&mut stream, answer);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    };
    netns.enter(move || Server::each_on(server::bind((ip, 0)), serve))
}

/// Break tried: EADDRNOTAVAIL taken for the end of the connection instead of the attempt.
#[test]
fn when_ports_run_out_another_backend_is_taken() {
    if !common::may_make_namespaces() {
        return;
    }
    let (host, backends) = network();
    // Clients elsewhere: their ports must not be taken from the few that are to run out.
    let clients = Netns::new("clients");
    link("eth1", [(&clients, "10.95.0.1/24"), (&host, "10.95.0.2/24")]);
    host.sysctl("net.ipv4.ip_local_port_range", "40000 40059");
    let a = patient(&backends, [10, 96, 0, 2], b"a");
    let b = patient(&backends, [10, 96, 0, 3], b"b");
    let yaml = format!(
        "listeners: {{web: {{bind: '10.95.0.2:30000', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{type: none}}, backends: [\
         {{name: a, address: '{}', weight: 9}}, {{name: b, address: '{}', weight: 1}}]}}}}\n",
        a.address, b.address
    );
    let weir = Launch::new(&yaml).inside(&host).start();
    for _ in 0..100 {
        let mut stream = clients.enter(|| client::connect("10.95.0.2:30000"));
        let mut answer = [0];
        stream.read_exact(&mut answer).expect("every client is served");
    }
    let records = weir.wait_for_records(100);
    let retried = records.iter().filter(|record| record.attempts > 1).count();
    assert!(retried >= 20, "{retried} went on to the other backend");
    assert!(records.iter().all(|r| r.cause == "finished"));
    let about: Vec<_> = weir.stderr().into_iter().filter(|l| l.contains("no_ports")).collect();
    assert!((1..=10).contains(&about.len()), "{about:?}");
}

fn apply_shipped_parameters(host: &Netns) {
    let settings = std::fs::read_to_string(SYSCTL).unwrap();
    let mut applied = 0;
    for line in settings.lines().map(str::trim) {
        if let Some((key, value)) = line.split_once('=').filter(|_| line.starts_with("net.ipv4")) {
            host.sysctl(key.trim(), value.trim());
            applied += 1;
        }
    }
    assert!(applied >= 3, "{applied} parameters in {SYSCTL}");
}

/// `weir check` says what the host lacks, and nothing once it has it.
///
/// Break tried: the kernel's parameters not read.
#[test]
fn weir_check_warns_where_the_parameters_are_not_in_force() {
    if !common::may_make_namespaces() {
        return;
    }
    let host = Netns::new("host");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    std::fs::write(
        &file,
        "listeners: {web: {bind: '0.0.0.0:80', pool: web}}\npools: {web: {backends: '10.0.0.1:80'}}\n",
    )
    .unwrap();
    let check = || {
        common::run(
            host.command(env!("CARGO_BIN_EXE_weir"))
                .args(["check", "-c"])
                .arg(&file),
        )
    };
    let before = check();
    assert!(
        before.contains("local ports") && before.contains("net.ipv4.tcp_tw_reuse=1 (conf/weir.sysctl)"),
        "{before}"
    );
    apply_shipped_parameters(&host);
    let after = check();
    assert!(!after.contains("tcp_tw_reuse"), "{after}");
}

/// Connections of which weir closes the backend's side first, so that it holds the port in TIME_WAIT; `ports` of them are
/// there.
fn many_connections(rate: u32, count: u32, ports: Option<u32>) {
    if !common::may_make_namespaces() {
        return;
    }
    let (host, backends) = network();
    let clients = Netns::new("clients");
    link("eth1", [(&clients, "10.95.0.1/24"), (&host, "10.95.0.2/24")]);
    clients.sysctl("net.ipv4.tcp_tw_reuse", "1");
    clients.sysctl("net.ipv4.ip_local_port_range", "10240 65535");
    apply_shipped_parameters(&host);
    if let Some(ports) = ports {
        host.sysctl("net.ipv4.ip_local_port_range", &format!("40000 {}", 39_999 + ports));
    }
    let a = patient(&backends, [10, 96, 0, 2], b"a");
    let yaml = format!(
        "log: {{access: off}}\n\
         listeners: {{web: {{bind: '10.95.0.2:1000', pool: web}}}}\n\
         pools: {{web: {{health: {{type: none}}, backends: '{}'}}}}\n",
        a.address
    );
    let weir = Launch::new(&yaml).inside(&host).start();
    let start = Instant::now();
    // Not more than the rate, and less where the machine does not manage. Threads are born where their parent is.
    clients.enter(|| {
        std::thread::scope(|scope| {
            for thread in 0..2 {
                scope.spawn(move || {
                    for n in (thread..count).step_by(2) {
                        let due = start + Duration::from_secs(1) * n / rate;
                        std::thread::sleep(due.saturating_duration_since(Instant::now()));
                        let mut stream = client::connect("10.95.0.2:1000");
                        stream.read_exact(&mut [0]).expect("served");
                    }
                });
            }
        });
    });
    println!("{count} connections in {:?}", start.elapsed());
    assert!(!weir.stderr().join("\n").contains("no_ports"));
}

#[test]
#[ignore = "long: a minute"]
fn three_thousand_connections_a_second_with_the_shipped_parameters() {
    many_connections(3000, 180_000, None);
}

/// The same in small: fewer ports than connections in a minute of TIME_WAIT.
///
/// Break tried: net.ipv4.tcp_tw_reuse taken out of conf/weir.sysctl.
#[test]
fn ports_come_back_with_the_shipped_parameters() {
    many_connections(500, 2_500, Some(1_500));
}
