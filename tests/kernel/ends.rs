//! Connections that weir ends: both sides are told at once, also one that only waits.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, Sender, channel};

use super::common::client::{connect, round_trip, try_connect};
use super::common::netns::{Bridge, counted};
use super::common::operator::{json, said};
use super::common::server::Server;
use super::common::{PATIENCE, Weir, may_make_namespaces, wait_until};
use super::hosts::{Family, Net, V4, V6};

fn config(family: Family, listener: &str, pool: &str) -> String {
    format!(
        "
listeners: {{web: {{engine: kernel, bind: ['{}'], pool: web{listener}}}}}
pools: {{web: {{health: none, {pool} backends: [{{name: a, address: '{}'}}]}}}}
",
        family.service(80),
        family.backend(0, 8080),
    )
}

/// Echoes, and tells how each connection ended.
fn echo_and_tell(told: &Sender<ErrorKind>) -> impl Fn(TcpStream) + Send + Sync + 'static {
    let told = told.clone();
    move |mut stream| {
        let mut buffer = [0; 65_536];
        let error = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break ErrorKind::UnexpectedEof,
                Ok(length) => match stream.write_all(&buffer[..length]) {
                    Ok(()) => {}
                    Err(error) => break error.kind(),
                },
                Err(error) => break error.kind(),
            }
        };
        let _ = told.send(error);
    }
}

fn served(net: &Net, family: Family) -> (Server, Receiver<ErrorKind>) {
    let (told, ends) = channel();
    let server = net.serve(0, &family.backend(0, 8080), echo_and_tell(&told));
    (server, ends)
}

/// A client that waits for something, and its backend, hear of the end.
#[track_caller]
fn both_are_told(client: &mut TcpStream, backend: &Receiver<ErrorKind>, weir: &Weir, cause: &str) {
    let read = client.read(&mut [0]);
    assert_eq!(
        read.unwrap_err().kind(),
        ErrorKind::ConnectionReset,
        "the client, {cause}"
    );
    let ended = backend.recv_timeout(PATIENCE).unwrap();
    assert_eq!(ended, ErrorKind::ConnectionReset, "the backend, {cause}");
    let records = weir.wait_for(|records| records.iter().any(|record| record.cause == cause));
    assert_eq!(records.len(), 1, "{records:?}");
    assert_eq!(records[0].closed_by, "weir");
}

/// Columns: of the listener, of the pool, what an operator says, cause. Seen to fail where the backend's RST is dropped.
#[test]
fn whoever_waits_is_told() {
    if !may_make_namespaces() {
        return;
    }
    type Row<'a> = (Family, &'a str, &'a str, &'a [&'a str], &'a str);
    let rows: &[Row] = &[
        (V4, ", timeouts: {idle: 500ms}", "", &[], "idle_timeout"),
        (V6, ", timeouts: {max_age: 1s}", "", &[], "max_age"),
        (V4, "", "", &["kill"], "killed"),
        (V6, "", "", &["kill"], "killed"),
        (V4, "", "on_down: close,", &["backend", "web/a", "down"], "backend_down"),
        (
            V4,
            "",
            "on_drain: {finish: 100ms},",
            &["backend", "web/a", "drain"],
            "drained",
        ),
    ];
    for &(family, listener, pool, words, cause) in rows {
        // The program of a weir that has gone would stay for `restart_grace`, and see packets first.
        let net = Net::new();
        let (_server, backend) = served(&net, family);
        let weir = net.weir(&config(family, listener, pool));
        let mut client = net.client.enter(|| connect(&family.service(80)));
        round_trip(&mut client, b"hello");
        let id = json(&weir, &["conns"])[0]["id"].to_string();
        match words {
            [] => {}
            ["kill"] => drop(said(&weir, &["kill", &id])),
            words => drop(said(&weir, words)),
        }
        both_are_told(&mut client, &backend, &weir, cause);
    }
}

/// With data under way in both directions the numbers that are looked up are out of date when they arrive.
///
/// Seen to fail where they stay so: a backend that has nothing more to say ignores them.
#[test]
fn busy_connections_end_at_once() {
    const MANY: usize = 16;
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    let (_server, backend) = served(&net, V4);
    let weir = net.weir(&config(V4, "", ""));
    let clients: Vec<_> = (0..MANY)
        .map(|_| {
            let mut writer = net.client.enter(|| connect(&V4.service(80)));
            round_trip(&mut writer, b"hello");
            let mut reader = writer.try_clone().unwrap();
            let write = std::thread::spawn(move || {
                let bytes = [7; 16_384];
                loop {
                    if let Err(error) = writer.write_all(&bytes) {
                        return error.kind();
                    }
                }
            });
            let read = std::thread::spawn(move || {
                let mut buffer = [0; 65_536];
                loop {
                    match reader.read(&mut buffer) {
                        // The writer has had the error.
                        Ok(0) => return ErrorKind::UnexpectedEof,
                        Ok(_) => {}
                        Err(error) => return error.kind(),
                    }
                }
            });
            (write, read)
        })
        .collect();
    let rows = json(&weir, &["conns"]);
    for row in rows.as_array().unwrap() {
        said(&weir, &["kill", &row["id"].to_string()]);
    }
    for (write, read) in clients {
        let ends = [read.join().unwrap(), write.join().unwrap()];
        assert!(ends.contains(&ErrorKind::ConnectionReset), "{ends:?}");
        backend.recv_timeout(PATIENCE).unwrap();
    }
    let records = weir.wait_for_records(MANY);
    assert!(records.iter().all(|record| record.cause == "killed"), "{records:?}");
}

