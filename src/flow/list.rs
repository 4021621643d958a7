//! Doubly linked lists threaded through the slots of a table: no allocation, O(1) everything.

/// No slot.
pub(super) const NONE: u32 = u32::MAX;

/// A slot's neighbours in one list.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    pub prev: u32,
    pub next: u32,
}

impl Link {
    pub const OUT: Link = Link {
        prev: NONE,
        next: NONE,
    };
}

/// A slot that can stand in several lists at once, one for each `which`.
pub(super) trait Linked {
    fn link(&mut self, which: usize) -> &mut Link;
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

    pub fn push_back<N: Linked>(&mut self, nodes: &mut [N], which: usize, ix: u32) {
        *nodes[ix as usize].link(which) = Link {
            prev: self.tail,
            next: NONE,
        };
        match self.tail {
            NONE => self.head = ix,
            tail => nodes[tail as usize].link(which).next = ix,
        }
        self.tail = ix;
        self.len += 1;
    }

    pub fn push_front<N: Linked>(&mut self, nodes: &mut [N], which: usize, ix: u32) {
        *nodes[ix as usize].link(which) = Link {
            prev: NONE,
            next: self.head,
        };
        match self.head {
            NONE => self.tail = ix,
            head => nodes[head as usize].link(which).prev = ix,
        }
        self.head = ix;
        self.len += 1;
    }

    pub fn unlink<N: Linked>(&mut self, nodes: &mut [N], which: usize, ix: u32) {
        let Link { prev, next } = std::mem::replace(nodes[ix as usize].link(which), Link::OUT);
        match prev {
            NONE => self.head = next,
            prev => nodes[prev as usize].link(which).next = next,
        }
        match next {
            NONE => self.tail = prev,
            next => nodes[next as usize].link(which).prev = prev,
        }
        self.len -= 1;
    }

    pub fn move_to_back<N: Linked>(&mut self, nodes: &mut [N], which: usize, ix: u32) {
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

    struct Node([Link; 2]);
    impl Linked for Node {
        fn link(&mut self, which: usize) -> &mut Link {
            &mut self.0[which]
        }
    }

    fn contents(ends: &Ends, nodes: &mut [Node], which: usize) -> Vec<u32> {
        let (mut out, mut at) = (Vec::new(), ends.head);
        while at != NONE {
            out.push(at);
            at = nodes[at as usize].link(which).next;
        }
        out
    }

    proptest! {
        /// Against a deque, with a second list through the same nodes in reverse order that must not notice.
        #[test]
        fn behaves_like_a_deque(ops in proptest::collection::vec((0u8..4, 0u32..8), 0..60)) {
            let mut nodes: Vec<Node> = (0..8).map(|_| Node([Link::OUT; 2])).collect();
            let (mut list, mut other) = (Ends::EMPTY, Ends::EMPTY);
            for ix in 0..8 {
                other.push_front(&mut nodes, 1, ix);
            }
            let mut oracle: VecDeque<u32> = VecDeque::new();
            for (op, ix) in ops {
                let present = oracle.iter().position(|&x| x == ix);
                match (op, present) {
                    (0, None) => { list.push_back(&mut nodes, 0, ix); oracle.push_back(ix); }
                    (1, None) => { list.push_front(&mut nodes, 0, ix); oracle.push_front(ix); }
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
            prop_assert_eq!(contents(&other, &mut nodes, 1), (0..8).rev().collect::<Vec<_>>());
        }
    }
}
