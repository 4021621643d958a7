//! The old process: starts the new one and lets go step by step. A thread of its own does what takes time; control only
//! learns how it ended, and serves meanwhile.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use crossbeam_channel::bounded;

use super::{Back, Done, Event, Line, Note, START_MAX, STEP_MAX, VARIABLE, forms};
use crate::control::amend;
use crate::control::discovery::Told;
use crate::control::publication::inherited::Label;
use crate::control::publication::pools::Knowledge;
use crate::link::{self, Address, Command, ListenSocket, SocketMove};
use crate::sys::handover::{self as process, Channel, DESCRIPTORS_MAX};
use crate::sys::systemd;

/// How often workers are asked again for a socket that is on its way between two of them.
const GATHER_PAUSE: Duration = Duration::from_millis(20);

/// Backends in one message: a reason is a short sentence.
pub const KNOWLEDGE_MAX: usize = 128;

/// What is started: the binary that this process was started as, looked up again, with the same arguments.
#[derive(Debug, Clone)]
pub struct Program {
    /// Path, or a name to be found in PATH.
    pub path: OsString,
    /// The arguments, without the program's name.
    pub arguments: Vec<OsString>,
}

impl Program {
    /// Of this process. The name that it was started under, rather than /proc/self/exe: that would follow a symbolic link
    /// to the old version, and says "(deleted)" once a package manager has put another file in its place.
    pub fn own() -> Program {
        let mut arguments = std::env::args_os();
        let path = arguments.next().unwrap_or_else(|| "weir".into());
        Program {
            path,
            arguments: arguments.collect(),
        }
    }
}

/// What is handed over.
#[derive(Debug)]
pub struct Handover {
    /// All workers, whatever they serve.
    pub workers: Vec<link::Worker>,
    /// Every listening socket: [`ListenSocket::listener`] and address, its name, and how many of them there are.
    pub listeners: HashMap<(u32, Address), (Label, usize)>,
    /// What is known of backends.
    pub knowledge: Vec<Knowledge>,
    /// What is known of sources of members, in parts that fit a message.
    pub members: Vec<Told>,
    /// Backends that operators have added and removed.
    pub amended: Vec<amend::Told>,
    /// Sockets of our own, and the name of the form in which the election would be handed over.
    pub own: Vec<(String, OwnedFd)>,
    /// There is an election.
    pub election: bool,
}

/// An upgrade under way.
#[derive(Debug)]
pub struct Predecessor {
    line: Line,
    abandoned: Arc<AtomicBool>,
}

impl Predecessor {
    /// Begins; `tell` hears how it ended.
    pub fn begin(
        program: Program,
        handover: Handover,
        tell: impl FnOnce(Event) + Send + 'static,
    ) -> anyhow::Result<Predecessor> {
        if std::process::id() == 1 {
            bail!("this process is number 1: its end would end the container");
        }
        let (near, far) = Channel::pair()?;
        near.set_timeout(START_MAX)?;
        let line = Line(Arc::new(near));
        let abandoned = Arc::new(AtomicBool::new(false));
        let handle = Predecessor {
            line: line.clone(),
            abandoned: abandoned.clone(),
        };
        std::thread::Builder::new().name("upgrade".into()).spawn(move || {
            let mut back = Back::default();
            let event = match hand_over(&program, &handover, line, far, &abandoned, &mut back) {
                Ok(done) => Event::Done(done),
                Err(error) => Event::Failed {
                    reason: format!("{error:#}"),
                    back,
                },
            };
            tell(event);
        })?;
        Ok(handle)
    }

    /// Tells the successor to end, at once or, if it serves already, when its connections have. The [`Event`] comes soon.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::SeqCst);
        let _ = self.line.say(&Note::Abandon);
        let _ = self.line.0.stop_listening();
    }
}

