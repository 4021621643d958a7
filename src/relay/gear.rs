//! How a lane moves bytes: copied through a buffer while it is small, spliced through a pipe while it is bulk.
//!
//! Splice saves the two copies but costs a system call more and the page handling of a pipe, so it pays only for long
//! runs. A lane shifts up after it has filled the copy buffer in [`UP_AFTER`] reads in a row, and down after
//! [`DOWN_AFTER`] runs in a row that would have fitted the buffer. docs/performance.md has the measurements.

/// Full buffers in a row that make a lane bulk.
pub const UP_AFTER: u8 = 3;
/// Small runs in a row that end it.
pub const DOWN_AFTER: u8 = 8;

/// Where bytes are between a source and a sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conduit {
    /// A buffer in user space.
    #[default]
    Buffer,
    /// A kernel pipe.
    Pipe,
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

/// See the module.
#[derive(Debug, Clone, Copy, Default)]
pub struct Gear {
    conduit: Conduit,
    streak: u8,
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
            Conduit::Pipe => (!large, DOWN_AFTER, Conduit::Buffer),
        };
        self.streak = if shift { self.streak + 1 } else { 0 };
        if self.streak >= limit {
            *self = Gear {
                conduit: other,
                streak: 0,
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shifts_after_a_run_and_only_after_a_run() {
        use Conduit::*;
        let rows: &[(&str, Conduit)] = &[
            ("", Buffer),
            ("LL", Buffer),
            ("LLsL", Buffer),
            ("LLL", Pipe),
            ("LLLsssssss", Pipe),
            ("LLLsssssssL", Pipe),
            ("LLLssssssss", Buffer),
        ];
        for &(fills, expected) in rows {
            let mut gear = Gear::default();
            fills.chars().for_each(|c| gear.observe(c == 'L'));
            assert_eq!(gear.conduit(), expected, "after {fills:?}");
        }
    }
}