/// Nobody is at the backend's address: the client is refused when the pool's patience is at its end.
#[test]
fn a_backend_that_does_not_answer_refuses() {
    if !may_make_namespaces() {
        return;
    }
    let net = Net::new();
    for family in [V4, V6] {
        let yaml = config(family, "", "connect: {timeout: 500ms},");
        let yaml = yaml.replace(&family.backend(0, 8080), &family.with_port(&family.host(1, 77), 8080));
        let weir = net.weir(&yaml);
        let error = net.client.enter(|| try_connect(&family.service(80), None).unwrap_err());
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
        assert_eq!(weir.wait_for_records(1)[0].cause, "connect_timeout");
    }
}

/// Client, balancer and a backend in mode `dsr` on one bridge, and the service that they know.
pub fn direct() -> (Net, Bridge, String) {
    let service = V4.host(8, 8);
    let net = Net::unlinked();
    let bridge = Bridge::new();
    bridge.plug(&net.client, "10.7.0.10/24");
    bridge.plug(&net.balancer, "10.7.0.1/24");
    let backend = &net.backends[0];
    backend.sysctl("net.ipv4.conf.all.arp_ignore", "1");
    backend.sysctl("net.ipv4.conf.all.arp_announce", "2");
    bridge.plug(backend, "10.7.0.20/24");
    for host in [backend, &net.balancer] {
        host.ip(&["addr", "add", &format!("{service}/32"), "dev", "lo"]);
    }
    net.client
        .ip(&["route", "add", &format!("{service}/32"), "via", "10.7.0.1"]);
    (net, bridge, format!("{service}:80"))
}

fn config_direct(service: &str) -> String {
    format!(
        "
listeners: {{web: {{engine: kernel, bind: ['{service}'], pool: web}}}}
pools: {{web: {{kernel: {{mode: dsr}}, health: none, backends: [10.7.0.20]}}}}
"
    )
}

/// `dsr`: what the backend sends is not seen, and its side of the connection ends all the same. Seen to fail where the
/// backend's RST is dropped.
#[test]
fn both_are_told_where_answers_are_not_seen() {
    if !may_make_namespaces() {
        return;
    }
    let (net, _bridge, service) = direct();
    let (told, ends) = channel();
    let _server = net.serve(0, &service, echo_and_tell(&told));
    let weir = net.weir(&config_direct(&service));
    let mut client = net.client.enter(|| connect(&service));
    round_trip(&mut client, b"hello");
    let id = json(&weir, &["conns"])[0]["id"].to_string();
    said(&weir, &["kill", &id]);
    both_are_told(&mut client, &ends, &weir, "killed");
}

/// The same for a client that has received more than weir can know of, and that nothing more will come for. Seen to fail where it is not
/// asked what it has.
#[test]
fn whoever_has_received_more_is_told_where_answers_are_not_seen() {
    if !may_make_namespaces() {
        return;
    }
    let (net, _bridge, service) = direct();
    let ((told, ends), (go, going)) = (channel(), channel());
    let (echo, going) = (echo_and_tell(&told), Mutex::new(going));
    let _server = net.serve(0, &service, move |mut stream| {
        stream.read_exact(&mut [0; 5]).unwrap();
        stream.write_all(b"hello").unwrap();
        let () = going.lock().unwrap().recv().unwrap();
        stream.write_all(&[7; 1000]).unwrap();
        echo(stream);
    });
    let weir = net.weir(&config_direct(&service));
    let mut client = net.client.enter(|| connect(&service));
    round_trip(&mut client, b"hello");
    let chain = "chain out { type filter hook output priority 0;";
    net.client.nft(&format!(
        "table inet weir {{ counter lost {{}}; {chain} tcp dport 80 counter name lost drop; }}; }}"
    ));
    go.send(()).unwrap();
    client.read_exact(&mut [0; 1000]).unwrap();
    wait_until("its acknowledgement is lost", || counted(&net.client, "lost") > 0);
    // Or the backend would send it once more, and be answered.
    net.backends[0].nft(&format!("table inet weir {{ {chain} tcp sport 80 drop; }}; }}"));
    net.client.nft("delete table inet weir");
    let id = json(&weir, &["conns"])[0]["id"].to_string();
    said(&weir, &["kill", &id]);
    both_are_told(&mut client, &ends, &weir, "killed");
}
