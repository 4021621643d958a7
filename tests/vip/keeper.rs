//! The keeper process alone, driven over its channel by the test in place of a main process.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use weir::failover::timers::Timers;
use weir::keeper::{FromKeeper, KeeperHandle, Kept, Target, ToKeeper};
use weir::sys::netlink::Netlink;
use weir::sys::sched::monotonic;

use crate::hosts::*;
use crate::lock;

struct Keeper {
    child: Child,
    channel: KeeperHandle,
    buffer: Vec<u8>,
    /// Everything it has said, without acknowledgements.
    said: Vec<FromKeeper>,
    proved: Instant,
    unanswered: Option<Instant>,
    /// The longest that a proof waited for its acknowledgement, while the test itself was on time.
    slowest: Duration,
    turned: Instant,
}

impl Keeper {
    fn start(net: &Net, host: &str, kept: &[Kept]) -> Keeper {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &net.ns(host), env!("CARGO_BIN_EXE_weir"), "keeper"])
            .stdin(Stdio::from(theirs))
            .spawn()
            .unwrap();
        let mut channel = KeeperHandle::from_fd(ours);
        let ms = Duration::from_millis;
        // Patient, because the machine under the tests stands still for 150 ms at times.
        let timers = Timers::derive(ms(50), ms(450));
        channel.send(ToKeeper::Setup { timers });
        channel.send(ToKeeper::Watch {
            kept: kept.to_vec(),
            interfaces: Vec::new(),
        });
        let mut keeper = Keeper {
            child,
            channel,
            buffer: Vec::new(),
            said: Vec::new(),
            proved: Instant::now() - ms(100),
            unanswered: None,
            slowest: Duration::ZERO,
            turned: Instant::now(),
        };
        keeper.until("it is ready", |k| k.said.contains(&FromKeeper::Ready { problem: None }));
        keeper.until("it has answered", |k| k.unanswered.is_none());
        keeper.slowest = Duration::ZERO;
        keeper
    }

    fn turn(&mut self) {
        let stalled = std::mem::replace(&mut self.turned, Instant::now()).elapsed();
        if self.proved.elapsed() >= Duration::from_millis(25) {
            self.proved = Instant::now();
            self.unanswered.get_or_insert(self.proved);
            self.channel.send(ToKeeper::Prove { at: monotonic() });
        }
        self.channel.flush().unwrap();
        while let Some(messages) = self.channel.receive(&mut self.buffer).expect("the keeper lives") {
            for message in messages {
                match message {
                    FromKeeper::Ack => {
                        let waited = self.unanswered.take().map_or(Duration::ZERO, |at| at.elapsed());
                        self.slowest = self.slowest.max(waited.saturating_sub(stalled));
                    }
                    other => self.said.push(other),
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }

    /// Proves life until something holds; how long that took, ms.
    fn until(&mut self, what: &str, mut holds: impl FnMut(&Keeper) -> bool) -> f64 {
        let began = Instant::now();
        while !holds(self) {
            let late = began.elapsed() > Duration::from_secs(20);
            assert!(!late, "{what}: not within 20 s; it said {:?}", self.said);
            self.turn();
        }
        began.elapsed().as_secs_f64() * 1000.0
    }

    fn live(&mut self, time: Duration) {
        let began = Instant::now();
        self.until("time passes", |_| began.elapsed() >= time);
    }

    fn hold(&mut self, kept: &[Kept]) -> f64 {
        let before = self.said.len();
        for Kept { target, .. } in kept {
            self.channel.send(ToKeeper::Hold { target: target.clone() });
        }
        let held = |m: &FromKeeper| matches!(m, FromKeeper::Held { .. });
        self.until("all are held", |k| {
            k.said[before..].iter().filter(|m| held(m)).count() == kept.len()
        })
    }

    fn release(&mut self, kept: &[Kept]) -> f64 {
        let before = self.said.len();
        for Kept { target, .. } in kept {
            self.channel.send(ToKeeper::Release { target: target.clone() });
        }
        let released = |m: &FromKeeper| matches!(m, FromKeeper::Released { .. });
        self.until("all are released", |k| {
            k.said[before..].iter().filter(|m| released(m)).count() == kept.len()
        })
    }

    /// What no healthy keeper says of an address that it was asked to hold.
    fn complaints(&self) -> Vec<&FromKeeper> {
        let bad = |m: &&FromKeeper| {
            matches!(
                m,
                FromKeeper::Expired { .. } | FromKeeper::Lost { .. } | FromKeeper::Failed { .. }
            )
        };
        self.said.iter().filter(bad).collect()
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn kept(net: &str) -> Kept {
    Kept {
        target: Target {
            net: net.parse().unwrap(),
            interface: "eth0".into(),
        },
        garp_refresh: None,
        accepted: false,
    }
}

/// How many addresses a host has.
fn count(ns: &str) -> usize {
    in_ns(ns, || Netlink::open().unwrap().addresses().unwrap().len())
}

/// Whoever deletes a namespace full of interfaces holds the kernel's network configuration lock, for instance.
#[test]
fn proofs_do_not_wait_for_a_kernel_that_is_busy() {
    let net = Net::new(&["a", "c"]);
    // Renewed one after the other, so that one is always due soon.
    let all: Vec<Kept> = (0..8).map(|n| kept(&format!("10.9.0.{}/24", 100 + n))).collect();
    let mut keeper = Keeper::start(&net, "a", &all);
    for vip in &all {
        keeper.hold(std::slice::from_ref(vip));
        keeper.live(Duration::from_millis(60));
    }
    let watches = [watch(&net.ns("a"), "10.9.0.100"), watch(&net.ns("a"), "10.9.0.107")];
    for ms in [300, 600, 1_200] {
        let ns = net.ns("c");
        let busy = std::thread::spawn(move || lock::hold(&ns, "eth0", Duration::from_millis(ms)));
        keeper.until("the lock is free again", |_| busy.is_finished());
        keeper.live(Duration::from_millis(1_000));
        busy.join().unwrap();
    }
    assert_within("a proof waited", keeper.slowest.as_secs_f64() * 1000.0, 150.0);
    assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new());
    for watch in watches {
        let changes = watch.finish();
        assert_eq!(changes.len(), 1, "it was always there: {changes:?}");
    }
}

/// What must go goes as soon as the kernel lets it.
#[test]
fn an_end_while_the_kernel_is_busy() {
    let net = Net::new(&["a", "c"]);
    let all = [kept("10.9.0.100/24")];
    let mut keeper = Keeper::start(&net, "a", &all);
    keeper.hold(&all);
    let watch = watch(&net.ns("a"), VIP);
    let ns = net.ns("c");
    let (held, wait) = std::sync::mpsc::channel();
    let busy = std::thread::spawn(move || {
        lock::hold(&ns, "eth0", Duration::from_millis(600));
        held.send(now_ms()).unwrap();
    });
    keeper.live(Duration::from_millis(300));
    // Its main process ends.
    let Keeper { child, channel, .. } = &mut keeper;
    *channel = KeeperHandle::from_fd(std::fs::File::open("/dev/null").unwrap().into());
    let free = wait.recv().unwrap();
    busy.join().unwrap();
    until(1_000, "the keeper ends", || child.try_wait().unwrap().is_some());
    assert_within(
        "gone after the lock was free",
        watch.gone(free - 1_000.0) - 1_000.0,
        100.0,
    );
}

#[test]
fn a_thousand_addresses_come_and_go_within_half_a_second() {
    let net = Net::new(&["a", "c"]);
    let mut all = Vec::new();
    for n in 0..500 {
        // One subnet for all: the worst for the kernel, which has the others go with the first.
        all.push(kept(&format!("10.20.{}.{}/16", n / 250, n % 250 + 1)));
        all.push(kept(&format!("fd20:1111:2222:3333:4444:5555:6666:{n:x}/128")));
    }
    let ns = net.ns("a");
    let before = count(&ns);
    let mut keeper = Keeper::start(&net, "a", &all);
    let took = keeper.hold(&all);
    assert_eq!(count(&ns), before + 1_000);
    for Kept { target, .. } in &all {
        let (target, insist) = (target.clone(), true);
        keeper.channel.send(ToKeeper::Announce { target, insist });
    }
    assert_within("a thousand addresses installed", took, 500.0);
    keeper.live(Duration::from_secs(3));
    assert_eq!(count(&ns), before + 1_000, "renewed");
    assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new());
    // Half of them, with the primary one: the other half stays.
    let (go, stay) = all.split_at(500);
    keeper.release(go);
    keeper.live(Duration::from_millis(200));
    assert_eq!(count(&ns), before + 500);
    let took = keeper.release(stay);
    assert_within("five hundred addresses removed", took, 500.0);
    assert_eq!(count(&ns), before);
    assert_within("a proof waited", keeper.slowest.as_secs_f64() * 1000.0, 100.0);
    assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new());
}

/// With `promote_secondaries` = 0, the kernel's default, the other addresses of a subnet go with its primary one.
#[test]
fn addresses_of_one_subnet_without_a_base_address() {
    let net = Net::new(&["a", "c"]);
    let ns = net.ns("a");
    sh(&format!(
        "ip netns exec {ns} sysctl -qw net.ipv4.conf.all.promote_secondaries=0 net.ipv4.conf.eth0.promote_secondaries=0"
    ));
    let all: Vec<Kept> = (1..=4).map(|n| kept(&format!("10.30.0.{n}/24"))).collect();
    let mut keeper = Keeper::start(&net, "a", &all);
    keeper.hold(&all);
    // Each in turn is the primary one when it goes, and comes back as the last one.
    for round in 0..2 {
        for vip in 0..4 {
            keeper.release(&all[vip..=vip]);
            keeper.live(Duration::from_millis(100));
            for (other, Kept { target, .. }) in all.iter().enumerate() {
                let there = holds(&ns, &target.net.addr().to_string());
                assert_eq!(
                    there,
                    other != vip,
                    "round {round}, {} released: {}",
                    vip + 1,
                    target.net
                );
            }
            keeper.hold(&all[vip..=vip]);
        }
    }
    assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new());
    // Somebody else's base address, as a DHCP client takes it off and puts it on again.
    keeper.release(&all);
    for round in 0..3 {
        sh(&format!("ip -n {ns} addr add 10.30.0.200/24 dev eth0"));
        keeper.hold(&all);
        sh(&format!("ip -n {ns} addr del 10.30.0.200/24 dev eth0"));
        keeper.until("they are back", |_| {
            all.iter().all(|k| holds(&ns, &k.target.net.addr().to_string()))
        });
        keeper.live(Duration::from_millis(100));
        assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new(), "round {round}");
        keeper.release(&all);
    }
}

#[test]
fn an_address_is_announced_again_and_again() {
    let net = Net::new(&["a", "c"]);
    let all = [Kept {
        garp_refresh: Some(Duration::from_millis(100)),
        accepted: false,
        ..kept("10.9.0.100/24")
    }];
    let mut keeper = Keeper::start(&net, "a", &all);
    let mut dump = Command::new("ip")
        .args([
            "netns",
            "exec",
            &net.ns("c"),
            "tcpdump",
            "-i",
            "eth0",
            "-l",
            "-n",
            "-c",
            "20",
        ])
        .args(["arp", "host", VIP])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says so when it listens.
    let mut first = [0; 1];
    std::io::Read::read_exact(dump.stderr.as_mut().unwrap(), &mut first).unwrap();
    keeper.live(Duration::from_millis(300));
    keeper.hold(&all);
    // Two frames each time, nobody has asked, and nobody has told it to announce.
    let took = keeper.until("ten announcements", |_| dump.try_wait().unwrap().is_some());
    assert_within("ten announcements, one every 100 ms", took, 3_000.0);
    let _ = dump.kill();
    assert_eq!(keeper.complaints(), Vec::<&FromKeeper>::new());
}
