//! Weir as a service: what it tells systemd, what it is given, upgrades in place, packaging.

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod alone;
mod devices;
mod dying;
mod instances;
mod moves;
mod notify;
mod older;
mod packaging;
mod reload;
mod systemd;
mod upgrade;

use std::collections::BTreeSet;
use std::os::unix::net::UnixDatagram;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::{Launch, PATIENCE, Weir};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A weir with a service manager that listens, and with the processes that take over from it.
struct Service {
    weir: Weir,
    manager: UnixDatagram,
    /// Told so far and not waited for.
    _dir: tempfile::TempDir,
}

impl Service {
    #[track_caller]
    fn start<'n>(yaml: &str, adjust: impl FnOnce(Launch<'n>) -> Launch<'n>) -> Service {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        let launch = Launch::new(yaml).env("NOTIFY_SOCKET", path.to_str().unwrap());
        let weir = adjust(launch).start();
        Service {
            weir,
            manager,
            _dir: dir,
        }
    }

    /// Waits for a message with this assignment, and returns the message.
    #[track_caller]
    fn told(&self, wanted: &str) -> String {
        self.told_until(wanted).pop().unwrap()
    }

    /// Waits for a message with this assignment, and returns all messages up to it.
    #[track_caller]
    fn told_until(&self, wanted: &str) -> Vec<String> {
        let mut buffer = [0; 16 << 10];
        let mut heard = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            // Not zero, which would mean for ever.
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.max(Duration::from_millis(1));
            self.manager.set_read_timeout(Some(left)).unwrap();
            let read = self.manager.recv(&mut buffer);
            let length = read.unwrap_or_else(|e| panic!("{wanted}: {e}; heard {heard:#?}"));
            heard.push(String::from_utf8(buffer[..length].to_vec()).unwrap());
            let mut lines = heard.last().unwrap().lines();
            if lines.any(|line| line.starts_with(wanted)) {
                return heard;
            }
        }
    }

    /// Processes that upgrades have started, in order.
    fn successors(&self) -> Vec<u32> {
        let lines = self.weir.stderr();
        let started = lines.iter().filter_map(|line| {
            let words = line.split_once("upgrade: process ")?.1;
            words.strip_suffix(" starts")?.parse().ok()
        });
        started.collect()
    }

    /// Sends USR2 to `pid` and waits until another process is the service; returns its process id.
    #[track_caller]
    fn upgrade(&self, pid: u32) -> u32 {
        kill(Pid::from_raw(pid as i32), Signal::SIGUSR2).unwrap();
        let message = self.told("MAINPID=");
        let line = message.lines().find_map(|line| line.strip_prefix("MAINPID="));
        let new = line.unwrap().parse().unwrap();
        self.told("READY=1");
        new
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        for pid in self.successors() {
            if is_weir(pid) {
                let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            }
        }
    }
}

/// Says that something is over when it is dropped, also by a panic: threads that go on until then must not be waited for in vain.
struct Finish<'a>(&'a AtomicBool);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether a process lives and runs this program (numbers are reused).
fn is_weir(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words: BTreeSet<&[u8]> = command.split(|&byte| byte == 0).collect();
    words.contains(&b"run"[..]) && words.contains(&b"-c"[..])
}

/// The repository.
fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}
