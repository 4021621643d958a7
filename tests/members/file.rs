//! Lists in files.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;

use super::common::{Launch, Server, Weir, operator, wait_until};
use super::{List, answers, configuration, error, members, wait_until_answers, wait_until_up};

#[test]
fn replaced_and_written_in_place() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let (at_a, at_b) = (a.address.to_string(), b.address.to_string());
    let list = List::new(&format!("- {at_a}\n"));
    let weir = Weir::start(&list.yaml());
    assert_eq!(answers(&weir, 4), ["a"], "known before it was ready");

    list.replace(&format!("[\"{at_a}\", {{\"address\": \"{at_b}\", \"name\": \"bee\"}}]"));
    wait_until_up(&weir, &[&at_a, &at_b]);
    wait_until_answers(&weir, &["a", "b"]);
    let document = members(&weir);
    let source = format!("file:{}", list.path().display());
    assert_eq!(document["members"][1]["name"], "bee");
    assert_eq!(document["members"][1]["source"], *source);
    assert_eq!(document["sources"][0]["source"], *source);
    assert_eq!(document["sources"][0]["members"], 2);

    fs::write(list.path(), format!("- {at_b}\n")).unwrap();
    wait_until_up(&weir, &[&at_b]);
    wait_until_answers(&weir, &["b"]);
    // One line a change, and it names both.
    let line = weir.wait_for_line_with(&["pool web: members: file:", "went"]);
    assert!(
        line.contains(&format!("changed {at_b}")) || line.contains(&format!("went {at_a}")),
        "{line}"
    );
    let text = operator::said(&weir, &["members", "web"]);
    assert!(
        text.contains("pool web: 1 member\n") && text.contains(&source),
        "{text}"
    );
    assert!(operator::said(&weir, &["status"]).contains(&source));
    let unknown = operator::ask(&weir, &["members", "other"]);
    assert_eq!(unknown.status.code(), Some(1));
}

/// What is not a list is said, with line and column, and nobody leaves. Meant to notice: a file that cannot be read empties the
/// pool.
#[test]
fn broken_files_change_nothing() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let (at_a, at_b) = (a.address.to_string(), b.address.to_string());
    let list = List::new(&format!("- {at_a}\n"));
    let weir = Weir::start(&list.yaml());
    let whole = format!("- {at_a}\n- {{name: b, address: \"{at_b}\", weight: 2}}\n");
    let path = list.path().display().to_string();
    let rows = [
        (whole[..whole.len() - 4].to_string(), format!("{path}:")),
        (String::new(), format!("{path}:1:1: expected a list of backends")),
        (
            "[]".into(),
            "the answer has no members, and `allow_empty` is not set".into(),
        ),
        (whole.replace("weight", "wieght"), format!("{path}:2:")),
    ];
    for (text, wanted) in rows {
        fs::write(list.path(), &text).unwrap();
        wait_until(&format!("{wanted}: {:?}", error(&weir)), || {
            error(&weir).is_some_and(|e| e.starts_with(&wanted))
        });
        assert_eq!(answers(&weir, 4), ["a"], "{text:?}");
        let page = operator::said(&weir, &["status"]);
        assert!(page.contains("LAST ERROR"), "{page}");
    }
    fs::remove_file(list.path()).unwrap();
    wait_until("the file is gone", || {
        error(&weir).is_some_and(|e| e.contains("there is no such file"))
    });
    assert_eq!(answers(&weir, 4), ["a"]);
    fs::write(list.path(), &whole).unwrap();
    wait_until_up(&weir, &[&at_a, &at_b]);
    assert_eq!(error(&weir), None);
    assert!(members(&weir)["sources"][0]["failures"].as_u64().unwrap() >= 4);
    weir.wait_for_line("it answers again after");
}

/// A list that is written line by line: half of it is a list, too. Nobody leaves who is in both.
#[test]
fn written_in_pieces() {
    let servers: Vec<Server> = (0..3).map(|_| Server::named("x")).collect();
    let lines: Vec<String> = servers.iter().map(|s| format!("- {}\n", s.address)).collect();
    let list = List::new(&lines.concat());
    let weir = Weir::start(&list.yaml());
    let mut file = fs::File::create(list.path()).unwrap();
    for line in &lines {
        file.write_all(line.as_bytes()).unwrap();
        std::thread::sleep(std::time::Duration::from_millis(40));
    }
    drop(file);
    // Something that is heard of after all that.
    list.replace(&lines[..2].concat());
    wait_until("two are left", || super::states(&weir).len() == 2);
    let stderr = weir.stderr();
    let went: Vec<&String> = stderr.iter().filter(|line| line.contains("went")).collect();
    assert_eq!(went.len(), 1, "{went:#?}");
}

