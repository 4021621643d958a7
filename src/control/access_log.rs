//! placeholder until merged
use crate::config::model;
use crate::link::Record;
use crossbeam_channel::{Sender, bounded};
use std::io::Write;

/// Handle.
#[derive(Debug)]
pub struct Handle(std::thread::JoinHandle<()>);

/// Starts.
pub fn start(log: &model::Log) -> std::io::Result<Option<(Sender<Record>, Handle)>> {
    if log.access == model::AccessTarget::Off {
        return Ok(None);
    }
    let (tx, rx) = bounded::<Record>(65536);
    let thread = std::thread::spawn(move || {
        while let Ok(r) = rx.recv() {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let mut out = Vec::new();
            for r in std::iter::once(r).chain(rx.try_iter()) {
                let _ = writeln!(
                    out,
                    "id={} listener={} backend={} bytes_up={} bytes_down={} cause={} closed_by={} spliced={} attempts={}",
                    r.id,
                    r.listener.config.name,
                    r.backend.as_ref().map_or("-", |b| b.config.name.as_str()),
                    r.bytes_up,
                    r.bytes_down,
                    r.cause.as_str(),
                    r.closed_by.as_str(),
                    r.spliced,
                    r.attempts
                );
            }
            let _ = std::io::stdout().write_all(&out);
        }
    });
    Ok(Some((tx, Handle(thread))))
}

impl Handle {
    /// Finish.
    pub fn finish(self) {
        let _ = self.0.join();
    }
}
