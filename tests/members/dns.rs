//! Names: against nsd, and against a server that lies.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::netns::Netns;
use super::common::program::Program;
use super::common::server::{bind, loopback};
use super::common::{Launch, Port, Server, Weir, find, have, may_make_namespaces, operator, wait_until};
use super::{answers, error, members, states, wait_until_answers, wait_until_up};

/// Servers that answer their name on one port of several loopback addresses.
fn servers(addresses: &[(u8, &str)]) -> (u16, Vec<Server>) {
    let port = Port::reserve().number;
    let one = |(last, name): &(u8, &str)| Server::named_on(bind((loopback(*last), port)), name);
    (port, addresses.iter().map(one).collect())
}

/// A pool `web` with these `members`, looked up at `servers` every 100 ms or later.
pub fn configuration(members: &str, servers: &[SocketAddr]) -> String {
    let servers: Vec<String> = servers.iter().map(|s| format!("'{s}'")).collect();
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{interval: 50ms}}, {members}, \
         resolver: {{servers: [{}], timeout: 150ms, min_ttl: 100ms, max_ttl: 1s}}}}}}\n",
        servers.join(", ")
    )
}

/// nsd with the zone `internal.`.
pub struct Nsd {
    program: Program,
    pub address: SocketAddr,
}

impl Nsd {
    pub fn start(records: &str) -> Nsd {
        let (dir, port) = (
            tempfile::Builder::new().prefix("weir-nsd-").tempdir().unwrap(),
            Port::reserve(),
        );
        let path = dir.path().display().to_string();
        let address = port.address();
        let text = format!(
            "server:\n  ip-address: 127.0.0.1@{}\n  username: \"\"\n  chroot: \"\"\n  zonesdir: \"{path}\"\n  pidfile: \"\"\n  \
             database: \"\"\n  xfrdfile: \"{path}/xfrd\"\n  zonelistfile: \"{path}/zones\"\n  xfrdir: \"{path}\"\n  \
             server-count: 1\n  rrl-ratelimit: 0\n  round-robin: yes\nremote-control:\n  control-enable: no\n\
             zone:\n  name: internal.\n  zonefile: internal.zone\n",
            port.number
        );
        fs::write(dir.path().join("nsd.conf"), text).unwrap();
        fs::write(dir.path().join("internal.zone"), zone(records, 1)).unwrap();
        let mut start = super::common::command(find("nsd").unwrap());
        start.arg("-d").arg("-c").arg(dir.path().join("nsd.conf"));
        let program = Program::start(start, port, dir);
        Nsd { program, address }
    }

    pub fn change(&self, records: &str) {
        static SERIAL: AtomicUsize = AtomicUsize::new(2);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        let file = self.program.dir().join("internal.zone");
        fs::write(file.with_extension("new"), zone(records, serial)).unwrap();
        fs::rename(file.with_extension("new"), &file).unwrap();
        // It tells files apart by their times.
        let later = std::time::SystemTime::now() + Duration::from_secs(serial as u64);
        fs::File::open(&file).unwrap().set_modified(later).unwrap();
        kill(Pid::from_raw(self.program.id() as i32), Signal::SIGHUP).unwrap();
    }
}

fn zone(records: &str, serial: usize) -> String {
    format!("$ORIGIN internal.\n$TTL 0\n@ SOA ns hostmaster {serial} 60 60 600 0\n@ NS ns\nns A 127.0.0.1\n{records}\n")
}

