//! Nodes, each with its machine, its keeper and its kernel, on a virtual clock.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};

use weir::failover::lease::{self, Leases, Op, Output, Report};
use weir::failover::table::Table;
use weir::failover::timers::{Timers, quorum};
use weir::failover::words::{Action, Beat, Effect, Holders, Input, Local, Order, Phase, Rule, Setup, State, Track};

use weir::failover::arbiter::{Answer, Terms};
use weir::failover::words::Arbiter;

use crate::arbiter::{Mail, Store};
use crate::faults::Fault;
use crate::network::{DELAY_MAX, Fate, Network, Pair};

pub const MS: u64 = 1_000;
pub const S: u64 = 1_000_000;

/// Packets that fit into the channel between main process and keeper.
const CHANNEL: usize = 270;
/// Witnesses that are asked by a calm node answer so seldom.
const CALM: u64 = S;

pub fn us(d: Duration) -> u64 {
    d.as_micros() as u64
}

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n.max(1)
    }
    pub fn between(&mut self, a: u64, b: u64) -> u64 {
        a + self.below(b - a + 1)
    }
    pub fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

#[derive(Debug, Clone)]
pub enum ToKeeper {
    Prove(Instant),
    Hold(usize),
    Announce(usize, bool),
    Release(usize),
    Reset,
    Closed,
}

#[derive(Debug, Clone)]
pub enum ToMain {
    Ack,
    Reset,
    Report(Report),
    Beat {
        from: usize,
        from_boot: u64,
        /// When the connection was authenticated.
        since: u64,
        beat: Beat,
    },
    /// The dialer finds the port of a peer closed.
    Refused {
        peer: usize,
        peer_boot: u64,
    },
    Witness {
        ix: usize,
        asked: Instant,
    },
    Link(bool),
    Arbiter(Answer),
}

#[derive(Debug, Clone)]
pub enum Event {
    Step {
        node: usize,
        boot: u64,
    },
    KeeperStep {
        node: usize,
    },
    ToMain {
        node: usize,
        boot: u64,
        what: ToMain,
    },
    ToKeeper {
        node: usize,
        boot: u64,
        what: ToKeeper,
    },
    /// The kernel has done it.
    Did {
        node: usize,
        boot: u64,
        op: Op,
    },
    /// A beat on a connection, which must still be the same when it arrives.
    Arrive {
        to: usize,
        link: u64,
        what: ToMain,
    },
    /// A new connection between two nodes is authenticated.
    Linked {
        a: usize,
        b: usize,
    },
    Lapse {
        node: usize,
        vip: usize,
        lease: u64,
    },
    Fault(Fault),
    Store(Mail),
}

pub struct Node {
    pub table: Option<Table>,
    pub boot: u64,
    pub leases: Leases,
    /// The kernel's addresses: when the lease lapses, and a number that tells renewals apart.
    pub kernel: Vec<Option<(u64, u64)>>,
    pub main_frozen: Option<u64>,
    pub keeper_frozen: bool,
    pub paused: bool,
    pub powered: bool,
    /// Until then the kernel's lock is held by somebody else.
    pub rtnl: u64,
    /// How far this machine's clock is behind.
    pub lag: u64,
    pub main_inbox: VecDeque<ToMain>,
    pub keeper_inbox: VecDeque<ToKeeper>,
    pub to_keeper: usize,
    pub to_main: usize,
    /// What did not fit into the channel.
    pub outbox: VecDeque<ToKeeper>,
    pub next_step: u64,
    pub unacked: Option<u64>,
    pub keeper_bad: bool,
    pub local: Local,
    pub told: Local,
    /// What is tracked: how it is, and what the machine has been told.
    pub tracked: [bool; 2],
    pub told_tracked: [Option<bool>; 2],
    pub boots_seen: Vec<u64>,
    pub heard: Vec<u64>,
    pub next_question: u64,
    /// When the keeper or the machine last stood still or went on again.
    pub stood_still: Option<u64>,
    /// When the address last was in the middle of a planned move.
    pub yielded: Option<u64>,
    pub started: u64,
    pub base: Option<Table>,
    pub setup: usize,
    pub record: Vec<(Instant, Input)>,
    pub actions: usize,
}

/// What is known of one address.
#[derive(Clone, Default)]
pub struct Watch {
    pub overlap_since: Option<u64>,
    pub held: bool,
    pub who: Vec<usize>,
    pub bound: u64,
    pub holder: Option<usize>,
    pub free_since: u64,
}

pub struct World {
    pub seed: u64,
    pub rng: Rng,
    pub zero: Instant,
    pub now: u64,
    pub count: u64,
    pub agenda: BTreeMap<(u64, u64), Event>,
    /// Configurations; the first is what all end with. For each, one setup a node.
    pub setups: Vec<Vec<Setup>>,
    /// Those that some node has had.
    pub used: BTreeSet<usize>,
    pub timers: Timers,
    pub nodes: Vec<Node>,
    pub witnesses: usize,
    pub refusing: Vec<bool>,
    pub network: Network,
    /// Something is tracked.
    pub tracked: bool,
    /// There is an arbiter, and it is strict.
    pub arbiter: bool,
    pub strict: bool,
    pub store: Store,
    pub pairs: Vec<Vec<Pair>>,
    /// What waits in sockets: connection, direction, message.
    pub waiting: Vec<(u64, usize, usize, ToMain)>,
    pub leases: u64,
    pub watches: Vec<Watch>,
    /// Last time at which some nodes could not hear each other.
    pub broken: Option<u64>,
    /// Last time at which the network split in another way than just before.
    pub shifted: Option<u64>,
    pub healed: Option<u64>,
    /// Last time at which a link between some nodes was cut, or carried in one direction only.
    pub cut: Option<u64>,
    /// By then what went wrong, or was put right, must have been dealt with.
    pub held_by: u64,
    pub moved: usize,
    /// How often an address was held by nobody after it had been held.
    pub gaps: usize,
    pub story: Vec<String>,
    pub tell: bool,
    pub failure: Option<String>,
}

