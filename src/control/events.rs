//! What happens, told to whoever follows: `weir events`.
//!
//! # How it works
//!
//! Whatever happens is a value that is [`Telling`]: its sentence is the line of the event log, its fields are the record that
//! followers get, and [`tell`] has both written. Any other line of the log reaches followers as well, as a record of the kind
//! `log` ([`heard`]). So the two cannot differ, and what somebody reads in the log is in the stream.
//!
//! Each follower has a bounded queue. Whoever tells puts a record into it and goes on; where there is no room, the record is
//! counted, and the follower is told of the count at the place where the records are missing. So nothing waits for a
//! follower: no worker, no election, no other follower.
//!
//! # Invariants
//!
//! 1. Following begins when [`follow`] returns: what is told later is in the stream, unless it is counted as lost.
//! 2. The last record of a stream says why it ends, unless the process dies.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::SystemTime;

use log::{Level, LevelFilter};
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::sync::Notify;

/// Followers at once.
pub const FOLLOWERS_MAX: usize = 16;
/// Records that may wait for a follower.
const QUEUE_MAX: usize = 1024;
/// What followers hear of, whatever the log writes.
const FOLLOWED: LevelFilter = LevelFilter::Info;
/// Marks lines of the log whose record was told by [`tell`].
const TARGET: &str = "weir::event";

/// Something that happens: `Display` is its sentence in the log, `Serialize` gives the fields of its record, with its kind as
/// `event`.
pub trait Telling: fmt::Display + Serialize {
    /// Level of its line in the log.
    fn level(&self) -> Level;
}

/// Has it logged and told.
pub fn tell(event: &impl Telling) {
    let level = event.level();
    log::log!(target: TARGET, level, "{event}");
    if HUB.is_followed() && level <= FOLLOWED {
        let fields = serde_json::to_value(event).unwrap_or_default();
        HUB.put(&record(level, &event.to_string(), fields));
    }
}

/// A line of the log.
pub fn heard(line: &log::Record) {
    if HUB.is_followed() && line.target() != TARGET && line.level() <= FOLLOWED {
        HUB.put(&record(line.level(), &line.args().to_string(), json!({"event": "log"})));
    }
}

/// Whether the log writes lines of this level.
pub fn is_written(level: Level) -> bool {
    level <= HUB.inner.lock().written
}

/// The log writes lines of these levels from now on.
pub fn set_written(level: LevelFilter) {
    let mut inner = HUB.inner.lock();
    inner.written = level;
    inner.set_level();
}

/// Follows from now on. The error is a sentence.
pub fn follow() -> Result<Follower, String> {
    HUB.follow()
}

/// Ends all streams, with these last words.
pub fn end(last: &End) {
    let fields = serde_json::to_value(last).unwrap_or_default();
    HUB.end(&record(Level::Info, &last.to_string(), fields));
}

/// How many follow.
pub fn followers() -> usize {
    HUB.count.load(Relaxed)
}

/// Why a stream ends.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(tag = "event", rename = "end")]
pub struct End {
    /// The process that serves in place of this one.
    pub successor: Option<u32>,
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.successor {
            Some(pid) => write!(f, "process {pid} serves in place of this one: follow that one"),
            None => f.write_str("weir has stopped"),
        }
    }
}

/// Records that a follower has missed.
#[derive(Serialize)]
#[serde(tag = "event", rename = "lost")]
pub struct Lost {
    /// How many records are missing here.
    pub count: u64,
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} events were lost: they are read too slowly", self.count)
    }
}

/// One line of a stream.
fn record(level: Level, message: &str, fields: Value) -> Arc<str> {
    let mut record = Map::new();
    let time = humantime::format_rfc3339_millis(SystemTime::now());
    record.insert("time".into(), time.to_string().into());
    record.insert("level".into(), level.as_str().to_lowercase().into());
    let Value::Object(mut fields) = fields else {
        unreachable!("an event has fields");
    };
    record.extend(fields.remove_entry("event"));
    record.insert("message".into(), message.into());
    record.extend(fields);
    format!("{}\n", Value::Object(record)).into()
}

static HUB: Hub = Hub::new();

/// Those who follow events.
struct Hub {
    /// Length of the list, to be looked at without the lock.
    count: AtomicUsize,
    inner: Mutex<Inner>,
}

struct Inner {
    followers: Vec<Arc<Stream>>,
    written: LevelFilter,
    /// Nobody follows any more.
    ended: bool,
}

/// What a follower has yet to read.
#[derive(Default)]
struct Stream {
    waiting: Mutex<Waiting>,
    bell: Notify,
}

