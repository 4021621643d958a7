//! YAML text to a tree of nodes, each with its place in the file. The only file that knows `serde_yaml`.
//!
//! # How it works
//!
//! serde_yaml says where something stands in one situation only: in an error. So every scalar is read by a visitor
//! that puts the value aside and then *fails on purpose*; serde_yaml adds line and column to that failure on its way
//! out, we take them from its text and go on. Mappings and lists need no such thing: they stand where their first
//! entry stands. Numbers and booleans come as typed values; as we know where they stand, their text is taken from
//! the source, so that `1.10` stays `1.10`.
//!
//! A merge key (`<<: *name`) adds what the mapping does not say itself, as YAML 1.1 has it.
//!
//! Invariants: keys keep their order; a duplicate key is kept, marked with the place of the first; depth is bounded by
//! serde_yaml (128), the number of nodes by [`NODES_MAX`], which is what stops an alias bomb.
//!
//! A replacement has to offer [`read`], nothing else.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

/// Largest accepted file, bytes.
pub const FILE_BYTES_MAX: usize = 4 << 20;
/// Most nodes after aliases are expanded.
pub const NODES_MAX: usize = 1 << 20;

/// Line and column, both from 1; the column counts characters. A column of 0 is a place that is not in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// Line, from 1.
    pub line: u32,
    /// Column, from 1.
    pub column: u32,
}

impl Place {
    /// " (line N)", or nothing for a place that has no column: it is not in a file.
    pub fn in_brackets(&self) -> String {
        match self.column {
            0 => String::new(),
            _ => format!(" (line {})", self.line),
        }
    }
}

/// One value and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Node {
    /// Where the node begins in the file.
    pub at: Place,
    /// Its contents.
    pub value: Value,
}

/// What a node is.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    /// Nothing, `~` or `null`.
    Null,
    /// A scalar's text: as written if plain, unquoted if quoted.
    Scalar(String),
    /// A sequence.
    List(Vec<Node>),
    /// A mapping, in file order.
    Map(Vec<Entry>),
}

/// One `key: value`.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The key's text.
    pub key: String,
    /// Where the key stands.
    pub at: Place,
    /// Where the same key stood before, if this one is a repetition.
    pub first: Option<Place>,
    /// The node that stands after the colon.
    pub node: Node,
}

impl Value {
    /// What to call it in a message.
    pub fn describe(&self) -> String {
        match self {
            Value::Null => "nothing".into(),
            Value::Scalar(text) => format!("`{}`", shorten(text)),
            Value::List(_) => "a list".into(),
            Value::Map(_) => "a mapping".into(),
        }
    }
}

/// Text made fit for one line of a message.
pub fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 60;
    let escaped: String = text
        .chars()
        .flat_map(|c| {
            if c.is_control() {
                c.escape_default().collect()
            } else {
                vec![c]
            }
        })
        .collect();
    match escaped.char_indices().nth(CHARS_MAX) {
        Some((cut, _)) => format!("{}...", &escaped[..cut]),
        None => escaped,
    }
}

/// Something wrong with the text itself.
pub type Problem = (Place, String);

/// Reads one document.
pub fn read(text: &str) -> Result<Node, Problem> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.len() > FILE_BYTES_MAX {
        return Err((
            START,
            format!("the file has {} bytes; at most {FILE_BYTES_MAX} are read", text.len()),
        ));
    }
    let lines = Lines::new(text);
    if let Some(offset) = text.find(|c| !printable(c)) {
        let c = text[offset..].chars().next().unwrap_or_default();
        let message = format!(
            "the character U+{:04X} cannot stand in a YAML file: within double quotes write it as an escape",
            c as u32
        );
        return Err((lines.place(text, offset), message));
    }
    let reader = RefCell::new(Reader { lines, nodes: 0 });
    let mut documents = serde_yaml::Deserializer::from_str(text);
    let document = documents
        .next()
        .ok_or_else(|| (START, "the file is empty".to_string()))?;
    let node = Seed {
        reader: &reader,
        parent: START,
    }
    .deserialize(document)
    .map_err(|e| syntax_problem(&reader.borrow().lines, &e))?;
    // What follows is a second document, or the reason why the first ended early.
    if let Some(rest) = documents.next() {
        return Err(match serde::de::IgnoredAny::deserialize(rest) {
            Err(e) if e.location().is_some() => syntax_problem(&reader.borrow().lines, &e),
            _ => (
                node.at,
                "the file holds more than one YAML document (`---`); exactly one is read".into(),
            ),
        });
    }
    Ok(node)
}

/// What YAML 1.1 calls printable (section 5.1, c-printable).
fn printable(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='~' | '\u{85}' | '\u{a0}'..='\u{fefe}' | '\u{ff00}'..='\u{fffd}' | '\u{10000}'..)
}

