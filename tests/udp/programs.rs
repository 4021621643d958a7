//! Real programs that speak UDP.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use super::common::server::Port;
use super::common::{Certificate, Weir, command, find, have, run, wait_until};
use super::peers::Client;

/// A server program in a directory of its own, killed when dropped.
struct Daemon {
    child: Child,
    _dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap()
}

fn program(name: &str) -> Command {
    command(find(name).unwrap())
}

fn weir_before(backends: &[std::net::SocketAddr], udp: &str) -> Weir {
    let list: Vec<String> = backends.iter().map(ToString::to_string).collect();
    Weir::start(&format!(
        "
workers: 2
log: {{access: off}}
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main, udp: {udp}}}}}
pools: {{main: {{balance: round_robin, backends: {list:?}}}}}
"
    ))
}

/// A name server for `example.`, which answers `host.example. A`.
fn nsd(port: &Port) -> Daemon {
    let dir = directory();
    let path = dir.path().display();
    fs::write(
        dir.path().join("zone"),
        "$ORIGIN example.\n@ 60 IN SOA ns admin 1 60 60 60 60\n@ 60 IN NS ns\nns 60 IN A 192.0.2.1\nhost 60 IN A 192.0.2.2\n",
    )
    .unwrap();
    let config = format!(
        "server:\n  ip-address: 127.0.0.1@{}\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{path}\"\n  database: \"\"\n  pidfile: \"{path}/pid\"\n  zonelistfile: \"{path}/zones\"\n  xfrdfile: \"{path}/xfrd\"\n  xfrdir: \"{path}\"\n  cookie-secret-file: \"{path}/cookies\"\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\nzone:\n  name: example.\n  zonefile: zone\n",
        port.number
    );
    fs::write(dir.path().join("nsd.conf"), config).unwrap();
    let mut start = program("nsd");
    start.args(["-d", "-c"]).arg(dir.path().join("nsd.conf"));
    let child = start
        .stdin(Stdio::null())
        .stderr(fs::File::create(dir.path().join("log")).unwrap())
        .spawn()
        .unwrap();
    let daemon = Daemon { child, _dir: dir };
    let client = Client::at("127.0.0.1");
    // A query for host.example. A.
    let query = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\0\x04host\x07example\0\0\x01\0\x01";
    wait_until("nsd answers", || {
        let _ = client.0.send_to(query, port.address());
        client
            .receive_within(Duration::from_millis(50))
            .is_some_and(|answer| answer.starts_with(b"\x12\x34\x85"))
    });
    daemon
}

/// dnsperf through weir to two name servers: no query is lost, with sessions that end with each answer and with such that
/// stay.
#[test]
fn dnsperf_to_nsd_loses_no_query() {
    if !have(&["dnsperf", "nsd"]) {
        return;
    }
    let ports = [Port::reserve(), Port::reserve()];
    let _servers = [nsd(&ports[0]), nsd(&ports[1])];
    let dir = directory();
    let queries = dir.path().join("queries");
    fs::write(&queries, "host.example. A\nns.example. A\nnone.example. A\n").unwrap();
    for udp in [
        "{idle: 10s, replies: 1}",
        "{idle: 10s}",
        "{idle: 10s, requests: 1, replies: 1}",
    ] {
        let weir = weir_before(&[ports[0].address(), ports[1].address()], udp);
        let address = weir.address("main");
        let (host, port) = address.rsplit_once(':').unwrap();
        let mut load = program("dnsperf");
        load.args([
            "-s", host, "-p", port, "-l", "3", "-c", "20", "-Q", "3000", "-t", "5", "-d",
        ])
        .arg(&queries);
        let report = run(&mut load);
        assert!(report.contains("Queries lost:         0 (0.00%)"), "{udp}: {report}");
        let sent = report
            .lines()
            .find_map(|line| line.trim().strip_prefix("Queries sent:"))
            .expect(&report);
        assert!(sent.trim().parse::<u64>().unwrap() > 300, "{report}");
    }
}

/// iperf3 over UDP, both directions. Its control connection is TCP, so both protocols share the port.
#[test]
fn iperf3_loses_nothing_at_a_moderate_rate() {
    if !have(&["iperf3"]) {
        return;
    }
    for direction in [&[][..], &["--reverse"]] {
        // What is lost because a thread waits 50 ms for a CPU, weir's or iperf3's, is not lost every time.
        let loses_nothing = (0..3).any(|_| {
            let (packets, lost) = iperf3_losses(direction);
            println!("{direction:?}: {lost} of {packets} lost");
            packets > 500 && lost * 1000 <= packets
        });
        assert!(loses_nothing, "{direction:?}");
    }
}

