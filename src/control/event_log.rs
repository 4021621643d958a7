//! The event log: what happens, as sentences on standard error, text or JSON.
//!
//! # How it works
//!
//! The thread that logs formats the line and puts it into a bounded queue; one thread writes. Lines stay in
//! the order in which they were put there. A queue that is full costs a line, which is counted, never a wait: a worker that
//! waited for the reader of a pipe would not serve, an election that did would lose its addresses.
//!
//! Before [`spawn`] there is no thread (it must be started with no more rights than it keeps), and lines wait; should the
//! process end before, [`finish`] writes them.
//!
//! # Last words
//!
//! [`finish`] waits until all lines are out, for [`FINISH_MAX`] at most, so that the end or a panic is
//! logged in full and a reader that does not read delays nothing.

use std::io::{self, ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant, SystemTime};

use crossbeam_channel::{Receiver, Sender, bounded};

use super::events;
use crate::config::model::{Log, LogFormat};
use crate::sys::output;

/// Lines that may wait.
const QUEUE_MAX: usize = 8192;
/// How long [`finish`] waits for a reader.
const FINISH_MAX: Duration = Duration::from_secs(1);
/// A line that finds no room is tried again after so long at the latest.
const RETRY: Duration = Duration::from_secs(60);

static LOG: OnceLock<EventLog> = OnceLock::new();

struct EventLog {
    lines: Sender<Entry>,
    queue: Receiver<Entry>,
    json: AtomicBool,
    /// The thread has been started.
    written: AtomicBool,
    dropped: AtomicU64,
}

enum Entry {
    Line(String),
    /// Dropped when everything before it has been written.
    Flush(Sender<()>),
}

impl EventLog {
    fn new(queue_max: usize) -> EventLog {
        let (lines, queue) = bounded(queue_max);
        EventLog {
            lines,
            queue,
            json: AtomicBool::new(false),
            written: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
        }
    }

