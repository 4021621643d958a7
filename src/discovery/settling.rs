//! When to read a file that changes.
//!
//! A file that was put in the place of another, or closed by whoever wrote it, is whole. One that is just being written is
//! not, and half a list is a list: members would leave and return. So a change that nobody vouches for is read once the file
//! has looked the same for [`QUIET`].

use std::time::{Duration, Instant};

/// A file that has looked the same for so long is not being written.
pub const QUIET: Duration = Duration::from_millis(200);

/// What a file looks like from outside. `None` where it is asked for: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// Device and number.
    pub file: (u64, u64),
    /// Bytes.
    pub size: u64,
    /// Of contents and of the entry, in nanoseconds.
    pub changed: (i128, i128),
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read it.
    Read,
    /// Look again then.
    LookAt(Instant),
    /// Wait for an event.
    Rest,
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Settling {
    /// As it was read last.
    read: Option<Option<Print>>,
    /// As it looks now, and since when.
    seen: Option<(Option<Print>, Instant)>,
    /// Somebody has said that it is whole.
    whole: bool,
}

impl Default for Settling {
    /// What is there at the beginning is read at once.
    fn default() -> Settling {
        Settling {
            read: None,
            seen: None,
            whole: true,
        }
    }
}

impl Settling {
    /// Something has happened to the file: it was written in part, or is now `whole`.
    pub fn event(&mut self, whole: bool, now: Instant) {
        self.whole = whole;
        if let Some((_, since)) = &mut self.seen {
            *since = now;
        }
    }

    /// It looks like this. Whoever is told to read has read when this is called again.
    pub fn look(&mut self, print: Option<Print>, now: Instant) -> Next {
        let since = match self.seen {
            Some((seen, since)) if seen == print => since,
            _ => now,
        };
        self.seen = Some((print, since));
        if !self.whole && self.read == Some(print) {
            return Next::Rest;
        }
        if self.whole || now >= since + QUIET {
            (self.whole, self.read) = (false, Some(print));
            return Next::Read;
        }
        Next::LookAt(since + QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to a file at which millisecond (`w` written in part, `c` closed or put in place, a number: it looks like
    /// that, `-`: it is not there) and what is done.
    ///
    /// Meant to notice: reading at the first look; an event that does not prolong the wait.
    #[test]
    fn half_a_file_is_not_read() {
        #[rustfmt::skip]
        let rows: [&[(u64, &str, &str)]; 6] = [
            &[(0, "1", "read"), (1, "1", "rest"), (900, "1", "rest")],
            // In one go, and in pieces.
            &[(0, "1", "read"), (10, "w", ""), (11, "2", "211"), (12, "c", ""), (12, "2", "read"), (13, "2", "rest")],
            &[(0, "1", "read"), (10, "w", ""), (10, "2", "210"), (150, "w", ""), (150, "3", "350"), (210, "3", "350"), (350, "3", "read")],
            // Within one tick of the file system's clock: it looks the same.
            &[(0, "1", "read"), (1, "c", ""), (1, "1", "read"), (2, "1", "rest")],
            // Without events.
            &[(0, "-", "read"), (5000, "1", "5200"), (5200, "1", "read"), (9000, "-", "9200"), (9100, "2", "9300"), (9300, "2", "read")],
            // Written by one, whole by another's word, written again.
            &[(0, "1", "read"), (5, "c", ""), (5, "w", ""), (6, "2", "206"), (206, "2", "read")],
        ];
        let start = Instant::now();
        for steps in rows {
            let mut settling = Settling::default();
            for &(ms, what, expected) in steps {
                let now = start + Duration::from_millis(ms);
                let print = |size| Print {
                    file: (1, 1),
                    size,
                    changed: (0, 0),
                };
                let next = match what {
                    "w" | "c" => {
                        settling.event(what == "c", now);
                        continue;
                    }
                    "-" => settling.look(None, now),
                    size => settling.look(Some(print(size.parse().unwrap())), now),
                };
                let shown = match next {
                    Next::Read => "read".to_string(),
                    Next::Rest => "rest".to_string(),
                    Next::LookAt(at) => (at - start).as_millis().to_string(),
                };
                assert_eq!(shown, expected, "{ms}: {what} of {steps:?}");
            }
        }
    }
}
