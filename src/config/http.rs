//! Values of `health` and `routes` that belong to HTTP and TLS.

use std::net::{IpAddr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use super::address::is_host;
use super::value::FromText;
use super::yaml::shorten;

/// Statuses of HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct Statuses(pub RangeInclusive<u16>);

impl FromText for Statuses {
    const KIND: &'static str = "status | LOW-HIGH";
    fn from_text(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{}` is not a status of HTTP: write one such as `200`, or a range such as `200-399`",
                shorten(text)
            )
        };
        let (low, high) = text.split_once('-').unwrap_or((text, text));
        let status = |text: &str| text.parse().ok().filter(|status| (100..=599).contains(status));
        let (low, high): (u16, u16) = (status(low).ok_or_else(wrong)?, status(high).ok_or_else(wrong)?);
        match low <= high {
            true => Ok(Statuses(low..=high)),
            false => Err(wrong()),
        }
    }
}

/// What stands in the first line of a question in HTTP.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpPath(pub String);

impl FromText for HttpPath {
    const KIND: &'static str = "path";
    fn from_text(text: &str) -> Result<Self, String> {
        match text.starts_with('/') && text.len() <= 1024 && text.bytes().all(|b| b.is_ascii_graphic()) {
            true => Ok(HttpPath(text.into())),
            false => Err(format!(
                "`{}` is not the path of a URL: begin with `/`, write others than printable ASCII characters as `%20`",
                shorten(text)
            )),
        }
    }
}

/// A host, with or without a port, as in a header.
#[derive(Debug, Clone, PartialEq)]
pub struct HttpHost(pub String);

impl FromText for HttpHost {
    const KIND: &'static str = "host";
    fn from_text(text: &str) -> Result<Self, String> {
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b);
        match !text.is_empty() && text.len() <= 255 && text.bytes().all(fits) {
            true => Ok(HttpHost(text.into())),
            false => Err(format!("`{}` is not a host: write a name or an address", shorten(text))),
        }
    }
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerName(pub String);

impl FromText for ServerName {
    const KIND: &'static str = "name";
    fn from_text(text: &str) -> Result<Self, String> {
        match is_host(text) || text.parse::<Ipv6Addr>().is_ok() {
            true => Ok(ServerName(text.into())),
            false => Err(format!(
                "`{}` is not the name of a server: write one such as `www.example.org`",
                shorten(text)
            )),
        }
    }
}

/// A name that clients ask for in their TLS hellos: lower case, without a dot at the end, perhaps with `*` for its first label.
#[derive(Debug, Clone, PartialEq)]
pub struct RouteName(pub String);

impl FromText for RouteName {
    const KIND: &'static str = "server name";
    fn from_text(text: &str) -> Result<Self, String> {
        text.parse()
    }
}

impl FromStr for RouteName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let name = text.strip_suffix('.').unwrap_or(text);
        let host = name.strip_prefix("*.").unwrap_or(name);
        let remedy = match name {
            _ if name.parse::<IpAddr>().is_ok() => "clients do not send addresses as server names: write a name",
            "" | "*" => "what no other name is for belongs to the listener's `pool`: write that",
            _ if !name.is_ascii() => "hellos carry the ASCII form of a name: write `xn--...`",
            _ if host.contains('*') => "`*` stands for the whole first label, and for one only: write `*.example.org`",
            _ if name.contains([':', '/']) => "write the name alone, without scheme, port or path",
            _ if is_host(host) => return Ok(RouteName(name.to_ascii_lowercase())),
            _ => "write one such as `www.example.org` or `*.example.org`",
        };
        Err(format!("`{}` is not a server name: {remedy}", shorten(text)))
    }
}
