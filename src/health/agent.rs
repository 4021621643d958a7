//! What a backend's agent says: the words of HAProxy's agent-check.

use super::admin_state::AdminState;

/// Highest percentage; as there.
const PERCENT_MAX: u32 = 256;

/// What one line says. What it does not speak of stays as it was.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Report {
    /// Whether the backend is fit: `up`, or `down`, `failed`, `stopped`.
    pub fit: Option<bool>,
    /// Whether it shall take work: `ready`, `drain`, `maint`.
    pub order: Option<AdminState>,
    /// Share of its weight: `75%`.
    pub percent: Option<u32>,
}

/// Reads a line: words between spaces, tabs and commas, up to a `#`. Unknown ones mean nothing.
pub fn parse(line: &str) -> Report {
    let mut report = Report::default();
    let said = line.split('#').next().unwrap_or_default();
    for word in said.split([' ', '\t', ',', '\r', '\n']) {
        match word.to_ascii_lowercase().as_str() {
            "up" => report.fit = Some(true),
            "down" | "failed" | "fail" | "stopped" => report.fit = Some(false),
            "ready" => report.order = Some(AdminState::Ready),
            "drain" => report.order = Some(AdminState::Drain),
            "maint" => report.order = Some(AdminState::Down),
            word => {
                let percent = word.strip_suffix('%').and_then(|number| number.parse::<u32>().ok());
                report.percent = percent.map(|percent| percent.min(PERCENT_MAX)).or(report.percent);
            }
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words() {
        let nothing = Report::default();
        let percent = |percent| Report {
            percent: Some(percent),
            ..nothing
        };
        for (line, report) in [
            ("", nothing),
            (
                "up",
                Report {
                    fit: Some(true),
                    ..nothing
                },
            ),
            (
                "DOWN # disk full, up 100%",
                Report {
                    fit: Some(false),
                    ..nothing
                },
            ),
            (
                "stopped",
                Report {
                    fit: Some(false),
                    ..nothing
                },
            ),
            (
                "drain",
                Report {
                    order: Some(AdminState::Drain),
                    ..nothing
                },
            ),
            (
                "maint\r\n",
                Report {
                    order: Some(AdminState::Down),
                    ..nothing
                },
            ),
            ("75%", percent(75)),
            ("0%", percent(0)),
            ("9999%", percent(256)),
            ("99999999999%", nothing),
            ("-5%", nothing),
            ("maxconn:30", nothing),
            ("\u{0}\u{fffd}%", nothing),
            (
                "ready,up\t50%",
                Report {
                    fit: Some(true),
                    order: Some(AdminState::Ready),
                    percent: Some(50),
                },
            ),
        ] {
            assert_eq!(parse(line), report, "{line}");
        }
    }
}
