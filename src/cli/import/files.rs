//! Reading: files, and the files that they include.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::Dialect;
use super::lex::{Sources, Statement, lex};
use crate::config::FILE_BYTES_MAX;

/// Most files that includes may come to.
const FILES_MAX: usize = 1000;
/// Deepest chain of includes.
const DEPTH_MAX: usize = 8;

/// Why nothing can be imported.
#[derive(Debug, PartialEq)]
pub enum Failed {
    /// A file cannot be read.
    Unreadable(String),
    /// A file is not what it should be.
    Refused(String),
}

/// Reads files and numbers their statements.
#[derive(Default)]
pub struct Loader {
    sources: Sources,
    bytes: usize,
    /// Includes that could not be followed, and why.
    unread: Vec<(Statement, String)>,
}

impl Loader {
    /// Where everything stood, and the includes that could not be followed.
    pub fn done(self) -> (Sources, Vec<(Statement, String)>) {
        (self.sources, self.unread)
    }

    /// The text of a file. Latin-1 comments and the like are no reason to refuse it.
    pub fn text(&mut self, path: &Path) -> Result<String, Failed> {
        let name = path.display();
        let cannot = |e: std::io::Error| Failed::Unreadable(format!("{name}: cannot be read: {e}"));
        let mut bytes = Vec::new();
        let left = FILE_BYTES_MAX.saturating_sub(self.bytes) as u64;
        let file = fs::File::open(path).map_err(cannot)?;
        file.take(left + 1).read_to_end(&mut bytes).map_err(cannot)?;
        self.bytes += bytes.len();
        match self.bytes > FILE_BYTES_MAX {
            true => Err(Failed::Refused(format!(
                "{name}: with this file it is more than {FILE_BYTES_MAX} bytes: more is not read"
            ))),
            false => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        }
    }

    /// The statements of a file, those that it includes in their place.
    pub fn statements(&mut self, path: &Path, text: &str, dialect: Dialect) -> Result<Vec<Statement>, Failed> {
        let base = path.parent().unwrap_or(Path::new("")).to_path_buf();
        self.expanded(path, text, dialect, &base, 0)
    }

    fn expanded(
        &mut self,
        path: &Path,
        text: &str,
        dialect: Dialect,
        base: &Path,
        depth: usize,
    ) -> Result<Vec<Statement>, Failed> {
        let file = self.sources.open(path.display().to_string());
        let statements = lex(text, dialect.style(), file, &mut self.sources)
            .map_err(|(line, why)| Failed::Refused(format!("{}:{line}: {why}", path.display())))?;
        match dialect {
            Dialect::Haproxy => Ok(statements),
            Dialect::Nginx | Dialect::Keepalived => self.follow(statements, dialect, base, depth),
        }
    }

    fn follow(
        &mut self,
        statements: Vec<Statement>,
        dialect: Dialect,
        base: &Path,
        depth: usize,
    ) -> Result<Vec<Statement>, Failed> {
        let mut out = Vec::new();
        for mut statement in statements {
            // What has no meaning here as a whole is not looked into.
            let opaque = matches!(statement.word(0), "http" | "mail") && dialect == Dialect::Nginx;
            if !opaque {
                let block = std::mem::take(&mut statement.block);
                statement.block = self.follow(block, dialect, base, depth)?;
            }
            if statement.word(0) != "include" || statement.braces {
                out.push(statement);
                continue;
            }
            let found = glob(base, statement.word(1));
            if depth == DEPTH_MAX {
                let why = format!("more than {DEPTH_MAX} files that include each other are not followed");
                self.unread.push((statement, why));
            } else if found.is_empty() {
                // nginx takes a pattern without a match for nothing; a name without a file is an error.
                if !wild(statement.word(1)) {
                    let why = format!("there is no file `{}`: import it by its name", statement.word(1));
                    self.unread.push((statement, why));
                }
            } else {
                for path in found {
                    if self.sources.files.len() == FILES_MAX {
                        return Err(Failed::Refused(format!(
                            "{}: more than {FILES_MAX} files",
                            path.display()
                        )));
                    }
                    let text = self.text(&path)?;
                    // nginx goes by the directory of the main file, keepalived by that of the including one.
                    let own = path.parent().unwrap_or(Path::new("")).to_path_buf();
                    let base = if dialect == Dialect::Nginx { base } else { &own };
                    out.extend(self.expanded(&path, &text, dialect, base, depth + 1)?);
                }
            }
        }
        Ok(out)
    }
}

