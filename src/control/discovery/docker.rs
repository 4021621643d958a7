//! `{docker: {label: ..., port: ...}}`: running containers with a label, by the API of Docker's engine on its unix socket.
//!
//! The engine's events say *when* to look, its list says what is there: so an event that is missed or not understood costs time and
//! nothing else. Two questions of an API that has not changed in ten years are asked with the HTTP client that is here already,
//! rather than with a crate that knows all of them.

use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Request, Response, header};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::{Shared, Source, Tell};
use crate::config::model::MemberDefaults;
use crate::discovery::{Heard, containers};

/// How long the engine may take to answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// Looked at without an event.
const LOOK: Duration = Duration::from_secs(15);
/// Events that come in a row are one, if there are not too many of them: an engine may never be silent.
const SETTLE: Duration = Duration::from_millis(10);
/// Events that are taken as one at most.
const SETTLE_MAX: usize = 20;
/// Pause before the engine is tried again.
const AGAIN: Duration = Duration::from_secs(1);
/// Most bytes of a list of containers.
const LIST_MAX: usize = 16 << 20;

type Question = SendRequest<Empty<Bytes>>;

/// A source that watches containers with a label.
pub struct Docker {
    /// `KEY` or `KEY=VALUE`.
    pub label: String,
    /// Port of the members.
    pub port: u16,
    /// The network in which they have their addresses; `None` = any.
    pub network: Option<String>,
    /// The engine's socket.
    pub socket: PathBuf,
    /// What the engine does not say of a member.
    pub like: MemberDefaults,
}

impl Source for Docker {
    fn watch(self: Box<Self>, tell: Tell, _: Rc<Shared>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            loop {
                let Err(error) = self.follow(&tell).await;
                tell.hear(Heard::Failed(format!("{}: {error}", self.socket.display())))
                    .await;
                tokio::time::sleep(AGAIN).await;
            }
        })
    }
}

impl Docker {
    /// Lists and listens until something is in the way.
    async fn follow(&self, tell: &Tell) -> Result<std::convert::Infallible, String> {
        let label = serde_json::json!([self.label]);
        let events = serde_json::json!({"type": ["container"], "label": label});
        // First: what happens after the list has been made is heard of.
        let mut stream = self.ask("/events", &events).await?.into_body();
        loop {
            let wanted = serde_json::json!({"label": label, "status": ["running"]});
            let answer = self.ask("/containers/json", &wanted).await?.into_body();
            let list = timeout(PATIENCE, Limited::new(answer, LIST_MAX).collect()).await;
            let list = list.map_err(|_| "the list does not end".to_string())?;
            let list = list.map_err(|error| format!("the list: {error}"))?.to_bytes();
            tell.hear(containers::members(
                &list,
                self.port,
                self.network.as_deref(),
                &self.like,
            ))
            .await;
            match timeout(LOOK, stream.frame()).await {
                Err(_) => {}
                Ok(Some(Ok(_))) => {
                    for _ in 0..SETTLE_MAX {
                        let Ok(Some(Ok(_))) = timeout(SETTLE, stream.frame()).await else {
                            break;
                        };
                    }
                }
                Ok(Some(Err(error))) => return Err(format!("its events: {error}")),
                Ok(None) => return Err("its events have ended: it is being restarted".into()),
            }
        }
    }

    async fn ask(&self, path: &str, filters: &serde_json::Value) -> Result<Response<Incoming>, String> {
        let uri = format!("{path}?filters={}", escaped(&filters.to_string()));
        let request = Request::get(uri).header(header::HOST, "docker").body(Empty::new());
        let request = request.map_err(|error| error.to_string())?;
        let answer = timeout(PATIENCE, async {
            let mut question = self.connect().await?;
            question.send_request(request).await.map_err(|error| error.to_string())
        });
        let answer = answer
            .await
            .map_err(|_| format!("no answer within {} s", PATIENCE.as_secs()))??;
        match answer.status().is_success() {
            true => Ok(answer),
            false => Err(format!("{path}: HTTP status {}", answer.status())),
        }
    }

    async fn connect(&self) -> Result<Question, String> {
        let stream = UnixStream::connect(&self.socket)
            .await
            .map_err(|error| error.to_string())?;
        let (question, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| error.to_string())?;
        // Ends with the answer, or with the engine's end of it.
        tokio::spawn(connection);
        Ok(question)
    }
}

/// The text as it stands in a query.
fn escaped(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    let one = |byte: u8| match plain(byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    text.bytes().map(one).collect()
}
