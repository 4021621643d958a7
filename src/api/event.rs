//! What followers of events are told: the kinds of records and their fields, for `weir api`. That it is what the process
//! sends is held by a test of `control::events`.

use serde_json::{Value, json};

/// What a field holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// A JSON string.
    Text,
    /// A JSON string, or null when there is none.
    MaybeText,
    /// An array of JSON strings.
    Texts,
    /// An integer that is not negative.
    Number,
    /// Such an integer, or null when there is none.
    MaybeNumber,
    /// A JSON boolean.
    Flag,
}

use Is::{Flag, MaybeNumber, MaybeText, Number, Text, Texts};

/// A kind of record: its word, what has happened, and the fields that it has besides those of every record.
pub type Kind = (&'static str, &'static str, &'static [(&'static str, Is)]);

/// Fields of every record, first.
pub const COMMON: &[(&str, &str)] = &[
    ("time", "RFC 3339, milliseconds, UTC"),
    ("level", "error, warn or info"),
    ("event", "the kind"),
    ("message", "the sentence of the event log"),
];

/// Every kind of record that a follower may meet.
#[rustfmt::skip]
pub const KINDS: &[Kind] = &[
    ("backend_state", "A backend has another state.",
        &[("pool", Text), ("backend", Text), ("address", Text), ("state", Text), ("was", Text), ("reason", Text),
          ("reason_code", Text)]),
    ("backend_weight", "A backend has another weight by order.",
        &[("pool", Text), ("backend", Text), ("address", Text), ("weight", Number)]),
    ("probes_overdue", "Probes have not ended in time.",
        &[("backends", Texts), ("more", Number), ("given_up", Flag), ("running", Number), ("running_max", Number)]),
    ("pool", "A pool has lost its last backend, or has one again.",
        &[("pool", Text), ("backends", Number), ("trying_all", Flag)]),
    ("queue", "Connections begin to wait for a place at a backend, or none has waited for ten seconds (0).",
        &[("pool", Text), ("waiting", Number)]),
    ("members", "A source of members names others, cannot be asked, or answers again.",
        &[("pool", Text), ("source", Text), ("members", Number), ("error", MaybeText)]),
    ("vip", "A virtual address has another state on this node.",
        &[("address", Text), ("interface", Text), ("was", Text), ("state", Text), ("reason", Text), ("holder", MaybeText)]),
    ("node", "Another node is heard, or is not heard any more.", &[("node", Text), ("alive", Flag)]),
    ("node_config", "Another node is configured otherwise.", &[("node", Text), ("what", Text)]),
    ("witness", "A witness answers, or does so no longer.", &[("address", Text), ("up", Flag)]),
    ("arbiter", "The arbiter answers, or does so no longer.", &[("error", MaybeText)]),
    ("vote", "The arbiter's vote on an address is this node's, or is so no longer.", &[("address", Text), ("ours", Flag)]),
    ("track", "Something that is tracked holds, or does so no longer.",
        &[("track", Text), ("what", Text), ("error", MaybeText)]),
    ("keeper", "Addresses can be installed again, or cannot.", &[("error", MaybeText)]),
    ("beat_refused", "A node's beat was refused; one record a second at most.", &[("reason", Text), ("from", Text)]),
    ("reload", "Another configuration is in force.", &[("generation", Number)]),
    ("reload_refused", "The configuration stays as it was.", &[("reason", Text)]),
    ("upgrade", "The program on disk is started, to serve in place of this process.", &[("program", Text)]),
    ("upgrade_failed", "It does not; this process goes on.", &[("reason", Text)]),
    ("upgraded", "Another process serves in place of this one.",
        &[("pid", Number), ("connections", Number), ("grace_ms", Number)]),
    ("stopping", "Nothing is accepted any more.", &[("connections", Number), ("grace_ms", Number)]),
    ("log", "Any other line of the event log.", &[]),
    ("lost", "So many records are missing here, because they were read too slowly.", &[("count", Number)]),
    ("end", "The last record: the process stops, or another one serves in its place.", &[("successor", MaybeNumber)]),
];

/// The schema of a record.
pub fn schema() -> Value {
    let common = COMMON.iter().map(|&(name, means)| {
        let mut schema = json!({"type": "string", "description": means});
        if name == "level" {
            schema["enum"] = json!(["error", "warn", "info"]);
        }
        (name.to_string(), schema)
    });
    let common: serde_json::Map<String, Value> = common.collect();
    let kinds = KINDS.iter().map(|(kind, means, fields)| {
        let mut properties = common.clone();
        properties["event"] = json!({"const": kind});
        properties.extend(fields.iter().map(|&(name, is)| (name.to_string(), is.schema())));
        let required: Vec<&String> = properties.keys().collect();
        json!({"description": means, "type": "object", "required": required, "properties": properties})
    });
    json!({"oneOf": kinds.collect::<Vec<_>>()})
}

impl Is {
    fn schema(self) -> Value {
        match self {
            Is::Text => json!({"type": "string"}),
            Is::MaybeText => json!({"type": ["string", "null"]}),
            Is::Texts => json!({"type": "array", "items": {"type": "string"}}),
            Is::Number => json!({"type": "integer", "minimum": 0}),
            Is::MaybeNumber => json!({"type": ["integer", "null"], "minimum": 0}),
            Is::Flag => json!({"type": "boolean"}),
        }
    }

    /// Whether `value` is of this type.
    pub fn fits(self, value: &Value) -> bool {
        match self {
            Is::Text => value.is_string(),
            Is::MaybeText => value.is_string() || value.is_null(),
            Is::Texts => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            Is::Number => value.is_u64(),
            Is::MaybeNumber => value.is_u64() || value.is_null(),
            Is::Flag => value.is_boolean(),
        }
    }
}
