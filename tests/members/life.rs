//! What members and pools go through, whatever the source.

use std::fs;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::{Server, Weir, client, operator, wait_until};
use super::dns::{Liar, Lie};
use super::{List, answers, configuration, members, states, wait_until_answers, wait_until_up};

/// A member that goes takes no new work, and what it has may finish within `on_drain`; one that returns until then has its
/// counts, and the connection counts among them.
#[test]
fn leaving_and_returning() {
    let (a, b) = (Server::named_holder("a"), Server::named("b"));
    let (at_a, at_b) = (a.address.to_string(), b.address.to_string());
    let both = format!("- {at_a}\n- {at_b}\n");
    let list = List::new(&format!("- {at_a}\n"));
    let weir = Weir::start(&configuration(&list.path(), ", on_drain: {finish: 4s}"));
    let mut held = client::connect(&weir.address("web"));
    wait_until("the connection is counted", || {
        members(&weir)["members"][0]["active"] == 1
    });
    list.replace(&format!("- {at_b}\n"));
    wait_until_up(&weir, &[&at_b]);
    assert_eq!(answers(&weir, 4), ["b"]);
    list.replace(&both);
    wait_until("it returns with its connection", || {
        let document = members(&weir);
        let all = document["members"].as_array().unwrap().clone();
        all.iter()
            .any(|member| member["address"] == *at_a && member["active"] == 1)
    });
    // Gone for good: it ends when its time is over, not before.
    let since = std::time::Instant::now();
    list.replace(&format!("- {at_b}\n"));
    // To its end, whichever it is.
    let _ = std::io::copy(&mut held, &mut std::io::sink());
    assert!(since.elapsed() >= Duration::from_secs(1), "{:?}", since.elapsed());
}

/// One that comes to others is probed before it takes work: nothing listens there yet, and no client comes near it.
#[test]
fn a_newcomer_is_probed_first() {
    let a = Server::named("a");
    let list = List::new(&format!("- {}\n", a.address));
    let weir = Weir::start(&configuration(&list.path(), "").replace("interval: 50ms", "interval: 50ms, fall: 1"));
    wait_until_up(&weir, &[&a.address.to_string()]);
    let port = super::common::Port::reserve();
    let at_b = port.address().to_string();
    list.replace(&format!("- {}\n- {{name: late, address: \"{at_b}\"}}\n", a.address));
    wait_until("it is down", || states(&weir).contains(&format!("{at_b} down")));
    assert_eq!(answers(&weir, 20), ["a"]);
    let status = operator::status(&weir);
    let late = status["pools"][0]["backends"]
        .as_array()
        .unwrap()
        .iter()
        .find(|b| b["name"] == "late")
        .unwrap()
        .clone();
    assert_eq!(late["failed"], 0, "no connection was tried there: {late}");
}

/// A reload keeps what is known of sources that stay, drops the members of those that go, and waits for those that come
/// before anybody leaves because of them.
#[test]
fn reloads() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let (at_a, at_b) = (a.address.to_string(), b.address.to_string());
    let list = List::new(&format!("- {at_a}\n"));
    let weir = Weir::start(&list.yaml());
    answers(&weir, 5);
    let total = |address: &str| {
        let status = operator::status(&weir);
        let backends = status["pools"][0]["backends"].as_array().unwrap().clone();
        backends
            .iter()
            .find(|x| x["address"] == address)
            .map(|x| x["total"].as_u64().unwrap())
    };
    wait_until("counted", || total(&at_a) == Some(5));
    // The file is broken meanwhile: it does not matter.
    fs::write(list.path(), "- [").unwrap();
    wait_until("broken", || super::error(&weir).is_some());
    weir.rewrite(&configuration(&list.path(), &format!(", backends: [\"{at_b}\"]")));
    operator::said(&weir, &["reload"]);
    wait_until_answers(&weir, &["a", "b"]);
    assert!(total(&at_a) > Some(5));

    // Another source, which has not said anything: those who are there stay.
    let other = list.dir.path().join("other.yaml");
    weir.rewrite(&configuration(&other, ""));
    operator::said(&weir, &["reload"]);
    assert_eq!(answers(&weir, 10), ["a", "b"]);
    assert_eq!(members(&weir)["members"][0]["source"], "before the reload");
    fs::write(&other, format!("- {at_b}\n")).unwrap();
    wait_until_answers(&weir, &["b"]);

    // No source any more.
    weir.rewrite(&configuration(&other, "").replace(
        &format!("members: [{{file: {}}}]", other.display()),
        &format!("backends: [\"{at_a}\"]"),
    ));
    operator::said(&weir, &["reload"]);
    assert_eq!(answers(&weir, 10), ["a"]);
    assert_eq!(members(&weir)["sources"].as_array().unwrap().len(), 0);
}

