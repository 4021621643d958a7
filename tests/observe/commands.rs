//! Each command against a live weir.

use super::common::{Server, Weir, client, command, wait_until};
use super::{all_up, ask, get, json, said, text};

pub fn two(extra: &str) -> (Weir, [Server; 2]) {
    let servers = [Server::echo(), Server::echo()];
    let weir = Weir::start(&config(&servers, extra));
    all_up(&weir);
    (weir, servers)
}

pub fn config(servers: &[Server; 2], extra: &str) -> String {
    let [a, b] = servers.each_ref().map(|server| server.address);
    format!(
        "
workers: 2
{extra}
listeners:
  main: {{bind: ['127.0.0.1:0'], pool: main}}
pools:
  main: {{backends: [{{name: a, address: '{a}', weight: 3}}, {{name: b, address: '{b}'}}]}}
"
    )
}

#[test]
fn status_shows_every_part_as_tables_and_as_the_document_of_the_contract() {
    let (weir, _servers) = two("");
    let mut open = client::connect(&weir.address("main"));
    client::round_trip(&mut open, b"hello");
    wait_until("bytes are counted", || {
        json(&weir, &["status"])["listeners"][0]["bytes_in"] == 5
    });
    let status = json(&weir, &["status"]);
    for (path, value) in [
        ("/version", env!("CARGO_PKG_VERSION").into()),
        ("/pid", weir.pid().into()),
        ("/generation", 1.into()),
        ("/reload_error", serde_json::Value::Null),
        ("/listeners/0/name", "main".into()),
        ("/listeners/0/protocol", "tcp".into()),
        ("/listeners/0/pool", "main".into()),
        ("/listeners/0/active", 1.into()),
        ("/listeners/0/accepted", 1.into()),
        ("/listeners/0/refused", 0.into()),
        ("/listeners/0/bytes_out", 5.into()),
        ("/pools/0/name", "main".into()),
        ("/pools/0/balance", "least_conn".into()),
        ("/pools/0/eligible", 2.into()),
        ("/pools/0/serving", "primary".into()),
        ("/pools/0/backends/0/name", "a".into()),
        ("/pools/0/backends/0/weight", 3.into()),
        ("/pools/0/backends/0/state", "up".into()),
        ("/pools/0/backends/0/active", 1.into()),
        ("/pools/0/backends/0/total", 1.into()),
        ("/pools/0/backends/0/failed", 0.into()),
        ("/pools/0/backends/0/bytes_in", 5.into()),
        ("/pools/0/backends/0/bytes_out", 5.into()),
        ("/process/connections", 1.into()),
        ("/vips", serde_json::json!([])),
        ("/nodes", serde_json::json!([])),
    ] {
        assert_eq!(status.pointer(path), Some(&value), "{path} in {status:#}");
    }
    for number in [
        "/uptime_s",
        "/workers/0/turns",
        "/workers/1/id",
        "/pools/0/backends/0/since_s",
    ] {
        assert!(
            status.pointer(number).is_some_and(|n| n.is_u64()),
            "{number} in {status:#}"
        );
    }
    assert!(status["pools"][0]["backends"][0]["connect_ms"].is_f64(), "{status:#}");
    assert!(
        status["config_file"].as_str().unwrap().ends_with("weir.yaml"),
        "{status:#}"
    );
    let tables = said(&weir, &["status"]);
    for part in [
        "LISTENER",
        "pool main: least_conn, 2 of 2 take new work",
        "BACKEND",
        "WORKER",
    ] {
        assert!(tables.contains(part), "{part} in\n{tables}");
    }
    assert!(!tables.contains('\x1b'), "colours are for terminals");
}

