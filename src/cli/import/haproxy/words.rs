//! What to say about the words of HAProxy that have no meaning here, one row a directive. An empty reason: it is so anyway.

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;

/// First words of a line, and why nothing is written for it.
pub type Row = (&'static str, &'static str);

const HTTP: &str = "belongs to HTTP, which is not looked into here";
const TLS: &str = "belongs to TLS, which is not ended here";
const SERVICE: &str = "is what the service unit does: `systemctl edit weir`";
const LOG: &str = "each connection has its record on standard output, or in the file of `log.access`";
const STATS: &str = "`weir status`, `weir top` and `metrics: ADDRESS` show what goes on";
const STICK: &str = "nothing is kept in tables: `balance: source_hash` keeps a client with its server, `limits.per_source` and \
                     `limits.new_per_source` count what each source has";
const QUEUE: &str = "connections do not wait for a server: beyond `max_connections` another one is chosen";
const NAMES: &str = "names are not resolved: write addresses";

/// Sections other than `global`, `defaults`, `frontend`, `backend` and `listen`.
pub const SECTION_REMARKS: &[Row] = &[
    (
        "peers",
        "workers share their counts, and nothing has to be told to other nodes: `source_hash` comes to the same on each",
    ),
    ("resolvers", NAMES),
    ("userlist", HTTP),
    ("mailers", "write an alert rule over the metrics: docs/observability.md"),
    ("cache", HTTP),
    ("program", "other programs have units of their own"),
    ("http-errors", HTTP),
    ("ring", LOG),
    (
        "log-forward",
        "write a listener with `protocol: udp` for syslog datagrams: conf/syslog.yaml",
    ),
    ("fcgi-app", HTTP),
    ("crt-store", TLS),
    ("acme", TLS),
    ("traces", LOG),
    ("log-profile", LOG),
];

/// `global`, beyond what is written.
pub const GLOBAL: &[&[Row]] = &[&[
    ("daemon", SERVICE),
    ("user", SERVICE),
    ("group", SERVICE),
    ("uid", SERVICE),
    ("gid", SERVICE),
    ("chroot", "weir shuts itself in (landlock, seccomp, no capabilities)"),
    ("pidfile", SERVICE),
    ("master-worker", "a reload stays in one process"),
    ("nbproc", "one process uses all CPUs: `workers`"),
    ("cpu-map", "CPUs are given by the unit: CPUAffinity="),
    (
        "ulimit-n",
        "the limit on open files is raised as far as it may be: LimitNOFILE= of the unit",
    ),
    (
        "stats",
        "`weir status`, `weir backend` and the like use the admin socket, `admin`, which is there by default",
    ),
    ("log", LOG),
    ("log-tag", LOG),
    ("log-send-hostname", LOG),
    ("node", "a node has a name in `failover.node`"),
    ("description", "write a comment"),
    ("spread-checks", ""),
    ("quiet", ""),
    ("zero-warning", "`weir check` says what is doubtful"),
    ("strict-limits", ""),
    ("noepoll", ""),
    ("default-path", "paths begin with `/`"),
    ("presetenv", "variables are not expanded"),
    ("setenv", "variables are not expanded"),
    ("resetenv", "variables are not expanded"),
    ("unsetenv", "variables are not expanded"),
    ("maxconnrate", "write `limits.new_per_source` of each listener"),
    ("maxsslconn", TLS),
    ("maxsslrate", TLS),
    ("maxsessrate", "write `limits.new_per_source` of each listener"),
    ("maxpipes", ""),
    ("nosplice", "bytes are spliced where that is cheaper"),
    ("ca-base", TLS),
    ("crt-base", TLS),
    ("localpeer", "nothing has to be told to other nodes"),
    ("server-state-base", "a reload keeps the state of backends"),
    ("server-state-file", "a reload keeps the state of backends"),
    (
        "unix-bind",
        "the socket's file gets the rights that the umask of weir leaves",
    ),
    ("lua-", "programs in Lua are not run"),
    ("wurfl-", HTTP),
    ("51degrees-", HTTP),
    ("deviceatlas-", HTTP),
    ("ssl-", TLS),
    ("tune.", "is found by weir itself"),
    ("h1-", HTTP),
    ("h2-", HTTP),
    ("httpclient.", HTTP),
    ("expose-", HTTP),
    ("insecure-", "external programs are not run as checks"),
    ("external-check", "external programs are not run as checks"),
    ("set-dumpable", SERVICE),
    ("grace", "`shutdown_grace`"),
    ("thread-groups", "`workers`"),
    ("profiling", STATS),
]];

const ANYWHERE: &[Row] = &[
    ("mode", ""),
    ("id", ""),
    ("enabled", ""),
    ("description", "write a comment"),
    ("disabled", ""),
    ("errorfile", HTTP),
    ("errorfiles", HTTP),
    ("errorloc", HTTP),
    ("http-", HTTP),
    ("option http", HTTP),
    ("option forwardfor", HTTP),
    ("option originalto", HTTP),
    ("option accept-invalid", HTTP),
    ("option h1-", HTTP),
    ("option ignore-persist", HTTP),
    ("timeout http-", HTTP),
    ("timeout tarpit", HTTP),
    ("timeout queue", QUEUE),
    ("timeout", ""),
    ("log", LOG),
    ("log-format", LOG),
    ("log-format-sd", LOG),
    ("log-tag", LOG),
    ("error-log-format", LOG),
    ("unique-id-", "each record has an `id`"),
    ("option tcplog", ""),
    ("option dontlog-normal", LOG),
    ("option dontlognull", "connections without a byte have their record too"),
    (
        "option logasap",
        "`log.interim` writes records of connections that live on",
    ),
    ("option log-separate-errors", LOG),
    ("option tcpka", ""),
    ("option socket-stats", ""),
    ("option contstats", ""),
    ("option splice-", ""),
    ("option nolinger", "a clean end is one with FIN"),
    ("option idle-close-on-response", HTTP),
    ("option disable-h2-upgrade", HTTP),
    ("option set-dst", "servers are not chosen by the destination"),
    ("compression", HTTP),
    ("filter", "filters are not run"),
    ("stats", STATS),
    ("monitor-", HTTP),
    ("capture", HTTP),
    ("declare", HTTP),
    ("redirect", HTTP),
    ("rate-limit", "write `limits.new_per_source`"),
    // Read with the listener.
    ("backlog", ""),
    ("stick-table", STICK),
    ("no", ""),
    (
        "email-alert",
        "write an alert rule over the metrics: docs/observability.md",
    ),
    ("bind-process", "one process serves all"),
];

