//! A real browser: Chromium without a window.

use super::{command, find, run};

/// Chromium with these options, and a directory of its own for what it remembers.
pub struct Browser {
    profile: tempfile::TempDir,
    options: Vec<String>,
}

impl Browser {
    pub fn new(options: &[&str]) -> Browser {
        Browser {
            profile: tempfile::tempdir().unwrap(),
            options: options.iter().map(|option| option.to_string()).collect(),
        }
    }

    /// The words of the command that loads a page, runs its scripts and prints the document that came of it.
    pub fn words(&self, url: &str) -> Vec<String> {
        let fixed = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--virtual-time-budget=3000",
            "--dump-dom",
        ];
        let mut words = vec![find("chromium").unwrap().display().to_string()];
        words.extend(fixed.map(str::to_owned));
        words.push(format!("--user-data-dir={}", self.profile.path().display()));
        words.extend(self.options.iter().cloned());
        words.push(url.to_owned());
        words
    }

    /// The document that a page has become.
    #[track_caller]
    pub fn dom(&self, url: &str) -> String {
        let words = self.words(url);
        run(command(&words[0]).args(&words[1..]))
    }
}
