//! `weir run --listen ... --backend ...`: a tree made from flags, checked as a file is.

use super::notes::Notes;
use super::yaml::{Entry, Node, Place, Value};
use super::{Config, Diagnostic, Errors, check, conclude};

/// Name of the listener and of the pool that flags make.
const NAME: &str = "main";

impl Config {
    /// The configuration that a command line describes.
    ///
    /// A listener address is written as in `bind`. A backend is an address as in `backends.address`, and may carry
    /// any other key of a backend behind commas: `10.0.0.1:80,weight=3,max_connections=500,backup`.
    ///
    /// # Errors
    ///
    /// All of them at once; each names its flag in place of a file.
    pub fn from_flags(
        listen: &[String],
        backend: &[String],
        udp: bool,
        balance: Option<&str>,
    ) -> Result<Config, Errors> {
        let mut flags = Flags::default();
        let at_listen = flags.place("--listen".into());
        let at_backend = flags.place("--backend".into());
        let bind = listen.iter().map(|text| flags.scalar("--listen", text)).collect();
        let backends = backend.iter().map(|text| flags.backend(text)).collect();
        let mut listener = vec![
            entry("bind", at_listen, Value::List(bind)),
            entry("pool", at_listen, Value::Scalar(NAME.into())),
        ];
        if udp {
            listener.push(entry(
                "protocol",
                flags.place("--udp".into()),
                Value::Scalar("udp".into()),
            ));
        }
        let mut pool = vec![entry("backends", at_backend, Value::List(backends))];
        if let Some(text) = balance {
            let node = flags.scalar("--balance", text);
            pool.push(entry("balance", node.at, node.value));
        }
        let named = |at, entries| Value::Map(vec![entry(NAME, at, Value::Map(entries))]);
        let tree = Value::Map(vec![
            entry("listeners", at_listen, named(at_listen, listener)),
            entry("pools", at_backend, named(at_backend, pool)),
        ]);

        let notes = Notes::default();
        let config = check::check(
            &notes,
            &Node {
                at: at_listen,
                value: tree,
            },
        );
        let loaded = conclude(config, notes, |finding| Diagnostic {
            file: flags.0[finding.at.line as usize].clone(),
            line: 0,
            column: 0,
            path: String::new(),
            message: finding.message,
        });
        loaded.map(|loaded| loaded.config)
    }
}

/// What was typed; a node's "line" is an index into it.
#[derive(Default)]
struct Flags(Vec<String>);

impl Flags {
    fn place(&mut self, typed: String) -> Place {
        self.0.push(typed);
        Place {
            line: self.0.len() as u32 - 1,
            column: 0,
        }
    }

    fn scalar(&mut self, flag: &str, text: &str) -> Node {
        Node {
            at: self.place(format!("{flag} {}", super::yaml::shorten(text))),
            value: Value::Scalar(text.into()),
        }
    }

    /// `ADDRESS[,KEY[=VALUE]]...`
    fn backend(&mut self, text: &str) -> Node {
        let at = self.scalar("--backend", text).at;
        let mut parts = text.split(',');
        let address = parts.next().unwrap_or_default();
        let pair = |part: &str| {
            let (key, value) = part.split_once('=').unwrap_or((part, "true"));
            entry(key, at, Value::Scalar(value.into()))
        };
        let mut entries = vec![entry("address", at, Value::Scalar(address.into()))];
        for mut new in parts.map(pair) {
            new.first = entries.iter().find(|old| old.key == new.key).map(|old| old.at);
            entries.push(new);
        }
        Node {
            at,
            value: Value::Map(entries),
        }
    }
}

fn entry(key: &str, at: Place, value: Value) -> Entry {
    Entry {
        key: key.into(),
        at,
        first: None,
        node: Node { at, value },
    }
}