const FRONT_ONLY: &[Row] = &[
    ("bind", ""),
    ("default_backend", ""),
    ("option clitcpka", ""),
    ("option tcp-smart-accept", ""),
    ("tcp-request inspect-delay", "nothing is read before a server is chosen"),
    (
        "tcp-request",
        "only `connection` and `content` with `accept` and `reject` have a meaning here",
    ),
];

const BACK_ONLY: &[Row] = &[
    ("server", ""),
    ("default-server", ""),
    ("server-template", ""),
    ("tcp-check", ""),
    ("option tcp-check", ""),
    ("option redis-check", ""),
    ("option smtpchk", ""),
    ("option httpchk", ""),
    ("option ssl-hello-chk", ""),
    ("http-check", ""),
    ("option mysql-check", "probes do not log in: the port is connected to"),
    ("option pgsql-check", "probes do not log in: the port is connected to"),
    ("option ldap-check", "probes do not log in: the port is connected to"),
    ("option spop-check", "the port is connected to"),
    (
        "option external-check",
        "external programs are not run as checks: the port is connected to",
    ),
    ("external-check", "external programs are not run as checks"),
    ("option redispatch", ""),
    ("option allbackups", ""),
    ("option persist", ""),
    ("option prefer-last-server", HTTP),
    ("option abortonclose", ""),
    ("option srvtcpka", ""),
    ("option log-health-checks", ""),
    ("option tcp-smart-connect", ""),
    ("option checkcache", HTTP),
    (
        "option independent-streams",
        "a byte in either direction counts as life",
    ),
    ("option transparent", "servers are not chosen by the destination"),
    ("transparent", "servers are not chosen by the destination"),
    ("dispatch", "write a backend with its address"),
    ("hash-type", ""),
    ("fullconn", "caps do not move: `max_connections`"),
    ("cookie", HTTP),
    ("stick", STICK),
    (
        "persist",
        "sessions of remote desktops are not looked into: `balance: source_hash`",
    ),
    ("force-persist", HTTP),
    ("ignore-persist", HTTP),
    ("tcp-response", "answers are not looked into"),
    ("use-server", "servers are chosen by `balance`"),
    ("retry-on", HTTP),
    ("load-server-state-from-file", "a reload keeps the state of backends"),
    ("server-state-file-name", "a reload keeps the state of backends"),
    ("max-keep-alive-queue", HTTP),
];

/// Lines that are written, wherever they stand: `defaults` hand those of frontends to backends, and the other way round.
const WRITTEN: &[Row] = &[
    ("acl", ""),
    ("use_backend", ""),
    ("maxconn", ""),
    ("clitcpka-", ""),
    ("tcp-request connection", ""),
    ("tcp-request content", ""),
    ("balance", ""),
    ("hash-balance-factor", ""),
    ("retries", ""),
    ("source", ""),
    ("srvtcpka-", ""),
];

/// What a line may begin with in a section that serves.
pub const PROXY: &[&[Row]] = &[WRITTEN, FRONT_ONLY, BACK_ONLY, ANYWHERE];

/// Says why nothing is written for a line, if there is anything to say.
pub fn remark(line: &Statement, tables: &[&[Row]], draft: &mut Draft) {
    let two = format!("{} {}", line.word(0), line.word(1));
    // Rows that end with a sign stand for all words that begin so; the longest row holds.
    let fits = |row: &&Row| {
        let whole = row.0 == line.word(0) || row.0 == two;
        let open = row.0.ends_with(['-', '.']) || row.0.starts_with("option http") || row.0 == "option accept-invalid";
        whole || open && (line.word(0).starts_with(row.0) || two.starts_with(row.0))
    };
    let rows = tables.iter().flat_map(|table| table.iter()).filter(fits);
    match rows.max_by_key(|row| row.0.len()) {
        Some((_, "")) => {}
        Some((_, why)) => draft.remark(line, why),
        None => draft.remark(line, "has no meaning here"),
    }
}

/// The way of balancing that comes nearest, and why it is not the same.
pub fn balance(algorithm: &str) -> (&'static str, Option<&'static str>) {
    match algorithm.split('(').next().unwrap_or_default() {
        "roundrobin" | "static-rr" => ("round_robin", None),
        "leastconn" => ("least_conn", None),
        "source" => ("source_hash", None),
        "random" => ("random", None),
        "first" => ("least_conn", Some("servers are not filled one after the other")),
        "hash" | "rdp-cookie" => ("source_hash", Some("only the source address is looked at")),
        "uri" | "url_param" | "hdr" => ("least_conn", Some("HTTP is not looked into")),
        _ => ("least_conn", Some("it is not known here")),
    }
}
