//! Addresses: from their text to their meaning, or to the sentence that says what is wrong and what would be right.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;

use ipnet::IpNet;
use nix::net::if_::{if_indextoname, if_nametoindex};

use super::model::*;
use super::value::{FromText, Interface, Label, SocketPath};
use super::yaml::shorten;

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

/// `ADDRESS:PORT%INTERFACE`: the address and the interface to which it is limited.
fn device(text: &str) -> Result<(&str, Option<Device>), String> {
    let (address, name) = match text.rsplit_once('%') {
        // What is in brackets is part of an address.
        Some((address, name)) if !text.starts_with("unix:") && !name.contains(']') => (address, name),
        _ => return Ok((text, None)),
    };
    // An IPv6 address without brackets, which is spoken of as such.
    if !address.starts_with('[') && address.matches(':').count() > 1 {
        return Ok((text, None));
    }
    if let Some((name, port)) = name.split_once(':')
        && !address.trim_end_matches(|c: char| c.is_ascii_digit()).ends_with(':')
    {
        return Err(format!(
            "`{}`: the interface comes last: write `{}`",
            shorten(text),
            shorten(&format!("{address}:{port}%{name}"))
        ));
    }
    let Interface(name) = Interface::from_text(name)?;
    let index = if_nametoindex(name.as_str()).unwrap_or(0);
    Ok((address, Some(Device { index, name })))
}

impl FromText for Bind {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        let (text, device) = device(text)?;
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
        match &device {
            Some(Device { name, .. }) if scope != 0 => {
                Err(format!("`{text}` names its interface already: leave out `%{name}`"))
            }
            _ => Ok(Bind::Ip {
                ip,
                scope,
                ports,
                device,
            }),
        }
    }
}

impl BackendAddress {
    /// Whether a backend can have this name.
    pub fn is_label(text: &str) -> bool {
        Label::from_text(text).is_ok()
    }

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

/// A host name, without a port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostName(pub String);

impl FromText for HostName {
    const KIND: &'static str = "host name";
    fn from_text(text: &str) -> Result<Self, String> {
        let shown = shorten(text);
        if text.parse::<IpAddr>().is_ok() || text.parse::<SocketAddr>().is_ok() {
            return Err(format!("`{shown}` is an address: write it under `backends`"));
        }
        if let Some((name, port)) = text.split_once(':') {
            return Err(format!(
                "`{shown}` has a port: write `{}`, and `port: {}`",
                shorten(name),
                shorten(port)
            ));
        }
        let bare = text.strip_suffix('.').unwrap_or(text);
        match is_host(bare) {
            true => Ok(HostName(text.to_ascii_lowercase())),
            false => Err(format!(
                "`{shown}` is not a host name: write one such as `web.internal` or `_http._tcp.web.internal`"
            )),
        }
    }
}

/// Where a backend is: an address, or a name that has addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackendPlace {
    /// A fixed address.
    At(BackendAddress),
    /// The addresses that the name resolves to.
    Behind {
        /// The host name.
        name: String,
        /// Port of every address; `None` = the one that the client used.
        port: Option<u16>,
    },
}

impl FromText for BackendPlace {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        let error = match BackendAddress::from_text(text) {
            Ok(address) => return Ok(BackendPlace::At(address)),
            Err(error) => error,
        };
        let (name, to) = match text.split_once(':') {
            Some((name, to)) => (name, Some(to)),
            None => (text, None),
        };
        // A slip in an address is no name.
        let last = name.trim_end_matches('.').rsplit('.').next().unwrap_or_default();
        let named = last.starts_with(|c: char| c.is_ascii_alphabetic()) && (last.len() > 1 || last == name);
        let bare = name.strip_suffix('.').unwrap_or(name);
        if name == "localhost" || !named || !is_host(bare) {
            return Err(error);
        }
        let port = match to.map(port).transpose()? {
            Some(0) => return Err(format!("`{text}`: port 0 cannot be connected to: 1 to 65535")),
            port => port,
        };
        let name = name.to_ascii_lowercase();
        Ok(BackendPlace::Behind { name, port })
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

/// A name server; without a port it is that of DNS.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NameServer(pub SocketAddr);

impl FromText for NameServer {
    const KIND: &'static str = "address";
    fn from_text(text: &str) -> Result<Self, String> {
        const DNS: u16 = 53;
        match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            Ok(ip) => Ok(NameServer((ip, DNS).into())),
            Err(_) => SocketAddr::from_text(text).map(NameServer),
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
            Bind::Ip {
                ip,
                scope,
                ports,
                device,
            } => {
                let host = Host { ip: *ip, scope: *scope };
                f.write_str(&shown(&host.with_port(*ports.start())))?;
                if ports.start() != ports.end() {
                    write!(f, "-{}", ports.end())?;
                }
                match device {
                    Some(device) => write!(f, "%{}", device.name),
                    None => Ok(()),
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

/// A name of letters, digits, hyphens and dots, or an IPv4 address, which is made of the same.
pub fn is_host(text: &str) -> bool {
    let label = |label: &str| {
        let inside = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        (1..=63).contains(&label.len()) && label.bytes().all(inside) && !label.starts_with('-') && !label.ends_with('-')
    };
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || b == b'.');
    text.len() <= 253 && text.split('.').all(label) && (!numeric || text.parse::<Ipv4Addr>().is_ok())
}
