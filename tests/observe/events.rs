//! `weir events`: what happens, as it happens.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::sync::mpsc;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use super::commands::{config, two};
use super::common::{PATIENCE, Weir, wait_until};
use super::said;

/// A connection to the admin socket, one JSON object a line.
pub struct Line(BufReader<UnixStream>);

impl Line {
    fn connect(weir: &Weir) -> Line {
        let stream = UnixStream::connect(weir.admin()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Line(BufReader::new(stream))
    }

    /// Follows from the moment that this returns.
    pub fn follow(weir: &Weir) -> Line {
        let mut line = Line::connect(weir);
        assert_eq!(line.ask(&json!({"command": "events"})), json!({"ok": "following"}));
        line
    }

    fn ask(&mut self, question: &Value) -> Value {
        writeln!(self.0.get_mut(), "{question}").unwrap();
        self.next().unwrap()
    }

    /// `None` at the end.
    fn next(&mut self) -> Option<Value> {
        let mut text = String::new();
        self.0.read_line(&mut text).unwrap();
        (!text.is_empty()).then(|| serde_json::from_str(&text).unwrap())
    }

    /// The next one of a kind; others are passed over.
    pub fn next_of(&mut self, kind: &str) -> Value {
        std::iter::from_fn(|| self.next())
            .find(|record| record["event"] == kind)
            .unwrap_or_else(|| panic!("the stream has ended without {kind}"))
    }
}

fn weigh(admin: &mut Line, weight: u32) {
    let order = json!({"command": "backend", "pool": "main", "name": "a", "order": {"weight": weight}});
    assert!(admin.ask(&order)["ok"].is_string());
}

/// What is told is what is logged, with fields; over reloads, whatever the log writes, until the last word.
#[test]
fn what_happens_is_told_until_the_end() {
    let (mut weir, servers) = two("shutdown_grace: 1s");
    let mut follower = Line::follow(&weir);
    said(&weir, &["backend", "main/a", "drain"]);
    let mut record = follower.next().unwrap();
    let time = record["time"].take();
    humantime::parse_rfc3339(time.as_str().unwrap()).unwrap();
    let address = servers[0].address.to_string();
    let message = format!("backend main/a ({address}) is drain (was up): by order");
    assert_eq!(
        record,
        json!({
            "time": null, "level": "info", "event": "backend_state", "message": message, "pool": "main", "backend": "a",
            "address": address, "state": "drain", "was": "up", "reason": "by order", "reason_code": "order",
        })
    );
    weir.wait_for_line(&message);

    // Of the log nothing is left but errors; it is followed all the same.
    let quiet = "shutdown_grace: 1s\nlog: {access: stdout, level: error}";
    weir.rewrite(&config(&servers, quiet));
    said(&weir, &["reload"]);
    assert_eq!(follower.next_of("reload")["generation"], 2);
    said(&weir, &["backend", "main/b", "weight", "7"]);
    let record = follower.next_of("backend_weight");
    let said_so = record["message"].as_str().unwrap();
    assert_eq!(
        (said_so, &record["weight"]),
        ("backend main/b: weight 7 by order", &json!(7))
    );
    weir.rewrite("nonsense: 1");
    assert!(!super::ask(&weir, &["reload"]).status.success());
    let record = follower.next_of("reload_refused");
    assert!(record["reason"].as_str().unwrap().contains("nonsense"), "{record}");
    assert_eq!(record["level"], "error");
    assert!(!weir.stderr().iter().any(|line| line.contains(said_so)));

    weir.signal(Signal::SIGTERM);
    assert_eq!(follower.next_of("stopping")["grace_ms"], 1000);
    let record = follower.next_of("end");
    assert_eq!(
        (&record["message"], &record["successor"]),
        (&json!("weir has stopped"), &Value::Null)
    );
    assert_eq!(follower.next(), None);
    assert!(weir.wait_for_end().success());
}

/// One follower reads, the other one does not: orders are carried out, the first one hears of all of them, and the second
/// one finds out how many it has missed, at the place where they are missing.
#[test]
fn who_reads_slowly_misses_some_and_holds_up_nobody() {
    const ORDERS: u32 = 6000;
    let (weir, _servers) = two("");
    let (mut slow, mut quick) = (Line::follow(&weir), Line::follow(&weir));
    let reader = std::thread::spawn(move || {
        for weight in 1..=ORDERS {
            assert_eq!(quick.next().unwrap()["weight"], weight);
        }
    });
    let mut admin = Line::connect(&weir);
    for weight in 1..=ORDERS {
        weigh(&mut admin, weight);
    }
    reader.join().unwrap();

    let (mut expected, mut lost) = (1, 0);
    while expected <= ORDERS {
        let record = slow.next().unwrap();
        if record["event"] == "lost" {
            let count = record["count"].as_u64().unwrap() as u32;
            assert!(
                record["message"]
                    .as_str()
                    .unwrap()
                    .starts_with(&format!("{count} events were lost"))
            );
            (expected, lost) = (expected + count, lost + count);
        } else {
            assert_eq!(record["weight"], expected);
            expected += 1;
        }
    }
    assert_eq!(expected, ORDERS + 1);
    assert!(lost > 0);
    // And it is served again.
    weigh(&mut admin, 1);
    assert_eq!(slow.next().unwrap()["weight"], 1);
}

/// Followers are bounded, and keep their places however many others come.
#[test]
fn followers_are_bounded_and_stay() {
    let (weir, _servers) = two("");
    let mut followers: Vec<Line> = (0..16).map(|_| Line::follow(&weir)).collect();
    let refused = Line::connect(&weir).ask(&json!({"command": "events"}));
    assert_eq!(refused["error"], "16 follow already, which is all that may");
    let others: Vec<Line> = (0..60).map(|_| Line::connect(&weir)).collect();
    said(&weir, &["backend", "main/a", "weight", "5"]);
    for follower in &mut followers {
        assert_eq!(follower.next_of("backend_weight")["weight"], 5);
    }
    drop(others);
    // Whoever goes makes room.
    drop(followers.pop());
    wait_until("there is room for another", || {
        Line::connect(&weir).ask(&json!({"command": "events"})) == json!({"ok": "following"})
    });
}

/// The command prints lines as the log has them, or records; it ends with the process, and fails if that died.
#[test]
fn the_command_prints_what_happens_and_says_how_it_ended() {
    for (json, signal, code) in [
        (true, Signal::SIGTERM, 0),
        (false, Signal::SIGTERM, 0),
        (false, Signal::SIGKILL, 1),
    ] {
        let (mut weir, _servers) = two("");
        let mut command = Command::new(env!("CARGO_BIN_EXE_weir"));
        command.args(["events", "--socket"]).arg(weir.admin());
        if json {
            command.arg("--json");
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        let reader = std::thread::spawn(move || {
            out.lines()
                .map_while(Result::ok)
                .for_each(|line| drop(sender.send(line)));
        });
        // It says nothing when it begins to follow.
        let (mut line, mut weight) = (String::new(), 0);
        wait_until("an event is printed", || {
            weight += 1;
            said(&weir, &["backend", "main/a", "weight", &weight.to_string()]);
            line = lines.try_recv().unwrap_or_default();
            !line.is_empty()
        });
        match json {
            true => {
                let record: Value = serde_json::from_str(&line).unwrap();
                assert_eq!(record["event"], "backend_weight", "{line}");
            }
            false => assert!(line.contains(" INFO  backend main/a: weight "), "{line}"),
        }
        weir.signal(signal);
        weir.wait_for_end();
        let ended = child.wait_with_output().unwrap();
        reader.join().unwrap();
        let errors = String::from_utf8(ended.stderr).unwrap();
        assert_eq!(ended.status.code(), Some(code), "{errors}");
        let last = lines.try_iter().last().unwrap_or_default();
        match code {
            0 => assert!(last.contains("weir has stopped"), "{last}"),
            _ => assert!(errors.contains("closed without a word"), "{errors}"),
        }
    }
}
