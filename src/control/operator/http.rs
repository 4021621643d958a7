//! HTTP, read-only: the page, what it is drawn from, and what monitoring asks for.
//!
//! | path | answer |
//! |---|---|
//! | `/` | the page, with `/page.css` and `/page.js`; nothing is fetched from elsewhere |
//! | `/metrics` | Prometheus text |
//! | `/status` | the document of `weir status --json` |
//! | `/history?since=N` | the last minutes, for the graphs |
//! | `/healthz` | 200 while all workers turn and all listeners are bound, else 503 and the reason |
//!
//! [`super::observer`] says what a slow or hostile client can do: nothing.

use std::cell::RefCell;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderName, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request as HttpRequest, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::ask::{ANSWER_MAX, Asker, Coalesced};
use super::clients::{self, Clients, Held, Use};
use super::history::History;
use crate::api::question::Refusal;
use crate::control::request::Request;

/// Clients at once.
const CLIENTS_MAX: usize = 128;
/// For the head of a request, and for idling before the next one.
const HEAD_MAX: Duration = Duration::from_secs(5);
/// Bytes of the head of a request.
const HEAD_BYTES: usize = 16 << 10;
/// Header fields of a request.
const FIELDS_MAX: usize = 64;
/// Life of a connection; then it may finish what it does.
const LIFE_MAX: Duration = Duration::from_secs(60);
/// How long it may take over that.
const FINISH_MAX: Duration = Duration::from_secs(5);

const HTML: &str = "text/html; charset=utf-8";
const CSS: &str = "text/css; charset=utf-8";
const JS: &str = "text/javascript; charset=utf-8";
const JSON: &str = "application/json";
const TEXT: &str = "text/plain; charset=utf-8";
const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The page loads nothing from elsewhere, sends nothing anywhere and cannot be framed.
const FIELDS: [(HeaderName, HeaderValue); 6] = [
    (
        header::CONTENT_SECURITY_POLICY,
        HeaderValue::from_static(
            "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; \
             base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        ),
    ),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    (header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY")),
    (header::REFERRER_POLICY, HeaderValue::from_static("no-referrer")),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    (
        HeaderName::from_static("cross-origin-resource-policy"),
        HeaderValue::from_static("same-origin"),
    ),
];

/// What the socket is called between the processes of an upgrade.
pub fn inherited_name(address: Option<SocketAddr>) -> String {
    address.map_or_else(String::new, |address| format!("metrics {address}"))
}

/// Binds the address for HTTP.
pub fn bind(address: SocketAddr) -> Result<std::net::TcpListener, Refusal> {
    std::net::TcpListener::bind(address).map_err(|error| format!("metrics: cannot bind {address}: {error}").into())
}

/// What answers are made from.
struct Site {
    status: Coalesced<Bytes>,
    metrics: Coalesced<Bytes>,
    health: Coalesced<()>,
    history: Rc<RefCell<History>>,
}

impl Site {
    fn new(asker: Asker, history: Rc<RefCell<History>>) -> Site {
        let (of_status, of_metrics, of_health) = (asker.clone(), asker.clone(), asker);
        Site {
            status: Coalesced::new(move || {
                let asker = of_status.clone();
                async move {
                    let status = asker.ask(ANSWER_MAX, |reply| Request::Status { reply }).await?;
                    Ok(status.to_string().into())
                }
            }),
            metrics: Coalesced::new(move || {
                let asker = of_metrics.clone();
                async move {
                    let text = asker.ask(ANSWER_MAX, |reply| Request::Metrics { reply }).await?;
                    Ok(text.into())
                }
            }),
            health: Coalesced::new(move || {
                let asker = of_health.clone();
                async move { asker.ask(ANSWER_MAX, |reply| Request::Health { reply }).await? }
            }),
            history,
        }
    }

    async fn answer(&self, request: &HttpRequest<Incoming>) -> Response<Full<Bytes>> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n".into());
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
            return response;
        }
        let found = match request.uri().path() {
            "/" => Ok((HTML, Bytes::from_static(include_bytes!("page/index.html")))),
            "/page.css" => Ok((CSS, Bytes::from_static(include_bytes!("page/page.css")))),
            "/page.js" => Ok((JS, Bytes::from_static(include_bytes!("page/page.js")))),
            "/status" => self.status.ask().await.map(|body| (JSON, body)),
            "/metrics" => self.metrics.ask().await.map(|body| (PROMETHEUS, body)),
            "/healthz" => self.health.ask().await.map(|()| (TEXT, "ok\n".into())),
            "/history" => Ok((JSON, self.history(request.uri().query()))),
            _ => return respond(StatusCode::NOT_FOUND, TEXT, "not found\n".into()),
        };
        match found {
            Ok((kind, body)) => respond(StatusCode::OK, kind, body),
            Err(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n").into()),
        }
    }

    fn history(&self, query: Option<&str>) -> Bytes {
        let since = query
            .and_then(|query| query.strip_prefix("since="))
            .and_then(|since| since.parse().ok())
            .unwrap_or(0);
        self.history.borrow_mut().text_since(since)
    }
}

fn respond(status: StatusCode, kind: &'static str, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.extend(FIELDS);
    response
}

/// Serves clients for ever.
pub(super) async fn serve(listener: TcpListener, asker: Asker, history: Rc<RefCell<History>>) {
    let site = Rc::new(Site::new(asker, history));
    let clients = Rc::new(RefCell::new(Clients::default()));
    let accept = async || Ok(listener.accept().await?.0);
    clients::accept(accept, |stream| {
        let site = site.clone();
        Clients::serve(&clients, CLIENTS_MAX, |held| client(stream, held, site));
    })
    .await;
}

async fn client(stream: TcpStream, held: Rc<Held>, site: Rc<Site>) {
    let service = service_fn(|request| {
        let (held, site) = (held.clone(), site.clone());
        async move {
            held.set(Use::Answer);
            let response = site.answer(&request).await;
            // A client that reads its answer slowly counts as idle again, from now.
            held.set(Use::Idle);
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_MAX)
        .max_buf_size(HEAD_BYTES)
        .max_headers(FIELDS_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = pin!(connection);
    tokio::select! {
        _ = &mut connection => return,
        () = tokio::time::sleep(LIFE_MAX) => connection.as_mut().graceful_shutdown(),
    }
    // Errors are the client's business.
    let _ = tokio::time::timeout(FINISH_MAX, connection).await;
}