/// Records that change and vanish, an alias, both families, TTL 0, and another order, which is no change.
#[test]
fn names_by_nsd() {
    if !have(&["nsd"]) {
        return;
    }
    let (port, _servers) = servers(&[(1, "a"), (2, "b"), (3, "c")]);
    let nsd = Nsd::start("web A 127.0.0.1\nalias CNAME web");
    let keys = format!("members: [{{dns: alias.internal, port: {port}, weight: 3}}]");
    let weir = Weir::start(&configuration(&keys, &[nsd.address]));
    assert_eq!(answers(&weir, 4), ["a"], "known before it was ready");
    assert_eq!(
        members(&weir)["members"][0]["source"],
        format!("dns:alias.internal:{port}")
    );
    assert_eq!(members(&weir)["members"][0]["weight"], 3);

    nsd.change("web A 127.0.0.1\nweb A 127.0.0.2\nweb A 127.0.0.3\nweb AAAA ::1\nalias CNAME web");
    wait_until("all are known", || states(&weir).len() == 4);
    wait_until_answers(&weir, &["a", "b", "c"]);
    // nsd turns the records round from answer to answer.
    let lines = weir.stderr().iter().filter(|line| line.contains("members:")).count();
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(
        weir.stderr().iter().filter(|line| line.contains("members:")).count(),
        lines,
        "no churn"
    );

    nsd.change("web A 127.0.0.3\nalias CNAME web");
    wait_until_answers(&weir, &["c"]);
    // Gone: those of before stay, and it is said why.
    nsd.change("other A 127.0.0.1");
    wait_until("NXDOMAIN", || error(&weir).is_some_and(|e| e.contains("NXDOMAIN")));
    assert_eq!(answers(&weir, 4), ["c"]);
    nsd.change("web TXT nobody\nalias CNAME web");
    wait_until("no records", || {
        error(&weir).is_some_and(|e| e.contains("no A") || e.contains("no AAAA"))
    });
    assert_eq!(answers(&weir, 4), ["c"]);
    nsd.change("web A 127.0.0.1\nalias CNAME web");
    wait_until_answers(&weir, &["a"]);
    assert_eq!(error(&weir), None);
}

/// A hundred addresses do not fit a datagram: they come by TCP.
#[test]
fn a_hundred_addresses_by_nsd() {
    if !have(&["nsd"]) {
        return;
    }
    let list: String = (1..=100).map(|n| format!("web A 127.0.1.{n}\n")).collect();
    let nsd = Nsd::start(&list);
    let yaml = configuration("members: [{dns: web.internal, port: 9}]", &[nsd.address]);
    let weir = Weir::start(&yaml.replace("interval: 50ms", "type: none"));
    wait_until("all are known", || states(&weir).len() == 100);
}

/// The lowest priority serves, the next are backups; weights and ports are the record's.
#[test]
fn services_by_nsd() {
    if !have(&["nsd"]) {
        return;
    }
    let (port, mut servers) = servers(&[(1, "a"), (2, "b"), (3, "c")]);
    let hosts = "a A 127.0.0.1\nb A 127.0.0.2\nc A 127.0.0.3\n";
    let nsd = Nsd::start(&format!(
        "{hosts}_http._tcp SRV 10 3 {port} a\n_http._tcp SRV 10 0 {port} b\n_http._tcp SRV 20 5 {port} c"
    ));
    let weir = Weir::start(&configuration("members: [{srv: _http._tcp.internal}]", &[nsd.address]));
    wait_until_answers(&weir, &["a", "b"]);
    let document = members(&weir);
    let rows: Vec<(&str, u64, bool)> = document["members"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| {
            (
                m["address"].as_str().unwrap(),
                m["weight"].as_u64().unwrap(),
                m["backup"].as_bool().unwrap(),
            )
        })
        .collect();
    let at = |n: u8| format!("127.0.0.{n}:{port}");
    assert_eq!(rows, [(&*at(1), 3, false), (&*at(2), 1, false), (&*at(3), 5, true)]);
    servers.drain(..2);
    wait_until_answers(&weir, &["c"]);
    nsd.change(&format!("{hosts}_http._tcp SRV 0 0 0 ."));
    wait_until("not offered", || {
        error(&weir).is_some_and(|e| e.contains("the service is not offered"))
    });
    assert_eq!(answers(&weir, 2), ["c"]);
}

