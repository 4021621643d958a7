//! Counts of clients that were turned away.

use super::layout::REFUSALS;
use crate::flow::Dropped;
use crate::relay::Cause;
use crate::stats::ListenerShard;

/// Puts what the program has counted where the workers count the same.
pub fn count_refusals(shard: &ListenerShard, is_udp: bool, refused: impl Fn(usize) -> u64) {
    let of = |wanted: Cause| {
        let rows = REFUSALS.iter().enumerate();
        rows.filter(|(_, (cause, _))| *cause == wanted)
            .map(|(why, _)| refused(why))
            .sum::<u64>()
    };
    for (why, &(cause, dropped)) in REFUSALS.iter().enumerate() {
        shard.closed[cause as usize].set(of(cause));
        if cause == Cause::NoBackend {
            shard.no_backend[usize::from(dropped == Dropped::Full)].set(refused(why));
        }
        if is_udp {
            shard.dropped[dropped as usize].set(refused(why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the number that each has in the program.
    #[test]
    fn refusals_count_as_those_of_the_workers() {
        for is_udp in [false, true] {
            let shard = ListenerShard::default();
            count_refusals(&shard, is_udp, |why| 10 + why as u64);
            let closed = |cause: Cause| shard.closed[cause as usize].get();
            assert_eq!(
                [
                    closed(Cause::Denied),
                    closed(Cause::LimitProcess),
                    closed(Cause::NoBackend)
                ],
                [10, 14, 15 + 16]
            );
            assert_eq!(shard.no_backend.each_ref().map(|count| count.get()), [15, 16]);
            let dropped = |why: Dropped| shard.dropped[why as usize].get();
            let wanted = if is_udp { [10, 12, 16] } else { [0; 3] };
            assert_eq!(
                [
                    dropped(Dropped::Denied),
                    dropped(Dropped::LimitSource),
                    dropped(Dropped::Full)
                ],
                wanted
            );
        }
    }
}
