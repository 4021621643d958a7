//! What operators see of a running weir: commands, access log, metrics, HTTP, page, live view.

#[path = "../common/mod.rs"]
mod common;

mod commands;
mod endings;
mod events;
mod live;
mod log;
mod metrics;
mod monitoring;
mod slow_clients;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;

use common::operator::{ask, json, said};
use common::{PATIENCE, Weir, wait_until};

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Waits until every backend has passed its first probe.
fn all_up(weir: &Weir) {
    wait_until("all backends are up", || {
        let status = json(weir, &["status"]);
        let pools = status["pools"].as_array().unwrap();
        let mut backends = pools.iter().flat_map(|pool| pool["backends"].as_array().unwrap());
        backends.all(|backend| backend["state"] == "up")
    });
}

/// One HTTP request: head and body.
#[track_caller]
fn get(address: &str, path: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_string(), body.to_string())
}

/// The samples of a Prometheus page, by name and labels as written.
fn samples(page: &str) -> BTreeMap<String, f64> {
    page.lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_string(), value.parse().unwrap())
        })
        .collect()
}
