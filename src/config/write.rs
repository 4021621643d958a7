//! A tree as YAML text, in the manner of the documents: sections as blocks, short things in one line.
//!
//! What [`yaml::read`](super::yaml::read) makes of the text is the tree again, places aside; a test holds that.

use std::fmt::Write;

use super::yaml::{Entry, Node, Value};

/// A list or mapping that fits stands in one line.
const LINE_CHARS_MAX: usize = 110;

/// The text of a tree whose root is a mapping.
pub fn write(tree: &Node) -> String {
    let mut text = String::new();
    block(&mut text, tree, 0);
    text
}

/// The value of a key, on the lines below it.
fn block(text: &mut String, node: &Node, indent: usize) {
    match &node.value {
        Value::Map(entries) => {
            for entry in entries {
                let _ = write!(text, "{:indent$}{}:", "", scalar(&entry.key));
                below(text, &entry.node, indent, inline(entry, indent));
            }
        }
        Value::List(nodes) => {
            for node in nodes {
                let _ = writeln!(text, "{:indent$}- {}", "", flow(node));
            }
        }
        _ => {
            let _ = writeln!(text, "{:indent$}{}", "", flow(node));
        }
    }
}

/// What follows a key: the value in the same line, or a block.
fn below(text: &mut String, node: &Node, indent: usize, inline: bool) {
    if inline {
        let _ = writeln!(text, " {}", flow(node));
    } else {
        text.push('\n');
        block(text, node, indent + 2);
    }
}

/// Whether a value stands in the line of its key: scalars, lists of scalars that fit, and mappings of scalars below the
/// level of named things.
fn inline(entry: &Entry, indent: usize) -> bool {
    let plain = |node: &Node| matches!(node.value, Value::Scalar(_) | Value::Null);
    let fits = || indent + entry.key.len() + flow(&entry.node).len() + 2 <= LINE_CHARS_MAX;
    match &entry.node.value {
        Value::Scalar(_) | Value::Null => true,
        Value::List(nodes) => nodes.is_empty() || nodes.iter().all(plain) && fits(),
        Value::Map(entries) => {
            let list = |node: &Node| matches!(&node.value, Value::List(nodes) if nodes.iter().all(plain));
            let short = entries.iter().all(|e| plain(&e.node) || indent > 2 && list(&e.node));
            entries.is_empty() || indent > 0 && short && fits()
        }
    }
}

fn flow(node: &Node) -> String {
    match &node.value {
        Value::Null => "~".into(),
        Value::Scalar(text) => scalar(text),
        Value::List(nodes) => format!("[{}]", nodes.iter().map(flow).collect::<Vec<_>>().join(", ")),
        Value::Map(entries) => {
            let pair = |entry: &Entry| format!("{}: {}", scalar(&entry.key), flow(&entry.node));
            format!("{{{}}}", entries.iter().map(pair).collect::<Vec<_>>().join(", "))
        }
    }
}

/// Plain where no reader of YAML takes it for anything else, in double quotes otherwise.
fn scalar(text: &str) -> String {
    let tail = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"_-./".contains(&b));
    let digits = text.trim_start_matches(|c: char| c.is_ascii_digit());
    let word = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/') && tail(text) && !is_yaml_word(text);
    let number = digits.len() < text.len() && matches!(digits, "" | "ms" | "s" | "m" | "h" | "d" | "/s" | "/m" | "/h");
    // 0123 is octal to some.
    let number = number && (text == "0" || !text.starts_with('0') || text.starts_with("0s"));
    let (net, bits) = text.split_once('/').unwrap_or((text, "0"));
    let address = net.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok();
    if word || number || address {
        return text.to_string();
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        let _ = match c {
            '"' | '\\' => write!(quoted, "\\{c}"),
            '\n' => write!(quoted, "\\n"),
            '\r' => write!(quoted, "\\r"),
            '\t' => write!(quoted, "\\t"),
            ' '..='~' => write!(quoted, "{c}"),
            c if (c as u32) < 0x100 => write!(quoted, "\\x{:02x}", c as u32),
            // Byte order mark, separators of lines, private and unassigned ones: escaped whatever they are.
            c if !c.is_alphanumeric() => write!(quoted, "\\U{:08x}", c as u32),
            c => write!(quoted, "{c}"),
        };
    }
    quoted.push('"');
    quoted
}

