//! Datagrams on their way out, grouped into as few sends as the kernel allows: pure.
//!
//! Datagrams for one destination that are equally long travel as one message, which the kernel (or the card) cuts up
//! again: that is where bulk throughput comes from. Only the last one of a message may be shorter.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;

use crate::sys::mmsg::{Message, Part, SEGMENTED_MAX, SEGMENTS_MAX};

/// One destination.
#[derive(Debug, Clone, Copy)]
pub(super) struct Course {
    /// As in [`Message`].
    pub to: Option<SocketAddr>,
    /// As in [`Message`].
    pub from: Option<IpAddr>,
    /// Longest datagrams that may be grouped; 0 = group nothing.
    pub group_max: usize,
}

/// The message that still takes datagrams.
#[derive(Debug, Clone, Copy)]
struct Open {
    size: usize,
    datagrams: usize,
    bytes: usize,
}

/// The datagrams of one turn, grouped into sends. Buffers are reused from turn to turn.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub parts: Vec<Part>,
    pub messages: Vec<Message>,
    open: Option<Open>,
}

impl Plan {
    pub(super) fn clear(&mut self) {
        self.parts.clear();
        self.messages.clear();
        self.open = None;
    }

    /// What follows goes to another destination, or must not be grouped with what went before.
    pub(super) fn turn(&mut self) {
        self.open = None;
    }

    /// Appends the bytes of `part`: datagrams of `segment` bytes each, the last one possibly shorter; 0 = one datagram.
    pub(super) fn push(&mut self, course: &Course, part: Part, segment: usize) {
        let len = part.len as usize;
        let size = if segment == 0 { len } else { segment.min(len) };
        if size > course.group_max || size == 0 {
            return self.push_apart(course, part, segment);
        }
        let datagrams = len.div_ceil(size);
        let fits = |open: &Open| {
            let alike = open.size == size || (datagrams == 1 && size < open.size);
            alike && open.datagrams + datagrams <= SEGMENTS_MAX && open.bytes + len <= SEGMENTED_MAX
        };
        let at = self.parts.len();
        self.parts.push(part);
        let open = match (self.open.filter(fits), self.messages.last_mut()) {
            (Some(open), Some(message)) => {
                message.parts.end = at + 1;
                message.segment = open.size;
                Open {
                    datagrams: open.datagrams + datagrams,
                    bytes: open.bytes + len,
                    ..open
                }
            }
            _ => {
                let segment = if datagrams > 1 { size } else { 0 };
                self.messages.push(Message {
                    parts: at..at + 1,
                    to: course.to,
                    from: course.from,
                    segment,
                });
                Open {
                    size,
                    datagrams,
                    bytes: len,
                }
            }
        };
        // A shorter one can only be the last.
        self.open = (open.bytes == open.size * open.datagrams).then_some(open);
    }

    /// As [`push`](Self::push), but every datagram is a message of its own.
    pub(super) fn push_apart(&mut self, course: &Course, part: Part, segment: usize) {
        self.open = None;
        let (end, mut start) = (part.start + part.len, part.start);
        loop {
            let len = if segment == 0 {
                end - start
            } else {
                (end - start).min(segment as u32)
            };
            let at = self.parts.len();
            self.parts.push(Part {
                slot: part.slot,
                start,
                len,
            });
            self.messages.push(Message {
                parts: at..at + 1,
                to: course.to,
                from: course.from,
                segment: 0,
            });
            start += len;
            if start >= end {
                return;
            }
        }
    }

