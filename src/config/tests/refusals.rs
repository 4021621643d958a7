//! What is refused, and in which words: a fragment, where it goes (see [`file`](super::file)), and all that is said.

/// Rows: place, fragment, `LINE:COL: path: message`.
#[rustfmt::skip]
pub const ROWS: &[(char, &str, &[&str])] = &[
    ('R', "workers: 0", &[
        "1:10: workers: `0` is out of range: 1 to 1024, or `auto`",
    ]),
    ('R', "workers: many", &[
        "1:10: workers: `many` is not a whole number",
    ]),
    ('R', "workers: 1.5", &[
        "1:10: workers: `1.5` is not a whole number",
    ]),
    ('R', "workers: [1]", &[
        "1:11: workers: expected integer or `auto`, found a list",
    ]),
    ('R', "workers:", &[
        "1:9: workers: expected integer or `auto`, found nothing",
    ]),
    ('R', "admin: run/weir.sock", &[
        "1:8: admin: `run/weir.sock` is not the path of a file: begin with `/`, end with its name",
    ]),
    ('R', "admin: /run/", &[
        "1:8: admin: `/run/` is not the path of a file: begin with `/`, end with its name",
    ]),
    ('R', "metrics: 9109", &[
        "1:10: metrics: `9109` has no address: write `0.0.0.0:9109` or `[::]:9109`",
    ]),
    ('R', "metrics: unix:/run/x", &[
        "1:10: metrics: `unix:/run/x`: a unix socket cannot be used here: write an IP address and port",
    ]),
    ('R', "metrics: 127.0.0.1", &[
        "1:10: metrics: `127.0.0.1` has no port: write `127.0.0.1:9000`",
    ]),
    ('R', r#"metrics: "0.0.0.0:80""#, &[
        "3:7: listeners.web.bind: `0.0.0.0:80` overlaps metrics (`0.0.0.0:80`): an address is bound once",
    ]),
    ('R', "log: {level: verbose}", &[
        "1:14: log.level: `verbose` is not known here; it is one of error, warn, info, debug, trace, off",
    ]),
    ('R', "log: {level: info, levle: info}", &[
        "1:20: log.levle: unknown key; did you mean `level`?",
    ]),
    ('R', "log: {access: weir.log}", &[
        "1:15: log.access: `weir.log` is none of `off`, `stdout` and a path that begins with `/`",
    ]),
    ('R', "log: {format: yaml}", &[
        "1:15: log.format: `yaml` is not known here; it is one of text, json",
    ]),
    ('R', "log: {interim: 5}", &[
        "1:16: log.interim: `5` has no unit: write `5s` or `5ms`",
    ]),
    ('R', "log: info", &[
        "1:1: log: expected keys (level, access, format, interim), found `info`",
    ]),
    ('R', "limits: {connections: 0}", &[
        "1:23: limits.connections: `0` is out of range: 1 to 10000000, or `auto`",
    ]),
    ('R', "limits: {connections: -1}", &[
        "1:23: limits.connections: `-1` is out of range: 1 to 10000000, or `auto`",
    ]),
    ('R', "limits: {udp_sessions: lots}", &[
        "1:24: limits.udp_sessions: `lots` is not a whole number",
    ]),
    ('R', "shutdown_grace: 30", &[
        "1:17: shutdown_grace: `30` has no unit: write `30s` or `30ms`",
    ]),
    ('R', "shutdown_grace: 30 parsecs", &[
        "1:17: shutdown_grace: `30 parsecs` is not a duration: write one such as `500ms`, `2s`, `5m` or `1h`",
    ]),
    ('R', "shutdown_grace: 1000h", &[
        "1:17: shutdown_grace: `1000h` is out of range: 0s to 24h",
    ]),
    ('R', "listen: 80", &[
        "1:1: listen: unknown key; did you mean `listeners`?",
    ]),
    ('R', "upstreams: {}", &[
        "1:1: upstreams: unknown key; did you mean `pools`?",
    ]),
    ('R', "frobnicate: 1", &[
        "1:1: frobnicate: unknown key; known here: workers, admin, metrics, log, limits, shutdown_grace, kernel, listeners, pools, etcd, failover",
    ]),
    ('R', "workers: 1
workers: 2", &[
        "2:1: workers: is here already (line 1): keep one of them",
    ]),
    ('R', "pools: {}", &[
        "1:1: pools: is empty: at least one must be given",
    ]),
    ('R', "pools: [web]", &[
        "1:1: pools: expected names and what they hold, `pools: {a: ...}`, found a list",
    ]),
    ('R', r#"listeners: {"a b": {bind: "0.0.0.0:80", pool: web}}"#, &[
        "1:13: listeners.a b: `a b` is no name: letters, digits, `_`, `-` and `.`, a letter or digit first, at most 64",
    ]),
    ('R', r#"listeners: {a: {bind: "0.0.0.0:80", pool: web}, b: {bind: "0.0.0.0:80", pool: web}}"#, &[
        "1:59: listeners.b.bind: `0.0.0.0:80` overlaps listeners.a.bind (`0.0.0.0:80`): an address is bound once",
    ]),
    ('R', r#"listeners: {a: {bind: "0.0.0.0:8000-8010", pool: web}, b: {bind: "10.0.0.9:8005", pool: web}}"#, &[
        "1:66: listeners.b.bind: `10.0.0.9:8005` overlaps listeners.a.bind (`0.0.0.0:8000-8010`): an address is bound once",
    ]),
    ('R', r#"listeners: {a: {bind: "[::1]:53", pool: web}, b: {bind: ["[::]:53"], protocol: tcp, pool: web}}"#, &[
        "1:58: listeners.b.bind[0]: `[::]:53` overlaps listeners.a.bind (`[::1]:53`): an address is bound once",
    ]),
    ('R', r#"listeners: {a: {bind: "unix:/run/a", pool: web}, b: {bind: "unix:/run/a", pool: web}}"#, &[
        "1:60: listeners.b.bind: `unix:/run/a` overlaps listeners.a.bind (`unix:/run/a`): an address is bound once",
    ]),
    ('R', r#"listeners: {a: {bind: "unix:/run/weir/admin.sock", pool: web}}"#, &[
        "1:23: listeners.a.bind: `unix:/run/weir/admin.sock` overlaps admin (`unix:/run/weir/admin.sock`): an address is bound once",
    ]),
    ('R', r#"listeners: {a: {bind: "0.0.0.0:80", pool: web}, a: {bind: "0.0.0.0:81", pool: web}}"#, &[
        "1:49: listeners.a: is here already (line 1): keep one of them",
    ]),
    ('L', "bind: 80", &[
        "2:7: listeners.web.bind: `80` has no address: write `0.0.0.0:80` or `[::]:80`",
    ]),
    ('L', r#"bind: ":80""#, &[
        "2:7: listeners.web.bind: `:80` has no address: write `0.0.0.0:80` or `[::]:80`",
    ]),
    ('L', r#"bind: "*:80""#, &[
        "2:7: listeners.web.bind: `*:80` has no address: write `0.0.0.0:80` or `[::]:80`",
    ]),
    ('L', "bind: 10.0.0.1", &[
        "2:7: listeners.web.bind: `10.0.0.1` has no port: write `10.0.0.1:80`",
    ]),
    ('L', "bind: localhost:80", &[
        "2:7: listeners.web.bind: `localhost:80` is a name: write `127.0.0.1` or `[::1]`",
    ]),
    ('L', "bind: example.org:80", &[
        "2:7: listeners.web.bind: `example.org:80` is a name, and names are not resolved: write an IP address",
    ]),
    ('L', r#"bind: "2001:db8::1:80""#, &[
        "2:7: listeners.web.bind: `2001:db8::1:80`: an IPv6 address stands in brackets, such as `[2001:db8::1]:80`",
    ]),
    ('L', r#"bind: "[2001:db8::1:80""#, &[
        "2:7: listeners.web.bind: `[2001:db8::1:80` is not an address: the `]` is missing",
    ]),
    ('L', r#"bind: "[::ffff:10.0.0.1]:80""#, &[
        "2:7: listeners.web.bind: `[::ffff:10.0.0.1]:80` is an IPv4 address written as IPv6: write `10.0.0.1`",
    ]),
    ('L', r#"bind: "[fe80::1]:80""#, &[
        "2:7: listeners.web.bind: `[fe80::1]:80` is a link-local address, which means another host on each interface: write the interface too, `[fe80::1%eth0]:80`",
    ]),
    ('L', r#"bind: "[fe80::1%missing0]:80""#, &[
        "2:7: listeners.web.bind: `[fe80::1%missing0]:80` names the interface `missing0`, which this machine does not have",
    ]),
    ('L', r#"bind: "[::1%lo]:80""#, &[
        "2:7: listeners.web.bind: `[::1%lo]:80` names an interface, which only link-local addresses do: write `::1`",
    ]),
    ('L', "backlog: 0", &[
        "2:10: listeners.web.backlog: `0` is out of range: 1 to 2147483647, or `auto`",
    ]),
    ('L', "protocol: udp\nbacklog: 10", &[
        "3:1: listeners.web.backlog: has a meaning for tcp only, and this listener is udp: leave it out",
    ]),
    ('L', "engine: kernel\nbacklog: 10", &[
        "3:1: listeners.web.backlog: `engine: kernel` does not have it: leave it out, or write `engine: proxy`",
    ]),
    ('L', r#"bind: "0.0.0.0%eth0:80""#, &[
        "2:7: listeners.web.bind: `0.0.0.0%eth0:80`: the interface comes last: write `0.0.0.0:80%eth0`",
    ]),
    ('L', r#"bind: "[::]%eth0:80""#, &[
        "2:7: listeners.web.bind: `[::]%eth0:80`: the interface comes last: write `[::]:80%eth0`",
    ]),
    ('L', r#"bind: "0.0.0.0:80%""#, &[
        "2:7: listeners.web.bind: `` is no interface name: at most 15 characters, such as `eth0`",
    ]),
    ('L', r#"bind: "0.0.0.0:80%eth0:1""#, &[
        "2:7: listeners.web.bind: `eth0:1` is no interface name: at most 15 characters, such as `eth0`",
    ]),
    ('L', r#"bind: "fe80::1%eth0:80""#, &[
        "2:7: listeners.web.bind: `fe80::1%eth0:80` is not an address: write one such as `10.0.0.1:80` or `[2001:db8::1]:80`",
    ]),
    ('L', r#"bind: "[fe80::1%lo]:80%lo""#, &[
        "2:7: listeners.web.bind: `[fe80::1%lo]:80` names its interface already: leave out `%lo`",
    ]),
    ('L', r#"bind: ["0.0.0.0:80%eth0", "10.0.0.9:80%eth0", "10.0.0.9:80%eth1"]"#, &[
        "2:27: listeners.web.bind[1]: `10.0.0.9:80%eth0` overlaps listeners.web.bind[0] (`0.0.0.0:80%eth0`): an address is bound once",
    ]),
    ('L', r#"bind: ["10.0.0.9:80%eth0", "0.0.0.0:80"]"#, &[
        "2:28: listeners.web.bind[1]: `0.0.0.0:80` overlaps listeners.web.bind[0] (`10.0.0.9:80%eth0`): an address is bound once",
    ]),
    ('L', "bind: 10.0.0.256:80", &[
        "2:7: listeners.web.bind: `10.0.0.256:80` is not an IP address, such as `10.0.0.1` or `2001:db8::1`",
    ]),
    ('L', "bind: 10.0.0.1:99999", &[
        "2:7: listeners.web.bind: port `99999` is out of range: 1 to 65535",
    ]),
    ('L', "bind: 10.0.0.1:8010-8000", &[
        "2:7: listeners.web.bind: `10.0.0.1:8010-8000`: a port range runs upwards and begins at 1 or later, such as `8000-8010`",
    ]),
    ('L', "bind: tcp://10.0.0.1:80", &[
        "2:7: listeners.web.bind: `tcp://10.0.0.1:80` is not an address: write it without the scheme, `10.0.0.1:80`",
    ]),
    ('L', "bind: /run/web.sock", &[
        "2:7: listeners.web.bind: `/run/web.sock` is not an address: a unix socket is written `unix:/path`",
    ]),
    ('L', "bind: unix:web.sock", &[
        "2:7: listeners.web.bind: `web.sock` is not the path of a file: begin with `/`, end with its name",
    ]),
    ('L', "bind: 224.0.0.1:80", &[
        "2:7: listeners.web.bind: `224.0.0.1:80` is not an address of this machine: multicast and broadcast are not supported",
    ]),
    ('L', "bind: []", &[
        "2:1: listeners.web.bind: is empty: at least 1 must be given",
    ]),
    ('L', r#"bind: ["10.0.0.1:80", "10.0.0.1:80"]"#, &[
        "2:23: listeners.web.bind[1]: `10.0.0.1:80` overlaps listeners.web.bind[0] (`10.0.0.1:80`): an address is bound once",
        "6:12: pools.web.backends[0].address: is bound by listener `web` itself: connections would go round in circles",
    ]),
    ('L', "pool: wbe", &[
        "2:7: listeners.web.pool: there is no pool `wbe`; did you mean `web`?",
    ]),
    ('L', "pool: other", &[
        "2:7: listeners.web.pool: there is no pool `other`; defined: web",
    ]),
    ('L', "pool: [web]", &[
        "2:8: listeners.web.pool: expected name, found a list",
    ]),
    ('L', "routes: {}", &[
        "2:1: listeners.web.routes: is empty: at least one must be given",
    ]),
    ('L', "routes: [web]", &[
        "2:1: listeners.web.routes: expected names and what they hold, `routes: {a: ...}`, found a list",
    ]),
    ('L', "routes: {a.test: wbe}", &[
        "2:18: listeners.web.routes.a.test: there is no pool `wbe`; did you mean `web`?",
    ]),
    ('L', "routes: {A.test: web, a.test.: web}", &[
        "2:23: listeners.web.routes.a.test.: is the same name as `A.test`: keep one of them",
    ]),
    ('L', "routes: {a.test: web, a.test: web}", &[
        "2:23: listeners.web.routes.a.test: is here already (line 2): keep one of them",
    ]),
    ('L', "routes: {'*': web}", &[
        "2:10: listeners.web.routes.*: `*` is not a server name: what no other name is for belongs to the listener's `pool`: write that",
    ]),
    ('L', "routes: {a.*.test: web}", &[
        "2:10: listeners.web.routes.a.*.test: `a.*.test` is not a server name: `*` stands for the whole first label, and for one only: write `*.example.org`",
    ]),
    ('L', "routes: {'*a.test': web}", &[
        "2:10: listeners.web.routes.*a.test: `*a.test` is not a server name: `*` stands for the whole first label, and for one only: write `*.example.org`",
    ]),
    ('L', "routes: {10.0.0.1: web}", &[
        "2:10: listeners.web.routes.10.0.0.1: `10.0.0.1` is not a server name: clients do not send addresses as server names: write a name",
    ]),
    ('L', "routes: {'a.test:443': web}", &[
        "2:10: listeners.web.routes.a.test:443: `a.test:443` is not a server name: write the name alone, without scheme, port or path",
    ]),
    ('L', "routes: {bücher.test: web}", &[
        "2:10: listeners.web.routes.bücher.test: `bücher.test` is not a server name: hellos carry the ASCII form of a name: write `xn--...`",
    ]),
    ('L', "routes: {a..test: web}", &[
        "2:10: listeners.web.routes.a..test: `a..test` is not a server name: write one such as `www.example.org` or `*.example.org`",
    ]),
    ('L', "protocol: udp\nroutes: {a.test: web}", &[
        "3:1: listeners.web.routes: has a meaning for tcp only, and this listener is udp: leave it out",
    ]),
    ('L', "engine: kernel\nroutes: {a.test: web}", &[
        "3:1: listeners.web.routes: `engine: kernel` does not have it: leave it out, or write `engine: proxy`",
    ]),
    ('L', "protocol: sctp", &[
        "2:11: listeners.web.protocol: `sctp` is not known here; it is one of tcp, udp",
    ]),
    ('L', "protocol: udp
bind: unix:/run/a", &[
        "3:7: listeners.web.bind: a unix socket carries streams: use it with `protocol: tcp`",
    ]),
    ('L', "protocol: udp
timeouts: {idle: 1m}", &[
        "3:1: listeners.web.timeouts: has a meaning for tcp only, and this listener is udp: leave it out",
    ]),
    ('L', "protocol: udp
limits: {download: 1MB/s}", &[
        "3:10: listeners.web.limits.download: has a meaning for tcp only, and this listener is udp: leave it out",
    ]),
    ('L', "protocol: udp
accept_proxy: {from: [10.0.0.0/8]}", &[
        "3:1: listeners.web.accept_proxy: has a meaning for tcp only, and this listener is udp: leave it out",
    ]),
    ('L', "udp: {replies: 1}", &[
        "2:1: listeners.web.udp: has a meaning for udp only, and this listener is tcp: leave it out",
    ]),
    ('L', "allow: []", &[
        "2:1: listeners.web.allow: is empty: leave it out for everybody",
    ]),
    ('L', "allow: 10.0.0.0/33", &[
        "2:8: listeners.web.allow: `10.0.0.0/33`: the prefix length is 0 to 32",
    ]),
    ('L', "allow: [10.0.0.0/8, office]", &[
        "2:21: listeners.web.allow[1]: `office` is a name, and names are not resolved: write an IP address",
    ]),
    ('L', "allow: [10.1.0.0/16]
deny: [10.0.0.0/8]", &[
        "2:1: listeners.web.allow: everything in it is denied by `deny`, which wins: nobody could connect",
    ]),
    ('L', "bind: unix:/run/a
allow: [10.0.0.0/8]", &[
        "3:1: listeners.web.allow: clients of a unix socket have no source address: leave it out, or bind an IP address",
    ]),
    ('L', "limits: {connections: none, new_per_source: 50}", &[
        "2:45: listeners.web.limits.new_per_source: `50` has no period: write `50/s` or `50/m`",
    ]),
    ('L', "limits: {new_per_source: 50/d}", &[
        "2:26: listeners.web.limits.new_per_source: `50/d` is not a rate: write one such as `100/s`, `50/m` or `1000/h`",
    ]),
    ('L', "limits: {download: 10Mbit/s, upload: 10MiB}", &[
        "2:20: listeners.web.limits.download: `10Mbit` counts bits: write bytes, for example `125KB` for a megabit",
        "2:38: listeners.web.limits.upload: `10MiB` has no period: write `10MiB/s`",
    ]),
    ('L', "limits: {download: 5}", &[
        "2:20: listeners.web.limits.download: `5` is not a bandwidth: write one such as `64KiB/s` or `10MB/s`",
    ]),
    ('L', "timeouts: {idle: 0s, half_close: soon, max_age: 100ms}", &[
        "2:18: listeners.web.timeouts.idle: `0s` is out of range: 10ms to 30d, or `off`",
        "2:34: listeners.web.timeouts.half_close: `soon` is not a duration: write one such as `500ms`, `2s`, `5m` or `1h`",
        "2:49: listeners.web.timeouts.max_age: `100ms` is out of range: 1s to 365d, or `off`",
    ]),
    ('L', "timeouts: 10m", &[
        "2:1: listeners.web.timeouts: expected keys (idle, half_close, max_age, hello), found `10m`",
    ]),
    ('L', "accept_proxy: {}", &[
        "2:1: listeners.web.accept_proxy.from: missing; for example `from: [10.0.0.0/24]`",
    ]),
    ('L', "accept_proxy: {from: []}", &[
        "2:16: listeners.web.accept_proxy.from: is empty: at least 1 must be given",
    ]),
    ('L', "maxconn: 5", &[
        "2:1: listeners.web.maxconn: unknown key; did you mean `limits.connections`?",
    ]),
    ('P', "backends: []", &[
        "6:1: pools.web.backends: is empty: at least 1 must be given",
    ]),
    ('P', "backends: {a: 10.0.0.1:80}", &[
        "6:1: pools.web.backends: expected a list, found a mapping: begin each entry with `- `",
    ]),
    ('P', "backends: [10.0.0.1:80, 10.0.0.1:80]", &[
        "6:25: pools.web.backends[1].address: `10.0.0.1:80` is in this pool already (line 6): give that one a larger `weight`",
    ]),
    ('P', "backends: [{name: a, address: 10.0.0.1:80}, {name: a, address: 10.0.0.2:80}]", &[
        "6:52: pools.web.backends[1].name: `a` is in this pool already (line 6): names are unique",
    ]),
    ('P', "backends: [{name: a}]", &[
        "6:13: pools.web.backends[0].address: missing; for example `address: 10.0.0.11:8080`",
    ]),
    ('P', r#"backends: [{name: "a b", address: 10.0.0.1:80}]"#, &[
        r#"6:19: pools.web.backends[0].name: `a b` is no name: at most 128 printable ASCII characters without spaces, quotes, `\` and `=`"#,
    ]),
    ('P', "backends: [{address: 10.0.0.1:80, weight: 0}, {address: 10.0.0.2:80, weight: 0}]", &[
        "6:1: pools.web.backends: every weight is 0, so nothing could be served: give at least one a weight of 1 or more",
    ]),
    ('P', "backends: [{address: 10.0.0.1:80, weight: 99999, backup: maybe, max_connections: 0}]", &[
        "6:43: pools.web.backends[0].weight: `99999` is out of range: 0 to 65535",
        "6:58: pools.web.backends[0].backup: `maybe` is not known here; it is one of true, false",
        "6:82: pools.web.backends[0].max_connections: `0` is out of range: 1 to 10000000, or `unlimited`",
    ]),
    ('P', r#"backends: [0.0.0.0:80, 10.0.0.1:0, 10.0.0.1:80-90, "2001:db8::1"]"#, &[
        "6:12: pools.web.backends[0].address: `0.0.0.0:80` is not the address of one machine: write the backend's own",
        "6:24: pools.web.backends[1].address: `10.0.0.1:0`: port 0 cannot be connected to: 1 to 65535",
        "6:36: pools.web.backends[2].address: `10.0.0.1:80-90`: a backend has one port; without one (`10.0.0.1`) it gets the port that the client used",
        "6:52: pools.web.backends[3].address: `2001:db8::1`: an IPv6 address stands in brackets, such as `[2001:db8::1]:80`",
    ]),
    ('L', r#"bind: ["0.0.0.0:80%eth0", "10.0.0.2:80%eth1"]"#, &[
        "6:25: pools.web.backends[1].address: is bound by listener `web` itself: connections would go round in circles",
    ]),
    ('P', "backends: [127.0.0.1:80]", &[
        "6:12: pools.web.backends[0].address: is bound by listener `web` itself: connections would go round in circles",
    ]),
    ('P', "backends: [10.0.0.1]", &[
        "5:9: pools.web.health.port: missing: backend `10.0.0.1` has no port of its own, so the probe needs one: `port: 80`, or `type: none`",
    ]),
    ('P', "members: []", &[
        "6:1: pools.web.members: is empty: leave it out for none",
    ]),
    ('P', "members: [{}, {file: members.yaml}, {file: /m, files: 3}, /m]", &[
        "6:1: pools.web.members[0]: names no source: write `file`, `dns`, `srv`, `etcd` or `docker`",
        "6:22: pools.web.members[1].file: `members.yaml` is not the path of a file: begin with `/`, end with its name",
        "6:48: pools.web.members[2].files: unknown key; did you mean `file`?",
        "6:59: pools.web.members[3]: `file:/m` is in this pool already (line 6): keep one of them",
    ]),
    ('P', "members: [{dns: web.internal, srv: _http._tcp.web.internal}, {dns: 10.0.0.1}, {dns: 'web.internal:80'}, {srv: 'a b'}]", &[
        "6:12: pools.web.members[0]: has dns and srv: give each a `- ` of its own",
        "6:68: pools.web.members[1].dns: `10.0.0.1` is an address: write it under `backends`",
        "6:85: pools.web.members[2].dns: `web.internal:80` has a port: write `web.internal`, and `port: 80`",
        "6:111: pools.web.members[3].srv: `a b` is not a host name: write one such as `web.internal` or `_http._tcp.web.internal`",
    ]),
    ('P', "members: [{srv: _x._tcp.y, port: 80, weight: 2}, {file: /m, family: v4, backup: true}, {dns: y, port: 0}]", &[
        "6:28: pools.web.members[0].port: has no meaning beside `srv`: leave it out",
        "6:38: pools.web.members[0].weight: has no meaning beside `srv`: leave it out",
        "6:61: pools.web.members[1].family: has no meaning beside `file`: leave it out",
        "6:73: pools.web.members[1].backup: has no meaning beside `file`: leave it out",
        "6:103: pools.web.members[2].port: `0` is out of range: 1 to 65535",
    ]),
    ('P', "members: [{etcd: /services/web/}, {etcd: /services/web}, {docker: {label: x, port: 0}, weight: 2}]", &[
        "6:12: pools.web.members[0].etcd: which cluster? Write `etcd: {endpoints: [\"http://10.0.0.5:2379\"]}` beside `pools`",
        "6:42: pools.web.members[1].etcd: `/services/web` would also match `/services/web2`: end it with `/`",
        "6:84: pools.web.members[2].docker.port: `0` is out of range: 1 to 65535",
    ]),
    ('R', "etcd: {endpoints: ['https://10.0.0.5:2379'], user: weir}", &[
        "1:1: etcd.ca: missing: `https` endpoints are checked against it",
        "1:46: etcd.user: is of no use without `password_file`",
    ]),
    ('P', "backends: [db.internal:5432, {name: x, address: DB.internal:5432}, db.internal:0, 10.0.0.l:80]", &[
        "6:49: pools.web.backends[1].address: `dns:db.internal:5432` is in this pool already (line 6): keep one of them",
        "6:68: pools.web.backends[2].address: `db.internal:0`: port 0 cannot be connected to: 1 to 65535",
        "6:83: pools.web.backends[3].address: `10.0.0.l:80` is a name, and names are not resolved: write an IP address",
    ]),
    ('P', "resolver: {servers: [10.0.0.2, nobody], timeout: 0s, min_ttl: 10m}", &[
        "6:32: pools.web.resolver.servers[1]: `nobody` is a name, and names are not resolved: write an IP address",
        "6:50: pools.web.resolver.timeout: `0s` is out of range: 10ms to 30s",
        "6:54: pools.web.resolver.min_ttl: is longer than `max_ttl`",
    ]),
    ('P', "balance: leastconn", &[
        "6:10: pools.web.balance: `leastconn` is not known here; did you mean `least_conn`?",
    ]),
    ('P', "balance: ip_hash", &[
        "6:10: pools.web.balance: `ip_hash` is not known here; did you mean `source_hash`?",
    ]),
    ('P', "balance: fastest", &[
        "6:10: pools.web.balance: `fastest` is not known here; it is one of least_conn, source_hash, round_robin, random, least_time",
    ]),
    ('P', "source_hash: {prefix_v4: 33, prefix_v6: 0, bounded_load: 1, seed: -1}", &[
        "6:26: pools.web.source_hash.prefix_v4: `33` is out of range: 1 to 32",
        "6:41: pools.web.source_hash.prefix_v6: `0` is out of range: 1 to 128",
        "6:58: pools.web.source_hash.bounded_load: `1` is out of range: 1.01 to 100, or `off`",
        "6:67: pools.web.source_hash.seed: `-1` is out of range: 0 to 18446744073709551615",
    ]),
    ('P', "health: {type: http}", &[
        "6:16: pools.web.health.type: `http` is not known here; did you mean `tcp`?",
    ]),
    ('P', "health: {type: udp}", &[
        r#"6:10: pools.web.health.type: a udp probe needs `send`, a datagram that the backend answers: `send: "PING\r\n"` or `send: "hex:..."`"#,
    ]),
    ('P', "health: {rise: 0, fall: 0}", &[
        "6:16: pools.web.health.rise: `0` is out of range: 1 to 100",
        "6:25: pools.web.health.fall: `0` is out of range: 1 to 100",
    ]),
    ('P', "health: {interval: 10, timeout: 10m}", &[
        "6:20: pools.web.health.interval: `10` has no unit: write `10s` or `10ms`",
        "6:33: pools.web.health.timeout: `10m` is out of range: 1ms to 5m",
    ]),
    ('P', "health: {port: 70000}", &[
        "6:16: pools.web.health.port: `70000` is out of range: 1 to 65535",
    ]),
    ('P', "health: {port: 0}", &[
        "6:16: pools.web.health.port: `0` is out of range: 1 to 65535",
    ]),
    ('P', r#"health: {send: "\x80\x01", expect: ""}"#, &[
        r#"6:16: pools.web.health.send: bytes above \x7f cannot be written as text: write all of it as `hex:00 ff 1a`"#,
        "6:36: pools.web.health.expect: is empty: leave it out",
    ]),
    ('P', r#"health: {send: "hex:0g"}"#, &[
        "6:16: pools.web.health.send: `hex:0g` is not hexadecimal: write pairs of digits such as `hex:00 ff 1a`",
    ]),
    ('P', r#"health: {expect: "OK", uri: /}"#, &[
        "6:24: pools.web.health.uri: unknown key; known here: type, interval, timeout, rise, fall, port, send, expect, http, tls, ca, server_name, agent",
    ]),
    ('P', "backends: [unix:/run/b]
health: {port: 80}", &[
        "7:10: pools.web.health.port: unix sockets have no port: leave it out",
    ]),
    ('P', "passive: {failures: 0, window: 1ms}", &[
        "6:21: pools.web.passive.failures: `0` is out of range: 1 to 10000",
        "6:32: pools.web.passive.window: `1ms` is out of range: 100ms to 1h",
    ]),
    ('P', "connect: {timeout: 0s, attempts: 0}", &[
        "6:20: pools.web.connect.timeout: `0s` is out of range: 1ms to 5m",
        "6:34: pools.web.connect.attempts: `0` is out of range: 1 to 100",
    ]),
    ('P', "queue: {length: 0, timeout: 1ms}", &[
        "6:17: pools.web.queue.length: `0` is out of range: 1 to 1000000",
        "6:29: pools.web.queue.timeout: `1ms` is out of range: 10ms to 1h",
    ]),
    ('P', "slow_start: 1ms", &[
        "6:13: pools.web.slow_start: `1ms` is out of range: 100ms to 1h, or `off`",
    ]),
    ('P', "health: {http: {path: x}}", &[
        "6:23: pools.web.health.http.path: `x` is not the path of a URL: begin with `/`, write others than printable ASCII characters as `%20`",
    ]),
    ('P', "health: {http: {expect: 999}}", &[
        "6:25: pools.web.health.http.expect: `999` is not a status of HTTP: write one such as `200`, or a range such as `200-399`",
    ]),
    ('P', "health: {http: {expect: 300-200}}", &[
        "6:25: pools.web.health.http.expect: `300-200` is not a status of HTTP: write one such as `200`, or a range such as `200-399`",
    ]),
    ('P', "health: {http: {host: a b}}", &[
        "6:23: pools.web.health.http.host: `a b` is not a host: write a name or an address",
    ]),
    ('P', "health: {ca: /etc/ca.pem}", &[
        "6:10: pools.web.health.ca: belongs to TLS: write `tls: true`, or leave it out",
    ]),
    ('P', "health: {tls: true, server_name: -x}", &[
        "6:34: pools.web.health.server_name: `-x` is not the name of a server: write one such as `www.example.org`",
    ]),
    ('P', "health: {type: udp, send: x, port: 53, tls: true}", &[
        "6:40: pools.web.health.tls: goes over tcp: write `type: tcp`, or leave it out",
    ]),
    ('P', "health: {agent: {}}", &[
        "6:10: pools.web.health.agent.port: missing; for example `port: 9777`",
    ]),
    ('P', "on_marked_up: close", &[
        "6:15: pools.web.on_marked_up: `close` is not known here; did you mean `close_backup`?",
    ]),
    ('P', "on_down: kill", &[
        "6:10: pools.web.on_down: `kill` is not known here; it is one of keep, close, repick",
    ]),
    ('P', "on_down: repick", &[
        "6:1: pools.web.on_down: moves UDP sessions, and listener `web` is tcp, whose connections cannot be moved: write `keep` or `close`",
    ]),
    ('P', "on_drain: 60s", &[
        "6:1: pools.web.on_drain: expected keys (finish), found `60s`",
    ]),
    ('P', "all_down: panic", &[
        "6:11: pools.web.all_down: `panic` is not known here; it is one of refuse, try_all",
    ]),
    ('P', "send_proxy: v3", &[
        "6:13: pools.web.send_proxy: `v3` is not known here; it is one of off, v1, v2",
    ]),
    ('P', "source_address: 10.0.0.5:0", &[
        "6:17: pools.web.source_address: `10.0.0.5:0` has a port: write the address alone",
    ]),
    ('P', r#"source_address: "fe80::5""#, &[
        "6:17: pools.web.source_address: `fe80::5` is a link-local address: leave it out, the kernel uses that of the interface which the backends' addresses name",
        "6:17: pools.web.source_address: is IPv6, and backend `10.0.0.1:80` is not: give the two families pools of their own",
    ]),
    ('P', r#"backends: ["[fe80::5]:80", "[fe80::5%lo]", "[fe80::5%missing0]:80"]"#, &[
        "6:12: pools.web.backends[0].address: `[fe80::5]:80` is a link-local address, which means another host on each interface: write the interface too, `[fe80::5%eth0]:80`",
        "6:28: pools.web.backends[1].address: `[fe80::5%lo]` has no port, and with an interface it needs one: write `[fe80::5%lo]:8080`",
        "6:44: pools.web.backends[2].address: `[fe80::5%missing0]:80` names the interface `missing0`, which this machine does not have",
    ]),
    ('P', "source_address: 0.0.0.0", &[
        "6:17: pools.web.source_address: `0.0.0.0` is no address of this machine: leave it out to let the kernel choose",
    ]),
    ('P', r#"source_address: "2001:db8::5""#, &[
        "6:17: pools.web.source_address: is IPv6, and backend `10.0.0.1:80` is not: give the two families pools of their own",
    ]),
    ('P', "backends: [unix:/run/b]
source_address: 10.0.0.5", &[
        "7:17: pools.web.source_address: connections to unix sockets have no source address: leave it out",
    ]),
    ('W', r#"listeners: {d: {protocol: udp, bind: "0.0.0.0:53", pool: d}}
pools: {d: {backends: [unix:/run/b], send_proxy: v1, connect: {attempts: 1}}}"#, &[
        "2:24: pools.d.backends[0].address: a unix socket carries streams, and listener `d` is udp: write an IP address",
        "2:38: pools.d.send_proxy: version 1 is for streams, and listener `d` is udp: write `v2`",
        "2:64: pools.d.connect.attempts: has a meaning for tcp only, and only udp listeners use this pool: leave it out",
    ]),
    ('W', "listeners: {u: {bind: unix:/run/u, pool: p}}
pools: {p: {backends: [10.0.0.1], health: none}}", &[
        "2:24: pools.p.backends[0].address: has no port, and listener `u` binds a unix socket, which has none to take over: write `10.0.0.1:80`",
    ]),
    ('P', "connect: {dscp: 64, mark: 0}", &[
        "6:17: pools.web.connect.dscp: `64` is no class: write 0 to 63, or a name such as ef, af41, cs3; of a TOS byte, a quarter",
        "6:27: pools.web.connect.mark: `0` is out of range: 1 to 4294967295",
    ]),
    ('P', "connect: {dscp: af44}", &[
        "6:17: pools.web.connect.dscp: `af44` is no class: write 0 to 63, or a name such as ef, af41, cs3; of a TOS byte, a quarter",
    ]),
    ('P', "client_address: show", &[
        "6:17: pools.web.client_address: `show` is not known here; it is one of hide, keep",
    ]),
    ('P', "client_address: keep
backends: [unix:/run/b, \"[2001:db8::1]:80\", \"[fe80::1%lo]:80\"]", &[
        "7:12: pools.web.backends[0]: `unix:/run/b` is a unix socket, over which `client_address: keep` shows no address: write an IP address, or `send_proxy: v2`",
        "7:25: pools.web.backends[1]: `[2001:db8::1]:80` is IPv6, and clients of listener `web` at `0.0.0.0:80` are IPv4: with `client_address: keep` give each family a listener and a pool of its own",
        "7:45: pools.web.backends[2]: `[fe80::1%lo]:80` is a link-local address, from which no client can be answered that `client_address: keep` shows: write another address of it",
    ]),
    ('P', "client_address: keep
kernel: {mode: nat}", &[
        "7:10: pools.web.kernel.mode: `nat` hides clients from backends, and `client_address: keep` shows them: leave one of them out",
    ]),
    ('W', "listeners: {u: {bind: unix:/run/u, pool: p}}
pools: {p: {client_address: keep, backends: [\"10.0.0.1:80\"]}}", &[
        "2:13: pools.p.client_address: clients of listener `u` come over a unix socket and have no address: write `hide`, or bind an IP address",
    ]),
    ('F', "node: z", &[
        "9:7: failover.node: there is no node `z`; defined: a, b, c",
    ]),
    ('F', "node: a
secret_file: secret", &[
        "10:14: failover.secret_file: `secret` is not the path of a file: begin with `/`, end with its name",
    ]),
    ('F', "secret_file: /etc/a
secret_files: [/etc/a, /etc/b]", &[
        "9:14: failover.secret_file: says the same as `secret_files`: keep the list, in which the first signs and all are accepted",
    ]),
    ('W', r#"listeners: {web: {bind: "0.0.0.0:80", pool: web}}
pools: {web: {backends: 10.0.0.1:80}}
failover: {node: a, nodes: {a: "10.0.0.1:7400"}, vips: [{address: 10.0.0.9/24, interface: e}]}"#, &[
        "3:1: failover.secret_file: missing; for example `secret_file: /etc/weir/secret`",
    ]),
    ('F', "startup_delay: 1h", &[
        "9:16: failover.startup_delay: `1h` is out of range: 0s to 5m",
    ]),
    ('F', r#"paths: {d: "10.1.0.4:7400", a: ["10.0.0.2:7400", "0.0.0.0:1"]}"#, &[
        "9:9: failover.paths.d: there is no node `d`; defined: a, b, c",
        "9:33: failover.paths.a[0]: `10.0.0.2:7400` is the address of node `b` already",
        "9:50: failover.paths.a[1]: other nodes cannot connect to a wildcard: write the node's own address",
    ]),
    ('F', "track: {x: {weight: 5}, y: {tcp: \"10.0.0.9:22\", interface: eth1}, z: {exec: check}}", &[
        "9:9: failover.track.x.tcp: missing: say what is watched, `tcp: 10.0.0.254:22`, `interface: eth1` or `exec: [/usr/local/bin/check]`",
        "9:49: failover.track.y.interface: `tcp` is here as well: one track watches one thing, so give this one a name of its own",
        "9:77: failover.track.z.exec: `check` is not an absolute path: begin with `/`",
    ]),
    ('F', "track: {x: {tcp: \"10.0.0.100:22\"}, y: {interface: eth1, fall: 5}, z: {exec: /bin/true, timeout: 2s}}", &[
        "9:18: failover.track.x.tcp: `10.0.0.100` is a virtual address: whoever holds it would find itself; name something else",
        "9:57: failover.track.y.fall: has a meaning for `tcp` and `exec` only, as the kernel says at once how an interface is: leave it out",
        "9:88: failover.track.z.timeout: the timeout (2s) is longer than the interval (1s): one question is under way at a time",
    ]),
    ('F', "track: {x: {exec: /bin/true -f, weight: 0}, y: {tcp: gw}, z: {interface: eth1, weigth: 3}}", &[
        "9:19: failover.track.x.exec: is one path, spaces included: write arguments as a list, `[/bin/true, -f]`",
        "9:41: failover.track.x.weight: `0` is out of range: 1 to 1000",
        "9:54: failover.track.y.tcp: `gw` is a name, and names are not resolved: write an IP address",
        "9:80: failover.track.z.weigth: unknown key; did you mean `weight`?",
    ]),
    ('F', "groups: {g: [10.0.0.100, 10.0.0.9], h: 10.0.0.100}", &[
        "9:26: failover.groups.g[1]: `10.0.0.9` is not an address of `vips`",
        "9:40: failover.groups.h: `10.0.0.100` is in group `g` already",
    ]),
    ('F', "vips: [{address: 10.0.0.8/24, interface: e}, {address: 10.0.0.9/24, interface: e, preempt: false}]
groups: {g: [10.0.0.8, 10.0.0.9]}", &[
        "10:24: failover.groups.g[1]: `10.0.0.8` and `10.0.0.9` cannot move together: give them the same prefer, preempt and preempt_delay",
    ]),
    ('F', "vips: [{address: 10.0.0.8/24, interface: lo, hold: all, prefer: [a], preempt: true, preempt_delay: 1s, garp_refresh: 1s}]
groups: {g: [10.0.0.8]}", &[
        "9:18: failover.vips[0].address: with `hold: all` the routing daemon announces the whole prefix, and this node would take all of it for its own: write `10.0.0.8/32`",
        "9:57: failover.vips[0].prefer: has no meaning with `hold: all`: every node that serves holds the address, and routers are told, not neighbours; leave it out",
        "9:70: failover.vips[0].preempt: has no meaning with `hold: all`: every node that serves holds the address, and routers are told, not neighbours; leave it out",
        "9:85: failover.vips[0].preempt_delay: has no meaning with `hold: all`: every node that serves holds the address, and routers are told, not neighbours; leave it out",
        "9:104: failover.vips[0].garp_refresh: has no meaning with `hold: all`: every node that serves holds the address, and routers are told, not neighbours; leave it out",
        "10:14: failover.groups.g[0]: `10.0.0.8` is held by every node that serves (`hold: all`): take it out of the group",
    ]),
    ('F', "vips: [{address: 10.0.0.8/32, interface: lo, hold: some}]", &[
        "9:52: failover.vips[0].hold: `some` is not known here; it is one of one, all",
    ]),
    // One address that moves is reason enough for a secret.
    ('W', r#"listeners: {web: {bind: "0.0.0.0:80", pool: web}}
pools: {web: {backends: 10.0.0.1:80}}
failover: {node: a, nodes: {a: "10.0.0.1:7400"}, vips: [{address: 10.0.0.9/32, interface: lo, hold: all}, {address: 10.0.0.8/24, interface: e}]}"#, &[
        "3:1: failover.secret_file: missing; for example `secret_file: /etc/weir/secret`",
    ]),
    ('F', r#"witnesses: ["10.0.0.1:22", "10.0.0.100:22"]"#, &[
        "9:13: failover.witnesses[0]: is an address of node `a`, which votes already: name a third party",
        "9:28: failover.witnesses[1]: `10.0.0.100` is a virtual address: whoever holds it would vote for itself; name a third party",
    ]),
    ('F', "beat: 100ms", &[
        "9:1: failover.beat: dead_after is less than four beats, so one lost packet could move a VIP; raise dead_after or shorten beat",
    ]),
    ('F', "dead_after: 1s
beat: 1ms", &[
        "10:7: failover.beat: `1ms` is out of range: 10ms to 10s",
    ]),
    ('F', r#"nodes: {a: "0.0.0.0:7400", b: "10.0.0.2:7400", c: "10.0.0.2:7400"}"#, &[
        "9:12: failover.nodes.a: other nodes cannot connect to a wildcard: write the node's own address",
        "9:51: failover.nodes.c: `10.0.0.2:7400` is the address of node `b` already",
    ]),
    ('F', r#"nodes: {a: 10.0.0.1, b: "10.0.0.2:0"}"#, &[
        "9:12: failover.nodes.a: `10.0.0.1` has no port: write `10.0.0.1:9000`",
        "9:25: failover.nodes.b: `10.0.0.2:0`: port 0 is not possible here: 1 to 65535",
    ]),
    ('F', r#"witnesses: ["10.0.0.2:7400", "10.0.0.9:22", "10.0.0.9:22"]"#, &[
        "9:13: failover.witnesses[0]: is node `b`, which votes already: name a third party",
        "9:45: failover.witnesses[2]: `10.0.0.9:22` is here twice: each witness has one vote",
    ]),
    ('F', "quorum: 4", &[
        "9:1: failover.quorum: quorum 4 can never be reached: there are only 3 voters (nodes + witnesses); use auto",
    ]),
    ('F', "quorum: 0", &[
        "9:9: failover.quorum: `0` is out of range: 1 to 62, or `auto`",
    ]),
    ('F', "vips: []", &[
        "9:1: failover.vips: is empty: at least 1 must be given",
    ]),
    ('F', "vips: [{address: 10.0.0.100, interface: eth0}]", &[
        "9:18: failover.vips[0].address: `10.0.0.100` has no prefix length: write `10.0.0.100/24`",
    ]),
    ('F', "vips: [{address: 10.0.0.0/24, interface: a-very-long-interface}]", &[
        "9:18: failover.vips[0].address: `10.0.0.0/24` is a network, not the address of a host in it",
        "9:42: failover.vips[0].interface: `a-very-long-interface` is no interface name: at most 15 characters, such as `eth0`",
    ]),
    ('F', "vips: [{interface: eth0}]", &[
        "9:9: failover.vips[0].address: missing; for example `address: 10.0.0.100/24`",
    ]),
    ('F', "vips: [{address: 10.0.0.1/24, interface: eth0, prefer: [b, d, b], requires: [wbe]}]", &[
        "9:18: failover.vips[0].address: `10.0.0.1` is the address of node `a`, which never moves: use another",
        "9:60: failover.vips[0].prefer[1]: there is no node `d`; defined: a, b, c",
        "9:63: failover.vips[0].prefer[2]: `b` is here twice",
        "9:78: failover.vips[0].requires[0]: there is no pool `wbe`; did you mean `web`?",
    ]),
    ('F', "vips: [{address: 10.0.0.9/24, interface: e}, {address: 10.0.0.9/24, interface: e}]", &[
        "9:56: failover.vips[1].address: `10.0.0.9` is here twice, first as failover.vips[0].address",
    ]),
    ('F', "vips: 10.0.0.100/24", &[
        "9:7: failover.vips[0].interface: missing; for example `interface: eth0`",
    ]),
    ('F', r#"arbiter: {strict: true}"#, &[
        "9:1: failover.arbiter.etcd: missing: say where it is, `etcd: {endpoints: [\"http://10.0.0.5:2379\"]}`",
    ]),
    ('F', r#"arbiter: {etcd: {endpoints: []}}"#, &[
        "9:18: failover.arbiter.etcd.endpoints: is empty: at least 1 must be given",
    ]),
    ('F', r#"arbiter: {etcd: {endpoints: ["10.0.0.5:2379", "http://10.0.0.6:2379", "http://10.0.0.6:2379"]}}"#, &[
        "9:30: failover.arbiter.etcd.endpoints[0]: `10.0.0.5:2379` begins with neither `https://` nor `http://`: write one such as `https://10.0.0.5:2379` or `http://etcd.internal:2379`",
        "9:71: failover.arbiter.etcd.endpoints[2]: `http://10.0.0.6:2379` is here twice",
    ]),
    ('F', r#"arbiter: {etcd: {endpoints: ["https://10.0.0.5:2379", "http://10.0.0.6:2379"], cert: /etc/c.pem, user: weir}}"#, &[
        "9:11: failover.arbiter.etcd.ca: missing: `https` endpoints are checked against it",
        "9:80: failover.arbiter.etcd.cert: is of no use without `key`",
        "9:98: failover.arbiter.etcd.user: is of no use without `password_file`",
    ]),
    ('F', r#"arbiter: {etcd: {endpoints: ["http://10.0.0.5:2379", "http://10.0.0.6:2379"], ca: /etc/ca.pem, prefix: weir}}"#, &[
        "9:79: failover.arbiter.etcd.ca: has a meaning for `https` endpoints only: change them, or leave it out",
        "9:104: failover.arbiter.etcd.prefix: `weir` is no prefix of keys: begin with `/`, without spaces, at most 200 characters",
    ]),
    ('F', "arbiter: {etcd: {endpoints: [\"http://10.0.0.5:2379\", \"http://10.0.0.6:2379\"], prefix: /}}\nquorum: 1", &[
        "9:87: failover.arbiter.etcd.prefix: `/` alone is no prefix: write one such as `/weir`",
        "10:1: failover.quorum: quorum 1 is not a majority of 4 voters: an arbiter rules out two holders only with one; use auto",
    ]),
    ('F', r#"notify: "notify.sh""#, &[
        "9:9: failover.notify: `notify.sh` is not an absolute path: begin with `/`",
    ]),
    ('F', "notify: /bin/notify --all", &[
        "9:9: failover.notify: is one path, spaces included: write arguments as a list, `[/bin/notify, --all]`",
    ]),
    // The kernel engine: what needs a socket, and what it does not have.
    ('L', "engine: kernal", &[
        "2:9: listeners.web.engine: `kernal` is not known here; did you mean `kernel`?",
    ]),
    ('L', "engine: kernel\nbind: \"unix:/run/web\"", &[
        "3:1: listeners.web.bind: a unix socket has no packets by `engine: kernel`: write another address, or `engine: proxy`",
    ]),
    ('L', "engine: kernel\nbind: \"10.0.0.1:0\"", &[
        "3:1: listeners.web.bind: port 0 asks a socket for a port, and there is none by `engine: kernel`: write another address, or `engine: proxy`",
    ]),
    ('L', "engine: kernel\nbind: \"127.0.0.1:80\"", &[
        "3:1: listeners.web.bind: packets of the loopback interface are not seen by `engine: kernel`: write another address, or `engine: proxy`",
    ]),
    ('L', "engine: kernel\nbind: \"0.0.0.0:80%eth0\"", &[
        "3:1: listeners.web.bind: `engine: kernel` is limited to interfaces as a whole: leave out `%eth0` and write `kernel: {interfaces: [eth0]}`, which holds for all of its listeners, or `engine: proxy`",
    ]),
    ('L', "engine: kernel\nlimits: {per_source: 3, download: 1MB/s}", &[
        "3:25: listeners.web.limits.download: `engine: kernel` does not have it: leave it out, or write `engine: proxy`",
    ]),
    ('L', "engine: kernel\naccept_proxy: {from: 10.0.0.1}", &[
        "3:1: listeners.web.accept_proxy: `engine: kernel` does not have it: leave it out, or write `engine: proxy`",
    ]),
    ('L', "engine: kernel\nbind: \"[2001:db8::1]:80\"", &[
        "7:1: pools.web.backends: `10.0.0.1:80` is of another family than the listener's addresses, and `engine: kernel` does not translate between them: write an address of the same family, or `engine: proxy`",
        "7:1: pools.web.backends: `10.0.0.2:80` is of another family than the listener's addresses, and `engine: kernel` does not translate between them: write an address of the same family, or `engine: proxy`",
    ]),
    ('L', "engine: kernel\nbind: [\"0.0.0.0:80\", \"[::]:80\"]", &[
        "7:1: pools.web.backends: listeners of both IPv4 and IPv6 addresses use this pool, and `engine: kernel` does not translate between them: give each family a listener and a pool",
    ]),
    ('P', r#"kernel: {source_addresses: [10.0.0.5, 10.0.0.5, "2001:db8::5", 127.0.0.1, 0.0.0.0]}"#, &[
        "6:39: pools.web.kernel.source_addresses[1]: `10.0.0.5` is there twice: leave one of them out",
        "6:49: pools.web.kernel.source_addresses[2]: `2001:db8::5` is IPv6, and `10.0.0.5` is not: give the two families pools of their own",
        "6:64: pools.web.kernel.source_addresses[3]: `127.0.0.1` is known to no other host: write an address that backends can answer",
        "6:75: pools.web.kernel.source_addresses[4]: `0.0.0.0` is no address of this machine: leave it out to let the kernel choose",
    ]),
    ('P', r#"kernel: {source_addresses: "2001:db8::5"}"#, &[
        "6:28: pools.web.kernel.source_addresses: is IPv6, and backend `10.0.0.1:80` is not: give the two families pools of their own",
    ]),
    ('W', r#"listeners: {web: {engine: kernel, bind: "10.0.0.9:80", pool: web}}
pools: {web: {kernel: {mode: keep, source_addresses: 10.0.0.5}, backends: "10.0.0.1:80"}}"#, &[
        "2:36: pools.web.kernel.source_addresses: has a meaning in `mode: nat` only: leave it out",
    ]),
    ('W', "", &[
        r#"1:1: listeners: missing; for example `listeners: {web: {bind: "0.0.0.0:80", pool: web}}`"#,
        r#"1:1: pools: missing; for example `pools: {web: {backends: ["10.0.0.1:80", "10.0.0.2:80"]}}`"#,
    ]),
    ('W', "- a", &[
        "1:3: expected keys (workers, admin, metrics, log, limits, shutdown_grace, kernel, listeners, pools, etcd, failover), found a list",
    ]),
    ('W', "listeners: {a: [}", &[
        "1:17: not valid YAML: did not find expected node content, while parsing a flow node",
    ]),
];

/// A pool holds as many backends as the balancing tables have indices for, and one more is refused: not taken and then
/// fallen over. Broken on purpose: the range of the table of fields at 100,000.
#[test]
fn a_pool_with_more_backends_than_tables_have_room_for() {
    let pool = |backends: usize| {
        let address = |n: usize| format!("10.{}.{}.{}:80", n >> 16, n >> 8 & 255, n & 255);
        let list: Vec<String> = (0..backends).map(address).collect();
        super::said(&super::file('P', &format!("backends: [{}]", list.join(", "))))
    };
    let most = crate::balance::MEMBERS_MAX;
    assert_eq!(pool(most), (false, vec![]));
    let message = "6:1: pools.web.backends: has 65536 entries: 1 to 65535 are possible";
    assert_eq!(pool(most + 1), (true, vec![message.to_string()]));
}
