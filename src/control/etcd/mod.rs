//! A client of etcd, through the JSON gateway that every etcd 3.4 and later has: reading, transactions, leases, watches.
//!
//! # How it works
//! A question goes to the endpoint that answered last. If it cannot be reached, or says that it has no leader, the next one
//! is asked at once; if it is silent for [`Settings::hedge`], the next one is asked *beside* it. The first answer counts, and
//! its endpoint comes first from then on. So one stalled member costs that much and not a time-out.
//!
//! # What that means for who asks
//! * Every question ends within the patience given with it.
//! * A question may be carried out more than once, and after [`Error::TimedOut`] or [`Error::Lost`] it may have been carried
//!   out, or be so later. Transactions that this would hurt need conditions that make the second one fail.
//!
//! # What it never does
//! It reads no clock for anything but its time-outs, and no file after [`Settings::load`].

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use hyper::body::Bytes;
use parking_lot::Mutex;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::config::model::EtcdServers;
use crate::sys::secret;

mod connection;
pub mod watch;
pub mod wire;

use connection::{Broken, Connection};
use watch::Watch;
use wire::{Decided, Deleted, Done, Found, Keys, Lease, Refusal, Txn};

/// Largest file with keys or certificates.
const PEM_MAX: u64 = 1 << 20;

/// Characters of an answer that is none of etcd's, for people.
const SAID_MAX: usize = 200;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// No endpoint could be reached: nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// No answer in time: it may have been done.
    #[error("no answer within {} ms", .0.as_millis())]
    TimedOut(Duration),
    /// The connection ended before the answer: it may have been done.
    #[error("{0}")]
    Lost(String),
    /// etcd says no; nothing was done, unless it says that it did not finish in time.
    #[error("etcd refuses: {message}")]
    Refused {
        /// gRPC's number for it.
        code: i64,
        /// The message that etcd gave.
        message: String,
    },
    /// What came is not what etcd says.
    #[error("not an answer of etcd: {0}")]
    Garbled(String),
}

impl Error {
    /// A lease with this number is not there (any more).
    pub fn no_such_lease(&self) -> bool {
        matches!(self, Error::Refused { code: 5, .. })
    }

    /// Another member may know better: this one has no leader, or is not in step.
    fn elsewhere(&self) -> bool {
        match self {
            Error::Unreachable(_) | Error::Lost(_) | Error::Garbled(_) | Error::TimedOut(_) => true,
            // Deadline exceeded, aborted, internal, unavailable.
            Error::Refused { code, .. } => matches!(code, 4 | 10 | 13 | 14),
        }
    }

    /// The token has run out, or users were changed since it was given.
    fn unknown_token(&self) -> bool {
        match self {
            Error::Refused { code: 16, .. } => true,
            Error::Refused { message, .. } => message.contains("revision of auth store is old"),
            _ => false,
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        Error::Refused {
            code: refusal.code,
            message: refusal.message,
        }
    }
}

/// How to reach a cluster, with all files read.
#[derive(Clone)]
pub struct Settings {
    servers: EtcdServers,
    tls: Option<Arc<ClientConfig>>,
    password: Option<String>,
    /// Silence of an endpoint after which the next one is asked as well.
    pub hedge: Duration,
}

impl Settings {
    /// Reads certificates, keys and the password.
    ///
    /// # Errors
    /// In words: a file is missing, not what it should be, or readable by others.
    pub fn load(servers: &EtcdServers) -> Result<Settings, String> {
        let tls = match servers.endpoints.iter().any(|endpoint| endpoint.tls) {
            true => Some(Arc::new(tls(servers)?)),
            false => None,
        };
        let password = match &servers.password_file {
            None => None,
            Some(file) => {
                let bytes = secret::read_private(file, secret::SECRET_MAX)?;
                let text = str::from_utf8(bytes.trim_ascii_end());
                let text = text.map_err(|_| format!("{}: not text in UTF-8", file.display()))?;
                if text.is_empty() {
                    return Err(format!("{}: empty", file.display()));
                }
                Some(text.to_owned())
            }
        };
        Ok(Settings {
            servers: servers.clone(),
            tls,
            password,
            hedge: Duration::from_millis(300),
        })
    }
}

fn tls(servers: &EtcdServers) -> Result<ClientConfig, String> {
    let file = |path: &Path, why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let ca = servers.ca.as_deref().ok_or("https endpoints need `ca`")?;
    let mut roots = RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).map_err(|e| file(ca, &e))?;
    }
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots);
    match (&servers.cert, &servers.key) {
        (Some(cert), Some(key)) => {
            let chain = certificates(cert)?;
            let pem = secret::read_private(key, PEM_MAX)?;
            let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|e| file(key, &e))?;
            builder.with_client_auth_cert(chain, private).map_err(|e| file(key, &e))
        }
        _ => Ok(builder.with_no_client_auth()),
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let file = |why: &dyn std::fmt::Display| format!("{}: {why}", path.display());
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).map_err(|e| file(&e))?.collect();
    let all = all.map_err(|e| file(&e))?;
    match all.is_empty() {
        true => Err(file(&"no certificate in it (PEM is expected)")),
        false => Ok(all),
    }
}

