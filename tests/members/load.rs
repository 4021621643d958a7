//! Members that change all the time, under load: no client notices, the counts add up at the end, and a change of one member in N
//! moves few clients of `source_hash`.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use super::common::server::{bind, loopback};
use super::common::{Launch, Port, Server, Weir, client, command, find, have, in_parallel, operator, wait_until};
use super::dns::{Liar, Lie, Nsd};
use super::docker::Engine;
use super::etcd::Etcd;
use super::{List, states};

/// Backends; at each moment four of them are members.
const SERVERS: u8 = 6;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);
/// Clients that `source_hash` tells apart.
const CLIENTS: usize = 600;

/// Each answers `GET`s with its number and a close, on one port of several addresses.
fn servers() -> (u16, Vec<Server>) {
    let port = Port::reserve().number;
    let one = |last: u8| Server::http_named_on(bind((loopback(last), port)), &last.to_string());
    (port, (1..=SERVERS).map(one).collect())
}

/// Who is a member in a turn.
fn chosen(turn: u64) -> Vec<u8> {
    (0..4)
        .map(|place| ((turn + place) % u64::from(SERVERS)) as u8 + 1)
        .collect()
}

/// Listeners and pools `web`, which takes turns, and `hashed`; the members of both come from `source`.
fn configuration(source: &str, more: &str) -> String {
    let keys = format!("health: {{interval: 50ms}}, on_drain: {{finish: 10s}}, members: [{{{source}}}]{more}");
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}, hashed: {{bind: '127.0.0.1:0', pool: hashed}}}}\n\
         pools:\n  web: {{balance: round_robin, {keys}}}\n  hashed: {{balance: source_hash, {keys}}}\n"
    )
}

fn wrk(address: &str, seconds: u64) -> Child {
    let mut wrk = command(find("wrk").unwrap());
    // Each request is a connection of its own. How long one takes is the machine's affair.
    wrk.args(["-t1", "-c16", "--timeout", "20s", &format!("-d{seconds}s")]);
    wrk.args(["-H", "Connection: close", &format!("http://{address}/")]);
    wrk.stdout(Stdio::piped()).spawn().unwrap()
}

/// Runs load for so many seconds while `change` brings the members of each turn. How many requests that is in a second depends on
/// the machine: it is told, not asserted.
fn storm(weir: Weir, seconds: u64, change: impl Fn(&[u8]) + Send + 'static) {
    let over = Arc::new(AtomicBool::new(false));
    let changes = {
        let over = over.clone();
        std::thread::spawn(move || {
            let mut turn = 0;
            while !over.load(Ordering::Relaxed) {
                turn += 1;
                change(&chosen(turn));
                std::thread::sleep(PAUSE);
            }
            change(&chosen(0));
            // With `change` goes what it changes: the source shall be there until the end.
            (turn, change)
        })
    };
    let output = wrk(&weir.address("web"), seconds).wait_with_output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    over.store(true, Ordering::Relaxed);
    let (turns, change) = changes.join().unwrap();
    println!("{turns} changes\n{report}");
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(trouble), "{report}");
    }
    let requests: u64 = report
        .lines()
        .find_map(|line| line.trim().split_once(" requests in ")?.0.parse().ok())
        .unwrap();
    assert!(requests > 100, "{report}");
    assert!(turns >= seconds * 3, "{turns} changes in {seconds} s");
    wait_until_all_are_up(&weir, &chosen(0));
    wait_until("nobody is connected", || {
        let status = operator::status(&weir);
        let pools = status["pools"].as_array().unwrap();
        let backends = pools.iter().flat_map(|pool| pool["backends"].as_array().unwrap());
        status["process"]["connections"] == 0 && backends.into_iter().all(|backend| backend["active"] == 0)
    });
    let said = weir.stderr();
    let seen = said
        .iter()
        .filter(|line| line.contains("pool web: members:") && line.contains("came"));
    let seen = seen.count() as u64;
    println!("{seen} changes were applied");
    assert!(seen >= turns / 3, "{seen} of {turns} changes were applied");
    let status = operator::status(&weir);
    let listeners = status["listeners"].as_array().unwrap();
    let listener = listeners.iter().find(|listener| listener["name"] == "web").unwrap();
    let accepted = listener["accepted"].as_u64().unwrap();
    assert_eq!(listener["refused"], 0, "{listener}");
    // wrk begins with a connection to see whether somebody is there, and leaves its last ones in the middle.
    assert!(
        accepted >= requests && accepted <= requests + 1 + 16,
        "{accepted} accepted, {requests} answered"
    );
    assert_eq!(states(&weir).len(), 4);
    let records = weir.wait_for_records(accepted as usize);
    assert_eq!(records.len() as u64, accepted, "one record for each connection");
    for pool in status["pools"].as_array().unwrap() {
        assert!(pool["sources"][0]["error"].is_null(), "{pool}");
    }

    // One comes, and one goes.
    let mut before = served(&weir);
    for (now, count) in [(&[1, 2, 3, 4, 5][..], 5), (&[1, 2, 4, 5], 5)] {
        change(now);
        wait_until_all_are_up(&weir, now);
        let after = served(&weir);
        let moved = after
            .iter()
            .filter(|(client, server)| before[client] != **server)
            .count();
        println!("{now:?}: {moved} of {CLIENTS} clients moved");
        assert!(moved > 0, "nobody moved to another server");
        assert!(
            2 * moved * count <= 3 * CLIENTS,
            "{moved} of {CLIENTS} moved for one of {count}"
        );
        before = after;
    }
}

