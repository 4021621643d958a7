//! A watch: one answer without an end, one message a line.

use http_body_util::BodyExt;
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::SendRequest;
use serde::Deserialize;

use super::Error;
use super::wire::{Change, Refusal, Watched};
use http_body_util::Full;

/// Most bytes of one message of a watch.
const LINE_MAX: usize = 64 << 20;

/// What a watch says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// Changes, in order; a watch that begins anew begins with the revision after this one.
    Changes {
        /// The revision that they lead to.
        revision: i64,
        /// What was written and removed.
        changes: Vec<Change>,
    },
    /// Nothing has changed up to this revision.
    Quiet {
        /// The revision up to which nothing has changed.
        revision: i64,
    },
    /// What was asked for is no longer known from this revision back: read everything, then watch from there.
    Compacted {
        /// The oldest revision that is still known.
        revision: i64,
    },
}

/// A watch that runs. It ends by being dropped.
pub struct Watch {
    body: Incoming,
    /// The connection lives as long as this does.
    _sender: SendRequest<Full<Bytes>>,
    buffer: Vec<u8>,
}

#[derive(Deserialize)]
struct Line {
    #[serde(default)]
    result: Option<Watched>,
    #[serde(default)]
    error: Option<Refusal>,
}

impl Watch {
    pub(super) fn new(body: Incoming, sender: SendRequest<Full<Bytes>>) -> Watch {
        Watch {
            body,
            _sender: sender,
            buffer: Vec::new(),
        }
    }

    /// The next notice. May be dropped and asked again: nothing is lost.
    ///
    /// # Errors
    /// The stream has ended; watch again from the revision after the last that was told.
    pub async fn next(&mut self) -> Result<Notice, Error> {
        loop {
            while let Some(end) = self.buffer.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                if let Some(notice) = read(&line)? {
                    return Ok(notice);
                }
            }
            match self.body.frame().await {
                Some(Ok(frame)) => self.buffer.extend(frame.data_ref().into_iter().flatten()),
                Some(Err(e)) => return Err(Error::Lost(e.to_string())),
                None => return Err(Error::Lost("the watch has ended".into())),
            }
            if self.buffer.len() > LINE_MAX {
                return Err(Error::Garbled("a message without an end".into()));
            }
        }
    }
}

fn read(line: &[u8]) -> Result<Option<Notice>, Error> {
    if line.trim_ascii().is_empty() {
        return Ok(None);
    }
    let line: Line = serde_json::from_slice(line).map_err(|e| Error::Garbled(e.to_string()))?;
    if let Some(refusal) = line.error {
        return Err(refusal.into());
    }
    let Some(watched) = line.result else { return Ok(None) };
    let revision = watched.header.revision;
    Ok(match watched {
        Watched { compact_revision, .. } if compact_revision > 0 => Some(Notice::Compacted {
            revision: compact_revision,
        }),
        Watched {
            canceled: true,
            cancel_reason,
            ..
        } => return Err(Error::Lost(format!("the watch was ended: {cancel_reason}"))),
        Watched { created: true, .. } => None,
        Watched { events, .. } if events.is_empty() => Some(Notice::Quiet { revision }),
        Watched { events, .. } => Some(Notice::Changes {
            revision,
            changes: events,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let quiet = Notice::Quiet { revision: 4 };
        let gone = Notice::Compacted { revision: 9 };
        let rows: [(&str, Option<Option<Notice>>); 6] = [
            ("\n", Some(None)),
            (r#"{"result":{"header":{"revision":"4"},"created":true}}"#, Some(None)),
            (r#"{"result":{"header":{"revision":"4"}}}"#, Some(Some(quiet))),
            (
                r#"{"result":{"header":{"revision":"12"},"canceled":true,"compact_revision":"9"}}"#,
                Some(Some(gone)),
            ),
            (
                r#"{"error":{"grpc_code":14,"http_code":503,"message":"no leader"}}"#,
                None,
            ),
            (
                r#"{"result":{"canceled":true,"cancel_reason":"permission denied"}}"#,
                None,
            ),
        ];
        for (line, expected) in rows {
            assert_eq!(read(line.as_bytes()).ok(), expected, "{line}");
        }
    }
}