/// What a server in the test answers.
#[derive(Clone, Debug)]
pub enum Lie {
    /// Addresses of these hosts.
    Truth(Vec<Ipv4Addr>),
    /// The same, by TCP only: what comes by datagram is cut off at 512 bytes.
    CutOff(Vec<Ipv4Addr>),
    /// The same, so much later.
    Late(Duration, Vec<Ipv4Addr>),
    /// No records, with this code.
    Code(u8),
    Garbage,
    /// An answer to another question.
    OtherNumber,
    Silence,
}

pub struct Liar {
    pub address: SocketAddr,
    lie: Arc<Mutex<Lie>>,
    asked: Arc<AtomicUsize>,
}

impl Liar {
    pub fn start(lie: Lie) -> Liar {
        loop {
            let stream = bind((Ipv4Addr::LOCALHOST, 0));
            if let Ok(datagrams) = UdpSocket::bind(stream.local_addr().unwrap()) {
                return Liar::on(stream, datagrams, lie);
            }
        }
    }

    fn on(stream: TcpListener, datagrams: UdpSocket, lie: Lie) -> Liar {
        let (address, lie) = (stream.local_addr().unwrap(), Arc::new(Mutex::new(lie)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (by_datagram, count) = (lie.clone(), asked.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok((len, from)) = datagrams.recv_from(&mut buffer) {
                count.fetch_add(1, Ordering::Relaxed);
                let (question, lie) = (buffer[..len].to_vec(), by_datagram.lock().unwrap().clone());
                let socket = datagrams.try_clone().unwrap();
                std::thread::spawn(move || {
                    if let Some(answer) = answer(&question, &lie, false) {
                        let _ = socket.send_to(&answer, from);
                    }
                });
            }
        });
        let by_stream = lie.clone();
        std::thread::spawn(move || {
            for mut stream in stream.incoming().flatten() {
                let lie = by_stream.clone();
                std::thread::spawn(move || while serve(&mut stream, &lie).is_ok() {});
            }
        });
        Liar { address, lie, asked }
    }

    pub fn say(&self, lie: Lie) {
        *self.lie.lock().unwrap() = lie;
    }
}

fn serve(stream: &mut TcpStream, lie: &Mutex<Lie>) -> std::io::Result<()> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut question = vec![0; usize::from(u16::from_be_bytes(len))];
    stream.read_exact(&mut question)?;
    let lie = lie.lock().unwrap().clone();
    if let Some(answer) = answer(&question, &lie, true) {
        stream.write_all(&(answer.len() as u16).to_be_bytes())?;
        stream.write_all(&answer)?;
    }
    Ok(())
}

/// The whole message; TTL 0. Only questions for A records get addresses.
fn answer(question: &[u8], lie: &Lie, by_stream: bool) -> Option<Vec<u8>> {
    let mut end = 12;
    while question[end] != 0 {
        end += 1 + usize::from(question[end]);
    }
    let is_a = question[end + 1..end + 3] == [0, 1];
    let (code, ips, cut) = match lie {
        Lie::Silence => return None,
        Lie::Garbage => return Some((0..200u8).map(|n| n.wrapping_mul(167)).collect()),
        Lie::Code(code) => (*code, &[][..], false),
        Lie::Truth(ips) => (0, &ips[..], false),
        Lie::OtherNumber => (0, &[][..], false),
        Lie::CutOff(ips) => (0, &ips[..], !by_stream),
        Lie::Late(by, ips) => {
            std::thread::sleep(*by);
            (0, &ips[..], false)
        }
    };
    let ips = if is_a { ips } else { &[] };
    let mut message = question[..2].to_vec();
    if matches!(lie, Lie::OtherNumber) {
        message[0] ^= 0xff;
    }
    message.extend([0x84 | if cut { 2 } else { 0 }, 0x80 | code]);
    message.extend([0, 1]);
    message.extend((ips.len() as u16).to_be_bytes());
    message.extend([0, 0, 0, 0]);
    message.extend(&question[12..end + 5]);
    for ip in ips {
        message.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        message.extend(ip.octets());
    }
    if cut {
        message.truncate(512);
    }
    Some(message)
}