#[derive(Clone)]
pub struct Case {
    pub nodes: usize,
    pub witnesses: usize,
    pub preempt: bool,
    pub quorum: u32,
    pub vips: usize,
    pub grouped: bool,
    /// Ports forward late at the first start.
    pub cold: bool,
    /// Some nodes begin with another configuration.
    pub drift: bool,
    /// Something is tracked.
    pub tracked: bool,
    pub arbiter: bool,
    pub strict: bool,
}

impl Case {
    pub fn of(seed: u64) -> Case {
        let (nodes, witnesses) = [(2, 0), (2, 1), (3, 0), (3, 0), (5, 0), (2, 1)][(seed % 6) as usize];
        Case {
            nodes,
            witnesses,
            preempt: !(seed / 6).is_multiple_of(3),
            quorum: quorum(None, nodes, witnesses),
            vips: if (seed / 6) % 5 == 4 { 2 } else { 1 },
            grouped: (seed / 6) % 10 == 4,
            cold: (seed / 6) % 4 == 1,
            drift: (seed / 6) % 4 == 2,
            tracked: (seed / 6) % 3 == 2,
            arbiter: false,
            strict: false,
        }
    }

    /// Two nodes and an arbiter, now and then more voters; every other one strict.
    pub fn arbitrated(seed: u64) -> Case {
        let (nodes, witnesses) = [(2, 0), (2, 0), (2, 0), (2, 0), (3, 0), (2, 1)][(seed / 2 % 6) as usize];
        Case {
            nodes,
            witnesses,
            quorum: quorum(None, nodes, witnesses + 1),
            arbiter: true,
            strict: seed.is_multiple_of(2),
            ..Case::of(seed / 2)
        }
    }
}

/// Something that ranks, and something that must hold.
fn tracks() -> Vec<Track> {
    [("gw", Some(50)), ("uplink", None)]
        .map(|(name, weight)| Track {
            name: name.into(),
            weight,
            skew: Duration::from_millis(200),
        })
        .to_vec()
}

/// The configurations of a world: the right one, one in which each node prefers itself, one with other times, a mixture.
fn setups(case: &Case, timers: Timers, rng: &mut Rng) -> Vec<Vec<Setup>> {
    let n = case.nodes;
    let delay = Duration::from_micros(rng.between(0, 500) * MS);
    let rule = Rule {
        hold: Holders::One,
        prefer: (0..n).collect(),
        preempt: case.preempt,
        preempt_delay: delay,
        requires: vec!["web".into()],
        group: case.grouped.then(|| "both".into()),
    };
    let one = |me: usize, timers: Timers, prefer: Vec<usize>| Setup {
        me,
        names: (0..n).map(|n| format!("n{n}")).collect(),
        witnesses: case.witnesses,
        quorum: case.quorum,
        timers,
        startup_delay: Duration::from_secs(3),
        boot: 1_000_000 * (me as u64 + 1),
        tracks: if case.tracked { tracks() } else { Vec::new() },
        arbiter: case.arbiter.then(|| Arbiter {
            prefix: "/weir".into(),
            place: "/weir".into(),
            terms: Terms::derive(&timers),
            strict: case.strict,
        }),
        vips: vec![Rule { prefer, ..rule.clone() }; case.vips],
    };
    let in_order: Vec<usize> = (0..n).collect();
    let rotated = |by: usize| (0..n).map(|i| (i + by) % n).collect::<Vec<_>>();
    let slow = Timers::derive(timers.beat * 3, timers.dead_after * 4);
    let odd = rng.below(n as u64) as usize;
    let right = (0..n).map(|me| one(me, timers, in_order.clone())).collect();
    let selfish = (0..n).map(|me| one(me, timers, rotated(me))).collect();
    let polite = (0..n).map(|me| one(me, timers, rotated(me + 1))).collect();
    let times = (0..n).map(|me| one(me, if me == odd { slow } else { timers }, in_order.clone()));
    vec![right, selfish, polite, times.collect()]
}

