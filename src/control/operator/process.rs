//! What the kernel says of this process.

use std::io;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};

use crate::sys::limits;

/// Usage at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct ProcessFacts {
    /// Open descriptors.
    pub open_fds: u64,
    /// Open descriptors at most.
    pub limit_fds: u64,
    /// Resident memory, bytes.
    pub resident_bytes: u64,
    /// User and system time.
    pub cpu: Duration,
}

impl ProcessFacts {
    /// Reads them now. What cannot be read (no `/proc`) is zero.
    pub fn read() -> ProcessFacts {
        ProcessFacts {
            open_fds: open_fds().unwrap_or_default(),
            limit_fds: limits::open_files(),
            resident_bytes: resident_bytes().unwrap_or_default(),
            cpu: cpu(),
        }
    }
}

fn open_fds() -> io::Result<u64> {
    // Since Linux 6.2 the size of the directory is the number of descriptors: no need to list twenty thousand of them.
    match std::fs::metadata("/proc/self/fd")?.len() {
        0 => Ok(std::fs::read_dir("/proc/self/fd")?.count() as u64 - 1),
        size => Ok(size),
    }
}

fn resident_bytes() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let kib = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.unwrap_or_default() << 10)
}

fn cpu() -> Duration {
    let time =
        |time: nix::sys::time::TimeVal| Duration::from_micros(time.tv_sec() as u64 * 1_000_000 + time.tv_usec() as u64);
    getrusage(UsageWho::RUSAGE_SELF)
        .map(|usage| time(usage.user_time()) + time(usage.system_time()))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn facts_follow_the_process() {
        let before = ProcessFacts::read();
        let files: Vec<_> = (0..50).map(|_| std::fs::File::open("/dev/null").unwrap()).collect();
        let after = ProcessFacts::read();
        // Other tests open and close files meanwhile.
        assert!(
            after.open_fds + 30 > before.open_fds + files.len() as u64,
            "{before:?} {after:?}"
        );
        assert!(after.open_fds < after.limit_fds);
        assert!(after.resident_bytes > 1 << 20 && after.cpu >= before.cpu);
    }
}
