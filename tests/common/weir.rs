//! The binary under test.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::netns::Netns;
use super::{PATIENCE, Record, command};

/// What a running weir has written so far.
#[derive(Default)]
struct Written {
    out: Vec<String>,
    records: Vec<Record>,
    err: Vec<String>,
    /// Streams that have ended.
    ended: u8,
}

#[derive(Default)]
struct Log {
    written: Mutex<Written>,
    changed: Condvar,
}

impl Log {
    fn follow(self: &Arc<Self>, stream: impl Read + Send + 'static, is_err: bool) {
        let log = self.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).lines().map_while(Result::ok) {
                let mut written = log.written.lock().unwrap();
                if is_err {
                    written.err.push(line);
                } else {
                    written.records.extend(Record::parse(&line));
                    written.out.push(line);
                }
                log.changed.notify_all();
            }
            log.written.lock().unwrap().ended += 1;
            log.changed.notify_all();
        });
    }

    /// Waits until `look` finds something.
    #[track_caller]
    fn wait<T>(&self, what: &str, mut look: impl FnMut(&Written) -> Option<T>) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut written = self.written.lock().unwrap();
        loop {
            if let Some(found) = look(&written) {
                return found;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || written.ended == 2 {
                let why = if left.is_zero() {
                    "in vain"
                } else {
                    "but weir has ended"
                };
                let (out, err) = (written.out.join("\n"), written.err.join("\n"));
                drop(written);
                panic!("waited {why} for: {what}\nstdout:\n{out}\nstderr:\n{err}");
            }
            written = self.changed.wait_timeout(written, left).unwrap().0;
        }
    }
}

/// How to start weir.
pub struct Launch<'a> {
    yaml: String,
    netns: Option<&'a Netns>,
    env: Vec<(String, String)>,
    wrapper: Vec<String>,
    program: String,
    file: Option<PathBuf>,
}

impl<'a> Launch<'a> {
    /// With this configuration. `admin` and `log` are added unless it says something about them.
    pub fn new(yaml: &str) -> Self {
        Self {
            yaml: yaml.to_owned(),
            netns: None,
            env: Vec::new(),
            wrapper: Vec::new(),
            program: env!("CARGO_BIN_EXE_weir").into(),
            file: None,
        }
    }

    /// Another copy of the binary.
    pub fn program(mut self, path: &str) -> Self {
        self.program = path.into();
        self
    }

    /// With a file that is there already, as it is.
    pub fn file(mut self, path: &str) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Inside a network namespace.
    pub fn inside(mut self, netns: &'a Netns) -> Self {
        self.netns = Some(netns);
        self
    }

    /// With an environment variable.
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push((key.into(), value.into()));
        self
    }

    /// Behind a program that executes it in its own place, such as `prlimit --nofile=256`.
    pub fn behind(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(ToString::to_string).collect();
        self
    }

    /// Starts it and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Weir {
        let weir = self.spawn();
        weir.log.wait("ready", |written| {
            written.err.iter().any(|line| message(line) == "ready").then_some(())
        });
        weir
    }

    /// Starts it and waits for nothing.
    #[track_caller]
    pub fn spawn(self) -> Weir {
        let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
        let file = self.file.unwrap_or_else(|| {
            let file = dir.path().join("weir.yaml");
            std::fs::write(&file, complete(&self.yaml, dir.path())).unwrap();
            file
        });

        let mut words: Vec<String> = match self.netns {
            Some(netns) => vec!["nsenter".into(), format!("--net={}", netns.path())],
            None => Vec::new(),
        };
        words.extend(self.wrapper);
        words.push(self.program);
        words.extend(["run".into(), "-c".into(), file.display().to_string()]);
        let mut start = command(&words[0]);
        start.args(&words[1..]).envs(self.env);
        Weir::spawn(start, dir)
    }
}

