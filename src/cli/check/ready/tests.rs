//! Rows in, warnings out.

use super::*;
use crate::config;

/// A host of whom so much is known: `sysctl NAME`, `unit PROPERTY` or a path, and what it says.
struct Told<'a> {
    descriptors: u64,
    known: &'a [(&'a str, &'a str)],
}

impl Told<'_> {
    fn says(&self, what: &str) -> Option<String> {
        let (_, answer) = self.known.iter().find(|(asked, _)| *asked == what)?;
        Some(answer.to_string())
    }
}

impl Host for Told<'_> {
    fn descriptors(&self) -> u64 {
        self.descriptors
    }
    fn cpus(&self) -> usize {
        2
    }
    fn sysctl(&self, name: &str) -> Option<String> {
        self.says(&format!("sysctl {name}"))
    }
    fn unit(&self, property: &str) -> Option<String> {
        self.says(&format!("unit {property}"))
    }
    fn read(&self, path: &str) -> Option<String> {
        self.says(path)
    }
    /// `road ADDRESS`: an interface, and perhaps the next host, or `no` and why.
    fn road_to(&self, ip: IpAddr) -> Option<Result<Road, String>> {
        let said = self.says(&format!("road {ip}"))?;
        let (interface, rest) = said.split_once(' ').unwrap_or((&said, ""));
        Some(match interface {
            "no" => Err(rest.into()),
            interface => Ok(Road {
                interface: interface.into(),
                gateway: rest.parse().ok(),
            }),
        })
    }
}

/// What is said of a file on a host, less what `known` says of ports in TIME_WAIT.
fn says(text: &str, descriptors: u64, known: &[(&str, &str)]) -> Vec<String> {
    let config = config::parse("f", text).unwrap().config;
    let warnings = warnings("f", &config, &Told { descriptors, known });
    warnings.iter().map(Diagnostic::as_warning).collect()
}

const NONE: [&str; 0] = [];
const REUSED: (&str, &str) = ("sysctl net.ipv4.tcp_tw_reuse", "1");

fn file(more: &str) -> String {
    format!("listeners: {{a: {{bind: '0.0.0.0:81', pool: a}}}}\npools: {{a: {{backends: 10.0.0.1:80}}}}\n{more}")
}

#[test]
fn descriptors_are_those_of_the_service_if_one_runs_the_file() {
    let few = "f: limits.connections: warning: 1024 descriptors carry 355 connections only: raise the limit (LimitNOFILE= in the unit, or ulimit -n)";
    let refused = "f: limits: warning: 20078 descriptors are needed (10000 connections of 2, 0 sessions of 1, 78 for listeners, pipes, probes and a reserve), and 20000 may be opened: raise the limit (LimitNOFILE= in the unit, or ulimit -n), or lower `limits`";
    // limits, descriptors here, of the service, warning
    for (limits, here, unit, expected) in [
        ("{}", 20_000, None, None),
        ("{connections: 9000}", 20_000, None, None),
        ("{connections: 10000}", 20_000, None, Some(refused)),
        ("{connections: 10000}", 20_000, Some("1048576"), None),
        ("{connections: 10000}", 1 << 20, Some("20000"), Some(refused)),
        ("{}", 1024, None, Some(few)),
        ("{}", 1024, Some("1048576"), None),
        ("{}", 1024, Some("infinity"), Some(few)),
    ] {
        let mut known = vec![REUSED];
        known.extend(unit.map(|limit| ("unit LimitNOFILE", limit)));
        let text = file(&format!("limits: {limits}\nworkers: 2"));
        let said = says(&text, here, &known);
        let about: Vec<&str> = said.iter().map(String::as_str).collect();
        let expected: Vec<&str> = expected.into_iter().collect();
        assert_eq!(about, expected, "{limits} {here} {unit:?}");
    }
}