#[derive(Default)]
struct Waiting {
    records: VecDeque<Arc<str>>,
    /// How many records were lost after those.
    lost: u64,
    /// The last record, which follows the count of the lost.
    last: Option<Arc<str>>,
    ended: bool,
}

impl Hub {
    const fn new() -> Hub {
        Hub {
            count: AtomicUsize::new(0),
            inner: Mutex::new(Inner {
                followers: Vec::new(),
                written: LevelFilter::Off,
                ended: false,
            }),
        }
    }

    fn is_followed(&self) -> bool {
        self.count.load(Relaxed) > 0
    }

    fn follow(&'static self) -> Result<Follower, String> {
        let mut inner = self.inner.lock();
        if inner.ended {
            return Err("this process is ending".into());
        }
        if inner.followers.len() >= FOLLOWERS_MAX {
            return Err(format!("{FOLLOWERS_MAX} follow already, which is all that may"));
        }
        let stream = Arc::new(Stream::default());
        inner.followers.push(stream.clone());
        inner.set_level();
        self.count.store(inner.followers.len(), Relaxed);
        Ok(Follower { hub: self, stream })
    }

    fn put(&self, record: &Arc<str>) {
        for stream in &self.inner.lock().followers {
            stream.put(record);
        }
    }

    fn end(&self, last: &Arc<str>) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        for stream in &inner.followers {
            let mut waiting = stream.waiting.lock();
            waiting.last = Some(last.clone());
            waiting.ended = true;
            stream.bell.notify_one();
        }
    }
}

impl Inner {
    fn set_level(&self) {
        log::set_max_level(match self.followers.is_empty() {
            true => self.written,
            false => self.written.max(FOLLOWED),
        });
    }
}

impl Stream {
    fn put(&self, record: &Arc<str>) {
        let mut waiting = self.waiting.lock();
        if waiting.ended {
            return;
        }
        match waiting.records.len() < QUEUE_MAX {
            true => waiting.records.push_back(record.clone()),
            false => waiting.lost += 1,
        }
        self.bell.notify_one();
    }

    /// What there is; `None` at the end.
    fn take(&self) -> Option<String> {
        let mut waiting = self.waiting.lock();
        let mut text: String = waiting.records.drain(..).map(|record| record.to_string()).collect();
        let count = std::mem::take(&mut waiting.lost);
        if count > 0 {
            let lost = Lost { count };
            let fields = serde_json::to_value(&lost).unwrap_or_default();
            text += &record(Level::Warn, &lost.to_string(), fields);
        }
        if let Some(last) = waiting.last.take() {
            text += &last;
        }
        (!text.is_empty() || !waiting.ended).then_some(text)
    }
}

/// Somebody who follows, until this is dropped.
pub struct Follower {
    hub: &'static Hub,
    stream: Arc<Stream>,
}

impl Follower {
    /// What has been told since, one record a line; waits for it. `None`: that was all.
    pub async fn next(&self) -> Option<String> {
        loop {
            match self.stream.take() {
                Some(text) if text.is_empty() => self.stream.bell.notified().await,
                told => return told,
            }
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let mut inner = self.hub.inner.lock();
        inner.followers.retain(|stream| !Arc::ptr_eq(stream, &self.stream));
        inner.set_level();
        self.hub.count.store(inner.followers.len(), Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hub() -> &'static Hub {
        Box::leak(Box::new(Hub::new()))
    }

    fn put(hub: &Hub, numbers: std::ops::Range<usize>) {
        numbers.for_each(|number| hub.put(&format!("{number}\n").into()));
    }

    #[test]
    fn what_finds_no_room_is_counted_where_it_is_missing() {
        let hub = hub();
        put(hub, 0..3);
        let (slow, quick) = (hub.follow().unwrap(), hub.follow().unwrap());
        put(hub, 3..4);
        assert_eq!(quick.stream.take().unwrap(), "3\n", "nothing from before");
        put(hub, 4..QUEUE_MAX + 10);
        let text = slow.stream.take().unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), QUEUE_MAX + 1);
        assert_eq!((lines[0], lines[QUEUE_MAX - 1]), ("3", &*(QUEUE_MAX + 2).to_string()));
        let lost: Value = serde_json::from_str(lines[QUEUE_MAX]).unwrap();
        assert_eq!((&lost["event"], &lost["count"]), (&json!("lost"), &json!(7)));
        put(hub, 9..10);
        assert_eq!(slow.stream.take().unwrap(), "9\n");
        hub.end(&"last\n".into());
        put(hub, 10..11);
        assert_eq!(slow.stream.take().unwrap(), "last\n");
        assert_eq!(slow.stream.take(), None);
        assert!(hub.follow().is_err());
        assert!(hub.is_followed());
        drop((slow, quick));
        assert!(!hub.is_followed());
    }
}