/// Takes all steps. `back` holds what nobody serves at the moment.
fn hand_over(
    program: &Program,
    handover: &Handover,
    line: Line,
    far: Channel,
    abandoned: &AtomicBool,
    back: &mut Back,
) -> anyhow::Result<Done> {
    let sockets = gather(handover).context("cannot collect the listening sockets")?;
    let pid = process::spawn(
        &program.path,
        program.arguments.iter().cloned(),
        VARIABLE,
        &systemd::PRIVATE_VARIABLES,
        far,
    )
    .with_context(|| format!("cannot start {}", program.path.display()))?;
    log::info!("upgrade: process {pid} starts");
    let mut ready = false;
    let outcome = introduce(handover, &line, sockets, &mut ready, back);
    match &outcome {
        Ok(_) => {}
        // It may answer later, when nothing listens any more.
        Err(error) if is_timeout(error) => process::kill(pid),
        // It holds the sockets and may not look at the channel for long: clients would wait in queues that nobody serves.
        Err(_) if abandoned.load(Ordering::SeqCst) && !ready => process::kill(pid),
        Err(_) => {
            let _ = line.say(&Note::Abandon);
        }
    }
    let unused_labels = outcome?;
    *back = Back::default();
    let is_unused = |label: &Label| unused_labels.contains(label);
    let listeners = handover.listeners.iter();
    let unused = listeners.filter(|(_, (label, _))| is_unused(label));
    let own = handover.own.iter().map(|(name, _)| name.clone());
    Ok(Done {
        pid,
        unused: unused.map(|(place, _)| place.clone()).collect(),
        unused_own: own.filter(|n| is_unused(&Label::Own(n.clone()))).collect(),
        line,
    })
}

fn is_timeout(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::WouldBlock)
}

/// From the first socket to Serving; returns what the successor has no use for.
fn introduce(
    handover: &Handover,
    line: &Line,
    sockets: Vec<ListenSocket>,
    ready: &mut bool,
    back: &mut Back,
) -> anyhow::Result<Vec<Label>> {
    let label = |socket: &ListenSocket| {
        let place = (socket.listener, socket.local.clone());
        handover.listeners.get(&place).map(|(label, _)| label.clone())
    };
    let listening = sockets.iter().filter_map(|s| Some((label(s)?, s.fd.as_fd())));
    let own = handover.own.iter();
    let all: Vec<(Label, BorrowedFd)> = listening
        .chain(own.map(|(name, fd)| (Label::Own(name.clone()), fd.as_fd())))
        .collect();
    for part in all.chunks(DESCRIPTORS_MAX) {
        let (labels, fds): (Vec<Label>, Vec<BorrowedFd>) = part.iter().cloned().unzip();
        tell(line, &Note::Sockets(labels), &fds, "get ready")?;
    }
    for part in handover.knowledge.chunks(KNOWLEDGE_MAX) {
        let note = Note::Knowledge(part.to_vec());
        tell(line, &note, &[], "get ready")?;
    }
    for part in &handover.members {
        tell(line, &Note::Members(vec![part.clone()]), &[], "get ready")?;
    }
    for part in handover.amended.chunks(KNOWLEDGE_MAX) {
        tell(line, &Note::Amended(part.to_vec()), &[], "get ready")?;
    }
    tell(line, &Note::Everything, &[], "get ready")?;

    let unused = match hear(line, "get ready")? {
        Note::Ready { unused } => unused,
        Note::Refused(reason) => bail!("{reason}"),
        other => bail!("the new process said {other:?}"),
    };
    forms::was_taken(&unused, handover.election).map_err(anyhow::Error::msg)?;
    *ready = true;
    let listeners = handover.listeners.iter();
    let used = listeners.filter(|(_, (label, _))| !unused.contains(label));
    let used: Vec<(u32, Address)> = used.map(|(place, _)| place.clone()).collect();
    line.0.set_timeout(STEP_MAX)?;
    back.sockets = sockets;
    back.sockets
        .retain(|socket| used.contains(&(socket.listener, socket.local.clone())));
    let used = Arc::new(used);
    for worker in &handover.workers {
        let (reply, released) = bounded(1);
        let endpoints = used.clone();
        if worker.send(Command::Sockets(SocketMove::Release { endpoints, reply })) {
            let sessions = released
                .recv_timeout(STEP_MAX)
                .with_context(|| format!("worker {} does not answer", worker.id))?;
            back.sessions.extend(sessions);
        }
    }
    for part in back.sessions.chunks(DESCRIPTORS_MAX) {
        let states = part.iter().map(|session| session.state.clone()).collect();
        let fds: Vec<BorrowedFd> = part.iter().map(|m| m.fd.as_fd()).collect();
        tell(line, &Note::Sessions(states), &fds, "serve")?;
    }
    tell(line, &Note::Go, &[], "serve")?;
    match hear(line, "serve")? {
        Note::Serving => Ok(unused),
        other => bail!("the new process said {other:?}"),
    }
}

fn tell(line: &Line, note: &Note, fds: &[BorrowedFd], to_what: &str) -> anyhow::Result<()> {
    line.say_with(note, fds).map_err(|e| trouble(e, to_what))
}