#[test]
fn few_ports_towards_distant_backends_are_warned_about() {
    let text = |backend: &str| {
        format!("listeners: {{a: {{bind: '0.0.0.0:81', pool: a}}}}\npools: {{a: {{backends: '{backend}'}}}}")
    };
    let range = ("sysctl net.ipv4.ip_local_port_range", "32768\t60999");
    assert_eq!(says(&text("10.0.0.1:80"), 20_000, &[REUSED, range]), NONE);
    assert_eq!(says(&text("127.0.0.1:80"), 20_000, &[range]), NONE);
    assert_eq!(says(&text("unix:/run/a"), 20_000, &[range]), NONE);
    for known in [&[range][..], &[], &[("sysctl net.ipv4.tcp_tw_reuse", "2")]] {
        assert_eq!(
            says(&text("10.0.0.1:80"), 20_000, known),
            [
                "f: pools: warning: 28232 local ports, each kept for 60 s after a connection that weir closed first, carry 470 such connections a second to one backend: set net.ipv4.tcp_tw_reuse=1 (conf/weir.sysctl)"
            ]
        );
    }
}

#[test]
fn interfaces_that_are_not_there_are_warned_about() {
    let text = |bind: &str| file("").replace("0.0.0.0:81", bind);
    assert_eq!(says(&text("0.0.0.0:81%lo"), 20_000, &[REUSED]), NONE);
    assert_eq!(
        says(&text("0.0.0.0:81-83%no-such-one"), 20_000, &[REUSED]),
        [
            "f: listeners.a.bind: warning: `0.0.0.0:81-83%no-such-one`: there is no interface `no-such-one` here, and weir does not start without it: make it before weir starts (Requires= and After= of its unit), or leave out `%no-such-one`"
        ]
    );
}

#[test]
fn more_event_loops_than_cpus_are_warned_about() {
    assert_eq!(says(&file("workers: 2"), 20_000, &[REUSED]), NONE);
    assert_eq!(
        says(&file("workers: 3"), 20_000, &[REUSED]),
        ["f: workers: warning: 3 event loops share 2 CPUs: `auto` is faster"]
    );
}

