//! What may be said on the admin socket, as a JSON Schema: `weir api`.

use serde_json::{Value, json};

use super::event;

/// The schema of questions and answers.
pub fn schema() -> Value {
    let text = || json!({"type": "string"});
    let number = || json!({"type": "integer", "minimum": 0});
    let question = |command: &str, means: &str, keys: &[(&str, Value)]| {
        let mut properties = json!({"command": {"const": command}});
        keys.iter().for_each(|(key, schema)| properties[key] = schema.clone());
        let mut required = vec!["command"];
        let needed = keys.iter().filter(|(_, schema)| schema.get("default").is_none());
        required.extend(needed.map(|(key, _)| *key));
        json!({
            "description": means, "type": "object", "properties": properties, "required": required,
            "additionalProperties": false,
        })
    };
    let keep = || json!({"type": "boolean", "default": false});
    let weight = json!({"type": ["integer", "null"], "minimum": 0, "maximum": 65535, "default": null});
    let order = json!({"oneOf": [
        {"enum": ["ready", "drain", "down"]},
        {"type": "object", "properties": {"weight": {"type": "integer", "minimum": 0, "maximum": 65535}},
         "required": ["weight"], "additionalProperties": false},
    ]});
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "weir admin protocol",
        "description": "One JSON object a line on the admin socket, any number of questions on one connection, each answered by one \
                        line. A question has 4096 bytes at most.",
        "version": env!("CARGO_PKG_VERSION"),
        "question": {"oneOf": [
            question("status", "The status document, as `weir status --json`.", &[]),
            question("conns", "Live connections and sessions.", &[("limit", number())]),
            question("kill", "End a connection or session.", &[("id", number())]),
            question("backend", "Change a backend until the next reload; a weight over reloads, if it is to be kept.",
                &[("pool", text()), ("name", text()), ("order", order), ("keep", keep())]),
            question("backend_add", "Add a backend to a pool until the next reload or, if it is to be kept, until weir is restarted.",
                &[("pool", text()), ("address", text()), ("weight", weight), ("keep", keep())]),
            question("backend_remove", "Take a backend out of its pool, for as long; what is open there may finish.",
                &[("pool", text()), ("name", text()), ("keep", keep())]),
            question("vip", "Move a virtual address away from this node, or let it come back.",
                &[("address", json!({"type": "string", "description": "without prefix length"})), ("order", json!({"enum": ["demote", "allow"]}))]),
            question("reload", "Read the configuration again; takes up to two minutes.", &[]),
            question("upgrade", "Have the program on disk serve in place of this process; takes up to half a minute.", &[]),
            question("events", "Follow what happens: after the answer, one event a line until the connection or the process ends.", &[]),
            question("dump", "The configuration in force, as YAML.", &[]),
            question("metrics", "The page of Prometheus.", &[]),
            question("health", "Whether all is well.", &[]),
            question("history", "Samples of the last minutes after this number.", &[("since", number())]),
        ]},
        "answer": {"oneOf": [
            {"description": "What was asked for, or what was done, in words.", "type": "object", "properties": {"ok": true}, "required": ["ok"]},
            {"description": "Why not; `cause` is `configuration` if the file is at fault.", "type": "object",
             "properties": {"error": text(), "cause": {"enum": ["configuration", "runtime"]}}, "required": ["error", "cause"]},
        ]},
        "event": event::schema(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::question::{BackendOrder, Question, VipOrder};

    /// One of each; a variant that is missing here does not compile below.
    fn questions() -> Vec<Question> {
        let all = vec![
            Question::Status,
            Question::Conns { limit: 1 },
            Question::Kill { id: 1 },
            Question::Backend {
                pool: "p".into(),
                name: "n".into(),
                order: BackendOrder::Drain,
                keep: false,
            },
            Question::BackendAdd {
                pool: "p".into(),
                address: "10.0.0.1:80".into(),
                weight: None,
                keep: false,
            },
            Question::BackendRemove {
                pool: "p".into(),
                name: "n".into(),
                keep: false,
            },
            Question::Vip {
                address: [10, 0, 0, 1].into(),
                order: VipOrder::Demote,
            },
            Question::Reload,
            Question::Upgrade,
            Question::Events,
            Question::Dump,
            Question::Metrics,
            Question::Health,
            Question::History { since: 0 },
        ];
        for question in &all {
            match question {
                Question::Status | Question::Conns { .. } | Question::Kill { .. } | Question::Backend { .. } => {}
                Question::BackendAdd { .. } | Question::BackendRemove { .. } => {}
                Question::Vip { .. } | Question::Reload | Question::Dump | Question::Metrics | Question::Health => {}
                Question::History { .. } | Question::Events | Question::Upgrade => {}
            }
        }
        all
    }

    /// The schema has what is understood, key by key. Meant to fail with a key misspelt.
    #[test]
    fn the_schema_has_every_question() {
        let schema = schema();
        let described = schema["question"]["oneOf"].as_array().unwrap();
        let questions = questions();
        assert_eq!(described.len(), questions.len());
        for (described, question) in described.iter().zip(&questions) {
            let sent = serde_json::to_value(question).unwrap();
            let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
            assert_eq!(keys(&described["properties"]), keys(&sent));
            assert_eq!(described["properties"]["command"]["const"], sent["command"]);
        }
    }
}
