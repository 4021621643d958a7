//! The least that relaying through sockets can cost: loops of one thread that move bytes and do nothing else. No health, no limits, no
//! time-outs, no accounts, no fairness, no system call filter; errors end a connection, and a loop is ended from outside.
//!
//! `scripts/bench` measures them as `bare`, so that a figure of a balancer can be held against what its kind of system calls allows on
//! that kernel.

mod copy;
mod poller;
mod ring;
mod splice;
mod udp;

use std::io;
use std::net::{SocketAddr, TcpListener};

use clap::Parser;
use socket2::{Domain, Socket, Type};

#[derive(Parser)]
enum Command {
    /// TCP through a buffer: for short connections and requests, not for bulk, since a full socket is waited for on the spot.
    Copy {
        listen: SocketAddr,
        target: SocketAddr,
        /// The ACK that completes the handshake with the target waits for the client's bytes (TCP_QUICKACK, tcp(7)).
        #[arg(long)]
        hold_ack: bool,
    },
    /// The same without a system call for each step, by io_uring(7): what is to be sent is handed over together, and bytes are received
    /// into buffers that the kernel chooses.
    Ring {
        listen: SocketAddr,
        target: SocketAddr,
        /// As above.
        #[arg(long)]
        hold_ack: bool,
    },
    /// TCP through a pipe for each direction, as long as there is anything to move.
    Splice {
        listen: SocketAddr,
        target: SocketAddr,
        #[command(flatten)]
        bulk: splice::Bulk,
    },
    /// Datagrams, a connected socket for each flow, in batches of 32 where a call takes several.
    Udp { listen: SocketAddr, target: SocketAddr },
}

fn main() -> io::Result<()> {
    match Command::parse() {
        Command::Copy {
            listen,
            target,
            hold_ack,
        } => copy::run(listen, target, hold_ack),
        Command::Ring {
            listen,
            target,
            hold_ack,
        } => ring::run(listen, target, hold_ack),
        Command::Splice { listen, target, bulk } => splice::run(listen, target, &bulk),
        Command::Udp { listen, target } => udp::run(listen, target),
    }
}

/// What a system call returned, or its error.
fn check(returned: isize) -> io::Result<usize> {
    usize::try_from(returned).map_err(|_| io::Error::last_os_error())
}

/// A socket that clients come to, non-blocking.
fn listening(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(listen), Type::STREAM.nonblocking(), None)?;
    socket.set_reuse_address(true)?;
    socket.bind(&listen.into())?;
    socket.listen(65535)?;
    Ok(socket.into())
}