#[test]
fn what_a_host_lacks_is_told_with_the_remedy() {
    const UDP: &str = "listeners: {a: {protocol: udp, bind: '0.0.0.0:5353', pool: a}}\npools: {a: {backends: 10.0.0.1:53, health: {type: none}}}\n";
    let tcp = |more: &str| file(more);
    let udp = |more: &str| format!("{UDP}{more}");
    let most = "listeners: {a: {bind: '0.0.0.0:81', pool: a}}\npools: {a: {backends: [{name: b, address: '10.0.0.1:80', max_connections: 30000}]}}\n";
    let local = most.replace("10.0.0.1", "127.0.0.1");
    let range = ("sysctl net.ipv4.ip_local_port_range", "10240 65535");
    let (count, max) = (
        "sysctl net.netfilter.nf_conntrack_count",
        "sysctl net.netfilter.nf_conntrack_max",
    );
    let unit = ("unit User", "weir");
    let grants = |what| [("unit AmbientCapabilities", what), ("unit CapabilityBoundingSet", what)];
    let (none, admin) = (grants(""), grants("cap_net_admin cap_net_raw"));
    // The file, what is known of the host, and the warning without its end.
    let rows: Vec<(String, Vec<(&str, &str)>, Option<&str>)> = vec![
        (
            most.into(),
            vec![],
            Some(
                "pools.a.backends.b.max_connections: warning: 30000 connections to one address take as many local ports, and there are 28232:",
            ),
        ),
        (most.into(), vec![range], None),
        (local, vec![], None),
        (
            udp("limits: {udp_sessions: 30000}"),
            vec![],
            Some("limits.udp_sessions: warning: each of 30000 sessions takes a local port, and there are 28232:"),
        ),
        (udp("limits: {udp_sessions: 30000}"), vec![range], None),
        (tcp("limits: {udp_sessions: 30000}"), vec![], None),
        (
            tcp(""),
            vec![("sysctl net.core.somaxconn", "128")],
            Some("listeners: warning: 128 connections may wait to be accepted at each address,"),
        ),
        (tcp(""), vec![("sysctl net.core.somaxconn", "4096")], None),
        (
            tcp("").replace("pool: a}", "pool: a, backlog: 5000}"),
            vec![("sysctl net.core.somaxconn", "4096")],
            Some(
                "listeners.a.backlog: warning: the kernel allows 4096 connections to wait at an address, not 5000: raise",
            ),
        ),
        (
            tcp("").replace("pool: a}", "pool: a, backlog: 4096}"),
            vec![("sysctl net.core.somaxconn", "4096")],
            None,
        ),
        (udp(""), vec![("sysctl net.core.somaxconn", "128")], None),
        (
            tcp("limits: {connections: 40000}"),
            vec![(count, "7"), (max, "65536")],
            Some(
                "limits: warning: 40000 connections and 0 sessions take 80000 entries of the packet filter's table, which has 65536",
            ),
        ),
        (
            tcp("limits: {connections: 30000}"),
            vec![(count, "7"), (max, "65536")],
            None,
        ),
        // It is there and nobody uses it.
        (
            tcp("limits: {connections: 40000}"),
            vec![(count, "0"), (max, "65536")],
            None,
        ),
        (tcp("limits: {connections: 40000}"), vec![], None),
        (
            udp(""),
            [&none[..], &[unit, ("sysctl net.core.rmem_max", "212992")]].concat(),
            Some(
                "listeners: warning: UDP listeners ask for buffers of 8388608 bytes and get 212992: raise net.core.rmem_max",
            ),
        ),
        (
            udp(""),
            [&none[..], &[unit, ("sysctl net.core.wmem_max", "212992")]].concat(),
            Some(
                "listeners: warning: UDP listeners ask for buffers of 8388608 bytes and get 212992: raise net.core.wmem_max",
            ),
        ),
        (
            udp(""),
            [&admin[..], &[unit, ("sysctl net.core.rmem_max", "212992")]].concat(),
            None,
        ),
        (
            udp(""),
            vec![
                ("/proc/self/status", "CapPrm:\t0000000000000000"),
                ("sysctl net.core.rmem_max", "212992"),
            ],
            Some("listeners: warning: UDP listeners"),
        ),
        (
            udp(""),
            vec![
                ("/proc/self/status", "CapPrm:\t0000000000001000"),
                ("sysctl net.core.rmem_max", "212992"),
            ],
            None,
        ),
        (udp(""), vec![("sysctl net.core.rmem_max", "212992")], None),
        (
            udp(""),
            [&none[..], &[unit, ("sysctl net.core.rmem_max", "8388608")]].concat(),
            None,
        ),
        (
            tcp("").replace("0.0.0.0:81", "0.0.0.0:8081"),
            [&none[..], &[unit, ("sysctl net.core.rmem_max", "212992")]].concat(),
            None,
        ),
    ];
    for (text, mut known, expected) in rows {
        known.push(REUSED);
        let said = says(&text, 100_000, &known);
        match expected {
            None => assert_eq!(said, NONE, "{text} {known:?}"),
            Some(start) => {
                assert_eq!(said.len(), 1, "{text} {known:?}: {said:?}");
                assert!(said[0].starts_with(&format!("f: {start}")), "{said:?}");
            }
        }
    }
}

