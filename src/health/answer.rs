//! What an answer to a probe means, as far as it has come.
//!
//! Of an HTTP answer only the first line is looked at: headers without an end and bodies of any length change nothing.

use std::ops::RangeInclusive;
use std::sync::Arc;

use super::reason::{Reason, Remark};

/// Bytes of an answer that are looked at.
pub const ANSWER_MAX: usize = 16 << 10;
/// Longest first line of an HTTP answer, and longest line of an agent.
const LINE_MAX: usize = 1024;

/// What has to come for a probe to pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// Nothing: to be connected is enough.
    Connection,
    /// These bytes, somewhere in the answer; none = any answer.
    Bytes(Arc<[u8]>),
    /// An HTTP answer with one of these statuses.
    Http(Arc<[RangeInclusive<u16>]>),
    /// A line of an agent, which is handed on.
    Line,
}

/// What an answer says of the backend.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// Not yet decided: the answer may still come.
    More,
    /// As expected; of an agent its line.
    Passed(Remark),
    /// Not as expected; says in which way.
    Failed(Remark),
}

impl Expected {
    /// Judges what has come so far; `ended`: nothing more will.
    pub fn judge(&self, answer: &[u8], ended: bool) -> Judged {
        let full = answer.len() >= ANSWER_MAX;
        match self {
            Expected::Connection => Judged::Passed(Reason::ConnectOk.into()),
            Expected::Bytes(expect) if expect.is_empty() && (!answer.is_empty() || ended) => {
                Judged::Passed(Reason::AnswerOk.into())
            }
            Expected::Bytes(expect) if contains(answer, expect) => Judged::Passed(Reason::AnswerOk.into()),
            Expected::Bytes(_) if full => Judged::Failed(unexpected(answer)),
            Expected::Http(statuses) => match first_line(answer, ended) {
                Some(line) => http(line, statuses),
                None if ended => Judged::Failed(closed(answer)),
                None => Judged::More,
            },
            Expected::Line => match first_line(answer, ended) {
                Some(line) => line_of_an_agent(line),
                None if ended => Judged::Failed(Reason::Closed.says("the agent closed without a word")),
                None => Judged::More,
            },
            Expected::Bytes(_) if ended => Judged::Failed(closed(answer)),
            Expected::Bytes(_) => Judged::More,
        }
    }
}

/// Another answer than the expected one.
pub fn unexpected(answer: &[u8]) -> Remark {
    Reason::Unexpected.says(format!("unexpected answer {}", excerpt(answer)))
}

fn closed(answer: &[u8]) -> Remark {
    Reason::Closed.says(format!("closed before the expected answer, got {}", excerpt(answer)))
}

fn contains(answer: &[u8], part: &[u8]) -> bool {
    !part.is_empty() && answer.windows(part.len()).any(|window| window == part)
}

/// The first line with its end; what there is if nothing more comes. Of one that is too long so much that it can be told, however much has come.
fn first_line(answer: &[u8], ended: bool) -> Option<&[u8]> {
    let begun = &answer[..answer.len().min(LINE_MAX + 1)];
    match begun.iter().position(|byte| *byte == b'\n') {
        Some(end) => Some(&begun[..=end]),
        None if begun.len() > LINE_MAX || ended && !begun.is_empty() => Some(begun),
        None => None,
    }
}

fn http(line: &[u8], statuses: &[RangeInclusive<u16>]) -> Judged {
    let mut response = httparse::Response::new(&mut []);
    // One line is never a whole answer; what was read of it is there all the same.
    let read = response.parse(line);
    match (read, response.code) {
        (Ok(_), Some(code)) if statuses.iter().any(|range| range.contains(&code)) => {
            Judged::Passed(Reason::HttpOk.says(format!("HTTP {code}")))
        }
        (Ok(_), Some(code)) => {
            let shown = |range: &RangeInclusive<u16>| match range.start() == range.end() {
                true => range.start().to_string(),
                false => format!("{}-{}", range.start(), range.end()),
            };
            let wanted: Vec<String> = statuses.iter().map(shown).collect();
            Judged::Failed(Reason::HttpStatus.says(format!("HTTP {code}, not {}", wanted.join(", "))))
        }
        _ => Judged::Failed(Reason::NotHttp.says(format!("no HTTP answer, got {}", excerpt(line)))),
    }
}

