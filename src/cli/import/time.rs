//! Durations, as the others write them and as weir does.

use std::time::Duration;

/// A duration as it stands in a file here.
pub fn text(duration: Duration) -> String {
    let (ms, s) = (duration.as_millis(), duration.as_secs());
    match () {
        () if duration.is_zero() => "0s".into(),
        // Finer than what is kept here.
        () if ms == 0 => "1ms".into(),
        () if ms % 1000 != 0 => format!("{ms}ms"),
        () if s % 3600 == 0 => format!("{}h", s / 3600),
        () if s % 60 == 0 => format!("{}m", s / 60),
        () => format!("{s}s"),
    }
}

/// As [`text`]; nothing is `off`.
pub fn text_or_off(duration: Duration) -> String {
    match duration.is_zero() {
        true => "off".into(),
        false => text(duration),
    }
}

/// HAProxy: milliseconds unless there is a unit.
pub fn haproxy(text: &str) -> Option<Duration> {
    let (number, unit) = split(text);
    let number: u64 = number.parse().ok()?;
    Some(match unit {
        "us" => Duration::from_micros(number),
        "" | "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        "m" => Duration::from_secs(number.checked_mul(60)?),
        "h" => Duration::from_secs(number.checked_mul(3600)?),
        "d" => Duration::from_secs(number.checked_mul(86400)?),
        _ => return None,
    })
}

/// nginx: seconds unless there is a unit; several may follow each other, `1h30m`.
pub fn nginx(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut sum = Duration::ZERO;
    if text.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let (number, behind) = split(rest);
        let number: u64 = number.parse().ok()?;
        let unit = &behind[..behind.len() - behind.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len()];
        rest = behind[unit.len()..].trim_start();
        let seconds = |each: u64| number.checked_mul(each).map(Duration::from_secs);
        sum = sum.checked_add(match unit {
            "ms" => Duration::from_millis(number),
            "" | "s" => seconds(1)?,
            "m" => seconds(60)?,
            "h" => seconds(3600)?,
            "d" => seconds(86400)?,
            "w" => seconds(7 * 86400)?,
            _ => return None,
        })?;
    }
    Some(sum)
}

/// keepalived: seconds, with a fraction.
pub fn keepalived(text: &str) -> Option<Duration> {
    let seconds: f64 = text.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok()
}

fn split(text: &str) -> (&str, &str) {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    text.split_at(digits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units() {
        type Read = fn(&str) -> Option<Duration>;
        for (read, text_there, here) in [
            (haproxy as Read, "5000", Some("5s")),
            (haproxy, "1500", Some("1500ms")),
            (haproxy, "90s", Some("90s")),
            (haproxy, "2h", Some("2h")),
            (haproxy, "1d", Some("24h")),
            (haproxy, "10us", Some("1ms")),
            (haproxy, "0", Some("0s")),
            (haproxy, "s", None),
            (haproxy, "5x", None),
            (haproxy, "99999999999999999999", None),
            (haproxy, "99999999999999999d", None),
            (nginx, "10", Some("10s")),
            (nginx, "1h30m", Some("90m")),
            (nginx, "1m 30s", Some("90s")),
            (nginx, "500ms", Some("500ms")),
            (nginx, "", None),
            (nginx, "1y", None),
            (keepalived, "0.25", Some("250ms")),
            (keepalived, "6", Some("6s")),
            (keepalived, "-1", None),
            (keepalived, "inf", None),
        ] {
            assert_eq!(read(text_there).map(text).as_deref(), here, "{text_there}");
        }
    }
}
