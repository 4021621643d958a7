//! The process before this one, while it drains.
//!
//! Connections end where they began, and an address may leave this host while they do. So the channel of the upgrade stays open:
//! the process that has the address says [`Note::Leaves`], and the one before it resets what it has, passes it on to the one before
//! itself, and answers [`Note::Left`]. Nobody waits for an answer longer than for a worker, so a process that stands still, or is of
//! a version that does not know these notes, costs nothing but the reset.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::{Line, Note};
use crate::link::Finished;

/// How long the process before this one may take to reset its connections to an address, before it answers all the same.
const LEAVING_MAX: Duration = Duration::from_millis(100);

/// Says what leaves to the process before this one, if there is one.
#[derive(Debug, Clone, Default)]
pub struct Before(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    line: Option<Line>,
    /// What it has yet to answer.
    asked: Vec<(IpAddr, Arc<Finished>)>,
}

impl Before {
    /// It drains from now on, and hears what is said on this channel.
    pub(super) fn drains(&self, line: Line) {
        self.0.lock().line = Some(line);
    }

    /// Has its connections to an address reset; the second is dropped when that is done. Never waits.
    pub fn leave(&self, address: IpAddr, finished: Arc<Finished>) {
        let mut open = self.0.lock();
        let told = open
            .line
            .as_ref()
            .is_some_and(|line| line.try_say(&Note::Leaves(address)).is_ok());
        if told {
            open.asked.push((address, finished));
        }
    }

    pub(super) fn left(&self, address: IpAddr) {
        self.0.lock().asked.retain(|(asked, _)| *asked != address);
    }

    pub(super) fn is_gone(&self) {
        *self.0.lock() = Open::default();
    }
}

/// In the process that drains: does what the one after it says, until that one has gone.
pub(super) fn attend(line: &Line, leave: impl Fn(IpAddr, Arc<Finished>)) -> std::io::Result<()> {
    let mut poll = mio::Poll::new()?;
    let waker = Arc::new(mio::Waker::new(poll.registry(), mio::Token(0))?);
    let mut events = mio::Events::with_capacity(1);
    line.0.set_timeout(Duration::ZERO)?;
    while let Some((note, _)) = line.hear()? {
        let Note::Leaves(address) = note else { continue };
        let finished = Arc::new(Finished(waker.clone()));
        let waited = Arc::downgrade(&finished);
        leave(address, finished);
        let by = Instant::now() + LEAVING_MAX;
        while waited.strong_count() > 0 {
            let left = by.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            poll.poll(&mut events, Some(left))?;
        }
        line.say(&Note::Left(address))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::handover::Channel;

    fn finished() -> (mio::Poll, Arc<Finished>) {
        let poll = mio::Poll::new().unwrap();
        let waker = mio::Waker::new(poll.registry(), mio::Token(0)).unwrap();
        (poll, Arc::new(Finished(Arc::new(waker))))
    }

    /// The answer comes when the last of them is done, and an end counts as an answer.
    #[test]
    fn what_leaves_is_told_to_the_process_before() {
        let (near, far) = Channel::pair().unwrap();
        let (near, far) = (Line(Arc::new(near)), Line(Arc::new(far)));
        let before = Before::default();
        let address: IpAddr = "10.8.0.100".parse().unwrap();
        let (_poll, one) = finished();
        before.leave(address, one.clone());
        assert_eq!(Arc::strong_count(&one), 1, "nobody is before this one");

        before.drains(near.clone());
        let (told, tell) = crossbeam_channel::unbounded();
        let drained =
            std::thread::spawn(move || attend(&far, |address, finished| told.send((address, finished)).unwrap()));
        before.leave(address, one.clone());
        let (heard, theirs) = tell.recv().unwrap();
        assert_eq!(heard, address);
        drop(theirs);
        match near.hear().unwrap() {
            Some((Note::Left(address), _)) => before.left(address),
            other => panic!("{other:?}"),
        }
        assert_eq!(Arc::strong_count(&one), 1, "answered");

        before.leave(address, one.clone());
        drop(tell);
        assert_eq!(Arc::strong_count(&one), 2);
        before.is_gone();
        assert_eq!(Arc::strong_count(&one), 1, "gone");
        drop((near, before));
        // Its last note could not be passed on: that panics there, or it has seen the end.
        let _ = drained.join();
    }
}
