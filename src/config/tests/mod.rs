//! The configuration as its users meet it: text in, meaning or messages out.

mod reading;
mod refusals;

use proptest::prelude::*;

use super::fields::FIELDS;
use super::model::*;
use super::value::FromText;
use super::*;

const SMALLEST: &str = r#"
listeners: {web: {bind: "0.0.0.0:80", pool: web}}
pools: {web: {backends: [10.0.0.1:80, 10.0.0.2:80]}}
"#;

#[test]
fn one_listener_one_pool_and_two_addresses_are_a_complete_configuration() {
    let loaded = parse("weir.yaml", SMALLEST).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.pools[0].backends[1].name, "10.0.0.2:80");
}

#[test]
fn the_reference_is_a_configuration() {
    parse("reference.yaml", &reference()).unwrap();
}

/// conf/reference.yaml is what `weir config-reference` prints. `UPDATE_REFERENCE=1` writes it.
#[test]
fn the_reference_in_conf_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/reference.yaml");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        file == reference(),
        "conf/reference.yaml is out of date: weir config-reference > conf/reference.yaml"
    );
}

#[test]
fn the_examples_in_conf_are_accepted() {
    for name in [
        "weir.yaml",
        "members-file.yaml",
        "members-dns.yaml",
        "members-registry.yaml",
    ] {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
        assert_eq!(load(&path).unwrap().warnings, [], "{name}");
    }
}

/// A file that is complete but for one fragment: which goes to the top level (`R`), the listener (`L`), the pool
/// (`P`), the failover section (`F`), or is the whole file (`W`). A line whose key the fragment has gives way to it.
fn file(place: char, fragment: &str) -> String {
    const SECTIONS: &[(char, &str, &[&str])] = &[
        ('L', "listeners: {web: {", &["bind: \"0.0.0.0:80\"", "pool: web"]),
        ('P', "pools: {web: {", &["backends: [10.0.0.1:80, 10.0.0.2:80]"]),
        (
            'F',
            "failover: {",
            &[
                "node: a",
                "secret_file: /etc/weir/secret",
                "nodes: {a: \"10.0.0.1:7400\", b: \"10.0.0.2:7400\", c: \"10.0.0.3:7400\"}",
                "vips: [{address: 10.0.0.100/24, interface: eth0}]",
            ],
        ),
    ];
    let key = |line: &str| line.split(':').next().unwrap_or_default().to_string();
    let given: Vec<String> = fragment.lines().map(key).collect();
    let mut text = match place {
        'W' => return fragment.to_string(),
        'R' => format!("{fragment}\n"),
        _ => String::new(),
    };
    for (at, head, lines) in SECTIONS {
        let (mine, replaced) = (*at == place, place == 'R' && given.contains(&key(head)));
        if replaced || *at == 'F' && !mine {
            continue;
        }
        let fragment = fragment.lines().filter(|_| mine);
        let rest = lines
            .iter()
            .copied()
            .filter(|line| !mine || !given.contains(&key(line)));
        let body: Vec<&str> = fragment.chain(rest).collect();
        let close = if head.ends_with("{web: {") { "}}" } else { "}" };
        text.push_str(&format!("{head}\n{}\n{close}\n", body.join(",\n")));
    }
    text
}

/// What is said about a text, without the file's name; errors if it is refused, else warnings.
fn said(text: &str) -> (bool, Vec<String>) {
    let (refused, list) = match parse("f", text) {
        Ok(loaded) => (false, loaded.warnings),
        Err(errors) => (true, errors.0),
    };
    (refused, list.iter().map(|d| d.to_string()[2..].to_string()).collect())
}

/// Break tried: `Section::value` without its range check; eleven rows failed.
#[test]
fn every_refusal_says_where_what_and_what_would_be_right() {
    for (place, fragment, expected) in refusals::ROWS {
        let (refused, lines) = said(&file(*place, fragment));
        assert!(refused, "{fragment:?} is accepted");
        assert_eq!(lines, *expected, "{place} {fragment:?}");
    }
}

