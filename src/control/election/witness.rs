//! Asking the witnesses: a TCP endpoint votes by accepting a connection, which is closed at once.
//!
//! A vote counts for `dead_after`, so that a cut-off node loses it as fast as it loses its peers. While every node is heard no
//! vote is needed, and witnesses are asked once a second; otherwise three times in `dead_after`, because one lost SYN would
//! take the kernel a second to send again.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use mio::net::TcpStream;
use mio::{Interest, Registry, Token};

use super::links::connect;

/// Period while nothing is in doubt.
const CALM: Duration = Duration::from_secs(1);
/// Questions to one witness that may be under way.
const ASKED_MAX: usize = 4;

struct Question {
    ix: usize,
    stream: TcpStream,
    asked: Instant,
}

/// All witnesses.
pub struct Witnesses {
    from: IpAddr,
    addresses: Vec<SocketAddr>,
    patience: Duration,
    next: Instant,
    next_token: usize,
    questions: HashMap<usize, Question>,
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
            addresses,
            patience: dead_after,
            next: now,
            next_token: first,
            questions: HashMap::new(),
        }
    }

    /// Asks if it is time to; `calm` says that every node is heard.
    pub fn tick(&mut self, registry: &Registry, now: Instant, calm: bool, answers: &mut Vec<(usize, bool)>) {
        let patience = self.patience;
        self.questions
            .retain(|_, q| now.saturating_duration_since(q.asked) < patience);
        let period = if calm { CALM } else { patience / 3 };
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
            match connect(self.from, self.addresses[ix], patience) {
                Ok(mut stream) => {
                    let id = self.next_token;
                    self.next_token += 1;
                    if registry.register(&mut stream, Token(id), Interest::WRITABLE).is_ok() {
                        let question = Question { ix, stream, asked: now };
                        self.questions.insert(id, question);
                    }
                }
                Err(_) => answers.push((ix, false)),
            }
        }
    }

    /// An event for one of our tokens.
    pub fn event(&mut self, token: Token, answers: &mut Vec<(usize, bool)>) {
        let Some(question) = self.questions.get(&token.0) else {
            return;
        };
        let answered = match question.stream.take_error() {
            Ok(None) if question.stream.peer_addr().is_ok() => true,
            Ok(None) => return,
            _ => false,
        };
        answers.push((question.ix, answered));
        // Closing the socket also ends its registration.
        self.questions.remove(&token.0);
    }
}
