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

/// A unix backend that answers its name, of user and mode; dropped with its directory.
fn unix_backend(path: &std::path::Path, user: u32, mode: u32) {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;
    let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
    std::os::unix::fs::chown(path, Some(user), Some(user)).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = stream.write_all(b"unix");
        }
    });
}

/// Weir as root reaches every backend that the configuration names at the start. One that comes later may be out of reach,
/// and then the reason is named.
///
/// Break tried: CAP_DAC_OVERRIDE for files only.
#[test]
fn unix_backends_of_another_user() {
    if !nix::unistd::Uid::effective().is_root() {
        common::skip("files of another user need root");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    unix_backend(&path("own"), 0, 0o660);
    unix_backend(&path("other"), 65534, 0o660);
    let yaml = |name: &str| {
        format!(
            "listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
             pools: {{web: {{backends: [{{name: a, address: 'unix:{}'}}], health: {{interval: 100ms, fall: 1}}}}}}\n",
            path(name).display()
        )
    };
    let override_kept = |weir: &Weir| {
        let held = of_threads(weir, "CapEff");
        held.iter()
            .all(|set| u64::from_str_radix(set, 16).unwrap() & 1 << 1 != 0)
    };
    // Named before it is there: it may come to belong to anybody.
    for (name, kept) in [("own", false), ("other", true), ("missing", true)] {
        let weir = Weir::start(&yaml(name));
        if name == "missing" {
            unix_backend(&path(name), 65534, 0o600);
        }
        wait_until(name, || {
            client::fetch(&weir.address("web")).is_ok_and(|answer| answer == "unix")
        });
        assert_eq!(override_kept(&weir), kept, "{name}");
        if name == "own" {
            weir.rewrite(&yaml("other"));
            weir.signal(Signal::SIGHUP);
            weir.wait_for_line_with(&["backend web/a", "is down", "permission denied (EACCES)"]);
        }
        weir.stop();
    }
}

/// A directory in which a release is chosen by a link: `current -> v1`, program and configuration in it.
struct Releases(tempfile::TempDir);

impl Releases {
    fn new(yaml: &str) -> Releases {
        let releases = Releases(tempfile::tempdir().unwrap());
        for (release, listener) in [("v1", "first"), ("v2", "second")] {
            let directory = releases.0.path().join(release);
            fs::create_dir_all(directory.join("bin")).unwrap();
            fs::copy(env!("CARGO_BIN_EXE_weir"), directory.join("bin/weir")).unwrap();
            fs::write(directory.join("weir.yaml"), yaml.replace("LISTENER", listener)).unwrap();
        }
        releases.switch("v1");
        releases
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// The way deployments do it: at no moment is there no link.
    fn switch(&self, release: &str) {
        std::os::unix::fs::symlink(release, self.path("next")).unwrap();
        fs::rename(self.path("next"), self.path("current")).unwrap();
    }
}

/// Break tried: only the directories that the paths led to at the start (EACCES at the reload and at the upgrade).
#[test]
fn a_release_is_switched_by_a_link() {
    let (backend, admin) = (Server::echo(), tempfile::tempdir().unwrap());
    let releases = Releases::new(&format!(
        "admin: {}/admin.sock\nlog: {{access: off}}\n\
         listeners: {{LISTENER: {{bind: '127.0.0.1:0', pool: web}}}}\npools: {{web: {{backends: '{}'}}}}\n",
        admin.path().display(),
        backend.address
    ));
    let program = releases.path("current/bin/weir");
    // Through a link, and by way of `..`.
    let file = releases.path("current/bin/../weir.yaml");
    let weir = Launch::new("").program(&program).file(&file).start();
    client::round_trip(&mut client::connect(&weir.address("first")), b"hello");
    releases.switch("v2");
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reloaded: generation 2");
    weir.signal(Signal::SIGUSR2);
    let line = weir.wait_for_line("serves; ");
    let pid = line
        .split_once("process ")
        .unwrap()
        .1
        .split(' ')
        .next()
        .unwrap()
        .to_owned();
    let link = fs::read_link(format!("/proc/{pid}/exe")).unwrap();
    let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.parse().unwrap()), Signal::SIGTERM);
    assert!(link.ends_with("v2/bin/weir"), "{link:?}");
    weir.wait_for_line("listening: second ");
}

/// What cannot work is refused with the reason: a directory that was put in the place of the old one is another one.
#[test]
fn a_directory_in_the_place_of_another_takes_a_restart() {
    let (backend, dir, admin) = (
        Server::echo(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let (here, away) = (dir.path().join("weir"), dir.path().join("away"));
    fs::create_dir(&here).unwrap();
    let file = here.join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\n{}",
        admin.path().display(),
        one_backend(backend.address, "")
    );
    fs::write(&file, &yaml).unwrap();
    let weir = Launch::new("").file(&file.display().to_string()).start();
    // The file alone may be replaced.
    fs::write(here.join("new"), &yaml).unwrap();
    fs::rename(here.join("new"), &file).unwrap();
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reloaded: generation 2");
    fs::rename(&here, &away).unwrap();
    fs::create_dir(&here).unwrap();
    fs::write(&file, &yaml).unwrap();
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line_with(&["reload refused", "takes a restart"]);
    client::round_trip(&mut client::connect(&weir.address("web")), b"as before");
}

/// A log that is moved to another directory is opened again under its name.
#[test]
fn a_log_may_be_rotated_into_another_directory() {
    let backend = Server::echo();
    let (dir, archive) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let log = dir.path().join("access.log");
    let yaml = format!(
        "log: {{access: '{}'}}\n{}",
        log.display(),
        one_backend(backend.address, "")
    );
    let weir = Weir::start(&yaml);
    client::round_trip(&mut client::connect(&weir.address("web")), b"one");
    wait_until("a record", || {
        fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
    });
    fs::rename(&log, archive.path().join("access.log.1")).unwrap();
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reloaded: generation 2");
    wait_until("a record in the new file", || {
        client::round_trip(&mut client::connect(&weir.address("web")), b"more");
        fs::read_to_string(&log).is_ok_and(|text| !text.is_empty())
    });
    weir.stop();
}
