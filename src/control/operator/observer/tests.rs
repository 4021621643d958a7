//! Admin socket and HTTP against a small control thread that answers by rule.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use serde_json::{Value, json};

use std::time::Duration;

use super::super::ask::QUESTION_GAP;
use super::*;
use crate::api::question::QUESTION_BYTES;
use crate::api::question::{BackendOrder, Refusal, VipOrder};
use crate::api::status::Status;
use crate::control::request::Request;
use crate::link::LiveConnection;

/// A served pair of sockets.
struct Served {
    http: SocketAddr,
    path: PathBuf,
    /// Questions that reached control.
    asked: Arc<AtomicU64>,
    handle: Option<Handle>,
    _dir: tempfile::TempDir,
}

/// What the control thread of a test does with health questions.
#[derive(Clone, Copy, PartialEq)]
enum Control {
    Well,
    Ill,
    Hung,
}

fn serve(control: Control) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run/admin.sock");
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = http.local_addr().unwrap();
    let (sender, inputs) = crossbeam_channel::unbounded();
    let asked = Arc::new(AtomicU64::new(0));
    let counted = asked.clone();
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for input in inputs {
            let Input::Request(request) = input else {
                continue;
            };
            if control == Control::Hung {
                kept.push(request);
                continue;
            }
            let n = counted.fetch_add(1, SeqCst);
            answer(request, control, n);
        }
    });
    let shared = Shared::new(None, crossbeam_channel::bounded(1).0, Instant::now());
    let handle = start(admin::bind(&path).unwrap(), Some(http), sender, shared).unwrap();
    Served {
        http: address,
        path,
        asked,
        handle: Some(handle),
        _dir: dir,
    }
}

fn answer(request: Request, control: Control, n: u64) {
    match request {
        Request::Status { reply } => {
            let status = Status {
                generation: n,
                ..Status::default()
            };
            drop(reply.send(serde_json::to_value(status).unwrap()))
        }
        Request::Connections { limit, reply } => drop(reply.send(vec![live(); limit.min(3)])),
        Request::Kill { id, reply } => drop(reply.send(id == 1)),
        Request::Backend {
            pool,
            name,
            order,
            keep: _,
            reply,
        } => drop(reply.send(match (&*pool, order) {
            ("web", BackendOrder::Weight(weight)) => Ok(format!("web/{name}: weight {weight}")),
            ("web", order) => Ok(format!("web/{name}: {order:?}")),
            _ => Err(format!("no pool has the name {pool}")),
        })),
        Request::BackendAdd {
            pool, address, reply, ..
        } => drop(reply.send(Ok(format!("{pool}/{address}: added")))),
        Request::BackendRemove { pool, name, reply, .. } => drop(reply.send(Ok(format!("{pool}/{name}: removed")))),
        Request::Vip { address, order, reply } => drop(reply.send(match order {
            VipOrder::Demote => Ok(format!("{address} moves")),
            VipOrder::Allow => Err(format!("{address} is not ours")),
        })),
        Request::Reload { reply } => drop(reply.send(Err(Refusal::configuration("f.yaml:1:1: no")))),
        Request::Upgrade { reply } => drop(reply.send(Err("no such file".into()))),
        Request::Dump { reply } => drop(reply.send("workers: 1\n".into())),
        Request::Metrics { reply } => drop(reply.send(format!("weir_asked_total {n}\n"))),
        Request::Health { reply } => drop(reply.send(match control {
            Control::Well => Ok(()),
            _ => Err("worker 1 has not turned for 3 s".into()),
        })),
    }
}

fn live() -> LiveConnection {
    LiveConnection {
        id: 1,
        protocol: "tcp",
        listener: "web".into(),
        client: "192.0.2.1:1".into(),
        pool: "web".into(),
        backend: "a".into(),
        engine: "proxy",
        worker: 0,
        state: "open",
        age_ms: 1,
        idle_ms: 1,
        bytes_up: 1,
        bytes_down: 1,
    }
}

impl Served {
    fn admin(&self) -> BufReader<UnixStream> {
        BufReader::new(UnixStream::connect(&self.path).unwrap())
    }

    /// Sends one HTTP request; status line and headers, body.
    fn http(&self, method: &str, path: &str) -> (String, String) {
        let mut stream = TcpStream::connect(self.http).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        .unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        (head.to_lowercase(), body.to_string())
    }
}

fn ask(admin: &mut BufReader<UnixStream>, question: &str) -> Value {
    writeln!(admin.get_mut(), "{question}").unwrap();
    let mut line = String::new();
    admin.read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap_or(Value::Null)
}

