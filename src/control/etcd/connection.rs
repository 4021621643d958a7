//! One endpoint: names to addresses, TCP, TLS, HTTP/1.1, and connections that are kept.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::pki_types::ServerName;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::config::model::EtcdEndpoint;

/// For one address of an endpoint to accept a connection.
const CONNECT: Duration = Duration::from_secs(1);
/// Connections that wait for the next question.
const IDLE_MAX: usize = 4;
/// Longest answer; etcd's own limit on a request is 1.5 MiB, and a range may hold many.
const ANSWER_MAX: usize = 64 << 20;
/// A connection on which nothing arrives is asked for a sign of life, and given up without one.
const SILENT: Duration = Duration::from_secs(10);

type Sender = SendRequest<Full<Bytes>>;

/// Why an endpoint did not answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// No connection: nothing was asked.
    Connect(String),
    /// It ended with the answer outstanding: what was asked may have been done.
    Lost(String),
}

pub(super) struct Connection {
    endpoint: EtcdEndpoint,
    tls: Option<Arc<rustls::ClientConfig>>,
    /// Addresses that the name had when a connection was made last, for when names cannot be looked up.
    known: Mutex<Vec<SocketAddr>>,
    idle: Mutex<Vec<Sender>>,
}

impl Connection {
    pub fn new(endpoint: EtcdEndpoint, tls: Option<Arc<rustls::ClientConfig>>) -> Connection {
        Connection {
            tls: tls.filter(|_| endpoint.tls),
            endpoint,
            known: Mutex::default(),
            idle: Mutex::default(),
        }
    }

    pub fn endpoint(&self) -> &EtcdEndpoint {
        &self.endpoint
    }

    /// Asks, and reads the whole answer: its HTTP status and its body.
    pub async fn ask(&self, path: &str, body: &Bytes, token: Option<&str>) -> Result<(u16, Bytes), Broken> {
        let (response, sender) = self.send(path, body, token).await?;
        let status = response.status().as_u16();
        let whole = Limited::new(response.into_body(), ANSWER_MAX).collect().await;
        let whole = whole.map_err(|e| Broken::Lost(e.to_string()))?.to_bytes();
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX && !sender.is_closed() {
            idle.push(sender);
        }
        Ok((status, whole))
    }

    /// Asks for an answer without an end. The connection is the answer's own, and ends with `Sender`.
    pub async fn stream(
        &self,
        path: &str,
        body: &Bytes,
        token: Option<&str>,
    ) -> Result<(Response<Incoming>, Sender), Broken> {
        let sender = self.connect().await.map_err(Broken::Connect)?;
        self.send_on(sender, path, body, token).await
    }

    async fn send(
        &self,
        path: &str,
        body: &Bytes,
        token: Option<&str>,
    ) -> Result<(Response<Incoming>, Sender), Broken> {
        // One that was kept may end at the very moment it is used; then the question goes over a fresh one.
        loop {
            let kept = self.idle.lock().pop();
            let Some(mut kept) = kept else { break };
            if kept.ready().await.is_ok()
                && let Ok(answered) = self.send_on(kept, path, body, token).await
            {
                return Ok(answered);
            }
        }
        let fresh = self.connect().await.map_err(Broken::Connect)?;
        self.send_on(fresh, path, body, token).await
    }

    async fn send_on(
        &self,
        mut sender: Sender,
        path: &str,
        body: &Bytes,
        token: Option<&str>,
    ) -> Result<(Response<Incoming>, Sender), Broken> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(path)
            .header(HOST, self.endpoint.authority())
            .header(CONTENT_TYPE, "application/json");
        if let Some(token) = token {
            request = request.header(AUTHORIZATION, token);
        }
        let request = request
            .body(Full::new(body.clone()))
            .map_err(|e| Broken::Connect(e.to_string()))?;
        let response = sender.send_request(request).await;
        Ok((response.map_err(|e| Broken::Lost(e.to_string()))?, sender))
    }

    async fn connect(&self) -> Result<Sender, String> {
        let stream = self.reach().await?;
        let Some(tls) = &self.tls else {
            return handshake(stream).await;
        };
        let name = ServerName::try_from(self.endpoint.host.clone()).map_err(|e| e.to_string())?;
        let secured = TlsConnector::from(tls.clone()).connect(name, stream).await;
        handshake(secured.map_err(|e| e.to_string())?).await
    }

    /// Addresses that worked come first, so that a name server that is down does no harm.
    async fn reach(&self) -> Result<TcpStream, String> {
        let mut tried = self.known.lock().clone();
        let mut why = String::new();
        for address in &tried {
            match open(*address).await {
                Ok(stream) => return Ok(stream),
                Err(e) => why = e,
            }
        }
        let looked_up = lookup_host((self.endpoint.host.as_str(), self.endpoint.port)).await;
        let found: Vec<SocketAddr> = looked_up.map_err(|e| e.to_string())?.collect();
        tried.retain(|address| found.contains(address));
        for address in found.iter().filter(|address| !tried.contains(address)) {
            match open(*address).await {
                Ok(stream) => {
                    *self.known.lock() = found;
                    return Ok(stream);
                }
                Err(e) => why = e,
            }
        }
        Err(why)
    }
}

async fn open(address: SocketAddr) -> Result<TcpStream, String> {
    let stream = timeout(CONNECT, TcpStream::connect(address))
        .await
        .map_err(|_| format!("{address}: no connection within {} ms", CONNECT.as_millis()))?
        .map_err(|e| format!("{address}: {e}"))?;
    let _ = stream.set_nodelay(true);
    let alive = TcpKeepalive::new()
        .with_time(SILENT)
        .with_interval(Duration::from_secs(3))
        .with_retries(3);
    let socket = SockRef::from(&stream);
    let _ = socket.set_tcp_keepalive(&alive);
    let _ = socket.set_tcp_user_timeout(Some(SILENT));
    Ok(stream)
}

async fn handshake(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) -> Result<Sender, String> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| e.to_string())?;
    // Ends with its sender, or with the server's end of it.
    tokio::spawn(connection);
    Ok(sender)
}
