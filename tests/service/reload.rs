//! Reload in place: all of a configuration or nothing of it, and what stays is not touched.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;

use super::Finish;
use super::common::netns::Netns;
use super::common::program::Program;
use super::common::{
    Launch, PATIENCE, Port, Server, Weir, client, command, find, have, may_make_namespaces, operator, skip, wait_until,
};
use super::upgrade::{ask, echoes, named_udp};

/// Asks over the admin socket; the answer must be good.
#[track_caller]
pub fn tell(weir: &Weir, question: &str) -> Value {
    let mut stream = UnixStream::connect(weir.admin()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{question}").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    let mut answer: Value = serde_json::from_str(&line).unwrap();
    assert!(answer["error"].is_null(), "{question}: {answer}");
    answer["ok"].take()
}

fn status(weir: &Weir) -> Value {
    tell(weir, r#"{"command":"status"}"#)
}

/// Replaces the file and reloads; it must succeed.
#[track_caller]
fn reload(weir: &Weir, yaml: &str) {
    weir.rewrite(yaml);
    tell(weir, r#"{"command":"reload"}"#);
}

/// The entry of this name in a list of the status.
fn named<'a>(list: &'a Value, name: &str) -> &'a Value {
    let entries = list.as_array().unwrap();
    entries.iter().find(|entry| entry["name"] == name).unwrap()
}

/// The samples of the metrics page, by name and labels.
fn metrics(weir: &Weir) -> BTreeMap<String, f64> {
    let page = tell(weir, r#"{"command":"metrics"}"#);
    let lines = page.as_str().unwrap().lines();
    let samples = lines.filter(|line| !line.starts_with('#'));
    let split = samples.filter_map(|line| line.rsplit_once(' '));
    split
        .map(|(name, value)| (name.to_owned(), value.parse().unwrap()))
        .collect()
}

/// Names of its threads, except those that come and go with questions. Waits until each has its own name.
fn threads(weir: &Weir) -> Vec<String> {
    let mut names = Vec::new();
    wait_until("every thread has its name", || {
        names = weir.threads().into_iter().map(|(_, name)| name).collect();
        names.retain(|name| name != "observer-wait");
        names.sort();
        names.windows(2).all(|two| two[0] != two[1])
    });
    names
}

/// wrk with a new connection for each request, so that there is always somebody in a queue.
fn wrk(address: &str, seconds: u64) -> Child {
    let mut wrk = command(find("wrk").unwrap());
    // None may fail; how long one takes is the machine's affair.
    wrk.args(["-t1", "-c32", "--timeout", "20s", &format!("-d{seconds}s")]);
    wrk.args(["-H", "Connection: close", &format!("http://{address}/")]);
    wrk.stdout(Stdio::piped()).spawn().unwrap()
}

/// Waits for its end; no request may have failed.
#[track_caller]
fn expect_no_errors(wrk: Child) {
    let output = wrk.wait_with_output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    println!("{report}");
    assert!(report.contains("Requests/sec"), "{report}");
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(trouble), "{report}");
    }
}

/// Counters never fall and never vanish, except those of what comes and goes.
#[track_caller]
fn expect_monotonic(before: &BTreeMap<String, f64>, now: &BTreeMap<String, f64>, but: &[&str]) {
    let is_counter = |name: &str| {
        let name = name.split('{').next().unwrap();
        ["_total", "_count", "_sum", "_bucket"]
            .iter()
            .any(|end| name.ends_with(end))
    };
    let stays = |name: &str| !but.iter().any(|part| name.contains(part));
    for (name, old) in before.iter().filter(|(n, _)| is_counter(n) && stays(n)) {
        let new = now.get(name).unwrap_or_else(|| panic!("{name} is gone"));
        assert!(new >= old, "{name}: {old}, then {new}");
    }
}