#[test]
fn each_question_has_its_answer() {
    let served = serve(Control::Well);
    let mut admin = served.admin();
    for (question, answer) in [
        (json!({"command": "kill", "id": 1}), json!({"ok": "1 is ended"})),
        (
            json!({"command": "kill", "id": 2}),
            json!({"error": "no connection or session has the id 2", "cause": "runtime"}),
        ),
        (
            json!({"command": "backend", "pool": "web", "name": "a", "order": "drain"}),
            json!({"ok": "web/a: Drain"}),
        ),
        (
            json!({"command": "backend", "pool": "web", "name": "a", "order": {"weight": 7}}),
            json!({"ok": "web/a: weight 7"}),
        ),
        (
            json!({"command": "backend", "pool": "x", "name": "a", "order": "ready"}),
            json!({"error": "no pool has the name x", "cause": "runtime"}),
        ),
        (
            json!({"command": "vip", "address": "10.0.0.100", "order": "demote"}),
            json!({"ok": "10.0.0.100 moves"}),
        ),
        (
            json!({"command": "vip", "address": "2001:db8::1", "order": "allow"}),
            json!({"error": "2001:db8::1 is not ours", "cause": "runtime"}),
        ),
        (
            json!({"command": "reload"}),
            json!({"error": "f.yaml:1:1: no", "cause": "configuration"}),
        ),
        (json!({"command": "health"}), json!({"ok": "ok"})),
        (
            json!({"command": "conns", "limit": 1}),
            json!({"ok": [serde_json::to_value(live()).unwrap()]}),
        ),
    ] {
        assert_eq!(ask(&mut admin, &question.to_string()), answer, "{question}");
    }
    assert!(ask(&mut admin, r#"{"command":"status"}"#)["ok"]["generation"].is_u64());
    assert!(ask(&mut admin, r#"{"command":"history","since":0}"#)["ok"]["series"].is_object());
    for nonsense in ["", "{}", "status", r#"{"command":"dance"}"#, r#"{"command":"kill"}"#] {
        assert!(ask(&mut admin, nonsense)["error"].is_string(), "{nonsense}");
    }
}

#[test]
fn a_question_without_end_is_refused_and_the_client_dropped() {
    let served = serve(Control::Well);
    let mut admin = served.admin();
    let endless = vec![b' '; QUESTION_BYTES as usize];
    admin.get_mut().write_all(&endless).unwrap();
    let mut rest = String::new();
    admin.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("within 4096 bytes"), "{rest}");
}

#[test]
fn the_socket_file_is_for_owner_and_group_only() {
    let served = serve(Control::Well);
    let mode = std::fs::metadata(&served.path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660, "{mode:o}");
}

#[test]
fn a_live_socket_is_refused_a_stale_one_replaced_and_nothing_else_touched() {
    let mut served = serve(Control::Well);
    let path = served.path.clone();
    let error = admin::bind(&path).unwrap_err().to_string();
    let pid = std::process::id();
    assert!(
        error.ends_with(&format!("another weir (pid {pid}) is running there")),
        "{error}"
    );
    served.handle.take().unwrap().stop();
    assert!(path.exists(), "the file outlives a process that dies");
    let listener = admin::bind(&path).unwrap();
    admin::remove(&listener);
    assert!(!path.exists());
    std::fs::write(&path, "precious").unwrap();
    let error = admin::bind(&path).unwrap_err().to_string();
    assert!(error.ends_with("exists and is not a socket"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
}

/// Fails when the lock around looking and binding is left out.
#[test]
fn of_many_that_start_at_once_on_a_stale_socket_one_wins() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("admin.sock");
    for _ in 0..20 {
        drop(std::os::unix::net::UnixListener::bind(&path));
        let start = std::sync::Barrier::new(8);
        let bound: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        admin::bind(&path)
                    })
                })
                .collect();
            threads
                .into_iter()
                .filter_map(|thread| thread.join().unwrap().ok())
                .collect()
        });
        assert_eq!(bound.len(), 1);
    }
}

#[test]
fn http_answers() {
    let served = serve(Control::Well);
    // (method, path, status, content type, body contains)
    for (method, path, status, kind, part) in [
        ("GET", "/", "200", "text/html", "<!doctype html>"),
        ("GET", "/page.css", "200", "text/css", ""),
        ("GET", "/page.js", "200", "text/javascript", ""),
        ("GET", "/status", "200", "application/json", "\"generation\""),
        ("GET", "/status?x=1", "200", "application/json", "\"generation\""),
        (
            "GET",
            "/metrics",
            "200",
            "text/plain; version=0.0.4",
            "weir_asked_total",
        ),
        ("GET", "/healthz", "200", "text/plain", "ok"),
        ("GET", "/history", "200", "application/json", "\"series\""),
        (
            "GET",
            "/history?since=99999999999999999999999",
            "200",
            "application/json",
            "\"from\"",
        ),
        ("GET", "/nothing", "404", "text/plain", "not found"),
        ("GET", "/../etc/passwd", "404", "text/plain", "not found"),
        ("POST", "/", "405", "text/plain", "only GET and HEAD"),
        ("DELETE", "/status", "405", "text/plain", "only GET and HEAD"),
    ] {
        let (head, body) = served.http(method, path);
        assert!(
            head.starts_with(&format!("http/1.1 {status} ")),
            "{method} {path}: {head}"
        );
        assert!(head.contains(&format!("content-type: {kind}")), "{path}: {head}");
        assert!(body.contains(part), "{path}: {body}");
        assert!(
            head.contains("content-security-policy: default-src 'none'"),
            "{path}: {head}"
        );
        assert!(head.contains("x-content-type-options: nosniff"), "{path}: {head}");
        if method == "GET" {
            let (bare, none) = served.http("HEAD", path);
            assert_eq!(
                (bare.lines().next(), none.as_str()),
                (head.lines().next(), ""),
                "{path}"
            );
            assert!(bare.contains("content-length: "), "{path}: {bare}");
        }
    }
}

