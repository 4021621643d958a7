//! Why a backend is in its state: a [`Reason`], the same word in metrics, status and tests, and a [`Remark`] for people.

use std::borrow::Cow;
use std::fmt;

use crate::base::words;

words! {
    /// What real traffic sees of a backend that fails.
    pub enum FailureKind {
        /// Connection refused.
        Refused = "refused",
        /// No answer in time.
        TimedOut = "timed_out",
        /// Something here stood in the way: says nothing of the backend.
        LocalError = "local_error",
        /// Reset before the first byte.
        ResetEarly = "reset_early",
    }
}

words! {
    /// What probes, traffic, agents and orders can say.
    pub enum Reason {
        /// The pool has no probes.
        NotProbed = "not_probed",
        /// No probe has ended so far.
        NotProbedYet = "not_probed_yet",
        /// A probe has connected.
        ConnectOk = "connect_ok",
        /// The handshake of TLS is done.
        TlsOk = "tls_ok",
        /// What was expected has come.
        AnswerOk = "answer_ok",
        /// A status that was expected.
        HttpOk = "http_ok",
        /// Connection refused.
        Refused = "refused",
        /// Connection reset.
        Reset = "reset",
        /// The kernel gave up connecting, or real traffic had no answer.
        TimedOut = "timed_out",
        /// No route.
        Unreachable = "unreachable",
        /// A socket's mode, a firewall.
        Denied = "denied",
        /// No local port is free; says nothing of the backend.
        NoPorts = "no_ports",
        /// Out of descriptors or memory; says nothing of the backend.
        Exhausted = "exhausted",
        /// The prober does not keep up; says nothing of the backend.
        NotTried = "not_tried",
        /// Reset before the first byte, of real traffic.
        ResetEarly = "reset_early",
        /// Connection lost while sending.
        Lost = "lost",
        /// No answer in time.
        NoAnswer = "no_answer",
        /// Another answer than the expected one.
        Unexpected = "unexpected_answer",
        /// The backend has closed before all of the answer was there.
        Closed = "closed",
        /// A status that was not expected.
        HttpStatus = "http_status",
        /// What came is not HTTP.
        NotHttp = "not_http",
        /// The handshake failed, or the certificate is not believed.
        Tls = "tls",
        /// What an agent said.
        Agent = "agent",
        /// What an agent said is no line of one.
        NotAnAgent = "not_an_agent",
        /// An operator's order.
        Order = "order",
    }
}

impl Reason {
    /// What is said where there is nothing to add.
    const fn sentence(self) -> &'static str {
        match self {
            Reason::NotProbed => "not probed",
            Reason::NotProbedYet => "not probed yet",
            Reason::ConnectOk => "connect ok",
            Reason::TlsOk => "TLS ok",
            Reason::AnswerOk => "answer ok",
            Reason::HttpOk => "HTTP ok",
            Reason::Refused => "connection refused",
            Reason::Reset => "connection reset",
            Reason::TimedOut => "connection timed out",
            Reason::Unreachable => "no route to the backend",
            Reason::Denied => {
                "permission denied (EACCES): by the mode of the unix socket's file, a firewall or a `prohibit` route"
            }
            Reason::NoPorts => "no local port is free",
            Reason::Exhausted => "out of descriptors or memory",
            Reason::NotTried => "the prober does not keep up",
            Reason::ResetEarly => "reset before the first byte",
            Reason::Lost => "connection lost while sending",
            Reason::NoAnswer => "no answer in time",
            Reason::Unexpected => "unexpected answer",
            Reason::Closed => "closed without a word",
            Reason::HttpStatus => "unexpected HTTP status",
            Reason::NotHttp => "no HTTP answer",
            Reason::Tls => "TLS failed",
            Reason::Agent => "its agent says so",
            Reason::NotAnAgent => "no line of an agent",
            Reason::Order => "by order",
        }
    }

    /// With what there is to say beyond the word.
    pub fn says(self, text: impl Into<Cow<'static, str>>) -> Remark {
        Remark {
            reason: self,
            text: text.into(),
        }
    }
}

impl From<FailureKind> for Reason {
    fn from(kind: FailureKind) -> Reason {
        match kind {
            FailureKind::Refused => Reason::Refused,
            FailureKind::TimedOut => Reason::TimedOut,
            FailureKind::LocalError => Reason::Exhausted,
            FailureKind::ResetEarly => Reason::ResetEarly,
        }
    }
}

/// A reason in the words for people, which may say more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The reason as one word, for scripts.
    pub reason: Reason,
    text: Cow<'static, str>,
}

impl Remark {
    /// The reason as a sentence, for people.
    pub fn text(&self) -> &str {
        &self.text
    }
}

impl From<Reason> for Remark {
    fn from(reason: Reason) -> Remark {
        reason.says(reason.sentence())
    }
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seen to fail: a sentence that two reasons share.
    #[test]
    fn sentences_differ() {
        for (ix, reason) in Reason::ALL.iter().enumerate() {
            let others = Reason::ALL[..ix].iter().map(|other| other.sentence());
            assert!(others.into_iter().all(|other| other != reason.sentence()), "{reason}");
            assert_eq!(Remark::from(*reason).to_string(), reason.sentence());
        }
    }
}