impl World {
    pub fn new(seed: u64, case: &Case, timers: Timers, tell: bool) -> World {
        let mut rng = Rng(seed);
        let n = case.nodes;
        let setups = setups(case, timers, &mut rng);
        let node = |_| Node {
            table: None,
            boot: 0,
            leases: Leases::new(timers, case.vips),
            kernel: vec![None; case.vips],
            main_frozen: None,
            keeper_frozen: false,
            paused: false,
            powered: true,
            rtnl: 0,
            lag: 0,
            main_inbox: VecDeque::new(),
            keeper_inbox: VecDeque::new(),
            to_keeper: 0,
            to_main: 0,
            outbox: VecDeque::new(),
            next_step: 0,
            unacked: None,
            keeper_bad: false,
            local: Local {
                serving: true,
                ..Local::default()
            },
            told: Local::default(),
            tracked: [true; 2],
            told_tracked: [None; 2],
            boots_seen: vec![0; n],
            heard: vec![0; n],
            next_question: 0,
            stood_still: None,
            yielded: None,
            started: 0,
            base: None,
            setup: 0,
            record: Vec::new(),
            actions: 0,
        };
        let mut world = World {
            seed,
            zero: Instant::now(),
            now: 0,
            count: 0,
            agenda: BTreeMap::new(),
            setups,
            used: BTreeSet::from([0]),
            timers,
            nodes: (0..n).map(node).collect(),
            witnesses: case.witnesses,
            refusing: vec![false; case.witnesses],
            network: Network::new(case, &mut rng),
            tracked: case.tracked,
            arbiter: case.arbiter,
            strict: case.strict,
            store: Store::default(),
            pairs: vec![vec![Pair::default(); n]; n],
            waiting: Vec::new(),
            leases: 0,
            watches: vec![Watch::default(); case.vips],
            broken: None,
            shifted: None,
            healed: None,
            cut: None,
            held_by: 0,
            moved: 0,
            gaps: 0,
            story: Vec::new(),
            tell,
            failure: None,
            rng,
        };
        for node in 0..n {
            if case.cold {
                world.network.forwards_at[node] = world.rng.between(0, 2_700 * MS);
            }
            if case.drift {
                world.nodes[node].setup = world.rng.below(world.setups.len() as u64) as usize;
                world.used.insert(world.nodes[node].setup);
            }
        }
        world
    }

    pub fn at(&mut self, when: u64, event: Event) {
        self.count += 1;
        self.agenda.insert((when.max(self.now), self.count), event);
    }

    pub fn note(&mut self, text: impl FnOnce() -> String) {
        if self.tell {
            let line = format!("{:>12.3} ms  {}", self.now as f64 / 1000.0, text());
            self.story.push(line);
        }
    }

    pub fn fail(&mut self, why: String) {
        self.failure.get_or_insert(why);
    }

    pub fn local_now(&self, n: usize) -> Instant {
        self.zero + Duration::from_micros(self.now - self.nodes[n].lag)
    }

    fn setup(&self, n: usize) -> Setup {
        let mut setup = self.setups[self.nodes[n].setup][n].clone();
        setup.boot += self.nodes[n].boot << 40;
        setup
    }

    // ---- the main process ----

    pub fn step(&mut self, n: usize, input: Input) {
        let now = self.local_now(n);
        let mut out = Vec::new();
        let node = &mut self.nodes[n];
        let Some(table) = node.table.as_mut() else {
            return;
        };
        table.step(now, input.clone(), &mut out);
        if node.base.is_some() {
            node.record.push((now, input));
        }
        node.actions += out.len();
        for action in out {
            self.act(n, action);
        }
        self.check_votes(n);
        self.arm(n);
    }

    fn arm(&mut self, n: usize) {
        let node = &self.nodes[n];
        let Some(table) = &node.table else { return };
        let due = us(table.deadline().saturating_duration_since(self.zero)) + node.lag;
        let armed = node.next_step > self.now;
        let tick = us(table.setup().timers.tick);
        // A loaded scheduler wakes us late now and then.
        let late = if self.rng.chance(5) {
            self.rng.between(0, 10 * MS)
        } else {
            self.rng.between(0, 200)
        };
        let when = due.min(self.now + tick) + late;
        if !armed || when < self.nodes[n].next_step {
            self.nodes[n].next_step = when;
            let boot = self.nodes[n].boot;
            self.at(when, Event::Step { node: n, boot });
        }
    }

    fn act(&mut self, n: usize, action: Action) {
        match action {
            Action::Prove if self.nodes[n].keeper_bad => {}
            Action::Prove => {
                let now = self.now;
                self.nodes[n].unacked.get_or_insert(now);
                let at = self.local_now(n);
                self.tell_keeper(n, ToKeeper::Prove(at));
            }
            Action::Hold { vip } => self.tell_keeper(n, ToKeeper::Hold(vip)),
            Action::Announce { vip, insist } => self.tell_keeper(n, ToKeeper::Announce(vip, insist)),
            Action::Release { vip } => self.tell_keeper(n, ToKeeper::Release(vip)),
            Action::Distrust { .. } => self.distrust(n),
            Action::Beat => {
                for to in 0..self.nodes.len() {
                    if to != n {
                        self.send(n, to);
                    }
                }
            }
            Action::Ask(question) => self.ask_store(n, question),
            Action::Transition { vip, from, to, reason } => {
                self.note(|| format!("node {n}, vip {vip}: {} -> {}: {reason:?}", from.word(), to.word()))
            }
        }
    }

    fn distrust(&mut self, n: usize) {
        if !self.nodes[n].keeper_bad {
            self.nodes[n].keeper_bad = true;
            self.nodes[n].outbox.clear();
            self.tell_keeper(n, ToKeeper::Reset);
            self.step(n, Input::Keeper(Err("does not answer".into())));
        }
    }

