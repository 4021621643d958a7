//! Real programs through the engine, over IPv4 and IPv6.

use std::fs;
use std::io::Read;
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};

use super::common::{PATIENCE, command, find, have, may_make_namespaces, run, wait_until};
use super::hosts::{Family, Net, V4, V6, ask};

const FAMILIES: [Family; 2] = [V4, V6];

/// A server in the first backend's namespace, killed when dropped.
struct Daemon {
    child: Child,
    dir: tempfile::TempDir,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!(
                "{}",
                fs::read_to_string(self.dir.path().join("output")).unwrap_or_default()
            );
        }
    }
}

fn directory() -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    dir
}

impl Daemon {
    /// Starts it and waits until it serves `port` on both families, or on any address.
    fn start(mut start: Command, port: u16, protocol: &str, dir: tempfile::TempDir) -> Daemon {
        let output = fs::File::create(dir.path().join("output")).unwrap();
        start
            .stdin(Stdio::null())
            .stdout(output.try_clone().unwrap())
            .stderr(output);
        let child = start.spawn().unwrap();
        let mut daemon = Daemon { child, dir };
        wait_until(&format!("{start:?} serves"), || {
            assert!(daemon.child.try_wait().unwrap().is_none(), "{start:?} has ended");
            let table = |suffix: &str| {
                let path = format!("/proc/{}/net/{protocol}{suffix}", daemon.child.id());
                let text = fs::read_to_string(path).unwrap_or_default();
                // `sl local remote state ...`: listening, or a UDP socket.
                text.lines().any(|line| {
                    let mut fields = line.split_whitespace().skip(1);
                    let local = fields.next().unwrap_or_default();
                    let state = fields.nth(1).unwrap_or_default();
                    local.ends_with(&format!(":{port:04X}")) && ["0A", "07"].contains(&state)
                })
            };
            table("") || table("6")
        });
        daemon
    }

    /// `/` is a few bytes; files are in `www`.
    fn nginx(net: &Net) -> Daemon {
        let dir = directory();
        let path = dir.path().display().to_string();
        fs::create_dir(dir.path().join("www")).unwrap();
        let configuration = format!(
            "daemon off; master_process off; user root; pid {path}/pid; error_log stderr warn;
             events {{ worker_connections 1024; }}
             http {{
                 access_log off; client_body_temp_path {path}/body; proxy_temp_path {path}/proxy;
                 fastcgi_temp_path {path}/fastcgi; uwsgi_temp_path {path}/uwsgi; scgi_temp_path {path}/scgi;
                 sendfile on; root {path}/www;
                 server {{ listen 8080; listen [::]:8080; location = / {{ return 200 'hello'; }} }}
             }}"
        );
        fs::write(dir.path().join("nginx.conf"), configuration).unwrap();
        let mut start = net.backends[0].command(find("nginx").unwrap().to_str().unwrap());
        start.args(["-e", "stderr", "-c", "nginx.conf", "-p", &path]);
        Daemon::start(start, 8080, "tcp", dir)
    }

    fn iperf3(net: &Net) -> Daemon {
        let mut start = net.backends[0].command("iperf3");
        start.args(["--server", "--port", "5201"]);
        Daemon::start(start, 5201, "tcp", directory())
    }

    fn redis(net: &Net) -> Daemon {
        let dir = directory();
        let mut start = net.backends[0].command("redis-server");
        start.args(["--bind", &V4.host(1, 2), &V6.host(1, 2), "--protected-mode", "no"]);
        start
            .args(["--port", "6379", "--save", "", "--appendonly", "no", "--dir"])
            .arg(dir.path());
        Daemon::start(start, 6379, "tcp", dir)
    }

    /// Answers `host.example. A`.
    fn nsd(net: &Net) -> Daemon {
        let dir = directory();
        let path = dir.path().display().to_string();
        fs::write(
            dir.path().join("zone"),
            "$ORIGIN example.\n@ 60 IN SOA ns admin 1 60 60 60 60\n@ 60 IN NS ns\nns 60 IN A 192.0.2.1\nhost 60 IN A 192.0.2.2\n",
        )
        .unwrap();
        let config = format!(
            "server:\n  ip-address: {}@5353\n  ip-address: {}@5353\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{path}\"\n  database: \"\"\n  pidfile: \"{path}/pid\"\n  zonelistfile: \"{path}/zones\"\n  xfrdfile: \"{path}/xfrd\"\n  xfrdir: \"{path}\"\n  cookie-secret-file: \"{path}/cookies\"\n  rrl-ratelimit: 0\nremote-control:\n  control-enable: no\nzone:\n  name: example.\n  zonefile: zone\n",
            V4.host(1, 2),
            V6.host(1, 2)
        );
        fs::write(dir.path().join("nsd.conf"), config).unwrap();
        let mut start = net.backends[0].command(find("nsd").unwrap().to_str().unwrap());
        start.arg("-d").arg("-c").arg(dir.path().join("nsd.conf"));
        Daemon::start(start, 5353, "udp", dir)
    }
}

