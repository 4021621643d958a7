//! `pools.NAME`.

use std::collections::HashMap;
use std::net::IpAddr;

use crate::config::address::{BackendPlace, HostName, NameServer};
use crate::config::http::*;
use crate::config::model::*;
use crate::config::notes::{Notes, Spot};
use crate::config::raw::Section;
use crate::config::rules::Rules;
use crate::config::value::*;
use crate::config::yaml::Place;

/// What the listeners of a pool ask of it.
struct Users<'a>(&'a [&'a Listener]);

impl Users<'_> {
    fn of(&self, protocol: Protocol) -> Option<&Listener> {
        self.0.iter().copied().find(|listener| listener.protocol == protocol)
    }
    fn udp_only(&self) -> bool {
        self.of(Protocol::Udp).is_some() && self.of(Protocol::Tcp).is_none()
    }
}

/// The pool; `users` are the listeners that name it.
pub fn check(notes: &Notes, section: &Section, users: &[&Listener], has_etcd: bool) -> Pool {
    let users = Users(users);
    if users.0.is_empty() {
        notes.warn(section.here(), "no listener uses this pool");
    }
    if users.udp_only() {
        section.only_for(Protocol::Udp, "only udp listeners use this pool");
    }
    let rules = Rules::new(users.0.iter().copied());
    let mut places = HashMap::new();
    let (backends, mut members) = match section.has("backends") || !section.has("members") {
        true => backends(notes, section, &rules, &mut places),
        false => Default::default(),
    };
    members.extend(sources(notes, section, &mut places, has_etcd));
    let resolver = resolver(section, &members);
    if !backends.is_empty() && members.is_empty() {
        if backends.iter().all(|b| b.value.weight == 0) {
            section.error(
                "backends",
                "every weight is 0, so nothing could be served: give at least one a weight of 1 or more",
            );
        } else if backends.iter().all(|b| b.value.backup) {
            section.warn(
                "backends",
                "every backend is a backup: without a primary that makes no difference",
            );
        }
    }
    let addresses: Vec<&BackendAddress> = backends.iter().map(|b| &b.value.address).collect();
    let on_drain = section.section("on_drain");
    let connect = section.section("connect");
    let passive = section.switchable("passive");
    let balance = section.value("balance");
    let client_address = section.value("client_address");
    let policy = PoolPolicy {
        name: section.name().to_string(),
        balance,
        source_hash: source_hash(section, balance),
        health: health(section, &users, &addresses),
        passive: passive.map(|passive| Passive {
            failures: passive.value("failures"),
            window: passive.value("window"),
            eject: passive.value("eject"),
        }),
        connect: Connect {
            timeout: connect.value("timeout"),
            attempts: connect.value("attempts"),
            keepalive: super::keepalive(&connect),
            mark: connect.optional("mark"),
            dscp: connect.optional("dscp").map(|Dscp(class)| class),
        },
        queue: section.switchable("queue").map(|queue| Queue {
            length: queue.value("length"),
            timeout: queue.value("timeout"),
        }),
        slow_start: section.optional("slow_start"),
        on_down: section.optional("on_down"),
        on_marked_up: section.value("on_marked_up"),
        on_drain_finish: on_drain.optional("finish"),
        all_down: section.value("all_down"),
        send_proxy: section.value("send_proxy"),
        source_address: source_address(notes, section, &backends),
        client_address,
        kernel_mode: super::client_address::kernel_mode(section, client_address),
        kernel_sources: source_addresses(notes, section, &backends),
    };
    if client_address == ClientAddress::Keep {
        super::client_address::check(notes, section, users.0, &backends);
    }
    let backups = backends.iter().filter(|backend| backend.value.backup).count();
    let unwatched = policy.health.kind == ProbeKind::None && policy.passive.is_none();
    if unwatched && backups > 0 && backups < backends.len() {
        section.warn(
            "backends",
            "nothing watches the primaries (health.type: none, passive: off), so a backup serves only while `weir backend` has them out",
        );
    }
    if let (Some(OnDown::Repick), None, Some(tcp)) = (policy.on_down, users.of(Protocol::Udp), users.of(Protocol::Tcp))
    {
        let message = format!(
            "moves UDP sessions, and listener `{}` is tcp, whose connections cannot be moved: write `keep` or `close`",
            tcp.name
        );
        section.error("on_down", message);
    }
    if let (SendProxy::V1, Some(udp)) = (policy.send_proxy, users.of(Protocol::Udp)) {
        let message = format!(
            "version 1 is for streams, and listener `{}` is udp: write `v2`",
            udp.name
        );
        section.error("send_proxy", message);
    }
    Pool {
        policy,
        backends: backends.into_iter().map(|b| b.value).collect(),
        members,
        resolver,
    }
}