    /// A socket pair keeps its order, and is full at some time.
    fn tell_keeper(&mut self, n: usize, what: ToKeeper) {
        if self.nodes[n].keeper_bad && !matches!(what, ToKeeper::Reset | ToKeeper::Closed) {
            return;
        }
        if !matches!(what, ToKeeper::Closed) && self.nodes[n].to_keeper >= CHANNEL {
            return self.nodes[n].outbox.push_back(what);
        }
        // The keeper needs a moment for each, mostly in the kernel.
        let node = &mut self.nodes[n];
        node.to_keeper += 1;
        let when = self.now + 100 + 40 * node.to_keeper as u64;
        let boot = node.boot;
        self.at(when, Event::ToKeeper { node: n, boot, what });
    }

    /// What does not fit is lost: the keeper never waits.
    fn tell_main(&mut self, n: usize, what: ToMain) {
        let node = &mut self.nodes[n];
        let from_keeper = matches!(what, ToMain::Ack | ToMain::Reset | ToMain::Report(_));
        if from_keeper {
            if node.to_main >= CHANNEL {
                return;
            }
            node.to_main += 1;
        }
        let when = self.now + 100;
        let boot = node.boot;
        self.at(when, Event::ToMain { node: n, boot, what });
    }

    fn send(&mut self, from: usize, to: usize) {
        let (a, b) = (from.min(to), from.max(to));
        let Some(since) = self.pairs[a][b].since else { return };
        let Some(table) = &self.nodes[from].table else { return };
        let beat = table.beat_to(to);
        if beat.claims.iter().any(|c| matches!(c.phase, Phase::Yielding(_))) {
            self.nodes[from].yielded = Some(self.now);
        }
        let what = ToMain::Beat {
            from,
            from_boot: self.nodes[from].boot,
            since,
            beat,
        };
        let period = us(self.timers.beat);
        let pair = &mut self.pairs[a][b];
        let fate = self.network.send(self.now, from, to, pair, period, &mut self.rng);
        let link = pair.id;
        match fate {
            Fate::Arrives(when) => self.at(when, Event::Arrive { to, link, what }),
            Fate::Waits => self.waiting.push((link, from, to, what)),
        }
    }

    /// As the driver does: time first, so that a freeze is noticed; then what has piled up; then what we see ourselves.
    fn wake(&mut self, n: usize) {
        self.step(n, Input::Tick);
        while let Some(what) = self.nodes[n].main_inbox.pop_front() {
            self.heard(n, what);
        }
        let patience = us(self.setups[self.nodes[n].setup][n].timers.keeper_patience);
        let node = &self.nodes[n];
        if !node.keeper_bad && node.unacked.is_some_and(|at| self.now - at > patience) {
            self.distrust(n);
        }
        while self.nodes[n].to_keeper < CHANNEL
            && let Some(what) = self.nodes[n].outbox.pop_front()
        {
            self.tell_keeper(n, what);
        }
        if self.nodes[n].told != self.nodes[n].local {
            let local = self.nodes[n].local.clone();
            self.nodes[n].told = local.clone();
            self.step(n, Input::Local(local));
        }
        for ix in 0..2 {
            let holds = self.nodes[n].tracked[ix];
            if self.nodes[n].told_tracked[ix].replace(holds) != Some(holds) {
                self.step(n, Input::Track { ix, holds });
            }
        }
        self.dial(n);
        self.question(n);
    }

    /// Witnesses are asked as in `control::election::witness`.
    fn question(&mut self, n: usize) {
        let Some(table) = &self.nodes[n].table else { return };
        let period = match table.calm() {
            true => CALM,
            false => us(table.setup().timers.dead_after) / 5,
        };
        let due = self.nodes[n].next_question.min(self.now + period);
        self.nodes[n].next_question = due;
        if self.now < due {
            return;
        }
        self.nodes[n].next_question = self.now + period;
        let asked = self.local_now(n);
        for ix in 0..self.witnesses {
            let there = self.nodes.len() + ix;
            // One in fifty is refused: a full queue, a limit on connections.
            if self.network.both_ways(self.now, n, there) && !self.refusing[ix] && !self.rng.chance(2) {
                let when = self.now + self.rng.between(100, 2 * DELAY_MAX);
                let boot = self.nodes[n].boot;
                let what = ToMain::Witness { ix, asked };
                self.at(when, Event::ToMain { node: n, boot, what });
            }
        }
    }

    /// The lesser of two nodes dials once a beat when there is no connection, or a silent one.
    fn dial(&mut self, n: usize) {
        let beat = us(self.timers.beat);
        for other in 0..self.nodes.len() {
            if other == n {
                continue;
            }
            let (a, b) = (n.min(other), n.max(other));
            let reachable = self.network.both_ways(self.now, a, b);
            let linked = self.pairs[a][b].since.is_some();
            // A process that starts asks whether the others' ports are open at all.
            let asks = !linked && (n == a || self.now < self.nodes[n].started + 3 * S);
            let has_process = self.nodes[other].table.is_some();
            if asks && reachable && !has_process && self.nodes[other].powered && !self.nodes[other].paused {
                let what = ToMain::Refused {
                    peer: other,
                    peer_boot: self.nodes[other].boot,
                };
                if self.now >= self.pairs[a][b].next_dial {
                    self.pairs[a][b].next_dial = self.now + beat;
                    self.tell_main(n, what);
                }
                continue;
            }
            if n != a || self.now < self.pairs[a][b].next_dial {
                continue;
            }
            self.pairs[a][b].next_dial = self.now + beat;
            let silent = self.now - self.nodes[n].heard[other] > 3 * beat;
            let silent = silent || self.nodes[n].table.as_ref().is_some_and(|t| t.unheard_by(other));
            if (!linked || silent) && reachable && self.runs(other) && !self.pairs[a][b].dialling {
                self.pairs[a][b].dialling = true;
                let when = self.now + self.rng.between(200, 3 * DELAY_MAX);
                self.at(when, Event::Linked { a, b });
            }
        }
    }

