//! Asking about what is tracked: connections are tried here, scripts run in the process that runs commands, and the keeper says how
//! interfaces are. When, and what it means, is decided in [`crate::failover::track`].

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::time::Instant;

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::TrackStatus;
use super::links::connect;
use super::notify::{Notes, SCRIPT};
use crate::config::model::{Track, Tracked};
use crate::failover::track::{Kind, Terms, Watch, turn};
use crate::runner::{Run, Which};

/// Everything that is tracked.
pub struct Tracks {
    node: String,
    configured: Vec<Track>,
    watches: Vec<Watch>,
    first_token: usize,
    /// Of questions, be they connections or runs of a script; none is used twice.
    next_number: usize,
    connections: HashMap<usize, (usize, TcpStream)>,
    runs: HashMap<u64, usize>,
    changed: Vec<usize>,
}

impl Tracks {
    /// Tokens from `first` upwards are used. `held` says of each whether it is known to have held before.
    pub fn new(now: Instant, first: usize, node: &str, configured: &[Track], held: impl Fn(usize) -> bool) -> Tracks {
        let watch = |(ix, track): (usize, &Track)| Watch::new(now, terms(track), held(ix));
        Tracks {
            node: node.to_string(),
            watches: configured.iter().enumerate().map(watch).collect(),
            configured: configured.to_vec(),
            first_token: first,
            next_number: 0,
            connections: HashMap::new(),
            runs: HashMap::new(),
            changed: Vec::new(),
        }
    }

    /// Goes on with what `old` knew of things that are configured as before.
    pub fn carry(&mut self, old: Tracks) {
        self.next_number = old.next_number;
        for (ix, track) in self.configured.iter().enumerate() {
            let Some(was) = old.configured.iter().position(|other| other == track) else {
                continue;
            };
            self.watches[ix] = old.watches[was].clone();
            self.runs
                .extend(old.runs.iter().filter(|(_, of)| **of == was).map(|(n, _)| (*n, ix)));
            // A connection that was being tried is tried again.
            if old.connections.values().any(|(of, _)| *of == was) {
                self.watches[ix].forget_question();
            }
        }
    }

    /// When there is something to do.
    pub fn deadline(&self) -> Option<Instant> {
        self.watches.iter().filter_map(Watch::deadline).min()
    }

    /// Interfaces whose state is wanted.
    pub fn interfaces(&self) -> Vec<String> {
        let name = |track: &Track| match &track.what {
            Tracked::Interface(name) => Some(name.clone()),
            _ => None,
        };
        self.configured.iter().filter_map(name).collect()
    }

    /// Gives up what is overdue, and asks whose turn it is.
    pub fn proceed(&mut self, registry: &Registry, now: Instant, notes: &Notes) {
        for ran in notes.ran() {
            if let Some(ix) = self.runs.remove(&ran.id) {
                self.answer(ix, ran.outcome);
            }
        }
        for ix in 0..self.watches.len() {
            if let Some(why) = self.watches[ix].overdue(now) {
                self.connections.retain(|_, (of, _)| *of != ix);
                self.runs.retain(|_, of| *of != ix);
                self.answer(ix, Err(why));
            }
        }
        for ix in turn(&mut self.watches, now) {
            let asked = match &self.configured[ix].what {
                Tracked::Tcp(address) => self.try_to_connect(registry, ix, *address),
                Tracked::Script(_) => self.run(notes, ix),
                Tracked::Interface(_) => Ok(()),
            };
            if let Err(error) = asked {
                self.answer(ix, Err(error.to_string()));
            }
        }
    }

    fn try_to_connect(&mut self, registry: &Registry, ix: usize, address: SocketAddr) -> io::Result<()> {
        // From wherever the route says: a gateway beside the network of the beats is asked from its own side.
        let mut stream = connect(None, address, self.configured[ix].timeout)?;
        let token = self.first_token + self.next_number;
        self.next_number += 1;
        registry.register(&mut stream, Token(token), Interest::WRITABLE)?;
        self.connections.insert(token, (ix, stream));
        Ok(())
    }

    fn run(&mut self, notes: &Notes, ix: usize) -> io::Result<()> {
        let track = &self.configured[ix];
        // Answers to a predecessor's questions are none of ours.
        let process = u64::from(std::process::id()) << 32;
        let id = SCRIPT | process | (self.next_number as u64 & u64::from(u32::MAX));
        self.next_number += 1;
        notes.run(Run {
            id,
            which: Which::Track(track.name.clone()),
            variables: [("WEIR_NODE", &self.node), ("WEIR_TRACK", &track.name)]
                .map(|(name, value)| (name.to_string(), value.clone()))
                .to_vec(),
            limit: track.timeout,
        })?;
        self.runs.insert(id, ix);
        Ok(())
    }

    /// An event for one of our tokens.
    pub fn event(&mut self, token: Token) {
        let Some((ix, stream)) = self.connections.get(&token.0) else {
            return;
        };
        let ix = *ix;
        let answer = match stream.take_error() {
            Ok(None) if stream.peer_addr().is_ok() => Ok(()),
            Ok(None) => return,
            Ok(Some(error)) | Err(error) => Err(error.to_string()),
        };
        // Closing the socket also ends its registration.
        self.connections.remove(&token.0);
        self.answer(ix, answer);
    }

    /// The keeper says how an interface is.
    pub fn link(&mut self, interface: &str, up: bool) {
        for ix in 0..self.configured.len() {
            if matches!(&self.configured[ix].what, Tracked::Interface(name) if name == interface) {
                self.answer(
                    ix,
                    up.then_some(())
                        .ok_or_else(|| "no carrier, or no such interface".into()),
                );
            }
        }
    }

    fn answer(&mut self, ix: usize, answer: Result<(), String>) {
        if self.watches[ix].answer(answer) {
            self.changed.push(ix);
        }
    }

    /// What has changed since it was asked last.
    pub fn changes(&mut self) -> Vec<usize> {
        std::mem::take(&mut self.changed)
    }

    /// One of them, as it is now.
    pub fn status(&self, ix: usize) -> TrackStatus {
        let (track, watch) = (&self.configured[ix], &self.watches[ix]);
        TrackStatus {
            name: track.name.clone(),
            what: track.what.to_string(),
            holds: watch.holds(),
            weight: track.weight,
            problem: watch.why().map(str::to_owned),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.configured.len()
    }
}

fn terms(track: &Track) -> Terms {
    let kind = match track.what {
        Tracked::Tcp(_) => Kind::Connect,
        Tracked::Script(_) => Kind::Script,
        // What the kernel says is no sample that could be wrong.
        Tracked::Interface(_) => {
            return Terms {
                kind: Kind::Told,
                interval: track.interval,
                timeout: track.timeout,
                rise: 1,
                fall: 1,
            };
        }
    };
    Terms {
        kind,
        interval: track.interval,
        timeout: track.timeout,
        rise: track.rise,
        fall: track.fall,
    }
}