/// Where further members come from. `places`: those that are known already.
fn sources(
    notes: &Notes,
    section: &Section,
    places: &mut HashMap<MembersFrom, Place>,
    has_etcd: bool,
) -> Vec<MemberSource> {
    const KINDS: [&str; 5] = ["file", "dns", "srv", "etcd", "docker"];
    let mut found = Vec::new();
    for item in section.items("members", "file") {
        let file = item.optional::<AbsolutePath>("file");
        let [dns, srv] = ["dns", "srv"].map(|key| item.optional::<HostName>(key).map(|name| name.0));
        let etcd = item.optional::<MemberPrefix>("etcd");
        let docker = item.switchable("docker").map(|docker| MembersFrom::Docker {
            label: docker.value("label"),
            port: docker.value("port"),
            network: docker.optional::<Name>("network").map(|name| name.0),
            socket: docker.value::<AbsolutePath>("socket").0,
        });
        let (port, family) = (item.optional("port"), item.value("family"));
        let like = MemberDefaults {
            name: None,
            weight: item.value("weight"),
            max_connections: item.optional("max_connections"),
            backup: item.value("backup"),
        };
        let allow_empty = item.value("allow_empty");
        let given: Vec<&str> = KINDS.into_iter().filter(|key| item.has(key)).collect();
        let named = [
            file.map(|AbsolutePath(path)| MembersFrom::File(path)),
            dns.map(|name| MembersFrom::Dns { name, port, family }),
            srv.map(|name| MembersFrom::Srv { name, family }),
            etcd.map(|MemberPrefix(prefix)| MembersFrom::Etcd { prefix }),
            docker,
        ];
        let mut named = named.into_iter().flatten();
        let from = match (named.next(), named.next()) {
            (Some(from), None) => from,
            (None, _) => {
                if given.is_empty() {
                    notes.error(
                        item.here(),
                        "names no source: write `file`, `dns`, `srv`, `etcd` or `docker`",
                    );
                }
                continue;
            }
            _ => {
                let message = format!("has {}: give each a `- ` of its own", given.join(" and "));
                notes.error(item.here(), message);
                continue;
            }
        };
        let plain = MemberDefaults::default();
        let [is_file, is_dns, is_srv] = [
            matches!(from, MembersFrom::File(_)),
            matches!(from, MembersFrom::Dns { .. }),
            matches!(from, MembersFrom::Srv { .. }),
        ];
        if matches!(from, MembersFrom::Etcd { .. }) && !has_etcd {
            item.error(
                "etcd",
                "which cluster? Write `etcd: {endpoints: [\"http://10.0.0.5:2379\"]}` beside `pools`",
            );
        }
        for (key, stray) in [
            ("port", port.is_some() && !is_dns),
            ("family", family != Family::Any && !is_dns && !is_srv),
            ("weight", like.weight != plain.weight && (is_file || is_srv)),
            ("backup", like.backup && (is_file || is_srv)),
            ("max_connections", like.max_connections.is_some() && is_file),
        ] {
            if stray {
                item.error(
                    key,
                    format!("has no meaning beside `{}`: leave it out", given.join(" and ")),
                );
            }
        }
        once(notes, item.here(), &from, places);
        found.push(MemberSource {
            from,
            like,
            allow_empty,
        });
    }
    found
}

/// Says so if a source is in the pool already.
fn once<T>(notes: &Notes, spot: &Spot<T>, from: &MembersFrom, places: &mut HashMap<MembersFrom, Place>) {
    if let Some(first) = places.insert(from.clone(), spot.at) {
        let message = format!(
            "`{from}` is in this pool already{}: keep one of them",
            first.in_brackets()
        );
        notes.error(spot, message);
    }
}

