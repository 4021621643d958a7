//! When to read a file that changes, and whether what was read counts.
//!
//! A file that was put in the place of another, or closed by whoever wrote it, is whole. One that is just being written is
//! not, and half a list is a list: members would leave and return. So a change that nobody vouches for is read once the file
//! has looked the same for [`QUIET`]. And whoever closes a file may open it again at once: what was read counts if nothing
//! has happened to the file until [`LATE`] after that, and is read again otherwise.

use std::time::{Duration, Instant};

/// A file that has looked the same for so long is not being written.
pub const QUIET: Duration = Duration::from_millis(200);
/// What happened to a file while it was read is known by then: events are on their way for as long, and two changes so far
/// apart differ in the time that the file system gives them.
pub const LATE: Duration = Duration::from_millis(15);

/// What has happened where a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hint {
    /// Whoever wrote it has closed it, or it was put in its place.
    Whole,
    /// It is being written.
    Written,
    /// Something beside it, which may be a link on the way to it.
    Beside,
}

/// What a file looks like from outside. `None` where it is asked for: there is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Print {
    /// Device and inode number.
    pub file: (u64, u64),
    /// Size in bytes.
    pub size: u64,
    /// When contents and entry last changed, in nanoseconds.
    pub changed: (i128, i128),
}

/// What to do about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Read it, look again, and see whether that counts. What was read before does not.
    Read,
    /// What was read last counts.
    Use,
    /// Look again at this time.
    LookAt(Instant),
    /// Wait for an event.
    Rest,
}

/// Judges when a watched file is whole, and when to look at it again.
#[derive(Debug, Clone)]
pub struct Settling {
    /// As it looked when what counts was read, if nothing has happened since.
    used: Option<Option<Print>>,
    /// It was read when it looked like this, and was first looked at after that then.
    read: Option<(Option<Print>, Option<Instant>)>,
    /// As it looks now, and since when.
    seen: Option<(Option<Print>, Instant)>,
    /// Somebody has said that it is whole.
    whole: bool,
}

impl Default for Settling {
    /// What is there at the beginning is read at once.
    fn default() -> Settling {
        Settling {
            used: None,
            read: None,
            seen: None,
            whole: true,
        }
    }
}

impl Settling {
    /// Something has happened.
    pub fn event(&mut self, hint: Hint, now: Instant) {
        if hint == Hint::Beside {
            return;
        }
        self.whole = hint == Hint::Whole;
        // It may look the same: within one tick of the file system's clock.
        (self.used, self.read) = (None, None);
        if let Some((_, since)) = &mut self.seen {
            *since = now;
        }
    }

    /// It looks like this. All that is known to have happened before has been told as [events](Self::event).
    pub fn look(&mut self, print: Option<Print>, now: Instant) -> Next {
        let since = match self.seen {
            Some((seen, since)) if seen == print => since,
            _ => now,
        };
        self.seen = Some((print, since));
        match &mut self.read {
            Some((read, after)) if *read == print => {
                let counts_at = *after.get_or_insert(now) + LATE;
                if now < counts_at {
                    return Next::LookAt(counts_at);
                }
                (self.used, self.read) = (Some(print), None);
                return Next::Use;
            }
            _ => self.read = None,
        }
        if !self.whole && self.used == Some(print) {
            return Next::Rest;
        }
        if self.whole || now >= since + QUIET {
            (self.whole, self.read) = (false, Some((print, None)));
            return Next::Read;
        }
        Next::LookAt(since + QUIET)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What happens to a file at which millisecond (`w` written in part, `c` closed or put in place, `b` something beside it, a
    /// number: it looks like that, `-`: it is not there) and what is done.
    ///
    /// Seen to fail: reading at the first look; an event that does not prolong the wait; what was read counting at once.
    #[test]
    fn half_a_file_does_not_count() {
        #[rustfmt::skip]
        let rows: [&[(u64, &str, &str)]; 10] = [
            &[(0, "1", "read"), (1, "1", "16"), (15, "1", "16"), (16, "1", "use"), (17, "1", "rest"), (900, "1", "rest")],
            // In one go, and in pieces.
            &[(0, "1", "read"), (0, "1", "15"), (15, "1", "use"), (20, "w", ""), (21, "2", "221"), (22, "c", ""), (22, "2", "read"), (23, "2", "38"), (38, "2", "use")],
            &[(0, "1", "read"), (0, "1", "15"), (15, "1", "use"), (20, "w", ""), (20, "2", "220"), (150, "w", ""), (150, "3", "350"), (210, "3", "350"), (350, "3", "read"), (350, "3", "365"), (365, "3", "use")],
            // Within one tick of the file system's clock: it looks the same, and was written in part, or whole.
            &[(0, "1", "read"), (1, "1", "16"), (2, "w", ""), (3, "1", "202"), (202, "1", "read")],
            &[(0, "1", "read"), (0, "1", "15"), (15, "1", "use"), (16, "c", ""), (16, "1", "read"), (17, "1", "32"), (32, "1", "use")],
            // Closed, and opened again while it is read: seen by its looks, or by the event.
            &[(0, "c", ""), (0, "1", "read"), (1, "2", "201"), (2, "w", ""), (2, "2", "202"), (9, "c", ""), (9, "3", "read"), (9, "3", "24"), (24, "3", "use")],
            &[(0, "c", ""), (0, "1", "read"), (1, "1", "16"), (9, "w", ""), (10, "1", "209"), (209, "1", "read"), (209, "1", "224"), (224, "1", "use")],
            // Without events.
            &[(0, "-", "read"), (0, "-", "15"), (15, "-", "use"), (5000, "1", "5200"), (5200, "1", "read"), (5200, "1", "5215"), (5215, "1", "use"), (9000, "-", "9200"), (9100, "2", "9300"), (9300, "2", "read")],
            // Written by one, whole by another's word, written again.
            &[(0, "1", "read"), (5, "c", ""), (5, "w", ""), (6, "2", "206"), (206, "2", "read")],
            // Beside it others come and go; and it is reached over another link.
            &[(0, "1", "read"), (1, "b", ""), (1, "1", "16"), (9, "c", ""), (10, "b", ""), (10, "2", "read"), (10, "2", "25"), (20, "b", ""), (25, "2", "use"), (30, "b", ""), (30, "2", "rest"), (40, "b", ""), (40, "3", "240"), (240, "3", "read")],
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
                    "w" => {
                        settling.event(Hint::Written, now);
                        continue;
                    }
                    "c" => {
                        settling.event(Hint::Whole, now);
                        continue;
                    }
                    "b" => {
                        settling.event(Hint::Beside, now);
                        continue;
                    }
                    "-" => settling.look(None, now),
                    size => settling.look(Some(print(size.parse().unwrap())), now),
                };
                let shown = match next {
                    Next::Read => "read".to_string(),
                    Next::Use => "use".to_string(),
                    Next::Rest => "rest".to_string(),
                    Next::LookAt(at) => (at - start).as_millis().to_string(),
                };
                assert_eq!(shown, expected, "{ms}: {what} of {steps:?}");
            }
        }
    }
}
