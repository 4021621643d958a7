//! Asking the witnesses: a TCP endpoint votes by accepting a connection, which is closed at once.
//!
//! An answer counts for `dead_after` from when it was asked for, so that a cut-off node loses it as fast as it loses its peers.
//! While every node has been heard lately no such vote is needed, and witnesses are asked once a second. As soon as a beat is
//! late, they are asked five times in `dead_after`: that leaves three attempts until the vote of the node that is late has ended.
//! One that fails is no verdict; that none succeeds is.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::links::connect;

/// Period while nothing is in doubt.
const CALM: Duration = Duration::from_secs(1);
/// Questions to one witness that may be under way.
const ASKED_MAX: usize = 6;
/// A witness that has not answered for so long is shown as down.
const DOWN_AFTER: Duration = Duration::from_millis(2_500);

struct Question {
    ix: usize,
    stream: TcpStream,
    asked: Instant,
}

/// A witness has taken a connection.
pub struct Answer {
    /// Index of the witness.
    pub ix: usize,
    /// When it was asked, which counts rather than when it answered.
    pub asked: Instant,
}

/// All witnesses.
pub struct Witnesses {
    from: IpAddr,
    addresses: Vec<SocketAddr>,
    patience: Duration,
    since: Instant,
    next: Instant,
    next_token: usize,
    questions: HashMap<usize, Question>,
    answered: Vec<Option<Instant>>,
}

impl Witnesses {
    /// Tokens from `first` upwards are used.
    pub fn new(
        now: Instant,
        first: usize,
        from: IpAddr,
        addresses: Vec<SocketAddr>,
        dead_after: Duration,
    ) -> Witnesses {
        Witnesses {
            from,
            answered: vec![None; addresses.len()],
            addresses,
            patience: dead_after,
            since: now,
            next: now,
            next_token: first,
            questions: HashMap::new(),
        }
    }

    /// Goes on with what `old` knew, after the configuration changed.
    pub fn carry(&mut self, old: Witnesses) {
        self.next_token = old.next_token;
        for (ix, address) in self.addresses.iter().enumerate() {
            if let Some(was) = old.addresses.iter().position(|o| o == address) {
                self.answered[ix] = old.answered[was];
                self.since = self.since.min(old.since);
            }
        }
    }

    /// Whether each has answered lately; `None` = it has not been asked long enough to tell.
    pub fn up(&self, now: Instant) -> impl Iterator<Item = (SocketAddr, Option<bool>)> {
        let lately = move |at: Instant| now.saturating_duration_since(at) < DOWN_AFTER;
        self.addresses.iter().zip(&self.answered).map(move |(address, at)| {
            let up = match at {
                Some(at) => Some(lately(*at)),
                None if lately(self.since) => None,
                None => Some(false),
            };
            (*address, up)
        })
    }

    /// Asks if it is time to; `calm` says that every node has been heard lately.
    pub fn tick(&mut self, registry: &Registry, now: Instant, calm: bool) {
        let patience = self.patience;
        self.questions
            .retain(|_, q| now.saturating_duration_since(q.asked) < patience);
        let period = if calm { CALM } else { patience / 5 };
        // When calm ends the next question is near, not up to a second away.
        self.next = self.next.min(now + period);
        if self.addresses.is_empty() || now < self.next {
            return;
        }
        self.next = now + period;
        for ix in 0..self.addresses.len() {
            if self.questions.values().filter(|q| q.ix == ix).count() >= ASKED_MAX {
                continue;
            }
            // No route, no port left: the next question may fare better.
            if let Ok(mut stream) = connect(Some(self.from), self.addresses[ix], patience) {
                let id = self.next_token;
                self.next_token += 1;
                if registry.register(&mut stream, Token(id), Interest::WRITABLE).is_ok() {
                    let question = Question { ix, stream, asked: now };
                    self.questions.insert(id, question);
                }
            }
        }
    }

    /// An event for one of our tokens.
    pub fn event(&mut self, token: Token, now: Instant, answers: &mut Vec<Answer>) {
        let Some(question) = self.questions.get(&token.0) else {
            return;
        };
        match question.stream.take_error() {
            Ok(None) if question.stream.peer_addr().is_ok() => {
                let (ix, asked) = (question.ix, question.asked);
                self.answered[ix] = Some(now);
                answers.push(Answer { ix, asked });
            }
            Ok(None) => return,
            // Refused, unreachable: no answer.
            _ => {}
        }
        // Closing the socket also ends its registration.
        self.questions.remove(&token.0);
    }
}