#[test]
fn what_the_service_lacks_is_told_with_the_remedy() {
    let low = "listeners: {a: {bind: ['0.0.0.0:81', '0.0.0.0:80'], pool: a}}\npools: {a: {backends: 10.0.0.1:80}}\n";
    let high = low.replace(":81", ":8081").replace("0.0.0.0:80'", "0.0.0.0:8080'");
    let failover = "failover: {node: a, secret_file: /etc/weir/secret, nodes: {a: '10.0.0.1:7400', b: '10.0.0.2:7400'}, vips: [{address: 10.0.0.100/24, interface: eth0}]}\n";
    let with_vips = format!("{high}{failover}");
    let engine = "listeners: {a: {bind: '10.0.0.9:8080', pool: a, engine: kernel}}\npools: {a: {backends: 10.0.0.1:80, health: {type: none}}}\n";
    let service = |user, ambient, bounding| {
        [
            ("unit User", user),
            ("unit AmbientCapabilities", ambient),
            ("unit CapabilityBoundingSet", bounding),
        ]
    };
    let all = "cap_net_bind_service cap_net_admin cap_net_raw cap_bpf cap_perfmon";
    let shipped = "cap_net_bind_service cap_net_admin cap_net_raw";
    let lacks = |key: &str, what: &str, capability: &str| {
        format!(
            "f: {key}: warning: {what} takes {capability}, which weir.service does not give: add it to AmbientCapabilities= and CapabilityBoundingSet= (systemctl edit weir)"
        )
    };
    // The file, the service, the warnings.
    type Rows<'a> = Vec<(&'a str, Vec<(&'a str, &'a str)>, Vec<String>)>;
    let rows: Rows = vec![
        (low, vec![], vec![]),
        (low, service("weir", shipped, shipped).into(), vec![]),
        (
            low,
            service("weir", "", all).into(),
            vec![lacks("listeners.a.bind", "port 81", "cap_net_bind_service")],
        ),
        (
            low,
            service("weir", all, "").into(),
            vec![lacks("listeners.a.bind", "port 81", "cap_net_bind_service")],
        ),
        (low, service("", "", all).into(), vec![]),
        (
            low,
            service("root", "", "").into(),
            vec![lacks("listeners.a.bind", "port 81", "cap_net_bind_service")],
        ),
        (
            low,
            [
                &service("weir", "", "")[..],
                &[("sysctl net.ipv4.ip_unprivileged_port_start", "80")],
            ]
            .concat(),
            vec![],
        ),
        (&high, service("weir", "", "").into(), vec![]),
        (&with_vips, service("weir", shipped, shipped).into(), vec![]),
        (
            &with_vips,
            service("weir", "cap_net_bind_service", shipped).into(),
            vec![
                lacks("failover.vips", "installing addresses", "cap_net_admin"),
                lacks("failover.vips", "announcing addresses", "cap_net_raw"),
            ],
        ),
        (engine, service("weir", all, all).into(), vec![]),
        (
            engine,
            service("weir", shipped, shipped).into(),
            vec![
                lacks("listeners.a.engine", "the kernel engine", "cap_bpf"),
                lacks("listeners.a.engine", "the kernel engine", "cap_perfmon"),
            ],
        ),
    ];
    for (text, mut known, expected) in rows {
        known.push(REUSED);
        assert_eq!(says(text, 100_000, &known), expected, "{text} {known:?}");
    }
}

