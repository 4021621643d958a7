//! Backends: choosing, watching, losing and getting them back, with real sockets; one file a subject. What the pure parts
//! promise for themselves (`src/balance`, `src/health`) is shown here to reach clients and servers.

#[path = "../common/mod.rs"]
mod common;

mod accounts;
mod attempts;
mod balance;
mod behind_proxy;
mod drain;
mod explain;
mod limits;
mod passive;
mod probes;
mod questions;
mod queue;
mod recovery;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant, SystemTime};

use common::operator::{said, status};
use common::{PATIENCE, Weir, client, in_parallel};

/// Nothing but real traffic tells whether a backend works, and nothing is concluded from that.
const UNWATCHED: &str = "health: {type: none}, passive: off";

/// A configuration for two workers: for each pool (name, keys, backends) a listener of the same name.
fn pools(pools: &[(&str, &str, &[String])]) -> String {
    let mut listeners = String::from("workers: 2\nlisteners:\n");
    let mut rest = String::from("pools:\n");
    for (name, keys, backends) in pools {
        listeners += &format!("  {name}: {{bind: ['127.0.0.1:0'], pool: {name}}}\n");
        rest += &format!("  {name}: {{backends: [{}], {keys}}}\n", backends.join(", "));
    }
    listeners + &rest
}

/// The same with the one pool `main`.
fn pool(keys: &str, backends: &[String]) -> String {
    pools(&[("main", keys, backends)])
}

/// A backend of a pool; `more` are further keys (`weight: 2`).
fn backend(name: &str, address: impl Display, more: &str) -> String {
    format!("{{name: {name}, address: '{address}', {more}}}")
}

/// The `n`th of 64,000 client addresses.
fn source(n: usize) -> IpAddr {
    IpAddr::from([127, 1, (n / 250) as u8, (n % 250) as u8 + 1])
}

/// Connects and waits for the name of the backend, one character.
#[track_caller]
fn hold(address: &str, source: Option<IpAddr>) -> (char, TcpStream) {
    let mut stream = client::try_connect(address, source).expect("a connection");
    let mut name = [0];
    stream.read_exact(&mut name).expect("the backend's name");
    (char::from(name[0]), stream)
}

fn count(names: impl IntoIterator<Item = char>) -> BTreeMap<char, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name).or_default() += 1;
    }
    counts
}

/// A backend's entry in the status.
#[track_caller]
fn backend_of<'a>(status: &'a serde_json::Value, pool: &str, backend: &str) -> &'a serde_json::Value {
    let named = |list: &'a serde_json::Value, name: &str| {
        let mut entries = list.as_array().unwrap().iter();
        entries.find(|entry| entry["name"] == name).unwrap()
    };
    named(&named(&status["pools"], pool)["backends"], backend)
}

/// Lines of the event log that contain all `words`.
fn lines_with(weir: &Weir, words: &[&str]) -> Vec<String> {
    let fits = |line: &String| words.iter().all(|word| line.contains(word));
    weir.stderr().into_iter().filter(fits).collect()
}

/// When a line of the event log was written.
fn logged(line: &str) -> SystemTime {
    humantime::parse_rfc3339(line.split(' ').next().unwrap()).unwrap()
}

/// The samples of a page of metrics that begin like this (name, or name and labels as written), added up.
#[track_caller]
fn metrics_sum(address: &str, begin: &str) -> f64 {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let lines = page.lines().filter(|line| line.starts_with(begin));
    let values: Vec<f64> = lines
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(!values.is_empty(), "no {begin} in\n{page}");
    values.iter().sum()
}

/// Share of one CPU that weir uses during `time`, percent.
fn cpu_percent(weir: &Weir, time: Duration) -> f64 {
    let (before, start) = (weir.cpu_ticks(), Instant::now());
    std::thread::sleep(time);
    let ticks = (weir.cpu_ticks() - before) as f64;
    ticks / start.elapsed().as_secs_f64()
}
