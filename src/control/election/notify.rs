//! Telling people: the log, and the `notify` command. Runs in threads of its own, so that neither a full disk nor a slow script
//! can delay a beat.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, TrySendError, bounded};

use super::Event;
use super::record::Recording;

/// Events that may wait; more are dropped and counted by the sender.
const WAITING_MAX: usize = 256;
/// Commands that may wait.
const COMMANDS_MAX: usize = 64;
/// How long one command may take.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(10);

/// What the election thread hands over.
pub enum Note {
    /// Something happened.
    Event(Event),
    /// How it came to the transition just told.
    Recording(Box<Recording>),
    /// The command to run from now on; empty = none.
    Command(Vec<String>),
}

/// Where the election thread drops its notes.
#[derive(Clone)]
pub struct Notes(Sender<Note>);

impl Notes {
    /// Starts the threads; they end when the last sender is dropped. `events` gets a copy of every event.
    pub fn start(node: String, command: Vec<String>, events: Sender<Event>) -> std::io::Result<Notes> {
        let (sender, notes) = bounded(WAITING_MAX);
        let (runs, commands) = bounded::<(Vec<String>, Event)>(COMMANDS_MAX);
        std::thread::Builder::new()
            .name("failover-notify".into())
            .spawn(move || {
                for (argv, event) in commands {
                    run(&node, &argv, &event);
                }
            })?;
        std::thread::Builder::new()
            .name("failover-log".into())
            .spawn(move || tell(&notes, command, &events, &runs))?;
        Ok(Notes(sender))
    }

    /// Never waits; whether there was room.
    pub fn send(&self, note: Note) -> bool {
        self.0.try_send(note).is_ok()
    }
}

fn tell(notes: &Receiver<Note>, mut command: Vec<String>, events: &Sender<Event>, runs: &Sender<(Vec<String>, Event)>) {
    for note in notes {
        match note {
            Note::Event(event) => {
                log::log!(event.level(), "{event}");
                if matches!(event, Event::Transition { .. })
                    && !command.is_empty()
                    && let Err(TrySendError::Full(_)) = runs.try_send((command.clone(), event.clone()))
                {
                    log::warn!("notify: {COMMANDS_MAX} commands wait already, this one is left out");
                }
                let _ = events.try_send(event);
            }
            Note::Recording(recording) => {
                log::debug!("failover inputs up to the transition: {}", recording.to_json());
            }
            Note::Command(new) => command = new,
        }
    }
}

/// Runs the command with the event in its environment; it gets ten seconds.
fn run(node: &str, argv: &[String], event: &Event) {
    let (
        Some((program, arguments)),
        Event::Transition {
            vip,
            interface,
            from,
            to,
            reason,
            holder,
        },
    ) = (argv.split_first(), event)
    else {
        return;
    };
    let child = Command::new(program)
        .args(arguments)
        .env("WEIR_NODE", node)
        .env("WEIR_VIP", vip)
        .env("WEIR_INTERFACE", interface)
        .env("WEIR_STATE", to.word())
        .env("WEIR_OLD_STATE", from.word())
        .env("WEIR_REASON", reason)
        .env("WEIR_HOLDER", holder.as_deref().unwrap_or(""))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn();
    let mut child = match child {
        Ok(child) => child,
        Err(e) => return log::warn!("notify: {program}: {e}"),
    };
    let deadline = Instant::now() + COMMAND_TIMEOUT;
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return,
            Ok(Some(status)) => return log::warn!("notify: {program}: {status}"),
            Ok(None) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(20));
            }
            _ => break,
        }
    }
    log::warn!("notify: {program} took longer than {COMMAND_TIMEOUT:?} and was killed");
    let _ = child.kill();
    let _ = child.wait();
}
