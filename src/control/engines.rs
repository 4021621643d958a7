//! The table of engines: the workers, and those beside them.
//!
//! [`Engine`] says what an engine is. This says in which order engines hear of a change. A further one is a file that implements
//! the trait and a row in `app::engines`.
//!
//! - While another process still serves (an upgrade), the workers know the snapshot and have no sockets, and the others hear of
//!   nothing before [`Engines::take_over`].
//! - An address that goes from the workers to another engine is served there before its sockets close; one that comes back is
//!   bound before the other engine hears of it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::publication::workers::Workers;
use crate::config::{Config, model};
use crate::link::{Endpoint, Engine, EngineOrder, Inherit, PacketFigures, Shared, Shed, StartEngine};
use crate::snapshot::{Owner, Snapshot};

/// How old counters that are kept elsewhere may be.
const COLLECT_EVERY: Duration = Duration::from_secs(1);

/// All engines of this process, the workers among them.
pub struct Engines {
    /// The first one, and the one that has listening sockets.
    pub workers: Workers,
    others: Vec<Arc<dyn Engine>>,
    shared: Arc<Shared>,
    /// Another process serves, and its engines do.
    waiting: bool,
    collected: Option<Instant>,
}

impl Engines {
    /// Starts them. `waiting`: another process carries connections until [`take_over`](Engines::take_over).
    pub fn start(
        workers: Workers,
        others: Vec<StartEngine>,
        shared: &Arc<Shared>,
        inherit: Inherit,
        waiting: bool,
    ) -> io::Result<Engines> {
        let others: io::Result<Vec<_>> = others.into_iter().map(|start| start(shared, inherit)).collect();
        let others = others?;
        shared.set_engines(others.clone());
        Ok(Engines {
            workers,
            others,
            shared: shared.clone(),
            waiting,
            collected: None,
        })
    }

    /// Who carries a listener.
    pub fn owner(&self, listener: &model::Listener) -> Owner {
        let other = self.others.iter().find(|engine| engine.carries(listener));
        other.map_or(Owner::WORKERS, |engine| Owner(engine.name()))
    }

    /// Whether all can do what a configuration asks of them.
    pub fn prepare(&self, config: &Config) -> Result<(), String> {
        self.others.iter().try_for_each(|engine| engine.prepare(config))
    }

    /// All of them act on this snapshot from now on.
    pub fn adopt(&self, snapshot: &Arc<Snapshot>) {
        self.adopt_beside_workers(snapshot);
        self.workers.adopt(snapshot);
    }

    /// All but the workers act on this snapshot from now on.
    pub fn adopt_beside_workers(&self, snapshot: &Arc<Snapshot>) {
        if !self.waiting {
            self.others.iter().for_each(|engine| engine.adopt(snapshot));
        }
    }

    /// From now on this process carries what the one before it did.
    pub fn take_over(&mut self, snapshot: &Arc<Snapshot>) {
        self.waiting = false;
        self.adopt_beside_workers(snapshot);
    }

    /// Tells all of them.
    pub fn obey(&self, order: &EngineOrder) {
        self.workers.obey(order);
        self.others.iter().for_each(|engine| engine.obey(order.clone()));
    }

    /// Ends connections, or has sessions move: of each engine's in proportion to what it has there. The rest is the workers'.
    pub fn shed(&self, shed: Shed) {
        let mut from = 0;
        for engine in &self.others {
            let to = (from + engine.live_at(shed.backend)).min(shed.live);
            if let Some(part) = shed.share(from..to) {
                engine.obey(EngineOrder::Shed(part));
            }
            from = to;
        }
        if let Some(part) = shed.share(from..shed.live) {
            self.workers.obey(&EngineOrder::Shed(part));
        }
    }

    /// Brings all statistics up to date, if they are older than `COLLECT_EVERY`.
    pub fn refresh(&mut self, now: Instant) {
        if self.collected.is_none_or(|at| now >= at + COLLECT_EVERY) {
            self.collect(now);
        }
    }

