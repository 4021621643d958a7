//! Writes access records.
//!
//! # How it works
//!
//! Workers hand records over with `try_send` on a bounded channel: a full channel costs them a counter, never a wait. One
//! thread empties it. When it is idle it sleeps in the channel, and the next record wakes it; then it gathers for
//! a few milliseconds without listening to the channel, so that the workers' further sends cost no system call, and writes what
//! has come in one `write`. Under load that is one wake and one write for every few milliseconds of traffic.
//!
//! # What it never does
//!
//! It never stops and never blocks a worker. A batch that cannot be written (disk full, reader gone, no room for a second) is
//! dropped whole and counted, with one warning a second at most; the next batch is tried again. If half a line got out before the failure,
//! the next batch begins with a line feed, so that no two records share a line. A record that was in the channel before
//! [`Handle::retarget`] was called goes to the old file or to the new one, never to neither.

mod line;

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use crate::config::model::{AccessTarget, Log, LogFormat};
use crate::link::Record;
use crate::sys::output;

/// Records that may wait: more than the busiest workers produce while one batch is gathered and written.
const QUEUE_MAX: usize = 8192;
/// How long a batch is gathered.
const GATHER: Duration = Duration::from_millis(5);
/// Bytes of a batch.
const BATCH_BYTES: usize = 64 << 10;
/// How long [`Handle::finish`] waits for a reader that does not read.
const FINISH_MAX: Duration = Duration::from_secs(2);
/// How long there may be no room for a batch.
const WRITE_MAX: Duration = Duration::from_secs(1);

/// What became of the records that reached the thread.
#[derive(Debug, Default)]
pub struct AccessLogStats {
    lost: AtomicU64,
}

impl AccessLogStats {
    /// Records that could not be written.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// A handle on the thread.
#[derive(Debug)]
pub struct Handle {
    messages: Sender<Message>,
    thread: JoinHandle<()>,
    /// Counters of the thread.
    pub stats: Arc<AccessLogStats>,
}

enum Message {
    Retarget(Target, LogFormat),
    Finish,
}

/// Opens the target that the configuration names and starts the thread; records go to the sender. `None`: the log is off,
/// and workers need not even make records. An error says which file and why.
pub fn start(log: &Log) -> io::Result<Option<(Sender<Record>, Handle)>> {
    match log.access {
        AccessTarget::Off => Ok(None),
        _ => Opened::new(&log.access, log.format)?.start().map(Some),
    }
}

/// A place for records that is open, and not in use yet.
#[derive(Debug)]
pub struct Opened {
    target: Target,
    format: LogFormat,
}

impl Opened {
    /// Opens it. An error says which file and why.
    pub fn new(target: &AccessTarget, format: LogFormat) -> io::Result<Opened> {
        let target = Target::open(target)?;
        Ok(Opened { target, format })
    }

    /// As [`start`].
    pub fn start(self) -> io::Result<(Sender<Record>, Handle)> {
        start_on(self.target, self.format)
    }
}

fn start_on(target: Target, format: LogFormat) -> io::Result<(Sender<Record>, Handle)> {
    let (records, queue) = bounded(QUEUE_MAX);
    let (messages, ordered) = bounded(4);
    let stats = Arc::new(AccessLogStats::default());
    let writer = Writer {
        target,
        format,
        batch: String::with_capacity(BATCH_BYTES + 4096),
        batched: 0,
        torn: false,
        warned: None,
        stats: stats.clone(),
    };
    let thread = std::thread::Builder::new()
        .name("access-log".into())
        .spawn(move || writer.run(&queue, &ordered))?;
    Ok((
        records,
        Handle {
            messages,
            thread,
            stats,
        },
    ))
}

impl Handle {
    /// Writes to another place or in another form from now on, or to a new file of the same name, after a rotation. On error
    /// nothing changes. Returns at once.
    pub fn retarget(&self, opened: Opened) -> io::Result<()> {
        self.messages
            .try_send(Message::Retarget(opened.target, opened.format))
            .map_err(|_| io::Error::new(ErrorKind::TimedOut, "the access log is stuck"))
    }

