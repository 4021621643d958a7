//! What is shipped for Prometheus and Grafana: alerting rules and a dashboard.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::common::{command, find, have, run};

fn conf(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
    path.display().to_string()
}

#[test]
fn the_alerting_rules_are_valid_and_fire_when_they_should() {
    if !have(&["promtool"]) {
        return;
    }
    let promtool = find("promtool").unwrap();
    let said = run(command(&promtool).args(["check", "rules", &conf("alerts.yaml")]));
    assert!(said.contains("SUCCESS"), "{said}");
    let said = run(command(&promtool).args(["test", "rules", &conf("alerts-test.yaml")]));
    assert!(said.contains("SUCCESS"), "{said}");
}

/// All expressions of the dashboard.
fn expressions(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(object) => {
            found.extend(object.get("expr").and_then(Value::as_str).map(str::to_owned));
            object.values().for_each(|value| expressions(value, found));
        }
        Value::Array(values) => values.iter().for_each(|value| expressions(value, found)),
        _ => {}
    }
}

/// The names of metrics in a text, without what histograms append.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let ours = words.filter(|word| word.starts_with("weir_") || word.starts_with("process_"));
    ours.map(|word| word.trim_end_matches("_bucket").to_string()).collect()
}

#[test]
fn rules_and_dashboard_ask_for_documented_metrics_only() {
    let manual = include_str!("../../docs/observability.md");
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(conf("grafana-dashboard.json")).unwrap()).unwrap();
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    assert!(all.len() > 20);
    all.push(std::fs::read_to_string(conf("alerts.yaml")).unwrap());
    for name in all.iter().flat_map(|text| names(text)) {
        assert!(manual.contains(&format!("`{name}`")), "{name}");
    }
}

#[test]
fn the_dashboard_is_well_formed() {
    let dashboard: Value =
        serde_json::from_str(&std::fs::read_to_string(conf("grafana-dashboard.json")).unwrap()).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let mut ids = BTreeSet::new();
    let mut taken = BTreeSet::new();
    for panel in panels {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "an id twice: {panel}");
        let at = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{panel}");
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "panels overlap: {panel}");
            }
        }
    }
    if !have(&["promtool"]) {
        return;
    }
    // As recording rules, so that promtool parses every expression.
    let mut all = Vec::new();
    expressions(&dashboard, &mut all);
    let rules: Vec<Value> = all
        .iter()
        .enumerate()
        .map(|(ix, expr)| {
            let expr = expr.replace("$__rate_interval", "1m");
            serde_json::json!({"record": format!("panel:{ix}"), "expr": expr})
        })
        .collect();
    let file = tempfile::Builder::new().suffix(".yaml").tempfile().unwrap();
    let groups = serde_json::json!({"groups": [{"name": "dashboard", "rules": rules}]});
    std::fs::write(file.path(), groups.to_string()).unwrap();
    let said = run(command(find("promtool").unwrap())
        .args(["check", "rules"])
        .arg(file.path()));
    assert!(said.contains("SUCCESS"), "{said}");
}
