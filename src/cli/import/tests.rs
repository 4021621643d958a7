//! Whole files: what comes out for what people write, for the examples of Debian's packages, and for text that is broken at
//! random.

use std::fs;
use std::path::{Path, PathBuf};

use super::*;
use crate::base::rng::Rng;
use crate::config;

/// Text as if it were a file called `in`.
fn imported(text: &str, from: Option<Dialect>) -> Result<Finished, Failed> {
    let mut loader = Loader::default();
    let dialect = from.or_else(|| Dialect::recognise(text));
    let dialect = dialect.ok_or(Failed::Refused("not recognised".into()))?;
    let statements = loader.statements(Path::new("in"), text, dialect)?;
    let (sources, unread) = loader.done();
    let mut draft = Draft::new(sources);
    unread.iter().for_each(|(statement, why)| draft.remark(statement, why));
    translate(&[(dialect, statements)], &mut draft);
    Ok(draft.finish())
}

/// `docs/migration.md` shows what is imported and what comes out: each pair of blocks is tried here.
#[test]
fn the_documents_examples_come_out_as_shown() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/migration.md")).unwrap();
    let blocks: Vec<&str> = page.split("\n```").collect();
    let mut pairs = 0;
    for (at, block) in blocks.iter().enumerate() {
        let Some((language, text)) = block.split_once('\n') else {
            continue;
        };
        let dialect = match language {
            "haproxy" => Dialect::Haproxy,
            "nginx" => Dialect::Nginx,
            "keepalived" => Dialect::Keepalived,
            _ => continue,
        };
        let expected = blocks[at + 2].strip_prefix("yaml\n").expect("what comes out follows");
        let finished = imported(text, Some(dialect)).unwrap();
        assert_eq!(Dialect::recognise(text), Some(dialect));
        assert_eq!(
            finished.yaml.as_deref().map(str::trim_end),
            Some(expected),
            "{:#?}",
            finished.remarks
        );
        pairs += 1;
    }
    assert_eq!(pairs, 3);
}

