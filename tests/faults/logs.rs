//! Logs that cannot be written: the disk is full, the reader of the pipe has gone. Serving goes on.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use super::common::{self, Server, Weir, client};
use super::one_backend;

#[test]
fn a_full_disk_under_the_access_log() {
    let backend = Server::echo();
    let yaml = format!("log: {{access: /dev/full}}\n{}", one_backend(backend.address, ""));
    let weir = Weir::start(&yaml);
    for _ in 0..200 {
        client::round_trip(&mut client::connect(&weir.address("web")), b"served");
    }
    let lines = weir.stderr().len();
    std::thread::sleep(std::time::Duration::from_secs(2));
    for _ in 0..200 {
        client::round_trip(&mut client::connect(&weir.address("web")), b"served");
    }
    let lines = weir.stderr().len() - lines;
    assert!(
        lines <= 6,
        "{lines} lines about a full disk: {}",
        weir.stderr().join("\n")
    );
    assert!(
        weir.stderr().join("\n").contains("No space left"),
        "the operator is told: {}",
        weir.stderr().join("\n")
    );
    weir.stop();
}

#[test]
fn the_readers_of_both_logs_are_gone() {
    let backend = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\nlog: {{access: stdout}}\n{}",
        dir.path().display(),
        one_backend(backend.address, "")
    );
    std::fs::write(&file, yaml).unwrap();
    let mut weir = common::command(env!("CARGO_BIN_EXE_weir"))
        .args(["run", "-c"])
        .arg(&file)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(weir.stdout.take());
    let mut address = None;
    for line in BufReader::new(weir.stderr.take().unwrap()).lines() {
        let line = line.unwrap();
        if let Some((_, found)) = line.split_once("listening: web ") {
            address = Some(found.trim().to_owned());
        }
        if line.ends_with("ready") {
            break;
        }
    }
    // The reader, dropped with the loop, was the last of both pipes.
    let address = address.expect("an address before it is ready");
    for _ in 0..100 {
        client::round_trip(&mut client::connect(&address), b"served");
    }
    // Something to say on stderr: a reload that is refused.
    std::fs::write(&file, "nonsense").unwrap();
    let pid = nix::unistd::Pid::from_raw(weir.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGHUP).unwrap();
    for _ in 0..100 {
        client::round_trip(&mut client::connect(&address), b"served");
    }
    assert!(weir.try_wait().unwrap().is_none(), "it still runs");
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    let status = weir.wait().unwrap();
    assert!(status.success(), "{status}");
}