fn here(last: &[u8]) -> Vec<Ipv4Addr> {
    last.iter().map(|&n| Ipv4Addr::new(127, 0, 0, n)).collect()
}

/// Whatever the server says or does not say, those who serve go on; and when it says the truth again, that counts.
///
/// Meant to notice: NXDOMAIN taken for an answer.
#[test]
fn a_server_that_lies() {
    let (port, _servers) = servers(&[(1, "a"), (2, "b")]);
    let liar = Liar::start(Lie::Truth(here(&[1])));
    let keys = format!("members: [{{dns: web.internal, port: {port}, family: v4}}]");
    let weir = Weir::start(&configuration(&keys, &[liar.address]));
    assert_eq!(answers(&weir, 4), ["a"]);
    let rows: [(Lie, &str); 9] = [
        (Lie::Silence, "timed out"),
        (Lie::Late(Duration::from_secs(3), here(&[2])), "timed out"),
        (Lie::Code(0), "no A records"),
        (Lie::Code(2), "erver"),
        (Lie::Code(3), "NXDOMAIN"),
        (Lie::Code(5), "efused"),
        (Lie::Garbage, ""),
        (Lie::OtherNumber, "timed out"),
        (Lie::Truth(vec![Ipv4Addr::UNSPECIFIED]), "0.0.0.0"),
    ];
    for (lie, words) in rows {
        liar.say(lie.clone());
        let before = members(&weir)["sources"][0]["failures"].as_u64();
        wait_until(&format!("{lie:?}: {:?}", error(&weir)), || {
            error(&weir).is_some_and(|e| e.contains(words))
        });
        wait_until("it is counted", || {
            members(&weir)["sources"][0]["failures"].as_u64() > before
        });
        assert_eq!(answers(&weir, 4), ["a"], "{lie:?}");
        let status = operator::status(&weir);
        assert!(status["pools"][0]["sources"][0]["error_s"].is_u64(), "{status}");
        // Another each time, so that it is known to have counted.
        liar.say(Lie::CutOff(here(&[1, 2])));
        wait_until_up(&weir, &[&format!("127.0.0.1:{port}"), &format!("127.0.0.2:{port}")]);
        liar.say(Lie::Truth(here(&[1])));
        wait_until_up(&weir, &[&format!("127.0.0.1:{port}")]);
        assert_eq!(error(&weir), None);
    }
}

/// One of several servers is enough: the first is silent, refuses, or has failed.
#[test]
fn several_servers() {
    let (port, _servers) = servers(&[(1, "a"), (2, "b")]);
    let (first, second) = (Liar::start(Lie::Silence), Liar::start(Lie::Truth(here(&[1]))));
    let nobody = Port::reserve();
    let keys = format!("members: [{{dns: web.internal, port: {port}, family: v4}}]");
    let weir = Weir::start(&configuration(
        &keys,
        &[nobody.address(), first.address, second.address],
    ));
    wait_until_answers(&weir, &["a"]);
    first.say(Lie::Code(2));
    second.say(Lie::Truth(here(&[2])));
    wait_until_answers(&weir, &["b"]);
}

