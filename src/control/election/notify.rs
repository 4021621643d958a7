//! Telling people: the log, and the `notify` command. Runs in threads of its own, so that neither a full disk nor a slow script
//! can delay a beat.
//!
//! Lines of the log may be left out when too many wait, which is counted and said. Changes of state for the command are kept by
//! address: the newest is never lost, and with a slow command older ones are told as one change.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use indexmap::IndexMap;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;

use super::Event;
use super::record::Recording;
use crate::control::events;
use crate::failover::words::State;
use crate::runner::{Ran, Run, RunnerHandle, Which};

/// Lines that may wait for the log; more are counted.
const WAITING_MAX: usize = 256;
/// Changes of one address that wait for the command one by one.
const EACH_MAX: usize = 4;
/// Commands under way, each for another address.
const UNDER_WAY_MAX: usize = 4;
/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// Numbers of scripts that the election thread has run have this bit; their answers are its own.
pub const SCRIPT: u64 = 1 << 63;

/// What the election thread hands over.
pub enum Note {
    /// An event to be told.
    Event(Event),
    /// How it came to the transition just told.
    Recording(Box<Recording>),
}

/// A change of state as the command is told of it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Change {
    vip: String,
    interface: String,
    from: State,
    to: State,
    reason: String,
    holder: Option<String>,
}

impl Change {
    fn of(event: &Event) -> Option<Change> {
        let Event::Transition {
            vip,
            interface,
            from,
            to,
            reason,
            holder,
        } = event
        else {
            return None;
        };
        Some(Change {
            vip: vip.clone(),
            interface: interface.clone(),
            from: *from,
            to: *to,
            reason: reason.clone(),
            holder: holder.clone(),
        })
    }

    fn variables(&self, node: &str) -> Vec<(String, String)> {
        let holder = self.holder.as_deref().unwrap_or_default();
        [
            ("WEIR_NODE", node),
            ("WEIR_VIP", &self.vip),
            ("WEIR_INTERFACE", &self.interface),
            ("WEIR_STATE", self.to.word()),
            ("WEIR_OLD_STATE", self.from.word()),
            ("WEIR_REASON", &self.reason),
            ("WEIR_HOLDER", holder),
        ]
        .map(|(name, value)| (name.to_string(), value.to_string()))
        .to_vec()
    }
}

/// What the command has yet to be told, and what it is being told.
#[derive(Debug, Default)]
struct Agenda {
    next_id: u64,
    /// What is still to be told, by address and interface.
    addresses: IndexMap<(String, String), Pending>,
}

#[derive(Debug, Default)]
struct Pending {
    /// Oldest first; each begins where the one before ended.
    waiting: VecDeque<Change>,
    under_way: Option<u64>,
}

impl Agenda {
    fn add(&mut self, change: Change) {
        let key = (change.vip.clone(), change.interface.clone());
        let waiting = &mut self.addresses.entry(key).or_default().waiting;
        waiting.push_back(change);
        if waiting.len() > EACH_MAX
            && let Some(oldest) = waiting.pop_front()
        {
            waiting[0].from = oldest.from;
        }
    }

    /// What is to be told now, and its number.
    fn next(&mut self) -> Option<(u64, Change)> {
        let under_way = self.addresses.values().filter(|p| p.under_way.is_some()).count();
        if under_way >= UNDER_WAY_MAX {
            return None;
        }
        let mut ready = self.addresses.values_mut();
        let pending = ready.find(|p| p.under_way.is_none() && !p.waiting.is_empty())?;
        let change = pending.waiting.pop_front()?;
        self.next_id += 1;
        pending.under_way = Some(self.next_id);
        Some((self.next_id, change))
    }

    /// Puts back what could not be told.
    fn later(&mut self, id: u64, change: Change) {
        if let Some(pending) = self.addresses.values_mut().find(|p| p.under_way == Some(id)) {
            pending.under_way = None;
            pending.waiting.push_front(change);
        }
    }

    /// It has been told. Who waits longest is next.
    fn told(&mut self, id: u64) {
        let found = self.addresses.iter().position(|(_, p)| p.under_way == Some(id));
        if let Some((key, mut pending)) = found.and_then(|ix| self.addresses.shift_remove_index(ix)) {
            pending.under_way = None;
            if !pending.waiting.is_empty() {
                self.addresses.insert(key, pending);
            }
        }
    }

    fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    fn untold(&self) -> Vec<Change> {
        self.addresses
            .values()
            .flat_map(|p| p.waiting.iter().cloned())
            .collect()
    }
}