/// A snippet, a line that must come out, and the lines of the snippet that are remarked on.
type Row = (&'static str, &'static str, &'static [u32]);

fn hold(head: &str, rows: &[Row], foot: &str) {
    let above = head.lines().count() as u32;
    for (text, expected, remarked) in rows {
        let finished = imported(&format!("{head}{text}\n{foot}"), None).unwrap();
        let yaml = finished.yaml.clone().unwrap_or_default();
        let found = expected.is_empty() || yaml.lines().any(|line| line.trim() == *expected);
        assert!(found, "{text}\ndoes not make {expected}\n{yaml}{:#?}", finished.remarks);
        let line = |remark: &String| remark.split(':').nth(1).unwrap().parse::<u32>().unwrap() - above;
        let mut lines: Vec<u32> = finished.remarks.iter().map(line).collect();
        lines.dedup();
        assert_eq!(lines, *remarked, "{text}\n{:#?}", finished.remarks);
        accepted(&finished, text);
    }
}

#[test]
fn haproxy_lines() {
    let rows: &[Row] = &[
        ("bind *:80", "bind: [\"0.0.0.0:80\"]", &[]),
        ("bind :80,:81", "bind: [\"0.0.0.0:80\", \"0.0.0.0:81\"]", &[]),
        ("bind :::80", "bind: [\"[::]:80\", \"0.0.0.0:80\"]", &[]),
        ("bind :::80 v6only", "bind: [\"[::]:80\"]", &[]),
        (
            "bind [::]:80 v4v6\nbind *:80",
            "bind: [\"[::]:80\", \"0.0.0.0:80\"]",
            &[],
        ),
        ("bind 192.0.2.1:8000-8010", "bind: [\"192.0.2.1:8000-8010\"]", &[]),
        ("bind unix@/run/x.sock mode 600", "bind: [\"unix:/run/x.sock\"]", &[1]),
        ("bind :80\nbind :443 ssl crt x.pem", "bind: [\"0.0.0.0:80\"]", &[2]),
        (
            "bind :80,:::81 interface eth0",
            "bind: [\"0.0.0.0:80%eth0\", \"[::]:81%eth0\", \"0.0.0.0:81%eth0\"]",
            &[],
        ),
        (
            "bind :80 accept-proxy",
            "accept_proxy: {from: [0.0.0.0/0, \"::/0\"]}",
            &[1],
        ),
        ("bind :80 backlog 7", "backlog: 7", &[]),
        ("backlog 9\nbind :80", "backlog: 9", &[]),
        ("bind :80 tcp-ut 20s", "keepalive: {user_timeout: 20s}", &[]),
        ("bind :80\nmaxconn 300", "limits: {connections: 300}", &[]),
        ("bind :80\ntimeout tunnel 1h", "timeouts: {idle: 1h}", &[]),
        ("bind :80\ntimeout client 2m", "timeouts: {idle: 2m}", &[]),
        ("bind :80\ntimeout client 5s", "timeouts: {idle: 1m}", &[]),
        ("bind :80\ntimeout server 0", "timeouts: {idle: off}", &[]),
        ("bind :80\ntimeout server 1000d", "", &[2]),
        (
            "bind :80\ntimeout client-fin 7s",
            "timeouts: {idle: 1m, half_close: 7s}",
            &[],
        ),
        (
            "bind :80\nacl in src 10.0.0.0/8\ntcp-request connection reject if !in",
            "allow: [10.0.0.0/8]",
            &[],
        ),
        (
            "bind :80\ntcp-request connection reject if { src 10.0.0.1 }",
            "deny: [10.0.0.1]",
            &[],
        ),
        ("bind :80\nacl a path /\nuse_backend x if a", "", &[2, 3]),
        (
            "bind :80\nuse_backend l if { req.ssl_sni -i A.test b.test. }",
            "routes: {a.test: l, b.test: l}",
            &[],
        ),
        (
            "bind :80\ntcp-request inspect-delay 7s\ntcp-request content accept if { req_ssl_hello_type 1 }\n\
             acl web req_ssl_sni -i www.test\nacl web req.ssl_sni,lower ftp.test\nuse_backend l if web or { req.ssl_sni db.test }",
            "routes: {www.test: l, ftp.test: l, db.test: l}",
            &[],
        ),
        (
            "bind :80\ntcp-request inspect-delay 7s\nuse_backend l if { req.ssl_sni a.test }",
            "timeouts: {idle: 1m, hello: 7s}",
            &[],
        ),
        (
            "bind :80\nuse_backend l if { req.ssl_sni -m end .a.test }",
            "routes: {\"*.a.test\": l}",
            &[2],
        ),
        ("bind :80\nuse_backend l if { req.ssl_sni -m end a.test }", "", &[2]),
        ("bind :80\nuse_backend l if { req.ssl_sni -m dom a.test }", "", &[2]),
        ("bind :80\nuse_backend l if { req.ssl_sni -f /names }", "", &[2]),
        (
            "bind :80\nuse_backend l if { req.ssl_sni a.test } { src 10.0.0.1 }",
            "",
            &[2],
        ),
        ("bind :80\nuse_backend l unless { req.ssl_sni a.test }", "", &[2]),
        ("bind :80\nuse_backend x if { req.ssl_sni a.test }", "", &[2]),
        ("bind :80\nuse_backend %[req.ssl_sni,lower,map(/m)]", "", &[2]),
        ("bind :80\nuse_backend l if { req.ssl_sni 10.0.0.1 }", "", &[2]),
        // Seen to fail when a route that is refused took the others with it.
        (
            "bind :80\nuse_backend l if { req.ssl_sni 10.0.0.1 b.test }",
            "routes: {b.test: l}",
            &[2],
        ),
        (
            "bind :80\nserver s 10.0.0.2 weight 5 maxconn 9",
            "- {name: s, address: 10.0.0.2, weight: 5, max_connections: 9}",
            &[],
        ),
        (
            "bind :80\nserver s 10.0.0.2:1 backup",
            "- {name: s, address: \"10.0.0.2:1\", backup: true}",
            &[],
        ),
        (
            "bind :80\nserver s 10.0.0.2:1 disabled",
            "- {name: s, address: \"10.0.0.2:1\", weight: 0}",
            &[],
        ),
        (
            "bind :80\nserver s db.internal:1",
            "- {name: s, address: \"db.internal:1\"}",
            &[],
        ),
        (
            "bind :80\nserver s 10.0.0.2:1 ssl verify none",
            "- {name: o, address: \"10.0.0.1:80\"}",
            &[2],
        ),
        (
            "bind :80\nserver s 10.0.0.2:+1",
            "- {name: o, address: \"10.0.0.1:80\"}",
            &[2],
        ),
        (
            "bind :80\nserver s 10.0.0.2:1 check inter 500 rise 3 fall 4 port 9",
            "health: {interval: 500ms, rise: 3, fall: 4, port: 9}",
            &[3],
        ),
        ("bind :80\ndefault-server check inter 1s", "health: {interval: 1s}", &[]),
        ("bind :80", "health: {type: none}", &[]),
        ("bind :80\ndefault-server send-proxy-v2", "send_proxy: v2", &[]),
        (
            "bind :80\ndefault-server slowstart 10s on-marked-down shutdown-sessions",
            "on_down: close",
            &[],
        ),
        (
            "bind :80\ndefault-server observe layer4 error-limit 7 on-error mark-down",
            "passive: {failures: 7}",
            &[],
        ),
        ("bind :80\nsource 0.0.0.0 usesrc clientip", "client_address: keep", &[2]),
        (
            "bind :80\nsource 10.0.0.5 interface eth1",
            "source_address: 10.0.0.5",
            &[2],
        ),
        (
            "bind :80\ndefault-server source 10.0.0.5 interface eth1",
            "source_address: 10.0.0.5",
            &[2],
        ),
        (
            "bind :80\ndefault-server source 10.0.0.5 usesrc client",
            "client_address: keep",
            &[2],
        ),
        (
            "bind :80\nsource 10.0.0.5 usesrc hdr_ip(x-real-ip)",
            "source_address: 10.0.0.5",
            &[2],
        ),
        // A server of the other family than some clients: it stays, and sees weir's address.
        (
            "bind :::80\nsource 0.0.0.0 usesrc client",
            "- {name: o, address: \"10.0.0.1:80\"}",
            &[2, 3],
        ),
        ("bind :80\nbalance leastconn", "balance: least_conn", &[]),
        (
            "bind :80\nbalance source\nhash-balance-factor 150",
            "source_hash: {bounded_load: \"1.5\"}",
            &[],
        ),
        ("bind :80\nbalance first", "balance: least_conn", &[2]),
        ("bind :80", "balance: round_robin", &[]),
        ("bind :80\nretries 1", "connect: {timeout: 1500ms, attempts: 2}", &[]),
        ("bind :80\nsource 10.0.0.9", "source_address: 10.0.0.9", &[]),
        (
            "bind :80\ndefault-server check\noption redis-check",
            "health: {send: \"*1\\r\\n$4\\r\\nPING\\r\\n\", expect: \"+PONG\"}",
            &[],
        ),
        (
            "bind :80\ndefault-server check\noption tcp-check\ntcp-check send Q\ntcp-check expect string A",
            "health: {send: Q, expect: A}",
            &[],
        ),
        (
            "bind :80\ndefault-server check\noption httpchk GET /h\nhttp-check send hdr Host h\nhttp-check expect status 200,204",
            "http: {method: GET, path: /h, host: h, expect: [200, 204]}",
            &[],
        ),
        (
            "bind :80\ndefault-server check check-ssl check-sni h ca-file /ca.pem",
            "health: {tls: true, server_name: h, ca: /ca.pem}",
            &[],
        ),
        (
            "bind :80\ndefault-server agent-check agent-port 9 agent-inter 3s agent-send x",
            "agent: {port: 9, interval: 3s, send: x}",
            &[],
        ),
        (
            "bind :80\ndefault-server on-marked-up shutdown-backup-sessions",
            "on_marked_up: close_backup",
            &[],
        ),
        (
            "bind :80\nstick-table type ip size 1m\nstick on src\nlog global\nnonsense",
            "",
            &[2, 3, 4, 5],
        ),
    ];
    let head = "defaults\n timeout connect 1500\n timeout server 60s\n timeout client 30s\nlisten l\n";
    hold(head, rows, "server o 10.0.0.1:80\n");
    let whole: &[Row] = &[
        (
            "global\nmaxconn 9\nnbthread 2\nhard-stop-after 90s\ndaemon\nlisten l\nbind :80\nserver s 10.0.0.1:80",
            "shutdown_grace: 90s",
            &[5],
        ),
        (
            "frontend f\nbind :80\ndefault_backend b\nbackend b\nserver s 10.0.0.1:80",
            "pool: b",
            &[],
        ),
        (
            "frontend f\nbind :80\ndefault_backend gone\nlisten l\nbind :81\nserver s 10.0.0.1:80",
            "l:",
            &[3],
        ),
        (
            "frontend f\nmode http\nbind :80\ndefault_backend b\nbackend b\nserver s 10.0.0.1:80",
            "",
            &[1],
        ),
        (
            "defaults a\nretries 4\ndefaults b\nretries 8\nlisten l from a\nbind :80\nserver s 10.0.0.1:80",
            "connect: {attempts: 5}",
            &[],
        ),
        ("listen l\ndisabled\nbind :80\nserver s 10.0.0.1:80", "", &[2]),
        (
            "listen l\nbind :80\nserver a:b/c 10.0.0.1:80",
            "- {name: \"a:b/c\", address: \"10.0.0.1:80\"}",
            &[],
        ),
        (
            "listen a:b\nbind :80\nserver s 10.0.0.1:80\npeers p\nserver x 1.1.1.1:1",
            "a-b:",
            &[4],
        ),
        ("listen l\nbind :80\nbind 10.0.0.2:80\nserver s 10.0.0.1:80", "", &[3]),
    ];
    hold("", whole, "");
}

/// A rule that keeps somebody out and cannot be written costs the listener, not the rule.
#[test]
fn nobody_comes_in_who_was_kept_out() {
    let text = "listen l\nbind unix@/run/l\nserver s 10.0.0.1:80\ntcp-request connection reject if { src 10.0.0.1 }\n";
    let finished = imported(text, None).unwrap();
    assert_eq!(finished.yaml, None, "{:?}", finished.remarks);
    let nginx = "stream { server { listen unix:/run/l; proxy_pass 10.0.0.1:80; allow 10.0.0.0/8; deny all; } }";
    assert_eq!(imported(nginx, None).unwrap().yaml, None);
}

#[test]
fn nginx_lines() {
    let rows: &[Row] = &[
        ("listen 80;", "bind: [\"0.0.0.0:80\"]", &[]),
        (
            "listen [::]:80; listen *:80; listen 8000-8010;",
            "bind: [\"[::]:80\", \"0.0.0.0:80\", \"0.0.0.0:8000-8010\"]",
            &[],
        ),
        (
            "listen 53 udp; proxy_responses 1; proxy_timeout 5s;",
            "udp: {idle: 5s, replies: 1}",
            &[],
        ),
        ("listen 53 udp;", "protocol: udp", &[]),
        (
            "listen 80 reuseport so_keepalive=2m::4;",
            "keepalive: {idle: 2m, probes: 4}",
            &[],
        ),
        ("listen 80 so_keepalive=off;", "keepalive: off", &[]),
        ("listen 80 backlog=9 rcvbuf=1m;", "backlog: 9", &[1]),
        ("listen 80 backlog=-1;", "bind: [\"0.0.0.0:80\"]", &[]),
        ("listen 80;\nlisten 443 ssl;", "bind: [\"0.0.0.0:80\"]", &[2]),
        (
            "listen 80 proxy_protocol; set_real_ip_from 10.0.0.0/24;",
            "accept_proxy: {from: [10.0.0.0/24]}",
            &[],
        ),
        (
            "listen 80 proxy_protocol;",
            "accept_proxy: {from: [0.0.0.0/0, \"::/0\"]}",
            &[1],
        ),
        ("listen 80; proxy_timeout 1h30m;", "timeouts: {idle: 90m}", &[]),
        ("listen 80; proxy_connect_timeout 3s;", "connect: {timeout: 3s}", &[]),
        (
            "listen 80; proxy_next_upstream off;",
            "connect: {timeout: 1s, attempts: 1}",
            &[],
        ),
        ("listen 80; proxy_protocol on;", "send_proxy: v1", &[]),
        ("listen 53 udp; proxy_protocol on;", "send_proxy: v2", &[]),
        ("listen 80; proxy_bind 10.0.0.9;", "source_address: 10.0.0.9", &[]),
        (
            "listen 80; proxy_bind $remote_addr transparent;",
            "client_address: keep",
            &[1],
        ),
        (
            "listen 80;\nproxy_bind $remote_addr:$remote_port transparent;",
            "client_address: keep",
            &[2],
        ),
        ("listen 80;\nproxy_bind $server_addr transparent;", "", &[2]),
        (
            "listen 80; proxy_download_rate 100k; proxy_upload_rate 2m;",
            "limits: {download: \"100KiB/s\", upload: \"2MiB/s\"}",
            &[],
        ),
        ("listen 80; limit_conn addr 5;", "limits: {per_source: 5}", &[]),
        ("listen 80; limit_conn other 5;", "", &[1]),
        (
            "listen 80; deny 10.0.0.1; allow 10.0.0.0/8; deny all;",
            "deny: [10.0.0.1]",
            &[],
        ),
        ("listen 80; allow 10.0.0.0/8; deny all;", "allow: [10.0.0.0/8]", &[]),
        ("listen 80; ssl_preread on; js_access x; nonsense;", "", &[1]),
        ("listen 80; preread_timeout 7s;", "pool: u", &[]),
    ];
    let head = "stream {\nlimit_conn_zone $binary_remote_addr zone=addr:10m;\nproxy_connect_timeout 1s;\n\
                upstream u { server 10.0.0.1:80; }\nserver {\n";
    hold(head, rows, "proxy_pass u;\n}\n}\n");
    let names: &[Row] = &[
        ("a.test u;\ndefault v;", "routes: {a.test: u}", &[]),
        ("a.test u;\ndefault v;", "pool: v", &[]),
        ("A.test u;\nb.test. v;", "routes: {a.test: u, b.test: v}", &[]),
        ("hostnames;\n*.a.test u;\ndefault v;", "routes: {\"*.a.test\": u}", &[2]),
        (
            "hostnames;\n.a.test u;\nA.test v;",
            "routes: {a.test: v, \"*.a.test\": u}",
            &[2],
        ),
        ("*.a.test u;\ndefault v;", "pool: v", &[1]),
        ("~^x u;\ndefault v;", "pool: v", &[1]),
        ("a.test $other;\ndefault v;", "pool: v", &[1]),
        ("include names;\nb.test u;", "routes: {b.test: u}", &[1]),
    ];
    let head = "stream {\nupstream u { server 10.0.0.1:80; }\nupstream v { server 10.0.0.2:80; }\n\
                server { listen 1; proxy_pass u; }\nserver { listen 2; proxy_pass v; }\n\
                server { listen 443; ssl_preread on; preread_timeout 9s; proxy_pass $name; }\n\
                map $ssl_preread_server_name $name {\n";
    hold(head, names, "}\n}\n");
    let upstream: &[Row] = &[
        (
            "server 10.0.0.2:80 weight=3 max_conns=9 backup;",
            "- {address: \"10.0.0.2:80\", weight: 3, max_connections: 9, backup: true}",
            &[],
        ),
        (
            "server 10.0.0.2:80 down;",
            "- {address: \"10.0.0.2:80\", weight: 0}",
            &[],
        ),
        ("server unix:/run/b;", "- {address: \"unix:/run/b\"}", &[]),
        ("server db.internal:80;", "- {address: \"db.internal:80\"}", &[]),
        (
            "server 10.0.0.2:80 max_fails=2 fail_timeout=30s;",
            "passive: {failures: 2, window: 30s, eject: 30s}",
            &[],
        ),
        ("server 10.0.0.2:80 max_fails=0;", "passive: off", &[]),
        ("least_conn;", "balance: least_conn", &[]),
        ("hash $remote_addr consistent;", "balance: source_hash", &[]),
        ("hash $server_port;", "balance: source_hash", &[1]),
        ("random two least_conn;", "balance: random", &[]),
        ("zone u 64k;", "balance: round_robin", &[]),
    ];
    hold(
        "stream {\nupstream u {\n",
        upstream,
        "server 10.0.0.1:80;\n}\nserver { listen 80; proxy_pass u; }\n}\n",
    );
    let whole: &[Row] = &[
        (
            "worker_processes 4;\nstream { server { listen 80; proxy_pass 10.0.0.1:80; } }",
            "workers: 4",
            &[],
        ),
        ("stream { server { listen 80; proxy_pass $x; } }", "", &[1]),
        (
            "server { listen 80; proxy_pass 10.0.0.1:80; }",
            "- \"10.0.0.1:80\"",
            &[],
        ),
        ("http { server { listen 80; } }", "", &[1]),
        (
            "upstream a { server 10.0.0.1:80; }\nserver { listen 80; location / { } }",
            "",
            &[1, 2],
        ),
    ];
    hold("", &whole[..2], "");
    hold("", &whole[3..], "");
    // Two ways to connect to an upstream are two pools; the same way is one.
    let text = "stream { upstream u { server 10.0.0.1:80; } server { listen 80; proxy_pass u; } server { listen 81; proxy_pass u; }
                server { listen 82; proxy_pass u; proxy_protocol on; } }";
    let yaml = imported(text, None).unwrap().yaml.unwrap();
    let loaded = config::parse("out", &yaml).unwrap();
    assert_eq!(
        (loaded.config.listeners.len(), loaded.config.pools.len()),
        (3, 2),
        "{yaml}"
    );
}