/// A client. Copies share connections, the endpoint that comes first, and the token.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

struct Shared {
    endpoints: Vec<Connection>,
    /// The endpoint that answered last.
    first: AtomicUsize,
    login: Option<(String, String)>,
    token: Mutex<Option<Arc<str>>>,
    hedge: Duration,
}

impl Client {
    /// Connects to nothing yet. To be used within a runtime of tokio.
    pub fn new(settings: &Settings) -> Client {
        let servers = &settings.servers;
        let endpoints = servers.endpoints.iter();
        Client {
            shared: Arc::new(Shared {
                endpoints: endpoints
                    .map(|endpoint| Connection::new(endpoint.clone(), settings.tls.clone()))
                    .collect(),
                first: AtomicUsize::new(0),
                login: servers.user.clone().zip(settings.password.clone()),
                token: Mutex::new(None),
                hedge: settings.hedge,
            }),
        }
    }

    /// Reads keys: linearizable, so a majority of members has confirmed that nothing newer is known.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn get(&self, keys: &Keys, patience: Duration) -> Result<Found, Error> {
        self.ask("/v3/kv/range", keys.body(), patience).await
    }

    /// Writes a key; the lease 0 is none.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn put(&self, key: &[u8], value: &[u8], lease: i64, patience: Duration) -> Result<Done, Error> {
        self.ask("/v3/kv/put", wire::put(key, value, lease), patience).await
    }

    /// Removes keys.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn delete(&self, keys: &Keys, patience: Duration) -> Result<Deleted, Error> {
        self.ask("/v3/kv/deleterange", keys.body(), patience).await
    }

    /// Carries out a transaction.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn txn(&self, txn: &Txn, patience: Duration) -> Result<Decided, Error> {
        self.ask("/v3/kv/txn", txn.body(), patience).await
    }

    /// Makes a lease with a number that was drawn for it, so that a question that is carried out twice makes one lease.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn grant(&self, id: i64, ttl_s: i64, patience: Duration) -> Result<Lease, Error> {
        let body = json!({"ID": id.to_string(), "TTL": ttl_s.to_string()});
        match self.ask("/v3/lease/grant", body, patience).await {
            Err(Error::Refused { message, .. }) if message.ends_with("lease already exists") => Ok(Lease { id, ttl_s }),
            other => other,
        }
    }

    /// Makes a lease fresh; none if it is gone.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn keep_alive(&self, id: i64, patience: Duration) -> Result<Option<Lease>, Error> {
        let body = json!({"ID": id.to_string()});
        let answer: Value = self.ask("/v3/lease/keepalive", body, patience).await?;
        // One message of a stream that the gateway ends with the question.
        let lease = serde_json::from_value::<Lease>(answer["result"].clone());
        let lease = lease.map_err(|e| Error::Garbled(e.to_string()))?;
        Ok((lease.ttl_s > 0).then_some(lease))
    }

    /// Ends a lease, and with it the keys that go with it. One that is gone already is as good.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn revoke(&self, id: i64, patience: Duration) -> Result<(), Error> {
        let body = json!({"ID": id.to_string()});
        match self.ask::<Done>("/v3/lease/revoke", body, patience).await {
            Err(e) if !e.no_such_lease() => Err(e),
            _ => Ok(()),
        }
    }

    /// Watches keys from a revision on; `patience` is for the beginning.
    ///
    /// # Errors
    /// [`Error`].
    pub async fn watch(&self, keys: &Keys, from_revision: i64, patience: Duration) -> Result<Watch, Error> {
        let mut request = keys.body();
        request["start_revision"] = json!(from_revision.to_string());
        request["progress_notify"] = json!(true);
        let body = Bytes::from(json!({ "create_request": request }).to_string());
        timeout(patience, self.shared.watch(&body))
            .await
            .unwrap_or(Err(Error::TimedOut(patience)))
    }

    /// The endpoint that answered last.
    pub fn endpoint(&self) -> String {
        let shared = &self.shared;
        shared.endpoints[shared.first.load(Ordering::Relaxed)]
            .endpoint()
            .to_string()
    }

    async fn ask<T: DeserializeOwned>(&self, path: &'static str, body: Value, patience: Duration) -> Result<T, Error> {
        let body = Bytes::from(body.to_string());
        let answer = timeout(patience, race(&self.shared, path, &body)).await;
        let answer = answer.unwrap_or(Err(Error::TimedOut(patience)))?;
        serde_json::from_slice(&answer).map_err(|e| Error::Garbled(e.to_string()))
    }
}

