//! The thread that waits for the kernel.
//!
//! Every change of an address and every list of them takes the kernel's network configuration lock, which whoever deletes a
//! namespace with a thousand interfaces holds for a quarter of a second. Only this thread waits for it; the keeper goes on
//! reading proofs of life and judging time, and takes the answers as they come.
//!
//! What has waited is judged again when its turn comes: nothing is put on or renewed when the newest proof, which the keeper
//! notes in [`Kernel::proved_until`], has become too old. That holds for a thread that was frozen together with its keeper too.

use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};
use ipnet::IpNet;

use crate::failover::lease::{Op, Refusal};
use crate::sys::netlink::{Address, Edit, Interface, Netlink};
use crate::sys::sched;

/// Changes carried out with one look at the clock.
const TURN_MAX: usize = 64;

/// It needs little, and the keeper's memory is resident.
const STACK_BYTES: usize = 256 * 1024;

/// One operation on an address.
#[derive(Debug, Clone, Copy)]
pub struct Change {
    /// What is answered.
    pub op: Op,
    /// Index of the interface.
    pub interface: u32,
    /// The address with its prefix length.
    pub net: IpNet,
}

enum Work {
    /// With the lease that they give, and when they were asked for.
    Changes(Vec<Change>, Duration, Duration),
    Sweep(u32, IpNet),
    Accept(IpAddr, bool),
    Addresses,
    Interfaces,
}

/// What the thread answers, in the order of what it was asked.
pub enum News {
    /// An operation has ended.
    Did(Op, Instant, Result<(), Refusal>),
    /// Somebody's leftover was removed.
    Swept(u32, IpNet),
    /// [`Kernel::accept`] has ended.
    Accepted(IpAddr, bool, io::Result<()>),
    /// All addresses.
    Addresses(Vec<Address>),
    /// All interfaces.
    Interfaces(Vec<Interface>),
    /// The kernel does not answer any more.
    Failed(io::Error),
}

/// The keeper's end.
pub struct Kernel {
    work: Sender<Work>,
    news: Receiver<News>,
    bell: UnixStream,
    proved_until: Arc<AtomicU64>,
}

impl Kernel {
    /// Starts the thread.
    pub fn start() -> io::Result<Kernel> {
        let netlink = Netlink::open()?;
        let (bell, ring) = UnixStream::pair()?;
        bell.set_nonblocking(true)?;
        ring.set_nonblocking(true)?;
        // Bounded by what is asked: one operation for each address, one list of each kind.
        let (work, works) = unbounded();
        let (tell, news) = unbounded();
        let proved_until = Arc::new(AtomicU64::new(0));
        let thread = Thread {
            netlink,
            tell,
            ring,
            proved_until: proved_until.clone(),
        };
        std::thread::Builder::new()
            .name("kernel".into())
            .stack_size(STACK_BYTES)
            .spawn(move || thread.run(&works))?;
        Ok(Kernel {
            work,
            news,
            bell,
            proved_until,
        })
    }

    /// Until when, on CLOCK_MONOTONIC, addresses may be put on and renewed.
    pub fn proved_until(&self, until: Duration) {
        self.proved_until.store(until.as_nanos() as u64, Ordering::Release);
    }

    /// Carries these out in their order; each is answered.
    pub fn change(&self, changes: Vec<Change>, lease: Duration) {
        let _ = self.work.send(Work::Changes(changes, lease, sched::monotonic()));
    }

    /// Removes what nobody here has put on.
    pub fn sweep(&self, interface: u32, net: IpNet) {
        let _ = self.work.send(Work::Sweep(interface, net));
    }

    /// Has packets to an address accepted, or no longer; answered.
    pub fn accept(&self, ip: IpAddr, yes: bool) {
        let _ = self.work.send(Work::Accept(ip, yes));
    }

    /// Asks for [`News::Addresses`].
    pub fn addresses(&self) {
        let _ = self.work.send(Work::Addresses);
    }

    /// Asks for [`News::Interfaces`].
    pub fn interfaces(&self) {
        let _ = self.work.send(Work::Interfaces);
    }

