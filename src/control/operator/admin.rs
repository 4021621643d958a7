//! The admin socket; [`question`](crate::api::question) is what is said on it.
//!
//! A client may ask any number of questions, one after the other. Who may connect is decided by the socket file: mode 0660.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::sys::stat::{Mode, fchmod};
use serde_json::{Value, json};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};

use super::ask::{ANSWER_MAX, Asker};
use super::clients::{self, Clients, Use};
use super::history::History;
use crate::api::question::{QUESTION_BYTES, Question, Refusal};
use crate::control::events::{self, FOLLOWERS_MAX, Follower};
use crate::control::request::Request;

/// Clients at once.
const CLIENTS_MAX: usize = 32;
const _: () = assert!(FOLLOWERS_MAX < CLIENTS_MAX, "followers keep their places");
/// Connections listed at most.
const CONNECTIONS_MAX: usize = 100_000;
/// How long a client may think.
const THINK_MAX: Duration = Duration::from_secs(60);
/// How long a client may take to read an answer.
const READ_MAX: Duration = Duration::from_secs(10);
/// How long a reload may take.
const RELOAD_MAX: Duration = Duration::from_secs(120);
/// How long an upgrade may take: longer than all of its steps.
const UPGRADE_MAX: Duration = Duration::from_secs(60);
/// How long another process that starts at this moment is waited for.
const LOCK_MAX: Duration = Duration::from_secs(2);

/// What the socket is called between the processes of an upgrade.
pub fn inherited_name(path: &Path) -> String {
    format!("admin {}", path.display())
}

/// Binds the admin socket with mode 0660. Its directory is made if it is missing; a socket file that nobody listens on any
/// more is replaced. An error is a sentence with the path in it; if another process listens there it names that one.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    bind_inner(path).map_err(|error| io::Error::new(error.kind(), format!("admin socket {}: {error}", path.display())))
}

fn bind_inner(path: &Path) -> io::Result<UnixListener> {
    let directory = match path.parent() {
        Some(parent) if parent != Path::new("") => parent.to_path_buf(),
        _ => PathBuf::from("."),
    };
    if !directory.exists() {
        std::fs::create_dir(&directory)?;
    }
    // Two processes that start at once must not both find the same stale file and replace each other's socket.
    let _alone = lock(&directory)?;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io::Error::new(ErrorKind::AlreadyExists, "exists and is not a socket"));
        }
        match UnixStream::connect(path) {
            Ok(stream) => {
                let who = match getsockopt(&stream, PeerCredentials) {
                    Ok(peer) if peer.pid() > 0 => format!(" (pid {})", peer.pid()),
                    _ => String::new(),
                };
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    format!("another weir{who} is running there"),
                ));
            }
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path)?;
            }
            Err(error) => return Err(error),
        }
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // Before bind, so that at no moment more is allowed; the umask may take more away, which is then given back.
    fchmod(&socket, Mode::from_bits_truncate(0o660))?;
    socket.bind(&SockAddr::unix(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660))?;
    socket.listen(64)?;
    Ok(UnixListener::from(std::os::fd::OwnedFd::from(socket)))
}

fn lock(directory: &Path) -> io::Result<Flock<File>> {
    let mut file = File::open(directory)?;
    let started = std::time::Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK)) if started.elapsed() < LOCK_MAX => {
                file = back;
                std::thread::sleep(Duration::from_millis(5));
            }
            Err((_, nix::Error::EWOULDBLOCK)) => {
                return Err(io::Error::new(
                    ErrorKind::AddrInUse,
                    format!("another process keeps {} locked", directory.display()),
                ));
            }
            Err((_, error)) => return Err(error.into()),
        }
    }
}

/// Removes the socket file. Not for a process that has handed the socket over: its successor serves there.
pub fn remove(listener: &UnixListener) {
    if let Ok(address) = listener.local_addr()
        && let Some(path) = address.as_pathname()
    {
        let _ = std::fs::remove_file(path);
    }
}

