//! One of weir's stream sockets, and the peer at its other end: see [`super::kernel`].

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::base::{Rng, Side};
use crate::sys::socket::ConnectError;

/// Bytes that say whose stream it is.
pub const NAME: usize = 4;

/// The byte at position `at` of the stream of `who`.
pub fn byte(who: u32, at: usize) -> u8 {
    match who.to_le_bytes().get(at) {
        Some(byte) => *byte,
        None => (at.wrapping_mul(31) ^ (at >> 8) ^ (who as usize).wrapping_mul(0x9d)) as u8,
    }
}

/// How a peer ends its stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goodbye {
    Fin,
    Reset,
    /// It says nothing more, not even that.
    Silence,
}

/// How a connection to a backend comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    Done,
    /// It answers one day.
    Under,
    /// It refuses one day.
    Refuses,
    Refused(ConnectError),
    /// Nothing is ever heard.
    Ignored,
}

/// One of weir's stream sockets, and the peer at its other end.
#[derive(Debug)]
pub struct Stream {
    pub who: u32,
    pub side: Side,
    pub local: SocketAddr,
    pub peer: SocketAddr,
    pub handshake: Handshake,
    /// Sent in front of the stream: a PROXY header, a TLS hello.
    pub prefix: Vec<u8>,
    /// The server name in a TLS hello at the end of that.
    pub asks_for: Option<&'static str>,
    /// Positions `read..arrived` of what the peer sends (prefix first) are in the receive queue.
    pub arrived: usize,
    pub read: usize,
    pub to_send: usize,
    pub goodbye: Goodbye,
    pub fin: bool,
    pub reset: bool,
    error_told: bool,
    pub urgent_at: Option<usize>,
    /// Positions of the stream that were sent as urgent.
    pub marks: Vec<usize>,
    pub inline: bool,
    /// What weir has written and the peer has not read; `urgent` as positions of what was written.
    pub tx: VecDeque<u8>,
    pub acknowledged: usize,
    pub tx_room: usize,
    blocked: bool,
    pub tx_fin: bool,
    linger: bool,
    /// weir has closed it, with RST or without.
    pub closed: Option<bool>,
    /// The peer reads nothing more after so many bytes.
    pub deaf_after: usize,
    pub got: Vec<u8>,
    pub got_urgent: Vec<usize>,
    urgent_out: Vec<usize>,
    pub got_end: Option<Goodbye>,
    pub edge: bool,
    /// What has to be in the receive queue before the kernel tells of it.
    low_water: usize,
    pub poller: Option<(usize, u64)>,
    /// Something failed that is no fault of either peer.
    pub disturbed: bool,
}

impl Stream {
    pub fn new(who: u32, side: Side, local: SocketAddr, peer: SocketAddr) -> Stream {
        Stream {
            who,
            side,
            local,
            peer,
            handshake: Handshake::Done,
            prefix: Vec::new(),
            asks_for: None,
            arrived: 0,
            read: 0,
            to_send: 0,
            goodbye: Goodbye::Fin,
            fin: false,
            reset: false,
            error_told: false,
            urgent_at: None,
            marks: Vec::new(),
            inline: false,
            tx: VecDeque::new(),
            acknowledged: 0,
            tx_room: 1,
            blocked: false,
            tx_fin: false,
            linger: false,
            closed: None,
            deaf_after: usize::MAX,
            got: Vec::new(),
            got_urgent: Vec::new(),
            urgent_out: Vec::new(),
            got_end: None,
            edge: false,
            low_water: 1,
            poller: None,
            disturbed: false,
        }
    }

    /// How it stands.
    pub fn tell(&self) -> String {
        format!(
            "{:?} {} {:?}: {} of {} read, {} to come, fin {} reset {} urgent {:?}; {} got, {} of {} queued, blocked {}, fin {} end {:?}, edge {} of {:?}{}",
            self.side,
            self.who,
            self.handshake,
            self.read,
            self.arrived,
            self.to_send,
            self.fin,
            self.reset,
            self.urgent_at,
            self.got.len(),
            self.tx.len(),
            self.tx_room,
            self.blocked,
            self.tx_fin,
            self.got_end,
            self.edge,
            self.poller,
            if self.disturbed { ", disturbed" } else { "" },
        )
    }

    fn byte(&self, at: usize) -> u8 {
        let prefix = self.prefix.len();
        self.prefix
            .get(at)
            .copied()
            .unwrap_or_else(|| byte(self.who, at.wrapping_sub(prefix)))
    }