#[test]
fn a_service_leaves_time_to_stop_and_room_to_write() {
    let late = |text: &str| {
        format!(
            "f: shutdown_grace: warning: connections may finish within {text} when weir stops, and weir.service is killed after 45s: raise TimeoutStopSec= (systemctl edit weir), or lower shutdown_grace"
        )
    };
    let closed = |key: &str, path: &str| {
        format!(
            "f: {key}: warning: weir.service may not write to {path} (ProtectSystem=strict): choose a place below its LogsDirectory= or RuntimeDirectory=, or name the directory in ReadWritePaths= (systemctl edit weir)"
        )
    };
    let strict = [
        ("unit ProtectSystem", "strict"),
        ("unit RuntimeDirectory", "weir"),
        ("unit LogsDirectory", "weir other"),
        ("unit ReadWritePaths", "-/srv/logs"),
    ];
    let stop = |after| vec![("unit TimeoutStopUSec", after)];
    type Rows<'a> = Vec<(&'a str, Vec<(&'a str, &'a str)>, Vec<String>)>;
    let rows: Rows = vec![
        ("shutdown_grace: 30s", stop("45s"), vec![]),
        ("shutdown_grace: 45s", stop("45s"), vec![late("45s")]),
        ("shutdown_grace: 10m", stop("45s"), vec![late("10m")]),
        ("shutdown_grace: 10m", stop("1h 30min"), vec![]),
        ("shutdown_grace: 10m", stop("infinity"), vec![]),
        ("shutdown_grace: 10m", vec![], vec![]),
        ("log: {access: /var/log/weir/access.log}", strict.into(), vec![]),
        ("log: {access: /var/log/other/access.log}", strict.into(), vec![]),
        ("log: {access: /srv/logs/a/access.log}", strict.into(), vec![]),
        ("log: {access: /dev/stdout}", strict.into(), vec![]),
        (
            "log: {access: /var/log/weird/access.log}",
            strict.into(),
            vec![closed("log.access", "/var/log/weird")],
        ),
        (
            "log: {access: /tmp/access.log}",
            strict.into(),
            vec![closed("log.access", "/tmp")],
        ),
        (
            "log: {access: /tmp/access.log}",
            [&strict[..], &[("unit PrivateTmp", "yes")]].concat(),
            vec![],
        ),
        (
            "log: {access: /tmp/access.log}",
            vec![("unit ProtectSystem", "no")],
            vec![],
        ),
        ("admin: /run/other.sock", strict.into(), vec![closed("admin", "/run")]),
        ("admin: /run/weir/admin.sock", strict.into(), vec![]),
    ];
    for (more, mut known, expected) in rows {
        known.push(REUSED);
        assert_eq!(says(&file(more), 20_000, &known), expected, "{more} {known:?}");
    }
}

/// Columns: what is known of the host, words of what is said; none = nothing is.
#[test]
fn what_keeping_clients_takes() {
    let text =
        "listeners: {a: {bind: '10.0.0.1:8080', pool: a}}\npools: {a: {client_address: keep, backends: 10.1.0.2:80}}";
    let strict = ("sysctl net.ipv4.conf.all.rp_filter", "1");
    let rows: [(&[(&str, &str)], &[&str]); 9] = [
        (&[], &[]),
        (&[("road 10.1.0.2", "eth1"), strict], &[]),
        (
            &[("road 10.1.0.2", "no Network is unreachable")],
            &["no route", "10.1.0.2", "Network is unreachable"],
        ),
        (
            &[("road 10.1.0.2", "eth1 10.3.0.254")],
            &["through 10.3.0.254", "default gateway"],
        ),
        (
            &[("road 10.1.0.2", "eth1 10.3.0.254"), strict],
            &["net.ipv4.conf.eth1.rp_filter=2"],
        ),
        (
            &[
                ("road 10.1.0.2", "eth1 10.3.0.254"),
                strict,
                ("sysctl net.ipv4.conf.eth1.rp_filter", "2"),
            ],
            &["come back through this host:"],
        ),
        (
            &[("/proc/self/status", "CapPrm:\t0000000000001000")],
            &["`keep` takes CAP_NET_RAW,"],
        ),
        (&[("/proc/self/status", "CapPrm:\t0000000000003000")], &[]),
        (
            &[
                ("unit User", "weir"),
                ("unit CapabilityBoundingSet", "cap_net_raw"),
                ("unit AmbientCapabilities", "cap_net_raw"),
            ],
            &["keeping clients' addresses takes cap_net_admin, which weir.service does not give"],
        ),
    ];
    for (known, words) in rows {
        let said = says(text, 100_000, &[&[REUSED], known].concat());
        let [said] = &said[..] else {
            assert_eq!((&said[..], words), (&[][..], &[][..]), "{known:?}");
            continue;
        };
        assert!(said.starts_with("f: pools.a.client_address: warning: "), "{said}");
        assert!(
            words.iter().all(|word| said.contains(word)) && !words.is_empty(),
            "{said}"
        );
    }
}