/// `address: NAME:PORT`, with what else is said of a backend, beside one that is an address; and a start while nobody answers.
#[test]
fn a_name_where_an_address_stands() {
    let (port, _servers) = servers(&[(1, "a"), (2, "b")]);
    let liar = Liar::start(Lie::Silence);
    let keys = format!(
        "backends: [{{name: db, address: 'db.internal:{port}', weight: 4, max_connections: 9}}, '127.0.0.2:{port}']"
    );
    let weir = Weir::start(&configuration(&keys, &[liar.address]));
    assert_eq!(answers(&weir, 4), ["b"]);
    liar.say(Lie::Truth(here(&[1])));
    wait_until_answers(&weir, &["a", "b"]);
    let document = members(&weir);
    let db = document["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["name"] == "db")
        .unwrap();
    assert_eq!(
        (&db["weight"], &db["source"]),
        (&4.into(), &format!("dns:db.internal:{port}").into())
    );
}

/// TTL 0 does not mean all the time: not before `min_ttl`.
#[test]
fn questions_keep_their_distance() {
    let liar = Liar::start(Lie::Truth(here(&[1])));
    let yaml = configuration("members: [{dns: web.internal, port: 9, family: v4}]", &[liar.address]);
    let weir = Weir::start(&yaml.replace("min_ttl: 100ms", "min_ttl: 400ms"));
    wait_until("it was asked", || liar.asked.load(Ordering::Relaxed) > 0);
    let before = liar.asked.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(1500));
    let asked = liar.asked.load(Ordering::Relaxed) - before;
    assert!((1..=5).contains(&asked), "{asked} questions in 1.5 s");
    drop(weir);
}

/// The system's resolver: /etc/resolv.conf, also when it changes, and /etc/hosts, in the sandbox.
#[test]
fn the_systems_resolver() {
    if !may_make_namespaces() || !have(&["unshare"]) {
        return;
    }
    let netns = Netns::new("names");
    let (port, one, other, _servers) = netns.enter(|| {
        let (port, servers) = servers(&[(1, "a"), (2, "b"), (3, "c")]);
        let at = |last: u8| -> (TcpListener, UdpSocket) {
            (
                bind((loopback(last), 53)),
                UdpSocket::bind((loopback(last), 53)).unwrap(),
            )
        };
        let (stream, datagrams) = at(50);
        let one = Liar::on(stream, datagrams, Lie::Truth(here(&[1])));
        let (stream, datagrams) = at(51);
        (port, one, Liar::on(stream, datagrams, Lie::Truth(here(&[2]))), servers)
    });
    let dir = tempfile::Builder::new().prefix("weir-names-").tempdir().unwrap();
    let (conf, hosts) = (dir.path().join("resolv.conf"), dir.path().join("hosts"));
    fs::write(&conf, format!("nameserver {}\n", one.address.ip())).unwrap();
    fs::write(&hosts, "127.0.0.3 fixed.internal\n").unwrap();
    let yaml = format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}, fixed: {{bind: '127.0.0.1:0', pool: fixed}}}}\n\
         pools:\n  web: {{health: {{interval: 50ms}}, members: [{{dns: web.internal, port: {port}, family: v4}}], resolver: {{min_ttl: 100ms}}}}\n  \
         fixed: {{backends: ['fixed.internal:{port}'], resolver: {{min_ttl: 100ms, max_ttl: 200ms}}}}\n"
    );
    let script = format!(
        "mount --bind {} /etc/resolv.conf && mount --bind {} /etc/hosts && exec \"$0\" \"$@\"",
        conf.display(),
        hosts.display()
    );
    let weir = Launch::new(&yaml)
        .inside(&netns)
        .behind(&["unshare", "-m", "sh", "-c", &script])
        .env("WEIR_SANDBOX", "strict")
        .start();
    let fetch = |listener: &str| {
        let address = weir.address(listener);
        netns.enter(move || super::common::client::fetch(&address).unwrap_or_default())
    };
    wait_until("by the first server", || fetch("web") == "a");
    wait_until("by /etc/hosts", || fetch("fixed") == "c");
    fs::write(&conf, format!("nameserver {}\n", other.address.ip())).unwrap();
    wait_until("by the other server", || fetch("web") == "b");
    fs::write(&hosts, "127.0.0.1 fixed.internal\n").unwrap();
    wait_until("by the new /etc/hosts", || fetch("fixed") == "a");
    let _: IpAddr = one.address.ip();
}