#[test]
fn keepalived_lines() {
    let rows: &[Row] = &[
        ("lb_algo wlc", "balance: least_conn", &[]),
        ("lb_algo rr\npersistence_timeout 50", "balance: source_hash", &[2]),
        (
            "persistence_granularity 255.255.255.0\nlb_algo sh",
            "source_hash: {prefix_v4: 24}",
            &[],
        ),
        ("delay_loop 6", "health: {interval: 6s}", &[]),
        ("lb_kind DR", "", &[1]),
        (
            "sorry_server 10.0.0.9 81",
            "- {address: \"10.0.0.9:81\", backup: true}",
            &[],
        ),
        (
            "real_server 10.0.0.2 0 {\nweight 4\nuthreshold 9\n}",
            "- {address: \"10.0.0.2:80\", weight: 4, max_connections: 9}",
            &[],
        ),
        (
            "real_server 10.0.0.2 80 {\nTCP_CHECK {\nconnect_timeout 3\nconnect_port 81\nretry 2\n}\n}",
            "health: {type: tcp, timeout: 3s, port: 81, fall: 3}",
            &[],
        ),
        (
            "real_server 10.0.0.2 80 {\nHTTP_GET {\nurl {\npath /\n}\n}\n}",
            "http: {path: /}",
            &[],
        ),
        (
            "virtualhost h\nreal_server 10.0.0.2 80 {\nSSL_GET {\nurl {\npath /a\nstatus_code 200 204-299\ndigest x\n}\nurl {\n}\n}\n}",
            "http: {path: /a, host: h, expect: [200, \"204-299\"]}",
            &[7, 9],
        ),
        ("real_server web1 80 {\n}", "- {address: \"web1:80\"}", &[]),
        ("quorum 2\nalpha", "", &[1, 2]),
    ];
    hold(
        "virtual_server 10.1.0.1 80 {\n",
        rows,
        "real_server 10.0.0.1 80 {\n}\n}\n",
    );
    let text = "\
vrrp_instance one {
  interface eth0
  state BACKUP
  priority 150
  nopreempt
  unicast_src_ip 10.0.0.1
  unicast_peer {
    10.0.0.2
  }
  track_script {
    alive weight 3
    down
    gone
  }
  track_interface {
    eth2 weight -20
    eth3
  }
  virtual_ipaddress {
    10.1.0.1/24 dev eth1 label eth1:1
    10.1.0.2
  }
}
vrrp_instance two {
  interface eth0
  priority 50
  preempt_delay 7
  track_interface {
    eth3
  }
  virtual_ipaddress {
    10.1.0.3
  }
}
vrrp_script alive {
  script \"killall -0 haproxy\"
  interval 2
  timeout 1
  weight -30
  rise 4
  fall 5
}
vrrp_script down {
  script \"/bin/sh -c 'test ! -e /etc/down'\"
  user nobody
}
vrrp_script unused {
  script /bin/true
}
vrrp_sync_group both {
  group {
    one
  }
}
virtual_server 10.1.0.1 80 {
  real_server 10.0.0.5 80 {
  }
}
";
    let Finished { yaml, remarks } = imported(text, None).unwrap();
    let yaml = yaml.unwrap();
    let tracked = [
        "gone: there is no vrrp_script `gone`",
        "vrrp_script: nothing tracks it",
        "eth3: counts for the node",
    ];
    for said in tracked {
        assert!(
            remarks.iter().any(|remark| remark.contains(said)),
            "{said}: {remarks:?}"
        );
    }
    let (_, failover) = yaml.split_once("failover:\n").unwrap();
    assert_eq!(
        failover,
        "  node: 10.0.0.1
  nodes: {10.0.0.1: \"10.0.0.1:7400\", 10.0.0.2: \"10.0.0.2:7400\"}
  secret_file: /etc/weir/secret
  vips:
    - {address: 10.1.0.1/24, interface: eth1, prefer: [10.0.0.1, 10.0.0.2], preempt: false}
    - {address: 10.1.0.2/32, interface: eth0, prefer: [10.0.0.1, 10.0.0.2], preempt: false}
    - {address: 10.1.0.3/32, interface: eth0, prefer: [10.0.0.2, 10.0.0.1], preempt_delay: 7s}
  groups:
    both: [10.1.0.1, 10.1.0.2]
  track:
    alive:
      exec: [/usr/bin/env, killall, \"-0\", haproxy]
      interval: 2s
      timeout: 1s
      rise: 4
      fall: 5
      weight: 3
    down: {exec: [/bin/sh, \"-c\", \"/bin/sh -c 'test ! -e /etc/down'\"]}
    eth2: {interface: eth2, weight: 20}
    eth3: {interface: eth3}
"
    );
}

#[test]
fn each_is_recognised() {
    for (text, dialect) in [
        ("# x\nglobal\n daemon\n", Some(Dialect::Haproxy)),
        ("listen web\n bind :80\n", Some(Dialect::Haproxy)),
        ("upstream x {\n server 10.0.0.1:80;\n}\n", Some(Dialect::Nginx)),
        ("user www-data;\n", Some(Dialect::Nginx)),
        ("! Configuration\nglobal_defs {\n}\n", Some(Dialect::Keepalived)),
        ("vrrp_instance a {\n}\n", Some(Dialect::Keepalived)),
        ("listeners:\n  web: {}\n", None),
        ("", None),
        ("hello world\n", None),
    ] {
        assert_eq!(Dialect::recognise(text), dialect, "{text}");
    }
}

/// The files that Debian's packages bring (scripts/setup installs them): recognised, and what comes out is accepted.
#[test]
fn examples_of_the_packages() {
    let mut seen = 0;
    for (dialect, directory, ends) in [
        (Dialect::Haproxy, "/usr/share/doc/haproxy/examples", ".cfg"),
        (Dialect::Haproxy, "/etc/haproxy", ".cfg"),
        (Dialect::Nginx, "/etc/nginx", "nginx.conf"),
        (Dialect::Nginx, "/etc/nginx/sites-available", "default"),
        (Dialect::Keepalived, "/usr/share/doc/keepalived/samples", ""),
        (Dialect::Keepalived, "/etc/keepalived", ".sample"),
    ] {
        for path in files_of(directory) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !name.ends_with(ends) || name.ends_with(".sh") || name.ends_with(".gz") {
                continue;
            }
            let text = fs::read_to_string(&path).unwrap();
            assert_eq!(Dialect::recognise(&text), Some(dialect), "{}", path.display());
            let finished =
                import(std::slice::from_ref(&path), None).unwrap_or_else(|why| panic!("{}: {why:?}", path.display()));
            accepted(&finished, &path.display().to_string());
            seen += 1;
        }
    }
    assert!(
        seen > 0,
        "none of haproxy, nginx and keepalived is installed: scripts/setup"
    );
}

fn files_of(directory: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    files
}

fn accepted(finished: &Finished, what: &str) {
    if let Some(yaml) = &finished.yaml
        && let Err(errors) = config::parse("out", yaml)
    {
        panic!("{what}: what came out is refused: {errors}\n{yaml}");
    }
    assert!(finished.remarks.iter().all(|remark| !remark.contains('\n')), "{what}");
}

/// Files that are nearly right: words and lines of what people write, in another order.
fn mutated(rng: &mut Rng, seeds: &[&str]) -> String {
    let pick = |rng: &mut Rng, n: usize| rng.below(n as u64) as usize;
    let mut lines: Vec<String> = seeds[pick(rng, seeds.len())].lines().map(String::from).collect();
    for _ in 0..1 + rng.below(8) {
        let at = pick(rng, lines.len().max(1));
        let other: Vec<&str> = seeds[pick(rng, seeds.len())].lines().collect();
        let line = other[pick(rng, other.len())];
        let word = line.split_whitespace().last().unwrap_or("{");
        match (rng.below(9), lines.get_mut(at)) {
            (0, _) => lines.insert(at.min(lines.len()), line.into()),
            (1, Some(_)) => drop(lines.remove(at)),
            (2, Some(old)) => *old = line.into(),
            (3, Some(old)) => *old = format!("{old} {word}"),
            (4, Some(old)) => *old = old.replacen(['0', '1'], "99999999999", 1),
            (5, Some(old)) => {
                let mut words: Vec<&str> = old.split(' ').collect();
                let n = words.len();
                words.swap(pick(rng, n), pick(rng, n));
                *old = words.join(" ");
            }
            (6, Some(old)) => {
                let end = old
                    .char_indices()
                    .map(|(at, _)| at)
                    .nth(pick(rng, old.len() + 1))
                    .unwrap_or(0);
                old.truncate(end);
            }
            (7, Some(old)) => {
                let odd = [
                    "\u{feff}", "\0", "\u{2028}", "é", "\"", "'", "\\", "{", "}", ";", "#", "$", "@", ":", "-",
                    "\u{85}",
                ];
                old.insert_str(0, odd[pick(rng, odd.len())]);
            }
            (_, Some(old)) => {
                let words: Vec<&str> = old.split(' ').collect();
                let at = pick(rng, words.len());
                *old = words
                    .iter()
                    .enumerate()
                    .map(|(n, old)| if n == at { word } else { old })
                    .collect::<Vec<_>>()
                    .join(" ");
            }
            _ => {}
        }
    }
    lines.join("\n")
}

/// However a file is broken: nothing panics, and what comes out is accepted. WEIR_IMPORT_SEED repeats a failure.
#[test]
fn whatever_comes_out_is_accepted() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/migration.md")).unwrap();
    let own = include_str!("tests.rs");
    let only = std::env::var("WEIR_IMPORT_SEED")
        .ok()
        .map(|seed| seed.parse::<u64>().unwrap());
    for (dialect, language, rows) in [
        (Dialect::Haproxy, "haproxy", "fn haproxy_lines"),
        (Dialect::Nginx, "nginx", "fn nginx_lines"),
        (Dialect::Keepalived, "keepalived", "fn keepalived_lines"),
    ] {
        let example = page
            .split("\n```")
            .find_map(|block| block.strip_prefix(language))
            .unwrap();
        // The rows of the tests above, as lines of a file.
        let rows = own.split(rows).nth(1).unwrap().split("\n}\n").next().unwrap();
        let rows = rows.replace("(\"", "\n").replace("\\n", "\n").replace("\", \"", "\n");
        let seeds = [example, example, rows.as_str()];
        for seed in only.map_or(0..500, |seed| seed..seed + 1) {
            let text = mutated(&mut Rng::new(seed), &seeds);
            if let Ok(finished) = imported(&text, Some(dialect)) {
                accepted(&finished, &format!("{language} seed {seed}\n{text}"));
            }
        }
    }
}