    fn linked(&mut self, a: usize, b: usize) {
        self.pairs[a][b].dialling = false;
        if !self.network.both_ways(self.now, a, b) || !self.runs(a) || !self.runs(b) {
            return;
        }
        self.count += 1;
        let (now, count) = (self.now, self.count);
        let pair = &mut self.pairs[a][b];
        *pair = Pair {
            id: count,
            // Its challenge is about as old as a handshake takes.
            since: Some(now - 2 * DELAY_MAX.min(now / 2)),
            next_dial: pair.next_dial,
            ..Pair::default()
        };
        self.send(a, b);
        self.send(b, a);
    }

    fn heard(&mut self, n: usize, what: ToMain) {
        let done = |vip, effect, result| Input::Done { vip, effect, result };
        match what {
            ToMain::Beat {
                from,
                from_boot,
                since,
                beat,
            } => {
                let now = self.now;
                self.nodes[n].heard[from] = now;
                let seen = &mut self.nodes[n].boots_seen[from];
                if from_boot < *seen {
                    return;
                }
                if std::mem::replace(seen, from_boot) < from_boot {
                    self.step(n, Input::Gone { node: from });
                }
                let age_max = Duration::from_micros(now - since);
                self.step(n, Input::Beat { from, beat, age_max });
            }
            ToMain::Refused { peer, peer_boot } => {
                let linked = self.pairs[n.min(peer)][n.max(peer)].since.is_some();
                if !linked && self.nodes[n].boots_seen[peer] <= peer_boot {
                    self.step(n, Input::Gone { node: peer });
                }
            }
            ToMain::Witness { ix, asked } => {
                let asked = self.local_now(n).saturating_duration_since(asked);
                self.step(n, Input::Witness { ix, asked });
            }
            ToMain::Arbiter(answer) => self.arbiter_says(n, answer),
            ToMain::Link(up) => {
                for vip in 0..self.watches.len() {
                    self.step(n, Input::Link { vip, up });
                }
            }
            ToMain::Reset => {
                self.nodes[n].keeper_bad = false;
                self.nodes[n].unacked = None;
                self.step(n, Input::Keeper(Ok(())));
            }
            // Answers to what was asked before the reset mean nothing any more.
            ToMain::Ack | ToMain::Report(_) if self.nodes[n].keeper_bad => {}
            ToMain::Ack => self.nodes[n].unacked = None,
            ToMain::Report(report) => {
                let input = match report {
                    Report::Held(vip) => done(vip, Effect::Hold, Ok(())),
                    Report::Failed(vip, why) => done(vip, Effect::Hold, Err(why)),
                    Report::Released(vip) => done(vip, Effect::Release, Ok(())),
                    Report::Lost(vip, why) => Input::Lost { vip, why },
                    Report::Expired(vip) => Input::Expired { vip },
                };
                self.step(n, input);
            }
        }
    }