fn resolver(section: &Section, members: &[MemberSource]) -> Resolver {
    let resolver = section.section("resolver");
    let names = |source: &MemberSource| matches!(source.from, MembersFrom::Dns { .. } | MembersFrom::Srv { .. });
    if section.has("resolver") && !members.iter().any(names) {
        section.warn("resolver", "has no effect: this pool has no names to look up");
    }
    let found = Resolver {
        servers: resolver
            .list::<NameServer>("servers")
            .into_iter()
            .map(|server| server.value.0)
            .collect(),
        timeout: resolver.value("timeout"),
        min_ttl: resolver.value("min_ttl"),
        max_ttl: resolver.value("max_ttl"),
    };
    if found.min_ttl > found.max_ttl {
        resolver.error("min_ttl", "is longer than `max_ttl`");
    }
    found
}

/// The list under `backends`, here or in a file of members: addresses, and names as sources.
pub fn backends(
    notes: &Notes,
    section: &Section,
    rules: &Rules,
    places: &mut HashMap<MembersFrom, Place>,
) -> (Vec<Spot<Backend>>, Vec<MemberSource>) {
    let mut names: HashMap<String, Place> = HashMap::new();
    let mut addresses: HashMap<BackendAddress, Place> = HashMap::new();
    let (mut backends, mut sources) = (Vec::new(), Vec::new());
    for item in section.items("backends", "address") {
        let place = item.optional_spot::<BackendPlace>("address");
        let label = item.optional_spot::<Label>("name");
        let at = item.here().at;
        let (weight, max_connections, backup) = (
            item.value("weight"),
            item.optional("max_connections"),
            item.value("backup"),
        );
        let address = match place {
            Some(Spot {
                at,
                path,
                value: BackendPlace::Behind { name, port },
            }) => {
                let from = MembersFrom::Dns {
                    name,
                    port,
                    family: Family::Any,
                };
                once(notes, &Spot { at, path, value: () }, &from, places);
                sources.push(MemberSource {
                    from,
                    like: MemberDefaults {
                        name: label.map(|label| label.value.0),
                        weight,
                        max_connections,
                        backup,
                    },
                    allow_empty: false,
                });
                continue;
            }
            Some(Spot {
                at,
                path,
                value: BackendPlace::At(value),
            }) => Some(Spot { at, path, value }),
            None => None,
        };
        let name = label
            .as_ref()
            .map(|l| l.value.0.clone())
            .or(address.as_ref().map(|a| a.value.to_string()));
        let again = address
            .as_ref()
            .and_then(|address| addresses.insert(address.value.clone(), at));
        let named_again = name.clone().and_then(|name| names.insert(name, at));
        if let (Some(address), Some(first)) = (&address, again) {
            let message = format!(
                "`{}` is in this pool already{}: give that one a larger `weight`",
                address.value,
                first.in_brackets()
            );
            notes.error(address, message);
        }
        match (named_again, &label, &address) {
            (Some(first), Some(label), _) => {
                notes.error(
                    label,
                    format!(
                        "`{}` is in this pool already{}: names are unique",
                        label.value.0,
                        first.in_brackets()
                    ),
                );
            }
            (Some(first), None, Some(address)) if again.is_none() => {
                notes.error(
                    address,
                    format!(
                        "`{}` is the name of another backend{}: give this one a `name`",
                        address.value,
                        first.in_brackets()
                    ),
                );
            }
            _ => {}
        }
        if let Some(address) = &address {
            for complaint in rules.complaints(&address.value) {
                notes.error(address, complaint);
            }
        }
        let backend = Backend {
            name: name.unwrap_or_default(),
            address: address.map_or(BackendAddress::Unix(Default::default()), |a| a.value),
            weight,
            max_connections,
            backup,
        };
        backends.push(item.here().clone().map(|_| backend));
    }
    (backends, sources)
}

