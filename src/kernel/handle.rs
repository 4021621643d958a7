//! The main process's end: a helper of its own, or one that a process before it has left, and the maps.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::core::HOST_ADDRESSES_MAX;
use super::guards;
use super::helper::{FromHelper, SUBCOMMAND, ToHelper, Wishes};
use super::maps::Maps;
use super::program::{Injected, NAMES, Sizes, digest};
use crate::config::Config;
use crate::config::model::{self, BackendAddress, Balance, Engine, FLOWS_AUTO, KernelMode};
use crate::link::Inherit;
use crate::sys::handover::Channel;
use crate::sys::ways;

/// How long a helper may take to load the program.
const PATIENCE: Duration = Duration::from_secs(20);

/// Frames in a message, which is at most [`MESSAGE_MAX`](crate::sys::handover::MESSAGE_MAX) bytes long.
const INJECTED_AT_ONCE: usize = 200;

/// A helper and the maps that it has made.
#[derive(Debug)]
pub struct Attached {
    /// To the helper. Its end is what tells the helper that this process has gone.
    channel: Channel,
    /// What it has made.
    pub maps: Maps,
}

/// Room for what a configuration asks for, and for one that asks for twice as much.
pub fn sizes(config: &Config) -> Sizes {
    let needed = needed(config);
    let twice = |n: u32, least: u32| n.saturating_mul(2).next_power_of_two().max(least);
    Sizes {
        flows: needed.flows,
        table: twice(needed.table, 1 << 19),
        services: twice(needed.services, 1 << 12),
        listeners: twice(needed.listeners, 1 << 6),
        backends: twice(needed.backends, 1 << 8),
        networks: twice(needed.networks, 1 << 13),
    }
}

/// What a configuration asks for.
pub fn needed(config: &Config) -> Sizes {
    let carried = || config.listeners.iter().filter(|l| l.engine == Engine::Kernel);
    let ports = |bind: &model::Bind| match bind {
        // Each local address is a service of its own.
        model::Bind::Ip { ip, ports, .. } if ip.is_unspecified() => 16 * ports.len() as u32,
        model::Bind::Ip { ports, .. } => ports.len() as u32,
        model::Bind::Unix(_) => 0,
    };
    let mut pools: Vec<usize> = carried().filter_map(|l| l.pool).collect();
    pools.sort_unstable();
    pools.dedup();
    let pools = || pools.iter().map(|&ix| &config.pools[ix]);
    let slots = |pool: &model::Pool| match pool.policy.balance {
        Balance::SourceHash => super::tables::HASH_SLOTS + pool.backends.len(),
        _ => super::tables::SLOTS_MAX.max(pool.backends.len()),
    };
    // Where backends answer from, and addresses of this host: see Core::publish.
    let with_pool = || carried().filter_map(|listener| Some((listener, &config.pools[listener.pool?])));
    let answering = |(_, pool): &(&model::Listener, &model::Pool)| {
        pool.policy.balance == Balance::SourceHash && pool.policy.kernel_mode == KernelMode::Keep
    };
    let places = |(listener, pool): (&model::Listener, &model::Pool)| {
        let same_port = |b: &&model::Backend| matches!(b.address, BackendAddress::SamePort(_));
        let backends = &pool.backends;
        let same_port = backends.iter().filter(same_port).count() as u32;
        let ports: u32 = listener.bind.iter().map(ports).sum();
        backends.len() as u32 + same_port * ports
    };
    let answers = match with_pool().any(|carried| answering(&carried)) {
        true => HOST_ADDRESSES_MAX as u32 + with_pool().filter(answering).map(places).sum::<u32>(),
        false => 0,
    };
    Sizes {
        flows: config.kernel.flows.unwrap_or(FLOWS_AUTO),
        table: 2 * pools().map(|pool| slots(pool) as u32).sum::<u32>(),
        services: 2 * (carried().flat_map(|l| &l.bind).map(ports).sum::<u32>() + answers),
        listeners: carried().count() as u32,
        backends: pools().map(|pool| pool.backends.len() as u32).sum(),
        networks: 2 * carried().map(|listener| guards::count(listener) as u32).sum::<u32>(),
    }
}

fn wishes(config: &Config) -> Wishes {
    Wishes {
        interfaces: config.kernel.interfaces.clone(),
        grace: config.kernel.restart_grace,
    }
}

/// The name under which a helper of this configuration waits: its own in each network namespace.
fn name(config: &Config) -> String {
    format!("weir-kernel-{:016x}", ways::instance(&config.admin))
}