#[test]
fn conns_lists_and_kill_ends_one() {
    let (weir, _servers) = two("");
    let mut streams: Vec<_> = (0..3).map(|_| client::connect(&weir.address("main"))).collect();
    streams
        .iter_mut()
        .for_each(|stream| client::round_trip(stream, b"hello"));
    let conns = json(&weir, &["conns"]);
    assert_eq!(conns.as_array().unwrap().len(), 3, "{conns:#}");
    assert_eq!(json(&weir, &["conns", "--limit", "2"]).as_array().unwrap().len(), 2);
    let local = streams[1].local_addr().unwrap().to_string();
    let table = said(&weir, &["conns"]);
    assert!(table.contains(&local) && table.contains("main/"), "{table}");
    let found = conns
        .as_array()
        .unwrap()
        .iter()
        .find(|conn| conn["client"] == *local)
        .unwrap();
    assert_eq!(
        (&found["bytes_up"], &found["state"]),
        (&5.into(), &"open".into()),
        "{found}"
    );
    let id = found["id"].to_string();
    assert_eq!(said(&weir, &["kill", &id]), format!("{id} is ended\n"));
    assert_eq!(client::read_to_reset(&mut streams[1]), b"");
    client::round_trip(&mut streams[0], b"still here");
    let again = ask(&weir, &["kill", &id]);
    assert_eq!(again.status.code(), Some(1));
    assert!(text(&again.stderr).contains("no connection or session has the id"));
}

#[test]
fn backend_orders_take_effect_at_once() {
    let (weir, _servers) = two("");
    let state = || {
        let status = json(&weir, &["status"]);
        let backend = &status["pools"][0]["backends"][0];
        (
            backend["state"].as_str().unwrap().to_string(),
            backend["weight"].as_u64().unwrap(),
        )
    };
    let used = || {
        let counts =
            |status: serde_json::Value| [0, 1].map(|ix| status["pools"][0]["backends"][ix]["total"].as_u64().unwrap());
        let before = counts(json(&weir, &["status"]));
        for _ in 0..4 {
            client::round_trip(&mut client::connect(&weir.address("main")), b"x");
        }
        let after = counts(json(&weir, &["status"]));
        [0, 1].map(|ix| after[ix] - before[ix])
    };
    for (words, expected) in [
        (&["drain"][..], ("drain", 3)),
        (&["ready"], ("up", 3)),
        (&["down"], ("disabled", 3)),
        (&["weight", "0"], ("disabled", 0)),
        (&["ready"], ("up", 3)),
        (&["weight", "7"], ("up", 7)),
    ] {
        let mut order = vec!["backend", "main/a"];
        order.extend(words);
        said(&weir, &order);
        let (state, weight) = state();
        assert_eq!((state.as_str(), weight), expected, "after {words:?}");
        let [a, b] = used();
        assert_eq!(a + b, 4);
        assert_eq!(a > 0, expected.0 == "up", "{words:?}: {a} and {b}");
    }
    for (words, says) in [
        (&["backend", "main/x", "drain"][..], "x"),
        (&["backend", "nope/a", "drain"], "nope"),
    ] {
        let answer = ask(&weir, words);
        assert_eq!(answer.status.code(), Some(1), "{words:?}");
        assert!(text(&answer.stderr).contains(says), "{}", text(&answer.stderr));
    }
    for words in [
        &["backend", "main", "drain"][..],
        &["backend", "main/a", "dance"],
        &["kill", "x"],
    ] {
        assert_eq!(ask(&weir, words).status.code(), Some(2), "{words:?}");
    }
}

#[test]
fn vip_orders_need_a_vip() {
    let (weir, _servers) = two("");
    let answer = ask(&weir, &["vip", "10.0.0.100", "demote"]);
    assert_eq!(answer.status.code(), Some(1), "{}", text(&answer.stderr));
    assert_eq!(ask(&weir, &["vip", "10.0.0.300", "demote"]).status.code(), Some(2));
}