/// `reloads` reloads at ten a second under wrk, most of which change something: weights, a backend, a listener.
fn many_reloads(reloads: u64) {
    if !have(&["nginx", "wrk"]) {
        return;
    }
    let (nginx, other, echo, port) = (Program::nginx(), Program::nginx(), Server::echo(), Port::reserve());
    let yaml = |step: u64| {
        let (weight, more_backends, more_listeners) = match step % 6 {
            1 => (3, "", String::new()),
            2 => (3, ", {name: c, address: '127.0.0.1:9'}", String::new()),
            3 => (1, "", String::new()),
            4 => (1, "", format!("  more: {{bind: '{}', pool: web}}\n", port.address())),
            // Nothing changes between these.
            _ => (1, "", String::new()),
        };
        format!(
            "workers: 2\nlog: {{access: off}}\nlisteners:\n  web: {{bind: '127.0.0.1:0', pool: web}}\n  \
             idle: {{bind: '127.0.0.1:0', pool: idle}}\n{more_listeners}pools:\n  \
             web: {{backends: [{{name: a, address: '{}', weight: {weight}}}, {{name: b, address: '{}'}}{more_backends}]}}\n  \
             idle: {{backends: ['{}']}}\n",
            nginx.address(),
            other.address(),
            echo.address,
        )
    };
    let weir = Weir::start(&yaml(0));
    let address = weir.address("idle");
    let mut idle: Vec<TcpStream> = (0..20).map(|_| echoes(&address)).collect();
    weir.wait_for_line("backend web/a (");
    weir.wait_for_line("backend web/b (");
    let (threads_before, descriptors_before) = (threads(&weir), weir.descriptors().len());
    let load = wrk(&weir.address("web"), reloads / 10 + 1);
    let (mut counters, mut warm_kib, mut slowest) = (metrics(&weir), 0, Duration::ZERO);
    let started = Instant::now();
    for step in 1..=reloads {
        let due = started + Duration::from_millis(100 * step);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        weir.rewrite(&yaml(step));
        let asked = Instant::now();
        let outcome = tell(&weir, r#"{"command":"reload"}"#);
        slowest = slowest.max(asked.elapsed());
        assert_eq!(outcome, format!("generation {}", step + 1));
        if step % 5 == 0 {
            let now = metrics(&weir);
            expect_monotonic(&counters, &now, &["\"c\"", "\"more\""]);
            counters = now;
            for stream in &mut idle {
                client::round_trip(stream, b"still there");
            }
        }
        if step == reloads / 3 {
            warm_kib = weir.memory_kib("RssAnon");
        }
    }
    let (took, grown_kib) = (started.elapsed(), weir.memory_kib("RssAnon").saturating_sub(warm_kib));
    expect_no_errors(load);
    println!(
        "{reloads} reloads in {took:?}, the slowest {slowest:?}; {warm_kib} KiB after a third of them, then {grown_kib} KiB more"
    );
    assert!(grown_kib < 1024, "grown by {grown_kib} KiB from {warm_kib} KiB");

    // One process, and nothing is left over in it.
    reload(&weir, &yaml(0));
    let status = status(&weir);
    assert_eq!(status["pid"], weir.pid());
    let children = format!("/proc/{0}/task/{0}/children", weir.pid());
    assert_eq!(fs::read_to_string(children).unwrap(), "");
    assert_eq!(threads(&weir), threads_before);
    wait_until("no descriptor is left over", || {
        weir.descriptors().len() <= descriptors_before
    });
    // What was held is counted as before, and nobody's health began anew.
    assert_eq!(named(&status["listeners"], "idle")["active"], 20);
    assert_eq!(named(&status["listeners"], "idle")["accepted"], 20);
    for backend in ["web/a", "web/b"] {
        let up = format!("backend {backend} (");
        assert_eq!(weir.stderr().iter().filter(|line| line.contains(&up)).count(), 1);
    }
    for stream in &mut idle {
        client::round_trip(stream, b"after all that");
    }
}

/// Breaks tried: ending all connections in a reload; beginning the listeners' counters anew; beginning health anew; 32 KiB
/// lost with each reload.
#[test]
fn no_request_fails_in_many_reloads() {
    many_reloads(60);
}

#[test]
#[ignore = "long: a thousand reloads, 100 seconds"]
fn no_request_fails_in_a_thousand_reloads() {
    many_reloads(1000);
}

/// New TCP connections, held ones with traffic, and UDP flows, while workers come and go.
///
/// Break tried: giving the sockets of a worker that retires on without their UDP sessions.
#[test]
fn workers_come_and_go_under_load() {
    if !have(&["nginx", "wrk"]) {
        return;
    }
    let (nginx, echo) = (Program::nginx(), Server::echo());
    let udp = [named_udp("amber"), named_udp("birch")];
    let yaml = |workers: usize| {
        format!(
            "workers: {workers}\nlog: {{access: off}}\nlisteners:\n  web: {{bind: '127.0.0.1:0', pool: web}}\n  \
             held: {{bind: '127.0.0.1:0', pool: held}}\n  dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns}}\n\
             pools:\n  web: {{backends: ['{}']}}\n  held: {{backends: ['{}']}}\n  \
             dns: {{balance: source_hash, source_hash: {{port: true}}, backends: ['{}', '{}'], health: none}}\n",
            nginx.address(),
            echo.address,
            udp[0],
            udp[1],
        )
    };
    let weir = Weir::start(&yaml(1));
    let held_address = weir.address("held");
    let mut held: Vec<TcpStream> = (0..20).map(|_| echoes(&held_address)).collect();
    let flows = flows(&weir.address("dns"), 40);
    let load = wrk(&weir.address("web"), 5);
    let (started, over) = (Instant::now(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let traffic = scope.spawn(|| {
            let mut rounds = 0;
            while !over.load(Ordering::Relaxed) {
                for stream in &mut held {
                    client::round_trip(stream, b"still there");
                }
                for (flow, name) in &flows {
                    assert_eq!(ask(flow), *name);
                }
                rounds += 1;
            }
            rounds
        });
        let finish = Finish(&over);
        let mut counters = metrics(&weir);
        for (ix, workers) in [2, 1, 2, 1].into_iter().enumerate() {
            let due = started + Duration::from_millis(800 * (ix as u64 + 1));
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            reload(&weir, &yaml(workers));
            assert_eq!(status(&weir)["workers"].as_array().unwrap().len(), workers);
            let now = metrics(&weir);
            expect_monotonic(&counters, &now, &["worker="]);
            counters = now;
        }
        drop(finish);
        let rounds = traffic.join().unwrap();
        assert!(rounds > 0, "no traffic");
    });
    expect_no_errors(load);
    for stream in &mut held {
        client::round_trip(stream, b"after all that");
    }
}

/// Clients that the kernel has let in and no worker has seen yet, while their listener stays, its workers become fewer or
/// more, and it goes.
///
/// Breaks tried: closing the sockets of a worker that retires; closing those of a listener that goes without a look.
#[test]
fn whoever_waits_in_a_queue_is_served() {
    if !nix::unistd::Uid::effective().is_root() {
        skip("holding threads needs root");
        return;
    }
    let (server, port) = (Server::echo(), Port::reserve());
    let yaml = |workers: usize, weight: u32, more: &str| {
        format!(
            "workers: {workers}\nlisteners:\n  main: {{bind: '127.0.0.1:0', pool: main}}\n{more}\
             pools: {{main: {{backends: [{{name: a, address: '{}', weight: {weight}}}]}}}}\n",
            server.address
        )
    };
    let more = format!("  more: {{bind: '{}', pool: main}}\n", port.address());
    let weir = Weir::start(&yaml(2, 1, &more));
    let addresses = [weir.address("main"), port.address().to_string()];
    let rows = [
        ("another weight", yaml(2, 2, &more)),
        ("fewer workers", yaml(1, 2, &more)),
        ("more workers", yaml(2, 2, &more)),
        ("fewer workers, and a listener goes", yaml(1, 2, "")),
    ];
    for (what, yaml) in rows {
        let held = super::common::weir::hold(weir.worker_threads());
        let connect = |ix: usize| {
            let mut stream = client::connect(&addresses[ix % 2]);
            stream.write_all(b"hello").unwrap();
            stream
        };
        let mut waiting: Vec<TcpStream> = (0..60).map(connect).collect();
        // The reload waits for the workers, though not for ever.
        let release = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(held);
        });
        reload(&weir, &yaml);
        release.join().unwrap();
        for (ix, stream) in waiting.iter_mut().enumerate() {
            let mut answer = [0; 5];
            let read = stream.read_exact(&mut answer);
            assert!(read.is_ok(), "{what}: client {ix} of {}: {read:?}", addresses[ix % 2]);
        }
    }
}