    pub fn runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.table.is_some() && node.main_frozen.is_none() && !node.paused
    }

    fn deliver(&mut self, n: usize, what: ToMain) {
        if self.runs(n) {
            self.heard(n, what);
        } else if self.nodes[n].table.is_some() {
            self.nodes[n].main_inbox.push_back(what);
        }
    }

    // ---- the keeper and the kernel ----

    pub fn keeper_runs(&self, n: usize) -> bool {
        let node = &self.nodes[n];
        node.powered && !node.keeper_frozen && !node.paused
    }

    fn keeper(&mut self, n: usize, what: ToKeeper) {
        let input = match what {
            ToKeeper::Prove(at) => {
                self.tell_main(n, ToMain::Ack);
                lease::Input::Proof { at }
            }
            ToKeeper::Hold(vip) => lease::Input::Hold { vip },
            ToKeeper::Release(vip) => lease::Input::Release { vip },
            ToKeeper::Announce(vip, insist) => lease::Input::Announce { vip, insist },
            ToKeeper::Reset => {
                self.tell_main(n, ToMain::Reset);
                lease::Input::Closed
            }
            ToKeeper::Closed => lease::Input::Closed,
        };
        self.keeper_step(n, input);
    }

    fn keeper_step(&mut self, n: usize, input: lease::Input) {
        let now = self.local_now(n);
        let mut queue = VecDeque::from([input]);
        while let Some(input) = queue.pop_front() {
            let mut out = Vec::new();
            self.nodes[n].leases.step(now, input, &mut out);
            for output in out {
                match output {
                    Output::Do(Op::Announce(_)) => {}
                    // The kernel does one after the other, when it gets its lock.
                    Output::Do(op) if self.nodes[n].rtnl > self.now => {
                        let (when, boot) = (self.nodes[n].rtnl, self.nodes[n].boot);
                        self.at(when, Event::Did { node: n, boot, op });
                    }
                    Output::Do(op) => {
                        self.kernel(n, op);
                        queue.push_back(lease::Input::Did { op, result: Ok(()) });
                    }
                    Output::Say(report) => self.tell_main(n, ToMain::Report(report)),
                }
            }
        }
        if let Some(due) = self.nodes[n].leases.deadline() {
            let due = us(due.saturating_duration_since(self.zero)) + self.nodes[n].lag;
            let when = due.max(self.now) + self.rng.between(50, 500);
            self.at(when, Event::KeeperStep { node: n });
        }
    }

    fn kernel(&mut self, n: usize, op: Op) {
        match op {
            Op::Install(vip) | Op::Renew(vip) => {
                self.leases += 1;
                let lease = self.leases;
                let timers = self.setups[self.nodes[n].setup][n].timers;
                let lapse = self.now + us(timers.lease) + self.rng.between(0, 600 * MS);
                self.nodes[n].kernel[vip] = Some((lapse, lease));
                self.at(lapse, Event::Lapse { node: n, vip, lease });
            }
            Op::Remove(vip) => self.nodes[n].kernel[vip] = None,
            _ => {}
        }
    }

    // ---- faults ----

    fn start(&mut self, n: usize) {
        if self.nodes[n].table.is_some() {
            return;
        }
        self.nodes[n].boot += 1;
        let now = self.local_now(n);
        let setup = self.setup(n);
        let vips = self.watches.len();
        let started = self.now;
        for other in (0..self.nodes.len()).filter(|o| *o != n) {
            self.pairs[n.min(other)][n.max(other)].since = None;
        }
        let node = &mut self.nodes[n];
        node.powered = true;
        node.paused = false;
        node.main_frozen = None;
        node.keeper_frozen = false;
        // The new keeper sweeps what its predecessor left.
        node.kernel = vec![None; vips];
        node.leases = Leases::new(setup.timers, vips);
        let table = Table::new(now, setup);
        node.base = Some(table.clone());
        node.table = Some(table);
        node.started = started;
        node.record.clear();
        node.actions = 0;
        node.main_inbox.clear();
        node.keeper_inbox.clear();
        node.outbox.clear();
        (node.to_keeper, node.to_main) = (0, 0);
        node.unacked = None;
        node.keeper_bad = false;
        node.told = Local::default();
        node.told_tracked = [None; 2];
        node.next_step = 0;
        node.next_question = 0;
        node.boots_seen.fill(0);
        let up = !self.network.down.contains(&n);
        self.tell_main(n, ToMain::Link(up));
        self.wake(n);
    }

    fn stop(&mut self, n: usize, power: bool) {
        if self.nodes[n].table.take().is_none() {
            return;
        }
        for other in 0..self.nodes.len() {
            let (a, b) = (n.min(other), n.max(other));
            let reset = !power && other != n && self.pairs[a][b].since.is_some();
            // A machine without power says nothing: its peers' connections look alive.
            if !power {
                self.pairs[a][b].since = None;
            }
            if reset && self.network.both_ways(self.now, a, b) {
                let when = self.now + self.rng.between(100, 2 * DELAY_MAX);
                let what = ToMain::Refused {
                    peer: n,
                    peer_boot: self.nodes[n].boot,
                };
                let boot = self.nodes[other].boot;
                self.at(
                    when,
                    Event::ToMain {
                        node: other,
                        boot,
                        what,
                    },
                );
            }
        }
        if !power {
            self.tell_keeper(n, ToKeeper::Closed);
        }
        let node = &mut self.nodes[n];
        node.main_inbox.clear();
        node.main_frozen = None;
        if power {
            node.powered = false;
            node.kernel.fill(None);
            node.keeper_inbox.clear();
        }
    }

    fn reload(&mut self, n: usize, which: usize) {
        self.nodes[n].setup = which;
        self.used.insert(which);
        if !self.runs(n) {
            return;
        }
        let setup = self.setup(n);
        self.nodes[n].leases.set_timers(setup.timers);
        let Some(old) = &self.nodes[n].table else { return };
        let mut table = Table::new(self.local_now(n), setup);
        let all = |n: usize| (0..n).map(Some).collect::<Vec<_>>();
        let nodes = all(self.nodes.len());
        let tracks = all(self.setups[which][n].tracks.len());
        table.carry(old, &all(self.watches.len()), &nodes, &all(self.witnesses), &tracks);
        let node = &mut self.nodes[n];
        node.base = Some(table.clone());
        node.table = Some(table);
        node.record.clear();
        node.actions = 0;
        self.step(n, Input::Tick);
    }

    pub fn fault(&mut self, fault: Fault) {
        self.note(|| format!("fault: {fault:?}"));
        let unread_link = |n: usize| self.nodes[n].main_inbox.iter().any(|m| matches!(m, ToMain::Link(true)));
        let held_like = match fault {
            // Its link came while it stood still: it hears of that now, and begins anew.
            Fault::Thaw(n) | Fault::Unpause(n, _) if unread_link(n) => Fault::Start(n),
            _ => fault,
        };
        match fault {
            Fault::Lose(a, b) => drop(self.network.lost.insert((a, b))),
            Fault::Mute(n) | Fault::Deafen(n) => {
                for other in (0..self.nodes.len()).filter(|o| *o != n) {
                    let lost = if matches!(fault, Fault::Mute(_)) {
                        (n, other)
                    } else {
                        (other, n)
                    };
                    self.network.lost.insert(lost);
                }
            }
            Fault::Hear(n) => self.network.lost.retain(|(a, b)| *a != n && *b != n),
            Fault::Cut(a, b) => self.network.lost.extend([(a, b), (b, a)]),
            Fault::Mend(a, b) => self.network.lost.retain(|lost| ![(a, b), (b, a)].contains(lost)),
            Fault::Partition(mask) => {
                let lately = |at: u64| at + 4 * us(self.timers.dead_after) + S > self.now;
                if self.network.partition.is_some() || self.healed.is_some_and(lately) {
                    self.shifted = Some(self.now);
                }
                self.network.partition = Some(mask);
            }
            Fault::Heal => {
                if self.network.partition.take().is_some() {
                    self.healed = Some(self.now);
                }
            }
            Fault::LinkDown(n) => {
                self.network.down.insert(n);
                self.tell_main(n, ToMain::Link(false));
            }
            Fault::LinkUp(n, later) => {
                if self.network.down.remove(&n) {
                    self.network.forwards_at[n] = self.now + later;
                    self.tell_main(n, ToMain::Link(true));
                }
            }
            Fault::FreezeMain(n) => {
                let now = self.now;
                self.nodes[n].main_frozen.get_or_insert(now);
            }
            Fault::FreezeKeeper(n) => self.nodes[n].keeper_frozen = true,
            Fault::Thaw(n) => {
                let now = self.now;
                let node = &mut self.nodes[n];
                if std::mem::take(&mut node.keeper_frozen) {
                    node.stood_still = Some(now);
                }
                node.main_frozen = None;
                self.thaw(n);
            }
            Fault::Pause(n) => {
                if self.nodes[n].table.is_some() && !self.nodes[n].paused {
                    self.nodes[n].paused = true;
                    self.nodes[n].stood_still = Some(self.now);
                }
            }
            Fault::Unpause(n, clock_moved) => self.unpause(n, clock_moved),
            Fault::Rtnl(n, length) => self.nodes[n].rtnl = self.now + length,
            Fault::Kill(n) => self.stop(n, false),
            Fault::PowerOff(n) => self.stop(n, true),
            Fault::Start(n) => self.start(n),
            Fault::Track(n, ix, holds) => self.nodes[n].tracked[ix] = holds,
            Fault::Serving(n, yes) => self.nodes[n].local.serving = yes,
            Fault::Pool(n, yes) => {
                self.nodes[n].local.without_backend = if yes { vec![] } else { vec!["web".into()] };
            }
            // An operator's order to a frozen process is not answered, hence not given.
            Fault::Demote(n) if self.runs(n) => self.step(n, Input::Admin(Order::Demote(0))),
            Fault::Allow(n) if self.runs(n) => {
                for vip in 0..self.watches.len() {
                    self.step(n, Input::Admin(Order::Allow(vip)));
                }
            }
            Fault::Demote(_) | Fault::Allow(_) => {}
            Fault::Delete(n) => {
                if self.keeper_runs(n) && self.nodes[n].kernel[0].take().is_some() {
                    self.keeper_step(n, lease::Input::Vanished { vip: 0 });
                }
            }
            Fault::Refuse(w, yes) => self.refusing[w] = yes,
            Fault::Stall(length) => self.store.stalled_until = self.store.stalled_until.max(self.now + length),
            Fault::Leader(pause) => self.new_leader(pause),
            Fault::Outage(down) => self.store.down = down,
            Fault::Reload(n, which) => self.reload(n, which),
            Fault::Upgrade(n) => self.reload(n, self.nodes[n].setup),
        }
        self.held_by = self.held_by.max(self.now + self.until_held(&held_like));
        self.reconnect();
    }

    /// Notes which connections have died, or live again.
    fn reconnect(&mut self) {
        // Given up by the kernel, which was told to after four times `dead_after`.
        let give_up = 4 * us(self.timers.dead_after);
        let mut bursts = Vec::new();
        for a in 0..self.nodes.len() {
            for b in a + 1..self.nodes.len() {
                let open = self.network.both_ways(self.now, a, b);
                let pair = &mut self.pairs[a][b];
                match (open, pair.dead_since) {
                    (false, None) => {
                        pair.dead_since = Some(self.now);
                        pair.sent = [0; 2];
                    }
                    (true, Some(since)) => {
                        pair.dead_since = None;
                        if self.now - since < give_up {
                            bursts.push((pair.id, a, b, self.now - since));
                        } else {
                            pair.since = None;
                            pair.id = 0;
                        }
                    }
                    _ => {}
                }
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for (id, a, b, outage) in bursts {
            // Retransmissions back off: the next one comes after up to as long as the outage was.
            let when = self.now + self.rng.between(MS, outage.clamp(2 * MS, 800 * MS));
            self.pairs[a][b].last = [when; 2];
            for (link, _, to, what) in waiting.iter().filter(|(link, ..)| *link == id) {
                let (to, link, what) = (*to, *link, what.clone());
                self.at(when, Event::Arrive { to, link, what });
            }
        }
        let dead = |link: u64| {
            self.pairs
                .iter()
                .flatten()
                .any(|p| p.id == link && p.dead_since.is_some())
        };
        self.waiting = waiting.into_iter().filter(|(link, ..)| dead(*link)).collect();
    }

    fn unpause(&mut self, n: usize, clock_moved: bool) {
        if !std::mem::take(&mut self.nodes[n].paused) {
            return;
        }
        let since = self.nodes[n].stood_still.replace(self.now);
        let pause = self.now - since.unwrap_or(self.now);
        if !clock_moved {
            self.nodes[n].lag += pause;
        }
        for vip in 0..self.watches.len() {
            if let Some((lapse, lease)) = self.nodes[n].kernel[vip] {
                let lapse = if clock_moved { lapse } else { lapse + pause };
                self.nodes[n].kernel[vip] = Some((lapse, lease));
                self.at(lapse, Event::Lapse { node: n, vip, lease });
            }
        }
        self.thaw(n);
    }

    fn thaw(&mut self, n: usize) {
        if self.keeper_runs(n) {
            // Time first here too.
            self.keeper_step(n, lease::Input::Tick);
            while let Some(what) = self.nodes[n].keeper_inbox.pop_front() {
                self.nodes[n].to_keeper = self.nodes[n].to_keeper.saturating_sub(1);
                self.keeper(n, what);
            }
        }
        if self.runs(n) {
            self.wake(n);
        }
    }

    // ---- the run ----

    pub fn dispatch(&mut self, event: Event) {
        match event {
            Event::Step { node, boot } => {
                let due = self.nodes[node].next_step <= self.now;
                if self.nodes[node].boot == boot && due && self.runs(node) {
                    self.wake(node);
                }
            }
            Event::KeeperStep { node } => {
                let now = self.local_now(node);
                let due = self.nodes[node].leases.deadline();
                if self.keeper_runs(node) && due.is_some_and(|at| at <= now) {
                    self.keeper_step(node, lease::Input::Tick);
                }
            }
            Event::Did { node, boot, op } => {
                if self.nodes[node].boot == boot && self.nodes[node].powered {
                    self.kernel(node, op);
                    self.keeper_step(node, lease::Input::Did { op, result: Ok(()) });
                }
            }
            Event::Arrive { to, link, what } => {
                let ToMain::Beat { from, .. } = &what else {
                    unreachable!("only beats go over connections")
                };
                if self.pairs[to.min(*from)][to.max(*from)].id == link {
                    self.deliver(to, what);
                }
            }
            Event::Linked { a, b } => self.linked(a, b),
            Event::ToMain { node, boot, what } => {
                if self.nodes[node].boot == boot {
                    if matches!(what, ToMain::Ack | ToMain::Reset | ToMain::Report(_)) {
                        self.nodes[node].to_main = self.nodes[node].to_main.saturating_sub(1);
                    }
                    self.deliver(node, what);
                }
            }
            Event::ToKeeper { node, boot, what } => {
                if self.nodes[node].boot == boot && self.nodes[node].powered {
                    if self.keeper_runs(node) {
                        self.nodes[node].to_keeper = self.nodes[node].to_keeper.saturating_sub(1);
                        self.keeper(node, what);
                    } else {
                        self.nodes[node].keeper_inbox.push_back(what);
                    }
                }
            }
            Event::Lapse { node, vip, lease } => {
                let n = &mut self.nodes[node];
                let due = n.kernel[vip].is_some_and(|(at, id)| id == lease && at <= self.now);
                if due && !n.paused {
                    n.kernel[vip] = None;
                }
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Store(mail) => self.store(mail),
        }
    }

    pub fn run_until(&mut self, end: u64) {
        while self.failure.is_none() {
            match self.agenda.first_key_value() {
                Some(((when, _), _)) if *when <= end => {}
                _ => break,
            }
            let ((when, _), event) = self.agenda.pop_first().unwrap();
            self.now = when;
            // Ports begin to forward by themselves.
            if self.network.forwards_at.iter().any(|at| *at > 0) {
                for n in 0..self.network.forwards_at.len() {
                    if self.network.forwards_at[n] != 0 && self.network.forwards_at[n] <= self.now {
                        self.network.forwards_at[n] = 0;
                        self.held_by = self.held_by.max(self.now + self.until_held(&Fault::Start(n)));
                        self.note(|| format!("the port of {n} forwards"));
                        self.reconnect();
                    }
                }
            }
            self.dispatch(event);
            self.observe();
        }
        if self.failure.is_none() {
            self.now = end;
        }
    }

    pub fn check_replay(&mut self, n: usize) {
        let node = &self.nodes[n];
        let (Some(base), Some(table)) = (&node.base, &node.table) else {
            return;
        };
        let mut again = base.clone();
        let mut actions = Vec::new();
        for (now, input) in &node.record {
            again.step(*now, input.clone(), &mut actions);
        }
        if actions.len() != node.actions || again.claims() != table.claims() {
            self.fail(format!("node {n}: its inputs replay differently"));
        }
    }

    pub fn state(&self, n: usize, vip: usize) -> Option<State> {
        self.nodes[n].table.as_ref().map(|t| t.vip(vip).state)
    }
}