/// Services with the ports of their programs.
const SERVICES: [(&str, &str, u16, u16); 5] = [
    ("web", "tcp", 80, 8080),
    ("bulk", "tcp", 5201, 5201),
    ("stream", "udp", 5201, 5201),
    ("redis", "tcp", 6379, 6379),
    ("dns", "udp", 53, 5353),
];

fn config() -> String {
    let mut yaml = [String::from("listeners:\n"), String::from("pools:\n")];
    for (suffix, family) in [("four", V4), ("six", V6)] {
        for (name, protocol, port, at) in SERVICES {
            let name = format!("{name}-{suffix}");
            yaml[0] += &format!(
                "  {name}: {{engine: kernel, protocol: {protocol}, bind: ['{}'], pool: {name}}}\n",
                family.service(port)
            );
            yaml[1] += &format!("  {name}: {{health: none, backends: ['{}']}}\n", family.backend(0, at));
        }
    }
    yaml.concat()
}

/// A program of the client; what it printed. It must succeed.
#[track_caller]
fn client(net: &Net, program: &str, arguments: &[&str]) -> String {
    run(net
        .client
        .command(find(program).unwrap().to_str().unwrap())
        .args(arguments))
}

#[test]
fn web_servers_redis_and_name_servers_are_served() {
    if !may_make_namespaces() || !have(&["nginx", "wrk", "redis-server", "redis-benchmark", "nsd", "dnsperf"]) {
        return;
    }
    let net = Net::new();
    let _servers = [Daemon::nginx(&net), Daemon::redis(&net), Daemon::nsd(&net)];
    let weir = net.weir(&config());
    let questions = tempfile::NamedTempFile::new().unwrap();
    fs::write(questions.path(), "host.example A\n").unwrap();
    for family in FAMILIES {
        let url = format!("http://{}/", family.service(80));
        for connection in ["keep-alive", "close"] {
            let header = format!("Connection: {connection}");
            let said = client(
                &net,
                "wrk",
                &["-t1", "-c32", "-d1s", "--timeout", "20s", "-H", &header, &url],
            );
            assert!(said.contains("Requests/sec"), "{said}");
            for trouble in ["Socket errors", "Non-2xx"] {
                assert!(!said.contains(trouble), "{connection}: {said}");
            }
        }
        let host = family.host(0, 1);
        let options = [
            "-h",
            &host,
            "-p",
            "6379",
            "-P",
            "16",
            "-n",
            "20000",
            "-q",
            "-t",
            "set,get,lrange_100",
        ];
        let said = client(&net, "redis-benchmark", &options);
        assert_eq!(said.matches("requests per second").count(), 4, "{said}");
        let file = questions.path().to_str().unwrap();
        let said = client(
            &net,
            "dnsperf",
            &["-s", &host, "-p", "53", "-d", file, "-l", "1", "-c", "8", "-Q", "5000"],
        );
        let count = |what: &str| {
            let line = said
                .lines()
                .find(|line| line.trim().starts_with(what))
                .unwrap_or_else(|| panic!("{said}"));
            line.split_whitespace().nth(2).unwrap().parse::<u64>().unwrap()
        };
        assert!(count("Queries sent:") > 100, "{said}");
        assert_eq!(count("Queries sent:"), count("Queries completed:"), "{said}");
    }
    // wrk leaves in the middle of its last answers.
    let bad: Vec<_> = weir
        .access_log()
        .into_iter()
        .filter(|r| !["finished", "client_reset"].contains(&&*r.cause))
        .collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn bulk_in_every_direction() {
    if !may_make_namespaces() || !have(&["iperf3"]) {
        return;
    }
    let net = Net::new();
    let _server = Daemon::iperf3(&net);
    let _weir = net.weir(&config());
    let ways: [&[&str]; 5] = [
        &[],
        &["-R"],
        &["-P", "8"],
        &["-P", "8", "--bidir"],
        &["-u", "-b", "100M", "-l", "1200"],
    ];
    for family in FAMILIES {
        let host = family.host(0, 1);
        for way in ways {
            let options = [&["-c", &host, "-p", "5201", "-t", "1", "-J"], way].concat();
            let mut said = String::new();
            // It serves one at a time, and tells the next that it is busy while the one before takes its leave.
            wait_until(&format!("iperf3 {way:?}"), || {
                let mut iperf3 = net.client.command("iperf3");
                let output = iperf3.args(&options).output().unwrap();
                said = String::from_utf8(output.stdout).unwrap();
                output.status.success() || !said.contains("busy")
            });
            let end: serde_json::Value = serde_json::from_str(&said).unwrap();
            let sums = match way.contains(&"-u") {
                true => vec!["sum"],
                false if way.contains(&"--bidir") => vec!["sum_received", "sum_received_bidir_reverse"],
                false => vec!["sum_received"],
            };
            for sum in sums {
                let bytes = end["end"][sum]["bytes"].as_f64();
                assert!(
                    bytes > Some(1e6),
                    "{family:?} {way:?} {sum}: {bytes:?} {}",
                    end["error"]
                );
            }
        }
    }
}

/// 100 MB, exactly, also where the way is narrow on either side.
#[test]
fn a_large_file_arrives_as_it_is() {
    if !may_make_namespaces() || !have(&["nginx", "curl", "sha256sum"]) {
        return;
    }
    let net = Net::new();
    let server = Daemon::nginx(&net);
    let file = server.dir.path().join("www/file");
    let mut bytes = Vec::with_capacity(100_000_000);
    while bytes.len() < 100_000_000 {
        bytes.extend((bytes.len() as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes());
    }
    fs::write(&file, bytes).unwrap();
    let sum = |said: &str| said.split_whitespace().next().unwrap().to_string();
    let wanted = sum(&run(command("sha256sum").arg(&file)));
    let _weir = net.weir(&config());
    let fetched = |family: Family| {
        let line = format!("curl -sS http://{}/file | sha256sum", family.service(80));
        sum(&run(net.client.command("sh").args(["-c", &line])))
    };
    for (side, family) in [(None, V4), (None, V6), (Some(0), V4), (Some(1), V6)] {
        (0..2).for_each(|ix| net.set_mtu(ix, if side == Some(ix) { 1300 } else { 1500 }));
        assert_eq!(fetched(family), wanted, "{family:?}, narrow: {side:?}");
    }
}

/// Errors that hosts send about what was passed on reach whoever sent it, translated.
#[test]
fn errors_of_either_side_reach_the_other() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new().without_offloads();
    let _weir = net.weir(&config());
    for family in FAMILIES {
        // Nobody is there.
        let asking = net.udp_client(&family.service(53));
        asking.send(b"question").unwrap();
        let error = asking.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{family:?}");

        // The client has gone before the answer.
        let answering = net.backends[0].enter(|| UdpSocket::bind(family.backend(0, 5353)).unwrap());
        answering.set_read_timeout(Some(PATIENCE)).unwrap();
        let gone = net.udp_client(&family.service(53));
        gone.send(b"question").unwrap();
        let (_, from) = answering.recv_from(&mut [0; 16]).unwrap();
        drop(gone);
        answering.connect(from).unwrap();
        answering.send(b"answer").unwrap();
        let error = answering.recv(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{family:?}");
    }
}

/// With offloads off, whatever leaves has its checksums on the wire: streams, datagrams whole and in pieces, errors.
#[test]
fn no_checksum_on_the_wire_is_wrong() {
    if !may_make_namespaces() || !have(&["tcpdump", "ethtool", "nginx", "curl"]) {
        return;
    }
    let net = Net::new().without_offloads();
    let server = Daemon::nginx(&net);
    fs::write(server.dir.path().join("www/file"), vec![b'x'; 300_000]).unwrap();
    FAMILIES
        .iter()
        .for_each(|family| net.udp_echo(0, &family.backend(0, 5353)));
    let _weir = net.weir(&config());
    let captures = [(&net.client, "eth0"), (&net.backends[0], "eth1")].map(|(host, link)| {
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut start = host.command(find("tcpdump").unwrap().to_str().unwrap());
        start
            .args(["-i", link, "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-w"])
            .arg(file.path());
        let mut child = start.stderr(Stdio::piped()).spawn().unwrap();
        // It says when it begins.
        let mut said = [0; 1];
        child.stderr.as_mut().unwrap().read_exact(&mut said).unwrap();
        (child, file)
    });
    for family in FAMILIES {
        let url = format!("http://{}/file", family.service(80));
        assert_eq!(client(&net, "curl", &["-sS", &url]).len(), 300_000);
        let socket = net.udp_client(&family.service(53));
        for length in [1, 1000, 4000] {
            assert_eq!(ask(&socket, &vec![7; length]).len(), length);
        }
        // Too big: an error of the balancer's own.
        net.set_mtu(1, 1300);
        socket
            .set_read_timeout(Some(std::time::Duration::from_millis(300)))
            .unwrap();
        wait_until("it comes in pieces", || {
            let _ = socket.send(&[7; 1400]);
            socket.recv(&mut [0; 2000]).is_ok()
        });
        net.set_mtu(1, 1500);
    }
    let read = |file: &tempfile::NamedTempFile| {
        let mut tcpdump = command(find("tcpdump").unwrap());
        let output = tcpdump.args(["-n", "-vv", "-r"]).arg(file.path()).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    // The last of all that the client gets but for the answer in pieces.
    wait_until("everything is written", || {
        read(&captures[0].1).contains("packet too big")
    });
    let mut all = String::new();
    for (mut child, file) in captures {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(child.id() as i32),
            nix::sys::signal::Signal::SIGINT,
        )
        .unwrap();
        child.wait().unwrap();
        let said = read(&file);
        let wrong = |line: &&str| {
            let line = line.to_lowercase();
            ["incorrect", "bad cksum", "bad udp cksum", "wrong"]
                .iter()
                .any(|word| line.contains(word))
        };
        let wrong: Vec<&str> = said.lines().filter(wrong).collect();
        assert!(wrong.is_empty(), "{wrong:#?}");
        all += &said;
    }
    for seen in ["IP (", "IP6 (", "flags [+]", "need to frag", "packet too big"] {
        assert!(all.contains(seen), "{seen} in {} lines", all.lines().count());
    }
}
