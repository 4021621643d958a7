//! `random`: two different backends drawn by weight, the one with fewer connections in proportion to weight wins.
//!
//! Without shared state beyond the counters, and never more than a few reads whatever the size of the pool ("power of two
//! choices", Mitzenmacher 2001). An idle first draw is taken as it is, so at low load the shares are the weights.

use super::alias::Alias;
use super::explain::{Reason, Trace};
use super::least::{self, Memory};
use super::least_conn::Connections;
use super::{Cursor, Loads, View};

#[inline]
pub(super) fn pick<L: Loads, T: Trace>(
    view: &View<'_, L>,
    cursor: &mut Cursor,
    alias: &Alias,
    trace: &mut T,
) -> Option<(usize, Reason)> {
    least::sampled(view, cursor, alias, &Connections, Memory::None, trace)
}
