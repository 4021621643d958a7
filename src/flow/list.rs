//! Doubly linked lists threaded through the entries of a slab: no allocation, O(1) everything.

/// Stands for the absence of an entry.
pub(super) const NONE: u32 = u32::MAX;

/// An entry's neighbours in one list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub prev: u32,
    pub next: u32,
}

impl Link {
    pub const OUT: Link = Link { prev: NONE, next: NONE };
}

/// Entries that can stand in several lists at once, one for each `which`.
pub(super) trait Nodes {
    fn link(&mut self, ix: u32, which: usize) -> &mut Link;
}

/// Both ends of a list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub head: u32,
    pub tail: u32,
    pub len: u32,
}

impl Ends {
    pub const EMPTY: Ends = Ends {
        head: NONE,
        tail: NONE,
        len: 0,
    };

    pub fn push_back<N: Nodes>(&mut self, nodes: &mut N, which: usize, ix: u32) {
        *nodes.link(ix, which) = Link {
            prev: self.tail,
            next: NONE,
        };
        match self.tail {
            NONE => self.head = ix,
            tail => nodes.link(tail, which).next = ix,
        }
        self.tail = ix;
        self.len += 1;
    }

    pub fn unlink<N: Nodes>(&mut self, nodes: &mut N, which: usize, ix: u32) {
        let Link { prev, next } = std::mem::replace(nodes.link(ix, which), Link::OUT);
        match prev {
            NONE => self.head = next,
            prev => nodes.link(prev, which).next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => nodes.link(next, which).prev = prev,
        }
        self.len -= 1;
    }

    pub fn move_to_back<N: Nodes>(&mut self, nodes: &mut N, which: usize, ix: u32) {
        if self.tail != ix {
            self.unlink(nodes, which, ix);
            self.push_back(nodes, which, ix);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    struct Fake(Vec<[Link; 2]>);
    impl Nodes for Fake {
        fn link(&mut self, ix: u32, which: usize) -> &mut Link {
            &mut self.0[ix as usize][which]
        }
    }

    fn contents(ends: &Ends, nodes: &mut Fake, which: usize) -> Vec<u32> {
        let (mut out, mut at) = (Vec::new(), ends.head);
        while at != NONE {
            out.push(at);
            at = nodes.link(at, which).next;
        }
        out
    }

    proptest! {
        /// Against a deque, with a second list through the same nodes that must not notice.
        #[test]
        fn behaves_like_a_deque(ops in proptest::collection::vec((0u8..4, 0u32..8), 0..60)) {
            let mut nodes = Fake(vec![[Link::OUT; 2]; 8]);
            let (mut list, mut other) = (Ends::EMPTY, Ends::EMPTY);
            for ix in 0..8 {
                other.push_back(&mut nodes, 1, ix);
            }
            let mut oracle: VecDeque<u32> = VecDeque::new();
            for (op, ix) in ops {
                let present = oracle.iter().position(|&x| x == ix);
                match (op, present) {
                    (0, None) => { list.push_back(&mut nodes, 0, ix); oracle.push_back(ix); }
                    (2, Some(at)) => { list.unlink(&mut nodes, 0, ix); oracle.remove(at); }
                    (3, Some(at)) => {
                        list.move_to_back(&mut nodes, 0, ix);
                        oracle.remove(at);
                        oracle.push_back(ix);
                    }
                    _ => {}
                }
                prop_assert_eq!(contents(&list, &mut nodes, 0), Vec::from(oracle.clone()));
                prop_assert_eq!(list.len as usize, oracle.len());
                prop_assert_eq!(list.tail, oracle.back().copied().unwrap_or(NONE));
            }
            prop_assert_eq!(contents(&other, &mut nodes, 1), (0..8).collect::<Vec<_>>());
        }
    }
}
