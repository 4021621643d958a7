//! Members that change all the time, under load: no client notices, and the counts add up at the end.

use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::common::server::{bind, loopback};
use super::common::{Launch, Port, Server, Weir, command, find, have, operator, wait_until};
use super::dns::{Liar, Lie};
use super::docker::{Engine, configuration as docker_configuration};
use super::{List, configuration, states};

/// Backends; at each moment four of them are members.
const SERVERS: u8 = 6;
/// Between two changes.
const PAUSE: Duration = Duration::from_millis(200);

/// Answers `GET`s with a close, on one port of several addresses.
fn servers() -> (u16, Vec<Server>) {
    let port = Port::reserve().number;
    let one = |last| Server::http_on(bind((loopback(last), port)));
    (port, (1..=SERVERS).map(one).collect())
}

/// Who is a member in a turn.
fn chosen(turn: u64) -> Vec<u8> {
    (0..4)
        .map(|place| ((turn + place) % u64::from(SERVERS)) as u8 + 1)
        .collect()
}

fn wrk(address: &str, seconds: u64) -> Child {
    let mut wrk = command(find("wrk").unwrap());
    // Each request is a connection of its own. How long one takes is the machine's affair.
    wrk.args(["-t1", "-c16", "--timeout", "20s", &format!("-d{seconds}s")]);
    wrk.args(["-H", "Connection: close", &format!("http://{address}/")]);
    wrk.stdout(Stdio::piped()).spawn().unwrap()
}

/// Runs load for so many seconds while `change` brings the members of each turn.
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
    let (turns, _source) = changes.join().unwrap();
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
    wait_until("nobody is connected", || {
        let status = operator::status(&weir);
        status["process"]["connections"] == 0
            && status["pools"][0]["backends"]
                .as_array()
                .unwrap()
                .iter()
                .all(|b| b["active"] == 0)
    });
    let status = operator::status(&weir);
    let listener = &status["listeners"][0];
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
    let source = &status["pools"][0]["sources"][0];
    assert!(source["error"].is_null(), "{source}");
}

/// The machine is slow to make test builds fast; the rate is told, not asserted.
fn seconds(long: bool) -> u64 {
    if long { 60 } else { 3 }
}

fn by_file(long: bool) {
    if !have(&["wrk"]) {
        return;
    }
    let (port, _servers) = servers();
    let text = move |who: &[u8]| {
        who.iter()
            .map(|n| format!("- 127.0.0.{n}:{port}\n"))
            .collect::<String>()
    };
    let list = List::new(&text(&chosen(0)));
    let weir = Launch::new(&configuration(&list.path(), ", on_drain: {finish: 10s}")).start();
    storm(weir, seconds(long), move |who| list.replace(&text(who)));
}

fn by_dns(long: bool) {
    if !have(&["wrk"]) {
        return;
    }
    let (port, _servers) = servers();
    let lie = |who: &[u8]| Lie::Truth(who.iter().map(|&n| Ipv4Addr::new(127, 0, 0, n)).collect());
    let liar = Liar::start(lie(&chosen(0)));
    let keys = format!("members: [{{dns: web.internal, port: {port}, family: v4}}]");
    let weir = Weir::start(&super::dns::configuration(&keys, &[liar.address]));
    storm(weir, seconds(long), move |who| liar.say(lie(who)));
}

fn by_docker(long: bool) {
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
    let weir = Weir::start(&docker_configuration(&engine, port));
    storm(weir, seconds(long), move |who| run(&engine, who));
}

#[test]
fn a_file_that_changes_under_load() {
    by_file(false);
}

#[test]
fn a_name_that_changes_under_load() {
    by_dns(false);
}

#[test]
fn containers_that_change_under_load() {
    by_docker(false);
}

#[test]
#[ignore = "long: three minutes of load"]
fn all_of_them_for_a_minute() {
    by_file(true);
    by_dns(true);
    by_docker(true);
}

/// 500 members in one pool, and 200 pools of five, each with a file: what that costs while nothing happens, and how soon a
/// change is in force.
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
        std::fs::write(file(&format!("p{n}")), list).unwrap();
        yaml += &format!(
            "  p{n}: {{health: {{type: none}}, members: [{{file: {}}}]}}\n",
            file(&format!("p{n}")).display()
        );
    }
    let many: String = (0..500)
        .map(|n| format!("- 127.2.{}.{}:9\n", n / 250, n % 250 + 1))
        .collect();
    std::fs::write(file("big"), many).unwrap();
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
    for turn in 0..20 {
        let (last, name) = [(2, "b"), (1, "a")][turn % 2];
        std::fs::write(file("new"), format!("- 127.0.0.{last}:{port}\n")).unwrap();
        let since = Instant::now();
        std::fs::rename(file("new"), file("p0")).unwrap();
        while super::common::client::fetch(&address).unwrap_or_default() != name {}
        took.push(since.elapsed());
    }
    took.sort();
    let (median, slowest) = (took[took.len() / 2], took[took.len() - 1]);
    println!("a change serves clients after {median:?}, {slowest:?} at the most");
    assert!(median < Duration::from_millis(50), "{took:?}");
    std::thread::sleep(Duration::from_secs(2));
    let before = weir.cpu_ticks();
    std::thread::sleep(Duration::from_secs(20));
    let ticks = weir.cpu_ticks() - before;
    println!("{ticks} ticks of 10 ms in 20 s");
    assert!(ticks <= 10, "{ticks} ticks of 10 ms in 20 s are more than 0.5 %");
}