fn wild(text: &str) -> bool {
    text.contains(['*', '?', '['])
}

/// The files that a pattern with `*`, `?` and `[...]` names, sorted.
fn glob(base: &Path, pattern: &str) -> Vec<PathBuf> {
    if pattern.is_empty() {
        return Vec::new();
    }
    let start = if pattern.starts_with('/') {
        PathBuf::from("/")
    } else {
        base.to_path_buf()
    };
    let mut found = vec![start];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        found = found
            .iter()
            .flat_map(|path| entries(path, part))
            .take(FILES_MAX + 1)
            .collect();
    }
    found.retain(|path| path.is_file());
    found
}

fn entries(directory: &Path, part: &str) -> Vec<PathBuf> {
    if !wild(part) {
        return vec![directory.join(part)];
    }
    let here = if directory.as_os_str().is_empty() {
        Path::new(".")
    } else {
        directory
    };
    let names = fs::read_dir(here)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name());
    let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
    names.retain(|name| (!name.starts_with('.') || part.starts_with('.')) && matches(part, name));
    names.sort_unstable();
    names.iter().map(|name| directory.join(name)).collect()
}

/// Whether a name fits a pattern; linear in time but for its last `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    let mut star = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
                continue;
            }
            Some(_) => {
                if let Some(next) = one(&pattern, p, name[n]) {
                    (p, n) = (next, n + 1);
                    continue;
                }
            }
            None => {}
        }
        // The last star takes one character more.
        let Some((at, taken)) = star else { return false };
        star = Some((at, taken + 1));
        (p, n) = (at + 1, taken + 1);
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// Where the pattern goes on if its element at `p` takes a character.
fn one(pattern: &[char], p: usize, c: char) -> Option<usize> {
    let end = || {
        pattern[p + 1..]
            .iter()
            .skip(1)
            .position(|c| *c == ']')
            .map(|at| p + 2 + at)
    };
    match pattern[p] {
        '?' => Some(p + 1),
        '[' => match end() {
            None => (c == '[').then_some(p + 1),
            Some(end) => {
                let set = &pattern[p + 1..end];
                let (negated, set) = match set.first() {
                    Some('!' | '^') => (true, &set[1..]),
                    _ => (false, set),
                };
                let range = set.windows(3).any(|w| w[1] == '-' && (w[0]..=w[2]).contains(&c));
                ((range || set.contains(&c)) != negated).then_some(end + 1)
            }
        },
        other => (other == c).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns() {
        for (pattern, name, fits) in [
            ("*", "a.conf", true),
            ("*.conf", "a.conf", true),
            ("*.conf", "a.conf.bak", false),
            ("a*b*c", "aXbXbc", true),
            ("a*b*c", "aXcXb", false),
            ("a?c", "abc", true),
            ("a?c", "ac", false),
            ("[a-c]x", "bx", true),
            ("[!a-c]x", "bx", false),
            ("[ab]x", "cx", false),
            ("[", "[", true),
            ("**", "", true),
            ("?", "é", true),
        ] {
            assert_eq!(matches(pattern, name), fits, "{pattern} {name}");
        }
        assert!(!matches(&"*a".repeat(50), &"a".repeat(2000).replace('a', "b")));
    }

    #[test]
    fn includes_are_followed() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        fs::create_dir(dir.path().join("d")).unwrap();
        write(
            "main",
            "a; include d/*.conf; include gone; include no*; http { include gone2; } include loop;",
        );
        write("d/2.conf", "c { include d/3; }");
        write("d/1.conf", "b;");
        write("d/.hidden.conf", "hidden;");
        write("d/3", "d;");
        write("loop", "include loop;");
        let mut loader = Loader::default();
        let main = dir.path().join("main");
        let text = loader.text(&main).unwrap();
        let read = loader.statements(&main, &text, Dialect::Nginx).unwrap();
        let words: Vec<&str> = read.iter().map(|statement| statement.word(0)).collect();
        assert_eq!(words, ["a", "b", "c", "http"]);
        assert_eq!(read[2].block[0].word(0), "d");
        let (sources, unread) = loader.done();
        let (file, line, _) = sources.place(read[2].block[0].ix);
        assert!(sources.files[file].ends_with("d/3") && line == 1);
        let unread: Vec<&str> = unread.iter().map(|(statement, _)| statement.word(1)).collect();
        assert_eq!(unread, ["gone", "loop"]);
    }
}