#[test]
fn reload_says_what_came_of_it() {
    let (weir, servers) = two("");
    let reload = said(&weir, &["reload"]);
    assert!(reload.contains("generation 2"), "{reload}");
    weir.rewrite("listeners: {main: {bindd: []}}");
    let refused = ask(&weir, &["reload"]);
    assert_eq!(refused.status.code(), Some(3));
    let error = text(&refused.stderr);
    assert!(error.contains("weir.yaml:1:") && error.contains("bindd"), "{error}");
    let status = json(&weir, &["status"]);
    assert_eq!(status["generation"], 2);
    assert!(status["reload_error"].as_str().unwrap().contains("bindd"));
    assert!(said(&weir, &["status"]).contains("the last reload was refused"));
    weir.rewrite(&config(&servers, ""));
    assert_eq!(json(&weir, &["reload"])["ok"], "generation 3");
    assert!(json(&weir, &["status"])["reload_error"].is_null());
}

#[test]
fn top_prints_a_frame_for_scripts() {
    let (weir, _servers) = two("");
    let mut open = client::connect(&weir.address("main"));
    client::round_trip(&mut open, b"hello");
    let frame = said(&weir, &["top", "--once", "--interval", "200ms"]);
    assert_eq!(frame.lines().count(), 24, "{frame}");
    for part in ["1 live", "main/a", "OUT/S▼", "q quit"] {
        assert!(frame.contains(part), "{part} in\n{frame}");
    }
    let frame = said(
        &weir,
        &["top", "--once", "--interval", "200ms", "--view", "connections"],
    );
    assert!(frame.contains(&open.local_addr().unwrap().to_string()), "{frame}");
    let document = json(&weir, &["top", "--interval", "200ms"]);
    assert_eq!(document["connections"].as_array().unwrap().len(), 1);
    assert!(document["rates"]["bytes_out"].is_f64());
}

#[test]
fn a_weir_that_is_not_there_is_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    let nowhere = dir.path().join("admin.sock");
    let stale = dir.path().join("stale.sock");
    drop(std::os::unix::net::UnixListener::bind(&stale).unwrap());
    for words in [
        &["status"][..],
        &["conns"],
        &["kill", "1"],
        &["reload"],
        &["top", "--once"],
    ] {
        for socket in [&nowhere, &stale] {
            let mut ask = command(env!("CARGO_BIN_EXE_weir"));
            let output = ask.args(words).arg("--socket").arg(socket).output().unwrap();
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(1), "{words:?}: {error}");
            assert!(error.contains("weir is not running"), "{words:?}: {error}");
        }
    }
}

#[test]
fn a_second_weir_on_the_same_admin_socket_is_refused_and_names_the_first() {
    let (weir, servers) = two("");
    let extra = format!("admin: {}", weir.admin().display());
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    std::fs::write(&file, config(&servers, &extra)).unwrap();
    let mut second = command(env!("CARGO_BIN_EXE_weir"));
    let output = second.args(["run", "-c"]).arg(&file).output().unwrap();
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(
        error.contains(&format!("another weir (pid {}) is running there", weir.pid())),
        "{error}"
    );
    said(&weir, &["status"]);
}

#[test]
fn http_serves_page_status_and_health() {
    let port = super::common::Port::reserve();
    let (weir, _servers) = two(&format!("metrics: '{}'", port.address()));
    let address = port.address().to_string();
    for (path, part) in [
        ("/", "<title>weir</title>"),
        ("/page.js", "use strict"),
        ("/page.css", ":root"),
        ("/healthz", "ok"),
        ("/history", "\"series\""),
    ] {
        let (head, body) = get(&address, path);
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}");
        assert!(body.contains(part), "{path}: {body}");
    }
    let (_, status) = get(&address, "/status");
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["pid"], weir.pid());
}

/// What `weir dump` says, which `weir check` has accepted.
fn checked_dump(weir: &Weir) -> String {
    let dump = said(weir, &["dump"]);
    let dumped = weir.dir().join("dump.yaml");
    std::fs::write(&dumped, &dump).unwrap();
    let check = command(env!("CARGO_BIN_EXE_weir"))
        .args(["check", "-c"])
        .arg(&dumped)
        .output()
        .unwrap();
    assert!(check.status.success(), "{dump}{check:?}");
    dump
}

