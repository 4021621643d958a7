//! The process itself: a set of rules for each channel, and the kernel's rules, which are all of them together.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;

use caps::Capability;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::SigSet;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::{Answer, Ask, Question};
use crate::sys::handover::Channel;
use crate::sys::netlink::Netlink;
use crate::sys::rules::Rule;
use crate::sys::{output, rights};

/// Main processes at the same time: one that serves, and those that drain after upgrades.
const CHANNELS_MAX: usize = 64;

/// The whole life of the process, from `weir keeper --returns` to its end.
pub fn main() -> ExitCode {
    let stdin = io::stdin();
    if !matches!(getsockopt(&stdin.as_fd(), sockopt::SockType), Ok(SockType::SeqPacket)) {
        output::last_words("weir keeper: is started by weir run, not by hand");
        return ExitCode::from(2);
    }
    // A signal to the group is for the main process, whose end is what ends us.
    let _ = nix::unistd::setsid();
    let _ = SigSet::all().thread_block();
    let _ = nix::sys::prctl::set_name(c"weir-returns");
    let problem = match rights::keep_only(&[Capability::CAP_NET_ADMIN]) {
        Err(why) => Some(format!("cannot set its capabilities: {why}")),
        Ok(missing) if !missing.is_empty() => Some(format!(
            "client_address: keep takes {missing} and CAP_NET_RAW: start weir as root or give the service \
             AmbientCapabilities=CAP_NET_ADMIN CAP_NET_RAW"
        )),
        Ok(_) => None,
    };
    let served = Channel::inherited(0).and_then(|channel| {
        let mut process = Process {
            netlink: Netlink::open()?,
            table: None,
            problem,
            mains: vec![Main {
                channel,
                needs: BTreeSet::new(),
            }],
        };
        process.serve()
    });
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::last_words(&format!("weir keeper: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// A main process.
struct Main {
    channel: Channel,
    needs: BTreeSet<Rule>,
}

struct Process {
    netlink: Netlink,
    table: Option<u32>,
    /// Why it is of no use, if so.
    problem: Option<String>,
    mains: Vec<Main>,
}

impl Process {
    fn serve(&mut self) -> io::Result<()> {
        while !self.mains.is_empty() {
            let ready: Vec<bool> = {
                let fds = self.mains.iter();
                let mut fds: Vec<PollFd> = fds
                    .map(|main| PollFd::new(main.channel.as_fd(), PollFlags::POLLIN))
                    .collect();
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) | Err(nix::errno::Errno::EINTR) => {}
                    Err(error) => return Err(error.into()),
                }
                fds.iter().map(|fd| fd.any().unwrap_or(true)).collect()
            };
            // From behind: one that is gone leaves the others where they are.
            for ix in (0..ready.len()).rev().filter(|&ix| ready[ix]) {
                if !self.hear(ix) {
                    let gone = self.mains.remove(ix);
                    self.remove(&gone.needs)?;
                }
            }
        }
        match self.table {
            Some(table) => self.netlink.deliver_all(table, false),
            None => Ok(()),
        }
    }

    /// Takes one message of a main process; false = it is gone.
    fn hear(&mut self, ix: usize) -> bool {
        let message = match self.mains[ix].channel.try_receive() {
            Ok(Some(message)) => message,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Ok(None) | Err(_) => return false,
        };
        // One that says what nobody understands is of another version, or not a weir.
        let Ok(Question { number, ask }) = serde_json::from_slice(&message.bytes) else {
            return false;
        };
        let outcome = match ask {
            Ask::Join => {
                self.join(message.descriptors);
                return true;
            }
            ask => self.obey(ix, ask),
        };
        let answer = Answer {
            number,
            problem: outcome.err(),
        };
        // A main process that does not read is one that will be gone, or asks again.
        let _ = serde_json::to_vec(&answer).map(|bytes| self.mains[ix].channel.send(&bytes, &[]));
        true
    }

    fn join(&mut self, descriptors: Vec<OwnedFd>) {
        for descriptor in descriptors {
            if self.mains.len() < CHANNELS_MAX {
                self.mains.push(Main {
                    channel: descriptor.into(),
                    needs: BTreeSet::new(),
                });
            }
        }
    }

    fn obey(&mut self, ix: usize, ask: Ask) -> Result<(), String> {
        if let Some(problem) = &self.problem {
            return Err(problem.clone());
        }
        match ask {
            Ask::Begin { table } => {
                let begun = self.netlink.sweep_rules(table);
                let begun = begun.and_then(|_| self.netlink.deliver_all(table, true));
                begun.map_err(|error| format!("the route of table {table} cannot be made: {error}"))?;
                self.table = Some(table);
                Ok(())
            }
            Ask::Add(rules) => {
                let table = self.table.ok_or("it was not begun")?;
                for rule in rules {
                    // Also one that should be there: somebody may have removed it.
                    self.netlink
                        .add_rule(&rule, table)
                        .map_err(|error| format!("the rule `{rule}` cannot be made: {error}"))?;
                    self.mains[ix].needs.insert(rule);
                }
                Ok(())
            }
            Ask::Remove(rules) => {
                self.mains[ix].needs.retain(|rule| !rules.contains(rule));
                self.remove(&rules.into_iter().collect())
                    .map_err(|error| format!("rules cannot be removed: {error}"))
            }
            Ask::Join => Ok(()),
        }
    }

    /// Removes those of these rules that nobody needs.
    fn remove(&mut self, rules: &BTreeSet<Rule>) -> io::Result<()> {
        let Some(table) = self.table else { return Ok(()) };
        for rule in rules {
            if !self.mains.iter().any(|main| main.needs.contains(rule)) {
                self.netlink.remove_rule(rule, table)?;
            }
        }
        Ok(())
    }
}