fn complete(yaml: &str, dir: &Path) -> String {
    let says = |key: &str| yaml.lines().any(|line| line.starts_with(key));
    let mut text = String::new();
    if !says("admin:") {
        text += &format!("admin: {}\n", dir.join("admin.sock").display());
    }
    if !says("log:") {
        text += "log: {access: stdout}\n";
    }
    text + yaml
}

/// The message of a line of the event log in either form: `TIME LEVEL MESSAGE` or `{"message": "MESSAGE"}`.
fn message(line: &str) -> String {
    match serde_json::from_str::<serde_json::Value>(line) {
        Ok(object) => object["message"].as_str().unwrap_or_default().to_owned(),
        Err(_) => line.splitn(3, ' ').last().unwrap_or_default().trim().to_owned(),
    }
}

/// A running weir, killed when dropped.
pub struct Weir {
    child: Child,
    log: Arc<Log>,
    dir: tempfile::TempDir,
}

impl Weir {
    /// Runs `weir run` on this configuration and waits until it serves.
    #[track_caller]
    pub fn start(yaml: &str) -> Weir {
        Launch::new(yaml).start()
    }

    /// Runs weir with these arguments, in a directory of its own, and waits for nothing.
    #[track_caller]
    pub fn arguments(arguments: &[&str]) -> Weir {
        let dir = tempfile::Builder::new().prefix("weir-test-").tempdir().unwrap();
        let mut start = command(env!("CARGO_BIN_EXE_weir"));
        start.args(arguments).current_dir(&dir);
        Weir::spawn(start, dir)
    }

    #[track_caller]
    fn spawn(mut start: std::process::Command, dir: tempfile::TempDir) -> Weir {
        start.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = start.spawn().unwrap_or_else(|error| panic!("{start:?}: {error}"));
        let log = Arc::new(Log::default());
        log.follow(child.stdout.take().unwrap(), false);
        log.follow(child.stderr.take().unwrap(), true);
        Weir { child, log, dir }
    }

    /// The first address that a listener bound.
    #[track_caller]
    pub fn address(&self, listener: &str) -> String {
        self.addresses(listener)
            .first()
            .cloned()
            .unwrap_or_else(|| panic!("no listener {listener}"))
    }

    /// All addresses that a listener bound, in the order in which weir told of them.
    pub fn addresses(&self, listener: &str) -> Vec<String> {
        let prefix = format!("listening: {listener} ");
        let written = self.log.written.lock().unwrap();
        let messages = written.err.iter().map(|line| message(line));
        messages
            .filter_map(|text| text.strip_prefix(&prefix).map(str::to_owned))
            .collect()
    }

    /// Process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Its directory: configuration `weir.yaml`, `admin.sock`.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The admin socket.
    pub fn admin(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    /// Replaces the configuration file.
    pub fn rewrite(&self, yaml: &str) {
        std::fs::write(self.dir.path().join("weir.yaml"), complete(yaml, self.dir.path())).unwrap();
    }

    /// The access records so far.
    pub fn access_log(&self) -> Vec<Record> {
        self.log.written.lock().unwrap().records.clone()
    }

    /// Waits until the access records satisfy `enough`, and returns them.
    #[track_caller]
    pub fn wait_for(&self, enough: impl Fn(&[Record]) -> bool) -> Vec<Record> {
        let look = |written: &Written| enough(&written.records).then(|| written.records.clone());
        self.log.wait("access records", look)
    }

    /// Waits for `count` access records.
    #[track_caller]
    pub fn wait_for_records(&self, count: usize) -> Vec<Record> {
        self.wait_for(|records| records.len() >= count)
    }

    /// Lines on standard output so far.
    pub fn stdout(&self) -> Vec<String> {
        self.log.written.lock().unwrap().out.clone()
    }

    /// Lines on standard error so far.
    pub fn stderr(&self) -> Vec<String> {
        self.log.written.lock().unwrap().err.clone()
    }

    /// Waits for a line on standard error that contains `text`, and returns it.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_line_with(&[text])
    }

