//! Access records, read back from either form of the log.

use serde_json::{Map, Value};

/// One access record. Fields that were not written are empty or `None`.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    pub time: String,
    pub id: String,
    pub listener: String,
    pub protocol: String,
    pub client: String,
    pub local: String,
    pub pool: String,
    pub backend: Option<String>,
    pub address: Option<String>,
    pub attempts: u64,
    pub bytes_up: u64,
    pub bytes_down: u64,
    pub connect_ms: Option<f64>,
    pub first_byte_ms: Option<f64>,
    pub duration_ms: f64,
    pub spliced: u64,
    pub closed_by: String,
    pub cause: String,
    pub server_name: Option<String>,
    /// Of the kernel engine only, as the next two.
    pub engine: Option<String>,
    pub packets_up: u64,
    pub packets_down: u64,
    /// Names of all fields in the order in which they were written.
    pub fields: Vec<String>,
}

impl Record {
    /// Reads one line, JSON or `key=value`; `None` if it is not an access record.
    pub fn parse(line: &str) -> Option<Record> {
        let fields: Map<String, Value> = if line.starts_with('{') {
            serde_json::from_str(line).ok()?
        } else {
            words(line)?
        };
        let word = |key: &str| match fields.get(key)? {
            Value::Null => None,
            Value::String(text) if text.is_empty() || text == "-" => None,
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        };
        let number = |key: &str| word(key).and_then(|text| text.parse::<f64>().ok());
        let count = |key: &str| number(key).unwrap_or_default() as u64;
        Some(Record {
            time: word("time").unwrap_or_default(),
            id: word("id")?,
            listener: word("listener").unwrap_or_default(),
            protocol: word("protocol").unwrap_or_default(),
            client: word("client").unwrap_or_default(),
            local: word("local").unwrap_or_default(),
            pool: word("pool").unwrap_or_default(),
            backend: word("backend"),
            address: word("address"),
            attempts: count("attempts"),
            bytes_up: count("bytes_up"),
            bytes_down: count("bytes_down"),
            connect_ms: number("connect_ms"),
            first_byte_ms: number("first_byte_ms"),
            duration_ms: number("duration_ms").unwrap_or_default(),
            spliced: count("spliced"),
            closed_by: word("closed_by")?,
            cause: word("cause")?,
            server_name: word("server_name"),
            engine: word("engine"),
            packets_up: count("packets_up"),
            packets_down: count("packets_down"),
            fields: fields.keys().cloned().collect(),
        })
    }

    /// `(cause, closed_by)`: what most tests ask about.
    pub fn end(&self) -> (&str, &str) {
        (&self.cause, &self.closed_by)
    }
}

/// Splits `a=1 b="two words"`.
fn words(line: &str) -> Option<Map<String, Value>> {
    let mut fields = Map::new();
    let mut rest = line.trim();
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        if key.is_empty() || key.contains(char::is_whitespace) {
            return None;
        }
        let (value, after) = if after.starts_with('"') {
            let mut stream = serde_json::Deserializer::from_str(after).into_iter::<String>();
            let text = stream.next()?.ok()?;
            (text, &after[stream.byte_offset()..])
        } else {
            let end = after.find(' ').unwrap_or(after.len());
            (after[..end].to_owned(), &after[end..])
        };
        fields.insert(key.to_owned(), Value::String(value));
        rest = after.trim_start();
    }
    Some(fields)
}
