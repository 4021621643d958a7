//! FIN or RST: how weir closes the two sockets of a connection that it ends.
//!
//! A FIN says "this was all". So weir sends one only if that is true as far as it can know: everything that one side sent
//! has been written to the other. Otherwise the reader would take a truncated stream for a whole one, and protocols that
//! end a message by closing (HTTP/1.0, FTP, backups through a pipe) would never notice. RST says "this was cut off".
//!
//! | cause | FIN |
//! |---|---|
//! | `finished` | always: it means that both streams have ended and were delivered |
//! | `idle_timeout`, `half_close_timeout` | if both lanes are at rest: nothing held, nothing to read, and room at the sink |
//! | all others | never: whoever ends a connection in its prime does not know whether a message is complete |
//!
//! A connection at rest may still be in the middle of a message whose sender is slow. That its time is up then looks like
//! an end is what every proxy does at its idle timeout, and what a server does that closes a connection kept alive.

use super::cause::Cause;

/// How the sockets are closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// `close`: the kernel delivers what is queued, then FIN.
    Fin,
    /// RST; what the kernel has not delivered is dropped.
    Reset,
}

/// What a lane's source has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nothing, as far as is known.
    Quiet,
    /// Perhaps something.
    Readable,
    /// It has ended its stream, and everything was read.
    Ended,
}

/// A lane at the moment of its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LaneState {
    /// What its source has.
    pub source: Source,
    /// Bytes were read and not written.
    pub held: bool,
    /// The sink takes bytes.
    pub sink_ready: bool,
}

impl LaneState {
    /// Everything that came was written, and the end of the stream as well.
    fn is_complete(self) -> bool {
        !self.held && self.source == Source::Ended
    }

    /// Nothing is on its way. A full sink means that more was wanted than the other side has read.
    fn is_at_rest(self) -> bool {
        self.is_complete() || (!self.held && self.source == Source::Quiet && self.sink_ready)
    }
}

impl Cause {
    /// How an open connection with these lanes ends for this cause.
    pub fn ending(self, lanes: [LaneState; 2]) -> Ending {
        let may_look_complete = match self {
            Cause::Finished => lanes.into_iter().all(LaneState::is_complete),
            Cause::IdleTimeout | Cause::HalfCloseTimeout => lanes.into_iter().all(LaneState::is_at_rest),
            Cause::ClientReset
            | Cause::BackendReset
            | Cause::ConnectFailed
            | Cause::ConnectTimeout
            | Cause::NoBackend
            | Cause::QueueTimeout
            | Cause::QueueFull
            | Cause::Denied
            | Cause::LimitListener
            | Cause::LimitSource
            | Cause::LimitRate
            | Cause::LimitProcess
            | Cause::BadProxyHeader
            | Cause::HelloTimeout
            | Cause::HelloTooLarge
            | Cause::NoRoute
            | Cause::MaxAge
            | Cause::BackendDown
            | Cause::PrimaryBack
            | Cause::Drained
            | Cause::Evicted
            | Cause::Killed
            | Cause::VipMoved
            | Cause::Shutdown => false,
        };
        match may_look_complete {
            true => Ending::Fin,
            false => Ending::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state of a lane: source (q: quiet, r: readable, e: ended), h: bytes held, w: sink writable; and whether it is
    /// complete, and whether it is at rest.
    const LANES: [(&str, bool, bool); 12] = [
        ("q", false, false),
        ("qw", false, true),
        ("qh", false, false),
        ("qhw", false, false),
        ("r", false, false),
        ("rw", false, false),
        ("rh", false, false),
        ("rhw", false, false),
        ("e", true, true),
        ("ew", true, true),
        ("eh", false, false),
        ("ehw", false, false),
    ];

    fn lane(state: &str) -> LaneState {
        LaneState {
            source: match state.as_bytes()[0] {
                b'q' => Source::Quiet,
                b'r' => Source::Readable,
                _ => Source::Ended,
            },
            held: state.contains('h'),
            sink_ready: state.contains('w'),
        }
    }

    /// When a cause ends with FIN.
    enum When {
        Complete,
        AtRest,
        Never,
    }

    const CAUSES: [(Cause, When); 27] = [
        (Cause::Finished, When::Complete),
        (Cause::ClientReset, When::Never),
        (Cause::BackendReset, When::Never),
        (Cause::IdleTimeout, When::AtRest),
        (Cause::HalfCloseTimeout, When::AtRest),
        (Cause::ConnectFailed, When::Never),
        (Cause::ConnectTimeout, When::Never),
        (Cause::NoBackend, When::Never),
        (Cause::QueueTimeout, When::Never),
        (Cause::QueueFull, When::Never),
        (Cause::Denied, When::Never),
        (Cause::LimitListener, When::Never),
        (Cause::LimitSource, When::Never),
        (Cause::LimitRate, When::Never),
        (Cause::LimitProcess, When::Never),
        (Cause::BadProxyHeader, When::Never),
        (Cause::HelloTimeout, When::Never),
        (Cause::HelloTooLarge, When::Never),
        (Cause::NoRoute, When::Never),
        (Cause::MaxAge, When::Never),
        (Cause::BackendDown, When::Never),
        (Cause::PrimaryBack, When::Never),
        (Cause::Drained, When::Never),
        (Cause::Evicted, When::Never),
        (Cause::Killed, When::Never),
        (Cause::VipMoved, When::Never),
        (Cause::Shutdown, When::Never),
    ];

    /// All causes in all states of both lanes: 27 x 12 x 12.
    #[test]
    fn fin_or_rst() {
        assert!(CAUSES.iter().map(|(cause, _)| *cause).eq(Cause::ALL.iter().copied()));
        for (cause, when) in &CAUSES {
            for up in &LANES {
                for down in &LANES {
                    let fin = match when {
                        When::Complete => up.1 && down.1,
                        When::AtRest => up.2 && down.2,
                        When::Never => false,
                    };
                    let expected = if fin { Ending::Fin } else { Ending::Reset };
                    let got = cause.ending([lane(up.0), lane(down.0)]);
                    assert_eq!(got, expected, "{} with lanes {} and {}", cause.as_str(), up.0, down.0);
                }
            }
        }
    }
}
