//! The new process: what it was given, by a predecessor or by the service manager (socket activation), and its side of
//! the conversation.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use anyhow::{Context, bail};

use super::{Before, Event, Line, Note, START_MAX, VARIABLE, forms};
use crate::config::Config;
use crate::config::model::Device;
use crate::control::amend;
use crate::control::discovery::Told;
use crate::control::election::Detached;
use crate::control::publication::inherited::{InheritedSockets, Label};
use crate::control::publication::pools::Knowledge;
use crate::link::{Address, HandedSession};
use crate::sys::handover::Channel;
use crate::sys::{socket, systemd};

/// What this process was started with.
#[derive(Debug, Default)]
pub struct Inheritance {
    /// The listening sockets that a predecessor handed over.
    pub sockets: InheritedSockets,
    /// What a predecessor knew of backends.
    pub knowledge: Vec<Knowledge>,
    /// What a predecessor knew of sources of members.
    pub members: Vec<Told>,
    /// What operators have added to pools and removed from them.
    pub amended: Vec<amend::Told>,
    /// The conversation with the predecessor, if there is one.
    pub successor: Option<Successor>,
}

impl Inheritance {
    /// Whether another process serves until this one takes over.
    pub fn is_succession(&self) -> bool {
        self.successor.is_some()
    }
}

impl Inheritance {
    /// Receives everything. To be called once, before other threads are started.
    pub fn receive() -> anyhow::Result<Inheritance> {
        let mut sockets = InheritedSockets::default();
        for (name, fd) in systemd::activated().context("socket activation")? {
            let label = activated_label(&name, &fd).with_context(|| format!("socket activation: socket `{name}`"))?;
            sockets.extend([(label, fd)]);
        }
        let Some(number) = std::env::var_os(VARIABLE) else {
            return Ok(Inheritance {
                sockets,
                ..Inheritance::default()
            });
        };
        let number = number.to_str().and_then(|text| text.parse().ok());
        let fd = number.with_context(|| format!("{VARIABLE} is not a number"))?;
        let channel = Channel::inherited(fd).with_context(|| format!("{VARIABLE}={fd}"))?;
        channel.set_timeout(START_MAX)?;
        let line = Line(Arc::new(channel));
        let mut inheritance = Inheritance {
            sockets,
            ..Inheritance::default()
        };
        let successor = Successor { line };
        if let Err(error) = inheritance.hear(&successor.line) {
            successor.refuse(&format!("{error:#}"));
            return Err(error);
        }
        inheritance.successor = Some(successor);
        Ok(inheritance)
    }

    /// To the end, whatever is said: the other process does not hear why before it has said everything.
    fn hear(&mut self, line: &Line) -> anyhow::Result<()> {
        let mut strange = None;
        loop {
            match line.hear() {
                Ok(Some((Note::Knowledge(part), _))) => self.knowledge.extend(part),
                Ok(Some((Note::Members(part), _))) => self.members.extend(part),
                Ok(Some((Note::Amended(part), _))) => self.amended.extend(part),
                Ok(Some((Note::Sockets(labels), fds))) => self.sockets.extend(labels.into_iter().zip(fds)),
                Ok(Some((Note::Everything, _))) => break,
                Ok(Some((Note::Abandon, _)) | None) => bail!("the old process gave the upgrade up"),
                Ok(Some((other, _))) => bail!("the old process said {other:?}"),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => drop(strange.get_or_insert(error)),
                Err(error) => return Err(error.into()),
            }
        }
        strange.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Whether this process, with this configuration, can go on with what the one before it will hand over. To be asked before
    /// anything is done.
    ///
    /// # Errors
    /// Why it cannot, for both logs.
    pub fn check(&mut self, config: &Config) -> Result<(), String> {
        match self.is_succession() {
            true => forms::take(&mut self.sockets, config.failover.is_some()),
            false => Ok(()),
        }
    }
}

/// The name of a listener is the name of its sockets (FileDescriptorName=).
fn activated_label(name: &str, fd: &OwnedFd) -> anyhow::Result<Label> {
    let socket = socket2::SockRef::from(fd);
    socket.set_nonblocking(true)?;
    let bound = socket.local_addr()?;
    let (wanted, local) = match (bound.as_socket(), bound.as_pathname()) {
        // BindToDevice= of the unit, whether the file names the interface or leaves that to the unit.
        (Some(address), _) => (Address::Ip(address), Address::new(address, device_of(fd, &address))),
        (None, Some(path)) => (Address::Unix(path.to_path_buf()), Address::Unix(path.to_path_buf())),
        _ => bail!("neither an internet nor a named unix socket"),
    };
    let udp = socket.r#type()? == socket2::Type::DGRAM;
    if !udp && wanted.ip().is_some() {
        socket::set_nodelay(fd.as_raw_fd());
    }
    Ok(Label::Listener {
        name: name.to_string(),
        udp,
        wanted,
        local,
    })
}

/// The interface to which a socket is limited beyond what its address says.
fn device_of(fd: &OwnedFd, address: &SocketAddr) -> Option<Device> {
    if matches!(address, SocketAddr::V6(v6) if v6.scope_id() != 0) {
        return None;
    }
    let index = socket::device(fd.as_raw_fd())?;
    let name = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    Some(Device { index, name })
}

/// The new process's side of the conversation.
#[derive(Debug, Clone)]
pub struct Successor {
    line: Line,
}

impl Successor {
    /// Says that this process will not serve.
    pub fn refuse(&self, reason: &str) {
        let reason = reason.chars().take(16 << 10).collect();
        let _ = self.line.say(&Note::Refused(reason));
    }

