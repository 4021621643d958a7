//! Probes that ask more than whether somebody listens: HTTP, TLS, and agents; with real servers, and with hostile ones.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use super::common::program::Program;
use super::common::{self, Certificate, Port, Server, Weir, client, command, server, wait_until};
use super::{backend, backend_of, pool, status};

const QUICK: &str = "interval: 50ms, timeout: 5s, rise: 1, fall: 1";

fn health(keys: &str) -> String {
    format!("passive: off, health: {{{QUICK}, {keys}}}")
}

/// nginx answers 200 for what is there and 404 for what is not; a server that speaks something else is down.
/// Meant to fail with every status taken for a pass.
#[test]
fn http_by_status() {
    if !common::have(&["nginx"]) {
        return;
    }
    let nginx = Program::nginx();
    std::fs::write(nginx.dir().join("www/healthz"), "fine").unwrap();
    let other = Server::each(|mut stream| {
        server::read_head(&mut stream);
        let _ = stream.write_all(
            b"not http
",
        );
    });
    let silent = Server::named("");
    let weir = Weir::start(&pool(
        &health("http: {path: /healthz, host: www.example.org, expect: [200, 300-399]}"),
        &[
            backend("nginx", nginx.address(), ""),
            backend("other", other.address, ""),
            backend("silent", silent.address, ""),
        ],
    ));
    weir.wait_for_line_with(&["main/nginx ", "is up", "HTTP 200"]);
    weir.wait_for_line_with(&["main/other ", "is down", "no HTTP answer"]);
    weir.wait_for_line_with(&["main/silent ", "is down"]);
    std::fs::remove_file(nginx.dir().join("www/healthz")).unwrap();
    weir.wait_for_line_with(&["main/nginx ", "is down", "HTTP 404, not 200, 300-399"]);
}