#[test]
fn doubtful_but_possible_configurations_are_accepted_with_a_warning() {
    #[rustfmt::skip]
    let rows: &[(char, &str, &[&str])] = &[
        ('L', "allow: 10.0.0.1/8", &["2:8: listeners.web.allow: `10.0.0.1/8` is taken as `10.0.0.0/8`: write that, or `10.0.0.1` for this address alone"]),
        ('L', "limits: {connections: 10, per_source: 20}", &["2:27: listeners.web.limits.per_source: has no effect: the listener's own limit of 10 is reached first"]),
        ('L', "limits: {exempt: 10.0.0.1}", &["2:10: listeners.web.limits.exempt: has no effect without `per_source` or `new_per_source`"]),
        ('L', "timeouts: {hello: 1s}", &["2:12: listeners.web.timeouts.hello: has no effect without `routes`: no hello is read"]),
        ('L', "accept_proxy: {from: 0.0.0.0/0}", &["2:16: listeners.web.accept_proxy.from: trusts everybody: any client can claim any source address; name your proxies only"]),
        ('L', "protocol: udp", &["6:9: pools.web.health.type: not given, so these udp backends always count as up: write `type: udp` with `send`, `type: tcp` with a `port`, or `type: none`"]),
        ('P', "health: {timeout: 3s}", &["6:10: pools.web.health.timeout: is longer than the interval of 2s: probes of a silent backend come at that pace instead"]),
        ('P', "health: {type: none, rise: 2, fall: 3}", &["6:10: pools.web.health.type: nothing is probed: rise, fall has no effect"]),
        ('P', "source_hash: {port: true}", &["6:1: pools.web.source_hash: has no effect without `balance: source_hash`"]),
        ('P', "backends: [{address: 10.0.0.1:80, backup: true}]", &["6:1: pools.web.backends: every backend is a backup: without a primary that makes no difference"]),
        ('P', "health: {type: none}\npassive: off\nbackends: [{address: 10.0.0.1:80}, {address: 10.0.0.2:80, backup: true}]", &["8:1: pools.web.backends: nothing watches the primaries (health.type: none, passive: off), so a backup serves only while `weir backend` has them out"]),
        ('R', r#"pools: {web: {backends: 10.0.0.1:80}, spare: {backends: 10.0.0.1:80}}"#, &["1:39: pools.spare: no listener uses this pool"]),
        ('F', r#"nodes: {a: "10.0.0.1:7400", b: "10.0.0.2:7400"}"#, &["9:1: failover.nodes: two nodes without a witness: if the link between them breaks while both live, BOTH hold the VIPs until it heals; add a witness, or a third node that holds nothing, to rule that out"]),
        ('F', r#"nodes: {a: "10.0.0.1:7400"}"#, &["9:1: failover.nodes: a single node has no other to fail over to"]),
        ('F', "nodes: {a: \"10.0.0.1:7400\", b: \"10.0.0.2:7400\"}\narbiter: {etcd: {endpoints: [\"http://10.0.0.5:2379\"], user: weir, password_file: /etc/p}}", &[
            "10:18: failover.arbiter.etcd.endpoints: one endpoint: while it is down and a node is missing, nobody can hold; name all members",
            "10:67: failover.arbiter.etcd.password_file: the password crosses the network as it is, unless endpoints are `https`",
        ]),
        ('F', "arbiter: {etcd: {endpoints: [\"http://10.0.0.5:2379\", \"http://10.0.0.6:2379\"]}}", &[
            "12:1: failover.nodes: 4 voters, the arbiter among them: an even number stands no more losses than one less; leave out a witness or the arbiter",
        ]),
        // Nodes that need not agree need neither a secret nor each other.
        ('W', r#"listeners: {web: {bind: "0.0.0.0:80", pool: web}}
pools: {web: {backends: 10.0.0.1:80}}
failover: {node: a, nodes: {a: "10.0.0.1:7400"}, vips: [{address: 10.0.0.9/32, interface: lo, hold: all}]}"#, &[]),
        ('F', r#"nodes: {a: "10.0.0.1:7400", b: "10.0.0.2:7400"}
vips: [{address: 10.0.0.9/32, interface: lo, hold: all}]"#, &[]),
        ('W', r#"listeners: {web: {engine: kernel, bind: "10.0.0.9:80", pool: web}}
pools: {web: {queue: {length: 5}, backends: "10.0.0.1:80"}}"#, &[
            "2:15: pools.web.queue: has no effect: while backends are full, clients of `engine: kernel` are refused, and do not wait",
        ]),
        // What only sockets have is for the listeners of the proxy, whose clients may be of another family.
        ('W', r#"listeners: {web: {engine: kernel, bind: "10.0.0.9:80", pool: web}, plain: {bind: "[::]:81", routes: {a.test: web}}}
pools: {web: {queue: {length: 5}, connect: {attempts: 2, dscp: ef, keepalive: {idle: 5s}}, backends: "10.0.0.1:80"}}"#, &[]),
        ('F', "quorum: 1", &["9:1: failover.quorum: quorum 1 is not a majority of 3 voters: both halves of a partition may hold the VIPs; use auto"]),
    ];
    for (place, fragment, expected) in rows {
        assert_eq!(
            said(&file(*place, fragment)),
            (false, expected.iter().map(|s| s.to_string()).collect()),
            "{fragment:?}"
        );
    }
}

/// One mistake in each part, all seen at once, in the order of the file.
#[test]
fn a_file_full_of_mistakes_shows_all_of_them() {
    let notes = notes::Notes::default();
    let errors = parse_with(notes, "broken.yaml", include_str!("broken.yaml")).unwrap_err();
    assert_eq!(errors.to_string(), include_str!("broken.txt").trim_end());
}

/// The table and the checker agree: each key, given or left out, is read, and nothing is read that has no row (that
/// would panic). Breaks tried: a row for a key that nobody reads; `on_drain.finish` no longer read.
#[test]
fn every_row_of_the_table_is_read() {
    // With accept_proxy, members and queue left out there is nothing to read below them, nor below an arbiter or a track that is not there.
    let few: &[&str] = &[
        "accept_proxy.",
        "failover.arbiter",
        "failover.track.",
        "members.",
        "health.http.",
        "health.agent.",
        "etcd.",
        "queue.",
    ];
    for (text, left_out) in [(reference(), &[][..]), (file('F', "beat: 20ms"), few)] {
        let notes = notes::Notes::default();
        let tree = yaml::read(&text).unwrap();
        check::check(&notes, &tree);
        assert_eq!(notes.errors.into_inner(), [], "{text}");
        let read = notes.read.into_inner();
        let unread = FIELDS
            .iter()
            .map(|row| row.path)
            .filter(|path| !read.contains(path) && !left_out.iter().any(|out| path.contains(out)));
        assert_eq!(unread.collect::<Vec<_>>(), Vec::<&str>::new());
    }
}

#[test]
fn defaults_are_those_of_the_contract() {
    let config = parse("f", SMALLEST).unwrap().config;
    let (listener, pool) = (&config.listeners[0], &config.pools[0]);
    let seconds = std::time::Duration::from_secs;
    assert_eq!(
        (config.workers, config.metrics, config.shutdown_grace),
        (None, None, seconds(30))
    );
    assert_eq!(config.admin, std::path::Path::new("/run/weir/admin.sock"));
    assert_eq!((config.log.access, config.log.interim), (AccessTarget::Stdout, None));
    assert_eq!((listener.protocol, listener.pool), (Protocol::Tcp, Some(0)));
    assert_eq!(listener.limits, ListenerLimits::default());
    assert_eq!(
        listener.timeouts,
        Timeouts {
            idle: Some(seconds(600)),
            half_close: Some(seconds(60)),
            max_age: None,
            hello: seconds(5),
        }
    );
    assert_eq!(
        listener.udp,
        UdpPolicy {
            idle: seconds(30),
            requests: None,
            replies: None
        }
    );
    assert_eq!(
        (pool.policy.balance, pool.policy.all_down, pool.policy.on_down),
        (Balance::LeastConn, AllDown::Refuse, None)
    );
    assert_eq!(
        pool.policy.health,
        Health {
            kind: ProbeKind::Tcp,
            interval: seconds(2),
            timeout: seconds(1),
            rise: 2,
            fall: 3,
            port: None,
            send: vec![],
            expect: vec![],
            http: None,
            tls: None,
            agent: None,
        }
    );
    assert_eq!(pool.policy.on_marked_up, OnMarkedUp::Keep);
    assert_eq!(
        pool.policy.passive,
        Some(Passive {
            failures: 3,
            window: seconds(10),
            eject: seconds(10)
        })
    );
    assert_eq!(
        pool.policy.connect,
        Connect {
            timeout: seconds(2),
            attempts: 3,
            keepalive: listener.keepalive,
            mark: None,
            dscp: None,
        }
    );
    assert_eq!(
        listener.keepalive,
        Some(Keepalive {
            idle: seconds(60),
            interval: seconds(10),
            probes: 6,
            user_timeout: Some(seconds(120))
        })
    );
    assert_eq!(
        (pool.policy.slow_start, pool.policy.on_drain_finish),
        (None, Some(seconds(60)))
    );
    assert_eq!(
        (pool.policy.send_proxy, pool.policy.source_address),
        (SendProxy::Off, None)
    );
    assert_eq!(pool.backends[0].weight, 1);
}

#[test]
fn endpoints_of_etcd() {
    let good = [
        ("http://10.0.0.5:2379", false, "10.0.0.5", 2379),
        ("https://etcd-1.internal:2379/", true, "etcd-1.internal", 2379),
        ("https://[2001:DB8::1]:1", true, "2001:db8::1", 1),
    ];
    for (text, tls, host, port) in good {
        let host = host.to_owned();
        let read = EtcdEndpoint::from_text(text);
        assert_eq!(read, Ok(EtcdEndpoint { tls, host, port }), "{text}");
        let again = EtcdEndpoint::from_text(&read.clone().unwrap().to_string());
        assert_eq!(read, again, "{text}");
    }
    let bad = [
        ("10.0.0.5:2379", "begins with neither"),
        ("ftp://10.0.0.5:2379", "begins with neither"),
        ("http://10.0.0.5", "has no port"),
        ("http://10.0.0.5:0", "has no port between"),
        ("http://10.0.0.5:99999", "has no port between"),
        ("http://10.0.0:2379", "has no name or address"),
        ("http://2001:db8::1:2379", "has no name or address"),
        ("http://[10.0.0.5]:2379", "has no name or address"),
        ("http://:2379", "has no name or address"),
        ("http://-x:2379", "has no name or address"),
        ("http://a b:2379", "has no name or address"),
        ("https://user@etcd:2379", "more than a host and a port"),
        ("https://etcd:2379/v3", "more than a host and a port"),
    ];
    for (text, why) in bad {
        let said = EtcdEndpoint::from_text(text).unwrap_err();
        assert!(
            said.contains(why) && said.contains("write one such as"),
            "{text}: {said}"
        );
    }
}

#[test]
fn what_is_said_in_different_ways_means_the_same() {
    #[rustfmt::skip]
    let rows = [
        ('L', "bind: 0.0.0.0:80", r#"bind: ["0.0.0.0:80"]"#),
        ('L', "allow: 10.0.0.1", "allow: [10.0.0.1/32]"),
        ('L', "timeouts: {max_age: off}", "timeouts: {max_age: false}"),
        ('L', "timeouts: {idle: 5m}", "timeouts: {idle: 300s}"),
        ('L', "timeouts: ~", "timeouts: {}"),
        ('L', "limits: {download: 1MB/s}", "limits: {download: 1000KB/s}"),
        ('L', "limits: {connections: unlimited}", "limits: {connections: off}"),
        ('L', "accept_proxy: off", "protocol: tcp"),
        ('L', "keepalive: {probes: 6}", "keepalive: {}"),
        ('L', "keepalive: off", "keepalive: none"),
        ('P', "connect: {keepalive: {user_timeout: off}}", "connect: {keepalive: {user_timeout: none, idle: 1m}}"),
        ('P', "backends: [10.0.0.1:80]", "backends: 10.0.0.1:80"),
        ('P', "backends: [10.0.0.1:80]", r#"backends: [{name: "10.0.0.1:80", address: 10.0.0.1:80}]"#),
        ('P', "health: none", "health: {type: none}"),
        ('P', "health: off", "health: {type: none}"),
        ('P', r#"health: {send: "A\r\n"}"#, r#"health: {send: "hex:41 0D0a"}"#),
        ('P', "health: {expect: 220}", r#"health: {expect: "220"}"#),
        ('P', "on_drain: {finish: off}", "on_drain: {finish: none}"),
        ('F', "notify: /bin/x", "notify: [/bin/x]"),
        ('F', "vips: [{address: 10.0.0.9/24, interface: e}]", "vips: [{address: 10.0.0.9/24, interface: e, prefer: [a, b, c]}]"),
        ('W', "{\"listeners\": {\"w\": {\"bind\": \"0.0.0.0:80\", \"pool\": \"p\"}}, \"pools\": {\"p\": {\"backends\": [\"10.0.0.1:80\"]}}}",
              "listeners:\r\n  w:\r\n    bind: 0.0.0.0:80\r\n    pool: p\r\npools:\r\n  p:\r\n    backends:\r\n    - 10.0.0.1:80\r\n"),
    ];
    for (place, a, b) in rows {
        let config = |fragment| {
            let notes = notes::Notes::default();
            parse_with(notes, "f", &file(place, fragment))
                .unwrap_or_else(|e| panic!("{e}"))
                .config
        };
        assert_eq!(config(a), config(b), "{a:?} {b:?}");
    }
}

#[test]
fn udp_pools_are_probed_only_as_they_are_told() {
    use ProbeKind::{None, Tcp, Udp};
    let rows = [
        ("{}", None),
        ("{port: 8080}", Tcp),
        ("{send: x}", Udp),
        ("{send: x, port: 8080}", Udp),
        ("{type: tcp}", Tcp),
        ("none", None),
    ];
    for (health, kind) in rows {
        let text = format!(
            "listeners: {{d: {{protocol: udp, bind: '0.0.0.0:53', pool: d}}}}\npools: {{d: {{backends: 10.0.0.1:53, health: {health}}}}}"
        );
        let notes = notes::Notes::default();
        assert_eq!(
            parse_with(notes, "f", &text).unwrap().config.pools[0]
                .policy
                .health
                .kind,
            kind,
            "{health}"
        );
    }
}

#[test]
fn flags_make_the_same_configuration_and_errors_name_the_flag() {
    let s = |list: &[&str]| -> Vec<String> { list.iter().map(|s| s.to_string()).collect() };
    let backends = s(&["10.0.0.1:80,weight=3,backup,name=a", "10.0.0.2:80"]);
    let config = Config::from_flags(&s(&["0.0.0.0:80", "[::]:80"]), &backends, false, Some("random")).unwrap();
    let file = parse(
        "f",
        r#"
listeners: {main: {bind: ["0.0.0.0:80", "[::]:80"], pool: main}}
pools: {main: {balance: random, backends: [{name: a, address: 10.0.0.1:80, weight: 3, backup: true}, 10.0.0.2:80]}}
"#,
    );
    assert_eq!(config, file.unwrap().config);

    let backends = s(&[
        "10.0.0.1:80,wieght=3",
        "10.0.0.2",
        "localhost:80,weight=1,weight=2",
        "10.0.0.1:80",
    ]);
    let errors = Config::from_flags(&s(&["80", "0.0.0.0:1", "0.0.0.0:1"]), &backends, false, Some("rr")).unwrap_err();
    assert_eq!(
        errors.to_string().lines().collect::<Vec<_>>(),
        [
            "--backend: missing: backend `10.0.0.2` has no port of its own, so the probe needs one: `port: 80`, or `type: none`",
            "--listen 80: `80` has no address: write `0.0.0.0:80` or `[::]:80`",
            "--listen 0.0.0.0:1: `0.0.0.0:1` overlaps listeners.main.bind[1] (`0.0.0.0:1`): an address is bound once",
            "--backend 10.0.0.1:80,wieght=3: unknown key; did you mean `weight`?",
            "--backend localhost:80,weight=1,weight=2: is here already: keep one of them",
            "--backend localhost:80,weight=1,weight=2: `localhost:80` is a name: write `127.0.0.1` or `[::1]`",
            "--backend 10.0.0.1:80: `10.0.0.1:80` is in this pool already: give that one a larger `weight`",
            "--balance rr: `rr` is not known here; it is one of least_conn, source_hash, round_robin, random, least_time",
        ]
    );
}

#[test]
fn files_that_cannot_be_read_are_errors_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let says = |name: &str, bytes: Option<&[u8]>| {
        let path = dir.path().join(name);
        if let Some(bytes) = bytes {
            std::fs::write(&path, bytes).unwrap();
        }
        let error = load(&path).unwrap_err().to_string();
        error.replace(&dir.path().display().to_string(), "")
    };
    assert_eq!(says("none", None), "/none: there is no such file");
    assert_eq!(says("", None), "/: is a directory: name the file in it");
    assert_eq!(
        says("latin", Some(b"a: 1\nb: \xe9")),
        "/latin:2:4: not UTF-8 text from here on: save the file as UTF-8"
    );
    let large = vec![b'#'; yaml::FILE_BYTES_MAX + 1];
    assert_eq!(
        says("large", Some(&large)),
        "/large: is larger than 4194304 bytes: more is not read"
    );
}

#[test]
fn the_descriptor_budget_is_spent_and_kept() {
    let config = |limits: &str| {
        parse("f", &file('R', &format!("limits: {limits}\nworkers: 2")))
            .unwrap()
            .config
    };
    let budget = Budget::new(&config("{}"), 20_000, 2);
    // Two workers, each with one listening socket, its own descriptors and its pipes; two probes of four sockets; the reserve.
    assert_eq!((budget.fixed, budget.probes), (2 * (1 + 4 + 128) + 2 * 4 + 64, 2));
    assert_eq!((budget.connections, budget.sessions), ((20_000 - budget.fixed) / 2, 0));
    // A small limit shrinks the reserve and the pipes, so that most of it still carries connections.
    let small = Budget::new(&config("{}"), 256, 2);
    assert_eq!((small.fixed, small.pipes), (50 + 4 * 12, 12));
    assert_eq!((small.connections, small.refusal(&config("{}"))), (79, None));
    // Probes get a sixteenth of the descriptors, 256 of them at the most, as many as there are backends.
    let mut many = config("{}");
    let backend = many.pools[0].backends[0].clone();
    many.pools[0].backends = vec![backend; 5_000];
    for (limit, wanted) in [(8, 1), (256, 4), (1024, 16), (20_000, 256), (1 << 20, 256)] {
        assert_eq!(Budget::new(&many, limit, 2).probes, wanted, "{limit}");
    }
    many.pools[0].policy.health.kind = ProbeKind::None;
    assert_eq!(Budget::new(&many, 20_000, 2).probes, 0);
    let refusal = |limits: &str, limit| {
        let config = config(limits);
        Budget::new(&config, limit, 2).refusal(&config)
    };
    assert_eq!(refusal("{}", 20_000), None);
    assert_eq!(refusal("{connections: 9000}", 20_000), None);
    assert_eq!(
        refusal("{connections: 10000}", 20_000).unwrap(),
        "20082 descriptors are needed (10000 connections of 2, 0 sessions of 1, 82 for listeners, pipes, probes and a reserve), and 20000 may be opened: raise the limit (LimitNOFILE= in the unit, or ulimit -n), or lower `limits`"
    );
    // Nothing is left for a single connection.
    assert_eq!(
        refusal("{}", 8).unwrap(),
        "15 descriptors are needed (0 connections of 2, 0 sessions of 1, 15 for listeners, pipes, probes and a reserve), and 8 may be opened: raise the limit (LimitNOFILE= in the unit, or ulimit -n), or lower `limits`"
    );
}

#[test]
fn errors_without_end_are_cut_and_counted() {
    let text: String = (0..3000).map(|i| format!("key{i}: 1\n")).collect();
    let errors = parse("f", &text).unwrap_err().0;
    assert_eq!(errors.len(), notes::ERRORS_MAX + 1);
    assert_eq!(errors.last().unwrap().message, "and 2002 more");
}

// ---- properties ----

/// Nothing but sense may come of any text: no panic, and errors in the order of the file, each within it.
/// Breaks tried: errors not sorted; the end of a file not brought back into it.
fn sensible(text: &str) -> Result<(), TestCaseError> {
    let notes = notes::Notes::default();
    let Err(errors) = parse_with(notes, "f", text) else {
        return Ok(());
    };
    let places: Vec<_> = errors.0.iter().map(|e| (e.line, e.column)).collect();
    prop_assert!(places.is_sorted(), "{places:?}");
    let lines = text.split(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']).count() as u32;
    for error in &errors.0 {
        prop_assert!(
            error.line >= 1 && error.line <= lines.max(1) && error.column >= 1,
            "{error}"
        );
        prop_assert!(!error.message.contains(['\n', '\r']), "{error:?}");
    }
    Ok(())
}

/// Words that a file is made of, so that random texts get past the first line.
fn soup() -> impl Strategy<Value = String> {
    let words = FIELDS
        .iter()
        .flat_map(|row| [format!("{}: ", row.key()), row.example.to_string()]);
    let marks = [
        "\n", "\n  ", "\n    ", "- ", "{", "}", "[", "]", ", ", "&a ", "*a", "<<: ", "\"", "'", "|", "#", ": ", "? ",
        "!t ", "~", "off", "\t", "é",
    ];
    let words: Vec<String> = words.chain(marks.map(String::from)).collect();
    prop::collection::vec(prop::sample::select(words), 0..60).prop_map(|words| words.concat())
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "\\PC{0,200}|[\\x00-\\x7f]{0,200}") {
        sensible(&text)?;
    }

    #[test]
    fn no_soup_of_words_makes_it_panic(text in soup()) {
        sensible(&text)?;
    }

    /// The whole reference with a piece cut out and put elsewhere.
    #[test]
    fn no_damage_to_a_file_makes_it_panic(from in 0usize..12_000, len in 0usize..200, to in 0usize..12_000) {
        let mut text: Vec<char> = reference().chars().collect();
        let from = from.min(text.len());
        let piece: Vec<char> = text.drain(from..(from + len).min(text.len())).collect();
        let to = to.min(text.len());
        text.splice(to..to, piece);
        sensible(&text.into_iter().collect::<String>())?;
    }

    /// Against the plain rule: two entries conflict if protocol and family agree, the addresses are equal or one is
    /// the wildcard, the interfaces are equal or one has none, and the ports overlap. Break tried: the latest
    /// end kept in place of the furthest.
    #[test]
    fn bound_twice_is_found_as_by_comparing_all_with_all(
        binds in prop::collection::vec((0usize..2, 0usize..5, 1u16..30, 0u16..9, 0usize..3), 1..12)
    ) {
        const IPS: [&str; 5] = ["0.0.0.0", "10.0.0.1", "10.0.0.2", "[::]", "[2001:db8::1]"];
        const DEVICES: [&str; 3] = ["", "%eth0", "%eth1"];
        type Entry = (usize, usize, u16, u16, usize);
        let conflict = |a: &Entry, b: &Entry| {
            let family = (a.1 < 3) == (b.1 < 3);
            let wild = |ip| ip == 0 || ip == 3;
            let address = a.1 == b.1 || wild(a.1) || wild(b.1);
            let device = a.4 == b.4 || a.4 == 0 || b.4 == 0;
            a.0 == b.0 && family && address && device && a.2 <= b.2 + b.3 && b.2 <= a.2 + a.3
        };
        // One report for each that overlaps any of those that begin before it.
        let mut sorted = binds.clone();
        sorted.sort_by_key(|bind| bind.2);
        let expected = (0..sorted.len()).filter(|&i| sorted[..i].iter().any(|b| conflict(&sorted[i], b))).count();
        let listener = |(i, (udp, ip, port, more, device)): (usize, &Entry)| {
            let (protocol, ip, device) = (["tcp", "udp"][*udp], IPS[*ip], DEVICES[*device]);
            format!("  l{i}: {{protocol: {protocol}, pool: p, bind: '{ip}:{port}-{}{device}'}}\n", port + more)
        };
        let listeners: String = binds.iter().enumerate().map(listener).collect();
        let text = format!("listeners:\n{listeners}pools: {{p: {{backends: 10.0.0.9:1}}}}");
        let (refused, lines) = said(&text);
        prop_assert!(lines.iter().all(|line| !refused || line.contains("overlaps")), "{lines:?}");
        prop_assert_eq!(if refused { lines.len() } else { 0 }, expected, "{} {:?}", text, lines);
    }
}