    /// Everything answered since the last call.
    pub fn news(&mut self) -> Vec<News> {
        let mut rung = [0; 64];
        while matches!(self.bell.read(&mut rung), Ok(n) if n == rung.len()) {}
        self.news.try_iter().collect()
    }
}

impl AsFd for Kernel {
    /// Readable when there are news.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

struct Thread {
    netlink: Netlink,
    tell: Sender<News>,
    ring: UnixStream,
    proved_until: Arc<AtomicU64>,
}

impl Thread {
    fn run(mut self, works: &Receiver<Work>) {
        sched::urgent_thread();
        for work in works {
            match work {
                Work::Changes(changes, lease, asked) => {
                    for turn in changes.chunks(TURN_MAX) {
                        self.turn(turn, lease, asked);
                    }
                }
                Work::Sweep(interface, net) => {
                    if self.netlink.remove(interface, net).is_ok() {
                        self.say(News::Swept(interface, net));
                    }
                }
                Work::Accept(ip, yes) => {
                    let result = self.netlink.accept(ip, yes);
                    self.say(News::Accepted(ip, yes, result));
                }
                Work::Addresses => {
                    let all = self.netlink.addresses();
                    self.say(all.map_or_else(News::Failed, News::Addresses));
                }
                Work::Interfaces => {
                    let all = self.netlink.interfaces();
                    self.say(all.map_or_else(News::Failed, News::Interfaces));
                }
            }
        }
    }

    fn say(&mut self, news: News) {
        // A bell that is full has been rung; nobody listens when the keeper ends.
        let _ = self.tell.send(news);
        let _ = self.ring.write(&[1]);
    }

    fn turn(&mut self, changes: &[Change], lease: Duration, asked: Duration) {
        let now = sched::monotonic();
        let proved = now.as_nanos() < u128::from(self.proved_until.load(Ordering::Acquire));
        // A renewal that has waited for long may find nothing to renew, and would put it on anew.
        let waited = now.saturating_sub(asked) >= lease / 2;
        let (timely, late): (Vec<&Change>, Vec<&Change>) = changes.iter().partition(|c| match c.op {
            Op::Remove(_) => true,
            Op::Renew(_) => proved && !waited,
            _ => proved,
        });
        for change in late {
            self.say(News::Did(change.op, Instant::now(), Err(Refusal::Stale)));
        }
        let edits: Vec<Edit> = timely
            .iter()
            .map(|c| edit(c, lease, matches!(c.op, Op::Install(_))))
            .collect();
        let mut results = self.netlink.edit(&edits);
        self.adopt(&timely, &mut results, lease);
        let at = Instant::now();
        for (change, result) in timely.iter().zip(results) {
            let result = result.map_err(|e| Refusal::Kernel(e.to_string()));
            self.say(News::Did(change.op, at, result));
        }
    }

    /// What should have been new but is there already is taken over if a weir has left it, and only then.
    fn adopt(&mut self, changes: &[&Change], results: &mut [io::Result<()>], lease: Duration) {
        let there: Vec<usize> = (0..results.len())
            .filter(|n| matches!(&results[*n], Err(e) if e.kind() == io::ErrorKind::AlreadyExists))
            .collect();
        if there.is_empty() {
            return;
        }
        let all = self.netlink.addresses().unwrap_or_default();
        for n in there {
            let change = changes[n];
            let foreign = all.iter().any(|a| a.net.addr() == change.net.addr() && !a.ours);
            results[n] = match all.is_empty() || foreign {
                true => Err(io::Error::other("somebody else has put it on this host")),
                false => self.netlink.edit(&[edit(change, lease, false)]).remove(0),
            };
        }
    }
}

fn edit(change: &Change, lease: Duration, fresh: bool) -> Edit {
    let Change { op, interface, net } = *change;
    match op {
        Op::Remove(_) => Edit::Remove { interface, net },
        _ => Edit::Install {
            interface,
            net,
            lease,
            fresh,
        },
    }
}
