//! What the service manager is told: readiness, reloads, the end, a line of status, and signs of life.
//!
//! A sign of life (WATCHDOG=1) stands for the whole process: control sends it, and only while every worker turns. Without a
//! service manager all of this does nothing.
//!
//! While an upgrade hands the service over, exactly one of the two processes speaks: the old one until it has named the
//! new one (MAINPID=), the new one from then on. A silent notifier remembers that it is ready and says so when its turn
//! comes.

use std::collections::VecDeque;
use std::io::ErrorKind;
use std::time::{Duration, Instant};

use crate::sys::systemd::{self, NotifyState};

/// The status line is repeated with fresh numbers so often.
const STATUS_PERIOD: Duration = Duration::from_secs(10);
/// Notifications that may wait for a service manager that does not read; the oldest go first.
const UNSENT_MAX: usize = 64;
/// Signs of life are sent so many times within the service manager's limit.
const FEEDS_PER_LIMIT: u32 = 4;

/// The way to the service manager, if one has started this process.
#[derive(Debug)]
pub struct Notifier {
    silent: bool,
    watchdog: Option<Watchdog>,
    status: String,
    status_at: Instant,
    /// Notifications that the service manager's socket had no room for, oldest first.
    unsent: VecDeque<String>,
}

#[derive(Debug)]
struct Watchdog {
    limit: Duration,
    next: Instant,
    /// A stuck worker was reported already.
    complained: bool,
}

impl Notifier {
    /// `silent`: another process speaks for the service until [`speak`](Self::speak).
    pub fn new(silent: bool, now: Instant) -> Notifier {
        Notifier {
            silent,
            watchdog: systemd::watchdog().map(|limit| Watchdog {
                limit,
                next: now,
                complained: false,
            }),
            status: String::new(),
            status_at: now,
            unsent: VecDeque::new(),
        }
    }

    /// This process speaks for the service from now on; it is ready.
    pub fn speak(&mut self, status: String) {
        self.silent = false;
        self.ready(status);
    }

    /// The configuration is in force, after start or reload (also after one that was refused).
    pub fn ready(&mut self, status: String) {
        self.status = one_line(&status);
        let status = self.status.clone();
        self.send(&[NotifyState::Ready, NotifyState::Status(&status)]);
    }

    /// Another line of status.
    pub fn status(&mut self, status: String) {
        let status = one_line(&status);
        if status != self.status {
            self.status = status;
            let status = self.status.clone();
            self.send(&[NotifyState::Status(&status)]);
        }
    }

    /// A reload begins; [`ready`](Self::ready) ends it.
    pub fn reloading(&mut self) {
        // Type=notify-reload demands the time stamp in the same datagram; older service managers ignore it.
        match systemd::monotonic_now() {
            Ok(stamp) => self.send(&[NotifyState::Reloading, stamp]),
            Err(_) => self.send(&[NotifyState::Reloading]),
        }
    }

    /// The process is about to end.
    pub fn stopping(&mut self, status: String) {
        self.status = one_line(&status);
        let status = self.status.clone();
        self.send(&[NotifyState::Stopping, NotifyState::Status(&status)]);
    }

    /// Names the process that the service consists of from now on, and says no more.
    pub fn hand_over(&mut self, pid: u32) {
        self.send(&[NotifyState::MainPid(pid)]);
        self.silent = true;
    }

    /// When [`feed`](Self::feed) is due.
    pub fn deadline(&self) -> Option<Instant> {
        let watchdog = self.watchdog.as_ref().map(|watchdog| watchdog.next);
        watchdog.filter(|_| !self.silent)
    }

    /// Whether the line of status has become old.
    pub fn wants_status(&mut self, now: Instant) -> bool {
        let is_old = !self.silent && now.duration_since(self.status_at) >= STATUS_PERIOD;
        if is_old {
            self.status_at = now;
        }
        is_old
    }

    /// Feeds the watchdog if that is due and no worker is stuck. `busy` holds, for each worker, its number and for how
    /// long its current turn has lasted.
    pub fn feed(&mut self, now: Instant, busy: impl Iterator<Item = (usize, Duration)>) {
        self.send_unsent();
        if self.silent {
            return;
        }
        if let Some(watchdog) = &mut self.watchdog
            && watchdog.next <= now
        {
            watchdog.next = now + watchdog.limit / FEEDS_PER_LIMIT;
            match stuck(busy, watchdog.limit) {
                None => {
                    watchdog.complained = false;
                    self.send(&[NotifyState::Watchdog]);
                }
                Some((worker, _)) if watchdog.complained => {
                    log::debug!("worker {worker} is still stuck");
                }
                Some((worker, time)) => {
                    watchdog.complained = true;
                    log::error!(
                        "worker {worker} has been in one turn for {}: the watchdog is not fed",
                        humantime::format_duration(time)
                    );
                }
            }
        }
    }

    fn send(&mut self, states: &[NotifyState]) {
        if self.silent {
            return;
        }
        let assignments = states.iter().map(|state| format!("{state}\n")).collect();
        if self.unsent.len() >= UNSENT_MAX {
            self.unsent.pop_front();
        }
        self.unsent.push_back(assignments);
        self.send_unsent();
    }

    /// In order, as far as there is room: the control thread must not wait for a service manager that hangs.
    fn send_unsent(&mut self) {
        while let Some(next) = self.unsent.front() {
            match systemd::notify(next) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => log::warn!("cannot notify the service manager: {error}"),
                Ok(()) => {}
            }
            self.unsent.pop_front();
        }
    }
}

/// The worker that is longest in one turn, if that is half of the limit or more: the other half is left for the service
/// manager to notice.
fn stuck(busy: impl Iterator<Item = (usize, Duration)>, limit: Duration) -> Option<(usize, Duration)> {
    busy.filter(|(_, time)| *time >= limit / 2)
        .max_by_key(|(_, time)| *time)
}

/// A line break would begin another assignment.
fn one_line(text: &str) -> String {
    text.lines().collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail comparing with the whole limit instead of half of it.
    #[test]
    fn a_worker_is_stuck_from_half_of_the_limit_on() {
        let ms = Duration::from_millis;
        let rows: [(&[u64], Option<usize>); 5] = [
            (&[], None),
            (&[0, 0], None),
            (&[0, 999], None),
            (&[0, 1_000], Some(1)),
            (&[5_000, 1_000], Some(0)),
        ];
        for (busy, expected) in rows {
            let busy = busy.iter().map(|&time| ms(time)).enumerate();
            assert_eq!(stuck(busy, ms(2_000)).map(|(ix, _)| ix), expected);
        }
    }

    #[test]
    fn a_status_cannot_begin_another_assignment() {
        assert_eq!(one_line("refused:\nMAINPID=1"), "refused:; MAINPID=1");
    }
}
