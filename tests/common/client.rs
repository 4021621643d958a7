//! The client's end of a connection.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;

use socket2::{Domain, Socket, Type};

use super::PATIENCE;
pub use super::server::reset;

/// Connects; reads and writes give up after [`PATIENCE`].
#[track_caller]
pub fn connect(address: &str) -> TcpStream {
    try_connect(address, None).unwrap_or_else(|error| panic!("connecting to {address}: {error}"))
}

/// Connects from a source address.
#[track_caller]
pub fn connect_from(source: IpAddr, address: &str) -> TcpStream {
    try_connect(address, Some(source)).unwrap_or_else(|error| panic!("connecting from {source} to {address}: {error}"))
}

/// Connects, perhaps from a source address.
pub fn try_connect(address: &str, source: Option<IpAddr>) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().expect("an address with a port");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if let Some(source) = source {
        socket.bind(&SocketAddr::new(source, 0).into())?;
    }
    socket.connect_timeout(&address.into(), PATIENCE)?;
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Connects and reads to the end.
pub fn fetch(address: &str) -> std::io::Result<String> {
    let mut text = String::new();
    try_connect(address, None)?.read_to_string(&mut text)?;
    Ok(text)
}

/// Connects to an address that text cannot carry (with an interface in it), and reads to the end.
pub fn fetch_from(address: SocketAddr) -> std::io::Result<String> {
    let mut text = String::new();
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.read_to_string(&mut text).map(|_| text)
}

/// Sends `bytes` and reads an answer of the same length.
#[track_caller]
pub fn round_trip(stream: &mut TcpStream, bytes: &[u8]) {
    stream.write_all(bytes).expect("writing");
    let mut answer = vec![0; bytes.len()];
    stream.read_exact(&mut answer).expect("reading");
    assert!(answer == bytes, "the echo differs");
}

/// Reads to the end; it must be a clean one.
#[track_caller]
pub fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).expect("reading to a clean end");
    bytes
}

/// Reads until the connection is reset, and returns what came before.
#[track_caller]
pub fn read_to_reset(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => bytes,
        other => panic!("expected a reset, got {other:?} after {} bytes", bytes.len()),
    }
}

/// Connects and is reset, before or after the handshake is told of; nothing comes before that.
#[track_caller]
pub fn connect_to_reset(address: &str) {
    match try_connect(address, None) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("connecting to {address}: {error}"),
        Ok(mut stream) => assert_eq!(read_to_reset(&mut stream), b""),
    }
}

/// Waits until the other host has acknowledged everything: what this one has not sent yet, a reset would throw away.
#[track_caller]
pub fn wait_until_acknowledged(stream: &TcpStream) {
    super::wait_until("everything is acknowledged", || {
        weir::sys::socket::unacknowledged(stream.as_raw_fd()) == 0
    });
}