    /// Writes what is queued, then ends the thread. A reader that does not read is given up on after two seconds.
    pub fn finish(self) {
        let _ = self.messages.send_timeout(Message::Finish, FINISH_MAX);
        let deadline = Instant::now() + FINISH_MAX;
        while !self.thread.is_finished() && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        if self.thread.is_finished() {
            let _ = self.thread.join();
        }
    }
}

/// Where lines go.
#[derive(Debug)]
enum Target {
    Nowhere,
    Stdout(File),
    File { path: std::path::PathBuf, file: File },
}

impl Target {
    fn open(target: &AccessTarget) -> io::Result<Target> {
        Ok(match target {
            AccessTarget::Off => Target::Nowhere,
            // A descriptor of our own: the standard library's handle buffers by lines and may be locked by others.
            AccessTarget::Stdout => Target::Stdout(io::stdout().as_fd().try_clone_to_owned()?.into()),
            AccessTarget::File(path) => Target::File {
                file: open_file(path)?,
                path: path.clone(),
            },
        })
    }

    fn file(&mut self) -> Option<&mut File> {
        match self {
            Target::Nowhere => None,
            Target::Stdout(file) | Target::File { file, .. } => Some(file),
        }
    }

    fn name(&self) -> String {
        match self {
            Target::Nowhere => "off".into(),
            Target::Stdout(_) => "standard output".into(),
            Target::File { path, .. } => path.display().to_string(),
        }
    }
}

fn open_file(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o640)
        // A named pipe that nobody reads is an error, and not something to wait for.
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| io::Error::new(error.kind(), format!("access log {}: {error}", path.display())))
}

struct Writer {
    target: Target,
    format: LogFormat,
    batch: String,
    /// Records in `batch`.
    batched: u64,
    /// The last write ended in the middle of a line.
    torn: bool,
    warned: Option<Instant>,
    stats: Arc<AccessLogStats>,
}