/// What the election thread and the one that has commands run share.
struct Shared {
    agenda: Mutex<Agenda>,
    /// Whether there is a command.
    configured: Mutex<bool>,
    runner: Option<RunnerHandle>,
    /// Answers for the election thread.
    ran: Sender<Ran>,
    bell: UnixStream,
    left_out: AtomicU64,
}

/// Where the election thread drops its notes.
#[derive(Clone)]
pub struct Notes {
    lines: Sender<Note>,
    shared: Arc<Shared>,
    ran: Receiver<Ran>,
    _end: Arc<End>,
}

/// Ends the thread with the last of the [`Notes`].
struct End(UnixStream);

impl Drop for End {
    fn drop(&mut self) {
        let _ = self.0.shutdown(std::net::Shutdown::Both);
    }
}

impl Notes {
    /// Starts the threads; they end when the last of these is dropped. `events` gets a copy of every event; `untold` is what a
    /// predecessor has left.
    pub fn start(
        node: String,
        configured: bool,
        runner: Option<RunnerHandle>,
        untold: Vec<Change>,
        events: Sender<Event>,
    ) -> io::Result<Notes> {
        let (lines, notes) = bounded(WAITING_MAX);
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        let mut agenda = Agenda {
            // Answers to a predecessor are none of ours.
            next_id: u64::from(std::process::id()) << 32,
            ..Agenda::default()
        };
        untold.into_iter().for_each(|change| agenda.add(change));
        let end = End(bell.try_clone()?);
        let (ran, answers) = bounded(WAITING_MAX);
        let shared = Arc::new(Shared {
            agenda: Mutex::new(agenda),
            configured: Mutex::new(configured),
            runner,
            ran,
            bell,
            left_out: AtomicU64::new(0),
        });
        let (for_log, for_commands) = (shared.clone(), shared.clone());
        std::thread::Builder::new()
            .name("failover-notify".into())
            .spawn(move || have_told(&node, &for_commands, ring))?;
        std::thread::Builder::new()
            .name("failover-log".into())
            .spawn(move || log_notes(&notes, &for_log, &events))?;
        let notes = Notes {
            lines,
            shared,
            ran: answers,
            _end: Arc::new(end),
        };
        notes.ring();
        Ok(notes)
    }