    /// Says that this process could serve, and passes on what it is told; `before` learns of the other one when it drains.
    pub fn announce(
        &self,
        sockets: &mut InheritedSockets,
        before: Before,
        tell: impl Fn(Event) -> bool + Send + 'static,
    ) -> anyhow::Result<()> {
        let unused = sockets.discard();
        self.line.say(&Note::Ready { unused })?;
        let line = self.line.clone();
        line.0.set_timeout(std::time::Duration::ZERO)?;
        std::thread::Builder::new()
            .name("upgrade".into())
            .spawn(move || listen(&line, &before, tell))?;
        Ok(())
    }

    /// Says that this process serves.
    pub fn serving(&self) {
        let _ = self.line.say(&Note::Serving);
    }
}

/// Ends when the other process has, or this one is told to give up.
pub(super) fn listen(line: &Line, before: &Before, tell: impl Fn(Event) -> bool) {
    let mut handed = Vec::new();
    let mut vips = String::new();
    let mut is_main = false;
    loop {
        let heard = line.hear();
        match heard {
            Ok(Some((Note::Sessions(states), fds))) => {
                let sessions = states.into_iter().zip(fds);
                handed.extend(sessions.map(|(state, fd)| HandedSession { state, fd, held: None }));
            }
            Ok(Some((Note::Go, _))) => drop(tell(Event::Go(std::mem::take(&mut handed)))),
            Ok(Some((Note::VipsPart(part), _))) => vips += &part,
            Ok(Some((Note::Vips(rest), fds))) => {
                vips += &rest;
                let mut fds = fds.into_iter();
                if let (Some(keeper), Some(listener), runner) = (fds.next(), fds.next(), fds.next()) {
                    tell(Event::Vips(Detached {
                        keeper,
                        listener,
                        runner,
                        state: std::mem::take(&mut vips).into_bytes(),
                    }));
                }
            }
            Ok(Some((Note::Main, _))) => {
                is_main = true;
                before.drains(line.clone());
                tell(Event::Main);
            }
            Ok(Some((Note::Left(address), _))) => before.left(address),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                log::warn!("upgrade: something that the old process hands over is left out: {error}");
            }
            Ok(None) | Err(_) if is_main => return before.is_gone(),
            Ok(Some((Note::Abandon, _))) => {
                tell(Event::Abandoned);
                return;
            }
            // The old process has died: the service is ours.
            Ok(None) | Err(_) => {
                let _ = tell(Event::Go(handed)) && tell(Event::Main);
                return;
            }
            Ok(Some(_)) => {}
        }
    }
}
