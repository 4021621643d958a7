//! `bind` lines, and addresses as HAProxy writes them.

use std::net::IpAddr;
use std::time::Duration;

use crate::cli::import::draft::Draft;
use crate::cli::import::lex::Statement;
use crate::cli::import::time;

/// What a `bind` line comes to.
#[derive(Default)]
pub struct Bound<'s> {
    pub addresses: Vec<String>,
    pub accept_proxy: bool,
    pub backlog: Option<(&'s Statement, String)>,
    pub user_timeout: Option<(&'s Statement, Duration)>,
}

/// An address taken apart: host and what stands behind the last colon.
pub enum Address<'t> {
    Unix(&'t str),
    Ip { host: &'t str, port: &'t str },
    Other(&'static str),
}

/// Takes an address apart. The host may be empty, or a name.
pub fn address(text: &str) -> Address<'_> {
    if let Some(path) = text.strip_prefix("unix@").or(text.starts_with('/').then_some(text)) {
        return Address::Unix(path);
    }
    let rest = match text.split_once('@') {
        None => text,
        Some(("ipv4" | "ipv6" | "tcp" | "tcp4" | "tcp6" | "stream+ipv4" | "stream+ipv6", rest)) => rest,
        Some(("abns" | "abnsz", _)) => {
            return Address::Other("abstract unix sockets are not possible: use a path, `unix:/run/...`");
        }
        Some(("fd" | "sockpair", _)) => {
            return Address::Other("inherited sockets come from systemd's socket units: write the address");
        }
        Some(_) => return Address::Other("is no TCP address: write a listener with `protocol: udp` for datagrams"),
    };
    match rest.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Address::Ip { host: bare(host), port },
        _ => Address::Ip {
            host: bare(rest),
            port: "",
        },
    }
}

fn bare(host: &str) -> &str {
    host.strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .unwrap_or(host)
}

/// Host and port as they are written here; a name stays as it is.
pub fn written(host: &str, port: &str) -> String {
    let colon = if port.is_empty() { "" } else { ":" };
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => format!("[{v6}]{colon}{port}"),
        _ if host.contains(':') => format!("[{host}]{colon}{port}"),
        _ => format!("{host}{colon}{port}"),
    }
}

/// Parameters of `bind`: how many words follow, and why there is nothing to write for it ("" = it is so anyway).
const PARAMETERS: &[(&str, usize, &str)] = &[
    ("name", 1, ""),
    ("id", 1, ""),
    ("defer-accept", 0, ""),
    ("tfo", 0, "TCP fast open is not used"),
    ("mss", 1, "the kernel chooses the segment size"),
    ("transparent", 0, "only this machine's own addresses are bound"),
    (
        "namespace",
        1,
        "run weir in the namespace: `ip netns exec`, or NetworkNamespacePath= in the unit",
    ),
    ("nice", 1, "every connection gets the same share"),
    ("process", 1, "all workers serve all listeners"),
    ("thread", 1, "all workers serve all listeners"),
    ("shards", 1, "every worker has a socket of its own"),
    ("expose-fd", 1, ""),
    ("level", 1, "is for the admin socket"),
    ("maxconn", 1, "write `limits.connections` of the listener"),
    (
        "accept-netscaler-cip",
        1,
        "the NetScaler header is not read: let the client side send PROXY protocol",
    ),
    (
        "mode",
        1,
        "the socket's file gets the rights that the umask of weir leaves",
    ),
    ("user", 1, "the socket's file belongs to the user that runs weir"),
    ("group", 1, "the socket's file belongs to the user that runs weir"),
    ("uid", 1, "the socket's file belongs to the user that runs weir"),
    ("gid", 1, "the socket's file belongs to the user that runs weir"),
    ("severity-output", 1, "is for the admin socket"),
];

/// Reads a `bind` line.
pub fn bind<'s>(line: &'s Statement, draft: &mut Draft) -> Bound<'s> {
    let mut bound = Bound::default();
    let mut interface = None;
    let mut v6only = false;
    let mut at = 2;
    while at < line.words.len() {
        let word = line.word(at);
        at += 1;
        match word {
            "ssl" => {
                draft.remark(
                    line,
                    "TLS is not ended here, and is not served without: keep `ssl` on the servers and pass it through, or keep a \
                     terminator behind weir",
                );
                return Bound::default();
            }
            "accept-proxy" => bound.accept_proxy = true,
            "v6only" => v6only = true,
            "v4v6" => v6only = false,
            "interface" => {
                interface = Some(line.word(at));
                at += 1;
            }
            "backlog" => {
                bound.backlog = Some((line, line.word(at).to_string()));
                at += 1;
            }
            "tcp-ut" => {
                bound.user_timeout = time::haproxy(line.word(at)).map(|timeout| (line, timeout));
                at += 1;
            }
            _ => match PARAMETERS.iter().find(|(name, ..)| *name == word) {
                Some((_, takes, why)) => {
                    at += takes;
                    if !why.is_empty() {
                        draft.remark(line, format!("`{word}`: {why}"));
                    }
                }
                None => draft.remark(line, format!("`{}` has no meaning here", crate::config::shorten(word))),
            },
        }
    }
    let only = interface.map_or(String::new(), |interface| format!("%{interface}"));
    let written = |host: &str, port: &str| written(host, port) + &only;
    for text in line.word(1).split(',') {
        match address(text) {
            Address::Unix(path) => bound.addresses.push(format!("unix:{path}")),
            Address::Other(why) => draft.remark(line, format!("`{}`: {why}", crate::config::shorten(text))),
            Address::Ip { host: "" | "*", port } => bound.addresses.push(written("0.0.0.0", port)),
            Address::Ip { host, port } => {
                bound.addresses.push(written(host, port));
                let wildcard = host
                    .parse::<IpAddr>()
                    .is_ok_and(|ip| ip.is_ipv6() && ip.is_unspecified());
                if wildcard && !v6only {
                    // There such a socket takes IPv4 too; here it does not.
                    bound.addresses.push(written("0.0.0.0", port));
                }
            }
        }
    }
    bound
}
