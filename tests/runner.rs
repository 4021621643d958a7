//! The process that runs the operator's commands.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use weir::runner::{Commands, Ran, Run, RunnerHandle, Which};

struct Runner {
    child: Child,
    handle: Option<RunnerHandle>,
}

impl Runner {
    fn start(script: &str, file: Option<&Path>) -> Runner {
        let (ours, theirs) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_weir"))
            .arg("runner")
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let handle = RunnerHandle::from_fd(ours);
        handle.introduce(&shell(script), file).unwrap();
        Runner {
            child,
            handle: Some(handle),
        }
    }

    fn handle(&self) -> &RunnerHandle {
        self.handle.as_ref().unwrap()
    }

    fn run(&self, id: u64, variables: &[(&str, &str)], limit: Duration) {
        let own = |(name, value): &(&str, &str)| (name.to_string(), value.to_string());
        let run = Run {
            id,
            which: Which::Notify,
            variables: variables.iter().map(own).collect(),
            limit,
        };
        self.handle().run(run).unwrap();
    }

    fn ran(&self) -> Ran {
        let mut ran = None;
        until("an answer", || {
            ran = self.handle().receive().unwrap();
            ran.is_some()
        });
        ran.unwrap()
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        // What runs may finish, or is killed when its time is over.
        self.handle = None;
        let _ = self.child.wait();
    }
}

fn shell(script: &str) -> Commands {
    Commands {
        notify: ["/bin/sh", "-c", script].map(str::to_string).to_vec(),
        ..Commands::default()
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

const LONG: Duration = Duration::from_secs(20);

#[test]
fn what_takes_too_long_is_killed_with_everything_that_it_started() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("pid");
    let runner = Runner::start("sleep 1000 & echo $! > $WEIR_FILE; wait", None);
    runner.run(7, &[("WEIR_FILE", file.to_str().unwrap())], Duration::from_millis(500));
    let ran = runner.ran();
    assert_eq!(ran.id, 7);
    assert!(ran.outcome.unwrap_err().contains("took too long"));
    let pid = fs::read_to_string(&file).unwrap();
    let state = format!("/proc/{}/stat", pid.trim());
    // Gone, or waiting for whoever inherits it.
    until("the grandchild is gone", || {
        fs::read_to_string(&state).map_or(true, |stat| stat.contains(") Z "))
    });
}

#[test]
fn a_slow_command_holds_nobody_up() {
    let runner = Runner::start("[ $WEIR_N = 0 ] && sleep 1000; exit $WEIR_N", None);
    for n in 0..4u64 {
        runner.run(n, &[("WEIR_N", &n.to_string())], Duration::from_secs(3));
    }
    let mut ids: Vec<u64> = (0..3)
        .map(|_| runner.ran())
        .map(|ran| {
            assert!(ran.outcome.unwrap_err().contains(&ran.id.to_string()));
            ran.id
        })
        .collect();
    ids.sort();
    assert_eq!(ids, [1, 2, 3]);
}

/// Whoever has taken over the process that gives orders cannot have anything else run.
#[test]
fn commands_come_from_the_first_message_and_the_file_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("weir.yaml");
    let secret = dir.path().join("secret");
    fs::write(&secret, "a secret of the test bench").unwrap();
    let out = dir.path().join("out");
    let script = |word: &str| format!("echo {word} $OTHER $WEIR_A > {}", out.display());
    let write = |text: &str| fs::write(&path, text).unwrap();
    write("nonsense");
    let runner = Runner::start(&script("first"), Some(&path));
    let told = || {
        runner.run(1, &[("WEIR_A", "a"), ("OTHER", "evil")], LONG);
        assert_eq!(runner.ran().outcome, Ok(()));
        fs::read_to_string(&out).unwrap()
    };
    assert_eq!(told(), "first a\n");
    runner.handle().introduce(&shell(&script("second")), None).unwrap();
    assert_eq!(told(), "first a\n");
    // A file that cannot be read changes nothing.
    runner.handle().reload().unwrap();
    assert_eq!(told(), "first a\n");
    let config = serde_json::json!({
        "listeners": {"web": {"protocol": "tcp", "bind": ["127.0.0.1:0"], "pool": "web"}},
        "pools": {"web": {"backends": ["127.0.0.1:1"]}},
        "failover": {
            "node": "a", "secret_file": secret, "nodes": {"a": "127.0.0.1:7400", "b": "127.0.0.2:7400"},
            "vips": [{"address": "10.0.0.100/24", "interface": "lo"}], "notify": shell(&script("third")).notify,
            "track": {"odd": {"exec": ["/bin/sh", "-c", "exit 7"]}, "gw": {"tcp": "10.0.0.254:22"}},
        },
    });
    write(&config.to_string());
    runner.handle().reload().unwrap();
    assert_eq!(told(), "third a\n");
    let tracked = |name: &str| {
        let run = Run {
            id: 2,
            which: Which::Track(name.into()),
            variables: Vec::new(),
            limit: LONG,
        };
        runner.handle().run(run).unwrap();
        runner.ran().outcome.unwrap_err()
    };
    assert_eq!(tracked("odd"), "exit status: 7");
    assert_eq!(tracked("gw"), "there is no such command");
}

#[test]
fn it_ends_when_its_last_command_has() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("done");
    let mut runner = Runner::start("sleep 0.3; echo done > $WEIR_FILE", None);
    runner.run(1, &[("WEIR_FILE", file.to_str().unwrap())], LONG);
    runner.handle = None;
    until("it ends", || runner.child.try_wait().unwrap().is_some());
    assert_eq!(fs::read_to_string(&file).unwrap(), "done\n");
}