    /// Whether the peer says something more.
    pub fn is_talking(&self) -> bool {
        self.closed.is_none() && !self.fin && !self.reset && (self.to_send > 0 || self.goodbye != Goodbye::Silence)
    }

    /// Whether the peer still hears something.
    pub fn is_listening(&self) -> bool {
        self.got_end.is_none() && self.got.len() < self.deaf_after
    }

    /// More of what the peer says arrives: a part, or all at once.
    pub fn arrive(&mut self, rng: &mut Rng, most: usize, urgent: bool) {
        if !self.is_talking() || self.handshake != Handshake::Done {
            return;
        }
        let n = match rng.below(3) {
            0 => 1 + rng.below(40) as usize,
            _ => 1 + rng.below(most as u64) as usize,
        };
        let n = n.min(self.to_send);
        if urgent && n > 0 && rng.below(24) == 0 && self.arrived >= self.prefix.len() {
            let at = self.arrived + rng.below(n as u64) as usize;
            self.urgent_at = Some(at);
            self.marks.push(at - self.prefix.len());
        }
        self.arrived += n;
        self.to_send -= n;
        self.edge |= self.is_readable() || self.urgent_at.is_some();
        if self.to_send == 0 && (n == 0 || rng.below(2) == 0) {
            self.fin = self.goodbye == Goodbye::Fin;
            self.reset = self.goodbye == Goodbye::Reset;
            self.edge |= self.fin || self.reset;
        }
    }

    /// There is as much as the kernel is to tell of (tcp_stream_is_readable in its sources).
    fn is_readable(&self) -> bool {
        self.arrived - self.read >= self.low_water
    }

    /// SO_RCVLOWAT: what is there already is told of, if it is enough.
    pub fn wake_at(&mut self, bytes: usize) {
        self.low_water = bytes;
        self.edge |= self.is_readable();
    }

    /// The peer resets the connection, in the middle of what it says.
    pub fn break_off(&mut self) {
        self.to_send = 0;
        self.goodbye = Goodbye::Reset;
        self.reset = true;
        self.edge = true;
    }

    /// What weir has written travels, and the peer reads some of it.
    pub fn deliver(&mut self, rng: &mut Rng, all: bool) {
        let under_way = (self.tx.len() - self.acknowledged) as u64;
        let n = if all { under_way } else { rng.below(under_way + 1) };
        self.acknowledged += n as usize;
        let readable = self.acknowledged.min(self.deaf_after.saturating_sub(self.got.len()));
        let n = if all {
            readable as u64
        } else {
            rng.below(readable as u64 + 1)
        };
        let taken = self.tx.drain(..n as usize);
        self.got.extend(taken);
        self.acknowledged -= n as usize;
        let read = self.got.len();
        let urgent = self.urgent_out.extract_if(.., |at| *at < read);
        self.got_urgent.extend(urgent);
        if self.blocked && self.tx.len() < self.tx_room {
            self.blocked = false;
            self.edge = true;
        }
        let says_end = match self.closed {
            Some(true) => Some(Goodbye::Reset),
            _ if self.tx_fin => Some(Goodbye::Fin),
            _ => None,
        };
        if let Some(end) = says_end
            && self.tx.is_empty()
            && self.got_end.is_none()
        {
            self.got_end = Some(end);
        }
    }

    /// weir has closed its socket.
    pub fn close(&mut self) {
        let reset = self.linger || self.reset || self.read < self.arrived;
        self.closed = Some(reset);
        if reset {
            self.tx.truncate(self.acknowledged);
        }
        self.tx_fin |= !reset;
    }

    /// What the queue of received bytes holds up to where a read has to stop.
    fn readable(&self) -> usize {
        let stop = self.urgent_at.filter(|&at| at > self.read).unwrap_or(self.arrived);
        stop - self.read
    }

    /// What SIOCINQ says: up to the urgent mark, unless urgent data stays in line.
    pub fn unread(&self) -> usize {
        let mark = self
            .urgent_at
            .filter(|at| !self.inline && (self.read..self.arrived).contains(at));
        mark.unwrap_or(self.arrived) - self.read
    }

    fn nothing_left(&mut self) -> Result<usize, i32> {
        match self.reset {
            true if !std::mem::replace(&mut self.error_told, true) => Err(libc::ECONNRESET),
            true => Ok(0),
            false if self.fin => Ok(0),
            false => Err(libc::EAGAIN),
        }
    }