fn line_of_an_agent(line: &[u8]) -> Judged {
    match std::str::from_utf8(line) {
        Ok(text) if line.len() <= LINE_MAX => Judged::Passed(Reason::Agent.says(text.trim().to_owned())),
        _ => Judged::Failed(Reason::NotAnAgent.says(format!("no line of an agent, got {}", excerpt(line)))),
    }
}

/// The first bytes of an answer, safe to print.
fn excerpt(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(32)];
    let more = if bytes.len() > 32 { "..." } else { "" };
    format!("\"{}\"{more}", shown.escape_ascii())
}

#[cfg(test)]
mod tests {
    use super::*;
    use Judged::*;

    fn bytes(expect: &[u8]) -> Expected {
        Expected::Bytes(expect.into())
    }

    /// Seen to fail when the whole answer is parsed (endless headers: `More` for ever) and when `ended` is forgotten.
    #[test]
    fn answers() {
        let ok = || Expected::Http([200..=200, 300..=399].into());
        let endless = [b"HTTP/1.1 200 OK\r\n".as_slice(), &b"a: b\r\n".repeat(9000)].concat();
        let long = vec![b'x'; ANSWER_MAX];
        for (expected, answer, ended, judged) in [
            (Expected::Connection, &b""[..], false, Passed(Reason::ConnectOk.into())),
            (bytes(b""), b"", false, More),
            (bytes(b""), b"x", false, Passed(Reason::AnswerOk.into())),
            (bytes(b""), b"", true, Passed(Reason::AnswerOk.into())),
            (bytes(b"+PONG"), b"+PO", false, More),
            (bytes(b"+PONG"), b"hello +PONG", false, Passed(Reason::AnswerOk.into())),
            (
                bytes(b"+PONG"),
                b"+PO",
                true,
                Failed(Reason::Closed.says("closed before the expected answer, got \"+PO\"")),
            ),
            (bytes(b"+PONG"), &long, false, Failed(unexpected(&long))),
            (ok(), b"HTTP/1.1 200 OK\r", false, More),
            (
                ok(),
                b"HTTP/1.1 200 OK\r\n",
                false,
                Passed(Reason::HttpOk.says("HTTP 200")),
            ),
            (ok(), b"HTTP/1.0 200\n", false, Passed(Reason::HttpOk.says("HTTP 200"))),
            (ok(), &endless, false, Passed(Reason::HttpOk.says("HTTP 200"))),
            (
                ok(),
                b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n",
                true,
                Passed(Reason::HttpOk.says("HTTP 302")),
            ),
            (
                ok(),
                b"HTTP/1.1 503 No\r\n",
                false,
                Failed(Reason::HttpStatus.says("HTTP 503, not 200, 300-399")),
            ),
            (
                ok(),
                b"SSH-2.0-OpenSSH\r\n",
                false,
                Failed(Reason::NotHttp.says("no HTTP answer, got \"SSH-2.0-OpenSSH\\r\\n\"")),
            ),
            (
                ok(),
                b"HTTP/1.1 2000 OK\r\n",
                false,
                Failed(Reason::NotHttp.says("no HTTP answer, got \"HTTP/1.1 2000 OK\\r\\n\"")),
            ),
            (
                ok(),
                b"",
                true,
                Failed(Reason::Closed.says("closed before the expected answer, got \"\"")),
            ),
            (
                ok(),
                &long,
                false,
                Failed(Reason::NotHttp.says(format!("no HTTP answer, got {}", excerpt(&long)))),
            ),
            (Expected::Line, b"75%", false, More),
            (Expected::Line, b"75%", true, Passed(Reason::Agent.says("75%"))),
            (
                Expected::Line,
                b"up 75%\nrest",
                false,
                Passed(Reason::Agent.says("up 75%")),
            ),
            (
                Expected::Line,
                b"",
                true,
                Failed(Reason::Closed.says("the agent closed without a word")),
            ),
            (
                Expected::Line,
                b"\xff\n",
                false,
                Failed(Reason::NotAnAgent.says("no line of an agent, got \"\\xff\\n\"")),
            ),
        ] {
            assert_eq!(expected.judge(answer, ended), judged, "{}", excerpt(answer));
        }
    }
}
