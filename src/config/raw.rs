//! Reading a tree by the table of [`fields`](super::fields): what a file may say.
//!
//! A [`Section`] hands out values and collects everything that is wrong on the way; it never stops at the first.
//! Where a value is missing or wrong, the key's default takes its place or, if it has none, the table's example: checking goes
//! on with something of the right type, and the result is thrown away at the end.

mod named;

use super::fields::{FIELDS, Field, Missing, Shape, below, field};
use super::meant::{deeper, suggestion};
use super::model::Protocol;
use super::notes::{Notes, Spot};
use super::value::{FromText, Name};
use super::yaml::{Entry, Node, Place, Value, shorten};

/// A mapping of known keys.
#[derive(Debug, Clone)]
pub struct Section<'a> {
    notes: &'a Notes,
    /// Row of the section, `*` for names.
    rule: String,
    /// Its own place and path; the value is what it was called.
    spot: Spot<String>,
    /// It is no mapping at all, which has been said; then nothing is missing.
    broken: bool,
    entries: Vec<Given<'a>>,
}

/// A key of a section, as the file has it.
#[derive(Debug, Clone, Copy)]
struct Given<'a> {
    key: &'a str,
    at: Place,
    node: &'a Node,
}

impl<'a> Section<'a> {
    /// The whole file.
    pub fn root(notes: &'a Notes, node: &'a Node) -> Self {
        let spot = Spot {
            at: node.at,
            path: String::new(),
            value: node,
        };
        Section::open(notes, String::new(), String::new(), spot)
    }

    /// A part of a configuration that is a file of its own, read by the rows below `rule`.
    pub fn part(notes: &'a Notes, rule: &str, node: &'a Node) -> Self {
        let spot = Spot {
            at: node.at,
            path: String::new(),
            value: node,
        };
        Section::open(notes, rule.to_string(), String::new(), spot)
    }

    fn open(notes: &'a Notes, rule: String, name: String, spot: Spot<&'a Node>) -> Self {
        let node = spot.value;
        let mut section = Section {
            notes,
            rule,
            spot: spot.map(|_| name),
            broken: false,
            entries: Vec::new(),
        };
        match &node.value {
            Value::Map(entries) => {
                section.entries = entries
                    .iter()
                    .filter(|entry| once(notes, &section.spot.path, entry) && section.knows(entry))
                    .map(Given::from)
                    .collect()
            }
            Value::Null => {}
            other => {
                section.broken = true;
                notes.error(
                    &section.spot,
                    format!("expected keys ({}), found {}", section.known(), other.describe()),
                );
            }
        }
        section
    }

    fn known(&self) -> String {
        self.keys().collect::<Vec<_>>().join(", ")
    }

