//! Containers: against an engine in the test that answers as Docker's does. No engine runs where these tests run.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::common::server::{bind, loopback};
use super::common::{Launch, Port, Server, wait_until};
use super::{answers, error, members, wait_until_answers, wait_until_up};

/// What an engine has: names and addresses of running containers, and who listens to its events.
#[derive(Default)]
struct State {
    list: String,
    listeners: Vec<UnixStream>,
    /// Requests so far.
    asked: Vec<String>,
}

pub struct Engine {
    dir: tempfile::TempDir,
    state: Arc<Mutex<State>>,
}

impl Engine {
    pub fn start(containers: &[(&str, &str)]) -> Engine {
        let engine = Engine {
            dir: tempfile::Builder::new().prefix("weir-docker-").tempdir().unwrap(),
            state: Arc::default(),
        };
        engine.state.lock().unwrap().list = list(containers);
        engine.serve();
        engine
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("docker.sock")
    }

    /// As after a restart: another socket of the same name.
    fn serve(&self) {
        let _ = std::fs::remove_file(self.socket());
        let listener = UnixListener::bind(self.socket()).unwrap();
        let state = self.state.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || answer(stream, &state));
            }
        });
    }

    /// Containers start and die; each is told.
    pub fn run(&self, containers: &[(&str, &str)]) {
        let mut state = self.state.lock().unwrap();
        state.list = list(containers);
        let event = "{\"Type\":\"container\",\"Action\":\"start\",\"Actor\":{\"ID\":\"4f1c\"}}\n";
        let chunk = format!("{:x}\r\n{event}\r\n", event.len());
        state
            .listeners
            .retain_mut(|stream| stream.write_all(chunk.as_bytes()).is_ok());
    }

    /// Events end, nobody answers.
    fn die(&self) {
        std::fs::remove_file(self.socket()).unwrap();
        for stream in self.state.lock().unwrap().listeners.drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
    }
}

fn list(containers: &[(&str, &str)]) -> String {
    let one = |(name, ip): &(&str, &str)| {
        format!(
            "{{\"Id\":\"{name}0\",\"Names\":[\"/{name}\"],\"State\":\"running\",\"Labels\":{{\"weir.pool\":\"web\"}},\
             \"NetworkSettings\":{{\"Networks\":{{\"bridge\":{{\"IPAddress\":\"{ip}\",\"GlobalIPv6Address\":\"\"}}}}}}}}"
        )
    };
    format!("[{}]", containers.iter().map(one).collect::<Vec<_>>().join(","))
}

fn answer(mut stream: UnixStream, state: &Mutex<State>) {
    let mut lines = BufReader::new(stream.try_clone().unwrap())
        .lines()
        .map_while(Result::ok);
    let Some(request) = lines.next() else { return };
    lines.find(|line| line.is_empty());
    let mut state = state.lock().unwrap();
    state.asked.push(request.clone());
    if request.starts_with("GET /events?") {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
        let _ = stream.write_all(head.as_bytes());
        state.listeners.push(stream);
    } else if request.starts_with("GET /containers/json?") {
        let list = &state.list;
        let _ = write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{list}",
            list.len()
        );
    } else {
        let _ = write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
    }
}

fn configuration(engine: &Engine, port: u16) -> String {
    format!(
        "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{interval: 50ms}}, \
         members: [{{docker: {{label: \"weir.pool=web\", port: {port}, socket: {}}}}}]}}}}\n",
        engine.socket().display()
    )
}

/// Containers come and go; the engine is restarted, answers nonsense, and runs none: those who are known go on.
#[test]
fn containers() {
    let port = Port::reserve().number;
    let servers: Vec<Server> = [(1, "a"), (2, "b")]
        .map(|(last, name)| Server::named_on(bind((loopback(last), port)), name))
        .into();
    let engine = Engine::start(&[("web-1", "127.0.0.1")]);
    let weir = Launch::new(&configuration(&engine, port))
        .env("WEIR_SANDBOX", "strict")
        .start();
    assert_eq!(answers(&weir, 4), ["a"]);
    assert_eq!(members(&weir)["members"][0]["name"], "web-1");
    assert_eq!(
        members(&weir)["members"][0]["source"],
        format!("docker:weir.pool=web:{port}")
    );
    {
        let asked = engine.state.lock().unwrap().asked.join("\n");
        assert!(
            asked.contains("weir.pool%3Dweb") && asked.contains("running"),
            "{asked}"
        );
    }
    engine.run(&[("web-1", "127.0.0.1"), ("web-2", "127.0.0.2")]);
    wait_until_up(&weir, &[&format!("127.0.0.1:{port}"), &format!("127.0.0.2:{port}")]);
    engine.run(&[("web-2", "127.0.0.2")]);
    wait_until_answers(&weir, &["b"]);
    engine.run(&[]);
    wait_until("none run", || error(&weir).is_some_and(|e| e.contains("no members")));
    assert_eq!(answers(&weir, 4), ["b"]);
    engine.state.lock().unwrap().list = "[{".into();
    engine.die();
    wait_until("it is gone", || error(&weir).is_some_and(|e| e.contains("docker.sock")));
    assert_eq!(answers(&weir, 4), ["b"]);
    engine.serve();
    wait_until("nonsense", || {
        error(&weir).is_some_and(|e| e.contains("makes no sense"))
    });
    assert_eq!(answers(&weir, 4), ["b"]);
    engine.run(&[("web-1", "127.0.0.1")]);
    wait_until_answers(&weir, &["a"]);
    assert_eq!(error(&weir), None);
    drop(servers);
}
