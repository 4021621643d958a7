//! Network namespaces: several hosts on one machine.

use std::fs;
use std::net::IpAddr;
use std::process::Command;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{command, run};

const DIRECTORY: &str = "/run/netns";

/// A network namespace with its loopback interface up, deleted when dropped; interfaces in it go with it.
///
/// Names are `weir-PID-NUMBER-ROLE`, so that what a dead run left behind can be told from what a live one uses.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    pub fn new(role: &str) -> Netns {
        static SWEPT: Once = Once::new();
        SWEPT.call_once(sweep);
        let netns = Netns {
            name: format!("weir-{}-{}-{role}", std::process::id(), number()),
        };
        ip(&["netns", "add", &netns.name]);
        netns.ip(&["link", "set", "lo", "up"]);
        netns
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> String {
        format!("{DIRECTORY}/{}", self.name)
    }

    /// A command that will run inside.
    pub fn command(&self, program: &str) -> Command {
        let mut inside = command("nsenter");
        inside.arg(format!("--net={}", self.path())).arg(program);
        inside
    }

    /// Runs `ip` inside.
    #[track_caller]
    pub fn ip(&self, arguments: &[&str]) -> String {
        run(command("ip").args(["-n", &self.name]).args(arguments))
    }

    /// Loads nftables rules inside.
    #[track_caller]
    pub fn nft(&self, rules: &str) -> String {
        run(self.command("nft").arg(rules))
    }

    /// Sets a kernel parameter inside, for example `net.ipv4.ip_forward`.
    #[track_caller]
    pub fn sysctl(&self, key: &str, value: &str) {
        let file = format!("/proc/sys/{}", key.replace('.', "/"));
        self.enter(|| fs::write(&file, value).unwrap_or_else(|error| panic!("{file}: {error}")));
    }

    /// Runs `action` on a thread inside. Sockets made there stay there, whichever thread uses them later.
    pub fn enter<T: Send>(&self, action: impl FnOnce() -> T + Send) -> T {
        let path = self.path();
        std::thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let file = fs::File::open(&path).unwrap();
                setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                action()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // The successor of an upgrade is nobody's child by now.
        let pids = Command::new("ip").args(["netns", "pids", &self.name]).output();
        let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        let pids = pids.unwrap_or_default();
        let pids = pids
            .lines()
            .filter_map(|pid| pid.trim().parse().ok())
            .map(Pid::from_raw);
        for pid in pids.filter(|&pid| pid != Pid::this()) {
            let _ = kill(pid, Signal::SIGKILL);
        }
        let _ = Command::new("ip").args(["netns", "delete", &self.name]).status();
    }
}

/// Connects two namespaces by a veth pair, interface `name` on both sides, with these addresses (`10.0.0.1/24`).
#[track_caller]
pub fn link(name: &str, ends: [(&Netns, &str); 2]) {
    let [(a, a_address), (b, b_address)] = ends;
    ip(&[
        "link", "add", name, "netns", &a.name, "type", "veth", "peer", name, "netns", &b.name,
    ]);
    for (netns, address) in [(a, a_address), (b, b_address)] {
        add_address(netns, name, address);
        netns.ip(&["link", "set", name, "up"]);
    }
}

fn add_address(netns: &Netns, interface: &str, address: &str) {
    // An IPv6 address could not be bound before duplicate address detection has ended.
    let v6: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
    netns.ip(&[&["addr", "add", address, "dev", interface], v6].concat());
}

/// A switch in a namespace of its own.
pub struct Bridge {
    netns: Netns,
}

impl Bridge {
    pub fn new() -> Bridge {
        let netns = Netns::new("bridge");
        netns.ip(&["link", "add", "br0", "type", "bridge"]);
        netns.ip(&["link", "set", "br0", "up"]);
        Bridge { netns }
    }

    /// Plugs a namespace in; it sees interface `eth0` with this address. Returns the name of the bridge's port.
    #[track_caller]
    pub fn plug(&self, host: &Netns, address: &str) -> String {
        let port = format!("p{}", number());
        ip(&[
            "link",
            "add",
            &port,
            "netns",
            &self.netns.name,
            "type",
            "veth",
            "peer",
            "eth0",
            "netns",
            &host.name,
        ]);
        self.netns.ip(&["link", "set", &port, "master", "br0"]);
        self.netns.ip(&["link", "set", &port, "up"]);
        add_address(host, "eth0", address);
        host.ip(&["link", "set", "eth0", "up"]);
        port
    }

    /// Cuts or mends the cable of a port.
    #[track_caller]
    pub fn cable(&self, port: &str, connected: bool) {
        self.netns
            .ip(&["link", "set", port, if connected { "up" } else { "down" }]);
    }

    /// The namespace of the switch itself.
    pub fn netns(&self) -> &Netns {
        &self.netns
    }
}

impl Default for Bridge {
    fn default() -> Self {
        Bridge::new()
    }
}

/// The packets counted so far by the nftables counter `name` of table `inet weir`.
#[track_caller]
pub fn counted(netns: &Netns, name: &str) -> u64 {
    let listing = netns.nft(&format!("list counter inet weir {name}"));
    let packets = listing.split_whitespace().skip_while(|word| *word != "packets").nth(1);
    packets
        .and_then(|number| number.parse().ok())
        .unwrap_or_else(|| panic!("no counter in {listing}"))
}

/// `ADDRESS:PORT` of either family.
pub fn at(ip: &str, port: u16) -> std::net::SocketAddr {
    (ip.parse::<IpAddr>().unwrap(), port).into()
}

fn number() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

#[track_caller]
fn ip(arguments: &[&str]) {
    run(command("ip").args(arguments));
}

/// Removes the namespaces of runs that are dead.
fn sweep() {
    for entry in fs::read_dir(DIRECTORY).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name
            .strip_prefix("weir-")
            .and_then(|rest| rest.split('-').next()?.parse::<u32>().ok());
        if pid.is_some_and(|pid| !fs::exists(format!("/proc/{pid}")).unwrap_or(true)) {
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}