impl Writer {
    fn run(mut self, records: &Receiver<Record>, messages: &Receiver<Message>) {
        loop {
            let order = select! {
                recv(records) -> record => match record {
                    Ok(record) => {
                        self.add(&record);
                        // Only messages are listened to: a sender of records wakes nobody who does not sleep there.
                        messages.recv_timeout(GATHER)
                    }
                    Err(_) => return,
                },
                recv(messages) -> order => order.map_err(RecvTimeoutError::from),
            };
            self.drain(records);
            match order {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(Message::Retarget(target, format)) => {
                    (self.target, self.format, self.torn) = (target, format, false);
                }
                Ok(Message::Finish) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// Writes everything that has come.
    fn drain(&mut self, records: &Receiver<Record>) {
        while let Ok(record) = records.try_recv() {
            self.add(&record);
        }
        self.flush();
    }

    fn add(&mut self, record: &Record) {
        if self.batch.is_empty() && self.torn {
            self.batch.push('\n');
        }
        line::append(record, self.format, &mut self.batch);
        self.batched += 1;
        if self.batch.len() >= BATCH_BYTES {
            self.flush();
        }
    }

    fn flush(&mut self) {
        let batch = std::mem::take(&mut self.batch);
        let bytes = batch.as_bytes();
        let lines = std::mem::take(&mut self.batched);
        let (done, error) = match self.target.file() {
            _ if bytes.is_empty() => (0, None),
            None => (bytes.len(), None),
            Some(file) => output::write_within(file.as_fd(), bytes, WRITE_MAX),
        };
        let written = match error {
            None => lines,
            Some(error) => {
                let mended = usize::from(self.torn && done > 0);
                let whole = bytes[mended..done].iter().filter(|&&b| b == b'\n').count() as u64;
                self.torn = match done {
                    0 => self.torn,
                    _ => bytes[done - 1] != b'\n',
                };
                self.warn(&error, lines - whole);
                self.stats.lost.fetch_add(lines - whole, Relaxed);
                whole
            }
        };
        if written == lines {
            self.torn = false;
        }
        self.batch = batch;
        self.batch.clear();
    }

    fn warn(&mut self, error: &io::Error, lost: u64) {
        let now = Instant::now();
        if self.warned.is_none_or(|at| now - at >= Duration::from_secs(1)) {
            self.warned = Some(now);
            let name = self.target.name();
            log::warn!("access log {name}: {error}: {lost} records lost now, counting on silently");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Read};
    use std::net::SocketAddr;
    use std::time::SystemTime;

    use crate::config::model::{self, BackendAddress, Protocol};
    use crate::gate::Gate;
    use crate::link::Address;
    use crate::relay::{By, Cause};
    use crate::routing::Asked;
    use crate::snapshot::{Backend, Listener};
    use crate::stats::{BackendStats, ListenerStats};

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    /// A record of the listener `listener`, served by a backend of that name.
    pub(crate) fn record(listener: &str, backend: Option<&str>) -> Record {
        let config = model::Listener {
            name: listener.into(),
            protocol: Protocol::Tcp,
            engine: model::Engine::Proxy,
            bind: vec![],
            virtual_addresses: vec![],
            pool: Some(0),
            routes: vec![],
            allow: vec![],
            deny: vec![],
            limits: model::ListenerLimits::default(),
            timeouts: model::Timeouts {
                idle: None,
                half_close: None,
                max_age: None,
                hello: Duration::from_secs(5),
            },
            keepalive: None,
            backlog: None,
            accept_proxy: vec![],
            udp: model::UdpPolicy {
                idle: Duration::from_secs(30),
                requests: None,
                replies: None,
            },
        };
        let backend = backend.map(|name| {
            Arc::new(Backend {
                identity: 1,
                pool: "web".into(),
                config: model::Backend {
                    name: name.into(),
                    address: BackendAddress::SamePort(address("10.0.0.11:1").ip()),
                    weight: 1,
                    max_connections: None,
                    backup: false,
                },
                stats: BackendStats::new(1),
                queue: Arc::default(),
                send_proxy: model::SendProxy::Off,
            })
        });
        let stats = ListenerStats::new(1);
        Record {
            time: SystemTime::now(),
            id: 7,
            listener: Arc::new(Listener {
                id: 1,
                pool: Some("web".into()),
                routing: None,
                owner: crate::snapshot::Owner::WORKERS,
                gate: Gate::new(&config, stats.clone(), None),
                config,
                stats,
            }),
            client: Some(address("192.0.2.1:40000")),
            local: Arc::new(Address::Ip(address("192.0.2.9:80"))),
            backend,
            attempts: 1,
            bytes_up: 10,
            bytes_down: 2000,
            connect_us: Some(312),
            first_byte_us: Some(1500),
            duration_us: 61_000_007,
            spliced: 0,
            packets: None,
            closed_by: By::Client,
            cause: Cause::Finished,
            interim: false,
            asked: Asked::default(),
        }
    }

    fn start_file(path: &Path) -> (Sender<Record>, Handle) {
        let log = Log {
            level: log::LevelFilter::Info,
            access: AccessTarget::File(path.into()),
            format: LogFormat::Text,
            interim: None,
        };
        start(&log).unwrap().unwrap()
    }

    fn numbered(id: u64) -> Record {
        Record {
            id,
            ..record("web", Some("a"))
        }
    }

    fn ids(text: &str) -> Vec<u64> {
        text.lines()
            .map(|line| {
                line.split(' ')
                    .nth(1)
                    .unwrap()
                    .strip_prefix("id=")
                    .unwrap()
                    .parse()
                    .unwrap()
            })
            .collect()
    }

    fn open(path: &Path, format: LogFormat) -> io::Result<Opened> {
        Opened::new(&AccessTarget::File(path.into()), format)
    }

    fn until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(60);
        while !condition() {
            assert!(Instant::now() < deadline);
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn every_record_is_written_in_order_and_finish_flushes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        let (records, handle) = start_file(&path);
        (0..5000).for_each(|id| records.send(numbered(id)).unwrap());
        let stats = handle.stats.clone();
        handle.finish();
        assert_eq!(
            ids(&std::fs::read_to_string(path).unwrap()),
            (0..5000).collect::<Vec<_>>()
        );
        assert_eq!(stats.lost(), 0);
    }

    #[test]
    fn after_a_rotation_records_go_to_the_new_file_and_none_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
        let (records, handle) = start_file(&path);
        (0..100).for_each(|id| records.send(numbered(id)).unwrap());
        std::fs::rename(&path, &rotated).unwrap();
        handle.retarget(open(&path, LogFormat::Text).unwrap()).unwrap();
        (100..200).for_each(|id| records.send(numbered(id)).unwrap());
        handle.finish();
        let read = |path| ids(&std::fs::read_to_string(path).unwrap());
        let (old, new) = (read(&rotated), read(&path));
        assert!(old.len() >= 100, "what came before the change goes to the old file");
        assert_eq!([old, new].concat(), (0..200).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_that_cannot_be_opened_again_leaves_the_old_one_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let (path, moved) = (dir.path().join("d/access.log"), dir.path().join("moved"));
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        let (records, handle) = start_file(&path);
        std::fs::rename(path.parent().unwrap(), &moved).unwrap();
        let error = open(&path, LogFormat::Text).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
        records.send(numbered(1)).unwrap();
        handle.finish();
        assert_eq!(ids(&std::fs::read_to_string(moved.join("access.log")).unwrap()), [1]);
    }

    #[test]
    fn a_full_disk_costs_records_but_not_the_thread() {
        let (records, handle) = start_file(Path::new("/dev/full"));
        (0..50).for_each(|id| records.send(numbered(id)).unwrap());
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("access.log");
        handle.retarget(open(&path, LogFormat::Json).unwrap()).unwrap();
        let stats = handle.stats.clone();
        // What came before the change has been written, or not, when it takes effect.
        until(|| stats.lost() == 50);
        records.send(numbered(50)).unwrap();
        handle.finish();
        assert!(std::fs::read_to_string(path).unwrap().contains("\"id\":50,"));
        assert_eq!(stats.lost(), 50);
    }

    #[test]
    fn a_closed_pipe_costs_records_but_not_the_thread() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        let target = Target::Stdout(std::os::fd::OwnedFd::from(writer).into());
        let (records, handle) = start_on(target, LogFormat::Text).unwrap();
        records.send(numbered(1)).unwrap();
        until(|| handle.stats.lost() == 1);
        handle.finish();
    }

    /// Fails when the line feed that mends a torn line is left out.
    #[test]
    fn a_torn_line_does_not_swallow_the_next_one() {
        let (mut reader, writer) = io::pipe().unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        nix::fcntl::fcntl(&writer, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK)).unwrap();
        let target = Target::Stdout(std::os::fd::OwnedFd::from(writer).into());
        let (records, handle) = start_on(target, LogFormat::Text).unwrap();
        (0..100).for_each(|id| records.send(numbered(id)).unwrap());
        // The rest of the batch is given up when there is no room for a second.
        until(|| handle.stats.lost() > 0);
        let mut text = vec![0; 4096];
        reader.read_exact(&mut text).unwrap();
        records.send(numbered(777)).unwrap();
        let stats = handle.stats.clone();
        handle.finish();
        reader.read_to_end(&mut text).unwrap();
        let lines: Vec<String> = BufReader::new(&*text).lines().map(|line| line.unwrap()).collect();
        let whole = lines.iter().filter(|line| line.ends_with("cause=finished")).count() as u64;
        assert!(lines.last().unwrap().contains(" id=777 "), "{lines:?}");
        assert_eq!(lines.len() as u64, whole + 1, "one line is torn, the others are whole");
        assert_eq!(stats.lost(), 101 - whole);
    }

    #[test]
    fn a_reader_that_does_not_read_delays_nobody_for_long() {
        let (_reader, writer) = io::pipe().unwrap();
        let target = Target::Stdout(std::os::fd::OwnedFd::from(writer).into());
        let (records, handle) = start_on(target, LogFormat::Text).unwrap();
        // More than pipe and channel hold: the worker's side finds the channel full at some point.
        let record = numbered(1);
        let (mut dropped, started) = (0, Instant::now());
        for _ in 0..30_000 {
            dropped += u64::from(records.try_send(record.clone()).is_err());
        }
        assert!(dropped > 0);
        assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
        handle.finish();
    }
}
