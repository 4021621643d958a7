//! Every key of the configuration: one table for the checker and the reference.
//!
//! A row's type is the Rust type that reads it, its default is the text that is read when the key is left out, its
//! range is enforced as it stands. So the reference cannot say anything else than what happens; tests hold that every
//! row is read and that nothing is read without a row. `*` in a path stands for a name, or for an entry of a list.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::IpNet;

use super::address::{BackendPlace, HostName, NameServer, VipAddress};
use super::http::*;
use super::model::*;
use super::value::*;

/// What a key holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One scalar.
    Value,
    /// Scalars; one alone may stand without brackets. The range counts them.
    List,
    /// A mapping of known keys.
    Section,
    /// A mapping of names to sections (or, if the row below is a value, to scalars).
    Named,
    /// A list of sections.
    Items,
}

/// What happens when a key is left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// This text is read instead.
    Default(&'static str),
    /// Nothing is set; this is what it means.
    Means(&'static str),
    /// The file is refused.
    Refused,
}

/// One key that a configuration may have.
#[derive(Debug, Clone, Copy)]
pub struct Field {
    /// Path with `*` for names and entries.
    pub path: &'static str,
    /// Whether it is a value, a list or a mapping.
    pub shape: Shape,
    /// The type of the value, in words.
    pub kind: &'static str,
    /// What is counted; empty if nothing is, or if the value carries its unit.
    pub unit: &'static str,
    /// A word that stands for "none" or "by itself" in place of a value.
    pub word: Option<&'static str>,
    /// What holds when the key is absent.
    pub missing: Missing,
    /// `LOW..HIGH`, both included; empty = any.
    pub range: &'static str,
    /// The only protocol for which it has a meaning.
    pub only: Option<Protocol>,
    /// What the reference shows in its first (TCP) example; the default if empty.
    pub example: &'static str,
    /// What the reference shows in its second (UDP) example; left out there if empty.
    pub example_udp: &'static str,
    /// Stands in place of a key that the example has; the reference shows it as a comment.
    pub alternative: bool,
    /// In the reference it begins an entry of its list: it stands in place of what is before.
    pub begins_entry: bool,
    /// Meaning, in sentences.
    pub meaning: &'static str,
}

impl Field {
    const fn new(
        path: &'static str,
        shape: Shape,
        kind: &'static str,
        missing: Missing,
        meaning: &'static str,
    ) -> Field {
        Field {
            path,
            shape,
            kind,
            unit: "",
            word: None,
            missing,
            range: "",
            only: None,
            example: "",
            example_udp: "",
            alternative: false,
            begins_entry: false,
            meaning,
        }
    }
    const fn off(self) -> Field {
        Field {
            missing: Means("off"),
            ..self
        }
    }
    const fn left_out(self, means: &'static str) -> Field {
        Field {
            missing: Means(means),
            ..self
        }
    }
    const fn unit(self, unit: &'static str) -> Field {
        Field { unit, ..self }
    }
    const fn or(self, word: &'static str) -> Field {
        Field {
            word: Some(word),
            ..self
        }
    }
    const fn range(self, range: &'static str) -> Field {
        Field { range, ..self }
    }
    const fn only(self, protocol: Protocol) -> Field {
        Field {
            only: Some(protocol),
            ..self
        }
    }
    const fn alternative(self) -> Field {
        Field {
            alternative: true,
            ..self
        }
    }
    const fn example(self, example: &'static str) -> Field {
        Field { example, ..self }
    }
    const fn entry(self) -> Field {
        Field {
            begins_entry: true,
            ..self
        }
    }
    const fn udp(self, example_udp: &'static str) -> Field {
        Field { example_udp, ..self }
    }

    /// The last word of the path.
    pub fn key(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The path without its last word; empty for a top-level key.
    pub fn parent(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(parent, _)| parent)
    }

    /// Whether `text` is this key's word, or another way to say it.
    pub fn is_word(&self, text: &str) -> bool {
        match self.word {
            None => false,
            Some("auto") => text == "auto",
            Some(word) => text == word || matches!(text, "off" | "none" | "no" | "false" | "unlimited"),
        }
    }
}

const fn value<T: FromText>(path: &'static str, default: &'static str, meaning: &'static str) -> Field {
    Field::new(path, Shape::Value, T::KIND, Missing::Default(default), meaning)
}
const fn optional<T: FromText>(path: &'static str, means: &'static str, meaning: &'static str) -> Field {
    Field::new(path, Shape::Value, T::KIND, Missing::Means(means), meaning)
}
const fn required<T: FromText>(path: &'static str, example: &'static str, meaning: &'static str) -> Field {
    Field::new(path, Shape::Value, T::KIND, Missing::Refused, meaning).example(example)
}
const fn list<T: FromText>(
    path: &'static str,
    missing: Missing,
    example: &'static str,
    meaning: &'static str,
) -> Field {
    Field::new(path, Shape::List, T::KIND, missing, meaning).example(example)
}
const fn section(path: &'static str, meaning: &'static str) -> Field {
    Field::new(
        path,
        Shape::Section,
        "section",
        Missing::Means("the defaults of its keys"),
        meaning,
    )
}
const fn named(path: &'static str, missing: Missing, meaning: &'static str) -> Field {
    Field::new(path, Shape::Named, "names", missing, meaning)
}
const fn items(path: &'static str, meaning: &'static str) -> Field {
    Field::new(path, Shape::Items, "list of sections", Missing::Refused, meaning)
}

use Missing::{Means, Refused};
use Protocol::{Tcp, Udp};

/// The table, in the order of the reference.
#[rustfmt::skip]
pub static FIELDS: &[Field] = &[
    value::<usize>("workers", "auto", "Event loops; auto = the CPUs that this process may use.").or("auto").unit("threads").range("1..1024"),
    value::<SocketPath>("admin", "/run/weir/admin.sock", "Unix socket for `weir status` and the like, mode 0660."),
    value::<SocketAddr>("metrics", "off", "HTTP endpoint: /metrics, /status, /healthz and a page at /.").or("off").example("127.0.0.1:9109"),

    section("log", "Logging."),
    value::<log::LevelFilter>("log.level", "info", "Threshold of the event log, which goes to stderr."),
    value::<AccessTarget>("log.access", "stdout", "Where the record of each ended connection or session goes; a file is reopened on HUP."),
    value::<LogFormat>("log.format", "text", "Form of both logs: key=value, or a JSON object a line."),
    value::<Duration>("log.interim", "off", "Period of interim records of connections that live on.").or("off").range("1s..24h").example("5m"),

    section("limits", "Limits of the whole process."),
    value::<u32>("limits.connections", "auto", "Live TCP connections; auto = what the descriptor limit can carry.").or("auto").unit("connections").range("1..10000000"),
    value::<u32>("limits.udp_sessions", "auto", "Live UDP sessions; auto = what the descriptor limit can carry.").or("auto").unit("sessions").range("1..10000000"),
    value::<Duration>("shutdown_grace", "30s", "How long connections may finish after TERM.").range("0s..24h"),

    section("kernel", "The kernel engine: listeners with `engine: kernel`."),
    list::<Interface>("kernel.interfaces", Means("auto, every Ethernet interface, also one that appears later"), "auto", "Interfaces that packets of clients and backends arrive at.").or("auto").range("0..256"),
    value::<u32>("kernel.flows", "auto", "Established connections and sessions at most; auto = 262144. Each takes about 500 bytes of kernel memory. A change takes a restart.").or("auto").unit("flows").range("1024..4194304"),
    value::<Duration>("kernel.restart_grace", "30s", "How long connections go on when weir has ended or was killed: a weir that is started within that time takes them over.").range("0s..1h"),

    named("listeners", Means("refused, unless there is `failover`: then addresses move, and nothing is balanced"), "Where clients connect.").example(r#"{web: {bind: "0.0.0.0:80", pool: web}}"#),
    section("listeners.*", "A named set of addresses that share a pool and a policy."),
    value::<Protocol>("listeners.*.protocol", "tcp", "Transport.").udp("udp"),
    value::<Engine>("listeners.*.engine", "proxy", "What carries it. proxy: sockets of weir. kernel: packets are translated in the kernel; needs CAP_BPF and CAP_NET_ADMIN, see docs/kernel-engine.md. Listeners of both may use one pool."),
    list::<Bind>("listeners.*.bind", Refused, "[\"0.0.0.0:80\", \"[::]:80\"]", "Addresses: 1.2.3.4:80, [2001:db8::1]:80, [fe80::1%eth0]:80, a port range 0.0.0.0:8000-8010, or (tcp) unix:/path; port 0 lets the kernel choose. With an interface behind the port, 0.0.0.0:80%eth0, only what comes in by that interface (or VRF) is served, and answered through it.").range("1..1024").udp("[\"0.0.0.0:53\"]"),
    optional::<Name>("listeners.*.pool", "refused, unless `routes` have it", "The pool that serves it; with `routes`, the rest of it: connections without a name, with another one or without TLS. Needed, unless there are `routes`.").example("web").udp("dns"),
    named("listeners.*.routes", Means("`pool` serves all"), "Pools by the server name in the TLS hello, which is read and passed on untouched. A name wins over a wildcard, and `*` stands for one label, as in certificates.").range("1..100000").only(Tcp).example(r#"{"*.example.org": web}"#),
    required::<Name>("listeners.*.routes.*", "web", "The pool that serves this name.").only(Tcp),
    list::<IpNet>("listeners.*.allow", Means("everybody"), "[10.0.0.0/8]", "If given, other sources are refused. A bare address means itself alone.").range("1..100000"),
    list::<IpNet>("listeners.*.deny", Means("nobody"), "[10.66.0.0/16]", "Sources that are refused, whatever `allow` says."),
    section("listeners.*.limits", "Caps and rates of this listener."),
    value::<u32>("listeners.*.limits.connections", "unlimited", "Live connections or sessions.").or("unlimited").unit("connections").range("1..10000000").example("10000"),
    value::<u32>("listeners.*.limits.per_source", "unlimited", "Live connections or sessions of one source address.").or("unlimited").unit("connections").range("1..10000000").example("100"),
    value::<Rate>("listeners.*.limits.new_per_source", "unlimited", "New connections or sessions of one source address.").or("unlimited").range("1/s..1000000/s").example("50/s"),
    list::<IpNet>("listeners.*.limits.exempt", Means("nobody"), "[10.1.0.0/16]", "Sources to which the two above do not apply."),
    value::<Bandwidth>("listeners.*.limits.download", "unlimited", "Towards the client, each connection.").or("unlimited").range("1KB/s..1000GB/s").example("10MiB/s").only(Tcp),
    value::<Bandwidth>("listeners.*.limits.upload", "unlimited", "From the client, each connection.").or("unlimited").range("1KB/s..1000GB/s").example("10MiB/s").only(Tcp),
    section("listeners.*.timeouts", "Ends of connections that no side closes.").only(Tcp),
    value::<Duration>("listeners.*.timeouts.idle", "10m", "No byte in either direction for so long ends the connection.").or("off").range("10ms..30d"),
    value::<Duration>("listeners.*.timeouts.half_close", "60s", "After one direction has ended, the other may be silent for so long.").or("off").range("10ms..30d"),
    value::<Duration>("listeners.*.timeouts.max_age", "off", "Longest life of a connection, jittered by up to a tenth.").or("off").range("1s..365d"),
    value::<Duration>("listeners.*.timeouts.hello", "5s", "With `routes`: how long a client may take for its TLS hello. Who has sent none by then is served by `pool`, or refused.").range("50ms..5m"),
    value::<u32>("listeners.*.backlog", "auto", "Connections that may wait to be accepted at each address, in each worker's queue; more are dropped, and clients try again. auto = as many as the kernel allows (net.core.somaxconn), which bounds a number too. A reload changes it without losing any.").or("auto").unit("connections").range("1..2147483647").example("4096").only(Tcp),
    section("listeners.*.keepalive", "Noticing clients that have vanished.").or("off").only(Tcp),
    value::<Duration>("listeners.*.keepalive.idle", "60s", "Silence after which the kernel asks whether the peer is still there.").range("1s..9h"),
    value::<Duration>("listeners.*.keepalive.interval", "10s", "Between questions that are not answered.").range("1s..1h"),
    value::<u32>("listeners.*.keepalive.probes", "6", "Questions without an answer that end the connection.").unit("questions").range("1..127"),
    value::<Duration>("listeners.*.keepalive.user_timeout", "2m", "Bytes under way to a peer that has not given any sign of life for so long end the connection. One that answers, but does not read, lives.").or("off").range("1s..24h"),
    section("listeners.*.accept_proxy", "Accept PROXY protocol headers (v1 and v2), from these sources only.").or("off").off().only(Tcp),
    list::<IpNet>("listeners.*.accept_proxy.from", Refused, "[10.0.0.0/24]", "These sources must start with a header, or are closed; from others nothing is parsed.").range("1..10000"),
    section("listeners.*.udp", "Ends of UDP sessions.").only(Udp).udp("section"),
    value::<Duration>("listeners.*.udp.idle", "30s", "A session without a datagram for so long ends.").range("10ms..24h").udp("30s"),
    value::<u32>("listeners.*.udp.requests", "unlimited", "Datagrams from the client after which the session ends; the next one opens another.").or("unlimited").unit("datagrams").range("1..4294967295").udp("unlimited"),
    value::<u32>("listeners.*.udp.replies", "unlimited", "A session ends when its backend has answered each request with so many datagrams: 1 for DNS, 0 for one-way traffic.").or("unlimited").unit("datagrams").range("0..4294967295").udp("1"),

    named("pools", Means("refused, if there are `listeners`"), "Where connections go.").example(r#"{web: {backends: ["10.0.0.1:80", "10.0.0.2:80"]}}"#),
    section("pools.*", "A named set of backends with one policy."),
    value::<Balance>("pools.*.balance", "least_conn", "How a backend is chosen; every way heeds weights. least_time goes by the time from opening a connection to the first byte of the backend (UDP: to its first answer), smoothed, times the connections that it has."),
    section("pools.*.source_hash", "Parameters of `balance: source_hash` (Maglev)."),
    value::<u8>("pools.*.source_hash.prefix_v4", "32", "Leading bits of an IPv4 source that count.").unit("bits").range("1..32"),
    value::<u8>("pools.*.source_hash.prefix_v6", "128", "Leading bits of an IPv6 source that count.").unit("bits").range("1..128"),
    value::<bool>("pools.*.source_hash.port", "false", "Whether the source port counts too."),
    value::<f64>("pools.*.source_hash.bounded_load", "off", "No backend carries more than so many times the mean.").or("off").unit("times the mean").range("1.01..100"),
    value::<u64>("pools.*.source_hash.seed", "0", "Nodes that shall agree have the same seed."),
    items("pools.*.backends", "The servers: sections, or plain addresses. Beside `members` they may be left out.").range("1..65535").example(r#"["10.0.0.1:80", "10.0.0.2:80"]"#),
    optional::<Label>("pools.*.backends.*.name", "its address", "Name, unique in the pool.").example("a").udp("ns1"),
    required::<BackendPlace>("pools.*.backends.*.address", "10.0.0.11:8080", "1.2.3.4:80, [2001:db8::1]:80, [fe80::1%eth0]:80, a name db.internal:5432, (tcp) unix:/path; without a port: the port that the client used.").udp("10.0.0.53:53"),
    value::<u32>("pools.*.backends.*.weight", "1", "Share of the work; 0 = no new work.").range("0..65535"),
    value::<u32>("pools.*.backends.*.max_connections", "unlimited", "Live connections or sessions, of both engines together (docs/kernel-engine.md says how exactly).").or("unlimited").unit("connections").range("1..10000000").example("500"),
    value::<bool>("pools.*.backends.*.backup", "false", "Serves only while no primary is up."),
    items("pools.*.members", "Sources of further backends, which come and go without a reload (docs/discovery.md).").left_out("none").range("1..64").example("[{file: /etc/weir/members/web.yaml}]"),
    optional::<AbsolutePath>("pools.*.members.*.file", "another source", "A file with a list of backends (YAML or JSON), each as under `backends`; applied whenever it changes.").example("/etc/weir/members/web.yaml").entry(),
    value::<bool>("pools.*.members.*.allow_empty", "false", "Whether an answer without members counts. Else the last ones stay."),
    optional::<HostName>("pools.*.members.*.dns", "another source", "A name; its A and AAAA records are the members, looked up again when they run out. A name where a backend's address stands is the same.").example("web.internal").entry(),
    optional::<u16>("pools.*.members.*.port", "the one that the client used", "Port of the members that `dns` names.").range("1..65535").example("8080"),
    value::<Family>("pools.*.members.*.family", "any", "Which addresses of names are members."),
    value::<u32>("pools.*.members.*.weight", "1", "Share of each member, unless the source says it.").range("0..65535"),
    value::<u32>("pools.*.members.*.max_connections", "unlimited", "Live connections or sessions of each member, unless the source says it.").or("unlimited").unit("connections").range("1..10000000"),
    value::<bool>("pools.*.members.*.backup", "false", "Whether the members serve only while no primary is up, unless the source says it."),
    optional::<HostName>("pools.*.members.*.srv", "another source", "A service; address, port and weight come from its SRV records. The lowest priority serves, the others are backups.").example("_http._tcp.web.internal").entry(),
    optional::<MemberPrefix>("pools.*.members.*.etcd", "another source", "A prefix; each key below it is a member, its value an address, or an object such as {\"address\": \"10.0.0.1:80\", \"weight\": 3}. The cluster is that of `etcd`, or else of `failover.arbiter`.").example("/services/web/").entry(),
    section("pools.*.members.*.docker", "Running containers with a label (Docker, Podman).").off().entry(),
    value::<String>("pools.*.members.*.docker.label", "weir.pool=web", "The label, KEY or KEY=VALUE."),
    value::<u16>("pools.*.members.*.docker.port", "8080", "Port of the containers.").range("1..65535"),
    optional::<Name>("pools.*.members.*.docker.network", "any that gives them an address", "Network in which they are reached.").example("bridge"),
    value::<AbsolutePath>("pools.*.members.*.docker.socket", "/var/run/docker.sock", "The engine's socket; who may connect to it may do everything on that machine."),
    section("pools.*.resolver", "How this pool's names are looked up."),
    list::<NameServer>("pools.*.resolver.servers", Means("the system's, by /etc/resolv.conf"), "[]", "Name servers, such as 10.0.0.2:53, asked in this order.").range("0..16"),
    value::<Duration>("pools.*.resolver.timeout", "1s", "How long a server may take; each is asked twice.").range("10ms..30s"),
    value::<Duration>("pools.*.resolver.min_ttl", "1s", "Records that run out sooner are asked for again after so long.").range("50ms..1h"),
    value::<Duration>("pools.*.resolver.max_ttl", "5m", "Records that last longer are asked for again after so long.").range("50ms..24h"),
    section("pools.*.health", "Active health checks.").or("none").udp("section"),
    optional::<ProbeKind>("pools.*.health.type", "tcp; in a pool that only udp listeners use: udp with `send`, tcp with `port`, else none", "tcp: connect, then send and expect if given. udp: send, and any answer or the expected one. none: always up.").example("tcp").udp("udp"),
    value::<Duration>("pools.*.health.interval", "2s", "Between probes of one backend.").range("50ms..1h"),
    value::<Duration>("pools.*.health.timeout", "1s", "Of one probe, from connect to verdict.").range("1ms..5m"),
    value::<u32>("pools.*.health.rise", "2", "Successes in a row that bring a backend up.").unit("probes").range("1..100"),
    value::<u32>("pools.*.health.fall", "3", "Failures in a row that take a backend down.").unit("probes").range("1..100"),
    optional::<u16>("pools.*.health.port", "the backend's own", "Port to probe.").range("1..65535").example("8081"),
    optional::<Payload>("pools.*.health.send", "nothing is sent", "Bytes to send: text, or hex:00ff1a.").example("\"PING\\r\\n\"").udp("\"hex:0001 0100 0001 0000 0000 0000 00 0002 0001\""),
    optional::<Payload>("pools.*.health.expect", "any answer", "Bytes that the answer must contain.").example("\"+PONG\""),
    section("pools.*.health.http", "Ask in HTTP/1.1, in place of `send` and `expect`; of the answer only the status counts.").or("off").off(),
    value::<HttpMethod>("pools.*.health.http.method", "GET", "How it is asked for."),
    value::<HttpPath>("pools.*.health.http.path", "/", "What is asked for.").example("/healthz"),
    optional::<HttpHost>("pools.*.health.http.host", "the backend's address", "The `Host` header.").example("www.example.org"),
    list::<Statuses>("pools.*.health.http.expect", Means("200-399"), "[200]", "Statuses that pass, ranges among them.").range("1..100"),
    value::<bool>("pools.*.health.tls", "false", "Speak TLS first; the certificate is not verified unless `ca` is given.").example("true"),
    optional::<AbsolutePath>("pools.*.health.ca", "certificates are not verified", "Certificates (PEM) that must have signed that of the backend.").example("/etc/weir/ca.pem"),
    optional::<ServerName>("pools.*.health.server_name", "none; with `ca` the address is looked for", "Sent as the server's name, and looked for in its certificate.").example("www.example.org"),
    section("pools.*.health.agent", "A program beside each backend that says, in a line, how it is: `up`, `down`, `ready`, `drain`, `maint`, `75%` (of its weight), as HAProxy's agent-check. What it says holds until it says something else; no answer changes nothing.").or("off").off(),
    required::<u16>("pools.*.health.agent.port", "9777", "Port of the agent, at the backend's address.").range("1..65535"),
    value::<Duration>("pools.*.health.agent.interval", "2s", "Between questions.").range("50ms..1h"),
    optional::<Payload>("pools.*.health.agent.send", "nothing is sent", "Bytes to send: text, or hex:00ff1a.").example("\"weir\\n\""),
    section("pools.*.passive", "Ejection by failures of real traffic; never the last backend.").or("off"),
    value::<u32>("pools.*.passive.failures", "3", "Failures within the window that eject.").unit("failures").range("1..10000"),
    value::<Duration>("pools.*.passive.window", "10s", "The window.").range("100ms..1h"),
    value::<Duration>("pools.*.passive.eject", "10s", "First ejection; doubles with each in a row, up to ten times this.").range("100ms..1h"),
    section("pools.*.connect", "Connecting to a backend."),
    value::<Duration>("pools.*.connect.timeout", "2s", "For all attempts together.").range("1ms..5m").only(Tcp),
    value::<u32>("pools.*.connect.attempts", "3", "Each goes to a different backend.").unit("attempts").range("1..100").only(Tcp),
    optional::<u32>("pools.*.connect.mark", "none", "Mark (SO_MARK) of packets to backends, health checks among them, for rules of routing (`ip rule fwmark`) and of the packet filter. It takes CAP_NET_RAW, or CAP_NET_ADMIN before Linux 5.17; the first use takes a restart.").range("1..4294967295").example("7"),
    optional::<Dscp>("pools.*.connect.dscp", "0", "Class (DSCP) of packets to backends, health checks among them: 0 to 63, or a name such as ef, af41, cs3. The TOS byte is four times that.").example("af41"),
    section("pools.*.connect.keepalive", "Noticing backends that have vanished.").or("off").only(Tcp),
    value::<Duration>("pools.*.connect.keepalive.idle", "60s", "Silence after which the kernel asks whether the peer is still there.").range("1s..9h"),
    value::<Duration>("pools.*.connect.keepalive.interval", "10s", "Between questions that are not answered.").range("1s..1h"),
    value::<u32>("pools.*.connect.keepalive.probes", "6", "Questions without an answer that end the connection.").unit("questions").range("1..127"),
    value::<Duration>("pools.*.connect.keepalive.user_timeout", "2m", "Bytes under way to a peer that has not given any sign of life for so long end the connection. One that answers, but does not read, lives.").or("off").range("1s..24h"),
    section("pools.*.queue", "While every backend that takes new work has its `max_connections`, connections wait here, in order of arrival. Sessions do not: their datagrams are dropped.").or("off").off().only(Tcp),
    value::<u32>("pools.*.queue.length", "1000", "So many wait at most.").unit("connections").range("1..1000000"),
    value::<Duration>("pools.*.queue.timeout", "5s", "So long at most.").range("10ms..1h"),
    value::<Duration>("pools.*.slow_start", "off", "A returning backend gets its full share only after so long.").or("off").range("100ms..1h").example("30s"),
    optional::<OnDown>("pools.*.on_down", "keep for connections, repick for UDP sessions", "What happens to what is live at a backend that goes down. keep: it goes on. close: connections are reset, sessions move. repick: sessions move to another backend with their next datagram, as long as there is one; connections go on.").example("keep").udp("repick"),
    value::<OnMarkedUp>("pools.*.on_marked_up", "keep", "What happens to what is live at backups when a primary comes up. keep: it goes on. close_backup: connections are reset (cause `primary_back`), UDP sessions go to the primary."),
    section("pools.*.on_drain", "Connections of a backend that is drained."),
    value::<Duration>("pools.*.on_drain.finish", "60s", "They may go on for so long, then are closed, spread over the last part.").or("off").range("0s..24h"),
    value::<AllDown>("pools.*.all_down", "refuse", "When no backend is up: refuse, or try every one as if it were up."),
    value::<SendProxy>("pools.*.send_proxy", "off", "PROXY header sent to the backend.").udp("v2"),
    optional::<IpAddr>("pools.*.source_address", "the kernel's choice", "Local address of connections to backends; with `client_address: keep` of health checks alone.").example("10.0.0.5"),
    value::<ClientAddress>("pools.*.client_address", "hide", "hide: backends see an address of this host. keep: they see the client's address and port, or those of the PROXY header; their way back to clients must lead through this host (docs/guide.md), and a later change to `keep` takes a restart. With `engine: kernel` it stands for `kernel: {mode: keep}`."),
    section("pools.*.kernel", "How the kernel engine sends to these backends."),
    optional::<KernelMode>("pools.*.kernel.mode", "nat; keep with `client_address: keep`", "nat: backends see an address of this host. keep: they see the client, and answer through this host. dsr: they have the service's address themselves, and answer the client directly.").example("nat"),
    list::<IpAddr>("pools.*.kernel.source_addresses", Means("`source_address`, or the one that the host would use"), "[10.0.0.5, 10.0.0.6]", "Local addresses of connections to backends in mode nat. Each has ports of its own, 36280 towards each backend: the client's address and port say which of them is taken, and when no port of it is free, it is the turn of the next.").range("1..8"),

    section("etcd", "The etcd cluster that members come from.").off(),
    list::<EtcdEndpoint>("etcd.endpoints", Refused, "[\"https://10.0.0.5:2379\"]", "Its members, or proxies before them.").range("1..16"),
    optional::<AbsolutePath>("etcd.ca", "none, which only http allows", "Certificates, in PEM, that sign those of the members.").example("/etc/weir/etcd-ca.pem"),
    optional::<AbsolutePath>("etcd.cert", "none", "This node's certificate, if the members ask for one.").example("/etc/weir/etcd.pem"),
    optional::<AbsolutePath>("etcd.key", "none", "Its private key; a file that others can read is refused.").example("/etc/weir/etcd.key"),
    optional::<Name>("etcd.user", "none", "User name, if the cluster has users.").example("weir"),
    optional::<AbsolutePath>("etcd.password_file", "none", "The user's password; a file that others can read is refused.").example("/etc/weir/etcd-password"),

    section("failover", "Virtual IP addresses that move between nodes.").off(),
    required::<Name>("failover.node", "a", "This node, a key of `nodes`."),
    optional::<AbsolutePath>("failover.secret_file", "`secret_files` is there", "Shared secret that signs beats; a file that others can read is refused. Needed, unless there are `secret_files`.").example("/etc/weir/secret"),
    list::<AbsolutePath>("failover.secret_files", Means("`secret_file` alone"), "[]", "Shared secrets, in place of `secret_file`, to change one node by node, such as `[/etc/weir/new, /etc/weir/old]`: beats are signed with the first, all are accepted.").range("0..4"),
    value::<Duration>("failover.startup_delay", "3s", "How long a node that has started, or whose link has come up, claims nothing while it hears no other node: its switch port may not forward yet. Once a node is heard, it listens for dead_after and two beats.").range("0s..5m"),
    value::<Duration>("failover.withdraw_delay", "1s", "With `hold: all`: how long a node that stops goes on accepting after the address has been withdrawn, while routers learn of it; within shutdown_grace.").range("0s..5m"),
    value::<Duration>("failover.beat", "50ms", "Period of beats; less than a third of dead_after.").range("10ms..10s"),
    value::<Duration>("failover.dead_after", "250ms", "Silence after which a node counts as dead.").range("50ms..60s"),
    named("failover.nodes", Refused, "Beat addresses of all nodes, this one included.").range("1..31").example(r#"{a: "10.0.0.1:7400", b: "10.0.0.2:7400"}"#),
    required::<SocketAddr>("failover.nodes.*", "10.0.0.1:7400", "The node's address and port."),
    named("failover.paths", Means("none"), "Further beat addresses of nodes, by name: beats go over all of them, and any of them proves life. The first of one node speaks with the first of the other, and so on.").range("1..31").example(r#"{a: ["192.168.9.1:7400"], b: ["192.168.9.2:7400"]}"#),
    list::<SocketAddr>("failover.paths.*", Refused, "[\"192.168.9.1:7400\"]", "Addresses and ports of this node.").range("1..7"),
    named("failover.groups", Means("none"), "Addresses that are held by the same node, always together: if one of them cannot be held, none of them is.").range("1..256").example("{outside: [10.0.0.100]}"),
    list::<IpAddr>("failover.groups.*", Refused, "[10.0.0.100]", "Addresses of `vips`, without prefix length; they must have the same `prefer`, `preempt` and `preempt_delay`.").range("1..1024"),
    named("failover.track", Means("nothing"), "What this node watches beside its own service: one of tcp, interface and exec each. A node whose sum of weights of what holds is lower ranks after one whose sum is higher, whatever `prefer` says.").range("1..32").example(r#"{gw: {tcp: "10.0.0.254:22", weight: 50}, uplink: {interface: eth1}}"#),
    section("failover.track.*", "One thing that is watched."),
    optional::<SocketAddr>("failover.track.*.tcp", "something else is watched", "An endpoint that must take connections.").example("10.0.0.254:22"),
    optional::<Interface>("failover.track.*.interface", "something else is watched", "An interface that must be up and have a carrier; it counts at once.").example("eth1").alternative(),
    list::<String>("failover.track.*.exec", Means("something else is watched"), "[/usr/local/bin/check, --quick]", "Program and arguments, run without a shell; it must end with 0. A single text is a path without arguments.").range("1..64").alternative(),
    optional::<u32>("failover.track.*.weight", "it must hold, or this node holds nothing", "What it adds to this node's rank while it holds; the same on all nodes.").unit("points").range("1..1000").example("50"),
    value::<Duration>("failover.track.*.interval", "1s", "From one question to the next.").range("100ms..1h"),
    value::<Duration>("failover.track.*.timeout", "500ms", "How long an answer may take; a script is killed then, with everything that it has started.").range("10ms..5m"),
    value::<u32>("failover.track.*.rise", "2", "Good answers in a row after which it holds again.").unit("answers").range("1..100"),
    value::<u32>("failover.track.*.fall", "3", "Bad answers in a row after which it does not hold.").unit("answers").range("1..100"),
    list::<SocketAddr>("failover.witnesses", Means("none"), "[\"10.0.0.254:22\"]", "TCP endpoints that vote by answering.").range("0..31"),
    section("failover.arbiter", "One more voter, which has a memory: it gives its vote to one node at a time. For two nodes that must never both hold.").off(),
    section("failover.arbiter.etcd", "An etcd cluster, version 3.4 or later, best with three members on machines of their own.").off(),
    list::<EtcdEndpoint>("failover.arbiter.etcd.endpoints", Refused, "[\"https://10.0.0.5:2379\", \"https://10.0.0.6:2379\", \"https://10.0.0.7:2379\"]", "Its members, or proxies before them.").range("1..16"),
    value::<KeyPrefix>("failover.arbiter.etcd.prefix", "/weir", "Before all keys; the same on all nodes, and another one for other groups of nodes."),
    optional::<AbsolutePath>("failover.arbiter.etcd.ca", "none, which only http allows", "Certificates, in PEM, that sign those of the members.").example("/etc/weir/etcd-ca.pem"),
    optional::<AbsolutePath>("failover.arbiter.etcd.cert", "none", "This node's certificate, if the members ask for one.").example("/etc/weir/etcd.pem"),
    optional::<AbsolutePath>("failover.arbiter.etcd.key", "none", "Its private key; a file that others can read is refused.").example("/etc/weir/etcd.key"),
    optional::<Name>("failover.arbiter.etcd.user", "none", "User name, if the cluster has users.").example("weir"),
    optional::<AbsolutePath>("failover.arbiter.etcd.password_file", "none", "The user's password; a file that others can read is refused.").example("/etc/weir/etcd-password"),
    value::<bool>("failover.arbiter.strict", "false", "Never both, even if a node stands still as a whole: nothing is claimed before every kernel has let go by itself, 3 s later, unless the other node has said so; planned moves break before they make."),
    value::<u32>("failover.quorum", "auto", "Voters that must be reached; auto = a majority of nodes, witnesses and the arbiter when there are three or more of them, else 1.").or("auto").unit("voters").range("1..62"),
    items("failover.vips", "The virtual addresses.").range("1..1024").example(r#"[{address: 10.0.0.100/24, interface: eth0}]"#),
    required::<VipAddress>("failover.vips.*.address", "10.0.0.100/24", "Address with its prefix length."),
    required::<Interface>("failover.vips.*.interface", "eth0", "Where it is installed."),
    value::<Holders>("failover.vips.*.hold", "one", "one: one node holds it. all: every node that serves holds it, for a routing daemon to announce (anycast, docs/scale-out.md); on `lo` or a dummy interface, with a whole prefix (/32, /128)."),
    list::<Name>("failover.vips.*.prefer", Means("all nodes, in the order of `nodes`"), "[a]", "The nodes that may hold it, in order of preference.").range("1..31"),
    value::<bool>("failover.vips.*.preempt", "true", "Whether a more preferred node takes the address back."),
    value::<Duration>("failover.vips.*.preempt_delay", "5s", "How long that node must have been healthy first.").range("0s..24h"),
    value::<Duration>("failover.vips.*.garp_refresh", "off", "Gratuitous ARP or neighbour advertisements are repeated so often while it is held.").or("off").range("1s..24h"),
    list::<Name>("failover.vips.*.requires", Means("none"), "[web]", "Pools that must have a backend."),
    list::<String>("failover.notify", Means("none"), "[/usr/local/bin/vip-moved, --verbose]", "Program and arguments, run without a shell on each transition; a single text is a path without arguments.").range("1..64"),
];

/// The row of a path.
pub fn field(path: &str) -> Option<&'static Field> {
    static BY_PATH: LazyLock<HashMap<&str, &Field>> = LazyLock::new(|| FIELDS.iter().map(|f| (f.path, f)).collect());
    BY_PATH.get(path).copied()
}

/// The rows directly below a path.
pub fn below(path: &str) -> &'static [&'static Field] {
    static BY_PARENT: LazyLock<HashMap<&str, Vec<&Field>>> = LazyLock::new(|| {
        let mut map: HashMap<&str, Vec<&Field>> = HashMap::new();
        FIELDS.iter().for_each(|f| map.entry(f.parent()).or_default().push(f));
        map
    });
    BY_PARENT.get(path).map_or(&[], Vec::as_slice)
}
