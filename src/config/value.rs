//! One value: from its text to its meaning, or to the sentence that says what is wrong and what would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::meant::suggestion;
use super::model::*;
use super::yaml::shorten;

/// A type that a scalar of the file can have.
pub trait FromText: Sized {
    /// Its name in messages and in the reference.
    const KIND: &'static str;
    /// Reads it.
    fn from_text(text: &str) -> Result<Self, String>;
    /// Whether it lies between two others; types without an order have no range.
    fn within(&self, _low: &Self, _high: &Self) -> bool {
        true
    }
}

macro_rules! ordered {
    () => {
        fn within(&self, low: &Self, high: &Self) -> bool {
            low <= self && self <= high
        }
    };
}

macro_rules! integers {
    ($($t:ty),*) => {$(
        impl FromText for $t {
            const KIND: &'static str = "integer";
            fn from_text(text: &str) -> Result<Self, String> {
                text.parse().map_err(|_| match text.parse::<i128>() {
                    Ok(_) => format!("`{text}` is out of range: 0 to {}", <$t>::MAX),
                    Err(_) => format!("`{}` is not a whole number", shorten(text)),
                })
            }
            ordered!();
        }
    )*};
}
integers!(u8, u16, u32, u64, usize);

impl FromText for f64 {
    const KIND: &'static str = "number";
    fn from_text(text: &str) -> Result<Self, String> {
        let number = text.parse().ok().filter(|n: &f64| n.is_finite());
        number.ok_or_else(|| format!("`{}` is not a number", shorten(text)))
    }
    ordered!();
}

impl FromText for Duration {
    const KIND: &'static str = "duration";
    fn from_text(text: &str) -> Result<Self, String> {
        if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(format!("`{text}` has no unit: write `{text}s` or `{text}ms`"));
        }
        humantime::parse_duration(text).map_err(|_| {
            format!(
                "`{}` is not a duration: write one such as `500ms`, `2s`, `5m` or `1h`",
                shorten(text)
            )
        })
    }
    ordered!();
}

impl FromText for Rate {
    const KIND: &'static str = "rate";
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is not a rate: write one such as `100/s`, `50/m` or `1000/h`",
                shorten(text)
            )
        };
        let (events, period) = text.split_once('/').ok_or_else(|| match text.parse::<u32>() {
            Ok(n) => format!("`{n}` has no period: write `{n}/s` or `{n}/m`"),
            Err(_) => wrong(),
        })?;
        let seconds = match period.trim() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3600,
            _ => return Err(wrong()),
        };
        let events = events.trim().parse().map_err(|_| wrong())?;
        Ok(Rate {
            events,
            per: Duration::from_secs(seconds),
        })
    }
    fn within(&self, low: &Self, high: &Self) -> bool {
        low.events <= self.events && self.events <= high.events
    }
}

impl FromText for EtcdEndpoint {
    const KIND: &'static str = "URL";
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let text = shorten(text);
            format!("`{text}` {why}: write one such as `https://10.0.0.5:2379` or `http://etcd.internal:2379`")
        };
        let (tls, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong("begins with neither `https://` nor `http://`")),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        if rest.contains(['/', '?', '#', '@']) {
            return Err(wrong("has more than a host and a port"));
        }
        let (host, port) = rest.rsplit_once(':').ok_or_else(|| wrong("has no port"))?;
        let port = port.parse().ok().filter(|port| *port > 0);
        let port = port.ok_or_else(|| wrong("has no port between 1 and 65535"))?;
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) if v6.parse::<Ipv6Addr>().is_ok() => v6,
            None if is_host(host) => host,
            _ => return Err(wrong("has no name or address as its host")),
        };
        let host = host.to_ascii_lowercase();
        Ok(EtcdEndpoint { tls, host, port })
    }
}

/// What keys in a key-value store begin with; without a slash at its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyPrefix(pub String);

impl FromText for KeyPrefix {
    const KIND: &'static str = "prefix";
    fn from_text(text: &str) -> Result<Self, String> {
        let good = |c: char| c.is_ascii_graphic();
        match text.starts_with('/') && text.len() <= 200 && text.chars().all(good) && !text.contains("//") {
            true if text.trim_end_matches('/').is_empty() => {
                Err("`/` alone is no prefix: write one such as `/weir`".into())
            }
            true => Ok(KeyPrefix(text.trim_end_matches('/').to_owned())),
            false => Err(format!(
                "`{}` is no prefix of keys: begin with `/`, without spaces, at most 200 characters",
                shorten(text)
            )),
        }
    }
}

