//! Moves pages: from a socket into a pipe, from there into the other socket.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use crate::poller::{Poller, STREAM};
use crate::{check, listening};

#[derive(clap::Args)]
pub struct Bulk {
    /// Size of a pipe, and the most that one splice asks for.
    #[arg(long, default_value_t = 1 << 20)]
    pipe: usize,
    /// SO_RCVLOWAT of a source once a splice brought 64 KiB: a wake-up for as many bytes (socket(7)). What follows the last of them
    /// comes with the end of the stream.
    #[arg(long)]
    lowat: Option<i32>,
    /// TCP_NOTSENT_LOWAT of both sockets: writable while less than this is unsent.
    #[arg(long)]
    unsent: Option<i32>,
}

/// One direction.
struct Lane {
    source: RawFd,
    sink: RawFd,
    /// Write end, read end.
    pipe: Option<(OwnedFd, OwnedFd)>,
    held: usize,
    /// A splice brought 64 KiB.
    bulk: bool,
    ended: bool,
}

struct Pair {
    // Keep the descriptors.
    _streams: [TcpStream; 2],
    lanes: [Lane; 2],
}

impl Lane {
    /// Moves until the source has no more or the sink has no room.
    fn pump(&mut self, bulk: &Bulk) -> io::Result<()> {
        loop {
            let mut idle = true;
            if !self.ended && self.held < bulk.pipe {
                let pipe = match &mut self.pipe {
                    Some(pipe) => pipe,
                    none => {
                        set(self.sink, libc::IPPROTO_TCP, libc::TCP_NOTSENT_LOWAT, bulk.unsent)?;
                        none.insert(new_pipe(bulk.pipe)?)
                    }
                };
                match move_pages(self.source, pipe.0.as_raw_fd(), bulk.pipe - self.held) {
                    Ok(0) => self.ended = true,
                    Ok(moved) => {
                        (self.held, idle) = (self.held + moved, false);
                        if moved >= 64 << 10 && !std::mem::replace(&mut self.bulk, true) {
                            set(self.source, libc::SOL_SOCKET, libc::SO_RCVLOWAT, bulk.lowat)?;
                        }
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    Err(error) => return Err(error),
                }
            }
            if self.held > 0 {
                let pipe = self.pipe.as_ref().expect("it holds something");
                match move_pages(pipe.1.as_raw_fd(), self.sink, self.held) {
                    Ok(moved) => (self.held, idle) = (self.held - moved, false),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            if idle {
                if self.ended && self.held == 0 {
                    // SAFETY: the descriptor is open as long as its pair.
                    unsafe { libc::shutdown(self.sink, libc::SHUT_WR) };
                }
                return Ok(());
            }
        }
    }
}

fn set(fd: RawFd, level: i32, name: i32, value: Option<i32>) -> io::Result<()> {
    let Some(value) = value else { return Ok(()) };
    // SAFETY: the value outlives the call, and its size is given.
    check(unsafe { libc::setsockopt(fd, level, name, (&raw const value).cast(), 4) } as isize)?;
    Ok(())
}

fn new_pipe(bytes: usize) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK)?;
    // SAFETY: plain system call on a descriptor that is open.
    check(unsafe { libc::fcntl(write.as_raw_fd(), libc::F_SETPIPE_SZ, bytes as libc::c_int) } as isize)?;
    Ok((write, read))
}

fn move_pages(from: RawFd, to: RawFd, most: usize) -> io::Result<usize> {
    let none = std::ptr::null_mut;
    // SAFETY: no offsets are passed.
    check(unsafe {
        libc::splice(
            from,
            none(),
            to,
            none(),
            most,
            libc::SPLICE_F_NONBLOCK | libc::SPLICE_F_MOVE,
        )
    })
}

pub fn run(listen: SocketAddr, target: SocketAddr, bulk: &Bulk) -> io::Result<()> {
    let mut poller = Poller::new()?;
    let listener = listening(listen)?;
    let door = listener.as_raw_fd();
    poller.add(door, libc::EPOLLIN, door as usize)?;
    let mut pairs: HashMap<RawFd, Pair> = HashMap::new();
    let mut of_backend: HashMap<RawFd, RawFd> = HashMap::new();
    let mut ready = Vec::new();
    loop {
        ready.extend(poller.wait(None).map(|(token, _)| token as RawFd));
        for fd in ready.drain(..) {
            if fd == door {
                while let Ok((client, _)) = listener.accept() {
                    // Waited for: there are few, and they last.
                    let backend = TcpStream::connect(target)?;
                    for stream in [&client, &backend] {
                        stream.set_nodelay(true)?;
                        stream.set_nonblocking(true)?;
                    }
                    let (a, b) = (client.as_raw_fd(), backend.as_raw_fd());
                    let lane = |source, sink| Lane {
                        source,
                        sink,
                        pipe: None,
                        held: 0,
                        bulk: false,
                        ended: false,
                    };
                    pairs.insert(
                        a,
                        Pair {
                            _streams: [client, backend],
                            lanes: [lane(a, b), lane(b, a)],
                        },
                    );
                    of_backend.insert(b, a);
                    poller.add(a, STREAM, a as usize)?;
                    poller.add(b, STREAM, b as usize)?;
                }
                continue;
            }
            let client = of_backend.get(&fd).copied().unwrap_or(fd);
            let Some(pair) = pairs.get_mut(&client) else { continue };
            let failed = pair.lanes.iter_mut().any(|lane| lane.pump(bulk).is_err());
            if failed || pair.lanes.iter().all(|lane| lane.ended && lane.held == 0) {
                of_backend.remove(&pair.lanes[1].source);
                pairs.remove(&client);
            }
        }
    }
}
