//! etcd's questions and answers, and how its JSON gateway spells them: bytes in base64, 64-bit numbers as text, what is
//! empty or zero left out. Newer gateways write names in camel case, older ones with underscores; both are read.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

/// A key with what etcd keeps about it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct KeyValue {
    /// The key's bytes.
    #[serde(deserialize_with = "bytes")]
    pub key: Vec<u8>,
    /// The value's bytes.
    #[serde(deserialize_with = "bytes")]
    pub value: Vec<u8>,
    /// The revision in which it was created.
    #[serde(deserialize_with = "number", alias = "createRevision")]
    pub create_revision: i64,
    /// The revision in which it was changed last.
    #[serde(deserialize_with = "number", alias = "modRevision")]
    pub mod_revision: i64,
    /// Changes since it was created, that one included.
    #[serde(deserialize_with = "number")]
    pub version: i64,
    /// The lease that it goes with; 0 = none.
    #[serde(deserialize_with = "number")]
    pub lease: i64,
}

/// The keys that a question is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Keys {
    /// This key alone.
    One(Vec<u8>),
    /// All keys that begin with this.
    Prefix(Vec<u8>),
}

impl Keys {
    fn put_into(&self, body: &mut Map<String, Value>) {
        let (key, end) = match self {
            Keys::One(key) => (key.clone(), None),
            // No first key means all keys, spelled as two zero bytes.
            Keys::Prefix(prefix) if prefix.is_empty() => (vec![0], Some(vec![0])),
            Keys::Prefix(prefix) => (prefix.clone(), Some(after(prefix))),
        };
        body.insert("key".into(), text(&key));
        if let Some(end) = end {
            body.insert("range_end".into(), text(&end));
        }
    }
}

/// The first key that is behind all those with this prefix.
fn after(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Nothing but 0xff: to the end of all keys.
    vec![0]
}

/// A condition or a value is this, more than it, or less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Is {
    /// Equal to the operand.
    Equal,
    /// Greater than the operand; texts compare by their bytes.
    Greater,
    /// Less than the operand.
    Less,
}

/// A condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The revision in which the key was created; 0 = it is not there.
    Created(Vec<u8>, Is, i64),
    /// The revision in which it was changed last.
    Modified(Vec<u8>, Is, i64),
    /// Its value. A key that is not there fulfils no such condition.
    Value(Vec<u8>, Is, Vec<u8>),
}

/// A step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Read these keys.
    Get(Keys),
    /// Write one key.
    Put {
        /// The key's bytes.
        key: Vec<u8>,
        /// The value's bytes.
        value: Vec<u8>,
        /// The lease with which the key goes; 0 = none.
        lease: i64,
    },
    /// Remove these keys.
    Delete(Keys),
    /// A transaction of its own, on which the outer one does not depend.
    Txn(Txn),
}

/// If all conditions hold the one list of steps, else the other: at once, or not at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions; the transaction succeeds if all of them hold.
    pub compare: Vec<Compare>,
    /// Carried out if they hold.
    pub success: Vec<Op>,
    /// Carried out if they do not.
    pub failure: Vec<Op>,
}

impl Txn {
    pub(super) fn body(&self) -> Value {
        let all = |ops: &[Op]| ops.iter().map(Op::body).collect::<Vec<_>>();
        let compare: Vec<Value> = self.compare.iter().map(Compare::body).collect();
        json!({"compare": compare, "success": all(&self.success), "failure": all(&self.failure)})
    }
}

impl Compare {
    fn body(&self) -> Value {
        let (key, is, target, name, value) = match self {
            Compare::Created(key, is, n) => (key, is, "CREATE", "create_revision", json!(n.to_string())),
            Compare::Modified(key, is, n) => (key, is, "MOD", "mod_revision", json!(n.to_string())),
            Compare::Value(key, is, value) => (key, is, "VALUE", "value", text(value)),
        };
        let result = match is {
            Is::Equal => "EQUAL",
            Is::Greater => "GREATER",
            Is::Less => "LESS",
        };
        json!({"key": text(key), "target": target, "result": result, name: value})
    }
}

impl Op {
    fn body(&self) -> Value {
        match self {
            Op::Get(keys) => json!({"request_range": keys.body()}),
            Op::Put { key, value, lease } => json!({"request_put": put(key, value, *lease)}),
            Op::Delete(keys) => json!({"request_delete_range": keys.body()}),
            Op::Txn(txn) => json!({"request_txn": txn.body()}),
        }
    }
}

impl Keys {
    pub(super) fn body(&self) -> Value {
        let mut body = Map::new();
        self.put_into(&mut body);
        Value::Object(body)
    }
}

pub(super) fn put(key: &[u8], value: &[u8], lease: i64) -> Value {
    json!({"key": text(key), "value": text(value), "lease": lease.to_string()})
}

/// What every answer begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Header {
    /// The revision of the store when it was answered.
    #[serde(deserialize_with = "number")]
    pub revision: i64,
}

/// The keys that a read found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Found {
    /// The revision at which it was read.
    pub header: Header,
    /// The keys found, in order, with their values.
    pub kvs: Vec<KeyValue>,
}

/// How many keys were removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Deleted {
    /// The revision after the removal.
    pub header: Header,
    /// Number of keys removed.
    #[serde(deserialize_with = "number")]
    pub deleted: i64,
}

/// Nothing but that it was done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Done {
    /// The revision after the write.
    pub header: Header,
}