const START: Place = Place { line: 1, column: 1 };

fn syntax_problem(lines: &Lines, error: &serde_yaml::Error) -> Problem {
    let at = error.location().map_or(START, |l| Place {
        line: l.line() as u32,
        column: l.column() as u32,
    });
    // The library names the place in its own words too.
    let own = format!(" at line {} column {}", at.line, at.column);
    let message = error.to_string().replacen(&own, "", 1);
    let at = lines.within(at);
    let remedy = match lines.0[at.line as usize - 1]
        .0
        .trim_start_matches(' ')
        .starts_with('\t')
    {
        true => "; the line begins with a tab: indent with spaces",
        false => "",
    };
    (at, format!("not valid YAML: {message}{remedy}"))
}

/// The place at the end of an error's text; the very first place of a file is left out there.
fn mark(message: &str) -> Place {
    let parse = || {
        let (line, column) = message.rsplit_once(" at line ")?.1.split_once(" column ")?;
        Some(Place {
            line: line.parse().ok()?,
            column: column.parse().ok()?,
        })
    };
    parse().unwrap_or(START)
}

struct Reader<'t> {
    lines: Lines<'t>,
    nodes: usize,
}

/// Reads the next node; `parent` is where it stands when nothing better is known (an empty list or mapping).
struct Seed<'r, 't> {
    reader: &'r RefCell<Reader<'t>>,
    parent: Place,
}

impl<'de> DeserializeSeed<'de> for Seed<'_, '_> {
    type Value = Node;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Node, D::Error> {
        let mut reader = self.reader.borrow_mut();
        reader.nodes += 1;
        if reader.nodes > NODES_MAX {
            return Err(D::Error::custom(format_args!(
                "more than {NODES_MAX} values, aliases expanded"
            )));
        }
        drop(reader);
        let aside = RefCell::new(None);
        let error = match deserializer.deserialize_any(NodeVisitor {
            seed: self,
            aside: &aside,
        }) {
            Ok(node) => return Ok(node),
            Err(error) => error,
        };
        let Some(scalar) = aside.into_inner() else {
            return Err(error);
        };
        let at = self.reader.borrow().lines.within(mark(&error.to_string()));
        let value = match scalar {
            Scalar::Null => Value::Null,
            Scalar::Text(text) => Value::Scalar(text),
            Scalar::Typed(text) => Value::Scalar(self.reader.borrow().lines.plain_scalar(at).unwrap_or(text)),
        };
        Ok(Node { at, value })
    }
}

enum Scalar {
    Null,
    Text(String),
    /// A number or boolean: its text is to be taken from the source; this one serves when that fails.
    Typed(String),
}

#[derive(Clone, Copy)]
struct NodeVisitor<'r, 't, 'a> {
    seed: Seed<'r, 't>,
    aside: &'a RefCell<Option<Scalar>>,
}

impl Clone for Seed<'_, '_> {
    fn clone(&self) -> Self {
        *self
    }
}
impl Copy for Seed<'_, '_> {}

impl NodeVisitor<'_, '_, '_> {
    fn put_aside<E: serde::de::Error>(self, scalar: Scalar) -> Result<Node, E> {
        *self.aside.borrow_mut() = Some(scalar);
        Err(E::custom("here"))
    }

    fn typed<E: serde::de::Error>(self, value: impl fmt::Display) -> Result<Node, E> {
        self.put_aside(Scalar::Typed(value.to_string()))
    }
}