/// One that is closed and at once written anew, over and over: who closed it has said that it is whole, and it no longer is.
#[test]
fn written_anew_as_soon_as_it_is_closed() {
    let servers: Vec<Server> = (0..3).map(|_| Server::named("x")).collect();
    let lines: Vec<String> = servers.iter().map(|s| format!("- {}\n", s.address)).collect();
    let list = List::new(&lines.concat());
    let weir = Weir::start(&list.yaml());
    for _ in 0..200 {
        let mut file = fs::File::create(list.path()).unwrap();
        for line in &lines {
            file.write_all(line.as_bytes()).unwrap();
            std::thread::sleep(std::time::Duration::from_millis(2));
        }
    }
    // Something that is heard of after all that.
    list.replace(&lines[..2].concat());
    wait_until("two are left", || super::states(&weir).len() == 2);
    let stderr = weir.stderr();
    let said: Vec<&String> = stderr.iter().filter(|line| line.contains("web: members:")).collect();
    assert_eq!(said.len(), 2, "all of them came, and one went: {said:#?}");
    assert_eq!(members(&weir)["sources"][0]["failures"], 0);
}

/// Neither the file nor its directory is there at the start: the pool has no backend and says so; and then they come.
#[test]
fn a_file_that_comes_later() {
    let a = Server::named("a");
    let list = List::absent();
    let file = list.dir.path().join("deep/er/web.yaml");
    let weir = Weir::start(&configuration(&file, ""));
    assert_eq!(answers(&weir, 2), [""]);
    assert!(error(&weir).unwrap().contains("there is no such file"));
    assert!(members(&weir)["sources"][0]["age_s"].is_null());
    weir.wait_for_line("there is no such file; no members are known");
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, format!("- {}\n", a.address)).unwrap();
    wait_until_answers(&weir, &["a"]);
}

/// As a ConfigMap is changed: the file is a link through `..data`, which is switched to another directory.
#[test]
fn behind_links_that_are_switched() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let list = List::absent();
    let dir = list.dir.path();
    for (version, server) in [("..v1", &a), ("..v2", &b)] {
        fs::create_dir(dir.join(version)).unwrap();
        fs::write(dir.join(version).join("web.yaml"), format!("- {}\n", server.address)).unwrap();
    }
    symlink("..v1", dir.join("..data")).unwrap();
    symlink("..data/web.yaml", list.path()).unwrap();
    let weir = Weir::start(&list.yaml());
    assert_eq!(answers(&weir, 2), ["a"]);
    symlink("..v2", dir.join("..data_tmp")).unwrap();
    fs::rename(dir.join("..data_tmp"), dir.join("..data")).unwrap();
    wait_until_answers(&weir, &["b"]);
}

/// `allow_empty` is what it takes to empty a pool.
#[test]
fn an_empty_list_counts_if_it_may() {
    let a = Server::named("a");
    let list = List::new(&format!("- {}\n", a.address));
    let yaml = list.yaml().replace("web.yaml}", "web.yaml, allow_empty: true}");
    let weir = Weir::start(&yaml);
    assert_eq!(answers(&weir, 2), ["a"]);
    list.replace("[]");
    wait_until_answers(&weir, &[""]);
    weir.wait_for_line("no backend is left");
    list.replace(&format!("- {}\n", a.address));
    wait_until_answers(&weir, &["a"]);
}

/// With a filter that ends the process on a call that is not declared. Without the source's declaration inotify would.
#[test]
fn the_sandbox_lets_through_what_the_source_needs() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let list = List::new(&format!("- {}\n", a.address));
    let weir = Launch::new(&list.yaml()).env("WEIR_SANDBOX", "strict").start();
    assert_eq!(answers(&weir, 2), ["a"]);
    list.replace(&format!("- {}\n", b.address));
    wait_until_answers(&weir, &["b"]);
    assert!(!weir.stderr().iter().any(|line| line.contains("without events")));
}

/// `weir check` says what is wrong with the files, and passes: they may come later. `weir explain` takes them in.
#[test]
fn commands_that_ask_the_file_alone() {
    let list = List::new("- 10.0.0.1:80\n- 10.0.0.2\n");
    let file = list.dir.path().join("weir.yaml");
    fs::write(&file, list.yaml().replace("'127.0.0.1:0'", "'127.0.0.1:8080'")).unwrap();
    let weir = |words: &[&str]| {
        let mut command = super::common::command(env!("CARGO_BIN_EXE_weir"));
        let output = command.args(words).arg("-c").arg(&file).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).into_owned())
    };
    let (code, said) = weir(&["check"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(
        said.contains("web.yaml:2:3: backends[1]: warning: 10.0.0.2 has no port"),
        "{said}"
    );
    assert!(said.contains("1 pool, 0 backends, 1 source of members"), "{said}");
    list.replace("- 10.0.0.1:80\n");
    let (code, said) = weir(&["explain", "--listener", "web", "--from", "10.9.9.9"]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("10.0.0.1:80"), "{said}");
}