/// A name of letters, digits, hyphens and dots, or an IPv4 address, which is made of the same.
fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.len() <= 253 && text.split('.').all(label) && (!numeric || text.parse::<Ipv4Addr>().is_ok())
}

/// Bytes.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Size(pub u64);

impl FromText for Size {
    const KIND: &'static str = "size";
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{}` is not a size: write one such as `64KiB` or `10MB`", shorten(text));
        let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let unit = match text[digits..].trim() {
            "" => {
                return Err(format!("`{text}` has no unit: write `{text}B` or `{text}KiB`"));
            }
            "B" => 1,
            "KB" | "kB" => 1000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "b" | "Kb" | "kb" | "Mb" | "Gb" | "kbit" | "Kbit" | "mbit" | "Mbit" | "Gbit" | "gbit" => {
                return Err(format!(
                    "`{text}` counts bits: write bytes, for example `125KB` for a megabit"
                ));
            }
            _ => return Err(wrong()),
        };
        number.checked_mul(unit).map(Size).ok_or_else(wrong)
    }
    ordered!();
}

/// Bytes per second.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Bandwidth(pub u64);

impl FromText for Bandwidth {
    const KIND: &'static str = "bytes per second";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.strip_suffix("/s") {
            Some(size) => Size::from_text(size.trim_end()).map(|Size(bytes)| Bandwidth(bytes)),
            None => match Size::from_text(text) {
                Ok(_) => Err(format!("`{text}` has no period: write `{text}/s`")),
                Err(_) => Err(format!(
                    "`{}` is not a bandwidth: write one such as `64KiB/s` or `10MB/s`",
                    shorten(text)
                )),
            },
        }
    }
    ordered!();
}

/// Types that are one of a few words. The first word of a value is the one that is shown.
macro_rules! words {
    ($type:ty { $first:literal => $one:expr $(, $word:literal => $value:expr)* $(,)? } $($also:literal => $other:expr),*) => {
        impl FromText for $type {
            const KIND: &'static str = concat!($first $(, " | ", $word)*);
            fn from_text(text: &str) -> Result<Self, String> {
                match text {
                    $first => Ok($one),
                    $($word => Ok($value),)*
                    $($also => Ok($other),)*
                    _ => Err(not_a_word(text, &[$first $(, $word)*])),
                }
            }
        }
    };
}

fn not_a_word(text: &str, words: &[&str]) -> String {
    let remedy = match suggestion(text, words.iter().copied()) {
        Some(word) => format!("did you mean `{word}`?"),
        None => format!("it is one of {}", words.join(", ")),
    };
    format!("`{}` is not known here; {remedy}", shorten(text))
}

words!(bool { "true" => true, "false" => false } "yes" => true, "on" => true, "no" => false, "off" => false);
words!(Protocol { "tcp" => Protocol::Tcp, "udp" => Protocol::Udp });
words!(LogFormat { "text" => LogFormat::Text, "json" => LogFormat::Json });
words!(log::LevelFilter {
    "error" => log::LevelFilter::Error, "warn" => log::LevelFilter::Warn, "info" => log::LevelFilter::Info,
    "debug" => log::LevelFilter::Debug, "trace" => log::LevelFilter::Trace, "off" => log::LevelFilter::Off
} "warning" => log::LevelFilter::Warn, "false" => log::LevelFilter::Off);
words!(Balance {
    "least_conn" => Balance::LeastConn, "source_hash" => Balance::SourceHash, "round_robin" => Balance::RoundRobin,
    "random" => Balance::Random, "least_time" => Balance::LeastTime
});
words!(ProbeKind { "tcp" => ProbeKind::Tcp, "udp" => ProbeKind::Udp, "none" => ProbeKind::None } "off" => ProbeKind::None);
words!(OnDown { "keep" => OnDown::Keep, "close" => OnDown::Close, "repick" => OnDown::Repick });
words!(AllDown { "refuse" => AllDown::Refuse, "try_all" => AllDown::TryAll });
words!(Holders { "one" => Holders::One, "all" => Holders::All });
words!(SendProxy { "off" => SendProxy::Off, "v1" => SendProxy::V1, "v2" => SendProxy::V2 } "false" => SendProxy::Off);

impl FromText for AccessTarget {
    const KIND: &'static str = "off | stdout | path";
    fn from_text(text: &str) -> Result<Self, String> {
        match text {
            "off" | "false" => Ok(AccessTarget::Off),
            "stdout" => Ok(AccessTarget::Stdout),
            _ => AbsolutePath::from_text(text)
                .map(|AbsolutePath(path)| AccessTarget::File(path))
                .map_err(|_| {
                    format!(
                        "`{}` is none of `off`, `stdout` and a path that begins with `/`",
                        shorten(text)
                    )
                }),
        }
    }
}

/// Any text but the empty one.
impl FromText for String {
    const KIND: &'static str = "text";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.contains('\0') || text.is_empty() {
            true => Err("must be neither empty nor contain NUL".into()),
            false => Ok(text.to_string()),
        }
    }
}

/// What listeners, pools and nodes are called: fit for a metric label, a log line and `POOL/NAME`.
#[derive(Debug, Clone, PartialEq)]
pub struct Name(pub String);

impl FromText for Name {
    const KIND: &'static str = "name";
    fn from_text(text: &str) -> Result<Self, String> {
        let fits = text.len() <= 64
            && text.starts_with(|c: char| c.is_ascii_alphanumeric())
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-.".contains(&b));
        match fits {
            true => Ok(Name(text.to_string())),
            false => Err(format!(
                "`{}` is no name: letters, digits, `_`, `-` and `.`, a letter or digit first, at most 64",
                shorten(text)
            )),
        }
    }
}

/// What a backend is called; an address serves.
#[derive(Debug, Clone, PartialEq)]
pub struct Label(pub String);

impl FromText for Label {
    const KIND: &'static str = "name";
    fn from_text(text: &str) -> Result<Self, String> {
        let fits = !text.is_empty()
            && text.len() <= 128
            && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\=".contains(&b));
        match fits {
            true => Ok(Label(text.to_string())),
            false => Err(format!(
                "`{}` is no name: at most 128 printable ASCII characters without spaces, quotes, `\\` and `=`",
                shorten(text)
            )),
        }
    }
}

/// A network interface.
#[derive(Debug, Clone, PartialEq)]
pub struct Interface(pub String);

impl FromText for Interface {
    const KIND: &'static str = "interface";
    fn from_text(text: &str) -> Result<Self, String> {
        let fits = !matches!(text, "" | "." | "..")
            && text.len() <= 15
            && text.bytes().all(|b| b.is_ascii_graphic() && !b"/:".contains(&b));
        match fits {
            true => Ok(Interface(text.to_string())),
            false => Err(format!(
                "`{}` is no interface name: at most 15 characters, such as `eth0`",
                shorten(text)
            )),
        }
    }
}

/// A path from the root.
#[derive(Debug, Clone, PartialEq)]
pub struct AbsolutePath(pub PathBuf);

impl FromText for AbsolutePath {
    const KIND: &'static str = "path";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && !text.contains('\0') && !text.ends_with('/') {
            true => Ok(AbsolutePath(text.into())),
            false => Err(format!(
                "`{}` is not the path of a file: begin with `/`, end with its name",
                shorten(text)
            )),
        }
    }
}

/// A path that fits a unix socket address.
#[derive(Debug, Clone, PartialEq)]
pub struct SocketPath(pub PathBuf);

/// sun_path of unix(7), less its NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

impl FromText for SocketPath {
    const KIND: &'static str = "socket path";
    fn from_text(text: &str) -> Result<Self, String> {
        let path = text.strip_prefix("unix:").unwrap_or(text);
        if path.len() > SOCKET_PATH_BYTES_MAX {
            return Err(format!(
                "the path has {} bytes: a unix socket takes {SOCKET_PATH_BYTES_MAX}",
                path.len()
            ));
        }
        AbsolutePath::from_text(path).map(|AbsolutePath(path)| SocketPath(path))
    }
}

/// Bytes on the wire: text, or `hex:` and hexadecimal digits.
#[derive(Debug, Clone, PartialEq)]
pub struct Payload(pub Vec<u8>);

const PAYLOAD_BYTES_MAX: usize = 4096;

impl FromText for Payload {
    const KIND: &'static str = "text | hex:...";
    fn from_text(text: &str) -> Result<Self, String> {
        let bytes = match text.strip_prefix("hex:") {
            Some(digits) => hex(digits).ok_or_else(|| {
                format!(
                    "`{}` is not hexadecimal: write pairs of digits such as `hex:00 ff 1a`",
                    shorten(text)
                )
            })?,
            // YAML's \x80 is the character U+0080, two bytes in UTF-8: surely not what was meant.
            None if text.contains(|c| ('\u{80}'..='\u{9f}').contains(&c)) => {
                return Err("bytes above \\x7f cannot be written as text: write all of it as `hex:00 ff 1a`".into());
            }
            None => text.as_bytes().to_vec(),
        };
        match bytes.len() {
            0 => Err("is empty: leave it out".into()),
            1..=PAYLOAD_BYTES_MAX => Ok(Payload(bytes)),
            n => Err(format!("has {n} bytes: at most {PAYLOAD_BYTES_MAX}")),
        }
    }
}

fn hex(digits: &str) -> Option<Vec<u8>> {
    let digits: Option<Vec<u8>> = digits
        .chars()
        .filter(|c| !c.is_whitespace())
        .map(|c| c.to_digit(16).map(|d| d as u8))
        .collect();
    let digits = digits.filter(|d| d.len() % 2 == 0)?;
    Some(digits.chunks(2).map(|pair| pair[0] << 4 | pair[1]).collect())
}

// ---- addresses ----

/// What was written where an address belongs, taken apart.
enum Written<'t> {
    Ip(Host, Option<&'t str>),
    Unix(PathBuf),
}

/// An IP address and the interface that it belongs to, if it is a link-local one.
#[derive(Clone, Copy)]
struct Host {
    ip: IpAddr,
    /// Index of the interface, else 0.
    scope: u32,
}

impl Host {
    fn with_port(self, port: u16) -> SocketAddr {
        match self.ip {
            IpAddr::V6(ip) => SocketAddrV6::new(ip, port, 0, self.scope).into(),
            ip => SocketAddr::new(ip, port),
        }
    }
}

/// `ADDRESS` or `ADDRESS%INTERFACE`; the error continues a sentence that begins with what was written.
fn host(text: &str) -> Result<Host, String> {
    let (bare, zone) = match text.split_once('%') {
        Some((bare, zone)) => (bare, Some(zone)),
        None => (text, None),
    };
    let ip = ip_address(bare)?;
    let link_local = matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local());
    match zone {
        None if link_local => Err(format!(
            "is a link-local address, which means another host on each interface: write the interface too, `[{bare}%eth0]:80`"
        )),
        None => Ok(Host { ip, scope: 0 }),
        Some(_) if !link_local => Err(format!(
            "names an interface, which only link-local addresses do: write `{bare}`"
        )),
        Some(zone) => match if_nametoindex(zone).ok().or_else(|| index(zone)) {
            Some(scope) => Ok(Host { ip, scope }),
            None => Err(format!(
                "names the interface `{}`, which this machine does not have",
                shorten(zone)
            )),
        },
    }
}

/// An interface named by its number.
fn index(zone: &str) -> Option<u32> {
    let index = zone.parse().ok()?;
    if_indextoname(index).ok().map(|_| index)
}

/// As it is written in a file: with the name of the interface, because its number differs from host to host.
fn shown(address: &SocketAddr) -> String {
    if let SocketAddr::V6(v6) = address
        && v6.scope_id() != 0
        && let Ok(name) = if_indextoname(v6.scope_id())
    {
        return format!("[{}%{}]:{}", v6.ip(), name.to_string_lossy(), v6.port());
    }
    address.to_string()
}

/// Takes an address apart.
fn written<'t>(text: &'t str) -> Result<Written<'t>, String> {
    let shown = shorten(text);
    if let Some(path) = text.strip_prefix("unix:") {
        return SocketPath::from_text(path).map(|SocketPath(path)| Written::Unix(path));
    }
    if text.starts_with(['/', '.']) {
        return Err(format!(
            "`{shown}` is not an address: a unix socket is written `unix:/path`"
        ));
    }
    if let Some((_, rest)) = text.split_once("://") {
        return Err(format!(
            "`{shown}` is not an address: write it without the scheme, `{}`",
            shorten(rest)
        ));
    }
    let port = text.strip_prefix("*:").or(text.strip_prefix(':')).unwrap_or(text);
    if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit() || b == b'-') {
        return Err(format!(
            "`{shown}` has no address: write `0.0.0.0:{port}` or `[::]:{port}`"
        ));
    }
    let (name, port) = match text.strip_prefix('[').map(|rest| rest.split_once(']')) {
        Some(Some((name, ""))) => (name, None),
        Some(Some((name, rest))) => (name, rest.strip_prefix(':')),
        Some(None) => return Err(format!("`{shown}` is not an address: the `]` is missing")),
        None if text.matches(':').count() > 1 => {
            return Err(match text.parse::<Ipv6Addr>() {
                Ok(_) => format!("`{shown}`: an IPv6 address stands in brackets, such as `[2001:db8::1]:80`"),
                Err(_) => format!("`{shown}` is not an address: write one such as `10.0.0.1:80` or `[2001:db8::1]:80`"),
            });
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(name, port)| (name, Some(port))),
    };
    if text.starts_with('[') && port.is_none() && !text.ends_with(']') {
        return Err(format!("`{shown}` is not an address: after `]` comes `:` and the port"));
    }
    let host = host(name).map_err(|reason| format!("`{shown}` {reason}"))?;
    if host.ip.is_ipv6() != text.starts_with('[') {
        return Err(format!("`{shown}` is not an address: brackets are for IPv6 only"));
    }
    Ok(Written::Ip(host, port))
}

/// An IP address without brackets; the error continues a sentence that begins with what was written.
fn ip_address(host: &str) -> Result<IpAddr, String> {
    match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(v6)) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(format!("is an IPv4 address written as IPv6: write `{v4}`")),
            None => Ok(IpAddr::V6(v6)),
        },
        Ok(v4) => Ok(v4),
        Err(_) if host.contains('%') => {
            Err("names an interface, which is not possible here: write the address alone".into())
        }
        Err(_) if host == "localhost" => Err("is a name: write `127.0.0.1` or `[::1]`".into()),
        Err(_) if host.contains(|c: char| c.is_ascii_alphabetic()) && !host.contains(':') => {
            Err("is a name, and names are not resolved: write an IP address".into())
        }
        Err(_) => Err("is not an IP address, such as `10.0.0.1` or `2001:db8::1`".into()),
    }
}

fn port(text: &str) -> Result<u16, String> {
    text.parse().map_err(|_| match text.parse::<u64>() {
        Ok(_) => format!("port `{}` is out of range: 1 to 65535", shorten(text)),
        Err(_) => format!("`{}` is not a port: 1 to 65535", shorten(text)),
    })
}

impl FromText for Bind {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        let (Host { ip, scope }, ports) = match written(text)? {
            Written::Unix(path) => return Ok(Bind::Unix(path)),
            Written::Ip(_, None) => return Err(format!("`{text}` has no port: write `{text}:80`")),
            Written::Ip(host, Some(ports)) => (host, ports),
        };
        if ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(format!(
                "`{text}` is not an address of this machine: multicast and broadcast are not supported"
            ));
        }
        let ports = match ports.split_once('-') {
            None => port(ports).map(|p| p..=p)?,
            Some((first, last)) => {
                let (first, last) = (port(first)?, port(last)?);
                if first == 0 || first > last {
                    return Err(format!(
                        "`{text}`: a port range runs upwards and begins at 1 or later, such as `8000-8010`"
                    ));
                }
                first..=last
            }
        };
        Ok(Bind::Ip { ip, scope, ports })
    }
}

impl BackendAddress {
    /// Reads it as it is written in a file.
    ///
    /// # Errors
    /// What is wrong, and what would be right.
    pub fn parse(text: &str) -> Result<BackendAddress, String> {
        BackendAddress::from_text(text)
    }
}

impl FromText for BackendAddress {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        let (host, to) = match written(text)? {
            Written::Unix(path) => return Ok(BackendAddress::Unix(path)),
            Written::Ip(host, to) => (host, to),
        };
        let ip = host.ip;
        if ip.is_unspecified() || ip.is_multicast() || ip == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(format!(
                "`{text}` is not the address of one machine: write the backend's own"
            ));
        }
        match to {
            None if host.scope != 0 => Err(format!(
                "`{text}` has no port, and with an interface it needs one: write `{text}:8080`"
            )),
            None => Ok(BackendAddress::SamePort(ip)),
            Some(range) if range.contains('-') => Err(format!(
                "`{text}`: a backend has one port; without one (`{}`) it gets the port that the client used",
                &text[..text.len() - range.len() - 1]
            )),
            Some(to) => match port(to)? {
                0 => Err(format!("`{text}`: port 0 cannot be connected to: 1 to 65535")),
                to => Ok(BackendAddress::Ip(host.with_port(to))),
            },
        }
    }
}

/// An IP address and port other than 0.
impl FromText for SocketAddr {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        match written(text)? {
            Written::Unix(_) => Err(format!(
                "`{}`: a unix socket cannot be used here: write an IP address and port",
                shorten(text)
            )),
            Written::Ip(_, None) => Err(format!("`{text}` has no port: write `{text}:9000`")),
            Written::Ip(host, Some(to)) => match port(to)? {
                0 => Err(format!("`{text}`: port 0 is not possible here: 1 to 65535")),
                to => Ok(host.with_port(to)),
            },
        }
    }
}

impl FromText for IpAddr {
    const KIND: &'static str = "IP address";
    fn from_text(text: &str) -> Result<Self, String> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
        if text.parse::<SocketAddr>().is_ok() {
            return Err(format!("`{text}` has a port: write the address alone"));
        }
        ip_address(bare).map_err(|reason| format!("`{}` {reason}", shorten(text)))
    }
}

/// A prefix; a bare address means itself alone.
impl FromText for IpNet {
    const KIND: &'static str = "prefix";
    fn from_text(text: &str) -> Result<Self, String> {
        let Some((ip, bits)) = text.split_once('/') else {
            return IpAddr::from_text(text).map(IpNet::from);
        };
        let ip = ip_address(ip).map_err(|reason| format!("`{}` {reason}", shorten(text)))?;
        let bits_max = if ip.is_ipv4() { 32 } else { 128 };
        let bits = bits
            .parse()
            .map_err(|_| format!("`{}`: the prefix length is 0 to {bits_max}", shorten(text)))?;
        IpNet::new(ip, bits).map_err(|_| format!("`{text}`: the prefix length is 0 to {bits_max}"))
    }
}

/// An address with its prefix length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct VipAddress(pub IpNet);

impl FromText for VipAddress {
    const KIND: &'static str = "address/prefix";
    fn from_text(text: &str) -> Result<Self, String> {
        let net = IpNet::from_text(text)?;
        if !text.contains('/') {
            return Err(format!(
                "`{text}` has no prefix length: write `{text}/{}`",
                if net.addr().is_ipv4() { 24 } else { 64 }
            ));
        }
        let whole = net.prefix_len() + 1 >= net.max_prefix_len();
        let broadcast = matches!(net, IpNet::V4(v4) if v4.addr() == v4.broadcast());
        if net.prefix_len() == 0 || !whole && (net.addr() == net.network() || broadcast) {
            return Err(format!("`{text}` is a network, not the address of a host in it"));
        }
        let ip = net.addr();
        match ip.is_unspecified() || ip.is_multicast() || ip.is_loopback() {
            true => Err(format!(
                "`{text}` cannot move between hosts: use an address of the interface's network"
            )),
            false => Ok(VipAddress(net)),
        }
    }
}

impl fmt::Display for Bind {
    /// As it is written in a file.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Bind::Unix(path) => write!(f, "unix:{}", path.display()),
            Bind::Ip { ip, scope, ports } => {
                let host = Host { ip: *ip, scope: *scope };
                f.write_str(&shown(&host.with_port(*ports.start())))?;
                match ports.start() == ports.end() {
                    true => Ok(()),
                    false => write!(f, "-{}", ports.end()),
                }
            }
        }
    }
}

impl fmt::Display for BackendAddress {
    /// As it is written in a file.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            BackendAddress::Ip(address) => f.write_str(&shown(address)),
            BackendAddress::SamePort(IpAddr::V6(ip)) => write!(f, "[{ip}]"),
            BackendAddress::SamePort(ip) => ip.fmt(f),
            BackendAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}
