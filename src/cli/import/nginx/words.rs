//! What to say about the words of nginx that have no meaning here, one row a directive. An empty reason: it is so anyway.

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;

/// Directives without a counterpart, and why; those of a server that do have one are in `SERVER`.
const REMARKS: &[(&str, &str)] = &[
    (
        "http",
        "HTTP is not looked into here: keep nginx for it, with weir before or behind it",
    ),
    (
        "mail",
        "mail is not looked into here: its ports can be passed through by listeners",
    ),
    ("user", "is what the service unit does: `systemctl edit weir`"),
    ("pid", "is what the service unit does"),
    ("daemon", "is what the service unit does"),
    ("master_process", "one process serves all"),
    ("load_module", "modules are not loaded"),
    ("error_log", "events go to standard error: `log.level`"),
    (
        "worker_rlimit_nofile",
        "the limit on open files is raised as far as it may be: LimitNOFILE= of the unit",
    ),
    ("worker_cpu_affinity", "CPUs are given by the unit: CPUAffinity="),
    ("worker_priority", "priority is given by the unit: Nice="),
    ("worker_shutdown_timeout", "write `shutdown_grace`"),
    (
        "worker_connections",
        "counts both sides of each worker there: `limits.connections` counts clients of the whole process",
    ),
    ("multi_accept", ""),
    ("use", ""),
    ("accept_mutex", ""),
    ("env", "variables are not expanded"),
    ("pcre_jit", ""),
    (
        "access_log",
        "each connection has its record on standard output, or in the file of `log.access`",
    ),
    ("log_format", "records are key=value, or JSON: `log.format`"),
    (
        "map",
        "a pool is chosen by `$ssl_preread_server_name` only: give each other case an address, and a listener, of its own",
    ),
    (
        "split_clients",
        "a pool is not chosen by a variable: `weight` spreads the clients of one pool",
    ),
    (
        "geo",
        "a pool is not chosen by a variable: `allow` and `deny` go by the source",
    ),
    ("resolver", "names are not resolved: write addresses"),
    ("resolver_timeout", "names are not resolved"),
    ("limit_conn_log_level", ""),
    ("limit_conn_dry_run", "limits hold"),
    ("limit_conn_status", "belongs to HTTP"),
    ("variables_hash_max_size", ""),
    ("variables_hash_bucket_size", ""),
    ("map_hash_max_size", ""),
    ("map_hash_bucket_size", ""),
    ("tcp_nodelay", ""),
    ("proxy_socket_keepalive", ""),
    ("proxy_buffer_size", ""),
    (
        "proxy_next_upstream_timeout",
        "`connect.timeout` holds for all attempts together",
    ),
    (
        "proxy_half_close",
        "each direction ends by itself: `timeouts.half_close`",
    ),
    ("proxy_session_drop", "write `on_down: close`"),
    ("proxy_protocol_timeout", ""),
    ("preread_buffer_size", ""),
    ("health_check", "probes are on by default: `health` of the pool"),
    ("health_check_timeout", "`health.timeout` of the pool"),
    ("js_", "programs are not run"),
    ("ssl_", "belongs to TLS, which is not ended here"),
    ("zone_sync", "nodes have nothing to tell each other"),
    ("server_name", "a listener is chosen by its address alone"),
    ("status_zone", "`weir status` and `metrics: ADDRESS` show what goes on"),
    ("sticky", "`balance: source_hash` keeps a client with its server"),
    ("state", "write the servers into the file"),
    ("zone", ""),
    ("ntlm", "belongs to HTTP"),
    ("keepalive", "belongs to HTTP"),
    ("keepalive_", "belongs to HTTP"),
    (
        "queue",
        "connections do not wait for a server: beyond `max_connections` another one is chosen",
    ),
    ("least_time", ""),
    ("limit_conn_zone", ""),
    ("set", "variables are not expanded"),
    ("pass", "a socket is not handed to another module"),
    ("return", "a fixed answer is not given: keep nginx for it"),
];

/// Says why nothing is written for a statement, if there is anything to say.
pub fn remark(statement: &Statement, draft: &mut Draft) {
    let word = statement.word(0);
    let fits = |row: &&(&str, &str)| row.0 == word || row.0.ends_with('_') && word.starts_with(row.0);
    match REMARKS.iter().filter(fits).max_by_key(|row| row.0.len()) {
        Some((_, "")) => {}
        Some((_, why)) => draft.remark(statement, why),
        None => draft.remark(statement, "has no meaning here"),
    }
}