/// Fills a pipe, so that whoever writes to it waits for ever.
fn fill(pipe: impl std::os::fd::AsFd) {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_truncate(fcntl(&pipe, FcntlArg::F_GETFL).unwrap());
    fcntl(&pipe, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    for size in [4096, 1] {
        while nix::unistd::write(&pipe, &vec![b'.'; size]).is_ok() {}
    }
    fcntl(&pipe, FcntlArg::F_SETFL(flags)).unwrap();
}

/// Standard output, standard error and the access log are pipes that are full and that nobody reads, from before the start.
/// Workers, prober, election, keeper, control and its clients, reload, upgrade and the end do not notice.
///
/// Breaks tried: a log that is written by whoever has something to say (it never serves); `write_all` to the named pipe
/// (the reload that takes the access log elsewhere is refused).
#[test]
fn nobody_reads_any_log() {
    use std::os::unix::fs::PermissionsExt;
    if !common::may_make_namespaces() {
        return;
    }
    let netns = common::netns::Netns::new("logs");
    netns.ip(&["link", "add", "weir0", "type", "veth", "peer", "name", "weir1"]);
    for interface in ["weir0", "weir1"] {
        netns.ip(&["link", "set", interface, "up"]);
    }
    // Whoever connects there makes a worker say so.
    netns.ip(&["route", "add", "unreachable", "198.51.100.1"]);
    let (backend, later) = netns.enter(|| (Server::echo(), common::Port::reserve()));
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("secret"), "0123456789abcdef0123456789abcdef").unwrap();
    std::fs::set_permissions(path("secret"), PermissionsExt::from_mode(0o600)).unwrap();
    let fifo = path("access.log");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    // For reading as well, or opening it would wait for a reader.
    let access = std::fs::OpenOptions::new().read(true).write(true).open(&fifo).unwrap();
    let yaml = |access: &str| {
        format!(
            "admin: {dir}/admin.sock\nlog: {{level: debug, access: '{access}'}}\nworkers: 2\n\
             listeners:\n  web: {{bind: '127.0.0.1:80', pool: web}}\n  lost: {{bind: '127.0.0.1:81', pool: lost}}\n\
             pools:\n  web: {{backends: '{}', health: {{type: none}}}}\n  \
             lost: {{backends: '198.51.100.1:1', health: {{type: none}}}}\n  \
             later: {{backends: '{}', health: {{interval: 50ms, rise: 1, fall: 1}}}}\n\
             failover: {{node: a, secret_file: '{dir}/secret', nodes: {{a: '127.0.0.1:7400'}},\n  \
             vips: [{{address: 10.99.0.1/24, interface: weir0}}]}}\n",
            backend.address,
            later.address(),
            dir = dir.path().display(),
        )
    };
    std::fs::write(path("weir.yaml"), yaml(&fifo.display().to_string())).unwrap();

    let ((out, out_writer), (err, err_writer)) = (std::io::pipe().unwrap(), std::io::pipe().unwrap());
    fill(&out_writer);
    fill(&err_writer);
    fill(&access);
    let mut start = netns.command(env!("CARGO_BIN_EXE_weir"));
    start.args(["run", "-c"]).arg(path("weir.yaml"));
    let mut weir = start
        .stdin(Stdio::null())
        .stdout(out_writer)
        .stderr(err_writer)
        .spawn()
        .unwrap();
    drop(start);
    let ask = |words: &[&str]| {
        let mut ask = common::command(env!("CARGO_BIN_EXE_weir"));
        ask.args(words).arg("--socket").arg(path("admin.sock"));
        ask.output().unwrap()
    };
    let status = || serde_json::from_slice::<serde_json::Value>(&ask(&["status", "--json"]).stdout).unwrap_or_default();
    let held = || {
        netns
            .ip(&["-oneline", "address", "show", "dev", "weir0"])
            .contains("10.99.0.1/24")
    };
    common::wait_until("it serves", || status()["pid"] == weir.id());
    common::wait_until("the address is there", held);

    let connect = |address: &str| netns.enter(|| client::connect(address));
    let mut stream = connect("127.0.0.1:80");
    let serves = |stream: &mut std::net::TcpStream| {
        client::round_trip(stream, b"an old one");
        client::round_trip(&mut connect("127.0.0.1:80"), b"a new one");
        // Says that there is no route.
        let _ = netns.enter(|| client::fetch("127.0.0.1:81"));
        assert!(held());
    };
    // Longer than a lease lasts that nobody renews.
    let begun = std::time::Instant::now();
    while begun.elapsed() < std::time::Duration::from_secs(4) {
        serves(&mut stream);
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let state = || status()["pools"][2]["backends"][0]["state"].clone();
    assert_eq!(state(), "down");
    let _later = netns.enter(|| std::net::TcpListener::bind(later.address()).unwrap());
    common::wait_until("the prober has seen it", || state() == "up");

    // A reload that is refused has much to say, and one that takes the access log elsewhere succeeds.
    std::fs::write(path("weir.yaml"), "nonsense: 1\n").unwrap();
    assert_eq!(ask(&["reload"]).status.code(), Some(3));
    std::fs::write(path("weir.yaml"), yaml("stdout")).unwrap();
    let output = ask(&["reload"]);
    assert!(output.status.success(), "{output:?}");
    serves(&mut stream);
    // Named again, without a reader: an error, not a wait.
    drop(access);
    std::fs::write(path("weir.yaml"), yaml(&fifo.display().to_string())).unwrap();
    let output = ask(&["reload"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && told.contains("access.log"), "{told}");
    std::fs::write(path("weir.yaml"), yaml("stdout")).unwrap();

    // The next process inherits the same pipes.
    let pid = nix::unistd::Pid::from_raw(weir.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGUSR2).unwrap();
    common::wait_until("another process serves", || {
        let pid = status()["pid"].as_u64();
        pid.is_some_and(|pid| pid != u64::from(weir.id()))
    });
    let next = nix::unistd::Pid::from_raw(status()["pid"].as_i64().unwrap() as i32);
    let _leftover = Leftover(next, path("weir.yaml"));
    serves(&mut stream);
    drop(stream);
    common::wait_until("the old process ends", || weir.try_wait().unwrap().is_some());
    serves(&mut connect("127.0.0.1:80"));
    nix::sys::signal::kill(next, nix::sys::signal::Signal::SIGTERM).unwrap();
    common::wait_until("the next process ends", || nix::sys::signal::kill(next, None).is_err());
    assert!(!held());
    drop((out, err));
}

/// A process that this one did not start itself; killed if it is still there in the end.
struct Leftover(nix::unistd::Pid, std::path::PathBuf);

impl Drop for Leftover {
    fn drop(&mut self) {
        let command = std::fs::read_to_string(format!("/proc/{}/cmdline", self.0)).unwrap_or_default();
        if command.contains(&*self.1.to_string_lossy()) {
            let _ = nix::sys::signal::kill(self.0, nix::sys::signal::Signal::SIGKILL);
        }
    }
}
