//! The event log: what happens, as sentences on stderr, text or JSON.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use crate::config::model::{Log, LogFormat};

static JSON: AtomicBool = AtomicBool::new(false);

/// Installs it; level and form follow the configuration.
pub fn start() {
    let format = |out: &mut env_logger::fmt::Formatter, record: &log::Record| {
        let time = humantime::format_rfc3339_millis(SystemTime::now());
        let message = record.args().to_string();
        if JSON.load(Ordering::Relaxed) {
            let line = serde_json::json!({
                "time": time.to_string(),
                "level": record.level().as_str().to_lowercase(),
                "message": message,
            });
            writeln!(out, "{line}")
        } else {
            let message = message.replace('\n', "\n    ");
            writeln!(out, "{time} {:<5} {message}", record.level())
        }
    };
    // Our own lines only: libraries have nothing to say to an operator.
    let _ = env_logger::Builder::new()
        .filter_module("weir", log::LevelFilter::Trace)
        .format(format)
        .try_init();
}

/// Follows `log:` of a configuration, the first one or a later one.
pub fn follow(log: &Log) {
    log::set_max_level(log.level);
    JSON.store(log.format == LogFormat::Json, Ordering::Relaxed);
}
