//! One value: from its text to its meaning, or to the sentence that says what is wrong and what would be right.

use std::path::PathBuf;
use std::time::Duration;

use super::meant::suggestion;
use super::model::*;
use super::yaml::shorten;

/// A type that a scalar of the file can have.
pub trait FromText: Sized {
    /// Its name in messages and in the reference.
    const KIND: &'static str;
    /// The value that `text` stands for; the error says what would be right.
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

/// What keys of a registry begin with, as it is.
#[derive(Debug, Clone, PartialEq)]
pub struct MemberPrefix(pub String);

impl FromText for MemberPrefix {
    const KIND: &'static str = "prefix";
    fn from_text(text: &str) -> Result<Self, String> {
        match (1..=200).contains(&text.len()) && text.chars().all(|c| c.is_ascii_graphic()) {
            true if text.ends_with('/') => Ok(MemberPrefix(text.to_owned())),
            true => Err(format!("`{text}` would also match `{text}2`: end it with `/`")),
            false => Err(format!(
                "`{}` is no prefix of keys: 1 to 200 characters without spaces",
                shorten(text)
            )),
        }
    }
}

/// A size in bytes.
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
words!(Engine { "proxy" => Engine::Proxy, "kernel" => Engine::Kernel });
words!(KernelMode { "nat" => KernelMode::Nat, "keep" => KernelMode::Keep, "dsr" => KernelMode::Dsr });
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
words!(OnMarkedUp { "keep" => OnMarkedUp::Keep, "close_backup" => OnMarkedUp::CloseBackup });
words!(HttpMethod { "GET" => HttpMethod::Get, "HEAD" => HttpMethod::Head, "OPTIONS" => HttpMethod::Options });
words!(Family { "any" => Family::Any, "v4" => Family::V4, "v6" => Family::V6 } "ipv4" => Family::V4, "ipv6" => Family::V6);
words!(AllDown { "refuse" => AllDown::Refuse, "try_all" => AllDown::TryAll });
words!(Holders { "one" => Holders::One, "all" => Holders::All });
words!(ClientAddress { "hide" => ClientAddress::Hide, "keep" => ClientAddress::Keep });
/// A class of RFC 2474, as it stands in the upper six bits of the TOS byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dscp(pub u8);

impl FromText for Dscp {
    const KIND: &'static str = "dscp";
    fn from_text(text: &str) -> Result<Self, String> {
        let digits = |name: &str| -> Option<Vec<u8>> { name.bytes().map(|b| b.checked_sub(b'0')).collect() };
        let lower = text.to_ascii_lowercase();
        let class = match (lower.as_str(), lower.split_at_checked(2)) {
            ("ef", _) => Some(46),
            // RFC 2474 section 4.2.2, RFC 2597 section 6.
            (_, Some(("cs", class))) => match digits(class).as_deref() {
                Some([class @ 0..=7]) => Some(8 * class),
                _ => None,
            },
            (_, Some(("af", class))) => match digits(class).as_deref() {
                Some([class @ 1..=4, drop @ 1..=3]) => Some(8 * class + 2 * drop),
                _ => None,
            },
            (number, _) => number.parse().ok().filter(|class| *class < 64),
        };
        class.map(Dscp).ok_or_else(|| {
            format!(
                "`{}` is no class: write 0 to 63, or a name such as ef, af41, cs3; of a TOS byte, a quarter",
                shorten(text)
            )
        })
    }
}

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