/// Serves clients for ever.
pub(super) async fn serve(listener: tokio::net::UnixListener, asker: Asker, history: Rc<RefCell<History>>) {
    let clients = Rc::new(RefCell::new(Clients::default()));
    let accept = async || Ok(listener.accept().await?.0);
    clients::accept(accept, |stream| {
        let (asker, history) = (asker.clone(), history.clone());
        Clients::serve(&clients, CLIENTS_MAX, |held| async move {
            let (reader, mut writer) = stream.into_split();
            let mut reader = BufReader::new(reader);
            loop {
                let mut line = Vec::new();
                let mut bounded = (&mut reader).take(QUESTION_BYTES);
                let read = bounded.read_until(b'\n', &mut line);
                match tokio::time::timeout(THINK_MAX, read).await {
                    Ok(Ok(n)) if n > 0 => {}
                    _ => return,
                }
                held.set(Use::Answer);
                let question = read_question(&line);
                let _owed = matches!(question, Ok(Question::Upgrade)).then(|| asker.owe());
                let answer = match question {
                    Ok(Question::Events) => match events::follow() {
                        Ok(follower) => {
                            held.set(Use::Follow);
                            return follow(reader, writer, follower).await;
                        }
                        Err(why) => Err(why.into()),
                    },
                    Ok(question) => answer(question, &asker, &history).await,
                    Err(refusal) => Err(refusal),
                };
                let mut answer = match answer {
                    Ok(value) => json!({ "ok": value }),
                    Err(Refusal { cause, reason }) => json!({ "error": reason, "cause": cause }),
                }
                .to_string();
                answer.push('\n');
                let written = writer.write_all(answer.as_bytes());
                match tokio::time::timeout(READ_MAX, written).await {
                    Ok(Ok(())) if line.ends_with(b"\n") => held.set(Use::Idle),
                    _ => return,
                }
            }
        });
    })
    .await;
}

fn read_question(line: &[u8]) -> Result<Question, Refusal> {
    match line.ends_with(b"\n") {
        true => Ok(serde_json::from_slice(line).map_err(|error| format!("not a question: {error}"))?),
        false => Err(format!("a question ends with a line feed within {QUESTION_BYTES} bytes").into()),
    }
}

/// Sends events until they end or the client goes. However slowly it reads: what it has not read yet is in its own queue.
async fn follow(mut reader: impl AsyncRead + Unpin, mut writer: impl AsyncWrite + Unpin, follower: Follower) {
    let mut text = format!("{}\n", json!({"ok": "following"}));
    loop {
        if writer.write_all(text.as_bytes()).await.is_err() {
            return;
        }
        let mut unasked = [0; 64];
        text = tokio::select! {
            told = follower.next() => match told {
                Some(text) => text,
                None => return,
            },
            read = reader.read(&mut unasked) => match read {
                Ok(1..) => String::new(),
                _ => return,
            },
        };
    }
}

async fn answer(question: Question, asker: &Asker, history: &Rc<RefCell<History>>) -> Result<Value, Refusal> {
    match question {
        Question::Events => Err("events are followed on a connection of their own".to_string().into()),
        Question::Status => Ok(asker.ask(ANSWER_MAX, |reply| Request::Status { reply }).await?),
        Question::Conns { limit } => {
            let limit = limit.min(CONNECTIONS_MAX);
            let request = |reply| Request::Connections { limit, reply };
            let live = asker.ask(ANSWER_MAX, request).await?;
            Ok(serde_json::to_value(live).map_err(|error| error.to_string())?)
        }
        Question::Kill { id } => match asker.ask(ANSWER_MAX, |reply| Request::Kill { id, reply }).await? {
            true => Ok(format!("{id} is ended").into()),
            false => Err(format!("no connection or session has the id {id}").into()),
        },
        Question::Backend {
            pool,
            name,
            order,
            keep,
        } => {
            let request = |reply| Request::Backend {
                pool,
                name,
                order,
                keep,
                reply,
            };
            Ok(asker.ask(ANSWER_MAX, request).await??.into())
        }
        Question::BackendAdd {
            pool,
            address,
            weight,
            keep,
        } => {
            let request = |reply| Request::BackendAdd {
                pool,
                address,
                weight,
                keep,
                reply,
            };
            Ok(asker.ask(ANSWER_MAX, request).await??.into())
        }
        Question::BackendRemove { pool, name, keep } => {
            let request = |reply| Request::BackendRemove {
                pool,
                name,
                keep,
                reply,
            };
            Ok(asker.ask(ANSWER_MAX, request).await??.into())
        }
        Question::Vip { address, order } => {
            let request = |reply| Request::Vip { address, order, reply };
            Ok(asker.ask(ANSWER_MAX, request).await??.into())
        }
        Question::Reload => Ok(asker.ask(RELOAD_MAX, |reply| Request::Reload { reply }).await??.into()),
        Question::Upgrade => Ok(asker
            .ask(UPGRADE_MAX, |reply| Request::Upgrade { reply })
            .await??
            .into()),
        Question::Dump => Ok(asker.ask(ANSWER_MAX, |reply| Request::Dump { reply }).await?.into()),
        Question::Metrics => Ok(asker.ask(ANSWER_MAX, |reply| Request::Metrics { reply }).await?.into()),
        Question::Health => {
            asker.ask(ANSWER_MAX, |reply| Request::Health { reply }).await??;
            Ok("ok".into())
        }
        Question::History { since } => Ok(history.borrow().since(since)),
    }
}
