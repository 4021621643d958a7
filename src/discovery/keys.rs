//! What a registry's keys say: one key a member, its value an address, or an object with more.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::Heard;
use crate::config::model::{Backend, BackendAddress, MemberDefaults};

/// Most a value may have.
const BYTES_MAX: usize = 4096;
/// Most of a value in a message.
const SHOWN_MAX: usize = 60;

/// The keys below a prefix and their values as they are now.
#[derive(Debug, Default)]
pub struct Keys(BTreeMap<String, Vec<u8>>);

/// A value that is no plain address.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    address: String,
    name: Option<String>,
    weight: Option<u16>,
    max_connections: Option<u32>,
    backup: Option<bool>,
}

impl Keys {
    /// Everything that is there. Keys without the prefix.
    pub fn replace(&mut self, all: impl IntoIterator<Item = (Vec<u8>, Vec<u8>)>) {
        self.0 = all.into_iter().map(|(key, value)| (text(&key), value)).collect();
    }

    /// A key was written.
    pub fn put(&mut self, key: &[u8], value: Vec<u8>) {
        self.0.insert(text(key), value);
    }

    /// A key was removed.
    pub fn remove(&mut self, key: &[u8]) {
        self.0.remove(&text(key));
    }

    /// Who that is. Values that make no sense are left out, and the first of them is told.
    pub fn members(&self, like: &MemberDefaults) -> Heard {
        let (mut members, mut error) = (Vec::<Backend>::new(), None);
        for (key, value) in &self.0 {
            match member(key, value, like) {
                Ok(member) => {
                    if members.iter().all(|other| other.address != member.address) {
                        members.push(member);
                    }
                }
                Err(why) => error = error.or(Some(format!("key {key:?}: {why}"))),
            }
        }
        match error {
            Some(error) if members.is_empty() => Heard::Failed(error),
            Some(error) => Heard::Partly(members, error),
            None => Heard::Members(members),
        }
    }
}

fn text(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

/// One member; its key is its name if it can be one, unless the value says another.
fn member(key: &str, value: &[u8], like: &MemberDefaults) -> Result<Backend, String> {
    if value.len() > BYTES_MAX {
        return Err(format!("{} bytes: at most {BYTES_MAX} are read", value.len()));
    }
    let value = str::from_utf8(value)
        .map_err(|_| "is not text in UTF-8".to_string())?
        .trim();
    let written = match value.starts_with('{') {
        true => serde_json::from_str(value).map_err(|error| format!("`{}`: {error}", shown(value)))?,
        false => Written {
            address: value.to_string(),
            name: None,
            weight: None,
            max_connections: None,
            backup: None,
        },
    };
    let address = BackendAddress::parse(&written.address)?;
    if written.max_connections == Some(0) {
        return Err("`max_connections` is 0: leave it out, or write `weight: 0`".into());
    }
    let plain = like.member(address, false);
    let named = |name: &String| BackendAddress::is_label(name);
    Ok(Backend {
        name: written
            .name
            .or(Some(key.to_string()))
            .filter(named)
            .unwrap_or(plain.name),
        weight: written.weight.map_or(plain.weight, u32::from),
        max_connections: written.max_connections.or(plain.max_connections),
        backup: written.backup.unwrap_or(plain.backup),
        address: plain.address,
    })
}

fn shown(value: &str) -> String {
    value.chars().take(SHOWN_MAX).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value under the key `a`, and the member or the error. Seen to fail: an object with a field that is not known.
    #[test]
    fn values() {
        #[rustfmt::skip]
        let rows: [(&[u8], Result<&str, &str>); 13] = [
            (b"10.0.0.1:80",                                   Ok("a 10.0.0.1:80 2")),
            (b" 10.0.0.1:80\n",                               Ok("a 10.0.0.1:80 2")),
            (b"[2001:db8::1]:80",                              Ok("a [2001:db8::1]:80 2")),
            (b"10.0.0.1",                                      Ok("a 10.0.0.1 2")),
            (br#"{"address": "10.0.0.1:80", "weight": 7}"#,    Ok("a 10.0.0.1:80 7")),
            (br#"{"address": "10.0.0.1:80", "name": "x", "backup": true, "max_connections": 5}"#, Ok("x 10.0.0.1:80 2 b 5")),
            (br#"{"address": "10.0.0.1:80", "name": "x y"}"#,  Ok("10.0.0.1:80 10.0.0.1:80 2")),
            (b"",                                              Err("`` is not an IP address")),
            (b"web:80",                                        Err("`web:80` is a name")),
            (b"\xff",                                          Err("is not text")),
            (br#"{"address": "10.0.0.1:80", "wieght": 7}"#,    Err("`{\\\"address\\\"")),
            (br#"{"address": "10.0.0.1:80", "weight": -1}"#,   Err("`{")),
            (br#"{"address": "10.0.0.1:80", "max_connections": 0}"#, Err("`max_connections` is 0")),
        ];
        let like = MemberDefaults {
            weight: 2,
            ..MemberDefaults::default()
        };
        for (value, expected) in rows {
            let found = member("a", value, &like).map(|m| {
                let backup = if m.backup { " b" } else { "" };
                let max = m.max_connections.map_or(String::new(), |max| format!(" {max}"));
                format!("{} {} {}{backup}{max}", m.name, m.address, m.weight)
            });
            match (&found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected),
                (Err(error), Err(expected)) => assert!(error.starts_with(expected), "{error}"),
                _ => panic!("{:?}: {found:?}", String::from_utf8_lossy(value)),
            }
        }
    }

    /// Nothing that a registry holds makes the reader do more than refuse it.
    #[test]
    fn nonsense_is_refused() {
        let mut rng = crate::base::Rng::new(16);
        let words: [&[u8]; 12] = [
            b"{",
            b"}",
            b"\"address\"",
            b":",
            b"\"10.0.0.1:80\"",
            b",",
            b"\"weight\"",
            b"99999999999",
            b"[",
            b"\\u0000",
            b"\xff",
            b"10.0.0.1:80",
        ];
        for _ in 0..20_000 {
            let count = rng.next_u64() % 8;
            let value: Vec<u8> = (0..count)
                .flat_map(|_| words[(rng.next_u64() % 12) as usize].to_vec())
                .collect();
            if let Ok(member) = member("k", &value, &MemberDefaults::default()) {
                assert!(BackendAddress::parse(&member.address.to_string()).is_ok());
            }
        }
    }

    #[test]
    fn changes_of_keys() {
        let mut keys = Keys::default();
        let like = MemberDefaults::default();
        let count = |heard: Heard| match heard {
            Heard::Members(members) => (members.len(), ""),
            Heard::Partly(members, _) => (members.len(), "partly"),
            Heard::Failed(_) => (0, "failed"),
            _ => (0, "other"),
        };
        keys.replace([
            (b"a".to_vec(), b"10.0.0.1:80".to_vec()),
            (b"b".to_vec(), b"10.0.0.2:80".to_vec()),
        ]);
        assert_eq!(count(keys.members(&like)), (2, ""));
        keys.put(b"c", b"10.0.0.2:80".to_vec());
        assert_eq!(count(keys.members(&like)), (2, ""), "one address, one member");
        keys.put(b"a", b"nonsense".to_vec());
        assert_eq!(count(keys.members(&like)), (1, "partly"));
        keys.remove(b"b");
        keys.remove(b"c");
        assert_eq!(count(keys.members(&like)), (0, "failed"));
        keys.remove(b"a");
        assert_eq!(count(keys.members(&like)), (0, ""));
    }
}
