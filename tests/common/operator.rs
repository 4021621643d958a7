//! The commands that an operator gives a running weir.

use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Output;

use serde_json::Value;

use super::{PATIENCE, Weir, command};

/// Asks whoever serves an admin socket, without a command of its own process; what it refuses is an error.
pub fn tell(admin: &Path, question: &Value) -> io::Result<Value> {
    let mut stream = UnixStream::connect(admin)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    writeln!(stream, "{question}")?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let mut answer: Value = serde_json::from_str(&line)?;
    match answer["error"].take() {
        Value::Null => Ok(answer["ok"].take()),
        error => Err(io::Error::other(error.to_string())),
    }
}

/// Runs `weir WORDS... --socket ADMIN` against a running weir.
pub fn ask(weir: &Weir, words: &[&str]) -> Output {
    let mut ask = command(env!("CARGO_BIN_EXE_weir"));
    ask.args(words).arg("--socket").arg(weir.admin());
    ask.output().unwrap()
}

/// The same; it must succeed. What it printed.
#[track_caller]
pub fn said(weir: &Weir, words: &[&str]) -> String {
    let output = ask(weir, words);
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "weir {words:?}: {}\n{out}{err}", output.status);
    out
}

/// The same as JSON.
#[track_caller]
pub fn json(weir: &Weir, words: &[&str]) -> Value {
    serde_json::from_str(&said(weir, &[words, &["--json"]].concat())).unwrap()
}

/// The status document.
#[track_caller]
pub fn status(weir: &Weir) -> Value {
    json(weir, &["status"])
}