fn source_hash(section: &Section, balance: Balance) -> SourceHash {
    if balance != Balance::SourceHash && section.has("source_hash") {
        section.warn("source_hash", "has no effect without `balance: source_hash`");
    }
    let hash = section.section("source_hash");
    SourceHash {
        prefix_v4: hash.value("prefix_v4"),
        prefix_v6: hash.value("prefix_v6"),
        port: hash.value("port"),
        bounded_load: hash.optional("bounded_load"),
        seed: hash.value("seed"),
    }
}

fn health(section: &Section, users: &Users, addresses: &[&BackendAddress]) -> Health {
    let switched = section.switchable("health");
    let off = switched.is_none();
    let health = switched.unwrap_or_else(|| section.absent("health"));
    let kind = match health.optional("type") {
        _ if off => ProbeKind::None,
        Some(kind) => kind,
        None if !users.udp_only() => ProbeKind::Tcp,
        None if health.has("send") => ProbeKind::Udp,
        None if health.has("port") => ProbeKind::Tcp,
        None => {
            health.warn("type", "not given, so these udp backends always count as up: write `type: udp` with `send`, `type: tcp` with a `port`, or `type: none`");
            ProbeKind::None
        }
    };
    let bytes = |key| health.optional(key).map(|Payload(bytes)| bytes).unwrap_or_default();
    let result = Health {
        kind,
        interval: health.value("interval"),
        timeout: health.value("timeout"),
        rise: health.value("rise"),
        fall: health.value("fall"),
        port: health.optional("port"),
        send: bytes("send"),
        expect: bytes("expect"),
        http: http(&health),
        tls: tls(&health),
        agent: agent(&health, addresses),
    };
    let own = [
        "interval", "timeout", "rise", "fall", "port", "send", "expect", "http", "tls",
    ];
    let unused: Vec<_> = own.into_iter().filter(|key| health.has(key)).collect();
    let unix = |a: &&BackendAddress| matches!(a, BackendAddress::Unix(_));
    let portless = addresses.iter().find(|a| matches!(a, BackendAddress::SamePort(_)));
    match kind {
        ProbeKind::None => {
            if !unused.is_empty() {
                health.warn(
                    "type",
                    format!("nothing is probed: {} has no effect", unused.join(", ")),
                );
            }
            return result;
        }
        ProbeKind::Udp if !health.has("send") => {
            health.error("type", "a udp probe needs `send`, a datagram that the backend answers: `send: \"PING\\r\\n\"` or `send: \"hex:...\"`");
        }
        ProbeKind::Udp if users.of(Protocol::Udp).is_none() && !users.0.is_empty() && result.port.is_none() => {
            health.error(
                "type",
                "this pool serves tcp: write `type: tcp`, or the `port` that answers udp",
            );
        }
        _ => {}
    }
    for (key, given) in [("http", result.http.is_some()), ("tls", result.tls.is_some())] {
        if kind == ProbeKind::Udp && given {
            health.error(key, "goes over tcp: write `type: tcp`, or leave it out");
        }
    }
    if kind == ProbeKind::Udp && addresses.iter().any(unix) {
        health.error(
            "type",
            "a unix socket cannot be probed with datagrams: write `type: tcp` or `type: none`",
        );
    }
    if let (Some(address), None) = (portless, result.port) {
        health.error("port", format!("missing: backend `{address}` has no port of its own, so the probe needs one: `port: 80`, or `type: none`"));
    }
    if result.port.is_some() && !addresses.is_empty() && addresses.iter().all(unix) {
        health.error("port", "unix sockets have no port: leave it out");
    }
    if result.timeout > result.interval {
        health.warn(
            "timeout",
            format!(
                "is longer than the interval of {}: probes of a silent backend come at that pace instead",
                humantime::format_duration(result.interval)
            ),
        );
    }
    result
}

/// A question in HTTP.
fn http(health: &Section) -> Option<HttpProbe> {
    let http = health.switchable("http")?;
    let host: Option<HttpHost> = http.optional("host");
    let HttpPath(path) = http.value("path");
    let mut expect: Vec<_> = http.list::<Statuses>("expect").into_iter().map(|s| s.value.0).collect();
    if expect.is_empty() {
        expect = vec![200..=399];
    }
    for key in ["send", "expect"] {
        if health.has(key) {
            health.warn(key, "has no effect beside `http`");
        }
    }
    Some(HttpProbe {
        method: http.value("method"),
        path,
        host: host.map(|HttpHost(host)| host),
        expect,
    })
}