impl Attached {
    /// Finds the helper that a process before this one has left, or starts one. To be called before there are threads, and while
    /// this process still has the privileges to hand on.
    pub fn find(config: &Config) -> io::Result<Attached> {
        let name = name(config);
        if let Ok(left) = Channel::connect_abstract(&name) {
            let (attached, same) = Attached::receive(left)?;
            if same && attached.fits(config).is_ok() {
                log::info!("kernel engine: goes on with the connections of the process before this one");
                attached.follow(config)?;
                return Ok(attached);
            }
            let why = match same {
                true => "its tables are too small for this configuration",
                false => "it has another program",
            };
            log::warn!("kernel engine: what a process before this one has left ends, {why}");
            attached.tell(&ToHelper::End)?;
        }
        let (ours, theirs) = Channel::pair()?;
        Command::new("/proc/self/exe")
            .arg(SUBCOMMAND)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .spawn()?;
        let load = ToHelper::Load {
            sizes: sizes(config),
            name,
            wishes: wishes(config),
        };
        ours.send(&serde_json::to_vec(&load)?, &[])?;
        let (attached, _) = Attached::receive(ours)?;
        Ok(attached)
    }

    /// Waits until the helper is ready; whether its program is ours.
    fn receive(channel: Channel) -> io::Result<(Attached, bool)> {
        channel.set_timeout(PATIENCE)?;
        let message = channel.receive()?;
        let message = message.ok_or_else(|| io::Error::other("the helper of the kernel engine has ended"))?;
        channel.set_timeout(Duration::ZERO)?;
        match serde_json::from_slice(&message.bytes)? {
            FromHelper::Ready { digest: theirs } => {
                let maps = Maps::new(message.descriptors)?;
                Ok((Attached { channel, maps }, theirs == digest()))
            }
            FromHelper::Failed { reason } => Err(io::Error::other(reason)),
            FromHelper::Says { line } => Err(io::Error::other(line)),
        }
    }

    /// Whether the maps hold what is asked for; else what is too small.
    pub fn fits(&self, config: &Config) -> Result<(), String> {
        fits(&self.maps.sizes(), &needed(config))
    }

    fn tell(&self, what: &ToHelper) -> io::Result<()> {
        self.channel.send(&serde_json::to_vec(what)?, &[])
    }

    /// Has frames come in.
    pub fn inject(&self, frames: &[Injected]) -> io::Result<()> {
        let mut parts = frames.chunks(INJECTED_AT_ONCE);
        parts.try_for_each(|part| self.tell(&ToHelper::Inject(part.to_vec())))
    }

    /// Tells the helper where to attach and how long to wait.
    pub fn follow(&self, config: &Config) -> io::Result<()> {
        self.tell(&ToHelper::Follow(wishes(config)))
    }

    /// Readable when the helper has something to say, or has ended.
    pub fn helper(&self) -> BorrowedFd<'_> {
        self.channel.as_fd()
    }

    /// A line that the helper has for the log; `Err` when it has ended.
    pub fn hear(&self) -> io::Result<Option<String>> {
        match self.channel.try_receive() {
            Ok(Some(message)) => match serde_json::from_slice(&message.bytes)? {
                FromHelper::Says { line } => Ok(Some(line)),
                other => Err(io::Error::other(format!("{other:?} is not expected"))),
            },
            Ok(None) => Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// What a successor needs, under names that say which program it belongs to.
    pub fn duplicate(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let mut parts = vec![(label("helper"), self.channel.as_fd().try_clone_to_owned()?)];
        for (name, fd) in std::iter::zip(NAMES, self.maps.duplicate()?) {
            parts.push((label(name), fd));
        }
        Ok(parts)
    }

    /// What a process before this one has handed over; `None` = it had nothing, or another program.
    pub fn inherit(inherit: Inherit) -> io::Result<Option<Attached>> {
        let Some(channel) = inherit(&label("helper")) else {
            return Ok(None);
        };
        let descriptors: Vec<OwnedFd> = NAMES.iter().filter_map(|name| inherit(&label(name))).collect();
        Ok(Some(Attached {
            channel: channel.into(),
            maps: Maps::new(descriptors)?,
        }))
    }
}

fn label(part: &str) -> String {
    format!("kernel.{}.{part}", digest())
}

/// Whether maps of these sizes hold what is asked for; else what is too small.
pub fn fits(sizes: &Sizes, needed: &Sizes) -> Result<(), String> {
    let rows = [
        ("kernel.flows", sizes.flows == needed.flows),
        (
            "pools",
            sizes.table >= needed.table && sizes.backends >= needed.backends,
        ),
        (
            "listeners",
            sizes.services >= needed.services
                && sizes.listeners >= needed.listeners
                && sizes.networks >= needed.networks,
        ),
    ];
    match rows.iter().find(|(_, fits)| !fits) {
        None => Ok(()),
        Some((key, _)) => Err(format!(
            "{key}: the tables of the kernel engine were made for another size: it needs a restart"
        )),
    }
}
