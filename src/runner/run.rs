//! The runner process itself.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Instant;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::socket::{MsgFlags, SockType, getsockopt, send, sockopt};
use nix::unistd::Pid;

use super::handle::receive;
use super::{Commands, RUNNING_MAX, Ran, Run, ToRunner};
use crate::config;
use crate::sys::output;

/// How often running commands are looked at.
const LOOK_MS: u16 = 10;

/// Orders that wait; the main process has no more than a few under way.
const WAITING_MAX: usize = 4096;

/// The whole life of a runner.
pub fn main() -> ExitCode {
    let stdin = io::stdin();
    let channel = stdin.as_fd();
    if !matches!(getsockopt(&channel, sockopt::SockType), Ok(SockType::SeqPacket)) {
        output::last_words("weir runner: is started by weir run, not by hand");
        return ExitCode::from(2);
    }
    // A signal to the group (Ctrl-C) is for the main process, whose end is what ends us. Commands get their signals: what is
    // blocked here would be blocked in them too, so that the standard library unblocks it.
    let _ = nix::unistd::setsid();
    let _ = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGUSR2]).thread_block();
    Runner::new(channel).run();
    ExitCode::SUCCESS
}

struct Running {
    id: u64,
    child: Child,
    until: Instant,
}

struct Runner<'a> {
    channel: BorrowedFd<'a>,
    commands: Option<Commands>,
    file: Option<PathBuf>,
    waiting: VecDeque<Run>,
    running: Vec<Running>,
    closed: bool,
}

impl<'a> Runner<'a> {
    fn new(channel: BorrowedFd<'a>) -> Runner<'a> {
        Runner {
            channel,
            commands: None,
            file: None,
            waiting: VecDeque::new(),
            running: Vec::new(),
            closed: false,
        }
    }

    fn run(&mut self) {
        while !(self.closed && self.running.is_empty() && self.waiting.is_empty()) {
            let timeout = match self.running.is_empty() {
                true => PollTimeout::NONE,
                false => PollTimeout::from(LOOK_MS),
            };
            let mut fds = [PollFd::new(self.channel, PollFlags::POLLIN)];
            let fds = if self.closed { &mut fds[..0] } else { &mut fds[..] };
            let _ = poll(fds, timeout);
            while !self.closed && self.waiting.len() < WAITING_MAX {
                match receive(self.channel) {
                    Ok(Some(message)) => self.take(message),
                    Ok(None) => break,
                    Err(_) => self.closed = true,
                }
            }
            self.look();
            while self.running.len() < RUNNING_MAX
                && let Some(order) = self.waiting.pop_front()
            {
                self.begin(order);
            }
        }
    }

    fn take(&mut self, message: ToRunner) {
        match message {
            // Only the first is from somebody who could not be anybody else.
            ToRunner::Commands { commands, file } if self.commands.is_none() => {
                self.commands = Some(commands);
                self.file = file;
            }
            ToRunner::Commands { .. } => {}
            ToRunner::Reload => {
                let loaded = self.file.as_deref().and_then(|file| config::load(file).ok());
                if let Some(loaded) = loaded {
                    let failover = loaded.config.failover.as_ref();
                    self.commands = Some(failover.map(Commands::from).unwrap_or_default());
                }
            }
            ToRunner::Run(order) => self.waiting.push_back(order),
        }
    }

    fn begin(&mut self, order: Run) {
        let command = self.commands.as_ref().map_or(&[][..], |c| c.get(&order.which));
        let Some((program, arguments)) = command.split_first() else {
            return self.answer(order.id, Err("there is no such command".into()));
        };
        // Variables of ours alone: nothing that changes how the program itself is loaded.
        let variables = order
            .variables
            .into_iter()
            .filter(|(name, _)| name.starts_with("WEIR_"));
        let child = Command::new(program)
            .args(arguments)
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .process_group(0)
            .spawn();
        match child {
            Ok(child) => self.running.push(Running {
                id: order.id,
                child,
                until: Instant::now() + order.limit,
            }),
            Err(e) => self.answer(order.id, Err(format!("{program}: {e}"))),
        }
    }

    fn look(&mut self) {
        let now = Instant::now();
        let mut ended = Vec::new();
        self.running.retain_mut(|running| {
            let outcome = match running.child.try_wait() {
                Ok(None) if now < running.until => return true,
                Ok(None) => {
                    let _ = killpg(Pid::from_raw(running.child.id() as i32), Signal::SIGKILL);
                    let _ = running.child.wait();
                    Err("took too long and was killed".to_string())
                }
                Ok(Some(status)) if status.success() => Ok(()),
                Ok(Some(status)) => Err(status.to_string()),
                Err(e) => Err(e.to_string()),
            };
            ended.push((running.id, outcome));
            false
        });
        for (id, outcome) in ended {
            self.answer(id, outcome);
        }
    }

    fn answer(&self, id: u64, outcome: Result<(), String>) {
        if let Ok(packet) = serde_json::to_vec(&Ran { id, outcome }) {
            // One for each order that is under way: they fit.
            let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
            let _ = send(self.channel.as_raw_fd(), &packet, flags);
        }
    }
}