/// TLS, and what it is verified by.
fn tls(health: &Section) -> Option<ProbeTls> {
    let ca: Option<AbsolutePath> = health.optional("ca");
    let server_name: Option<ServerName> = health.optional("server_name");
    if !health.value::<bool>("tls") {
        for key in ["ca", "server_name"] {
            if health.has(key) {
                health.error(key, "belongs to TLS: write `tls: true`, or leave it out");
            }
        }
        return None;
    }
    Some(ProbeTls {
        ca: ca.map(|AbsolutePath(path)| path),
        server_name: server_name.map(|ServerName(name)| name),
    })
}

/// The agents, which need an address to be asked at.
fn agent(health: &Section, addresses: &[&BackendAddress]) -> Option<Agent> {
    let agent = health.switchable("agent")?;
    if let Some(unix) = addresses.iter().find(|a| matches!(a, BackendAddress::Unix(_))) {
        health.error(
            "agent",
            format!("`{unix}` has no address at which an agent could be asked: leave it out"),
        );
    }
    let send: Option<Payload> = agent.optional("send");
    Some(Agent {
        port: agent.value("port"),
        interval: agent.value("interval"),
        send: send.map(|Payload(bytes)| bytes).unwrap_or_default(),
    })
}

fn source_address(notes: &Notes, section: &Section, backends: &[Spot<Backend>]) -> Option<IpAddr> {
    let source = section.optional_spot::<IpAddr>("source_address")?;
    can_be_source(notes, &source, backends);
    Some(source.value)
}

/// `kernel.source_addresses`: of one family, each once.
fn source_addresses(notes: &Notes, section: &Section, backends: &[Spot<Backend>]) -> Vec<IpAddr> {
    let sources = section.section("kernel").list::<IpAddr>("source_addresses");
    for (nth, source) in sources.iter().enumerate() {
        if sources[..nth].iter().any(|other| other.value == source.value) {
            let message = format!("`{}` is there twice: leave one of them out", source.value);
            notes.error(source, message);
        }
        let first = sources[0].value;
        if first.is_ipv4() != source.value.is_ipv4() {
            let message = format!(
                "`{}` is {}, and `{first}` is not: give the two families pools of their own",
                source.value,
                family(&source.value)
            );
            notes.error(source, message);
            continue;
        }
        if source.value.is_loopback() {
            let message = format!(
                "`{}` is known to no other host: write an address that backends can answer",
                source.value
            );
            notes.error(source, message);
        }
        can_be_source(notes, source, backends);
    }
    sources.into_iter().map(|source| source.value).collect()
}

fn family(ip: &IpAddr) -> &'static str {
    if ip.is_ipv4() { "IPv4" } else { "IPv6" }
}

/// Whether connections to these backends can come from there.
fn can_be_source(notes: &Notes, source: &Spot<IpAddr>, backends: &[Spot<Backend>]) {
    if source.value.is_unspecified() || source.value.is_multicast() {
        notes.error(
            source,
            format!(
                "`{}` is no address of this machine: leave it out to let the kernel choose",
                source.value
            ),
        );
    }
    if matches!(source.value, IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        notes.error(
            source,
            format!(
                "`{}` is a link-local address: leave it out, the kernel uses that of the interface which the backends' addresses \
                 name",
                source.value
            ),
        );
    }
    let ip_of = |b: &Backend| b.address.ip();
    let other = |b: &&Spot<Backend>| ip_of(&b.value).is_some_and(|ip| ip.is_ipv4() != source.value.is_ipv4());
    if let Some(backend) = backends.iter().find(other) {
        let name = &backend.value.name;
        notes.error(
            source,
            format!(
                "is {}, and backend `{name}` is not: give the two families pools of their own",
                family(&source.value)
            ),
        );
    } else if !backends.is_empty() && backends.iter().all(|b| ip_of(&b.value).is_none()) {
        notes.error(
            source,
            "connections to unix sockets have no source address: leave it out",
        );
    }
}
