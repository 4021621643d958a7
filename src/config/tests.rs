//! The configuration as its users meet it: text in, meaning or messages out.

use super::*;

const SMALLEST: &str = r#"
listeners: {web: {bind: "0.0.0.0:80", pool: web}}
pools: {web: {backends: [10.0.0.1:80, 10.0.0.2:80]}}
"#;

#[test]
fn one_listener_one_pool_and_two_addresses_are_a_complete_configuration() {
    let loaded = parse("weir.yaml", SMALLEST).unwrap();
    assert_eq!(loaded.warnings, []);
    assert_eq!(loaded.config.pools[0].backends[1].name, "10.0.0.2:80");
}

#[test]
fn the_reference_is_a_configuration() {
    parse("reference.yaml", &reference()).unwrap();
}

/// conf/reference.yaml is what `weir config-reference` prints. `UPDATE_REFERENCE=1` writes it.
#[test]
fn the_reference_in_conf_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/conf/reference.yaml");
    if std::env::var_os("UPDATE_REFERENCE").is_some() {
        std::fs::write(path, reference()).unwrap();
    }
    let file = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        file == reference(),
        "conf/reference.yaml is out of date: weir config-reference > conf/reference.yaml"
    );
}

#[test]
fn the_example_in_conf_is_accepted() {
    let path = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/weir.yaml"));
    assert_eq!(load(path).unwrap().warnings, []);
}
