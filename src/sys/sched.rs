//! Being on time: scheduling class, resident memory, clocks.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// What [`urgent_thread`] got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Urgency {
    /// SCHED_RR, lowest priority: runs before every ordinary thread.
    RealTime,
    /// A better nice value.
    Nice,
    /// Nothing: not permitted.
    Ordinary,
}

/// Has the calling thread run before others when CPUs are short; threads and processes that it starts are ordinary again.
///
/// Only for threads that sleep nearly all the time.
pub fn urgent_thread() -> Urgency {
    let param = libc::sched_param { sched_priority: 1 };
    // SAFETY: `param` is live for the call; thread 0 is the calling one (sched_setscheduler(2)).
    let real_time =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &raw const param) };
    if real_time == 0 {
        return Urgency::RealTime;
    }
    // SAFETY: no memory is passed; on Linux "process 0" of setpriority(2) is the calling thread.
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    if nice == 0 { Urgency::Nice } else { Urgency::Ordinary }
}

/// Has the calling thread, and those that it starts, give way to others when CPUs are short: about a tenth of an ordinary
/// thread's share.
pub fn patient_thread() {
    // SAFETY: no memory is passed; on Linux "process 0" of setpriority(2) is the calling thread.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
}

/// Keeps the memory of this process resident, so that no page fault waits for a busy disk; whether that was permitted.
///
/// Only without a limit on locked memory: with one, a later allocation beyond it would fail, which is worse than a fault.
pub fn lock_memory() -> bool {
    use nix::sys::mman::{MlockAllFlags, mlockall};
    use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};
    let memlock = Resource::RLIMIT_MEMLOCK;
    let unlimited = setrlimit(memlock, RLIM_INFINITY, RLIM_INFINITY).is_ok()
        || getrlimit(memlock).is_ok_and(|(soft, _)| soft == RLIM_INFINITY);
    unlimited && mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE).is_ok()
}

fn clock(id: ClockId) -> Duration {
    clock_gettime(id).map_or(Duration::ZERO, Duration::from)
}

/// CLOCK_MONOTONIC, which `Instant` reads too; the same for all processes of a machine.
pub fn monotonic() -> Duration {
    clock(ClockId::CLOCK_MONOTONIC)
}

/// CLOCK_BOOTTIME, which goes on while the machine is suspended.
pub fn boottime() -> Duration {
    clock(ClockId::CLOCK_BOOTTIME)
}
