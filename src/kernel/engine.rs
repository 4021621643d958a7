//! The engine as control knows it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use crossbeam_channel::{Sender, unbounded};
use parking_lot::Mutex;

use super::NAME;
use super::core::{Core, homes, locals};
use super::handle::Attached;
use super::task::Task;
use crate::base::LogLimit;
use crate::config::Config;
use crate::config::model::{self, Engine as Carrier};
use crate::link::{Engine, EngineOrder, Inherit, PacketFigures, Shared};
use crate::snapshot::Snapshot;
use crate::sys::netlink::Monitor;

/// A handle on the kernel engine, as control sees it.
#[derive(Debug)]
pub struct Kernel {
    shared: Arc<Shared>,
    attached: Option<Arc<Attached>>,
    core: Arc<Mutex<Core>>,
    thread: Mutex<Option<Worker>>,
}

#[derive(Debug)]
struct Worker {
    orders: Sender<EngineOrder>,
    waker: UnixStream,
    thread: JoinHandle<()>,
}

impl Kernel {
    /// With what [`Attached::find`] has found, or what a process before this one hands over; with neither, this process cannot
    /// carry any listener.
    pub fn start(shared: &Arc<Shared>, found: Option<Attached>, inherit: Inherit) -> io::Result<Arc<dyn Engine>> {
        let attached = match found {
            Some(attached) => Some(attached),
            None => Attached::inherit(inherit)?,
        };
        Ok(Arc::new(Kernel {
            shared: shared.clone(),
            attached: attached.map(Arc::new),
            core: Arc::new(Mutex::new(Core::new())),
            thread: Mutex::new(None),
        }))
    }

    /// Takes the maps over: from now on this process alone works on them.
    fn begin(&self, attached: &Arc<Attached>) -> io::Result<Worker> {
        let maps = &attached.maps;
        maps.set_closed(false);
        maps.begin(RandomState::new().hash_one(0));
        let mut core = self.core.lock();
        core.find_places(maps);
        core.follow_ports(maps);
        core.locals = locals()?;
        drop(core);
        let (orders, receiver) = unbounded();
        let (waker, woken) = UnixStream::pair()?;
        waker.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let task = Task {
            shared: self.shared.clone(),
            attached: attached.clone(),
            core: self.core.clone(),
            orders: receiver,
            woken,
            monitor: Monitor::open()?,
            untold: LogLimit::default(),
        };
        let thread = std::thread::Builder::new()
            .name(NAME.into())
            .spawn(move || task.run())?;
        Ok(Worker { orders, waker, thread })
    }

    fn send(&self, order: EngineOrder) {
        if let Some(worker) = &*self.thread.lock() {
            let _ = worker.orders.send(order);
            worker.wake();
        }
    }

    /// Ends the thread. The maps stay as they are.
    fn end(&self) {
        if let Some(worker) = self.thread.lock().take() {
            let _ = worker.orders.send(EngineOrder::Stop);
            worker.wake();
            let _ = worker.thread.join();
        }
    }
}

impl Worker {
    fn wake(&self) {
        use std::io::Write;
        // Full: it is awake already.
        let _ = (&self.waker).write(&[0]);
    }
}

impl Engine for Kernel {
    fn name(&self) -> &'static str {
        NAME
    }

    fn carries(&self, listener: &model::Listener) -> bool {
        listener.engine == Carrier::Kernel
    }

    fn prepare(&self, config: &Config) -> Result<(), String> {
        let Some(listener) = config.listeners.iter().find(|l| self.carries(l)) else {
            return Ok(());
        };
        match &self.attached {
            None => Err(format!(
                "listeners.{}.engine: the kernel engine is loaded when weir starts, and this process was started without it, or the version before it has another one: it needs a restart",
                listener.name
            )),
            Some(attached) => {
                attached.fits(config)?;
                let said = |error| format!("kernel: {error}");
                let homes = homes(config).map_err(said)?;
                attached.follow(config).map_err(said)?;
                self.core.lock().homes = homes;
                Ok(())
            }
        }
    }

    fn adopt(&self, snapshot: &Arc<Snapshot>) {
        let Some(attached) = &self.attached else { return };
        {
            let mut thread = self.thread.lock();
            if thread.is_none() {
                match self.begin(attached) {
                    Ok(worker) => *thread = Some(worker),
                    Err(error) => return log::error!("kernel engine: {error}"),
                }
            }
        }
        let mut core = self.core.lock();
        core.snapshot = snapshot.clone();
        core.limit(&attached.maps, &self.shared);
        core.publish(&attached.maps);
        core.exchange(&attached.maps, &self.shared);
        let is_shared = core.is_shared;
        drop(core);
        if is_shared && let Some(worker) = &*self.thread.lock() {
            worker.wake();
        }
    }

    fn obey(&self, order: EngineOrder) {
        match order {
            EngineOrder::Stop => self.end(),
            order => self.send(order),
        }
    }

    fn live_at(&self, backend: u64) -> usize {
        let live = |attached: &Arc<Attached>| {
            let place = self.core.lock().backends.find(backend)?;
            Some(attached.maps.active_at(place) as usize)
        };
        self.attached.as_ref().and_then(live).unwrap_or(0)
    }

    fn collect(&self) {
        if let Some(attached) = &self.attached
            && self.thread.lock().is_some()
        {
            self.core.lock().collect(&attached.maps, &self.shared);
        }
    }

    fn figures(&self) -> Option<PacketFigures> {
        self.attached.as_ref().map(|attached| attached.maps.figures())
    }

    fn close(&self) {
        if let Some(attached) = &self.attached {
            attached.maps.set_closed(true);
        }
    }

    fn hand_over(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        self.attached
            .as_ref()
            .map_or(Ok(Vec::new()), |attached| attached.duplicate())
    }

    fn let_go(&self) {
        self.end();
        // What the process still counts is not here any more.
        self.core.lock().forget(&self.shared);
    }
}