fn hear(line: &Line, to_what: &str) -> anyhow::Result<Note> {
    match line.hear() {
        Ok(Some((note, _))) => Ok(note),
        Ok(None) => Err(trouble(io::ErrorKind::BrokenPipe.into(), to_what)),
        Err(error) => Err(trouble(error, to_what)),
    }
}

fn trouble(error: io::Error, to_what: &str) -> anyhow::Error {
    match error.kind() {
        // The error itself stays inside: see `is_timeout`.
        io::ErrorKind::WouldBlock => {
            anyhow::Error::from(error).context(format!("the new process did not {to_what} in time"))
        }
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            anyhow::anyhow!("the new process ended before it could {to_what}; its log says why")
        }
        _ => error.into(),
    }
}

/// Duplicates of every listening socket, from all workers. A worker that has just retired may have its sockets in another
/// one's queue, so a count that is short is asked for again.
fn gather(handover: &Handover) -> anyhow::Result<Vec<ListenSocket>> {
    let expected: usize = handover.listeners.values().map(|(_, count)| count).sum();
    let deadline = Instant::now() + STEP_MAX;
    loop {
        let mut sockets = Vec::new();
        for worker in &handover.workers {
            let (reply, shared) = bounded(1);
            if worker.send(Command::Sockets(SocketMove::Share { of: None, reply })) {
                let answer = shared
                    .recv_timeout(STEP_MAX)
                    .with_context(|| format!("worker {} does not answer", worker.id))?;
                sockets.extend(answer?);
            }
        }
        if sockets.len() >= expected {
            return Ok(sockets);
        }
        if Instant::now() >= deadline {
            bail!("{} of {expected} are there", sockets.len());
        }
        std::thread::sleep(GATHER_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::election;

    fn meet(own: &[String], successor: impl FnOnce(Channel) -> Option<Channel>) -> anyhow::Result<Vec<Label>> {
        let (near, far) = Channel::pair().unwrap();
        near.set_timeout(Duration::from_millis(50)).unwrap();
        let descriptor = || std::fs::File::open("/dev/null").unwrap().into();
        let handover = Handover {
            workers: Vec::new(),
            listeners: HashMap::new(),
            knowledge: Vec::new(),
            members: Vec::new(),
            amended: Vec::new(),
            own: own.iter().map(|name| (name.clone(), descriptor())).collect(),
            election: true,
        };
        let _far = successor(far);
        let line = Line(Arc::new(near));
        introduce(&handover, &line, Vec::new(), &mut false, &mut Back::default())
    }

    /// The short version of `a_successor_that_hangs_is_given_up` in `tests/service/upgrade.rs`: whoever hangs has to be
    /// killed, whoever has ended has not.
    ///
    /// Seen to fail with both called the same.
    #[test]
    fn silence_is_told_from_an_end() {
        let silent = meet(&[], Some).unwrap_err();
        assert!(is_timeout(&silent), "{silent:#}");
        assert!(silent.to_string().contains("did not get ready in time"));
        let ended = meet(&[], |far| {
            drop(far);
            None
        })
        .unwrap_err();
        assert!(!is_timeout(&ended), "{ended:#}");
        assert!(ended.to_string().contains("ended before it could get ready"));
    }

    /// As older versions say it, and later ones may.
    ///
    /// Seen to fail with forms that always agree.
    #[test]
    fn whoever_cannot_go_on_with_the_election_is_not_asked_to_serve() {
        let form = election::form();
        let left = format!(r#"{{"Ready":{{"unused":[{{"Own":"http"}},{{"Own":"{form}"}}]}}}}"#);
        let rows = [
            ("it has left the form's name", left.as_str(), "different forms"),
            ("it refuses", r#"{"Refused":"no room"}"#, "no room"),
            (
                "it says something new",
                r#"{"Later":{"by":3}}"#,
                "do not understand each other",
            ),
            (
                "it has taken the name, and more to say",
                r#"{"Ready":{"unused":[],"mood":"good"}}"#,
                "did not serve in time",
            ),
        ];
        for (what, answer, expected) in rows {
            let error = meet(std::slice::from_ref(&form), |far| {
                far.send(answer.as_bytes(), &[]).unwrap();
                Some(far)
            });
            let error = format!("{:#}", error.unwrap_err());
            assert!(error.contains(expected), "{what}: {error}");
        }
    }
}
