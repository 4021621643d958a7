//! Talking to a running weir over its admin socket.

use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::table;
use crate::api::question::{DEFAULT_PATH, Question};
use crate::api::question::{Refusal, RefusalCause};
use crate::app::EXIT_CONFIG;

/// Longer than the other side waits for its control thread, so that its sentence arrives.
const ANSWER_MAX: Duration = Duration::from_secs(7);
const RELOAD_MAX: Duration = Duration::from_secs(125);
const UPGRADE_MAX: Duration = Duration::from_secs(65);

/// Options of every command that asks a running weir.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Admin socket of the running weir.
    #[arg(long, global = true, value_name = "PATH", default_value = DEFAULT_PATH)]
    pub socket: PathBuf,
    /// Print JSON.
    #[arg(long, global = true)]
    pub json: bool,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No process answers at this path.
    #[error("weir is not running: nothing answers at {}{}", .0.display(), elsewhere(.0))]
    NotRunning(PathBuf),
    /// Not ours to use.
    #[error("not permitted to use {}: run this as root or as a member of the socket's group", .0.display())]
    Denied(PathBuf),
    /// It did not answer in time.
    #[error("weir does not answer at {}", .0.display())]
    Silent(PathBuf),
    /// Any other trouble with the socket at this path, in words.
    #[error("admin socket {}: {}", .0.display(), .1)]
    Broken(PathBuf, String),
    /// The process answered, and refused.
    #[error("{0}")]
    Refused(Refusal),
}

fn elsewhere(path: &Path) -> &'static str {
    match path == Path::new(DEFAULT_PATH) {
        true => " (--socket PATH if the configuration says `admin:`)",
        false => "",
    }
}

/// A connection to a running weir.
#[derive(Debug)]
pub struct Client {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the admin socket at `path`.
    pub fn connect(path: &Path) -> Result<Client, Error> {
        match UnixStream::connect(path) {
            Ok(stream) => Ok(Client {
                path: path.into(),
                stream: BufReader::new(stream),
            }),
            Err(error) => Err(match error.kind() {
                ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NotRunning(path.into()),
                ErrorKind::PermissionDenied => Error::Denied(path.into()),
                _ => Error::Broken(path.into(), error.to_string()),
            }),
        }
    }

    /// Asks and waits for the answer.
    pub fn ask(&mut self, question: &Question) -> Result<Value, Error> {
        let patience = match question {
            Question::Reload => RELOAD_MAX,
            Question::Upgrade => UPGRADE_MAX,
            _ => ANSWER_MAX,
        };
        let line = self.exchange(question, patience).map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Error::Silent(self.path.clone()),
            _ => Error::Broken(self.path.clone(), error.to_string()),
        })?;
        let broken = |why: &str| Error::Broken(self.path.clone(), why.into());
        let answer: Value = serde_json::from_str(&line).map_err(|_| broken("closed without an answer"))?;
        match answer {
            Value::Object(mut answer) => match (answer.remove("ok"), answer.remove("error")) {
                (Some(value), _) => Ok(value),
                (None, Some(Value::String(reason))) => {
                    let cause = answer.remove("cause").map(serde_json::from_value);
                    let cause = cause.and_then(Result::ok).unwrap_or(RefusalCause::Runtime);
                    Err(Error::Refused(Refusal { cause, reason }))
                }
                _ => Err(broken("an answer that is neither ok nor error")),
            },
            _ => Err(broken("an answer that is not an object")),
        }
    }

    fn exchange(&mut self, question: &Question, patience: Duration) -> io::Result<String> {
        let stream = self.stream.get_mut();
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        let mut line = serde_json::to_string(question)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        line.clear();
        self.stream.read_line(&mut line)?;
        Ok(line)
    }

    /// Follows events, one record after the other, as long as `each` wants more. An error unless the last record said why.
    pub fn follow(&mut self, mut each: impl FnMut(&str) -> bool) -> Result<(), Error> {
        self.ask(&Question::Events)?;
        let broken = |why: String| Error::Broken(self.path.clone(), why);
        let stream = self.stream.get_ref();
        stream
            .set_read_timeout(None)
            .map_err(|error| broken(error.to_string()))?;
        let mut ended = false;
        loop {
            let mut line = String::new();
            match self.stream.read_line(&mut line) {
                Ok(0) if ended => return Ok(()),
                Ok(0) => return Err(broken("closed without a word".into())),
                Ok(_) => {}
                Err(error) => return Err(broken(error.to_string())),
            }
            let record: Value = serde_json::from_str(&line).unwrap_or_default();
            ended = record["event"] == "end";
            if !each(&line) {
                return Ok(());
            }
        }
    }

    /// Asks for a document.
    pub fn read<T: DeserializeOwned>(&mut self, question: &Question) -> Result<T, Error> {
        let value = self.ask(question)?;
        serde_json::from_value(value).map_err(|error| Error::Broken(self.path.clone(), error.to_string()))
    }
}

/// Asks one question on a connection of its own.
pub fn ask(options: &Options, question: &Question) -> Result<Value, Error> {
    Client::connect(&options.socket)?.ask(question)
}

/// Gives an order and prints what came of it.
pub fn order(options: &Options, question: &Question) -> ExitCode {
    match ordered(options, question) {
        Ok(()) => ExitCode::SUCCESS,
        Err(code) => code,
    }
}

/// As [`order`]; the error is what to end with.
pub fn ordered(options: &Options, question: &Question) -> Result<(), ExitCode> {
    match ask(options, question) {
        Ok(value) if options.json => table::print(&format!("{}\n", json!({ "ok": value }))),
        Ok(value) => table::print(&format!("{}\n", table::clean(value.as_str().unwrap_or("done")))),
        Err(error) => return Err(fail(options, &error)),
    }
    Ok(())
}

/// Prints why there is no answer, or why it is no.
pub fn fail(options: &Options, error: &Error) -> ExitCode {
    if options.json {
        table::print(&format!("{}\n", json!({ "error": error.to_string() })));
    }
    eprintln!("weir: {}", table::clean(&error.to_string()));
    match error {
        Error::Refused(Refusal {
            cause: RefusalCause::Configuration,
            ..
        }) => ExitCode::from(EXIT_CONFIG),
        _ => ExitCode::FAILURE,
    }
}