impl<'de> Visitor<'de> for NodeVisitor<'_, '_, '_> {
    type Value = Node;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a value, a list or a mapping")
    }
    fn visit_str<E: serde::de::Error>(self, v: &str) -> Result<Node, E> {
        self.put_aside(Scalar::Text(v.to_string()))
    }
    fn visit_unit<E: serde::de::Error>(self) -> Result<Node, E> {
        self.put_aside(Scalar::Null)
    }
    fn visit_none<E: serde::de::Error>(self) -> Result<Node, E> {
        self.put_aside(Scalar::Null)
    }
    fn visit_bool<E: serde::de::Error>(self, v: bool) -> Result<Node, E> {
        self.typed(v)
    }
    fn visit_i64<E: serde::de::Error>(self, v: i64) -> Result<Node, E> {
        self.typed(v)
    }
    fn visit_u64<E: serde::de::Error>(self, v: u64) -> Result<Node, E> {
        self.typed(v)
    }
    fn visit_i128<E: serde::de::Error>(self, v: i128) -> Result<Node, E> {
        self.typed(v)
    }
    fn visit_u128<E: serde::de::Error>(self, v: u128) -> Result<Node, E> {
        self.typed(v)
    }
    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Node, E> {
        self.typed(v)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut list: Vec<Node> = Vec::new();
        while let Some(node) = items.next_element_seed(self.seed)? {
            list.push(node);
        }
        Ok(Node {
            at: list.first().map_or(self.seed.parent, |n| n.at),
            value: Value::List(list),
        })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Node, A::Error> {
        let mut map: Vec<Entry> = Vec::new();
        let mut merged: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Place> = HashMap::new();
        while let Some(Node { at, value }) = items.next_key_seed(self.seed)? {
            let key = match value {
                Value::Scalar(text) => text,
                Value::Null => "null".into(),
                _ => {
                    return Err(A::Error::custom("a key must be a plain word, not a list or a mapping"));
                }
            };
            let node = items.next_value_seed(Seed {
                parent: at,
                ..self.seed
            })?;
            if key == "<<" {
                merge(node, &mut merged).map_err(A::Error::custom)?;
                continue;
            }
            let first = seen.get(&key).copied();
            seen.entry(key.clone()).or_insert(at);
            map.push(Entry { key, at, first, node });
        }
        for entry in merged {
            if !seen.contains_key(&entry.key) {
                seen.insert(entry.key.clone(), entry.at);
                map.push(entry);
            }
        }
        Ok(Node {
            at: map.first().map_or(self.seed.parent, |e| e.at),
            value: Value::Map(map),
        })
    }

    fn visit_enum<A: serde::de::EnumAccess<'de>>(self, _: A) -> Result<Node, A::Error> {
        Err(A::Error::custom(
            "YAML tags (`!name`) have no meaning here: leave the tag out",
        ))
    }
}

/// Collects what a merge key brings in: a mapping, or a list of mappings of which earlier ones win.
fn merge(node: Node, into: &mut Vec<Entry>) -> Result<(), &'static str> {
    match node.value {
        Value::Map(entries) => into.extend(entries.into_iter().filter(|entry| entry.first.is_none())),
        Value::List(nodes) if nodes.iter().all(|n| matches!(n.value, Value::Map(_))) => {
            nodes.into_iter().try_for_each(|node| merge(node, into))?;
        }
        _ => return Err("a merge key (`<<`) takes a mapping: `<<: *name`"),
    }
    Ok(())
}

/// The source by lines, broken where libyaml breaks them, and whether a column is a byte offset there.
struct Lines<'t>(Vec<(&'t str, bool)>);

impl<'t> Lines<'t> {
    fn new(text: &'t str) -> Self {
        let mut lines = Vec::new();
        let mut rest = text;
        while let Some(end) = rest.find(['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}']) {
            let (line, tail) = rest.split_at(end);
            lines.push((line, line.is_ascii()));
            rest = tail.strip_prefix("\r\n").unwrap_or_else(|| {
                let mut chars = tail.chars();
                chars.next();
                chars.as_str()
            });
        }
        lines.push((rest, rest.is_ascii()));
        Lines(lines)
    }

    /// The end of the text for a place behind it, which is where libyaml sees the end of a file.
    fn within(&self, at: Place) -> Place {
        match self.0.last() {
            Some((last, _)) if at.line as usize > self.0.len() => Place {
                line: self.0.len() as u32,
                column: last.chars().count() as u32 + 1,
            },
            _ => at,
        }
    }

    fn place(&self, text: &str, offset: usize) -> Place {
        let before = |line: &&(&str, bool)| line.0.as_ptr() as usize - text.as_ptr() as usize <= offset;
        let line = self.0.iter().take_while(before).count().max(1);
        let start = self.0[line - 1].0.as_ptr() as usize - text.as_ptr() as usize;
        Place {
            line: line as u32,
            column: text[start..offset].chars().count() as u32 + 1,
        }
    }

    /// The text of the plain one-word scalar at `at`; `None` if it is something else there, or costly to find.
    fn plain_scalar(&self, at: Place) -> Option<String> {
        const COSTLY_BYTES: usize = 4096;
        let (line, ascii) = *self.0.get(at.line as usize - 1)?;
        let skip = at.column as usize - 1;
        let offset = match ascii {
            true => skip,
            false if line.len() < COSTLY_BYTES => line.char_indices().nth(skip)?.0,
            false => return None,
        };
        let word = line
            .get(offset..)?
            .split([' ', '\t', ',', ']', '}', '{', '[', '#'])
            .next()?;
        let word = word.strip_suffix(':').unwrap_or(word);
        word.starts_with(|c: char| c.is_ascii_alphanumeric() || "+-.".contains(c))
            .then(|| word.to_string())
    }
}
