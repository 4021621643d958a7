//! Errors injected into every system call of the data plane in turn, by a tracer of the real process
//! (`strace --inject`), so the release build under test has no hook. Each must end in a named outcome: every client gets
//! its bytes or is told, every connection has a record with a cause, nothing leaks, and afterwards all is as before.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::{self, Server, Weir, client};

/// A tracer that makes calls of a process fail.
struct Injector(Child);

impl Injector {
    fn attach(weir: &Weir, call: &str, error: &str) -> Injector {
        let mut tracer = common::command("strace")
            .args(["-f", "-o", "/dev/null", "-p", &weir.pid().to_string()])
            .args(["-e", &format!("trace={call}"), "-e"])
            .arg(format!("inject={call}:error={error}:when=3+4"))
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(tracer.stderr.take().unwrap()).lines();
        let line = lines
            .next()
            .expect("strace says what it attached to")
            .unwrap();
        assert!(line.contains("attached"), "{line}");
        std::thread::spawn(move || lines.for_each(drop));
        Injector(tracer)
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        // Asked, it lets go of the process first; it does not hear while the process is dying.
        let signal = if std::thread::panicking() {
            Signal::SIGKILL
        } else {
            Signal::SIGINT
        };
        let _ = kill(Pid::from_raw(self.0.id() as i32), signal);
        let _ = self.0.wait();
    }
}

/// Asks for an echo of `bytes`; true if it came back whole. Anything else must be an error or an end, not silence.
fn ask(address: &str, bytes: &[u8]) -> bool {
    let Ok(mut stream) = client::try_connect(address, None) else {
        return false;
    };
    let mut answer = vec![0; bytes.len()];
    let mut writer = stream.try_clone().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| writer.write_all(bytes).is_ok());
        match stream.read_exact(&mut answer) {
            Ok(()) => {
                assert!(answer == bytes, "the echo differs");
                true
            }
            Err(error) => {
                let silent = matches!(
                    error.kind(),
                    std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut
                );
                assert!(!silent, "a client was left in silence");
                // Ends the writer, should it wait for room.
                let _ = stream.shutdown(std::net::Shutdown::Both);
                false
            }
        }
    })
}

/// Call, errors, and whether clients may notice.
const ROWS: &[(&str, &str, bool)] = &[
    (
        "accept4",
        "EMFILE ENFILE ENOBUFS ENOMEM ECONNABORTED EPERM",
        false,
    ),
    ("socket", "EMFILE ENOBUFS ENOMEM", true),
    ("connect", "EADDRNOTAVAIL ENOBUFS ENOMEM ENETUNREACH", true),
    ("epoll_ctl", "ENOMEM ENOSPC", true),
    ("epoll_wait", "EINTR", false),
    ("recvfrom", "ENOBUFS ENOMEM EINTR", false),
    ("sendto", "ENOBUFS ENOMEM EINTR", false),
    ("splice", "ENOMEM ENOBUFS EINTR", false),
    ("pipe2", "EMFILE ENFILE ENOMEM", false),
    ("fcntl", "EPERM ENOMEM", false),
    ("setsockopt", "ENOBUFS ENOMEM", false),
    ("getsockopt", "ENOBUFS ENOMEM", false),
    ("getsockname", "ENOBUFS", false),
    // A FIN that cannot be sent: half_close_timeout.
    ("shutdown", "ENOBUFS ENOTCONN", false),
    ("ioctl", "ENOMEM", false),
    ("close_range", "ENOSYS ENOMEM", false),
    ("write", "ENOSPC EAGAIN", false),
    ("futex", "EAGAIN", false),
];

/// Break tried: ENOBUFS of recv and send taken for EAGAIN (edge-triggered: silence).
#[test]
fn every_call_may_fail() {
    if !common::have(&["strace"]) {
        return;
    }
    let backend = Server::echo();
    let bulk: Vec<u8> = (0..2_000_000u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\nlog: {{access: stdout}}\n\
         listeners: {{web: {{bind: '127.0.0.1:0', pool: web, timeouts: {{half_close: 1s}}}}}}\n\
         pools: {{web: {{backends: '{}', health: {{interval: 200ms, timeout: 2s}}, passive: off}}}}\n",
        dir.path().display(),
        backend.address
    );
    std::fs::write(&file, yaml).unwrap();
    // To make a call fail, the tracer turns it into number -1, which the filter of system calls would judge.
    let weir = Weir::arguments(&["run", "--no-sandbox", "-c", &file.display().to_string()]);
    weir.wait_for_line("ready");
    let address = weir.address("web");
    assert!(ask(&address, &bulk));
    let baseline = {
        common::wait_until("the first connection is gone", || {
            weir.access_log().len() == 1
        });
        weir.sockets()
    };
    let mut failed = Vec::new();
    for (call, errors, noticed) in ROWS {
        for error in errors.split(' ') {
            println!("{call} {error}");
            let injector = Injector::attach(&weir, call, error);
            let mut lost = 0;
            for n in 0..12 {
                let bytes = if n % 6 == 5 {
                    &bulk[..]
                } else {
                    &bulk[..10 + n * 500]
                };
                lost += u32::from(!ask(&address, bytes));
            }
            drop(injector);
            if lost > 0 && !noticed {
                failed.push(format!("{call} {error}: {lost} of 12 clients noticed"));
            }
            // Everything is as before.
            assert!(
                ask(&address, b"after"),
                "{call} {error}: not served afterwards"
            );
            let settled = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                // Probes come and go: at most one socket more.
                common::wait_until("all connections are gone", || {
                    weir.sockets() <= baseline + 1
                });
            }));
            if settled.is_err() {
                failed.push(format!(
                    "{call} {error}: {} sockets, not {baseline}",
                    weir.sockets()
                ));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let lines = weir.stderr();
    assert!(
        !lines.join("\n").contains("panicked"),
        "{}",
        lines.join("\n")
    );
    assert!(lines.len() < 400, "{} log lines", lines.len());
    weir.stop();
}