    /// Takes messages apart: one message for each of their datagrams, in a plan of their own.
    pub(super) fn apart(&self, messages: Range<usize>) -> Plan {
        let mut plan = Plan::default();
        for Message {
            parts,
            to,
            from,
            segment,
        } in &self.messages[messages]
        {
            let course = Course {
                to: *to,
                from: *from,
                group_max: 0,
            };
            for part in &self.parts[parts.clone()] {
                plan.push_apart(&course, *part, *segment);
            }
        }
        plan
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn course(group_max: usize) -> Course {
        Course {
            to: None,
            from: None,
            group_max,
        }
    }

    /// (slot, first byte, bytes) of each datagram that the messages say.
    fn datagrams(plan: &Plan) -> Vec<(u32, u32, u32)> {
        let mut out = Vec::new();
        for message in &plan.messages {
            for part in &plan.parts[message.parts.clone()] {
                let step = if message.segment == 0 {
                    part.len
                } else {
                    message.segment as u32
                };
                let mut at = 0;
                loop {
                    out.push((part.slot, part.start + at, step.min(part.len - at)));
                    at += step;
                    if at >= part.len {
                        break;
                    }
                }
            }
        }
        out
    }

    fn planned(group_max: usize, input: &[(usize, usize)]) -> Plan {
        let mut plan = Plan::default();
        for (slot, &(len, segment)) in input.iter().enumerate() {
            plan.push(
                &course(group_max),
                Part {
                    slot: slot as u32,
                    start: 0,
                    len: len as u32,
                },
                segment,
            );
        }
        plan
    }

    #[test]
    fn equal_datagrams_go_together() {
        // Input (bytes, segment); expected (parts, segment) of each message.
        type Row<'a> = (&'a [(usize, usize)], &'a [(usize, usize)]);
        let rows: [Row; 9] = [
            (&[(100, 0)], &[(1, 0)]),
            (&[(100, 0), (100, 0), (100, 0)], &[(3, 100)]),
            (&[(100, 0), (100, 0), (60, 0), (100, 0)], &[(3, 100), (1, 0)]),
            (&[(60, 0), (100, 0)], &[(1, 0), (1, 0)]),
            (&[(3600, 1200), (2400, 1200)], &[(2, 1200)]),
            (&[(3000, 1200), (2400, 1200)], &[(1, 1200), (1, 1200)]),
            (&[(0, 0), (0, 0)], &[(1, 0), (1, 0)]),
            (&[(100, 0), (0, 0), (100, 0)], &[(1, 0), (1, 0), (1, 0)]),
            (&[(2000, 0), (2000, 0)], &[(1, 0), (1, 0)]),
        ];
        for (input, expected) in rows {
            let plan = planned(1500, input);
            let got: Vec<_> = plan.messages.iter().map(|m| (m.parts.len(), m.segment)).collect();
            assert_eq!(got, expected, "{input:?}");
        }
    }

    proptest! {
        /// Whatever is grouped, the same datagrams leave in the same order, and the kernel's limits hold.
        #[test]
        fn nothing_is_lost_reordered_or_too_big(
            input in prop::collection::vec((prop_oneof![Just(0), 1usize..3000, Just(64), Just(1200), 1usize..65_507], prop_oneof![Just(0), Just(1200), Just(64)]), 0..80),
            group_max in prop_oneof![Just(0), Just(1472), Just(65_535)],
        ) {
            // GRO never merges more than the kernel would send at once.
            let input: Vec<_> = input.into_iter().map(|(len, segment)| (if segment > 0 { len.clamp(1, segment * SEGMENTS_MAX) } else { len }, segment)).collect();
            let expected = datagrams(&planned(0, &input));
            let plan = planned(group_max, &input);
            prop_assert_eq!(&datagrams(&plan), &expected);
            let apart = plan.apart(0..plan.messages.len());
            prop_assert_eq!(datagrams(&apart), expected);
            prop_assert!(apart.messages.iter().all(|message| message.segment == 0));
            for message in plan.messages.iter().filter(|message| message.segment > 0) {
                let parts = &plan.parts[message.parts.clone()];
                let bytes: usize = parts.iter().map(|part| part.len as usize).sum();
                prop_assert!(bytes <= SEGMENTED_MAX && bytes.div_ceil(message.segment) <= SEGMENTS_MAX);
                prop_assert!(message.segment <= group_max);
                let whole = parts[..parts.len() - 1].iter().all(|part| (part.len as usize).is_multiple_of(message.segment));
                prop_assert!(whole, "only the last datagram may be shorter");
            }
        }
    }
}