/// UDP clients, each with the name of the backend that answered it.
fn flows(address: &str, count: usize) -> Vec<(UdpSocket, String)> {
    let flow = |_| {
        let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        client.connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let name = ask(&client);
        (client, name)
    };
    (0..count).map(flow).collect()
}

/// Two workers, one, two again: as many sockets as before, so every flow stays with its session, and both have work.
///
/// Breaks tried: leaving all sockets where they are; admitting sessions anew when they move (they were counted twice).
#[test]
fn new_workers_take_over_sockets_of_those_that_left() {
    let echo = Server::echo();
    let yaml = |workers: usize| {
        format!(
            "workers: {workers}\nlisteners:\n  main: {{bind: '127.0.0.1:0', pool: main}}\n  \
             dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns, limits: {{new_per_source: 100/s}}}}\n\
             pools:\n  main: {{backends: ['{}']}}\n  dns: {{balance: random, backends: ['{}', '{}'], health: none}}\n",
            echo.address,
            named_udp("amber"),
            named_udp("birch"),
        )
    };
    let text = yaml(2);
    let weir = Weir::start(&text);
    let flows = flows(&weir.address("dns"), 64);
    for workers in [1, 2, 1, 2] {
        reload(&weir, &text.replace("workers: 2", &format!("workers: {workers}")));
        for (flow, name) in &flows {
            assert_eq!(ask(flow), *name, "with {workers} workers");
        }
        let status = status(&weir);
        let dns = named(&status["listeners"], "dns");
        assert_eq!((&dns["active"], &dns["accepted"]), (&64.into(), &64.into()));
        // With one worker all sockets are in one place; with two, half of them each.
        let sessions = status["workers"].as_array().unwrap().iter();
        let busy = sessions.filter(|worker| worker["udp_sessions"] != 0).count();
        assert_eq!(busy, workers);
    }
    // One at a time, so that none is given to a less busy worker.
    let address = weir.address("main");
    let served_by = |_| {
        let _open = echoes(&address);
        let live = tell(&weir, r#"{"command":"conns","limit":100}"#);
        let mut live = live.as_array().unwrap().iter();
        live.find(|c| c["protocol"] == "tcp").unwrap()["worker"].as_u64()
    };
    assert_eq!((0..64).map(served_by).collect::<BTreeSet<_>>().len(), 2);
}

/// Somebody else has it, and shares it with nobody.
fn occupied() -> TcpListener {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap()
}

const HEAD: &str = "listeners: {main: {bind: '127.0.0.1:0', pool: main}}\n";

/// Whatever is wrong with a file: the old configuration goes on, and log, status, metric and exit code say so.
///
/// Breaks tried: answering every refusal with the same cause; not counting it; forgetting it for the status; opening the access
/// log after the rest.
#[test]
fn whatever_is_refused_changes_nothing_and_is_told() {
    let (server, taken) = (Server::echo(), occupied());
    let taken = taken.local_addr().unwrap();
    let taken_udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let pools = format!("pools: {{main: {{backends: ['{}']}}}}\n", server.address);
    let good = format!("{HEAD}{pools}");
    let weir = Weir::start(&good);
    let file = weir.dir().join("weir.yaml");
    let mut held = echoes(&weir.address("main"));

    let two = |more: String| format!("listeners: {{main: {{bind: '127.0.0.1:0', pool: main}}, more: {more}}}\n{pools}");
    let rows: [(&str, Option<String>, i32, &str); 10] = [
        ("not YAML", Some("listeners: {main: [}\n".into()), 3, "weir.yaml:"),
        ("an unknown key", Some(format!("{good}nonsense: 1\n")), 3, "nonsense"),
        ("an empty file", Some(String::new()), 3, "listeners"),
        ("no file", None, 3, "there is no such file"),
        ("a directory", None, 3, "is a directory"),
        (
            "a port in use",
            Some(two(format!("{{bind: '{taken}', pool: main}}"))),
            1,
            "listener more: cannot bind",
        ),
        (
            "a UDP port in use",
            Some(two(format!(
                "{{protocol: udp, bind: '{}', pool: main}}",
                taken_udp.local_addr().unwrap()
            ))),
            1,
            "listener more: cannot bind",
        ),
        (
            "the port of the metrics in use",
            Some(format!("metrics: {taken}\n{good}")),
            1,
            "metrics: cannot bind",
        ),
        (
            "no place for the access log",
            Some(format!("log: {{access: /var/none/access.log}}\n{good}")),
            1,
            "access log /var/none/access.log",
        ),
        (
            "another admin socket",
            Some(format!("admin: /run/other.sock\n{good}")),
            3,
            "admin: ",
        ),
    ];
    let failures = |weir: &Weir| metrics(weir)["weir_config_reload_failures_total"];
    for (ix, (what, text, code, reason)) in rows.into_iter().enumerate() {
        let _ = fs::remove_file(&file);
        match &text {
            Some(text) => weir.rewrite(text),
            None if what == "a directory" => fs::create_dir(&file).unwrap(),
            None => {}
        }
        let expected = |way: usize| (2 * ix + way) as f64;
        let output = operator::ask(&weir, &["reload"]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{what}: {error}");
        assert!(error.contains(reason), "{what}: {error}");
        assert_eq!(failures(&weir), expected(1), "{what}");
        weir.signal(Signal::SIGHUP);
        let refused = |line: &&String| line.contains("reload refused, the old configuration stays");
        // Lines are read a little later than they are written.
        wait_until(what, || {
            let lines = weir.stderr().iter().filter(refused).count() as f64;
            failures(&weir) == expected(2) && lines == expected(2)
        });
        assert!(weir.stderr().join("\n").contains(reason), "{what}");
        let status = status(&weir);
        let told = status["reload_error"].as_str().unwrap_or_default();
        assert!(told.contains(reason), "{what}: {told}");
        assert_eq!(status["generation"], 1, "{what}");
        client::round_trip(&mut held, b"still there");
        echoes(&weir.address("main"));
        let _ = fs::remove_dir(&file);
    }
    weir.rewrite(&good);
    assert!(operator::ask(&weir, &["reload"]).status.success());
    let status = status(&weir);
    assert_eq!(
        (&status["generation"], &status["reload_error"]),
        (&2.into(), &Value::Null)
    );
}

/// A reload that changes everything there is and fails at one address: none of the rest has happened.
///
/// Breaks tried: keeping what was bound before the failure; leaving the files of unix sockets.
#[test]
fn a_bind_that_fails_leaves_everything_as_it_was() {
    let (server, taken, free) = (Server::echo(), occupied(), Port::reserve());
    let good = format!(
        "workers: 1\n{HEAD}pools: {{main: {{health: {{type: none}}, backends: [{{name: a, address: '{}', weight: 2}}]}}}}\n",
        server.address
    );
    let weir = Weir::start(&good);
    let mut held = echoes(&weir.address("main"));
    let unix = weir.dir().join("more.sock");
    // No probes: their sockets come and go.
    let before = (threads(&weir), weir.sockets(), status(&weir));
    let bad = format!(
        "workers: 3\nlisteners:\n  first: {{bind: '{}', pool: main}}\n  main: {{bind: '127.0.0.1:0', pool: main}}\n  \
         unix: {{bind: 'unix:{}', pool: main}}\n  dns: {{protocol: udp, bind: '{}', pool: main}}\n  \
         last: {{bind: '{}', pool: main}}\n\
         pools: {{main: {{balance: random, health: {{type: none}}, backends: [{{name: a, address: '{}', weight: 7}}]}}}}\n",
        free.address(),
        unix.display(),
        free.address(),
        taken.local_addr().unwrap(),
        server.address,
    );
    weir.rewrite(&bad);
    for _ in 0..3 {
        assert_eq!(operator::ask(&weir, &["reload"]).status.code(), Some(1));
    }
    assert!(client::try_connect(&free.address().to_string(), None).is_err());
    assert!(UdpSocket::bind(free.address()).is_ok(), "the UDP address is free");
    assert!(!unix.exists());
    wait_until("no socket is left over", || weir.sockets() == before.1);
    wait_until("no thread is left over", || threads(&weir) == before.0);
    let now = status(&weir);
    for part in ["generation", "listeners"] {
        assert_eq!(now[part], before.2[part]);
    }
    let pool = named(&now["pools"], "main");
    assert_eq!(
        (&pool["balance"], &named(&pool["backends"], "a")["weight"]),
        (&"least_conn".into(), &2.into())
    );
    client::round_trip(&mut held, b"still there");

    // When the address is free it is all done, and undone without a trace.
    drop(taken);
    reload(&weir, &bad);
    assert_eq!(status(&weir)["workers"].as_array().unwrap().len(), 3);
    echoes(&free.address().to_string());
    assert!(UnixStream::connect(&unix).is_ok());
    reload(&weir, &good);
    assert!(!unix.exists(), "the file goes with its listener");
    client::round_trip(&mut held, b"still there");
}

/// Breaks tried: letting the election follow before the addresses are bound.
#[test]
fn a_bind_that_fails_leaves_the_election_as_it_was() {
    if !may_make_namespaces() {
        return;
    }
    let (netns, dir) = (Netns::new("reload"), tempfile::tempdir().unwrap());
    netns.ip(&["link", "add", "weir0", "type", "veth", "peer", "name", "weir1"]);
    for interface in ["weir0", "weir1"] {
        netns.ip(&["link", "set", interface, "up"]);
    }
    let secret = dir.path().join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let private = <fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o600);
    fs::set_permissions(&secret, private).unwrap();
    let yaml = |vip: &str, bind: &str| {
        format!(
            "listeners: {{main: {{bind: '{bind}', pool: main}}}}\npools: {{main: {{backends: ['127.0.0.1:9']}}}}\n\
             failover: {{node: a, beat: 500ms, dead_after: 3s, secret_file: '{}', nodes: {{a: '127.0.0.1:7400'}},\n  \
             vips: [{{address: {vip}, interface: weir0}}]}}\n",
            secret.display()
        )
    };
    let weir = Launch::new(&yaml("10.99.0.1/24", "127.0.0.1:80"))
        .inside(&netns)
        .start();
    let addresses = || netns.ip(&["-oneline", "address", "show", "dev", "weir0"]);
    wait_until("the virtual address is there", || addresses().contains("10.99.0.1/24"));
    // Nobody has this address, and so nothing can be bound to it.
    weir.rewrite(&yaml("10.99.0.2/24", "192.0.2.1:80"));
    let output = operator::ask(&weir, &["reload"]);
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let vips = status(&weir)["vips"].take();
    assert_eq!(vips[0]["address"], "10.99.0.1/24", "{vips}");
    assert!(addresses().contains("10.99.0.1/24"));
    weir.stop();
}

/// Live connections, their places under limits, counters, health and its age: the same before and after.
///
/// Breaks tried: beginning the listeners' counters anew; beginning health anew; a new gate without the places taken.
#[test]
fn what_stays_is_not_touched() {
    let (server, port) = (Server::echo(), Port::reserve());
    let yaml = |more: &str, weight: u32| {
        format!(
            "workers: 2\nlisteners:\n  main: {{bind: '127.0.0.1:0', pool: main, limits: {{per_source: 5}}}}\n{more}\
             pools:\n  main: {{backends: [{{name: a, address: '{}', weight: {weight}}}], health: {{interval: 50ms}}}}\n",
            server.address
        )
    };
    let more = format!("  more: {{bind: '{}', pool: main}}\n", port.address());
    let weir = Weir::start(&yaml("", 1));
    let address = weir.address("main");
    let mut held: Vec<TcpStream> = (0..5).map(|_| echoes(&address)).collect();
    weir.wait_for_line("backend main/a (");
    wait_until("it has been up for a while", || {
        named(&status(&weir)["pools"], "main")["backends"][0]["since_s"] != 0
    });
    let facts = |weir: &Weir| {
        let status = status(weir);
        let listener = named(&status["listeners"], "main").clone();
        let backend = &named(&status["pools"], "main")["backends"][0];
        let kept = ["state", "active", "total", "failed", "bytes_in", "bytes_out"];
        let backend: Vec<Value> = kept.iter().map(|key| backend[key].clone()).collect();
        (listener, backend)
    };
    let before = facts(&weir);
    for (more, weight) in [("", 1), (&*more, 1), (&more, 4), ("", 2), ("", 1)] {
        reload(&weir, &yaml(more, weight));
        assert_eq!(facts(&weir), before);
        let status = status(&weir);
        let since = &named(&status["pools"], "main")["backends"][0]["since_s"];
        assert!(since.as_u64() >= Some(1), "{since}");
    }
    // The places of the five are still taken.
    client::connect_to_reset(&address);
    drop(held.pop());
    wait_until("one is free", || {
        named(&status(&weir)["listeners"], "main")["active"] == 4
    });
    held.push(echoes(&address));
    for stream in &mut held {
        client::round_trip(stream, b"still there");
    }
}

/// Breaks tried: draining by the rules of the configuration before; forgetting the counters of those that leave.
#[test]
fn removed_backends_drain_under_the_new_rules() {
    let [a, b] = ["a", "b"].map(|_| Server::echo());
    let yaml = |backends: &[(&str, &Server)], finish: &str| {
        let backends = backends
            .iter()
            .map(|(name, server)| format!("{{name: {name}, address: '{}'}}", server.address));
        // Each worker has a turn of its own: with one they alternate.
        format!(
            "workers: 1\n{HEAD}pools: {{main: {{balance: round_robin, on_drain: {{finish: {finish}}}, backends: [{}]}}}}\n",
            backends.collect::<Vec<_>>().join(", ")
        )
    };
    let weir = Weir::start(&yaml(&[("a", &a), ("b", &b)], "300ms"));
    let mut held: Vec<TcpStream> = (0..8).map(|_| echoes(&weir.address("main"))).collect();
    let total = |weir: &Weir| {
        let backend = named(&named(&status(weir)["pools"], "main")["backends"], "b").clone();
        (backend["active"].as_u64().unwrap(), backend["total"].as_u64().unwrap())
    };
    assert_eq!(total(&weir), (4, 4));

    // They may take an hour now, whatever was said before.
    reload(&weir, &yaml(&[("a", &a)], "1h"));
    std::thread::sleep(Duration::from_millis(600));
    for stream in &mut held {
        client::round_trip(stream, b"still there");
    }
    // Back again, with everything that is known of it.
    reload(&weir, &yaml(&[("a", &a), ("b", &b)], "1h"));
    assert_eq!(total(&weir), (4, 4));
    // And now they have to hurry.
    reload(&weir, &yaml(&[("a", &a)], "300ms"));
    let ended = weir.wait_for_records(4);
    assert!(
        ended
            .iter()
            .all(|r| r.backend.as_deref() == Some("b") && r.cause == "drained"),
        "{ended:?}"
    );
    let is_open = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        let open = stream.peek(&mut [0]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        stream.set_nonblocking(false).unwrap();
        open
    };
    // Their records may come a little earlier than their ends.
    wait_until("four have ended", || {
        held.retain(is_open);
        held.len() == 4
    });
    for stream in &mut held {
        client::round_trip(stream, b"still there");
    }
    assert_eq!(weir.access_log().len(), 4);
}

/// Break tried: telling only the workers that stay to close it, so that the one that retires hands it on to them.
#[test]
fn a_listener_may_go_together_with_a_worker() {
    let (server, port) = (Server::echo(), Port::reserve());
    let pools = format!("pools: {{main: {{backends: ['{}']}}}}\n", server.address);
    let weir = Weir::start(&format!(
        "workers: 2\nlisteners: {{main: {{bind: '127.0.0.1:0', pool: main}}, more: {{bind: '{}', pool: main}}}}\n{pools}",
        port.address()
    ));
    echoes(&port.address().to_string());
    reload(&weir, &format!("workers: 1\n{HEAD}{pools}"));
    wait_until("nobody listens there", || {
        client::try_connect(&port.address().to_string(), None).is_err()
    });
    echoes(&weir.address("main"));
}

/// Break tried: starting another observer for the new address.
#[test]
fn the_history_survives_another_metrics_address() {
    let (server, ports) = (Server::echo(), [Port::reserve(), Port::reserve()]);
    let rest = format!("{HEAD}pools: {{main: {{backends: ['{}']}}}}\n", server.address);
    let yaml = |port: &Port| format!("metrics: {}\n{rest}", port.address());
    let weir = Weir::start(&yaml(&ports[0]));
    let seen = |port: &Port| -> u64 {
        let mut stream = client::connect(&port.address().to_string());
        let request = "GET /history?since=0 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (_, body) = text.split_once("\r\n\r\n").unwrap();
        serde_json::from_str::<Value>(body).unwrap()["seq"].as_u64().unwrap()
    };
    wait_until("there is some history", || seen(&ports[0]) >= 2);
    // Told over a connection that is there already, and that outlives it.
    reload(&weir, &yaml(&ports[1]));
    assert!(seen(&ports[1]) >= 2);
    wait_until("the old address is free", || {
        TcpStream::connect(ports[0].address()).is_err()
    });
    reload(&weir, &rest);
    wait_until("that one too", || TcpStream::connect(ports[1].address()).is_err());
    reload(&weir, &yaml(&ports[0]));
    assert!(seen(&ports[0]) >= 2);
}

/// Seen to fail with a reload that leaves listening sockets as they are.
#[test]
fn the_backlog_changes_and_nobody_who_waits_is_lost() {
    let server = Server::named("a");
    let port = Port::reserve();
    let file = |backlog: &str| {
        format!(
            "workers: 2\nlisteners: {{web: {{bind: '{}', pool: web{backlog}}}}}\npools: {{web: {{backends: ['{}']}}}}\n",
            port.address(),
            server.address
        )
    };
    let weir = Weir::start(&file(", backlog: 40"));
    // What each listening socket allows; the kernel's bound for `auto`.
    let allowed = || {
        let shown = command("ss")
            .args(["-Hlnt", "sport", "="])
            .arg(format!(":{}", port.address().port()))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&shown.stdout).into_owned();
        let column = |line: &str| line.split_whitespace().nth(2).unwrap().parse().unwrap();
        text.lines().map(column).collect::<Vec<u32>>()
    };
    assert_eq!(allowed(), [40, 40]);
    let held = super::common::weir::hold(weir.worker_threads());
    let address = port.address().to_string();
    let waiting: Vec<TcpStream> = (0..20).map(|_| client::connect(&address)).collect();
    weir.rewrite(&file(", backlog: 2"));
    weir.signal(Signal::SIGHUP);
    drop(held);
    wait_until("the queues are short", || allowed() == [2, 2]);
    for mut stream in waiting {
        assert_eq!(client::read_to_end(&mut stream), b"a");
    }
    weir.rewrite(&file(""));
    weir.signal(Signal::SIGHUP);
    let most = fs::read_to_string("/proc/sys/net/core/somaxconn").unwrap();
    let most: u32 = most.trim().parse().unwrap();
    wait_until("the queues are as long as they may be", || allowed() == [most, most]);
}
