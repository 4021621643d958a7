//! The sessions of one listener in order of last use, and the policy that ends them.

use std::time::Duration;

use super::list::Ends;

/// How long a session stays parked, if the idle time is not shorter still.
pub const PARKED_TIME: Duration = Duration::from_secs(2);

/// When sessions of a listener end; `None` = unlimited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionLimits {
    /// Silence in both directions.
    pub idle: Duration,
    /// Client datagrams of one session.
    pub requests: Option<u32>,
    /// Backend datagrams for each client datagram.
    pub replies: Option<u32>,
}

/// The sessions of one listener, in order of last use. Times are in nanoseconds.
#[derive(Debug)]
pub(super) struct Line {
    pub idle: u64,
    requests: Option<u32>,
    replies: Option<u32>,
    pub active: Ends,
    pub parked: Ends,
}

impl Line {
    /// A line without sessions.
    pub(super) fn new(policy: SessionLimits) -> Line {
        let mut line = Line {
            idle: 0,
            requests: None,
            replies: None,
            active: Ends::EMPTY,
            parked: Ends::EMPTY,
        };
        line.set(policy);
        line
    }

    pub(super) fn set(&mut self, policy: SessionLimits) {
        self.idle = nanos(policy.idle);
        self.requests = policy.requests.map(|limit| limit.max(1));
        self.replies = policy.replies;
    }

    pub(super) fn parked_time(&self) -> u64 {
        self.idle.min(nanos(PARKED_TIME))
    }

    /// How many of `count` further requests a session may have that had so many before.
    pub(super) fn allowed(&self, requests: u32, count: u32) -> u32 {
        match self.requests {
            None => count,
            Some(limit) => count.min(limit.saturating_sub(requests)),
        }
    }

    /// Whether a session has had all its requests.
    pub(super) fn is_used_up(&self, requests: u32) -> bool {
        self.requests.is_some_and(|limit| requests >= limit)
    }

    pub(super) fn expects_no_reply(&self) -> bool {
        self.replies == Some(0)
    }

    /// Whether every request has had its replies.
    pub(super) fn is_answered(&self, requests: u32, replies: u32) -> bool {
        self.replies
            .is_some_and(|each| u64::from(replies) >= u64::from(each) * u64::from(requests))
    }
}

pub(super) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
