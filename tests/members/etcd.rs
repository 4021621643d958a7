//! Keys of an etcd of one member: changes while what was to come next is compacted. Clusters that fail are in tests/etcd.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Condvar, Mutex};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::common::program::Program;
use super::common::server::{bind, loopback};
use super::common::{PATIENCE, Port, Server, Weir, command, directory_in_memory, find, have, wait_until};
use super::{error, wait_until_answers};

pub struct Etcd {
    pub address: SocketAddr,
    _program: Program,
    _among_members: Port,
}

impl Etcd {
    pub fn start() -> Etcd {
        let (port, peer) = (Port::reserve(), Port::reserve());
        let dir = directory_in_memory("weir-etcd-");
        let (address, peers) = (port.address(), format!("http://{}", peer.address()));
        let clients = format!("http://{address}");
        let mut start = command(find("etcd").unwrap());
        start.args(["--name", "one", "--initial-cluster", &format!("one={peers}")]);
        start.args(["--listen-client-urls", &clients, "--advertise-client-urls", &clients]);
        start.args(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers]);
        start
            .args(["--logger", "zap", "--data-dir"])
            .arg(dir.path().join("data"));
        let etcd = Etcd {
            _program: Program::start(start, port, dir),
            _among_members: peer,
            address,
        };
        wait_until("it leads itself", || {
            etcd.ask("kv/range", &json!({"key": text("ready")}))["header"].is_object()
        });
        etcd
    }

    /// Writes the keys that have a value and removes the others, all at once; at which revision.
    pub fn hold(&self, keys: &[(String, Option<String>)]) -> i64 {
        let one = |(key, value): &(String, Option<String>)| match value {
            Some(value) => json!({"request_put": {"key": text(key), "value": text(value)}}),
            None => json!({"request_delete_range": {"key": text(key)}}),
        };
        let answer = self.ask("kv/txn", &json!({"success": keys.iter().map(one).collect::<Vec<_>>()}));
        assert_eq!(answer["succeeded"], true, "{answer}");
        answer["header"]["revision"].as_str().unwrap().parse().unwrap()
    }

    fn put(&self, key: &str, value: &str) -> i64 {
        self.hold(&[(key.to_owned(), Some(value.to_owned()))])
    }

    /// Asks its JSON gateway.
    fn ask(&self, what: &str, body: &Value) -> Value {
        let body = body.to_string();
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let head = format!("POST /v3/{what} HTTP/1.0\r\nContent-Length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
    }
}

fn text(text: &str) -> Value {
    STANDARD.encode(text).into()
}

/// A pool `web` of the keys under `/web/`.
pub fn configuration(etcd: SocketAddr) -> String {
    format!(
        "etcd: {{endpoints: ['http://{etcd}']}}\n\
         listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{interval: 50ms}}, members: [{{etcd: /web/}}]}}}}\n"
    )
}

/// Stands between weir and etcd and lets everything through, but watches only while it is open.
struct Gate {
    address: SocketAddr,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    closed: bool,
    /// Questions for a watch that are held.
    held: usize,
    /// Watches that run.
    running: Vec<TcpStream>,
    /// What watches were answered.
    answered: Vec<u8>,
}

impl Gate {
    fn before(etcd: SocketAddr) -> Gate {
        let listener: TcpListener = bind((Ipv4Addr::LOCALHOST, 0));
        let gate = Gate {
            address: listener.local_addr().unwrap(),
            state: Arc::default(),
        };
        let state = gate.state.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || pass(client, etcd, &state));
            }
        });
        gate
    }

    /// Ends the watch that runs, and holds back the next one.
    fn close(&self) {
        let mut state = self.state.0.lock().unwrap();
        state.closed = true;
        for stream in state.running.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }

    fn open(&self) {
        self.state.0.lock().unwrap().closed = false;
        self.state.1.notify_all();
    }
}

fn pass(mut client: TcpStream, etcd: SocketAddr, (state, changed): &(Mutex<State>, Condvar)) {
    let mut buffer = [0; 16 << 10];
    let Ok(len @ 1..) = client.read(&mut buffer) else {
        return;
    };
    let is_watch = buffer.starts_with(b"POST /v3/watch ");
    if is_watch {
        let mut state = state.lock().unwrap();
        state.held += 1;
        state = changed.wait_while(state, |state| state.closed).unwrap();
        state.held -= 1;
        state.running.push(client.try_clone().unwrap());
    }
    let Ok(mut server) = TcpStream::connect(etcd) else {
        return;
    };
    if server.write_all(&buffer[..len]).is_err() {
        return;
    }
    let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Both);
    });
    while let Ok(len @ 1..) = server.read(&mut buffer) {
        if is_watch {
            state.lock().unwrap().answered.extend(&buffer[..len]);
        }
        if client.write_all(&buffer[..len]).is_err() {
            break;
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}

/// Between reading all keys and watching what follows, what follows is compacted: all is read again, and watched from there.
#[test]
fn what_was_to_come_next_is_compacted() {
    if !have(&["etcd"]) {
        return;
    }
    let port = Port::reserve().number;
    let _servers =
        [(1, "a"), (2, "b"), (3, "c")].map(|(last, name)| Server::named_on(bind((loopback(last), port)), name));
    let etcd = Etcd::start();
    etcd.put("/web/a", &format!("127.0.0.1:{port}"));
    let gate = Gate::before(etcd.address);
    let weir = Weir::start(&configuration(gate.address));
    wait_until_answers(&weir, &["a"]);
    wait_until("it watches", || !gate.state.0.lock().unwrap().running.is_empty());

    gate.close();
    wait_until("it has read, and wants to watch", || {
        gate.state.0.lock().unwrap().held == 1
    });
    etcd.put("/web/b", &format!("127.0.0.2:{port}"));
    etcd.put("/elsewhere", "1");
    let newest = etcd.put("/elsewhere", "2");
    etcd.ask(
        "kv/compaction",
        &json!({"revision": newest.to_string(), "physical": true}),
    );
    gate.open();
    wait_until_answers(&weir, &["a", "b"]);
    etcd.put("/web/c", &format!("127.0.0.3:{port}"));
    wait_until_answers(&weir, &["a", "b", "c"]);
    assert_eq!(error(&weir), None);
    let answered = String::from_utf8_lossy(&gate.state.0.lock().unwrap().answered).into_owned();
    assert!(answered.contains("compact_revision"), "{answered}");
}
