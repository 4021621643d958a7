//! What to say about the words of keepalived that have no meaning here, one row a directive. An empty reason: it is so anyway.

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;

const MAIL: &str =
    "write an alert rule over the metrics (docs/observability.md), or a `notify` program that sends mail";
const SERVICE: &str = "is what the service unit does: `systemctl edit weir`";
const ROUTES: &str =
    "routes and rules belong to the network's configuration, such as systemd-networkd; `notify` can move them";
const TRACK: &str =
    "is not translated: what a node watches is written in `failover.track` (endpoints, interfaces, scripts)";
/// See its text.
pub const PROBE: &str = "a probe connects, sends and expects: `health`";

/// What stands anywhere, and why nothing is written for it; "" = it is so anyway.
pub const REMARKS: &[(&str, &str)] = &[
    // Blocks and global definitions.
    ("notification_email", MAIL),
    ("notification_email_from", MAIL),
    ("smtp_", MAIL),
    ("email_", MAIL),
    ("smtp_alert", MAIL),
    ("no_email_faults", MAIL),
    ("router_id", ""),
    ("enable_script_security", ""),
    ("script_user", "commands run as the user of weir"),
    (
        "lvs_sync_daemon",
        "connections are not told to other nodes: at a move they begin anew",
    ),
    ("lvs_", SERVICE),
    ("vrrp_mcast_group", "beats go from node to node: `nodes`"),
    (
        "vrrp_garp_",
        "gratuitous ARP is sent when an address comes, and every `garp_refresh`",
    ),
    (
        "vrrp_gna_",
        "gratuitous ARP is sent when an address comes, and every `garp_refresh`",
    ),
    ("vrrp_", "belongs to VRRP, in place of which signed beats go over TCP"),
    ("checker_", SERVICE),
    ("bfd_", "BFD is not spoken"),
    (
        "bfd_instance",
        "BFD is not spoken: `beat` and `dead_after` notice a node that is gone",
    ),
    (
        "net_namespace",
        "run weir in the namespace: NetworkNamespacePath= in the unit",
    ),
    ("namespace_with_ipsets", SERVICE),
    ("nftables", "no firewall rules are written"),
    ("snmp_", "`metrics: ADDRESS` is there for monitoring"),
    ("enable_snmp_", "`metrics: ADDRESS` is there for monitoring"),
    ("enable_traps", "`metrics: ADDRESS` is there for monitoring"),
    ("enable_dbus", "`failover.notify` tells of changes"),
    ("dbus_", "`notify` tells of changes"),
    ("instance", SERVICE),
    ("process_names", SERVICE),
    ("use_pid_dir", SERVICE),
    ("child_wait_time", SERVICE),
    ("default_interface", ""),
    ("static_", ROUTES),
    ("linkbeat_", TRACK),
    ("interface_up_down_delays", TRACK),
    (
        "garp_group",
        "gratuitous ARP is sent when an address comes, and every `garp_refresh`",
    ),
    ("track_", TRACK),
    // vrrp_instance
    ("state", ""),
    ("virtual_router_id", ""),
    ("version", ""),
    (
        "advert_int",
        "nodes beat every 50 ms and take over after 250: `beat`, `dead_after`",
    ),
    ("old_", ""),
    ("down_timer_adverts", "`dead_after`"),
    (
        "use_vmac",
        "the address moves with gratuitous ARP, not with a MAC address of its own",
    ),
    ("vmac_", ""),
    ("use_ipvlan", "the address moves with gratuitous ARP"),
    ("native_ipv6", ""),
    ("mcast_src_ip", "beats go from node to node: `nodes`"),
    (
        "lvs_sync_daemon_interface",
        "connections are not told to other nodes: at a move they begin anew",
    ),
    (
        "garp_",
        "gratuitous ARP is sent when an address comes, and every `garp_refresh`",
    ),
    ("dont_track_primary", TRACK),
    ("virtual_routes", ROUTES),
    ("virtual_rules", ROUTES),
    ("prompt_", ROUTES),
    ("no_virtual_ipaddress", ""),
    ("promote_secondaries", ""),
    ("accept", ""),
    ("no_accept", "the address is this host's own while it is held"),
    ("strict_mode", ""),
    ("skip_check_adv_addr", ""),
    ("check_unicast_src", ""),
    ("unicast_ttl", ""),
    ("unicast_fault_no_peer", ""),
    ("higher_prio_send_advert", ""),
    ("thread_timer_expired", ""),
    ("kernel_rx_buf_size", ""),
    ("debug", "`log.level`"),
    (
        "notify_",
        "write `notify: [PROGRAM, ARGUMENT...]`: it is run at each change, with what changed in its environment",
    ),
    (
        "notify",
        "write `notify: [PROGRAM, ARGUMENT...]`: it is run at each change, with what changed in its environment",
    ),
    ("global_tracking", TRACK),
    ("sync_group_tracking_weight", TRACK),
    // virtual_server
    ("ip_family", ""),
    ("hashed", ""),
    ("ops", "sessions of one datagram each: `udp: {requests: 1}`"),
    ("flag-", ""),
    ("sh-", ""),
    ("mh-", ""),
    ("alpha", "a backend counts as up until a probe has failed"),
    ("omega", "write `on_down: close`"),
    (
        "quorum",
        "a pool serves while one backend is up: `requires` ties an address to that",
    ),
    ("quorum_", "write `notify`"),
    ("hysteresis", "write `health: {rise: N, fall: N}`"),
    ("ha_suspend", "every node probes"),
    ("retry", ""),
    ("delay_before_retry", "probes come every `health.interval`"),
    ("warmup", ""),
    (
        "inhibit_on_failure",
        "what is connected to a backend that fails stays there: `on_down: keep` is so anyway",
    ),
    ("lthreshold", "the cap has one threshold: `max_connections`"),
    ("persistence_engine", ""),
    ("sorry_server_", ""),
    ("quorum_max", ""),
    ("service_type", ""),
];

/// Says why nothing is written for a statement, if there is anything to say.
pub fn remark(statement: &Statement, draft: &mut Draft) {
    let word = statement.word(0);
    let fits = |row: &&(&str, &str)| row.0 == word || row.0.ends_with(['_', '-']) && word.starts_with(row.0);
    match REMARKS.iter().filter(fits).max_by_key(|row| row.0.len()) {
        Some((_, "")) => {}
        Some((_, why)) => draft.remark(statement, why),
        None => draft.remark(statement, "has no meaning here"),
    }
}
