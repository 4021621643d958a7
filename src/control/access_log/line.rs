//! One access record as one line: pure.
//!
//! Both forms have the same fields in the same order, listed once in [`each_field`]. Values that are not plain (a name
//! with a space, a path with an escape sequence in it) are quoted the way JSON quotes, in text as well, so that a line is
//! a line whatever is in it and a terminal shows what is there.

use std::fmt::{Display, Write};
use std::time::SystemTime;

use crate::config::model::{BackendAddress, LogFormat, Protocol};
use crate::link::{Address, Record};

/// A field's value.
enum Value<'a> {
    Absent,
    Time(SystemTime),
    Number(u64),
    /// Microseconds, shown as milliseconds with three decimals.
    Millis(u64),
    /// One of our own words or an IP address: plain by construction.
    Plain(&'a dyn Display),
    Text(&'a str),
    Shown(&'a dyn Display),
}

/// Appends `record` to `out`, with the line feed.
pub fn append(record: &Record, format: LogFormat, out: &mut String) {
    let start = out.len();
    match format {
        LogFormat::Text => each_field(record, |name, value| {
            if out.len() > start {
                out.push(' ');
            }
            out.push_str(name);
            out.push('=');
            match value {
                Value::Absent => out.push('-'),
                Value::Text(text) if !is_plain(text) => quote(text, out),
                Value::Shown(shown) => match shown.to_string() {
                    text if is_plain(&text) => out.push_str(&text),
                    text => quote(&text, out),
                },
                value => bare(value, out),
            }
        }),
        LogFormat::Json => {
            each_field(record, |name, value| {
                out.push(if out.len() > start { ',' } else { '{' });
                out.push('"');
                out.push_str(name);
                out.push_str("\":");
                match value {
                    Value::Absent => out.push_str("null"),
                    Value::Number(_) | Value::Millis(_) => bare(value, out),
                    Value::Text(text) => quote(text, out),
                    Value::Shown(shown) => quote(&shown.to_string(), out),
                    Value::Time(_) | Value::Plain(_) => {
                        out.push('"');
                        bare(value, out);
                        out.push('"');
                    }
                }
            });
            if record.interim {
                out.push_str(",\"interim\":true");
            }
            out.push('}');
        }
    }
    if record.interim && format == LogFormat::Text {
        out.push_str(" interim=true");
    }
    out.push('\n');
}

/// The fields of the contract, in its order.
fn each_field(record: &Record, mut put: impl FnMut(&'static str, Value)) {
    let listener = &record.listener.config;
    let backend = record.backend.as_deref();
    put("time", Value::Time(record.time));
    put("id", Value::Number(record.id));
    put("listener", Value::Text(&listener.name));
    put(
        "protocol",
        Value::Plain(&match listener.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }),
    );
    match &record.client {
        Some(client) => put("client", Value::Plain(client)),
        None => put("client", Value::Absent),
    }
    match (record.local.ip(), &*record.local) {
        (Some(address), _) => put("local", Value::Plain(&address)),
        (None, path) => put("local", Value::Shown(path)),
    }
    put("pool", record.pool().map_or(Value::Absent, Value::Text));
    match backend {
        None => ["backend", "address"].map(|name| put(name, Value::Absent)),
        Some(backend) => {
            put("backend", Value::Text(&backend.config.name));
            match (&backend.config.address, &*record.local) {
                (BackendAddress::Ip(address), _) => put("address", Value::Plain(address)),
                (BackendAddress::SamePort(ip), Address::Ip(local) | Address::Device(local, _)) => {
                    let address = std::net::SocketAddr::new(*ip, local.port());
                    put("address", Value::Plain(&address));
                }
                (address, _) => put("address", Value::Shown(address)),
            }
            [(); 2]
        }
    };
    put("attempts", Value::Number(record.attempts.into()));
    put("bytes_up", Value::Number(record.bytes_up));
    put("bytes_down", Value::Number(record.bytes_down));
    put("connect_ms", millis(record.connect_us));
    put("first_byte_ms", millis(record.first_byte_us));
    put("duration_ms", Value::Millis(record.duration_us));
    put("spliced", Value::Number(record.spliced));
    // What is still alive has not been ended by anybody.
    match record.interim {
        true => ["closed_by", "cause"].map(|name| put(name, Value::Absent)),
        false => [
            put("closed_by", Value::Plain(&record.closed_by.as_str())),
            put("cause", Value::Plain(&record.cause.as_str())),
        ],
    };
    if record.listener.routing.is_some() {
        let server_name = record.asked.server_name.as_deref();
        put("server_name", server_name.map_or(Value::Absent, Value::Text));
    }
    // Only of an engine that works on packets.
    if let Some([up, down]) = record.packets {
        put("engine", Value::Plain(&record.listener.owner.0));
        put("packets_up", Value::Number(up));
        put("packets_down", Value::Number(down));
    }
}

fn millis(us: Option<u64>) -> Value<'static> {
    us.map_or(Value::Absent, Value::Millis)
}

fn bare(value: Value, out: &mut String) {
    let written = match value {
        Value::Absent => Ok(()),
        Value::Time(time) => write!(out, "{}", humantime::format_rfc3339_millis(time)),
        Value::Number(n) => write!(out, "{n}"),
        Value::Millis(us) => write!(out, "{}.{:03}", us / 1000, us % 1000),
        Value::Plain(shown) | Value::Shown(shown) => write!(out, "{shown}"),
        Value::Text(text) => out.write_str(text),
    };
    debug_assert!(written.is_ok(), "writing to a string");
}

/// Whether text can stand unquoted, without being taken for an absent value.
fn is_plain(text: &str) -> bool {
    !text.is_empty()
        && text != "-"
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:/[]@%+,".contains(&b))
}

/// As a JSON string. Beyond what JSON asks, everything that moves a terminal's cursor or its direction is escaped.
fn quote(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if c.is_control()
                || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}') =>
            {
                let _ = write!(out, "\\u{:04x}", c as u32);
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::access_log::tests::record;
    use proptest::prelude::*;
    use std::time::Duration;

    const FIELDS: [&str; 18] = [
        "time",
        "id",
        "listener",
        "protocol",
        "client",
        "local",
        "pool",
        "backend",
        "address",
        "attempts",
        "bytes_up",
        "bytes_down",
        "connect_ms",
        "first_byte_ms",
        "duration_ms",
        "spliced",
        "closed_by",
        "cause",
    ];

    fn line(record: &Record, format: LogFormat) -> String {
        let mut out = String::new();
        append(record, format, &mut out);
        out
    }

    #[test]
    fn a_line_reads_like_this() {
        let mut served = record("web", Some("a"));
        served.time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        assert_eq!(
            line(&served, LogFormat::Text),
            "time=2023-11-14T22:13:20.123Z id=7 listener=web protocol=tcp client=192.0.2.1:40000 local=192.0.2.9:80 \
             pool=web backend=a address=10.0.0.11:80 attempts=1 bytes_up=10 bytes_down=2000 connect_ms=0.312 \
             first_byte_ms=1.500 duration_ms=61000.007 spliced=0 closed_by=client cause=finished\n"
        );
        let mut refused = record("web", None);
        (refused.client, refused.connect_us, refused.first_byte_us) = (None, None, None);
        refused.time = served.time;
        assert_eq!(
            line(&refused, LogFormat::Json),
            "{\"time\":\"2023-11-14T22:13:20.123Z\",\"id\":7,\"listener\":\"web\",\"protocol\":\"tcp\",\"client\":null,\
             \"local\":\"192.0.2.9:80\",\"pool\":\"web\",\"backend\":null,\"address\":null,\"attempts\":1,\"bytes_up\":10,\
             \"bytes_down\":2000,\"connect_ms\":null,\"first_byte_ms\":null,\"duration_ms\":61000.007,\"spliced\":0,\
             \"closed_by\":\"client\",\"cause\":\"finished\"}\n"
        );
    }

    #[test]
    fn an_interim_record_says_so_and_names_no_ending() {
        let mut interim = record("web", Some("a"));
        interim.interim = true;
        let text = line(&interim, LogFormat::Text);
        assert!(text.ends_with("closed_by=- cause=- interim=true\n"), "{text}");
        let json: serde_json::Value = serde_json::from_str(&line(&interim, LogFormat::Json)).unwrap();
        assert_eq!(
            (&json["interim"], &json["cause"]),
            (&true.into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn records_of_packets_count_them() {
        let mut kernel = record("web", Some("a"));
        kernel.packets = Some([5, 4]);
        let text = line(&kernel, LogFormat::Text);
        assert!(
            text.ends_with("cause=finished engine=proxy packets_up=5 packets_down=4\n"),
            "{text}"
        );
        let json: serde_json::Value = serde_json::from_str(&line(&kernel, LogFormat::Json)).unwrap();
        assert_eq!((&json["engine"], &json["packets_down"]), (&"proxy".into(), &4.into()));
    }

    /// Splits a text line by the rule that its reader would use.
    fn parse_text(line: &str) -> Vec<(String, String)> {
        let mut rest = line.strip_suffix('\n').unwrap();
        let mut fields = Vec::new();
        while !rest.is_empty() {
            let (name, after) = rest.split_once('=').unwrap();
            let value;
            (value, rest) = if after.starts_with('"') {
                let mut stream = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = stream.next().unwrap().unwrap();
                (value, &after[stream.byte_offset()..])
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            rest = rest.strip_prefix(' ').unwrap_or(rest);
            fields.push((name.to_owned(), value));
        }
        fields
    }

    // Fails when `quote` leaves `"` alone, and when `is_plain` lets a space or a control character through.
    proptest! {
        #[test]
        fn whatever_a_name_holds_a_line_is_one_line_and_reads_back(name in "\\PC*|[ -~\\n\\r\\t\\x1b\\x80-\\x9f\"\\\\=\u{202e}]*|-") {
            let record = record(&name, Some(&name));
            for format in [LogFormat::Text, LogFormat::Json] {
                let line = line(&record, format);
                prop_assert!(!line.trim_end_matches('\n').contains(|c: char| c.is_control()), "{line:?}");
                let fields: Vec<(String, String)> = match format {
                    LogFormat::Text => parse_text(&line),
                    LogFormat::Json => serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&line)
                        .unwrap().into_iter().map(|(k, v)| (k, v.as_str().unwrap_or_default().to_owned())).collect(),
                };
                let names: Vec<_> = fields.iter().map(|(name, _)| name.as_str()).collect();
                prop_assert_eq!(names, FIELDS);
                prop_assert_eq!(&fields[2].1, &name);
                prop_assert_eq!(&fields[7].1, &name);
            }
        }
    }
}
