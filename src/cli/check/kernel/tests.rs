//! Hosts in, warnings out.

use super::*;
use crate::config;

fn route(to: &str, by: &str) -> Route {
    Route {
        to: to.parse().unwrap(),
        by: by.into(),
        metric: 0,
    }
}

fn ethernet(name: &str) -> Interface {
    Interface {
        name: name.into(),
        ethernet: true,
        ..Interface::default()
    }
}

/// A host with nothing to say about: clients on eth0, backends on eth1.
fn ready() -> Host {
    Host {
        kernel: Some((6, 1)),
        clsact: Some(true),
        jit: Some(true),
        forwarding: [Some(false); 2],
        local_ports: Some(32_768..=60_999),
        interfaces: vec![
            ethernet("eth0"),
            ethernet("eth1"),
            Interface {
                name: "wg0".into(),
                ..Interface::default()
            },
        ],
        addresses: vec![
            ("10.0.0.1".parse().unwrap(), "eth0".into()),
            ("10.0.1.1".parse().unwrap(), "eth1".into()),
        ],
        routes: vec![
            route("0.0.0.0/0", "eth0"),
            route("10.0.0.0/24", "eth0"),
            route("10.0.1.0/24", "eth1"),
            route("10.0.2.0/24", "wg0"),
        ],
        ..Host::default()
    }
}

fn said(more: &str, pool: &str, backend: &str, host: &Host) -> Vec<String> {
    let yaml = format!(
        "{more}\nlisteners: {{web: {{engine: kernel, bind: '10.0.0.100:80', pool: web}}}}\n\
         pools: {{web: {{health: none, {pool} backends: [{{name: a, address: '{backend}'}}]}}}}"
    );
    let config = config::parse("f", &yaml)
        .unwrap_or_else(|errors| panic!("{errors}"))
        .config;
    let found = advice("f", &config, host);
    found
        .iter()
        .map(|warning| format!("{}: {}", warning.path, warning.message))
        .collect()
}

/// Columns: what is unlike a host that is ready, the top of the file, the pool, its backend; a part of each thing said.
#[test]
fn what_stands_in_the_way_is_said() {
    type Row = (
        fn(&mut Host),
        &'static str,
        &'static str,
        &'static str,
        &'static [&'static str],
    );
    const BACKEND: &str = "10.0.1.11:8080";
    const DSR: &str = "ip addr add 10.0.0.100/32 dev lo";
    #[rustfmt::skip]
    let rows: &[Row] = &[
        (|_| (), "", "", BACKEND, &[]),
        // Of the kernel and of privileges.
        (|h| h.kernel = Some((5, 10)), "", "", BACKEND, &["listeners.web.engine: this is Linux 5.10"]),
        (|h| h.kernel = Some((5, 15)), "", "", BACKEND, &[]),
        (|h| h.clsact = Some(false), "", "", BACKEND, &["modprobe -a sch_ingress cls_bpf"]),
        (|h| h.clsact = None, "", "", BACKEND, &[]),
        (|h| { h.clsact = Some(false); h.kernel = Some((6, 6)); }, "", "", BACKEND, &[]),
        (|h| h.missing = vec!["CAP_BPF".into(), "CAP_PERFMON".into()], "", "", BACKEND,
            &["CAP_BPF and CAP_PERFMON missing here"]),
        (|h| h.jit = Some(false), "", "", BACKEND, &["bpf_jit_enable"]),
        // Of interfaces.
        (|_| (), "kernel: {interfaces: [eth0, eth1]}", "", BACKEND, &[]),
        (|_| (), "kernel: {interfaces: [eth0, eth9]}", "", BACKEND, &["no interface `eth9`"]),
        (|_| (), "kernel: {interfaces: [eth0, wg0]}", "", BACKEND, &["`wg0` is not Ethernet"]),
        (|h| h.interfaces[1].lro = true, "", "", BACKEND, &["ethtool -K eth1 lro off"]),
        (|h| h.interfaces[1].lro = true, "kernel: {interfaces: [eth0]}", "", BACKEND, &[]),
        (|h| h.interfaces[1].strict = true, "", "", BACKEND, &["net.ipv4.conf.eth1.rp_filter to 2"]),
        (|h| h.interfaces[0].strict = true, "", "", BACKEND, &[]),
        (|h| { h.interfaces[1].strict = true; h.routes.remove(0); }, "", "", BACKEND, &[]),
        // Of backends.
        (|_| (), "", "", "10.0.1.1:8080", &["10.0.1.1 is an address of this host (`eth1`)"]),
        (|_| (), "", "", "10.0.2.2:8080", &["reached by `wg0`, which is not Ethernet"]),
        (|h| { h.routes.remove(0); }, "", "", "192.0.2.9:80", &["no route to 192.0.2.9"]),
        (|h| h.routes.clear(), "", "", "192.0.2.9:80", &[]),
        (|h| { h.addresses.remove(1); }, "", "", BACKEND, &["set net.ipv4.ip_forward to 1, or give `eth1` an address"]),
        (|h| { h.addresses.remove(1); h.forwarding[0] = Some(true); }, "", "", BACKEND, &[]),
        // Of the addresses that connections come from.
        (|_| (), "", "kernel: {source_addresses: [10.0.1.1, 10.0.0.1]},", BACKEND, &[]),
        (|_| (), "", "kernel: {source_addresses: [10.0.1.1, 10.0.1.7]},", BACKEND,
            &["pools.web.kernel.source_addresses: 10.0.1.7 is no address of this host"]),
        (|h| h.addresses.clear(), "", "kernel: {source_addresses: 10.0.1.7},", BACKEND, &["set net.ipv4.ip_forward to 1"]),
        (|_| (), "failover: {node: a, nodes: {a: '10.0.0.1:7400'}, vips: [{address: 10.0.1.7/32, interface: lo, hold: all}]}",
            "kernel: {source_addresses: [10.0.1.1, 10.0.1.7]},", BACKEND, &[]),
        // Of modes.
        (|h| h.local_ports = Some(1024..=65_535), "", "", BACKEND, &["ip_local_port_range is 1024 65535"]),
        (|h| h.local_ports = Some(40_000..=62_000), "", "", BACKEND, &[]),
        (|h| h.local_ports = Some(5000..=65_535), "", "", BACKEND, &["which leaves 3976 to the engine"]),
        (|h| { h.local_ports = Some(1024..=65_535); h.reserved_ports = vec![20_000..=29_999]; }, "", "", BACKEND, &[]),
        (|h| h.local_ports = of_the_package(), "", "", BACKEND, &[]),
        (|h| h.local_ports = Some(1024..=65_535), "", "kernel: {mode: keep},", BACKEND, &["keep: "]),
        (|h| h.forwarding[0] = Some(true), "", "kernel: {mode: keep},", BACKEND, &[]),
        (|_| (), "", "kernel: {mode: dsr},", "10.0.1.11", &[DSR]),
        (|h| h.forwarding[0] = Some(true), "", "kernel: {mode: dsr},", "10.0.1.11", &[DSR]),
    ];
    for (row, (change, more, pool, backend, parts)) in rows.iter().enumerate() {
        let mut host = ready();
        change(&mut host);
        let said = said(more, pool, backend, &host);
        assert_eq!(said.len(), parts.len(), "row {row}: {said:?}");
        for (line, part) in said.iter().zip(*parts) {
            assert!(line.contains(part), "row {row}: {line}");
        }
    }
}

