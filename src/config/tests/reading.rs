//! YAML as it is read: text and place of each node.

use crate::config::yaml::{Node, Place, Value, read};

/// The tree on one line: `LINE:COL=value`.
fn shown(node: &Node) -> String {
    let place = |at: Place| format!("{}:{}", at.line, at.column);
    let join = |parts: Vec<String>| parts.join(" ");
    match &node.value {
        Value::Null => format!("{}=~", place(node.at)),
        Value::Scalar(text) => format!("{}={text}", place(node.at)),
        Value::List(nodes) => format!("[{}]", join(nodes.iter().map(shown).collect())),
        Value::Map(entries) => format!(
            "{{{}}}",
            join(
                entries
                    .iter()
                    .map(|e| format!(
                        "{}{}@{}->{}",
                        e.key,
                        e.first.map_or("", |_| "(again)"),
                        place(e.at),
                        shown(&e.node)
                    ))
                    .collect()
            )
        ),
    }
}

#[test]
fn every_value_has_its_text_and_its_place() {
    #[rustfmt::skip]
    let rows = [
        ("a: 1", "{a@1:1->1:4=1}"),
        ("a", "1:1=a"),
        ("a: {b: [1, x], c: ~}", "{a@1:1->{b@1:5->[1:9=1 1:12=x] c@1:16->1:19=~}}"),
        // Numbers and booleans keep their spelling.
        ("[1.10, 0x1F, 010, 1e3, +5, .5, 1_000, true, True, 99999999999999999999]", "[1:2=1.10 1:8=0x1F 1:14=010 1:19=1e3 1:24=+5 1:28=.5 1:32=1_000 1:39=true 1:45=True 1:51=99999999999999999999]"),
        ("1: 2\n-3: -4.50", "{1@1:1->1:4=2 -3@2:1->2:5=-4.50}"),
        ("a: 'x y'\nb: \"t\\tz\"\nc: |\n  u\n", "{a@1:1->1:4=x y b@2:1->2:4=t\tz c@3:1->3:4=u\n}"),
        ("é: [ü, 5]\r\nb: 6", "{é@1:1->[1:5=ü 1:8=5] b@2:1->2:4=6}"),
        ("# c\n\n  a:   7   # d", "{a@3:3->3:8=7}"),
        ("\u{feff}a: 1", "{a@1:1->1:4=1}"),
        ("a: {}\nb: []\nc:\nd: ''", "{a@1:1->{} b@2:1->[] c@3:1->3:3=~ d@4:1->4:4=}"),
        ("a: 1\na: 2", "{a@1:1->1:4=1 a(again)@2:1->2:4=2}"),
        // An alias stands where its anchor stands.
        ("a: &x 30\nb: *x", "{a@1:1->1:4=30 b@2:1->1:4=30}"),
        ("a: &x {p: 1, q: 2}\nb: {<<: *x, q: 3}", "{a@1:1->{p@1:8->1:11=1 q@1:14->1:17=2} b@2:1->{q@2:13->2:16=3 p@1:8->1:11=1}}"),
    ];
    for (text, expected) in rows {
        assert_eq!(shown(&read(text).unwrap()), expected, "{text:?}");
    }
}

#[test]
fn text_that_is_no_yaml_is_refused_with_its_place() {
    #[rustfmt::skip]
    let rows = [
        ("a: [1, 2\nb: 3", "2:2: not valid YAML: did not find expected ',' or ']', while parsing a flow sequence at line 1 column 4"),
        ("a:\n\tb: 3", "2:1: not valid YAML: found character that cannot start any token, while scanning for the next token; the line begins with a tab: indent with spaces"),
        ("a: \u{1}", "1:4: the character U+0001 cannot stand in a YAML file: within double quotes write it as an escape"),
        ("x: 1\ny: \u{7f}", "2:4: the character U+007F cannot stand in a YAML file: within double quotes write it as an escape"),
        ("a: 1\n---\nb: 2", "1:1: the file holds more than one YAML document (`---`); exactly one is read"),
        ("a: {b: 1}\n  c: 2", "2:3: not valid YAML: did not find expected key, while parsing a block mapping"),
        ("a: *nope", "1:4: not valid YAML: unknown anchor"),
        ("a: &x [*x]", "1:4: not valid YAML: recursion limit exceeded"),
        ("a: !t 3", "1:4: not valid YAML: a: YAML tags (`!name`) have no meaning here: leave the tag out"),
        ("? [a]\n: b", "1:1: not valid YAML: a key must be a plain word, not a list or a mapping"),
        ("a: b: c", "1:5: not valid YAML: mapping values are not allowed in this context"),
        ("a: {<<: 3}", "1:4: not valid YAML: a: a merge key (`<<`) takes a mapping: `<<: *name`"),
    ];
    for (text, expected) in rows {
        let (at, message) = read(text).unwrap_err();
        assert_eq!(format!("{}:{}: {message}", at.line, at.column), expected, "{text:?}");
    }
}

/// Nine anchors, each ten times the one before: a thousand million values if it were believed.
#[test]
fn an_alias_bomb_is_refused_quickly() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_string();
    for i in 1..9 {
        let alias = format!("*a{}", i - 1);
        text.push_str(&format!("a{i}: &a{i} [{}]\n", [alias.as_str(); 10].join(", ")));
    }
    let (_, message) = read(&text).unwrap_err();
    assert!(
        message.contains("repetition limit exceeded") || message.contains("more than 1048576 values"),
        "{message}"
    );
    let deep = "[".repeat(100_000);
    assert!(read(&deep).unwrap_err().1.contains("recursion limit exceeded"));
}
