//! The bytes of a probe on its socket, as they are or within TLS.

use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::sync::Arc;

use rustls::ClientConnection;

use super::tls;
use crate::health::{Reason, Remark};
use crate::sys::socket::{self, ConnectError, Transfer};

/// What goes over one socket.
pub enum Wire {
    /// As it is, and how much of it is sent.
    Plain(Arc<[u8]>, usize),
    /// Within TLS, which holds what is to be sent.
    Tls(Box<ClientConnection>),
}

/// How far sending is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    /// The socket takes no more for now.
    Blocked,
    /// All that can be sent before something is received.
    Begun,
    /// All that there is to send.
    All,
}

/// What a read found.
pub enum Got {
    /// So many bytes of an answer; none: of TLS alone.
    Bytes(usize),
    /// Nothing for now.
    Blocked,
    /// Nothing more will come.
    End,
    /// The socket's fault.
    Lost,
    /// TLS is broken; why.
    Broken(Remark),
}

impl Wire {
    /// Sends within TLS.
    pub fn secured(mut connection: Box<ClientConnection>, send: &[u8]) -> io::Result<Wire> {
        connection.writer().write_all(send)?;
        Ok(Wire::Tls(connection))
    }

    /// Sends what it can.
    pub fn send(&mut self, fd: RawFd) -> Result<Sent, Remark> {
        match self {
            Wire::Plain(bytes, at) => {
                while *at < bytes.len() {
                    match socket::send(fd, &bytes[*at..]) {
                        Transfer::Bytes(n) => *at += n,
                        Transfer::Blocked | Transfer::Starved => return Ok(Sent::Blocked),
                        _ => return Err(Reason::Lost.into()),
                    }
                }
                Ok(Sent::All)
            }
            Wire::Tls(connection) => {
                while connection.wants_write() {
                    match connection.write_tls(&mut Stream(fd)) {
                        Ok(_) => {}
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Sent::Blocked),
                        Err(_) => return Err(Reason::Lost.into()),
                    }
                }
                match connection.is_handshaking() {
                    true => Ok(Sent::Begun),
                    false => Ok(Sent::All),
                }
            }
        }
    }

    /// Receives bytes, deciphered under TLS.
    pub fn receive(&mut self, fd: RawFd, buffer: &mut [u8]) -> Got {
        let Wire::Tls(connection) = self else {
            return match socket::recv(fd, buffer) {
                Transfer::Bytes(n) => Got::Bytes(n),
                Transfer::Blocked | Transfer::Starved => Got::Blocked,
                Transfer::Eof => Got::End,
                Transfer::Failed => Got::Lost,
            };
        };
        match connection.reader().read(buffer) {
            Ok(0) => return Got::End,
            Ok(n) => return Got::Bytes(n),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => return Got::End,
        }
        match connection.read_tls(&mut Stream(fd)) {
            Ok(0) => match connection.is_handshaking() {
                true => Got::Broken(tls::failed("closed within the handshake")),
                false => Got::End,
            },
            Ok(_) => match connection.process_new_packets() {
                Ok(_) => Got::Bytes(0),
                Err(error) => {
                    // The alert that says so to the backend.
                    let _ = connection.write_tls(&mut Stream(fd));
                    Got::Broken(tls::failed(error))
                }
            },
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Got::Blocked,
            Err(_) => Got::Lost,
        }
    }

    /// Says that nothing more will be sent.
    pub fn finish(&mut self, fd: RawFd) {
        if let Wire::Tls(connection) = self {
            connection.send_close_notify();
            let _ = connection.write_tls(&mut Stream(fd));
        }
        socket::shut_write(fd);
    }
}

/// A socket as rustls wants it.
struct Stream(RawFd);

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        as_io(self.0, socket::recv(self.0, buffer))
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        as_io(self.0, socket::send(self.0, bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn as_io(fd: RawFd, transfer: Transfer) -> io::Result<usize> {
    match transfer {
        Transfer::Bytes(n) => Ok(n),
        Transfer::Blocked | Transfer::Starved => Err(io::ErrorKind::WouldBlock.into()),
        Transfer::Eof => Ok(0),
        Transfer::Failed => Err(io::Error::other(
            Remark::from(reason(socket::connect_error(fd))).to_string(),
        )),
    }
}

/// Why a connection failed.
pub fn reason(error: ConnectError) -> Reason {
    match error {
        ConnectError::Refused => Reason::Refused,
        ConnectError::Reset => Reason::Reset,
        ConnectError::TimedOut => Reason::TimedOut,
        ConnectError::Unreachable => Reason::Unreachable,
        ConnectError::Denied => Reason::Denied,
        // A probe has no client whose address could be kept.
        ConnectError::NoPorts | ConnectError::NotKept => Reason::NoPorts,
        ConnectError::Exhausted => Reason::Exhausted,
    }
}
