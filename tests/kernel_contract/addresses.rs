//! What the keeper believes of the kernel's addresses. Each test has a network namespace of its own.

use std::time::{Duration, Instant};

use ipnet::IpNet;
use nix::sched::{CloneFlags, unshare};
use weir::sys::netlink::{Edit, Netlink};

const LEASE: Duration = Duration::from_secs(2);
/// The loopback, in a namespace of its own.
const LO: u32 = 1;

/// A thread with a network of its own; nothing, loudly, without the right to one.
fn alone(test: impl FnOnce(Netlink) + Send + 'static) {
    let thread = std::thread::spawn(|| {
        if unshare(CloneFlags::CLONE_NEWNET).is_err() {
            return eprintln!("skipped: may not make a network namespace");
        }
        test(Netlink::open().unwrap());
    });
    thread.join().unwrap();
}

fn nets(netlink: &mut Netlink) -> Vec<String> {
    let all = netlink.addresses().unwrap();
    all.iter().map(|a| a.net.to_string()).collect()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Demoting the first of several VIPs of a subnet must reckon with the loss of the others.
#[test]
fn the_secondary_addresses_of_a_subnet_go_with_the_primary_one() {
    alone(|mut netlink| {
        promote(false);
        for n in 1..=3 {
            netlink
                .install(LO, net(&format!("10.30.0.{n}/24")), LEASE, true)
                .unwrap();
        }
        let all = netlink.addresses().unwrap();
        let secondary: Vec<bool> = all.iter().map(|a| a.secondary).collect();
        assert_eq!(secondary, [false, true, true]);
        netlink.remove(LO, net("10.30.0.1/24")).unwrap();
        assert_eq!(nets(&mut netlink), Vec::<String>::new());
        promote(true);
        for n in 1..=3 {
            netlink
                .install(LO, net(&format!("10.30.0.{n}/24")), LEASE, true)
                .unwrap();
        }
        netlink.remove(LO, net("10.30.0.1/24")).unwrap();
        assert_eq!(nets(&mut netlink), ["10.30.0.2/24", "10.30.0.3/24"]);
    });
}

/// IPv6 has no secondary addresses.
#[test]
fn ipv6_addresses_go_alone() {
    alone(|mut netlink| {
        for n in 1..=3 {
            netlink.install(LO, net(&format!("fd30::{n}/64")), LEASE, true).unwrap();
        }
        netlink.remove(LO, net("fd30::1/64")).unwrap();
        assert_eq!(nets(&mut netlink).len(), 2);
    });
}

/// Renewing is the same message as putting back: what has gone meanwhile is there again.
#[test]
fn a_renewal_puts_back_what_has_gone() {
    alone(|mut netlink| {
        for address in ["10.30.0.1/24", "fd30::1/64"] {
            netlink.install(LO, net(address), LEASE, false).unwrap();
            assert_eq!(nets(&mut netlink), [address]);
            netlink.remove(LO, net(address)).unwrap();
        }
    });
}

/// Changes that are sent together happen in their order, and each has a result of its own.
#[test]
fn a_batch_is_answered_one_by_one() {
    alone(|mut netlink| {
        let install = |n: u32, fresh| Edit::Install {
            interface: LO,
            net: net(&format!("10.{}.{}.1/32", 40 + n / 200, n % 200)),
            lease: LEASE,
            fresh,
        };
        let mut edits: Vec<Edit> = (0..1_000).map(|n| install(n, true)).collect();
        edits.push(install(7, true));
        edits.push(Edit::Remove {
            interface: LO,
            net: net("10.99.0.1/32"),
        });
        edits.push(install(8, false));
        edits.push(Edit::Install {
            interface: 9_999,
            net: net("10.98.0.1/32"),
            lease: LEASE,
            fresh: true,
        });
        let began = Instant::now();
        let results = netlink.edit(&edits);
        println!("a thousand addresses: {:?}", began.elapsed());
        let bad: Vec<(usize, std::io::ErrorKind)> = results
            .iter()
            .enumerate()
            .filter_map(|(n, r)| Some((n, r.as_ref().err()?.kind())))
            .collect();
        assert_eq!(results.len(), edits.len());
        assert_eq!(bad[0], (1_000, std::io::ErrorKind::AlreadyExists));
        assert_eq!(bad[1], (1_001, std::io::ErrorKind::AddrNotAvailable));
        assert_eq!(bad[2].0, 1_003);
        assert_eq!(bad.len(), 3);
        assert_eq!(nets(&mut netlink).len(), 1_000);
    });
}

fn promote(on: bool) {
    let path = "/proc/sys/net/ipv4/conf/all/promote_secondaries";
    std::fs::write(path, if on { "1" } else { "0" }).unwrap();
}