    /// Passes a note on; never waits.
    pub fn send(&self, note: Note) {
        if let Note::Event(event) = &note
            && *self.shared.configured.lock()
            && let Some(change) = Change::of(event)
        {
            self.shared.agenda.lock().add(change);
            self.ring();
        }
        if self.lines.try_send(note).is_err() {
            self.shared.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Has a script run that is tracked; never waits.
    pub fn run(&self, run: Run) -> io::Result<()> {
        match &self.shared.runner {
            Some(runner) => runner.run(run),
            None => Err(io::Error::other("nothing runs scripts; restart weir to have them run")),
        }
    }

    /// The answers of such scripts that have come.
    pub fn ran(&self) -> impl Iterator<Item = Ran> {
        self.ran.try_iter()
    }

    /// The configuration has changed; whether it has a command.
    pub fn reload(&self, configured: bool) {
        *self.shared.configured.lock() = configured;
        match &self.shared.runner {
            Some(runner) => {
                if let Err(e) = runner.reload() {
                    log::error!("notify: the process that runs commands: {e}");
                }
            }
            None if configured => log::warn!("notify: nothing runs commands; restart weir to have them run"),
            None => {}
        }
    }

    /// Waits until everything has been told, but not for long.
    pub fn finish(&self, limit: Duration) {
        let began = Instant::now();
        while !self.shared.agenda.lock().is_empty() && began.elapsed() < limit {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The runner and what it has yet to be told, for a successor. What is told now may be told twice.
    pub fn hand_over(&self) -> (Option<OwnedFd>, Vec<Change>) {
        let runner = self.shared.runner.as_ref().and_then(|runner| runner.try_clone().ok());
        *self.shared.configured.lock() = false;
        let mut agenda = self.shared.agenda.lock();
        let untold = agenda.untold();
        *agenda = Agenda::default();
        (runner.map(RunnerHandle::into_fd), untold)
    }

    fn ring(&self) {
        // A bell that is full has been rung.
        let _ = (&self.shared.bell).write(&[1]);
    }
}

fn log_notes(notes: &Receiver<Note>, shared: &Shared, events: &Sender<Event>) {
    for note in notes {
        match note {
            Note::Event(event) => {
                events::tell(&event);
                let _ = events.try_send(event);
            }
            Note::Recording(recording) => {
                log::debug!("failover inputs up to the transition: {}", recording.to_json());
            }
        }
        match shared.left_out.swap(0, Ordering::Relaxed) {
            0 => {}
            n => log::warn!("failover: {n} lines were left out"),
        }
    }
}

/// Has the runner tell what is on the agenda, until `rung` ends.
fn have_told(node: &str, shared: &Shared, mut rung: UnixStream) {
    let Some(runner) = &shared.runner else {
        if *shared.configured.lock() {
            log::warn!("notify: nothing runs commands; restart weir to have them run");
        }
        return;
    };
    loop {
        let mut fds = [
            PollFd::new(rung.as_fd(), PollFlags::POLLIN),
            PollFd::new(runner.as_fd(), PollFlags::POLLIN),
        ];
        let _ = poll(&mut fds, PollTimeout::NONE);
        match rung.read(&mut [0; 256]) {
            Ok(0) => return,
            Ok(_) => {}
            Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
            Err(_) => return,
        }
        loop {
            match runner.receive() {
                // As many are under way as there are places for them; what is not read will be overdue.
                Ok(Some(ran)) if ran.id & SCRIPT != 0 => drop(shared.ran.try_send(ran)),
                Ok(Some(ran)) => {
                    if let Err(why) = ran.outcome {
                        log::warn!("notify: {why}");
                    }
                    shared.agenda.lock().told(ran.id);
                }
                Ok(None) => break,
                Err(e) => {
                    log::error!(
                        "notify: the process that runs commands has ended ({e}); restart weir to have them run"
                    );
                    *shared.configured.lock() = false;
                    *shared.agenda.lock() = Agenda::default();
                    return;
                }
            }
        }
        while let Some((id, change)) = { shared.agenda.lock().next() } {
            let order = Run {
                id,
                which: Which::Notify,
                variables: change.variables(node),
                limit: COMMAND_TIMEOUT,
            };
            if runner.run(order).is_err() {
                // It reads when it has answered something, and then we come back.
                shared.agenda.lock().later(id, change);
                break;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(vip: u32, from: State, to: State) -> Change {
        Change {
            vip: format!("10.0.0.{vip}/24"),
            interface: "eth0".into(),
            from,
            to,
            reason: "test".into(),
            holder: None,
        }
    }

    use State::{Active, Claiming, Fault, Releasing, Standby};

    #[test]
    fn one_address_is_told_in_order_and_the_newest_is_never_lost() {
        let mut agenda = Agenda::default();
        let states = [Standby, Claiming, Active, Releasing, Standby, Claiming, Active, Fault];
        for pair in states.windows(2) {
            agenda.add(change(1, pair[0], pair[1]));
        }
        let mut told = Vec::new();
        while let Some((id, change)) = agenda.next() {
            assert!(agenda.next().is_none(), "one at a time");
            told.push((change.from, change.to));
            agenda.told(id);
        }
        // Seven changes, of which four wait: those before the last three are told as one.
        let want = [
            (Standby, Standby),
            (Standby, Claiming),
            (Claiming, Active),
            (Active, Fault),
        ];
        assert_eq!(told, want);
        assert!(agenda.is_empty());
    }

    #[test]
    fn addresses_are_told_side_by_side_and_take_turns() {
        let mut agenda = Agenda::default();
        for round in 0..3 {
            for vip in 0..60 {
                let (from, to) = [(Standby, Claiming), (Claiming, Active), (Active, Standby)][round];
                agenda.add(change(vip, from, to));
            }
        }
        let (mut under_way, mut order) = (VecDeque::new(), Vec::new());
        loop {
            while let Some((id, change)) = agenda.next() {
                under_way.push_back(id);
                order.push(change);
            }
            assert!(under_way.len() <= UNDER_WAY_MAX);
            match under_way.pop_front() {
                Some(id) => agenda.told(id),
                None => break,
            }
        }
        assert_eq!(order.len(), 180);
        let first: Vec<&str> = order[..60].iter().map(|c| c.vip.as_str()).collect();
        let distinct: std::collections::HashSet<_> = first.iter().collect();
        assert_eq!(distinct.len(), 60, "everybody once before anybody twice");
        assert!(order[120..].iter().all(|c| c.to == Standby));
    }

    #[test]
    fn what_could_not_be_told_is_told_later() {
        let mut agenda = Agenda::default();
        agenda.add(change(1, Standby, Claiming));
        let (id, what) = agenda.next().unwrap();
        agenda.add(change(1, Claiming, Active));
        agenda.later(id, what.clone());
        assert_eq!(agenda.untold().len(), 2);
        assert_eq!(agenda.next().unwrap().1, what);
    }
}
