//! When a fast stream lets bytes gather before it is read: pure.
//!
//! # Theory of operation
//!
//! The kernel wakes a reader for every segment. A stream that comes at more than a gigabyte a second is cheaper when its reader is
//! woken once for half a megabyte (SO_RCVLOWAT, socket(7)): fewer wake-ups, and one splice moves more, whose segments leave together.
//! The price is the end of a burst: the kernel does not tell of the bytes that do not fill the mark any more, so the source is
//! *looked at* unasked when it was quiet for [`QUIET_MS`].
//!
//! That delay must not be felt. So a lane gathers only when it has been fast over a whole window of [`WINDOW_MS`], is asked again in
//! each window, and stops with the first look that finds nothing. At worst 2 ms are added to every 100 ms in which 100 MB have come.
//!
//! What the kernel tells of without regard to the mark: the end of the stream, a reset, urgent data, and a receive buffer that is full.

/// Bytes that are to be there before the kernel tells of them.
pub const GATHER_BYTES: usize = if cfg!(test) { 4 << 10 } else { 512 << 10 };
/// A lane is fast when it moves as many bytes in each millisecond of a window: twice what is to gather while it is quiet.
const FAST_BYTES_PER_MS: u64 = 2 * GATHER_BYTES as u64;
const WINDOW_MS: u64 = if cfg!(test) { 2 } else { 100 };
/// Quiet for so long, a source is looked at unasked.
const QUIET_MS: u64 = 1;

/// Whether the source of one lane gathers, and what would change it. Times are milliseconds since the workers' epoch.
#[derive(Debug, Clone, Copy)]
pub struct Gather {
    on: bool,
    /// The source is looked at unasked.
    looking: bool,
    /// The window: when it began, and what was moved in it.
    since_ms: u64,
    bytes: u64,
    /// When something was moved.
    moved_ms: u64,
}

impl Gather {
    /// That of a lane whose first window begins.
    pub fn new(now_ms: u64) -> Gather {
        Gather {
            on: false,
            looking: false,
            since_ms: now_ms,
            bytes: 0,
            moved_ms: now_ms,
        }
    }

    /// Learns what a pump has moved, through a pipe or not; says whether to gather from now on, if that changes.
    pub fn learn(&mut self, now_ms: u64, bytes: u64, piped: bool) -> Option<bool> {
        let was = self.on;
        self.bytes += bytes;
        if bytes > 0 {
            self.moved_ms = now_ms;
        }
        let window = now_ms.saturating_sub(self.since_ms);
        if window >= WINDOW_MS {
            self.on = self.bytes >= FAST_BYTES_PER_MS * window;
            (self.since_ms, self.bytes) = (now_ms, 0);
        }
        let found_nothing = std::mem::take(&mut self.looking) && bytes == 0;
        self.on &= piped && !found_nothing;
        (self.on != was).then_some(self.on)
    }

    /// When the source is to be looked at unasked.
    pub fn due_ms(&self) -> Option<u64> {
        // Times are cut off: one more, so that it is not too soon.
        self.on.then_some(self.moved_ms + QUIET_MS + 1)
    }

    /// The source is looked at now, if it is time.
    pub fn look(&mut self, now_ms: u64) -> bool {
        self.looking = self.due_ms().is_some_and(|due| due <= now_ms);
        self.looking
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: u64 = FAST_BYTES_PER_MS;

    /// Breaks tried: a window that is not asked again, a look that finds nothing and changes nothing, a copied lane that gathers.
    #[test]
    fn a_lane_gathers_while_it_is_fast_and_spliced() {
        // (milliseconds, bytes, spliced, looked at before) of each pump, and whether it gathers in the end.
        type Row<'a> = (&'a [(u64, u64, bool, bool)], bool);
        #[rustfmt::skip]
        let rows: &[Row] = &[
            (&[(11, 9 * FAST, true, false)], false),
            (&[(11, FAST, true, false), (12, FAST, true, false)], true),
            (&[(11, FAST, true, false), (12, FAST - 1, true, false)], false),
            (&[(12, 2 * FAST, false, false)], false),
            // A late pump makes a longer window.
            (&[(20, 9 * FAST, true, false)], false),
            (&[(20, 10 * FAST, true, false)], true),
            // It is asked again in the next window.
            (&[(12, 2 * FAST, true, false), (13, 1, true, false)], true),
            (&[(12, 2 * FAST, true, false), (14, 1, true, false)], false),
            (&[(12, 2 * FAST, true, false), (14, 2 * FAST, true, false)], true),
            // A look that finds something is no end, one that finds nothing is; so is a lane that is copied.
            (&[(12, 2 * FAST, true, false), (13, 1, true, true)], true),
            (&[(12, 2 * FAST, true, false), (13, 0, true, true)], false),
            (&[(12, 2 * FAST, true, false), (13, 0, true, false)], true),
            (&[(12, 2 * FAST, true, false), (13, FAST, false, false)], false),
        ];
        for (pumps, expected) in rows {
            let (mut gather, mut told) = (Gather::new(10), false);
            for &(now_ms, bytes, piped, looked) in *pumps {
                gather.looking = looked;
                told = gather.learn(now_ms, bytes, piped).unwrap_or(told);
            }
            assert_eq!((gather.on, told), (*expected, *expected), "{pumps:?}");
        }
    }

    #[test]
    fn its_source_is_looked_at_when_it_is_quiet() {
        let mut gather = Gather::new(10);
        assert_eq!(gather.due_ms(), None);
        assert!(!gather.look(1_000));
        gather.learn(12, 2 * FAST, true);
        assert_eq!(gather.due_ms(), Some(14));
        assert!(!gather.look(13));
        assert!(gather.look(14));
        // Nothing was there.
        assert_eq!(gather.learn(14, 0, true), Some(false));
        assert_eq!(gather.due_ms(), None);
    }
}
