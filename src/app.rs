//! Composition root: the only file that knows every module. Starts the parts in an order that fails early and leaves
//! nothing behind, and ends with the exit code.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::Context;
use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR2};
use signal_hook::iterator::Signals;

use crate::config::model::{AccessTarget, BackendAddress, Bind, EtcdEndpoint, EtcdServers, MembersFrom, Protocol};
use crate::config::{self, Config};
use crate::control::election::Helpers;
use crate::control::event_log;
use crate::control::upgrade::Inheritance;
use crate::control::{Capacity, Control, Input, Processes, Source};
use crate::keeper::returns;
use crate::kernel::{Attached, Kernel};
use crate::link::{self, Address, Shared, StartEngine};
use crate::sys::sandbox::{self, Needs, Unlisted};
use crate::sys::ways;
use crate::worker::{Settings, Worker};

/// Configuration refused.
pub const EXIT_CONFIG: u8 = 3;

/// `weir run`: serves until a signal ends it. `sandboxed`: gives up every right that serving does not take.
pub fn run(source: Source, sandboxed: bool) -> ExitCode {
    event_log::start();
    let code = start_and_serve(source, sandboxed);
    event_log::finish();
    code
}

fn start_and_serve(source: Source, sandboxed: bool) -> ExitCode {
    let mut inheritance = match Inheritance::receive() {
        Ok(inheritance) => inheritance,
        Err(error) => {
            event_log::say(&format!("{error:#}"));
            return ExitCode::FAILURE;
        }
    };
    let predecessor = inheritance.successor.clone();
    let refuse = |reason: &str| {
        if let Some(predecessor) = &predecessor {
            predecessor.refuse(reason);
        }
    };
    let config = match source.load() {
        Ok(config) => config,
        Err(errors) => {
            event_log::say(&errors.to_string());
            refuse(&errors.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(reason) = inheritance.check(&config) {
        log::error!("upgrade refused: {reason}");
        refuse(&reason);
        return ExitCode::FAILURE;
    }
    let capacity = match Capacity::claim(&config) {
        Ok(capacity) => capacity,
        Err(refusal) => {
            event_log::say(&refusal.to_string());
            refuse(&refusal.to_string());
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let needs = sandboxed.then(|| needs(&source, &config));
    match launch(source, config, capacity, inheritance, needs).and_then(Running::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
            refuse(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// A balancer with all of its threads started and all of its sockets bound.
pub struct Running {
    control: Control,
    /// Stops it, asks it.
    pub inputs: Sender<Input>,
    /// What it does.
    pub shared: Arc<Shared>,
}

/// Starts everything, in an order that fails before it leaves traces. With `needs`, everything else is given up on the way;
/// that is for processes that do nothing else.
pub fn launch(
    source: Source,
    config: Config,
    capacity: Capacity,
    inheritance: Inheritance,
    needs: Option<Needs>,
) -> anyhow::Result<Running> {
    event_log::start();
    event_log::follow(&config.log);
    // Before there are threads, and while there are privileges to hand on. A successor goes on with its predecessor's.
    let mut processes = Processes::default();
    if let Some(failover) = config.failover.as_ref().filter(|_| !inheritance.is_succession()) {
        let helpers = Helpers::start(failover, source.path());
        processes.failover = Some(helpers.context("cannot start the keeper of the VIPs")?);
    }
    if config.kept_pools().next().is_some() && !inheritance.is_succession() {
        let returns = returns::spawn(returns::table(&config.admin));
        processes.returns = Some(returns.context("cannot start the keeper of return rules")?);
    }
    let carries = |listener: &config::model::Listener| listener.engine == config::model::Engine::Kernel;
    let attached = match inheritance.is_succession() {
        false if config.listeners.iter().any(carries) => {
            Some(Attached::find(&config).context("the kernel engine cannot be started")?)
        }
        _ => None,
    };
    // Made here, because the directory above it is out of reach later.
    if let Some(directory) = needs.as_ref().and_then(|needs| needs.write.first()) {
        let _ = std::fs::create_dir(directory);
    }
    // The keeper and the runner keep their rights, threads must not: between the two.
    for refused in needs.iter().flat_map(sandbox::confine) {
        log::warn!("sandbox: without {refused}");
    }
    event_log::spawn().context("cannot start the event log")?;
    let pipes = capacity.budget.pipes as usize;
    let spawn = move |id, shared| spawn_worker(id, shared, pipes);
    let spawn = Box::new(spawn);
    let (control, inputs) = Control::start(
        source,
        config,
        capacity,
        inheritance,
        spawn,
        engines(attached),
        processes,
    )?;
    watch_signals(inputs.clone())?;
    let shared = control.shared();
    if let Some(needs) = &needs
        && let Err(refused) = sandbox::seal(needs, unlisted())
    {
        log::warn!("sandbox: without a filter of system calls: {refused}");
    }
    Ok(Running {
        control,
        inputs,
        shared,
    })
}

/// What carries connections beside the workers: a row each.
fn engines(attached: Option<Attached>) -> Vec<StartEngine> {
    vec![Box::new(|shared, inherit| Kernel::start(shared, attached, inherit))]
}

impl Running {
    /// Serves until a signal, or somebody with `inputs`, ends it.
    pub fn serve(self) -> anyhow::Result<()> {
        let outcome = self.control.run();
        event_log::finish();
        outcome
    }

    /// Names and addresses of all bound sockets.
    pub fn bound(&self) -> Vec<(String, Address)> {
        self.control
            .bound()
            .map(|(name, local)| (name.to_string(), local.clone()))
            .collect()
    }
}

/// What serving takes of the file system and of privileges.
fn needs(source: &Source, config: &Config) -> Needs {
    let directory = |path: &Path| match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let mut needs = Needs {
        large_buffers: config.listeners.iter().any(|l| l.protocol == Protocol::Udp),
        real_time: config.failover.is_some(),
        foreign_sources: config.kept_pools().next().is_some() || config.marking_pool().is_some(),
        file_events: config.member_files().next().is_some(),
        ..Needs::default()
    };
    // The directory, because editors replace a file by renaming another; and those that links lead through, which are switched
    // to another release.
    let file = match source {
        Source::File(path) => Some(path),
        Source::Flags(_) => None,
    };
    let servers = config
        .failover
        .iter()
        .filter_map(|f| f.arbiter.as_ref())
        .map(|arbiter| &arbiter.servers);
    let files = file
        .into_iter()
        .chain(config.failover.iter().flat_map(|f| &f.secret_files));
    let servers = servers.into_iter().chain(config.member_etcd());
    let files = files.chain(servers.clone().flat_map(EtcdServers::files));
    let files = files.chain(
        config
            .pools
            .iter()
            .filter_map(|pool| pool.policy.health.tls.as_ref()?.ca.as_ref()),
    );
    needs.read = files.flat_map(|path| ways::directories(path)).collect();
    // Names are looked up while it runs.
    let is_name = |from: &MembersFrom| matches!(from, MembersFrom::Dns { .. } | MembersFrom::Srv { .. });
    if config.sources().any(is_name)
        || servers
            .flat_map(|servers| &servers.endpoints)
            .any(EtcdEndpoint::is_name)
    {
        needs.read.extend(sandbox::NAMES.map(PathBuf::from));
    }
    needs
        .read
        .extend(config.member_files().flat_map(|path| ways::awaited(path)));
    let program = std::env::args_os()
        .next()
        .and_then(|name| ways::program(Path::new(&name)));
    needs.run = program.iter().flat_map(|path| ways::directories(path)).collect();
    // First: see `launch`.
    needs.write.push(directory(&config.admin));
    let log = match &config.log.access {
        AccessTarget::File(path) => Some(path),
        _ => None,
    };
    let sockets = config
        .listeners
        .iter()
        .flat_map(|l| &l.bind)
        .filter_map(|bind| match bind {
            Bind::Unix(path) => Some(path),
            Bind::Ip { .. } => None,
        });
    needs
        .write
        .extend(log.into_iter().chain(sockets).flat_map(|path| ways::directories(path)));
    let backends = config.pools.iter().flat_map(|pool| &pool.backends);
    needs.connect = backends
        .filter_map(|backend| match &backend.address {
            BackendAddress::Unix(path) => Some(path.clone()),
            _ => None,
        })
        .collect();
    let engines = config.sources().filter_map(|from| match from {
        MembersFrom::Docker { socket, .. } => Some(socket.clone()),
        _ => None,
    });
    needs.connect.extend(engines);
    needs
}

/// `WEIR_SANDBOX=strict`, for tests: a system call that the filter does not know ends the process.
fn unlisted() -> Unlisted {
    match std::env::var("WEIR_SANDBOX").as_deref() {
        Ok("strict") => Unlisted::Kill,
        _ => Unlisted::Refuse,
    }
}

fn spawn_worker(id: usize, shared: Arc<Shared>, pipes_max: usize) -> io::Result<(link::Worker, JoinHandle<()>)> {
    let settings = Settings {
        pipes_max,
        seed: u64::from(std::process::id()) << 32 | id as u64,
    };
    let (worker, handle) = Worker::new(id, shared, settings)?;
    let thread = std::thread::Builder::new()
        .name(format!("worker-{id}"))
        .spawn(move || {
            if let Err(error) = worker.run() {
                // Without this worker its listening sockets would swallow connections: nothing is served half.
                log::error!("worker {id}: {error}");
                event_log::finish();
                std::process::exit(1);
            }
        })?;
    Ok((handle, thread))
}

fn watch_signals(inputs: Sender<Input>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT, SIGUSR2])?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        for signal in signals.forever() {
            if inputs.send(Input::Signal(signal)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}