/// The process after this one starts with what this one knew, though the source would not tell it now.
#[test]
fn an_upgrade_keeps_the_members() {
    let (a, b) = (Server::named("a"), Server::named("b"));
    let list = List::new(&format!("- {}\n- {}\n", a.address, b.address));
    let weir = Weir::start(&list.yaml());
    wait_until_answers(&weir, &["a", "b"]);
    fs::remove_file(list.path()).unwrap();
    wait_until("the file is gone", || super::error(&weir).is_some());
    weir.signal(Signal::SIGUSR2);
    let line = weir.wait_for_line_with(&["upgrade: process", "starts"]);
    let successor = line.split_whitespace().rev().nth(1).unwrap().parse().unwrap();
    let _successor = Killed(Pid::from_raw(successor));
    weir.wait_for_line("upgrade: serving");
    assert_eq!(answers(&weir, 10), ["a", "b"]);
    wait_until("the successor answers", || {
        members(&weir)["sources"][0]["failures"] == 1
    });
    list.replace(&format!("- {}\n", b.address));
    wait_until_answers(&weir, &["b"]);
    assert_eq!(operator::status(&weir)["pid"], successor);
}

/// A process that ends with the test.
struct Killed(Pid);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = kill(self.0, Signal::SIGKILL);
    }
}

/// `weir check` asks each source once, all at the same time, and warns of those that do not answer; the file is good.
#[test]
fn check_asks_the_sources() {
    let nobody = super::common::Port::reserve();
    let (silent, good) = (
        Liar::start(Lie::Silence),
        Liar::start(Lie::Truth(vec![[127, 0, 0, 1].into()])),
    );
    let list = List::new("- 10.0.0.1:80\n");
    let dir = list.dir.path().display().to_string();
    let pool = |members: &str, server: &Liar| {
        format!(
            "{{members: [{{{members}}}], resolver: {{servers: ['{}'], timeout: 500ms}}}}",
            server.address
        )
    };
    let yaml = format!(
        "etcd: {{endpoints: ['http://{}']}}\nlisteners: {{web: {{bind: '127.0.0.1:0', pool: file}}}}\n\
         pools:\n  file: {}\n  keys: {}\n  name: {}\n  known: {}\n  containers: {}\n",
        nobody.address(),
        pool(&format!("file: {dir}/web.yaml"), &good),
        pool("etcd: /web/", &good),
        pool("dns: web.internal, port: 80, family: v4", &silent),
        pool("dns: web.internal, port: 81, family: v4", &good),
        pool(
            &format!("docker: {{label: web, port: 80, socket: {dir}/docker.sock}}"),
            &good
        ),
    );
    let file = list.dir.path().join("weir.yaml");
    fs::write(&file, yaml).unwrap();
    let mut check = super::common::command(env!("CARGO_BIN_EXE_weir"));
    let output = check.arg("check").arg("-c").arg(&file).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    let about = |words: &[&str]| {
        let mut warnings = said
            .lines()
            .filter(|line| line.contains("warning: ") && line.contains(" members: "));
        warnings.any(|line| words.iter().all(|word| line.contains(word)))
    };
    assert!(
        about(&["pool keys:", "etcd:/web/", &nobody.address().to_string()]),
        "{said}"
    );
    assert!(about(&["pool name:", "dns:web.internal:80", "timed out"]), "{said}");
    assert!(about(&["pool containers:", "docker.sock"]), "{said}");
    assert!(!about(&["pool known:"]) && !about(&["pool file:"]), "{said}");
}
