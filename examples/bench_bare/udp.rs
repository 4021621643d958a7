//! Relays datagrams.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, RawFd};

use socket2::SockAddr;

use crate::poller::Poller;

const BATCH: usize = 32;
const DATAGRAM: usize = 2048;

/// Buffers for `recvmmsg` and `sendmmsg`, as recvmmsg(2) shows.
struct Batch {
    bytes: Vec<[u8; DATAGRAM]>,
    addresses: Vec<libc::sockaddr_storage>,
    parts: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    fn new() -> Batch {
        // SAFETY: all zeroes is a valid value of each of these.
        let (address, part, header) = unsafe { (std::mem::zeroed(), std::mem::zeroed(), std::mem::zeroed()) };
        Batch {
            bytes: vec![[0; DATAGRAM]; BATCH],
            addresses: vec![address; BATCH],
            parts: vec![part; BATCH],
            headers: vec![header; BATCH],
        }
    }

    /// Says of header `ix` where its `len` bytes and its address are.
    fn lay(&mut self, ix: usize, len: usize, address_len: u32) {
        self.parts[ix] = libc::iovec {
            iov_base: self.bytes[ix].as_mut_ptr().cast(),
            iov_len: len,
        };
        let header = &mut self.headers[ix].msg_hdr;
        header.msg_iov = &raw mut self.parts[ix];
        header.msg_iovlen = 1;
        header.msg_name = (&raw mut self.addresses[ix]).cast();
        header.msg_namelen = address_len;
    }

    fn receive(&mut self, fd: RawFd) -> usize {
        (0..BATCH).for_each(|ix| self.lay(ix, DATAGRAM, size_of::<libc::sockaddr_storage>() as u32));
        // SAFETY: every header was laid out just now, and nothing has moved since.
        let n = unsafe {
            libc::recvmmsg(
                fd,
                self.headers.as_mut_ptr(),
                BATCH as u32,
                libc::MSG_DONTWAIT,
                std::ptr::null_mut(),
            )
        };
        n.max(0) as usize
    }

    fn from(&self, ix: usize) -> SocketAddr {
        // SAFETY: the kernel has written the address.
        let address = unsafe {
            SockAddr::new(
                std::mem::transmute_copy(&self.addresses[ix]),
                self.headers[ix].msg_hdr.msg_namelen,
            )
        };
        address.as_socket().expect("an address of the internet")
    }
}

pub fn run(listen: SocketAddr, target: SocketAddr) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let door = UdpSocket::bind(listen)?;
    door.set_nonblocking(true)?;
    let listener = door.as_raw_fd();
    poller.add(listener, libc::EPOLLIN, listener as usize)?;
    let mut flows: HashMap<SocketAddr, UdpSocket> = HashMap::new();
    let mut clients: HashMap<RawFd, SockAddr> = HashMap::new();
    let (mut batch, mut answers) = (Batch::new(), Batch::new());
    let mut ready = Vec::new();
    loop {
        let mut waiting = 0;
        ready.extend(poller.wait(None).map(|(token, _)| token as RawFd));
        for fd in ready.drain(..) {
            if fd != listener {
                let Some(client) = clients.get(&fd) else { continue };
                // SAFETY: the buffer outlives the call, and its size is given. A second answer on the way would raise another event.
                let n = unsafe {
                    libc::recv(
                        fd,
                        answers.bytes[waiting].as_mut_ptr().cast(),
                        DATAGRAM,
                        libc::MSG_DONTWAIT,
                    )
                };
                if n >= 0 {
                    // SAFETY: both are valid for the length that is copied.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            client.as_ptr().cast::<u8>(),
                            (&raw mut answers.addresses[waiting]).cast(),
                            client.len() as usize,
                        )
                    };
                    answers.lay(waiting, n as usize, client.len());
                    waiting += 1;
                }
                if waiting == BATCH {
                    send(listener, &mut answers, &mut waiting);
                }
                continue;
            }
            loop {
                let n = batch.receive(listener);
                for ix in 0..n {
                    let client = batch.from(ix);
                    let len = batch.headers[ix].msg_len as usize;
                    let flow = match flows.entry(client) {
                        std::collections::hash_map::Entry::Occupied(found) => found.into_mut(),
                        std::collections::hash_map::Entry::Vacant(new) => {
                            let socket = UdpSocket::bind("0.0.0.0:0")?;
                            socket.connect(target)?;
                            poller.add(socket.as_raw_fd(), libc::EPOLLIN, socket.as_raw_fd() as usize)?;
                            clients.insert(socket.as_raw_fd(), client.into());
                            new.insert(socket)
                        }
                    };
                    let _ = flow.send(&batch.bytes[ix][..len]);
                }
                if n < BATCH {
                    break;
                }
            }
        }
        send(listener, &mut answers, &mut waiting);
    }
}

fn send(listener: RawFd, answers: &mut Batch, waiting: &mut usize) {
    if *waiting > 0 {
        // SAFETY: as many headers were laid out, and nothing has moved since.
        unsafe { libc::sendmmsg(listener, answers.headers.as_mut_ptr(), *waiting as u32, 0) };
        *waiting = 0;
    }
}