#[test]
fn health_says_what_is_wrong() {
    let (head, body) = serve(Control::Ill).http("GET", "/healthz");
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert_eq!(body, "worker 1 has not turned for 3 s\n");
}

#[test]
fn a_control_thread_that_hangs_is_reported_not_waited_for() {
    let served = serve(Control::Hung);
    let started = Instant::now();
    let (head, body) = served.http("GET", "/healthz");
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    assert!(body.contains("has not answered for 5s"), "{body}");
    assert!(started.elapsed() < Duration::from_secs(9));
    // And the page is still there.
    assert!(served.http("GET", "/").0.starts_with("http/1.1 200"));
}

#[test]
fn clients_that_never_finish_a_request_do_not_keep_others_out() {
    let served = serve(Control::Well);
    let slow: Vec<TcpStream> = (0..500)
        .map(|_| {
            let mut stream = TcpStream::connect(served.http).unwrap();
            let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ");
            stream
        })
        .collect();
    for _ in 0..20 {
        let started = Instant::now();
        assert!(served.http("GET", "/metrics").0.starts_with("http/1.1 200"));
        // Behind them it would wait for their heads to be late (`http::HEAD_MAX`, 5 s).
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }
    let hangers_on: Vec<UnixStream> = (0..100).map(|_| UnixStream::connect(&served.path).unwrap()).collect();
    assert_eq!(ask(&mut served.admin(), r#"{"command":"health"}"#)["ok"], "ok");
    drop((slow, hangers_on));
}

/// Fails when the gap between flights is left out, and when each client asks for itself.
#[test]
fn many_clients_are_few_questions_and_no_answer_is_older_than_its_question() {
    let served = serve(Control::Well);
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let before = served.asked.load(SeqCst);
                    let (_, body) = served.http("GET", "/metrics");
                    let n: u64 = body.trim().strip_prefix("weir_asked_total ").unwrap().parse().unwrap();
                    assert!(n >= before, "answer {n} was there before the question after {before}");
                }
            });
        }
    });
    let gaps = started.elapsed().as_millis() / QUESTION_GAP.as_millis();
    let asked = u128::from(served.asked.load(SeqCst));
    // One each gap, one each second for the graphs.
    assert!(
        asked <= gaps + started.elapsed().as_secs() as u128 + 3,
        "{asked} in {gaps} gaps"
    );
}

#[test]
fn heads_too_long_or_malformed_are_refused() {
    let served = serve(Control::Well);
    let long = format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "y".repeat(64 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(500));
    for hostile in [
        long.as_str(),
        many.as_str(),
        "\x16\x03\x01\x02\x00\x01\x00",
        "GET\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(served.http).unwrap();
        let _ = stream.write_all(hostile.as_bytes());
        let mut answer = Vec::new();
        // A reset is an answer as well.
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    assert!(served.http("GET", "/healthz").0.starts_with("http/1.1 200"));
}

#[test]
fn a_client_that_says_nothing_is_dropped_in_time() {
    let served = serve(Control::Well);
    let mut silent = TcpStream::connect(served.http).unwrap();
    let mut talks_once = TcpStream::connect(served.http).unwrap();
    talks_once
        .write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        .unwrap();
    let started = Instant::now();
    for stream in [&mut silent, &mut talks_once] {
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).unwrap();
    }
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[test]
fn http_moves_and_the_history_stays() {
    let mut served = serve(Control::Well);
    let mut admin = served.admin();
    let handle = served.handle.take().unwrap();
    while ask(&mut admin, r#"{"command":"history","since":0}"#)["ok"]["seq"] == 0 {
        std::thread::yield_now();
    }
    let old = served.http;
    let http = TcpListener::bind("127.0.0.1:0").unwrap();
    served.http = http.local_addr().unwrap();
    handle.set_http(Some(http)).unwrap();
    assert!(served.http("GET", "/history").1.contains("\"from\":0,"));
    assert!(TcpStream::connect(old).is_err());
    handle.set_http(None).unwrap();
    while TcpStream::connect(served.http).is_ok() {
        std::thread::yield_now();
    }
    assert_eq!(ask(&mut admin, r#"{"command":"health"}"#)["ok"], "ok");
}

#[test]
fn stopping_closes_everything_at_once() {
    let mut served = serve(Control::Well);
    let mut admin = served.admin();
    ask(&mut admin, r#"{"command":"health"}"#);
    let started = Instant::now();
    served.handle.take().unwrap().stop();
    assert!(started.elapsed() < Duration::from_secs(2));
    let mut rest = Vec::new();
    admin.read_to_end(&mut rest).unwrap();
    assert!(UnixStream::connect(&served.path).is_err());
    assert!(TcpStream::connect(served.http).is_err());
}
