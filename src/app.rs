//! Composition root: the only file that knows every module. Starts the parts in an order that fails early and leaves
//! nothing behind, and ends with the exit code.

use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::model::{Log, LogFormat};
use crate::config::{Budget, Config};
use crate::control::{Control, Input, Source};
use crate::link::{self, Local, Shared};
use crate::sys::limits;
use crate::worker::{Settings, Worker};

/// Configuration refused.
pub const EXIT_CONFIG: u8 = 3;

static LOG_JSON: AtomicBool = AtomicBool::new(false);

/// `weir run`: serves until a signal ends it.
pub fn run(source: Source) -> ExitCode {
    let config = match source.load() {
        Ok(config) => config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    if let Err(error) = limits::raise_open_files() {
        eprintln!("cannot raise the limit on open files: {error}");
    }
    let workers = config.workers.unwrap_or_else(limits::cpus);
    let budget = Budget::new(&config, limits::open_files(), workers);
    if let Some(refusal) = budget.refusal(&config) {
        eprintln!("limits: {refusal}");
        return ExitCode::from(EXIT_CONFIG);
    }
    match launch(source, config).and_then(Running::serve) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error!("{error:#}");
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

/// Starts everything, in an order that fails before it leaves traces.
pub fn launch(source: Source, config: Config) -> anyhow::Result<Running> {
    start_log();
    set_log(&config.log);
    abort_on_panic();
    if let Err(error) = limits::raise_open_files() {
        log::warn!("cannot raise the limit on open files: {error}");
    }
    let workers = config.workers.unwrap_or_else(limits::cpus);
    let pipes = Budget::new(&config, limits::open_files(), workers).pipes as usize;
    let spawn = move |id, shared| spawn_worker(id, shared, pipes);
    let (control, inputs) = Control::start(source, config, Box::new(spawn))?;
    watch_signals(inputs.clone())?;
    let shared = control.shared();
    Ok(Running {
        control,
        inputs,
        shared,
    })
}

impl Running {
    /// Serves until a signal, or somebody with `inputs`, ends it.
    pub fn serve(self) -> anyhow::Result<()> {
        self.control.run()
    }

    /// Names and addresses of all bound sockets.
    pub fn bound(&self) -> Vec<(String, Local)> {
        self.control
            .bound()
            .map(|(name, local)| (name.to_string(), local.clone()))
            .collect()
    }
}

fn spawn_worker(
    id: usize,
    shared: Arc<Shared>,
    pipes_max: usize,
) -> io::Result<(link::Worker, JoinHandle<()>)> {
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
                std::process::exit(1);
            }
        })?;
    Ok((handle, thread))
}

/// Installs the event log: stderr, text or JSON; level and form follow the configuration.
pub fn start_log() {
    let format = |out: &mut env_logger::fmt::Formatter, record: &log::Record| {
        let time = humantime::format_rfc3339_millis(std::time::SystemTime::now());
        if LOG_JSON.load(Ordering::Relaxed) {
            let line = serde_json::json!({
                "time": time.to_string(),
                "level": record.level().as_str().to_lowercase(),
                "message": record.args().to_string(),
            });
            writeln!(out, "{line}")
        } else {
            let message = record.args().to_string();
            writeln!(
                out,
                "{time} {:<5} {}",
                record.level(),
                message.replace('\n', "\n    ")
            )
        }
    };
    // Our own lines only: libraries have nothing to say to an operator.
    let _ = env_logger::Builder::new()
        .filter_module("weir", log::LevelFilter::Trace)
        .format(format)
        .try_init();
}

/// Follows `log:` of a configuration.
pub fn set_log(log: &Log) {
    log::set_max_level(log.level);
    LOG_JSON.store(log.format == LogFormat::Json, Ordering::Relaxed);
}

/// A panic in any thread ends the process, so that a VIP moves and systemd restarts; never leave a core dead.
fn abort_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}

fn watch_signals(inputs: Sender<Input>) -> anyhow::Result<()> {
    let mut signals = Signals::new([SIGHUP, SIGTERM, SIGINT])?;
    std::thread::Builder::new()
        .name("signals".into())
        .spawn(move || {
            for signal in signals.forever() {
                if inputs.send(Input::Signal(signal)).is_err() {
                    return;
                }
            }
        })?;
    Ok(())
}
