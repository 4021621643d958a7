//! How a lane moves bytes: copied through a buffer while it is small, spliced through a pipe while it is bulk.
//!
//! Splice saves the two copies but costs a system call more and the page handling of a pipe, so it pays only for long
//! runs: objects of up to 1 MiB are cheaper to copy, of 4 MiB it is the same, beyond that splicing wins. A lane shifts up
//! after it has filled the copy buffer in [`UP_AFTER`] reads in a row, and down after [`DOWN_AFTER`] runs in a row that would
//! have fitted the buffer. docs/performance.md has the measurements.
//!
//! The more one splice moves, the less a gigabyte costs; but what the sink does not take stays in the pipe, and a thousand slow
//! readers must not hold a thousand full pipes. So a pipe is filled further only while the sink takes all of it at once.

/// Full buffers in a row that make a lane bulk: 1.25 MiB.
pub const UP_AFTER: u8 = 40;
/// Small runs in a row that end it.
pub const DOWN_AFTER: u8 = 64;

/// Bytes that one fill of a pipe may bring: at first, and while the sink does not take them at once.
pub const REACH_MIN: usize = 128 << 10;
/// The same, while it does. Each that was taken whole doubles it, each other one halves it.
pub const REACH_MAX: usize = 1 << 20;

/// Where bytes are between a source and a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conduit {
    /// A buffer in user space.
    #[default]
    Buffer,
    /// A kernel pipe.
    Pipe,
    /// One byte in user space that was sent as urgent data, and goes on as urgent data.
    Urgent,
}

/// `WEIR_GEAR=copy` or `splice` in the environment of the *build* pins every lane: for measuring the two against each other
/// (`scripts/bench --ladder`).
const PINNED: Option<Conduit> = match option_env!("WEIR_GEAR") {
    Some(gear) => match gear.as_bytes() {
        b"copy" => Some(Conduit::Buffer),
        b"splice" => Some(Conduit::Pipe),
        _ => None,
    },
    None => None,
};

/// Whether one lane copies or splices now, and what would make it change.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gear {
    conduit: Conduit,
    streak: u8,
    doublings: u8,
}

impl Gear {
    /// What the next fill should go through.
    pub fn conduit(self) -> Conduit {
        PINNED.unwrap_or(self.conduit)
    }

    /// Learns from a fill: whether it brought at least as much as the copy buffer holds.
    pub fn observe(&mut self, large: bool) {
        let (shift, limit, other) = match self.conduit {
            Conduit::Buffer => (large, UP_AFTER, Conduit::Pipe),
            Conduit::Pipe | Conduit::Urgent => (!large, DOWN_AFTER, Conduit::Buffer),
        };
        self.streak = if shift { self.streak + 1 } else { 0 };
        if self.streak >= limit {
            *self = Gear {
                conduit: other,
                ..Gear::default()
            };
        }
    }

    /// Bytes that one fill of a pipe may bring.
    pub fn reach(self) -> usize {
        REACH_MIN << self.doublings
    }

    /// Learns whether the sink took a whole fill at once.
    pub fn delivered(&mut self, whole: bool) {
        self.doublings = match whole {
            true if self.reach() < REACH_MAX => self.doublings + 1,
            true => self.doublings,
            false => self.doublings.saturating_sub(1),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_after_a_run_and_only_after_a_run() {
        use Conduit::*;
        const UP: usize = UP_AFTER as usize;
        const DOWN: usize = DOWN_AFTER as usize;
        // Runs of large and small fills by turns.
        let rows: &[(&[usize], Conduit)] = &[
            (&[], Buffer),
            (&[UP - 1], Buffer),
            (&[UP - 1, 1, 1], Buffer),
            (&[UP], Pipe),
            (&[UP, DOWN - 1], Pipe),
            (&[UP, DOWN - 1, 1], Pipe),
            (&[UP, DOWN - 1, 1, DOWN - 1], Pipe),
            (&[UP, DOWN], Buffer),
        ];
        for &(runs, expected) in rows {
            let mut gear = Gear::default();
            for (turn, &run) in runs.iter().enumerate() {
                (0..run).for_each(|_| gear.observe(turn % 2 == 0));
            }
            assert_eq!(gear.conduit(), expected, "after {runs:?}");
        }
    }

    /// Break tried: no halving.
    #[test]
    fn a_pipe_is_filled_further_while_the_sink_takes_all_of_it() {
        // Fills that were taken whole (`+`) and that were not (`-`), what the next one may bring, in KiB.
        let rows = [
            ("", 128),
            ("+", 256),
            ("+++", 1024),
            ("++++++", 1024),
            ("+++-", 512),
            ("+++++-", 512),
            ("+-+-", 128),
            ("---", 128),
            ("---+", 256),
        ];
        for (fills, kib) in rows {
            let mut gear = Gear::default();
            fills.chars().for_each(|fill| gear.delivered(fill == '+'));
            assert_eq!(gear.reach(), kib << 10, "{fills}");
        }
    }
}