/// Asks one endpoint after the other, each beside those that are silent, until one answers or all have failed.
async fn race(shared: &Arc<Shared>, path: &'static str, body: &Bytes) -> Result<Bytes, Error> {
    let count = shared.endpoints.len();
    let first = shared.first.load(Ordering::Relaxed);
    let mut order = (0..count).map(|i| (first + i) % count);
    let mut asked: JoinSet<(usize, Result<Bytes, Error>)> = JoinSet::new();
    let mut failed = Error::Unreachable("no endpoints".into());
    let mut next = order.next();
    loop {
        if let Some(ix) = next.take() {
            let (shared, body) = (shared.clone(), body.clone());
            asked.spawn(async move { (ix, shared.ask(ix, path, &body).await) });
        }
        tokio::select! {
            Some(Ok((ix, result))) = asked.join_next() => match result {
                Err(error) if error.elsewhere() => {
                    failed = error;
                    next = order.next();
                    if next.is_none() && asked.is_empty() {
                        return Err(failed);
                    }
                }
                decided => {
                    shared.first.store(ix, Ordering::Relaxed);
                    return decided;
                }
            },
            () = sleep(shared.hedge) => next = order.next(),
            else => return Err(failed),
        }
    }
}

impl Shared {
    /// One endpoint, with a fresh token if the old one is not known any more.
    async fn ask(&self, ix: usize, path: &str, body: &Bytes) -> Result<Bytes, Error> {
        let token = self.token(ix).await?;
        match self.ask_with(ix, path, body, token.as_deref()).await {
            Err(error) if token.is_some() && error.unknown_token() => {
                self.forget(token);
                let token = self.token(ix).await?;
                self.ask_with(ix, path, body, token.as_deref()).await
            }
            other => other,
        }
    }

    async fn ask_with(&self, ix: usize, path: &str, body: &Bytes, token: Option<&str>) -> Result<Bytes, Error> {
        let connection = &self.endpoints[ix];
        let (status, answer) = connection
            .ask(path, body, token)
            .await
            .map_err(|broken| self.words(ix, broken))?;
        match status {
            200 => Ok(answer),
            status => Err(refusal(connection, status, &answer)),
        }
    }

    async fn watch(&self, body: &Bytes) -> Result<Watch, Error> {
        let count = self.endpoints.len();
        let first = self.first.load(Ordering::Relaxed);
        let mut failed = Error::Unreachable("no endpoints".into());
        for ix in (0..count).map(|i| (first + i) % count) {
            let token = match self.token(ix).await {
                Ok(token) => token,
                Err(error) => {
                    failed = error;
                    continue;
                }
            };
            let connection = &self.endpoints[ix];
            match connection.stream("/v3/watch", body, token.as_deref()).await {
                Ok((response, sender)) if response.status().as_u16() == 200 => {
                    return Ok(Watch::new(response.into_body(), sender));
                }
                Ok((response, _)) => {
                    self.forget(token);
                    failed = refusal(connection, response.status().as_u16(), b"");
                }
                Err(broken) => failed = self.words(ix, broken),
            }
        }
        Err(failed)
    }

    /// The token, asked for if there is none; none without a user.
    async fn token(&self, ix: usize) -> Result<Option<Arc<str>>, Error> {
        let Some((user, password)) = &self.login else {
            return Ok(None);
        };
        if let Some(token) = self.token.lock().clone() {
            return Ok(Some(token));
        }
        let body = Bytes::from(json!({"name": user, "password": password}).to_string());
        let answer = self.ask_with(ix, "/v3/auth/authenticate", &body, None).await?;
        let answer: Value = serde_json::from_slice(&answer).map_err(|e| Error::Garbled(e.to_string()))?;
        let token: Arc<str> = answer["token"].as_str().unwrap_or_default().into();
        *self.token.lock() = Some(token.clone());
        Ok(Some(token))
    }

    /// Unless somebody else has renewed it already.
    fn forget(&self, token: Option<Arc<str>>) {
        let mut present = self.token.lock();
        if *present == token {
            *present = None;
        }
    }

    fn words(&self, ix: usize, broken: Broken) -> Error {
        let endpoint = self.endpoints[ix].endpoint();
        match broken {
            Broken::Connect(why) => Error::Unreachable(format!("{endpoint}: {why}")),
            Broken::Lost(why) => Error::Lost(format!("{endpoint}: {why}")),
        }
    }
}

fn refusal(connection: &Connection, status: u16, answer: &[u8]) -> Error {
    match serde_json::from_slice::<Refusal>(answer) {
        Ok(refusal) if refusal.code != 0 => refusal.into(),
        // Proxies, and etcd's own gateway, also refuse in plain text.
        _ => {
            let said: String = String::from_utf8_lossy(answer).trim().chars().take(SAID_MAX).collect();
            Error::Garbled(format!("{}: HTTP status {status}: {said}", connection.endpoint()))
        }
    }
}

#[cfg(test)]
mod tests;
