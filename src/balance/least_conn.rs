//! `least_conn`: fewest connections in proportion to weight.
//!
//! Backend a is better than b when `(active_a + 1) / weight_a < (active_b + 1) / weight_b`: the load that each would have
//! with the new connection. Idle backends are equals and take turns by weight.

use super::alias::Alias;
use super::explain::{Reason, Trace};
use super::least::{self, Rule};
use super::{Cursor, Loads, View};

/// Connections as they would be with the new one.
pub(super) struct Connections;

impl<L: Loads> Rule<L> for Connections {
    #[inline]
    fn load(&self, loads: &L, ix: usize) -> u64 {
        u64::from(loads.active(ix)) + 1
    }

    #[inline]
    fn is_idle(&self, load: u64) -> bool {
        load == 1
    }
}

#[inline]
pub(super) fn pick<L: Loads, T: Trace>(
    view: &View<'_, L>,
    cursor: &mut Cursor,
    alias: Option<&Alias>,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    least::pick(view, cursor, alias, &Connections, trace)
}
