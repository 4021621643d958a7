//! What the process gives up once it serves, and what goes on working nevertheless.

use std::fs;

use nix::sys::signal::Signal;

use super::common::{self, Launch, Server, Weir, client, wait_until};
use super::one_backend;

/// `/proc/PID/task/*/status`: a value for each thread.
fn of_threads(weir: &Weir, key: &str) -> Vec<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", weir.pid())).unwrap();
    tasks
        .flatten()
        .filter_map(|task| {
            let status = fs::read_to_string(task.path().join("status")).ok()?;
            let line = status.lines().find_map(|l| l.strip_prefix(key)?.strip_prefix(':'));
            line.map(|value| value.trim().to_owned())
        })
        .collect()
}

/// Break tried: `seal` without TSYNC (all threads but one show 0).
#[test]
fn every_thread_has_given_up_what_serving_does_not_take() {
    let backend = Server::echo();
    let weir = Weir::start(&one_backend(backend.address, ""));
    client::round_trip(&mut client::connect(&weir.address("web")), b"hello");
    assert!(!weir.stderr().join("\n").contains("sandbox:"), "{:?}", weir.stderr());
    for key in ["NoNewPrivs", "Seccomp"] {
        let expected = if key == "Seccomp" { "2" } else { "1" };
        let values = of_threads(&weir, key);
        assert!(
            values.len() > 3 && values.iter().all(|v| v == expected),
            "{key} {values:?}"
        );
    }
    // CAP_NET_BIND_SERVICE (10) and CAP_SYS_RESOURCE (24) at most.
    for key in ["CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        for value in of_threads(&weir, key) {
            let held = u64::from_str_radix(&value, 16).unwrap();
            let root = nix::unistd::Uid::effective().is_root();
            assert!(!root || held & !(1 << 10 | 1 << 24) == 0, "{key} {value}");
        }
    }
    weir.stop();

    let open = Weir::arguments(&[
        "run",
        "--no-sandbox",
        "--listen",
        "127.0.0.1:0",
        "--backend",
        &backend.address.to_string(),
    ]);
    open.wait_for_line("ready");
    assert!(of_threads(&open, "Seccomp").iter().all(|value| value == "0"));
}

/// Everything that a running balancer still has to do with files.
#[test]
fn reload_and_rotation_go_on() {
    let backend = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let yaml = format!(
        "log: {{access: '{}'}}\n{}",
        log.display(),
        one_backend(backend.address, "")
    );
    let weir = Launch::new(&yaml).start();
    client::round_trip(&mut client::connect(&weir.address("web")), b"one");
    wait_until("a record", || {
        fs::read_to_string(&log).is_ok_and(|text| text.contains("finished"))
    });

    // A new listener, on a low port if that is allowed, and a unix socket beside the admin socket. The port is always the same,
    // the address is not: another suite may run on this machine.
    let own = common::Port::reserve();
    let [high, low] = own.number.to_be_bytes();
    let low = format!("127.9.{high}.{low}:900");
    let socket = weir.dir().join("local.sock");
    let listeners = format!(
        "listeners: {{low: {{bind: '{low}', pool: web}}, local: {{bind: 'unix:{}', pool: web}}, ",
        socket.display()
    );
    let more = yaml.replace("listeners: {", &listeners);
    // The way editors do it.
    weir.rewrite(&more);
    let (file, other) = (weir.dir().join("weir.yaml"), weir.dir().join("new"));
    fs::copy(&file, &other).unwrap();
    fs::rename(&other, &file).unwrap();
    let rotated = dir.path().join("access.log.1");
    fs::rename(&log, &rotated).unwrap();
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reloaded: generation 2");
    client::round_trip(&mut client::connect(&low), b"two");
    assert!(std::os::unix::net::UnixStream::connect(socket).is_ok());
    // The file is changed by the thread that writes it, in its own time: no record is lost, some go to the old one.
    wait_until("a record in the new file", || {
        client::round_trip(&mut client::connect(&low), b"more");
        fs::read_to_string(&log).is_ok_and(|text| text.contains("finished"))
    });
    weir.stop();
}

/// A place outside the rules is refused like any other configuration that cannot be had.
#[test]
fn a_reload_cannot_reach_beyond_the_sandbox() {
    let backend = Server::echo();
    let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let yaml = |dir: &tempfile::TempDir| {
        let log = dir.path().join("access.log");
        format!(
            "log: {{access: '{}'}}\n{}",
            log.display(),
            one_backend(backend.address, "")
        )
    };
    let weir = Launch::new(&yaml(&inside)).start();
    weir.rewrite(&yaml(&outside));
    weir.signal(Signal::SIGHUP);
    // Refused or the old file kept: served either way, and nothing is written out there.
    wait_until("it has been looked at", || {
        let text = weir.stderr().join("\n");
        text.contains("reload") || text.contains("ermission denied")
    });
    client::round_trip(&mut client::connect(&weir.address("web")), b"as before");
    assert!(!outside.path().join("access.log").exists());
    let _ = common::PATIENCE;
}

/// The mode of the admin socket's file says who may give orders; the network may only look.
///
/// Break tried: the socket bound with mode 0666.
#[test]
fn who_may_give_orders() {
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    if !nix::unistd::Uid::effective().is_root() {
        common::skip("another user's view needs root");
        return;
    }
    let (backend, page) = (Server::echo(), common::Port::reserve());
    let yaml = format!("metrics: '{}'\n{}", page.address(), one_backend(backend.address, ""));
    let weir = Weir::start(&yaml);
    let set = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    // So that it is the socket that decides.
    set(weir.dir(), 0o755);
    let mode = fs::metadata(weir.admin()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o660);
    let order_of_nobody = || {
        let mut nobody = common::command("socat");
        nobody.args(["-t", "5", "-", &format!("UNIX-CONNECT:{}", weir.admin().display())]);
        let mut order = std::process::Command::new("setpriv");
        order.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        order.arg(nobody.get_program()).args(nobody.get_args());
        order
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null());
        let mut child = order.spawn().unwrap();
        // It may have been refused already.
        let _ = child.stdin.take().unwrap().write_all(b"{\"command\": \"health\"}\n");
        child.wait_with_output().unwrap().stdout
    };
    if common::have(&["socat"]) {
        assert_eq!(order_of_nobody(), b"");
        set(&weir.admin(), 0o666);
        assert!(!order_of_nobody().is_empty(), "now nobody may");
    }
    for method in ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"] {
        let mut stream = client::connect(&page.address().to_string());
        let order = "{\"command\": \"reload\"}";
        write!(
            stream,
            "{method} /reload HTTP/1.1\r\nHost: weir\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{order}",
            order.len()
        )
        .unwrap();
        let mut answer = String::new();
        let _ = stream.read_to_string(&mut answer);
        assert!(
            answer.starts_with("HTTP/1.1 4") && !answer.contains("Access-Control"),
            "{method}: {answer}"
        );
    }
    assert!(!weir.stderr().join("\n").contains("reloaded"));
}