/// Datagrams sent and lost. Each time with a server of its own: one that has not yet read the end of the last test is busy.
fn iperf3_losses(direction: &[&str]) -> (u64, u64) {
    let server = super::common::program::Program::iperf3();
    let port = Port::reserve();
    let _weir = Weir::start(&format!(
        "
workers: 1
listeners:
  control: {{bind: ['{0}'], pool: control}}
  data: {{protocol: udp, bind: ['{0}'], pool: data}}
pools:
  control: {{backends: ['{1}'], health: {{type: none}}}}
  data: {{backends: ['{1}']}}
",
        port.address(),
        server.address(),
    ));
    let mut load = program("iperf3");
    load.args(["--json", "--client", "127.0.0.1", "--port", &port.number.to_string()]);
    load.args([
        "--udp",
        "--bitrate",
        "20M",
        "--length",
        "1200",
        "--time",
        "2",
        "--window",
        "1M",
    ])
    .args(direction);
    let report: serde_json::Value = serde_json::from_str(&run(&mut load)).unwrap();
    let sum = &report["end"]["sum"];
    assert_eq!(sum["out_of_order"].as_u64().unwrap_or(0), 0);
    (
        sum["packets"].as_u64().expect("a number of packets"),
        sum["lost_packets"].as_u64().expect("a number of losses"),
    )
}

/// A DTLS connection that falls silent for longer than most timers and then goes on: a short silence by default, the long one
/// with `WEIR_SILENCE_S=60`.
#[test]
fn a_dtls_connection_survives_silence_within_the_idle_time() {
    if !have(&["openssl"]) {
        return;
    }
    let silence: u64 = std::env::var("WEIR_SILENCE_S").map_or(3, |text| text.parse().expect("seconds"));
    let (dir, port) = (directory(), Port::reserve());
    let made = Certificate::self_signed(dir.path(), "weir", "IP:127.0.0.1");
    let mut serve = program("openssl");
    serve.args(["s_server", "-dtls", "-quiet", "-4", "-accept"]);
    serve
        .arg(port.address().to_string())
        .arg("-key")
        .arg(&made.key)
        .arg("-cert")
        .arg(&made.certificate);
    let mut server = Talker::start(serve, dir.path().join("server"));
    let number = format!(":{:04X} ", port.number);
    let bound = || fs::read_to_string("/proc/net/udp").unwrap().contains(&number);
    wait_until("openssl listens", bound);

    let weir = weir_before(&[port.address()], &format!("{{idle: {}s}}", silence + 5));
    let mut connect = program("openssl");
    connect.args(["s_client", "-dtls", "-quiet", "-connect", &weir.address("main")]);
    let mut client = Talker::start(connect, dir.path().join("client"));
    for (round, pause) in [("before", silence), ("after", 0)] {
        client.say(&format!("question {round}\n"));
        wait_until("the question", || server.heard(&format!("question {round}")));
        server.say(&format!("answer {round}\n"));
        wait_until("the answer", || client.heard(&format!("answer {round}")));
        std::thread::sleep(Duration::from_secs(pause));
    }
    drop(weir);
}

/// A program that is spoken to and listened to.
struct Talker {
    daemon: Daemon,
    input: ChildStdin,
    output: PathBuf,
}

impl Talker {
    fn start(mut command: Command, output: PathBuf) -> Talker {
        let file = fs::File::create(&output).unwrap();
        command
            .stdin(Stdio::piped())
            .stdout(file.try_clone().unwrap())
            .stderr(file);
        let mut child = command.spawn().unwrap();
        let input = child.stdin.take().unwrap();
        Talker {
            daemon: Daemon {
                child,
                _dir: directory(),
            },
            input,
            output,
        }
    }

    fn say(&mut self, text: &str) {
        assert!(self.daemon.child.try_wait().unwrap().is_none(), "it has ended");
        self.input.write_all(text.as_bytes()).unwrap();
    }

    fn heard(&self, text: &str) -> bool {
        fs::read_to_string(&self.output).unwrap_or_default().contains(text)
    }
}