/// What conf/weir.sysctl sets.
fn of_the_package() -> Option<RangeInclusive<u16>> {
    let text = include_str!("../../../../conf/weir.sysctl");
    let lines = text.lines().filter_map(|line| line.split_once('='));
    let (_, value) = lines
        .into_iter()
        .find(|(key, _)| key.trim() == "net.ipv4.ip_local_port_range")?;
    Some(ports::local(value).unwrap())
}

/// Of a proxy, nothing of this matters.
#[test]
fn nothing_is_said_of_the_proxy_engine() {
    let yaml = "listeners: {web: {bind: '10.0.0.100:80', pool: web}}\npools: {web: {backends: ['10.0.1.11:8080']}}";
    let config = config::parse("f", yaml).unwrap().config;
    let mut host = ready();
    (host.kernel, host.missing, host.jit) = (Some((4, 4)), vec!["CAP_BPF".into()], Some(false));
    assert_eq!(advice("f", &config, &host), []);
}

#[test]
fn what_the_kernel_writes_is_read() {
    for (release, wanted) in [
        ("6.1.0-18-amd64", Some((6, 1))),
        ("5.15.0", Some((5, 15))),
        ("6.18", Some((6, 18))),
        ("", None),
    ] {
        assert_eq!(version(release), wanted, "{release}");
    }
    let little = cfg!(target_endian = "little");
    let (net, mask) = if little {
        ("000200C0", "00FFFFFF")
    } else {
        ("C0000200", "FFFFFF00")
    };
    let text = format!(
        "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t010200C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
         eth1\t{net}\t00000000\t0001\t0\t0\t0\t{mask}\t0\t0\t0\n"
    );
    let first = Route {
        metric: 100,
        ..route("0.0.0.0/0", "eth0")
    };
    assert_eq!(routes_v4(&text), [first, route("192.0.2.0/24", "eth1")]);
    let zero = "0".repeat(32);
    let text = format!(
        "fd000000000000000000000000000000 40 {zero} 00 {zero} 00000100 00000001 00000000 00000001     eth0\n\
         fd000000000000000000000000000001 80 {zero} 00 {zero} 00000000 00000002 00000000 80200001       lo\n\
         {zero} 00 {zero} 00 {zero} ffffffff 00000001 00000000 00200200       lo\n"
    );
    let only = Route {
        metric: 256,
        ..route("fd00::/64", "eth0")
    };
    assert_eq!(routes_v6(&text), [only]);
}

/// The rim, on whatever host the tests run: it must know the loopback interface and its addresses.
#[test]
fn this_host_can_be_read() {
    let host = Host::read(&crate::cli::check::host::here(Path::new("f")));
    assert!(host.kernel.is_some_and(|kernel| kernel >= (3, 0)));
    assert!(host.interface("lo").is_some_and(|lo| !lo.ethernet));
    assert!(
        host.addresses
            .iter()
            .any(|(address, by)| address.is_loopback() && by == "lo")
    );
}

#[test]
fn modules_are_looked_for_in_both_lists() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(modules(directory.path()), None);
    let write = |list: &str, text: &str| fs::write(directory.path().join(list), text).unwrap();
    write("modules.builtin", "kernel/net/sched/sch_ingress.ko\n");
    assert_eq!(modules(directory.path()), Some(false));
    write("modules.dep", "kernel/net/sched/cls_bpf.ko.zst:\n");
    assert_eq!(modules(directory.path()), Some(true));
}