/// Words that YAML takes for something else than text. `true`, `off` and the like keep their meaning.
fn is_yaml_word(text: &str) -> bool {
    let meant = matches!(text, "true" | "false" | "off" | "on");
    let lower = text.to_ascii_lowercase();
    let special = matches!(
        lower.as_str(),
        "null" | "true" | "false" | "yes" | "no" | "on" | "off" | "y" | "n"
    );
    special && !meant
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::yaml::read;
    use proptest::prelude::*;

    const AT: super::super::yaml::Place = super::super::yaml::Place { line: 0, column: 0 };

    fn node(value: Value) -> Node {
        Node { at: AT, value }
    }

    fn entry(key: String, node: Node) -> Entry {
        let (at, first) = (AT, None);
        Entry { key, at, first, node }
    }

    fn placeless(tree: &Node) -> Node {
        node(match &tree.value {
            Value::List(nodes) => Value::List(nodes.iter().map(placeless).collect()),
            Value::Map(entries) => {
                let bare = |e: &Entry| entry(e.key.clone(), placeless(&e.node));
                Value::Map(entries.iter().map(bare).collect())
            }
            other => other.clone(),
        })
    }

    fn words() -> impl Strategy<Value = String> {
        let tricky = [
            "null", "~", "", "Null", "0x10", "1e3", "010", "12:30", "-", "- a", "a: b", "#x", "%a", "true", "NO", ".5",
            "=", "<<", "!t", "*a", "&a", "\u{feff}", "\u{2028}", "\u{7f}", "\u{85}", "a b ", "1_0", ".inf", "{", "0s",
        ];
        prop_oneof![
            proptest::sample::select(tricky.to_vec()).prop_map(String::from),
            "[a-z0-9.:/_-]{1,12}",
            any::<String>(),
        ]
    }

    /// A merge key is none of ours.
    fn keys() -> impl Strategy<Value = String> {
        words().prop_filter("merge key", |key| key != "<<")
    }

    fn trees() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            Just(node(Value::Null)),
            words().prop_map(|text| node(Value::Scalar(text)))
        ];
        leaf.prop_recursive(4, 40, 5, |inner| {
            let map = proptest::collection::hash_map(keys(), inner.clone(), 0..5);
            prop_oneof![
                proptest::collection::vec(inner, 0..5).prop_map(|nodes| node(Value::List(nodes))),
                map.prop_map(|map| node(Value::Map(
                    map.into_iter().map(|(key, node)| entry(key, node)).collect()
                ))),
            ]
        })
    }

    proptest! {
        /// Meant to fail without the rule for octal-looking numbers, for words, and for U+FEFF.
        #[test]
        fn what_is_written_is_read_again(tree in trees()) {
            let root = node(Value::Map(vec![entry("root".into(), tree)]));
            let text = write(&root);
            let again = read(&text);
            prop_assert_eq!(again.as_ref().map(placeless), Ok(root), "{}", text);
        }
    }

    #[test]
    fn short_things_stand_in_one_line() {
        let text = "\
workers: 4
listeners:
  web:
    bind: [\"0.0.0.0:80\", \"[::]:80\"]
    pool: web
    allow: [10.0.0.0/8]
    timeouts: {idle: 10m}
pools:
  web:
    backends:
      - {name: a, address: \"10.0.0.1:80\", weight: 3}
      - {name: b, address: unix:/run/b, backup: true}
";
        let text = text.replace("unix:/run/b", "\"unix:/run/b\"");
        assert_eq!(write(&read(&text).unwrap()), text);
    }
}