/// The configuration in force comes out as a file that is accepted, with what was ordered; and what a file would change is
/// told apart from what it would not.
#[test]
fn what_is_in_force_and_what_a_file_would_change() {
    let (weir, servers) = two("shutdown_grace: 20s");
    let file = weir.dir().join("weir.yaml");
    let file = file.to_str().unwrap();
    assert_eq!(said(&weir, &["diff", "-c", file]), "");
    said(&weir, &["backend", "main/a", "weight", "9"]);
    said(&weir, &["backend", "main/b", "drain"]);
    let dump = checked_dump(&weir);
    assert!(dump.contains("weight: 9") && dump.contains("weight: 0"), "{dump}");
    let differs = ask(&weir, &["diff", "-c", file]);
    assert_eq!(differs.status.code(), Some(1));
    assert_eq!(
        String::from_utf8(differs.stdout).unwrap(),
        "pools.main.backends.a.weight: 9 -> 3\npools.main.backends.b.weight: 0 -> (none)\n"
    );
    weir.rewrite(&config(&servers, "shutdown_grace: 40s"));
    said(&weir, &["reload"]);
    assert_eq!(said(&weir, &["diff", "-c", file]), "", "orders end with a reload");
    weir.rewrite(&config(&servers, "shutdown_grace: 50s"));
    let differs = ask(&weir, &["diff", "-c", file, "--json"]);
    let document: serde_json::Value = serde_json::from_slice(&differs.stdout).unwrap();
    let expected = serde_json::json!({"changes": [{"path": "shutdown_grace", "running": "40s", "file": "50s"}]});
    assert_eq!(document, expected);
    weir.rewrite("nonsense: true");
    assert_eq!(ask(&weir, &["diff", "-c", file]).status.code(), Some(3));
}

/// `drain --wait` returns when nothing is open any more, or fails when the time is up.
#[test]
fn a_drain_is_waited_for() {
    let (weir, _servers) = two("");
    let mut open = client::connect(&weir.address("main"));
    client::round_trip(&mut open, b"hello");
    let status = json(&weir, &["status"]);
    let backends = status["pools"][0]["backends"].as_array().unwrap();
    let busy = backends.iter().find(|backend| backend["active"] == 1).unwrap();
    let name = format!("main/{}", busy["name"].as_str().unwrap());
    let early = ask(&weir, &["backend", &name, "drain", "--wait", "300ms"]);
    let said_early = String::from_utf8_lossy(&early.stderr).into_owned();
    assert_eq!(early.status.code(), Some(1), "{said_early}");
    assert!(said_early.contains("1 open after 300ms"), "{said_early}");
    drop(open);
    let done = said(&weir, &["backend", &name, "drain", "--wait", "60s"]);
    assert!(done.contains("nothing is open any more"), "{done}");
}

/// The schema is JSON, and a question that it describes is answered.
#[test]
fn the_protocol_has_a_schema() {
    let output = command(env!("CARGO_BIN_EXE_weir")).arg("api").output().unwrap();
    let schema: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let questions = schema["question"]["oneOf"].as_array().unwrap();
    let commands: Vec<&str> = questions
        .iter()
        .map(|q| q["properties"]["command"]["const"].as_str().unwrap())
        .collect();
    assert!(
        commands.contains(&"dump") && commands.contains(&"backend"),
        "{commands:?}"
    );
}

