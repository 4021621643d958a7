//! What systemd passes to a service, and what a service tells systemd (sd_notify(3), sd_listen_fds(3)).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub use sd_notify::NotifyState;

/// Sends assignments, one a line; without a service manager this does nothing. Never waits: `WouldBlock` if the service
/// manager has so much to read already that nothing more fits.
pub fn notify(assignments: &str) -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else {
        return Ok(());
    };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(assignments.as_bytes(), &address).map(drop)
}

/// Time stamp that goes with RELOADING=1 (Type=notify-reload).
pub fn monotonic_now() -> io::Result<NotifyState<'static>> {
    NotifyState::monotonic_usec_now()
}

/// Time within which the service manager wants WATCHDOG=1; `None` = it does not watch.
pub fn watchdog() -> Option<Duration> {
    sd_notify::watchdog_enabled()
}

/// The environment variables that concern one process only: a child that takes over must not see them.
pub const PRIVATE_VARIABLES: [&str; 4] = ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"];

/// The sockets that the service manager has opened for this process, by name. Only the first call gets them.
pub fn activated() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let passed = sd_notify::listen_fds_with_names()?;
    // SAFETY: the variables name this process, so by protocol these descriptors were opened for it, nobody else in it
    // refers to them, and the flag above makes them change hands once.
    let own = |(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) });
    Ok(passed.map(own).collect())
}
