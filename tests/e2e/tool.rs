//! The command line: what is refused and how, and the commands that need no file.

use std::process::Command;

use super::common::{Server, Weir, client};

fn weir(arguments: &[&str]) -> (i32, String, String) {
    let output = Command::new(env!("CARGO_BIN_EXE_weir"))
        .args(arguments)
        .output()
        .unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}

/// Every error of a file is reported in one go, with its place, by `run` as by `check`.
#[test]
fn a_bad_file_is_refused_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    let yaml = "\
workers: -1
listeners:
  web:
    bind: ['0.0.0.0:99999']
    pool: nowhere
    tiemouts: {idle: 5m}
pools:
  web:
    balance: least_con
    backends: [{name: a, address: '10.0.0.1:80'}, {name: a, address: '10.0.0.2:80'}]
";
    std::fs::write(&file, yaml).unwrap();
    let path = file.to_str().unwrap();
    for command in ["run", "check"] {
        let (code, out, err) = weir(&[command, "-c", path]);
        assert_eq!(code, 3, "{command}: {out}{err}");
        let text = out + &err;
        for (line, mentions) in [
            (1, "workers"),
            (4, "99999"),
            (5, "nowhere"),
            (6, "tiemouts"),
            (9, "least_con"),
            (10, "listeners.web"),
        ] {
            let mentions = if line == 10 { "name" } else { mentions };
            let place = format!("{path}:{line}:");
            let found = text
                .lines()
                .any(|text| text.starts_with(&place) && text.contains(mentions));
            assert!(found, "{command}: nothing on line {line} about {mentions}:\n{text}");
        }
    }
}

#[test]
fn exit_codes() {
    assert_eq!(weir(&["run", "-c", "/nonexistent/weir.yaml"]).0, 3);
    assert_eq!(weir(&["run", "--no-such-option"]).0, 2);
    assert_eq!(weir(&["--version"]).0, 0);
}

/// A port in use is a failure at run time, and says which.
#[test]
fn a_port_in_use_is_named() {
    let taken = super::common::server::bind(([127, 0, 0, 1], 0));
    let address = taken.local_addr().unwrap().to_string();
    let server = Server::named("one");
    let mut weir = Weir::arguments(&["run", "--listen", &address, "--backend", &server.address.to_string()]);
    assert_eq!(weir.wait_for_end().code(), Some(1));
    assert!(weir.stderr().join("\n").contains(&address), "{:?}", weir.stderr());
}

#[test]
fn run_without_a_file() {
    let servers = ["a", "b"].map(Server::named);
    let backends = servers.each_ref().map(|server| server.address.to_string());
    let weir = Weir::arguments(&[
        "run",
        "--listen",
        "127.0.0.1:0",
        "--backend",
        &backends[0],
        "--backend",
        &backends[1],
        "--balance",
        "round_robin",
    ]);
    let line = weir.wait_for_line("listening: ");
    weir.wait_for_line("ready");
    let address = line.rsplit(' ').next().unwrap();
    // Many, because each worker begins its turns somewhere.
    let mut names: Vec<String> = (0..40).map(|_| client::fetch(address).unwrap()).collect();
    names.sort();
    names.dedup();
    assert_eq!(names, ["a", "b"]);
}

/// The members of the demo come from a file that changes meanwhile, and no client notices.
#[test]
fn demo_of_members() {
    let (code, out, err) = weir(&["demo", "--members", "--for", "5s"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("amber goes") && out.contains("amber returns"), "{out}");
    assert!(out.contains(" answers and 0 failures"), "{out}");
}

/// The first command of the README: nothing is configured, everything is built in, and the table at the end shows how
/// connections were spread: by weight.
#[test]
fn demo() {
    let (code, out, err) = weir(&["demo", "--for", "6s"]);
    assert_eq!(code, 0, "{out}{err}");
    assert!(out.contains("curl http://127.0.0.1:"), "{out}");
    let (_, table) = out
        .split_once("pool web:")
        .unwrap_or_else(|| panic!("no table in {out}"));
    // name, address, weight, connections, share, wanted
    let rows: Vec<(u64, u64)> = table
        .lines()
        .skip(2)
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .take_while(|words| words.len() == 6)
        .map(|words| (words[2].parse().unwrap(), words[3].parse().unwrap()))
        .collect();
    let (weights, connections) = rows.iter().fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
    assert!(rows.len() >= 3 && connections > 20, "{out}");
    for (weight, have) in rows {
        let share = connections * weight / weights;
        // Each worker takes its turns by itself, and may be in the middle of a round.
        assert!(have.abs_diff(share) <= connections / 20 + 4, "{out}");
    }
}

/// What `import` writes is what `check` accepts; what has no meaning here is said with its place; the exit code tells
/// unreadable, unrecognisable and empty files from those that gave something.
#[test]
fn other_programs_files_are_imported() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let haproxy = file(
        "haproxy.cfg",
        "listen web\n  bind :80\n  stick on src\n  server a 10.0.0.1:80 check\n",
    );
    let keepalived = file(
        "keepalived.conf",
        "vrrp_instance v {\n interface eth0\n virtual_ipaddress {\n 10.1.0.1/24\n }\n}\n",
    );
    let (code, out, err) = weir(&["import", &haproxy]);
    assert_eq!(code, 0, "{err}");
    assert!(err.starts_with(&format!("{haproxy}:3: stick: ")), "{err}");
    let weir_yaml = file("weir.yaml", &out);
    assert_eq!(weir(&["check", "-c", &weir_yaml]).0, 0, "{out}");

    // A file without a service is a node that holds addresses for others.
    for (files, parts) in [
        (vec![&keepalived], vec!["10.1.0.1/24"]),
        (vec![&keepalived, &haproxy], vec!["10.1.0.1/24", "10.0.0.1:80"]),
    ] {
        let arguments: Vec<&str> = std::iter::once("import")
            .chain(files.into_iter().map(String::as_str))
            .collect();
        let (code, out, err) = weir(&arguments);
        assert!(code == 0 && parts.iter().all(|part| out.contains(part)), "{out}{err}");
        let weir_yaml = file("imported.yaml", &out);
        assert_eq!(weir(&["check", "-c", &weir_yaml]).0, 0, "{out}");
    }

    let strange = file("strange", "listeners:\n");
    let broken = file("broken", "stream {\n");
    let empty = file("empty.conf", "global_defs {\n router_id a\n}\n");
    for (arguments, expected) in [
        (vec!["import", "/nonexistent.cfg"], 1),
        (vec!["import", &strange], 3),
        (vec!["import", &broken], 3),
        (vec!["import", &empty], 3),
        (vec!["import"], 2),
        (vec!["import", "--from", "apache", &haproxy], 2),
    ] {
        let (code, out, err) = weir(&arguments);
        assert!(
            code == expected && out.is_empty() && !err.is_empty(),
            "{arguments:?}: {code} {out}{err}"
        );
    }
}