/// What a server is asked, byte for byte, and that the answer may come in pieces and go on for ever.
#[test]
fn http_as_the_server_sees_it() {
    let asked = Arc::new(parking_lot::Mutex::new(String::new()));
    let seen = asked.clone();
    let server = Server::each(move |mut stream| {
        if let Some(head) = server::read_head(&mut stream) {
            *seen.lock() = head;
        }
        for piece in ["HTTP/1.", "1 204 No", " Content\r\n"] {
            let _ = stream.write_all(piece.as_bytes());
        }
        // A body, or headers, without an end.
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
    let weir = Weir::start(&pool(
        &health("http: {method: HEAD}"),
        &[backend("one", server.address, "")],
    ));
    weir.wait_for_line_with(&["main/one ", "is up", "HTTP 204"]);
    let head = asked.lock().clone();
    assert!(head.starts_with("HEAD / HTTP/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nHost: {}\r\n", server.address)), "{head}");
    assert!(head.contains("\r\nConnection: close\r\n"), "{head}");
    // The prober is not kept by a server that never stops.
    wait_until("some probes", || server.accepted() > 5);
    assert_eq!(status(&weir)["pools"][0]["backends"][0]["state"], "up");
}

/// openssl s_server, which answers HTTP within TLS. Verified by its own certificate, by a name, by the address, by a CA that
/// did not sign it, and not at all. Meant to fail with nobody's certificate refused.
#[test]
fn tls_and_who_is_believed() {
    if !common::have(&["openssl"]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let [ours, others] =
        ["ours", "others"].map(|name| Certificate::self_signed(dir.path(), name, "DNS:db.example.org,IP:127.0.0.1"));
    let key = ours.key.display().to_string();
    let [ours, others] = [&ours, &others].map(|made| made.certificate.display().to_string());
    let port = Port::reserve();
    let mut openssl = command("openssl");
    openssl.args([
        "s_server",
        "-accept",
        &port.address().to_string(),
        "-cert",
        &ours,
        "-key",
        &key,
        "-quiet",
        "-www",
    ]);
    let tls = Program::start(openssl, port, tempfile::tempdir().unwrap());
    let plain = Server::named("plain");
    let yaml: Vec<(&str, String, &str, &str)> = vec![
        ("any", "tls: true".into(), "up", "TLS ok"),
        ("http", "tls: true, http: {}".into(), "up", "HTTP 200"),
        (
            "byname",
            format!("tls: true, ca: {ours}, server_name: db.example.org"),
            "up",
            "TLS ok",
        ),
        ("byaddress", format!("tls: true, ca: {ours}"), "up", "TLS ok"),
        (
            "othername",
            format!("tls: true, ca: {ours}, server_name: www.example.org"),
            "down",
            "certificate",
        ),
        ("otherca", format!("tls: true, ca: {others}"), "down", "certificate"),
    ];
    let mut pools: Vec<(&str, String, Vec<String>)> = yaml
        .iter()
        .map(|(name, keys, ..)| (*name, health(keys), vec![backend("one", tls.address(), "")]))
        .collect();
    pools.push(("plain", health("tls: true"), vec![backend("one", plain.address, "")]));
    let rows: Vec<(&str, &str, &[String])> = pools
        .iter()
        .map(|(name, keys, backends)| (*name, keys.as_str(), backends.as_slice()))
        .collect();
    let weir = Weir::start(&super::pools(&rows));
    for (name, _, state, words) in &yaml {
        weir.wait_for_line_with(&[&format!("{name}/one "), &format!("is {state}"), words]);
    }
    weir.wait_for_line_with(&["plain/one ", "is down"]);
}

/// A CA that cannot be read refuses the start, and a reload.
#[test]
fn a_ca_that_is_not_there() {
    let server = Server::named("x");
    let with = |keys: &str| pool(&health(keys), &[backend("one", server.address, "")]);
    let weir = Weir::start(&with(""));
    weir.rewrite(&with("tls: true, ca: /nonexistent/ca.pem"));
    let refused = common::operator::ask(&weir, &["reload"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        !refused.status.success() && text.contains("/nonexistent/ca.pem"),
        "{text}"
    );
    assert_eq!(client::fetch(&weir.address("main")).unwrap(), "x");
}

/// Servers that answer as nobody should: none of them is up, and none keeps a good one from being seen.
#[test]
fn hostile_answers() {
    let trickle = Server::each(|mut stream| {
        while stream.write_all(b"H").is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    let endless = Server::each(|mut stream| while stream.write_all(&[b'h'; 65536]).is_ok() {});
    let garbage = Server::each(|mut stream| {
        let _ = stream.write_all(&[0xff; 300]);
        let _ = stream.shutdown(Shutdown::Write);
        let _ = stream.read(&mut [0; 9999]);
    });
    let (closing, resetting) = (Server::each(server::close), Server::resetting());
    let good = Server::each(|mut stream: TcpStream| {
        server::read_head(&mut stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n");
    });
    for tls in ["", ", tls: true"] {
        let keys = format!("passive: off, health: {{interval: 100ms, timeout: 1s, rise: 1, fall: 1, http: {{}}{tls}}}");
        let mut backends = vec![
            backend("trickle", trickle.address, ""),
            backend("endless", endless.address, ""),
            backend("garbage", garbage.address, ""),
            backend("closing", closing.address, ""),
            backend("resetting", resetting.address, ""),
        ];
        backends.push(backend("good", good.address, ""));
        let weir = Weir::start(&pool(&keys, &backends));
        for name in ["trickle", "endless", "garbage", "closing", "resetting"] {
            weir.wait_for_line_with(&[&format!("main/{name} "), "is down"]);
        }
        let state = if tls.is_empty() { "is up" } else { "is down" };
        weir.wait_for_line_with(&["main/good ", state]);
    }
}

/// What an agent says decides about new work, as HAProxy's agent-check: fit or not, drain, a share of the weight.
/// Meant to fail with the agent's words dropped.
#[test]
fn agents_are_heeded() {
    let said = Arc::new(parking_lot::Mutex::new("up".to_string()));
    let (words, asked) = (said.clone(), Arc::new(AtomicUsize::new(0)));
    let count = asked.clone();
    let agent = Server::each(move |mut stream| {
        let mut question = [0; 5];
        let _ = stream.read_exact(&mut question);
        assert_eq!(&question, b"weir\n");
        count.fetch_add(1, Relaxed);
        let _ = writeln!(stream, "{}", words.lock());
    });
    let (one, two) = (Server::named("1"), Server::named("2"));
    let agent_keys = format!(
        "balance: round_robin, passive: off, health: {{type: none, agent: {{port: {}, interval: 50ms, send: \"weir\\n\"}}}}",
        agent.address.port()
    );
    // An agent for both: they have one address.
    let weir = Weir::start(&pool(
        &agent_keys,
        &[backend("one", one.address, ""), backend("two", two.address, "")],
    ));
    let say = |line: &str| *said.lock() = line.to_string();
    let state = |name: &str| {
        backend_of(&status(&weir), "main", name)["state"]
            .as_str()
            .unwrap()
            .to_string()
    };
    let both = |expected: &str| wait_until(expected, || state("one") == expected && state("two") == expected);
    both("up");
    say("down # disk full");
    both("down");
    assert_eq!(
        backend_of(&status(&weir), "main", "one")["reason"],
        "its agent says: down # disk full"
    );
    client::connect_to_reset(&weir.address("main"));
    // Who does not answer says nothing.
    say("");
    let before = asked.load(Relaxed);
    wait_until("it is asked again", || asked.load(Relaxed) > before + 4);
    both("down");
    say("up drain");
    both("drain");
    say("ready 50%");
    both("up");
    client::fetch(&weir.address("main")).unwrap();
}

/// What backups have is reset when a primary comes back, if the pool says so, and goes on if not.
#[test]
fn a_primary_that_comes_back_closes_backups() {
    for (keys, closed) in [("on_marked_up: close_backup", true), ("on_marked_up: keep", false)] {
        let (primary, backup) = (Port::reserve(), Server::named_holder("b"));
        let keys = format!("{keys}, passive: off, health: {{{QUICK}}}");
        let weir = Weir::start(&pool(
            &keys,
            &[
                backend("one", primary.address(), ""),
                backend("two", backup.address, "backup: true"),
            ],
        ));
        weir.wait_for_line_with(&["main/one ", "is down"]);
        weir.wait_for_line_with(&["main/two ", "is up"]);
        let (name, mut stream) = super::hold(&weir.address("main"), None);
        assert_eq!(name, 'b');
        let _primary = Server::on(server::bind(primary.address()), drop);
        weir.wait_for_line_with(&["main/one ", "is up"]);
        if closed {
            client::read_to_reset(&mut stream);
            assert_eq!(weir.wait_for_records(1)[0].end(), ("primary_back", "weir"));
        } else {
            stream.set_nonblocking(true).unwrap();
            assert_eq!(
                stream.read(&mut [0]).unwrap_err().kind(),
                std::io::ErrorKind::WouldBlock
            );
        }
    }
}
