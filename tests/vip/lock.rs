//! Holds the kernel's network configuration lock for as long as a test wants, without keeping a CPU busy.
//!
//! `ETHTOOL_GSTRINGS` copies its argument from user memory with the lock held. The argument begins at the end of a page; the next
//! page is missing and looked after by userfaultfd(2), so that the kernel waits for us to fill it.

// Every pointer below leads to `pages` or to a local variable, and both outlive the calls that get it.
#![allow(clippy::undocumented_unsafe_blocks)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::hosts::enter;

const PAGE: usize = 4096;
/// `_IOWR(0xAA, ...)`, see include/uapi/linux/userfaultfd.h.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_ZEROPAGE: libc::c_ulong = 0xc020_aa04;
const MODE_MISSING: u64 = 1;
const ETHTOOL_GSTRINGS: u32 = 0x1b;

/// Does nothing for `time` with the lock held, in the name of an interface of a namespace.
pub fn hold(ns: &str, interface: &str, time: Duration) {
    let (ns, interface) = (ns.to_string(), interface.to_string());
    let thread = std::thread::spawn(move || {
        enter(&ns);
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
        assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
        let faults = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let (protection, flags) = (
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
        );
        let pages = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE, protection, flags, -1, 0) };
        assert_ne!(pages, libc::MAP_FAILED);
        let second = pages as u64 + PAGE as u64;
        let ask = |request, argument: &mut [u64]| {
            let outcome = unsafe { libc::ioctl(faults.as_raw_fd(), request, argument.as_mut_ptr()) };
            assert_eq!(outcome, 0, "{request:x}: {}", io::Error::last_os_error());
        };
        ask(UFFDIO_API, &mut [0xaa, 0, 0]);
        ask(UFFDIO_REGISTER, &mut [second, PAGE as u64, MODE_MISSING, 0]);
        let argument = second as usize - 4;
        unsafe { (argument as *mut u32).write(ETHTOOL_GSTRINGS) };
        let caller = std::thread::spawn(move || {
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
                *to = from as libc::c_char;
            }
            request.ifr_ifru.ifru_data = argument as *mut libc::c_char;
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            // Refused when it has been read: strings of set 0 are not to be had. That is all the same.
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        });
        // The kernel says that it waits.
        let mut message = [0u8; 32];
        let got = unsafe { libc::read(faults.as_raw_fd(), message.as_mut_ptr().cast(), message.len()) };
        assert_eq!(got, 32);
        std::thread::sleep(time);
        ask(UFFDIO_ZEROPAGE, &mut [second, PAGE as u64, 0, 0]);
        caller.join().unwrap();
        unsafe { libc::munmap(pages, 2 * PAGE) };
    });
    thread.join().unwrap();
}
