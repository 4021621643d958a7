//! Harness of the end-to-end tests: the built binary under test, and the clients, servers, programs and networks around it.
//!
//! - [`Weir`] runs the binary on a configuration, knows the addresses it bound and the access records it wrote.
//! - [`server`] has backends inside the test process; [`client`] the other end.
//! - [`operator`] gives a running weir the commands that an operator has.
//! - [`program`] runs real servers and clients (nginx, redis, PostgreSQL, iperf3, socat ...) in directories of their own.
//! - [`browser`] is a browser. [`netns`] makes network namespaces and links between them; [`certificate`] makes certificates.
//!
//! Rules that keep the suite quick and quiet: every wait is for a condition and has a deadline ([`PATIENCE`]); every port
//! is chosen by the kernel or [reserved](server::Port); every process dies with the test, also when the test is killed.
//!
//! A test that lacks a program or a right says `skipped: ...` and returns, and `scripts/test` counts it as skipped. With
//! `CI=true` it fails instead.

#![allow(dead_code, unused_imports)] // Each test binary uses a part of the harness.

pub mod browser;
pub mod certificate;
pub mod client;
pub mod netns;
pub mod operator;
pub mod program;
pub mod record;
pub mod server;
pub mod weir;

use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub use browser::Browser;
pub use certificate::Certificate;
pub use record::Record;
pub use server::{Blackhole, Port, Server};
pub use weir::{Launch, Weir};

/// How long a test waits for something that should come at once.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Where a program is, if it is installed.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.extend(["/usr/sbin", "/sbin", "/usr/local/sbin"].map(PathBuf::from));
    // Debian keeps the server programs of PostgreSQL out of the way.
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        directories.extend(versions.flatten().map(|version| version.path().join("bin")));
    }
    directories
        .into_iter()
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// Whether all programs are installed; says so and returns false if not. With `CI=true` that is a failure.
pub fn have(programs: &[&str]) -> bool {
    let missing = programs.iter().find(|program| find(program).is_none());
    missing.is_none_or(|program| skip(&format!("{program} not installed")))
}

/// Whether the test may make network namespaces.
pub fn may_make_namespaces() -> bool {
    let root = nix::unistd::Uid::effective().is_root();
    have(&["ip", "nsenter"]) && (root || skip("network namespaces need root"))
}

/// Says why a test does not run. Written past the test harness's capture, because passing tests show nothing.
pub fn skip(reason: &str) -> bool {
    assert!(
        std::env::var("CI").as_deref() != Ok("true"),
        "{reason}, and CI=true allows no gaps"
    );
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
    false
}

/// Waits until `condition` holds.
#[track_caller]
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain for: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A directory in memory where that can be had: how long a disk takes on a busy machine is seldom what a test asks.
pub fn directory_in_memory(prefix: &str) -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let mut maker = tempfile::Builder::new();
    maker.prefix(prefix);
    let made = match memory.is_dir() {
        true => maker.tempdir_in(memory),
        false => maker.tempdir(),
    };
    made.unwrap()
}

/// Lets this process open as many files as it is allowed to.
pub fn raise_descriptor_limit() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// A command that dies with the thread that starts it, so that nothing outlives a test, however that ends.
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Runs a command to its end and returns what it wrote to standard output and standard error.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let (mut reader, writer) = std::io::pipe().unwrap();
    command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().unwrap())
        .stderr(writer);
    let mut child = command
        .process_group(0)
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    // The command holds copies of the pipe's end until it is told otherwise.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = reader.read_to_end(&mut bytes);
        let _ = sender.send(String::from_utf8_lossy(&bytes).into_owned());
    });
    let text = receiver.recv_timeout(2 * PATIENCE);
    if text.is_err() {
        let group = nix::unistd::Pid::from_raw(child.id() as i32);
        let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    }
    let status = child.wait().unwrap();
    let text = text.unwrap_or_else(|_| panic!("{command:?} does not end"));
    assert!(status.success(), "{command:?}: {text}");
    text
}

/// The seed of a random test: `WEIR_SEED` if set, else `default`. Printed, so that a failure can be repeated.
pub fn seed(default: u64) -> u64 {
    let given = std::env::var("WEIR_SEED").ok();
    let seed = given.map_or(default, |text| text.parse().expect("WEIR_SEED is a number"));
    println!("WEIR_SEED={seed}");
    seed
}

/// Runs `one` for each number below `count`, on `threads` threads. Results in no particular order.
pub fn in_parallel<T: Send>(threads: usize, count: usize, one: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let (results, next) = (Mutex::new(Vec::with_capacity(count)), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let result = one(number);
                    results.lock().unwrap().push(result);
                }
            });
        }
    });
    results.into_inner().unwrap()
}