    fn put(&self, line: String) {
        if self.lines.try_send(Entry::Line(line)).is_err() {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Whether all lines so far are out.
    fn flush(&self, out: impl AsFd, patience: Duration) -> bool {
        let deadline = Instant::now() + patience;
        if !self.written.load(Relaxed) {
            return self.write_here(out, deadline);
        }
        let (done, all_done) = bounded(1);
        self.lines.send_deadline(Entry::Flush(done), deadline).is_ok()
            && all_done.recv_deadline(deadline) == Err(crossbeam_channel::RecvTimeoutError::Disconnected)
    }

    /// Without the thread.
    fn write_here(&self, out: impl AsFd, deadline: Instant) -> bool {
        for entry in self.queue.try_iter() {
            let Entry::Line(line) = entry else { continue };
            let left = deadline.saturating_duration_since(Instant::now());
            if output::write_within(out.as_fd(), line.as_bytes(), left).1.is_some() {
                return false;
            }
        }
        true
    }

    /// The thread: writes for ever.
    fn write(&self, out: impl AsFd) {
        let mut told = 0;
        for entry in &self.queue {
            let line = match entry {
                Entry::Line(line) => line,
                Entry::Flush(done) => {
                    drop(done);
                    continue;
                }
            };
            let mut rest = line.as_bytes();
            // In pieces, because each try has an end: the line stays whole.
            let lost = loop {
                match output::write_within(out.as_fd(), rest, RETRY) {
                    (_, None) => break false,
                    (done, Some(error)) if error.kind() == ErrorKind::TimedOut => rest = &rest[done..],
                    _ => break true,
                }
            };
            self.dropped.fetch_add(u64::from(lost), Relaxed);
            let dropped = self.dropped.load(Relaxed);
            if !lost && dropped > told {
                let text = format!(
                    "{} lines of this log were lost: they could not be written",
                    dropped - told
                );
                let line = self.line(log::Level::Warn, &text);
                let (_, error) = output::write_within(out.as_fd(), line.as_bytes(), RETRY);
                told = if error.is_none() { dropped } else { told };
            }
        }
    }

    fn line(&self, level: log::Level, message: &str) -> String {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        if self.json.load(Relaxed) {
            let line = serde_json::json!({
                "time": time.to_string(),
                "level": level.as_str().to_lowercase(),
                "message": message,
            });
            return format!("{line}\n");
        }
        format!("{time} {level:<5} {}\n", message.replace('\n', "\n    "))
    }
}

/// Where env_logger writes: each record is one write.
struct Queue(&'static EventLog);

impl io::Write for Queue {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.put(String::from_utf8_lossy(line).into_owned());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The log, and whoever follows.
struct Logger(env_logger::Logger);

impl log::Log for Logger {
    fn enabled(&self, metadata: &log::Metadata) -> bool {
        self.0.enabled(metadata)
    }

    fn log(&self, record: &log::Record) {
        if !self.0.matches(record) {
            return;
        }
        if events::is_written(record.level()) {
            self.0.log(record);
        }
        events::heard(record);
    }

    fn flush(&self) {}
}

/// Installs it; lines wait until [`spawn`] or [`finish`]. From now on a panic in any thread ends the process with its last
/// words here, so that a VIP moves and systemd restarts; never is a core left dead.
pub fn start() {
    let log = LOG.get_or_init(|| EventLog::new(QUEUE_MAX));
    // Our own lines only: libraries have nothing to say to an operator.
    let lines = env_logger::Builder::new()
        .filter_module("weir", log::LevelFilter::Trace)
        .format(|out, record| out.write_all(log.line(record.level(), &record.args().to_string()).as_bytes()))
        .target(env_logger::Target::Pipe(Box::new(Queue(log))))
        .build();
    if log::set_boxed_logger(Box::new(Logger(lines))).is_ok() {
        events::set_written(log::LevelFilter::Info);
        std::panic::set_hook(Box::new(abort));
    }
}

/// Starts the thread that writes.
pub fn spawn() -> io::Result<()> {
    let Some(log) = LOG.get() else { return Ok(()) };
    if log.written.swap(true, Relaxed) {
        return Ok(());
    }
    let out: OwnedFd = io::stderr().as_fd().try_clone_to_owned()?;
    std::thread::Builder::new()
        .name("event-log".into())
        .spawn(move || log.write(out))?;
    Ok(())
}

/// Follows `log:` of a configuration, the first one or a later one.
pub fn follow(log: &Log) {
    events::set_written(log.level);
    if let Some(own) = LOG.get() {
        own.json.store(log.format == LogFormat::Json, Relaxed);
    }
}

/// A text as it is, such as the errors of a configuration, line by line with its place.
pub fn say(text: &str) {
    match LOG.get() {
        Some(log) => log.put(format!("{text}\n")),
        None => eprintln!("{text}"),
    }
}

/// Waits until all lines so far are out, a second at most; whether they are.
pub fn finish() -> bool {
    LOG.get().is_none_or(|log| log.flush(io::stderr(), FINISH_MAX))
}

/// Lines that nobody will read: the queue was full, or they could not be written.
pub fn dropped() -> u64 {
    LOG.get().map_or(0, |log| log.dropped.load(Relaxed))
}

fn abort(info: &PanicHookInfo) {
    let thread = std::thread::current();
    let trace = std::backtrace::Backtrace::capture();
    let mut words = format!("thread {}: {info}", thread.name().unwrap_or("?"));
    if trace.status() == std::backtrace::BacktraceStatus::Captured {
        words += &format!("\n{trace}");
    }
    log::error!("{words}");
    // The thread that writes cannot wait for itself.
    if thread.name() == Some("event-log") || !finish() {
        output::last_words(&words);
    }
    std::process::abort();
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    fn started(queue_max: usize, out: OwnedFd) -> &'static EventLog {
        let log: &EventLog = Box::leak(Box::new(EventLog::new(queue_max)));
        log.written.store(true, Relaxed);
        std::thread::spawn(move || log.write(out));
        log
    }

    /// Seen to fail with `send` in place of `try_send` (waits for ever), and with no count.
    #[test]
    fn a_reader_that_does_not_read_costs_lines_and_nobody_waits() {
        let (mut reader, writer) = io::pipe().unwrap();
        let log = started(4, writer.into());
        // One is more than the pipe holds.
        let line = "x".repeat(99_999);
        let count = 100;
        for _ in 0..count {
            log.put(format!("{line}\n"));
        }
        assert!(!log.flush(io::stderr(), Duration::from_millis(10)));
        let dropped = log.dropped.load(Relaxed);
        assert!(dropped > 0 && dropped < count, "{dropped}");

        // Somebody reads at last: the rest comes whole, and the loss is told.
        let mut text = String::new();
        let mut buffer = [0; 4096];
        while !text.contains("were lost") {
            let read = reader.read(&mut buffer).unwrap();
            text += std::str::from_utf8(&buffer[..read]).unwrap();
        }
        let lines = text.lines().filter(|got| *got == line).count() as u64;
        assert!(
            lines >= 1 && lines <= count - dropped,
            "{lines} of {count} less {dropped}"
        );
        assert!(
            text.contains(&format!("{dropped} lines of this log were lost")),
            "{}",
            &text[text.len() - 100..]
        );
    }

    /// Seen to fail with a `flush` that does not wait for the thread.
    #[test]
    fn lines_come_in_order_and_the_last_ones_too_with_and_without_the_thread() {
        for thread in [false, true] {
            let (mut reader, writer) = io::pipe().unwrap();
            let out = writer.try_clone().unwrap();
            let log = match thread {
                true => started(64, out.into()),
                false => Box::leak(Box::new(EventLog::new(64))),
            };
            for number in 0..50 {
                log.put(format!("{number}\n"));
            }
            assert!(log.flush(&writer, Duration::from_secs(30)));
            let expected: String = (0..50).map(|number| format!("{number}\n")).collect();
            let mut text = vec![0; expected.len()];
            // They are there already.
            fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
            reader.read_exact(&mut text).unwrap();
            assert_eq!(String::from_utf8(text).unwrap(), expected, "thread {thread}");
        }
    }
}