    /// Reads; `take`: off the queue.
    pub fn recv(&mut self, buffer: &mut [u8], take: bool) -> Result<usize, i32> {
        let before = (self.read, self.urgent_at);
        if self.urgent_at == Some(self.read) && !self.inline && self.read < self.arrived {
            self.read += 1;
            self.urgent_at = None;
        }
        let n = self.readable().min(buffer.len());
        for (at, slot) in buffer[..n].iter_mut().enumerate() {
            *slot = self.byte(self.read + at);
        }
        if !take {
            (self.read, self.urgent_at) = before;
        } else {
            self.read += n;
            self.urgent_at = self.urgent_at.filter(|&at| at >= self.read);
        }
        if n == 0 { self.nothing_left() } else { Ok(n) }
    }

    /// What a splice takes.
    pub fn spliced(&mut self, most: usize) -> Result<Vec<u8>, i32> {
        if self.urgent_at == Some(self.read) && self.read < self.arrived {
            return if self.fin { Ok(Vec::new()) } else { Err(libc::EAGAIN) };
        }
        let n = self.readable().min(most);
        let bytes = (self.read..self.read + n).map(|at| self.byte(at)).collect();
        self.read += n;
        if n == 0 {
            return self.nothing_left().map(|_| Vec::new());
        }
        Ok(bytes)
    }

    pub fn send(&mut self, bytes: &[u8], urgent: bool) -> Result<usize, i32> {
        assert!(!self.tx_fin, "{:?} {}: a write after FIN", self.side, self.who);
        if self.reset {
            self.error_told = true;
            return Err(libc::EPIPE);
        }
        if self.handshake != Handshake::Done {
            return Err(libc::EAGAIN);
        }
        let n = bytes.len().min(self.tx_room - self.tx.len());
        self.blocked |= n < bytes.len();
        if n == 0 {
            return Err(libc::EAGAIN);
        }
        if urgent {
            self.urgent_out.push(self.got.len() + self.tx.len());
        }
        self.tx.extend(&bytes[..n]);
        Ok(n)
    }

    pub fn shut(&mut self) {
        assert!(
            !std::mem::replace(&mut self.tx_fin, true),
            "{:?} {}: FIN twice",
            self.side,
            self.who
        );
    }

    pub fn reset_on_close(&mut self) {
        self.linger = true;
    }

    /// An answer to a SYN, or none.
    pub fn shake(&mut self) {
        match self.handshake {
            Handshake::Under => self.handshake = Handshake::Done,
            Handshake::Refuses => self.handshake = Handshake::Refused(ConnectError::Refused),
            _ => return,
        }
        self.edge = true;
    }

    /// Takes the pending error.
    pub fn take_error(&mut self) -> Option<ConnectError> {
        match self.handshake {
            Handshake::Refused(error) => Some(error),
            _ if self.reset && !std::mem::replace(&mut self.error_told, true) => Some(ConnectError::Reset),
            _ => None,
        }
    }

    /// A call has found nothing, and an edge will tell when there is something: at once for a read, with the next bytes that
    /// leave for a write.
    pub fn come_soon(&mut self, call: &str) {
        match call {
            "send" | "splice out" => self.blocked = true,
            _ => self.edge = true,
        }
    }

    /// EPOLL bits.
    pub fn mask(&self) -> i32 {
        use libc::{EPOLLERR, EPOLLHUP, EPOLLIN, EPOLLOUT, EPOLLPRI, EPOLLRDHUP};
        match self.handshake {
            Handshake::Done => {}
            Handshake::Refused(_) => return EPOLLIN | EPOLLOUT | EPOLLERR | EPOLLHUP | EPOLLRDHUP,
            _ => return 0,
        }
        let urgent = if self.urgent_at.is_some() { EPOLLPRI } else { 0 };
        if self.reset {
            let error = if self.error_told { 0 } else { EPOLLERR };
            return EPOLLIN | EPOLLOUT | error | EPOLLHUP | EPOLLRDHUP | urgent;
        }
        let mut mask = urgent;
        if self.is_readable() {
            mask |= EPOLLIN;
        }
        if self.fin {
            mask |= EPOLLIN | EPOLLRDHUP | if self.tx_fin { EPOLLHUP } else { 0 };
        }
        if self.tx.len() < self.tx_room {
            mask |= EPOLLOUT;
        }
        mask
    }
}