    fn keys(&self) -> impl Iterator<Item = &'static str> + use<> {
        below(&self.rule).iter().map(|f| f.key())
    }

    /// Whether the table has this key and the program does what it says; if not, says so.
    fn knows(&self, entry: &Entry) -> bool {
        let spot = Spot {
            at: entry.at,
            path: self.path_of(&entry.key),
            value: (),
        };
        match self.field(&entry.key) {
            None => {
                let remedy = match deeper(&self.rule, &entry.key, FIELDS.iter().map(|row| row.path))
                    .or_else(|| suggestion(&entry.key, self.keys()))
                {
                    Some(key) => format!("did you mean `{key}`?"),
                    None => format!("known here: {}", self.known()),
                };
                self.notes.error(&spot, format!("unknown key; {remedy}"));
                false
            }
            Some(_) => true,
        }
    }

    fn field(&self, key: &str) -> Option<&'static Field> {
        field(&join(&self.rule, key))
    }

    /// The row of a key that the checker asks for.
    fn row(&self, key: &str, shape: Shape) -> &'static Field {
        let row = self
            .field(key)
            .unwrap_or_else(|| panic!("no row for {}.{key}", self.rule));
        debug_assert_eq!(row.shape, shape, "{}", row.path);
        self.notes.note_read(row);
        row
    }

    fn path_of(&self, key: &str) -> String {
        join(&self.spot.path, &shorten(key))
    }

    fn find(&self, key: &str) -> Option<Given<'a>> {
        self.entries.iter().copied().find(|entry| entry.key == key)
    }

    /// What the section is called in the file.
    pub fn name(&self) -> &str {
        &self.spot.value
    }

    /// The section's own place.
    pub fn here(&self) -> &Spot<String> {
        &self.spot
    }

    /// Whether the file has the key.
    pub fn has(&self, key: &str) -> bool {
        self.find(key).is_some()
    }

    /// The place of a key; of the section itself if the file does not have it.
    pub fn spot(&self, key: &str) -> Spot<()> {
        let at = self.find(key).map_or(self.spot.at, |entry| entry.at);
        Spot {
            at,
            path: self.path_of(key),
            value: (),
        }
    }

    /// Refuses the file because of a key of this section.
    pub fn error(&self, key: &str, message: impl Into<String>) {
        self.notes.error(&self.spot(key), message);
    }

    /// Doubts a key of this section.
    pub fn warn(&self, key: &str, message: impl Into<String>) {
        self.notes.warn(&self.spot(key), message);
    }

    /// Refuses keys that have a meaning for the other protocol only. `here` says why this one's matters.
    pub fn only_for(&self, protocol: Protocol, here: &str) {
        let other = |row: &Field| row.only.is_some_and(|only| only != protocol);
        let refuse = |at, path| {
            let spot = Spot { at, path, value: () };
            let there = if protocol == Protocol::Tcp { "udp" } else { "tcp" };
            self.notes.error(
                &spot,
                format!("has a meaning for {there} only, and {here}: leave it out"),
            );
        };
        for given in &self.entries {
            let Some(row) = self.field(given.key) else {
                continue;
            };
            let path = self.path_of(given.key);
            match &given.node.value {
                _ if other(row) => refuse(given.at, path),
                Value::Map(entries) if row.shape == Shape::Section => {
                    let wrong = |e: &&Entry| field(&join(row.path, &e.key)).is_some_and(other);
                    let wrong = entries.iter().filter(wrong);
                    wrong.for_each(|e| refuse(e.at, join(&path, &e.key)));
                }
                _ => {}
            }
        }
    }

    // ---- values ----

    /// A value; its default if it is missing or wrong.
    pub fn value<T: FromText>(&self, key: &str) -> T {
        let row = self.row(key, Shape::Value);
        self.scalar(row).flatten().unwrap_or_else(|| stand_in(row))
    }

    /// A value or `None`: switched off by its word, or left out without a default, or wrong.
    pub fn optional<T: FromText>(&self, key: &str) -> Option<T> {
        let row = self.row(key, Shape::Value);
        match (self.scalar(row), row.missing) {
            (Some(given), _) => given,
            (None, Missing::Default(text)) if !row.is_word(text) => Some(stand_in(row)),
            (None, _) => None,
        }
    }

    /// As [`optional`](Self::optional), with its place.
    pub fn optional_spot<T: FromText>(&self, key: &str) -> Option<Spot<T>> {
        let value = self.optional(key)?;
        let at = self.find(key).map_or(self.spot.at, |entry| entry.node.at);
        Some(Spot {
            at,
            path: self.path_of(key),
            value,
        })
    }

    /// As [`value`](Self::value), with its place.
    pub fn value_spot<T: FromText>(&self, key: &str) -> Spot<T> {
        let at = self.find(key).map_or(self.spot.at, |given| given.node.at);
        Spot {
            at,
            path: self.path_of(key),
            value: self.value(key),
        }
    }

    /// `None`: left out. `Some(None)`: the row's word, or wrong, which has been said.
    fn scalar<T: FromText>(&self, row: &Field) -> Option<Option<T>> {
        debug_assert_eq!(row.kind, T::KIND, "{}", row.path);
        match self.find(row.key()) {
            Some(entry) => Some(self.parse(
                row,
                Spot {
                    at: entry.node.at,
                    path: self.path_of(row.key()),
                    value: entry.node,
                },
            )),
            None => {
                self.complain_if_required(row);
                None
            }
        }
    }

    /// Refuses the file if it does not have a key that is needed beside others only.
    pub fn require(&self, key: &str) {
        let row = self.field(key).unwrap_or_else(|| panic!("no row for {key}"));
        self.complain(row, !self.has(key));
    }

    fn complain_if_required(&self, row: &Field) {
        self.complain(row, row.missing == Missing::Refused);
    }

    fn complain(&self, row: &Field, missing: bool) {
        if missing && !self.broken {
            self.error(
                row.key(),
                format!("missing; for example `{}: {}`", row.key(), row.example),
            );
        }
    }

    fn parse<T: FromText>(&self, row: &Field, spot: Spot<&Node>) -> Option<T> {
        let text = match &spot.value.value {
            Value::Scalar(text) => text.as_str(),
            other => {
                let word = row.word.map_or(String::new(), |word| format!(" or `{word}`"));
                self.notes.error(
                    &spot,
                    format!("expected {}{word}, found {}", row.kind, other.describe()),
                );
                return None;
            }
        };
        if row.is_word(text) {
            return None;
        }
        let range = if row.shape == Shape::Value {
            range::<T>(row)
        } else {
            None
        };
        let word = row.word.map_or(String::new(), |word| format!(", or `{word}`"));
        let out_of_range = || format!("`{text}` is out of range: {}{word}", row.range.replace("..", " to "));
        let parsed = match (T::from_text(text), range) {
            (Ok(value), Some((low, high))) if !value.within(&low, &high) => Err(out_of_range()),
            (Err(_), Some(_)) if text.parse::<i128>().is_ok() && row.kind == u64::KIND => Err(out_of_range()),
            (parsed, _) => parsed,
        };
        parsed.map_err(|message| self.notes.error(&spot, message)).ok()
    }

    /// Scalars with their places; those that are wrong are left out.
    pub fn list<T: FromText>(&self, key: &str) -> Vec<Spot<T>> {
        let row = self.row(key, Shape::List);
        debug_assert_eq!(row.kind, T::KIND, "{}", row.path);
        let Some(entry) = self.find(key) else {
            self.complain_if_required(row);
            return Vec::new();
        };
        let spots = match &entry.node.value {
            Value::List(nodes) => self.numbered(key, nodes),
            Value::Null => Vec::new(),
            _ => vec![Spot {
                at: entry.node.at,
                path: self.path_of(key),
                value: entry.node,
            }],
        };
        self.count(row, spots.len());
        spots
            .into_iter()
            .filter_map(|Spot { at, path, value }| {
                let parsed = self.parse(
                    row,
                    Spot {
                        at,
                        path: path.clone(),
                        value,
                    },
                )?;
                Some(Spot {
                    at,
                    path,
                    value: parsed,
                })
            })
            .collect()
    }

    fn numbered(&self, key: &str, nodes: &'a [Node]) -> Vec<Spot<&'a Node>> {
        let path = self.path_of(key);
        nodes
            .iter()
            .enumerate()
            .map(|(i, node)| Spot {
                at: node.at,
                path: format!("{path}[{i}]"),
                value: node,
            })
            .collect()
    }

    fn count(&self, row: &Field, entries: usize) {
        if let Some((low, high)) = range::<usize>(row)
            && !(low..=high).contains(&entries)
        {
            self.error(
                row.key(),
                match entries {
                    0 => format!(
                        "is empty: {}",
                        match row.missing {
                            Missing::Means(means) => format!("leave it out for {means}"),
                            _ => format!("at least {low} must be given"),
                        }
                    ),
                    n => format!("has {n} entries: {low} to {high} are possible"),
                },
            );
        }
    }

    // ---- sections ----

    /// A section; `None` if it is switched off by its word, or left out and off by default.
    pub fn switchable(&self, key: &str) -> Option<Section<'a>> {
        let row = self.row(key, Shape::Section);
        match self.find(key) {
            Some(Given {
                node: Node {
                    value: Value::Scalar(text),
                    ..
                },
                ..
            }) if row.is_word(text) => None,
            Some(entry) => {
                let spot = Spot {
                    at: entry.at,
                    path: self.path_of(key),
                    value: entry.node,
                };
                Some(Section::open(self.notes, row.path.to_string(), key.to_string(), spot))
            }
            None if row.missing == Missing::Means("off") => None,
            None => Some(self.absent(key)),
        }
    }

    /// A section as if it were left out.
    pub fn absent(&self, key: &str) -> Section<'a> {
        let row = self.row(key, Shape::Section);
        Section {
            notes: self.notes,
            rule: row.path.to_string(),
            spot: Spot {
                value: key.to_string(),
                ..self.spot(key).map(|()| String::new())
            },
            broken: false,
            entries: Vec::new(),
        }
    }

    /// A section that is always there.
    pub fn section(&self, key: &str) -> Section<'a> {
        self.switchable(key).expect("a section without a word is never off")
    }
}