/// How a transaction went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Decided {
    /// The revision after the transaction.
    pub header: Header,
    /// True if all conditions held.
    pub succeeded: bool,
    /// One answer a step.
    pub responses: Vec<Answer>,
}

/// The answer to a step.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub enum Answer {
    /// To [`Op::Get`].
    #[serde(rename = "response_range", alias = "responseRange")]
    Get(Found),
    /// To [`Op::Put`].
    #[serde(rename = "response_put", alias = "responsePut")]
    Put(Done),
    /// To [`Op::Delete`].
    #[serde(rename = "response_delete_range", alias = "responseDeleteRange")]
    Delete(Deleted),
    /// To [`Op::Txn`].
    #[serde(rename = "response_txn", alias = "responseTxn")]
    Txn(Decided),
}

/// A lease that etcd has granted or renewed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Lease {
    /// Its id in etcd.
    #[serde(rename = "ID", deserialize_with = "number")]
    pub id: i64,
    /// Seconds that it has left; at least what was asked for.
    #[serde(rename = "TTL", deserialize_with = "number")]
    pub ttl_s: i64,
}

/// One change that a watch reports.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Change {
    /// Whether the key was written or removed.
    #[serde(rename = "type")]
    pub kind: Kind,
    /// The key as it is now; of a removed one only its name and revision.
    pub kv: KeyValue,
}

/// What happened to a key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Kind {
    /// The key was written.
    #[default]
    Put,
    /// Removed, or gone with its lease.
    Delete,
}

/// One message of a watch.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Watched {
    pub header: Header,
    pub created: bool,
    pub canceled: bool,
    #[serde(deserialize_with = "number", alias = "compactRevision")]
    pub compact_revision: i64,
    #[serde(alias = "cancelReason")]
    pub cancel_reason: String,
    pub events: Vec<Change>,
}

/// A refusal: gRPC's status. Streams spell its number differently.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Refusal {
    #[serde(alias = "grpc_code")]
    pub code: i64,
    pub message: String,
}

pub(super) fn text(bytes: &[u8]) -> Value {
    Value::String(STANDARD.encode(bytes))
}

fn bytes<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(from)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

/// As text, as the protocol's mapping wants it, or as a number.
fn number<'de, D: Deserializer<'de>>(from: D) -> Result<i64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(i64),
        Text(String),
    }
    match Either::deserialize(from)? {
        Either::Number(n) => Ok(n),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_end_where_the_next_begins() {
        let rows: [(&[u8], &[u8]); 4] = [
            (b"/weir/", b"/weir0"),
            (b"a\xff", b"b"),
            (b"\xff\xff", b"\0"),
            (b"a", b"b"),
        ];
        for (prefix, end) in rows {
            assert_eq!(after(prefix), end, "{prefix:?}");
        }
        assert_eq!(Keys::Prefix(vec![]).body(), json!({"key": "AA==", "range_end": "AA=="}));
    }

    /// As etcd 3.4 wrote it, and as later gateways spell the same.
    #[test]
    fn answers_of_either_spelling() {
        let rows = [
            r#"{"header":{"revision":"7"},"responses":[{"response_txn":{"header":{},"succeeded":true,"responses":[
               {"response_range":{"header":{"revision":"2"},"kvs":[{"key":"Zm9v","create_revision":"2","mod_revision":"3",
               "version":"1","value":"YmFy"}],"count":"1"}}]}}]}"#,
            r#"{"header":{"revision":7},"responses":[{"responseTxn":{"header":{},"succeeded":true,"responses":[
               {"responseRange":{"header":{"revision":"2"},"kvs":[{"key":"Zm9v","createRevision":"2","modRevision":"3",
               "version":"1","value":"YmFy","lease":"0"}],"count":"1"}}]}}]}"#,
        ];
        for row in rows {
            let decided: Decided = serde_json::from_str(row).unwrap();
            assert!(!decided.succeeded);
            assert_eq!(decided.header.revision, 7);
            let Answer::Txn(inner) = &decided.responses[0] else {
                panic!("{decided:?}")
            };
            assert!(inner.succeeded);
            let Answer::Get(found) = &inner.responses[0] else {
                panic!("{inner:?}")
            };
            assert_eq!(found.kvs[0].value, b"bar");
            assert_eq!((found.kvs[0].create_revision, found.kvs[0].mod_revision), (2, 3));
        }
    }

    #[test]
    fn a_transaction_as_the_gateway_reads_it() {
        let txn = Txn {
            compare: vec![Compare::Created(b"k".to_vec(), Is::Equal, 0)],
            success: vec![Op::Put {
                key: b"k".to_vec(),
                value: b"v".to_vec(),
                lease: 9,
            }],
            failure: vec![Op::Get(Keys::One(b"k".to_vec()))],
        };
        let expected = json!({
            "compare": [{"key": "aw==", "target": "CREATE", "result": "EQUAL", "create_revision": "0"}],
            "success": [{"request_put": {"key": "aw==", "value": "dg==", "lease": "9"}}],
            "failure": [{"request_range": {"key": "aw=="}}],
        });
        assert_eq!(txn.body(), expected);
    }

    /// Nothing that a server sends makes the reader fail otherwise than with an error.
    #[test]
    fn nonsense_is_an_error() {
        for row in [
            "",
            "[]",
            "{\"kvs\":3}",
            "{\"kvs\":[{\"key\":\"%\"}]}",
            "{\"header\":{\"revision\":\"x\"}}",
        ] {
            assert!(serde_json::from_str::<Found>(row).is_err() || row == "[]", "{row}");
        }
    }
}