    /// Waits for a line on standard error that contains all `words`, and returns it.
    #[track_caller]
    pub fn wait_for_line_with(&self, words: &[&str]) -> String {
        let fits = |line: &&String| words.iter().all(|word| line.contains(word));
        self.log
            .wait(&words.join(" ... "), |written| written.err.iter().find(fits).cloned())
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    /// Waits for the process to end, and until everything it wrote has been read.
    #[track_caller]
    pub fn wait_for_end(&mut self) -> ExitStatus {
        self.log.wait("the end", |written| (written.ended == 2).then_some(()));
        self.child.wait().unwrap()
    }

    /// Waits for the process to end, whatever others with its descriptors do.
    #[track_caller]
    pub fn wait_for_end_of_process(&mut self) -> ExitStatus {
        super::wait_until("the end of the process", || !self.is_running());
        self.child.wait().unwrap()
    }

    /// TERM; it must end well. Returns all access records.
    #[track_caller]
    pub fn stop(mut self) -> Vec<Record> {
        self.signal(Signal::SIGTERM);
        let status = self.wait_for_end();
        assert!(status.success(), "{status}: {}", self.stderr().join("\n"));
        self.access_log()
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What its descriptors point at: `socket:[1]`, `pipe:[2]`, `/dev/null`.
    pub fn descriptors(&self) -> Vec<String> {
        let directory = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = directory
            .flatten()
            .filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links.map(|link| link.display().to_string()).collect()
    }

    /// Its threads and their names. One that has not run yet bears its parent's.
    pub fn threads(&self) -> Vec<(Pid, String)> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let named = tasks.flatten().filter_map(|task| {
            let name = std::fs::read_to_string(task.path().join("comm")).ok()?;
            let id = task.file_name().to_str()?.parse().ok()?;
            Some((Pid::from_raw(id), name.trim().to_owned()))
        });
        named.collect()
    }

    /// Those that carry connections.
    pub fn worker_threads(&self) -> Vec<Pid> {
        let workers = self.threads().into_iter();
        let workers = workers.filter(|(_, name)| name.starts_with("worker-"));
        workers.map(|(id, _)| id).collect()
    }

    /// How many of its descriptors are sockets.
    pub fn sockets(&self) -> usize {
        self.descriptors()
            .iter()
            .filter(|link| link.starts_with("socket:"))
            .count()
    }

    /// A size in KiB from `/proc/PID/status`, for example `RssAnon`.
    pub fn memory_kib(&self, key: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'));
        line.unwrap().trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// User and system time it has used, in ticks of 1/100 s.
    pub fn cpu_ticks(&self) -> u64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap();
        // The second field, a name in parentheses, may hold anything.
        let after = stat.rsplit_once(')').unwrap().1;
        let fields: Vec<&str> = after.split_whitespace().collect();
        fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("weir {} wrote:\n{}", self.child.id(), self.stderr().join("\n"));
        }
    }
}

/// Holds these threads of a weir, whatever they are doing, until the guard is dropped. It needs root.
pub fn hold(threads: Vec<Pid>) -> impl Drop + Send + use<> {
    use nix::sys::ptrace;
    use nix::sys::wait::{WaitPidFlag, waitpid};
    struct Held(Option<(mpsc::Sender<()>, JoinHandle<()>)>);
    impl Drop for Held {
        fn drop(&mut self) {
            let (stop, thread) = self.0.take().unwrap();
            drop(stop);
            thread.join().unwrap();
        }
    }
    let (stop, stopped) = mpsc::channel::<()>();
    let (held, all_held) = mpsc::channel();
    let thread = std::thread::spawn(move || {
        for &id in &threads {
            // A worker that retires may have ended meanwhile.
            if ptrace::seize(id, ptrace::Options::empty()).is_ok() && ptrace::interrupt(id).is_ok() {
                let _ = waitpid(id, Some(WaitPidFlag::__WALL));
            }
        }
        held.send(()).unwrap();
        // Threads are let go when their tracer ends.
        let _ = stopped.recv();
    });
    all_held.recv().unwrap();
    Held(Some((stop, thread)))
}
