//! The commands that an operator gives a running weir.

use std::process::Output;

use serde_json::Value;

use super::{Weir, command};

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