/// Backends come and go by order: probed first, shown with who named them, in the dump and in what a file would change; a
/// reload ends that, unless it is to be kept, and so does no upgrade.
#[test]
fn backends_are_added_and_removed() {
    let (weir, servers) = two("shutdown_grace: 5s");
    let third = Server::echo();
    let address = third.address.to_string();
    let order = |words: &[&str]| {
        let output = ask(&weir, words);
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        (output.status.code(), format!("{out}{err}").trim_end().to_string())
    };
    let there = || {
        let pool = &json(&weir, &["members", "main"])["members"];
        let row = |member: &serde_json::Value| {
            format!(
                "{} {}",
                member["name"].as_str().unwrap(),
                member["source"].as_str().unwrap()
            )
        };
        pool.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    let added = format!("{address} operator");
    let file = weir.dir().join("weir.yaml");
    let file = file.to_str().unwrap();

    let mut follower = super::events::Line::follow(&weir);
    let (code, said_so) = order(&["backend", "main", "add", &address, "weight=7"]);
    assert_eq!(
        (code, &*said_so),
        (Some(0), &*format!("main/{address}: added until the next reload"))
    );
    let record = follower.next_of("members");
    assert_eq!((&record["source"], &record["members"]), (&"operator".into(), &1.into()));
    let record = follower.next_of("backend_state");
    let change = ["address", "was", "state"].map(|key| record[key].as_str().unwrap());
    assert_eq!(change, [&*address, "starting", "up"], "it is probed first");
    assert_eq!(there(), ["a ", "b ", &added]);
    said(&weir, &["backend", "main/a", "down"]);
    said(&weir, &["backend", "main/b", "down"]);
    let mut stream = client::connect(&weir.address("main"));
    client::round_trip(&mut stream, b"hello");

    // (what is ordered, what is said)
    let again = format!("pool main has {address} already");
    for (words, said_so) in [
        (vec!["backend", "main", "add", &address], &*again),
        (vec!["backend", "main", "add", "0.0.0.0:80"], "0.0.0.0:80: "),
        (
            vec!["backend", "none", "add", "10.0.0.1:80"],
            "there is no pool \"none\"",
        ),
        (vec!["backend", "main/x", "remove"], "pool main has no backend \"x\""),
    ] {
        let (code, text) = order(&words);
        assert_eq!(code, Some(1), "{words:?}: {text}");
        assert!(text.starts_with(&format!("weir: {said_so}")), "{words:?}: {text}");
    }

    // The dump is accepted and has it; a reload of the file would take it away.
    let dump = checked_dump(&weir);
    assert!(dump.contains(&address), "{dump}");
    let (_, differs) = order(&["diff", "-c", file]);
    assert!(
        differs.contains(&format!("pools.main.backends.{address}.weight: 7 -> (none)")),
        "{differs}"
    );
    said(&weir, &["reload"]);
    assert_eq!(there(), ["a ", "b "]);
    assert_eq!(said(&weir, &["diff", "-c", file]), "");
    client::round_trip(&mut stream, b"it may finish");

    // Kept over reloads: an addition, a removal, a weight.
    said(&weir, &["backend", "main", "add", &address, "--keep"]);
    said(&weir, &["backend", "main/a", "remove", "--keep"]);
    said(&weir, &["backend", "main/b", "weight", "9", "--keep"]);
    weir.rewrite(&config(&servers, "shutdown_grace: 6s"));
    said(&weir, &["reload"]);
    assert_eq!(there(), ["b ", &added]);
    assert_eq!(json(&weir, &["status"])["pools"][0]["backends"][0]["weight"], 9);
    said(&weir, &["backend", "main/b", "remove"]);
    let (code, text) = order(&["backend", &format!("main/{address}"), "remove"]);
    assert_eq!(code, Some(1));
    assert!(text.contains("is the last backend of its pool"), "{text}");
    let a = servers[0].address.to_string();
    let (code, text) = order(&["backend", "main", "add", &a]);
    assert_eq!(
        (code, &*text),
        (Some(0), &*format!("main/{a}: is back, as it is named"))
    );
    said(&weir, &["backend", &format!("main/{address}"), "remove"]);
    assert_eq!(there(), ["a "]);
}
