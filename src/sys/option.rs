//! Socket options that are one int.

use std::io;
use std::mem::size_of;
use std::os::fd::RawFd;

/// From include/uapi/linux/in6.h.
const IPV6_FREEBIND: i32 = 78;

/// Lets a socket be bound to an address, and send from one, that this host does not have (yet).
pub(super) fn set_freebind(fd: RawFd, six: bool) -> io::Result<()> {
    match six {
        true => set_int(fd, libc::IPPROTO_IPV6, IPV6_FREEBIND, 1),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_FREEBIND, 1),
    }
}

/// Lets a socket be bound to an address that this host will never have, and hear what comes to it (IP_TRANSPARENT, ip(7)).
pub(super) fn set_transparent(fd: RawFd, six: bool) -> io::Result<()> {
    match six {
        true => set_int(fd, libc::IPPROTO_IPV6, libc::IPV6_TRANSPARENT, 1),
        false => set_int(fd, libc::IPPROTO_IP, libc::IP_TRANSPARENT, 1),
    }
}

/// Limits a socket that is not bound yet to what comes in by an interface, and what it sends to going out by it
/// (SO_BINDTOIFINDEX, Linux 5.0). Without CAP_NET_RAW it takes Linux 5.7.
pub(super) fn set_device(fd: RawFd, index: u32) -> io::Result<()> {
    match i32::try_from(index) {
        Ok(index @ 1..) => set_int(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX, index),
        // 0 would lift the limit.
        _ => Err(io::Error::from_raw_os_error(libc::ENODEV)),
    }
}

pub(super) fn set_int(fd: RawFd, level: i32, name: i32, value: i32) -> io::Result<()> {
    let len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is an int of `len` bytes and outlives the call.
    let done = unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), len) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

pub(super) fn get_int(fd: RawFd, level: i32, name: i32) -> io::Result<i32> {
    let mut value: i32 = 0;
    let mut len = size_of::<i32>() as libc::socklen_t;
    // SAFETY: `value` is writable for `len` bytes and both outlive the call.
    let done = unsafe { libc::getsockopt(fd, level, name, (&raw mut value).cast(), &raw mut len) };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(value)
    }
}