fn wait_until_all_are_up(weir: &Weir, who: &[u8]) {
    wait_until(&format!("{who:?} are up"), || {
        let status = operator::status(weir);
        status["pools"].as_array().unwrap().iter().all(|pool| {
            let backends = pool["backends"].as_array().unwrap();
            let is_up = |last: &u8| {
                let address = format!("127.0.0.{last}:");
                let of = |backend: &&serde_json::Value| backend["address"].as_str().unwrap().starts_with(&address);
                backends.iter().find(of).is_some_and(|backend| backend["state"] == "up")
            };
            backends.len() == who.len() && who.iter().all(is_up)
        })
    });
}

/// Which server each of the clients gets by its address.
fn served(weir: &Weir) -> BTreeMap<usize, String> {
    let address = weir.address("hashed");
    let ask = |client: usize| {
        let source = IpAddr::from([127, 9, (client / 250) as u8, (client % 250) as u8 + 1]);
        let mut stream = client::connect_from(source, &address);
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        (client, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    };
    in_parallel(8, CLIENTS, ask).into_iter().collect()
}

fn by_file(seconds: u64) {
    if !have(&["wrk"]) {
        return;
    }
    let (port, _servers) = servers();
    let text = move |who: &[u8]| -> String { who.iter().map(|n| format!("- 127.0.0.{n}:{port}\n")).collect() };
    let list = List::new(&text(&chosen(0)));
    let weir = Weir::start(&configuration(&format!("file: {}", list.path().display()), ""));
    storm(weir, seconds, move |who| list.replace(&text(who)));
}

/// What a resolver takes, for names that are looked up every 100 ms.
fn resolver(server: std::net::SocketAddr) -> String {
    format!(", resolver: {{servers: ['{server}'], timeout: 1s, min_ttl: 100ms, max_ttl: 1s}}")
}

fn by_dns(seconds: u64) {
    if !have(&["wrk"]) {
        return;
    }
    let (port, _servers) = servers();
    let lie = |who: &[u8]| Lie::Truth(who.iter().map(|&n| Ipv4Addr::new(127, 0, 0, n)).collect());
    let liar = Liar::start(lie(&chosen(0)));
    let source = format!("dns: web.internal, port: {port}, family: v4");
    let weir = Weir::start(&configuration(&source, &resolver(liar.address)));
    storm(weir, seconds, move |who| liar.say(lie(who)));
}

fn by_srv(seconds: u64) {
    if !have(&["wrk", "nsd"]) {
        return;
    }
    let (port, _servers) = servers();
    let records = move |who: &[u8]| -> String {
        let host = |n: u8| format!("h{n} A 127.0.0.{n}\n");
        let service = |n: &u8| format!("_http._tcp SRV 0 1 {port} h{n}\n");
        (1..=SERVERS).map(host).chain(who.iter().map(service)).collect()
    };
    let nsd = Nsd::start(&records(&chosen(0)));
    let source = "srv: _http._tcp.internal, family: v4";
    let weir = Weir::start(&configuration(source, &resolver(nsd.address)));
    storm(weir, seconds, move |who| nsd.change(&records(who)));
}

fn by_etcd(seconds: u64) {
    if !have(&["wrk", "etcd"]) {
        return;
    }
    let (port, _servers) = servers();
    let etcd = Etcd::start();
    let keys = move |who: &[u8]| -> Vec<(String, Option<String>)> {
        let value = |n: u8| who.contains(&n).then(|| format!("127.0.0.{n}:{port}"));
        (1..=SERVERS).map(|n| (format!("/web/{n}"), value(n))).collect()
    };
    etcd.hold(&keys(&chosen(0)));
    let yaml = format!("etcd: {{endpoints: ['http://{}']}}\n", etcd.address);
    let weir = Weir::start(&(yaml + &configuration("etcd: /web/", "")));
    storm(weir, seconds, move |who| {
        etcd.hold(&keys(who));
    });
}

fn by_docker(seconds: u64) {
    if !have(&["wrk"]) {
        return;
    }
    let (port, _servers) = servers();
    let run = |engine: &Engine, who: &[u8]| {
        let all: Vec<(String, String)> = who
            .iter()
            .map(|n| (format!("web-{n}"), format!("127.0.0.{n}")))
            .collect();
        let all: Vec<(&str, &str)> = all.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
        engine.run(&all);
    };
    let engine = Engine::start(&[("web-1", "127.0.0.1")]);
    run(&engine, &chosen(0));
    let socket = engine.socket().display().to_string();
    let source = format!("docker: {{label: \"weir.pool=web\", port: {port}, socket: {socket}}}");
    let weir = Weir::start(&configuration(&source, ""));
    storm(weir, seconds, move |who| run(&engine, who));
}

#[test]
fn a_file_that_changes_under_load() {
    by_file(3);
}

#[test]
fn a_name_that_changes_under_load() {
    by_dns(3);
}

#[test]
fn a_service_that_changes_under_load() {
    by_srv(3);
}

#[test]
fn keys_that_change_under_load() {
    by_etcd(3);
}

#[test]
fn containers_that_change_under_load() {
    by_docker(3);
}

#[test]
#[ignore = "long: a minute of load"]
fn a_minute_by_file() {
    by_file(60);
}

#[test]
#[ignore = "long: a minute of load"]
fn a_minute_by_name() {
    by_dns(60);
}

#[test]
#[ignore = "long: a minute of load"]
fn a_minute_by_service() {
    by_srv(60);
}

#[test]
#[ignore = "long: a minute of load"]
fn a_minute_by_keys() {
    by_etcd(60);
}

#[test]
#[ignore = "long: a minute of load"]
fn a_minute_by_containers() {
    by_docker(60);
}

/// 500 members in one pool, and 200 pools of five, each with a file: what that costs while nothing happens, and how soon after
/// it is known (a line of the log says when) a change is in force. That a client was late because of others who wanted the
/// processor is not asked: half of the changes have to be quick.
#[test]
#[ignore = "long: of no use beside load"]
fn many_members_cost_nothing() {
    let dir = tempfile::Builder::new().prefix("weir-many-").tempdir().unwrap();
    let server = |last: u8, name: &str, port| Server::named_on(bind((loopback(last), port)), name);
    let port = Port::reserve().number;
    let _servers = [server(1, "a", port), server(2, "b", port)];
    let mut yaml =
        String::from("listeners:\n  web: {bind: '127.0.0.1:0', pool: p0}\n  big: {bind: '127.0.0.1:0', pool: big}\n");
    for n in 1..200 {
        yaml += &format!("  l{n}: {{bind: '127.0.0.1:0', pool: p{n}}}\n");
    }
    yaml += "pools:\n";
    let file = |name: &str| dir.path().join(name);
    for n in 0..200 {
        let list: String = match n {
            0 => format!("- 127.0.0.1:{port}\n"),
            n => (1..=5).map(|m| format!("- 127.1.{n}.{m}:9\n")).collect(),
        };
        fs::write(file(&format!("p{n}")), list).unwrap();
        yaml += &format!(
            "  p{n}: {{health: {{type: none}}, members: [{{file: {}}}]}}\n",
            file(&format!("p{n}")).display()
        );
    }
    let many: String = (0..500)
        .map(|n| format!("- 127.2.{}.{}:9\n", n / 250, n % 250 + 1))
        .collect();
    fs::write(file("big"), many).unwrap();
    yaml += &format!(
        "  big: {{health: {{type: none}}, balance: source_hash, members: [{{file: {}}}]}}\n",
        file("big").display()
    );
    let weir = Launch::new(&(yaml + "log: {access: off}\n")).start();
    wait_until("all are known", || {
        let status = operator::status(&weir);
        let members: usize = status["pools"]
            .as_array()
            .unwrap()
            .iter()
            .map(|p| p["backends"].as_array().unwrap().len())
            .sum();
        members == 500 + 199 * 5 + 1
    });
    let address = weir.address("web");
    let mut took = Vec::new();
    let known = || {
        let lines = weir
            .stderr()
            .into_iter()
            .filter(|line| line.contains("pool p0: members:"));
        lines.collect::<Vec<String>>()
    };
    for turn in 0..20 {
        let (last, name) = [(2, "b"), (1, "a")][turn % 2];
        let before = known().len();
        fs::write(file("new"), format!("- 127.0.0.{last}:{port}\n")).unwrap();
        fs::rename(file("new"), file("p0")).unwrap();
        while client::fetch(&address).unwrap_or_default() != name {}
        let served = SystemTime::now();
        wait_until("it is in the log", || known().len() > before);
        let line = known().pop().unwrap();
        let since = humantime::parse_rfc3339(line.split(' ').next().unwrap()).unwrap();
        took.push(served.duration_since(since).unwrap_or_default());
    }
    took.sort();
    println!("a change serves clients so long after it is known: {took:?}");
    assert!(took[took.len() / 2] < Duration::from_millis(50), "{took:?}");
    std::thread::sleep(Duration::from_secs(2));
    let before = weir.cpu_ticks();
    std::thread::sleep(Duration::from_secs(20));
    let ticks = weir.cpu_ticks() - before;
    println!("{ticks} ticks of 10 ms in 20 s");
    assert!(ticks <= 10, "{ticks} ticks of 10 ms in 20 s are more than 0.5 %");
}