impl<'a> From<&'a Entry> for Given<'a> {
    fn from(entry: &'a Entry) -> Self {
        Given {
            key: &entry.key,
            at: entry.at,
            node: &entry.node,
        }
    }
}

/// Whether this is the first entry of its key; if not, says so.
fn once(notes: &Notes, path: &str, entry: &Entry) -> bool {
    let Some(first) = entry.first else {
        return true;
    };
    let spot = Spot {
        at: entry.at,
        path: join(path, &shorten(&entry.key)),
        value: (),
    };
    notes.error(
        &spot,
        format!("is here already{}: keep one of them", first.in_brackets()),
    );
    false
}

fn join(path: &str, key: &str) -> String {
    match path {
        "" => key.to_string(),
        _ => format!("{path}.{key}"),
    }
}

/// The range of a row, read as its values are.
fn range<T: FromText>(row: &Field) -> Option<(T, T)> {
    let (low, high) = row.range.split_once("..")?;
    let read = |text| T::from_text(text).unwrap_or_else(|e| panic!("range of {}: {e}", row.path));
    Some((read(low), read(high)))
}

/// What is read in place of a value that is missing or wrong.
fn stand_in<T: FromText>(row: &Field) -> T {
    let text = match row.missing {
        Missing::Default(text) => text,
        _ => row.example,
    };
    T::from_text(text).unwrap_or_else(|e| panic!("default of {}: {e}", row.path))
}