    /// Brings all statistics up to date.
    pub fn collect(&mut self, now: Instant) {
        self.collected = Some(now);
        self.others.iter().for_each(|engine| engine.collect());
    }

    /// What those count that work on packets.
    pub fn figures(&self) -> Option<PacketFigures> {
        self.others.iter().find_map(|engine| engine.figures())
    }

    /// Takes nothing new. The workers serve what is queued at these addresses first.
    pub fn close(&self, endpoints: &[Endpoint]) {
        self.workers.close(endpoints);
        self.others.iter().for_each(|engine| engine.close());
    }

    /// What the engines of another process need to carry on.
    pub fn hand_over(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let parts = self.others.iter().map(|engine| engine.hand_over());
        Ok(parts.collect::<io::Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// The engines of another process carry on.
    pub fn let_go(&mut self) {
        self.shared.set_engines(Vec::new());
        self.others.drain(..).for_each(|engine| engine.let_go());
    }

    /// Ends all of them.
    pub fn stop(&mut self) {
        self.others.iter().for_each(|engine| engine.obey(EngineOrder::Stop));
        self.workers.stop();
    }
}

#[cfg(test)]
mod tests {
    use crossbeam_channel::{Receiver, Sender, bounded, unbounded};

    use super::*;
    use crate::config;
    use crate::config::model::Protocol;
    use crate::relay::Cause;
    use crate::stats::ListenerStats;

    /// Carries UDP listeners, counts on its own, and notes what it is told.
    #[derive(Debug)]
    struct Fake {
        told: Sender<String>,
        inherited: Option<OwnedFd>,
        stats: Arc<ListenerStats>,
    }

    impl Fake {
        fn note(&self, told: String) {
            let _ = self.told.send(told);
        }
    }

    impl Engine for Fake {
        fn name(&self) -> &'static str {
            "fake"
        }
        fn carries(&self, listener: &model::Listener) -> bool {
            listener.protocol == Protocol::Udp
        }
        fn prepare(&self, config: &Config) -> Result<(), String> {
            match config.listeners.iter().find(|listener| listener.name == "refused") {
                Some(_) => Err("listeners.refused: not with this engine".into()),
                None => Ok(()),
            }
        }
        fn adopt(&self, snapshot: &Arc<Snapshot>) {
            self.note(format!("adopt {}", snapshot.version));
        }
        fn obey(&self, order: EngineOrder) {
            self.note(match order {
                EngineOrder::Shed(shed) => format!("shed {}", shed.count),
                order => format!("{order:?}"),
            });
        }
        fn live_at(&self, backend: u64) -> usize {
            4 * backend as usize
        }
        fn collect(&self) {
            self.stats.shards.kept_elsewhere().bytes_in.set(1000);
            self.note("collect".into());
        }
        fn close(&self) {
            self.note("close".into());
        }
        fn hand_over(&self) -> io::Result<Vec<(String, OwnedFd)>> {
            let own = self.inherited.iter();
            own.map(|fd| Ok(("fake map".into(), fd.try_clone()?))).collect()
        }
        fn let_go(&self) {
            self.note("let go".into());
        }
    }

    fn engines(waiting: bool) -> (Engines, Receiver<String>, Arc<ListenerStats>) {
        let shared = Shared::new(None, bounded(1).0, Instant::now());
        let no_worker = |_, _| Err(io::Error::other("no worker is needed"));
        let workers = Workers::new(shared.clone(), Box::new(no_worker));
        let ((told, heard), stats) = (unbounded(), ListenerStats::new(2));
        let counted = stats.clone();
        let start: StartEngine = Box::new(move |_, inherit| {
            Ok(Arc::new(Fake {
                told,
                inherited: inherit("fake map"),
                stats: counted,
            }))
        });
        let mut inherit = |name: &str| {
            assert_eq!(name, "fake map");
            Some(std::fs::File::open("/dev/null").unwrap().into())
        };
        let engines = Engines::start(workers, vec![start], &shared, &mut inherit, waiting);
        (engines.unwrap(), heard, stats)
    }

    fn snapshot(version: u64) -> Arc<Snapshot> {
        Arc::new(Snapshot {
            version,
            ..Snapshot::default()
        })
    }

    fn parse(name: &str) -> Config {
        let yaml = "listeners: {a: {bind: '127.0.0.1:1', pool: p}, b: {protocol: udp, bind: '127.0.0.1:2', pool: p}}\n\
                    pools: {p: {backends: ['127.0.0.1:3']}}";
        config::parse("weir.yaml", &yaml.replace("b:", &format!("{name}:")))
            .unwrap()
            .config
    }

    #[test]
    fn each_listener_has_one_owner() {
        let (engines, ..) = engines(false);
        let owners = |config: Config| {
            let owners = config.listeners.iter().map(|listener| engines.owner(listener));
            owners.collect::<Vec<_>>()
        };
        assert_eq!(owners(parse("b")), [Owner::WORKERS, Owner("fake")]);
    }

    #[test]
    fn a_configuration_that_an_engine_refuses_is_refused() {
        let (engines, ..) = engines(false);
        assert_eq!(engines.prepare(&parse("b")), Ok(()));
        let refusal = engines.prepare(&parse("refused"));
        assert_eq!(refusal, Err("listeners.refused: not with this engine".into()));
    }

    /// Two engines: the workers, of whom there are none here, and one that notes what it hears and has four of ten connections.
    #[test]
    fn every_engine_is_told_and_what_is_to_go_is_divided() {
        let (mut engines, heard, _) = engines(false);
        engines.adopt(&snapshot(7));
        assert_eq!(engines.shared.snapshot().version, 7, "so do the workers");
        let (reply, answer) = bounded(1);
        engines.obey(&EngineOrder::Sync(reply));
        assert!(answer.try_recv().is_err());
        for (backend, count) in [(1, usize::MAX), (1, 5), (0, 5), (9, 5)] {
            engines.shed(Shed {
                backend,
                protocol: None,
                count,
                live: 10,
                first: 0,
                cause: Cause::Drained,
            });
        }
        engines.close(&[]);
        engines.stop();
        let mut heard = heard.try_iter().filter(|told| !told.starts_with("Sync"));
        let all = format!("shed {}", usize::MAX);
        let expected = ["adopt 7", &all, "shed 2", "shed 5", "close", "Stop"];
        assert!(heard.by_ref().eq(expected), "{:?}", heard.collect::<Vec<_>>());
    }

    /// Seen to fail with `adopt_beside_workers` that does not look at `waiting`.
    #[test]
    fn in_an_upgrade_engines_begin_when_those_before_let_go() {
        let (mut new, heard, _) = engines(true);
        new.adopt(&snapshot(1));
        assert_eq!(heard.try_iter().count(), 0, "another process carries on");
        new.take_over(&snapshot(1));
        new.adopt(&snapshot(2));
        assert!(heard.try_iter().eq(["adopt 1", "adopt 2"]));

        let names: Vec<String> = new.hand_over().unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["fake map"]);
        new.let_go();
        new.adopt(&snapshot(3));
        new.stop();
        assert!(heard.try_iter().eq(["let go"]), "and nothing else");
        assert!(new.shared.engines().is_empty());
    }

    /// A kernel map holds totals: set twice, they count once. It is looked at once a second.
    ///
    /// Seen to fail with `add` in place of `set`.
    #[test]
    fn what_an_engine_keeps_elsewhere_is_set_beside_what_is_counted() {
        let (mut engines, heard, stats) = engines(false);
        stats.shards.of(1).bytes_in.add(11);
        let start = Instant::now();
        for ms in [0, 999, 1000] {
            engines.refresh(start + Duration::from_millis(ms));
        }
        assert!(heard.try_iter().eq(["collect", "collect"]));
        assert_eq!(stats.shards.sum(|shard| &shard.bytes_in), 1011);
    }
}
