//! Rules come and go with what needs them: reloads, members, upgrades, deaths.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::client::round_trip;
use super::common::operator::{ask, said};
use super::common::server::echo;
use super::common::{Launch, command, may_make_namespaces, run, wait_until};
use super::hosts::{Net, V4, V6};
use super::{connect_from_port, net, routes, rules, start, teller, told};

/// Two listeners with a pool and a backend each.
fn config(modes: [&str; 2]) -> String {
    format!(
        "
listeners:
  one: {{bind: ['{}'], pool: one}}
  two: {{bind: ['{}'], pool: two}}
pools:
  one: {{client_address: {}, backends: ['{}']}}
  two: {{client_address: {}, backends: ['{}']}}
",
        V4.service(81),
        V4.service(82),
        modes[0],
        V4.backend(0, 7),
        modes[1],
        V4.backend(1, 8080)
    )
}

fn reload(weir: &super::Weir, yaml: &str) {
    weir.rewrite(&format!("workers: 2\n{yaml}"));
    said(weir, &["reload"]);
}

/// Processes of a kind in the balancer.
fn keepers(net: &Net) -> Vec<i32> {
    let all = run(command("ip").args(["netns", "pids", net.balancer.name()]));
    let is_one = |pid: &i32| {
        let line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.contains("keeper\0--returns")
    };
    all.lines()
        .filter_map(|line| line.parse().ok())
        .filter(is_one)
        .collect()
}

/// Rules follow the configuration; one that a connection still needs stays until that has ended.
#[test]
fn a_reload_switches_it_on_and_off() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _echo = net.serve(0, &V4.backend(0, 7), echo);
    let _teller = teller(&net, 1, V4);
    let weir = start(&net, &config(["keep", "hide"]));
    let has = |backend: &str| rules(&net).iter().any(|rule| rule.contains(backend));
    assert!(
        has("10.9.1.2 ipproto tcp sport 7 ") && !has("10.9.2.2"),
        "{:?}",
        rules(&net)
    );
    assert_eq!(routes(&net).len(), 2, "{:?}", routes(&net));
    let mut kept = connect_from_port(&net, V4, 4711, &V4.service(81));
    round_trip(&mut kept, b"before");
    assert!(told(&net, V4, 4712, &V4.service(82)).starts_with("10.9.2.1:"));

    reload(&weir, &config(["hide", "keep"]));
    assert_eq!(told(&net, V4, 4713, &V4.service(82)), "10.9.0.2:4713");
    assert!(has("10.9.2.2 ipproto tcp sport 8080 "), "{:?}", rules(&net));
    round_trip(&mut kept, b"after");
    drop(kept);
    wait_until("the rule that nothing needs is gone", || !has("10.9.1.2"));
    reload(&weir, &config(["hide", "hide"]));
    assert!(told(&net, V4, 4714, &V4.service(82)).starts_with("10.9.2.1:"));
    wait_until("no rule is left", || rules(&net).is_empty());
    reload(&weir, &config(["keep", "keep"]));
    assert_eq!(told(&net, V4, 4715, &V4.service(82)), "10.9.0.2:4715");
    assert_eq!(rules(&net).len(), 2);
    // A reload that is refused changes nothing.
    weir.rewrite(&config(["keep", "keep"]).replace(&V4.backend(0, 7), "unix:/nowhere"));
    assert!(!ask(&weir, &["reload"]).status.success());
    assert_eq!(told(&net, V4, 4716, &V4.service(82)), "10.9.0.2:4716");
    weir.stop();
    assert_eq!((rules(&net), routes(&net)), (vec![], vec![]));
}

#[test]
fn one_that_began_without_takes_a_restart() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _echo = net.serve(0, &V4.backend(0, 7), echo);
    let weir = start(&net, &config(["hide", "hide"]));
    assert_eq!(keepers(&net), Vec::<i32>::new());
    weir.rewrite(&format!("workers: 2\n{}", config(["hide", "keep"])));
    let output = ask(&weir, &["reload"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("restart"), "{said}");
    assert!(said.contains("pools.two.client_address"), "{said}");
    let mut stream = connect_from_port(&net, V4, 4711, &V4.service(81));
    round_trip(&mut stream, b"as before");
}

/// A death of the main process takes its rules along; one of both processes leaves them to the next weir, or to the sweep that a
/// service manager runs.
#[test]
fn deaths_leave_no_rule_behind() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _echo = net.serve(0, &V4.backend(0, 7), echo);
    let mut weir = start(&net, &config(["keep", "keep"]));
    assert_eq!(rules(&net).len(), 2);
    weir.signal(Signal::SIGKILL);
    weir.wait_for_end();
    wait_until("no rule is left", || rules(&net).is_empty() && routes(&net).is_empty());

    let file = weir.dir().join("weir.yaml").display().to_string();
    // Somebody else's rule is none of weir's business.
    net.balancer
        .ip(&["rule", "add", "from", "10.9.1.2", "lookup", "main", "pref", "7399"]);
    for sweep in [true, false] {
        let mut again = Launch::new("").file(&file).inside(&net.balancer).start();
        again.signal(Signal::SIGSTOP);
        let keepers = keepers(&net);
        assert_eq!(keepers.len(), 1);
        kill(Pid::from_raw(keepers[0]), Signal::SIGKILL).unwrap();
        again.signal(Signal::SIGKILL);
        again.wait_for_end();
        assert_eq!(rules(&net).len(), 2);
        match sweep {
            true => {
                let mut sweep = net.balancer.command(env!("CARGO_BIN_EXE_weir"));
                run(sweep.args(["keeper", "--sweep", "-c", &file]));
                assert_eq!((rules(&net), routes(&net)), (vec![], vec![]));
            }
            false => {
                // The next one has a backend less.
                weir.rewrite(&config(["keep", "hide"]));
                let _next = Launch::new("").file(&file).inside(&net.balancer).start();
                assert_eq!(rules(&net).len(), 1, "{:?}", rules(&net));
            }
        }
    }
    let others = net.balancer.ip(&["rule"]);
    assert!(others.contains("7399:"), "{others}");
}

/// Without its keeper a weir cannot follow its members any more: it ends, to be started again, after its connections.
#[test]
fn the_end_of_the_keeper_ends_the_service() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _echo = net.serve(0, &V4.backend(0, 7), echo);
    let mut weir = start(&net, &config(["keep", "hide"]));
    let mut stream = connect_from_port(&net, V4, 4711, &V4.service(81));
    round_trip(&mut stream, b"before");
    kill(Pid::from_raw(keepers(&net)[0]), Signal::SIGKILL).unwrap();
    weir.wait_for_line("the keeper of return rules has ended");
    round_trip(&mut stream, b"it may finish");
    drop(stream);
    assert!(!weir.wait_for_end().success());
}

/// The successor goes on with the same keeper: no rule goes, connections of both processes live.
#[test]
fn an_upgrade_keeps_connections_and_rules() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _echo = net.serve(0, &V4.backend(0, 7), echo);
    let _teller = teller(&net, 1, V4);
    let mut weir = start(&net, &config(["keep", "keep"]));
    let keeper = keepers(&net);
    let mut kept = connect_from_port(&net, V4, 4711, &V4.service(81));
    round_trip(&mut kept, b"before");
    // Meanwhile the configuration has lost the backend of that connection.
    weir.rewrite(&format!(
        "workers: 2\n{}",
        config(["keep", "keep"]).replace(&V4.backend(0, 7), "10.9.1.2:9")
    ));
    weir.signal(Signal::SIGUSR2);
    weir.wait_for_line("upgrade: serving");
    assert_eq!(told(&net, V4, 4712, &V4.service(82)), "10.9.0.2:4712");
    assert_eq!(rules(&net).len(), 3, "{:?}", rules(&net));
    for _ in 0..3 {
        round_trip(&mut kept, b"upgraded");
    }
    drop(kept);
    weir.wait_for_end_of_process();
    wait_until("its own rule went with it", || rules(&net).len() == 2);
    assert_eq!(keepers(&net), keeper);
    assert_eq!(told(&net, V4, 4713, &V4.service(82)), "10.9.0.2:4713");
    let successor = said(&weir, &["status", "--json"]);
    let successor: serde_json::Value = serde_json::from_str(&successor).unwrap();
    kill(
        Pid::from_raw(successor["pid"].as_i64().unwrap() as i32),
        Signal::SIGKILL,
    )
    .unwrap();
    wait_until("no rule is left", || rules(&net).is_empty() && routes(&net).is_empty());
}

/// Members that come have their rule before they get a connection; those that cannot be in the pool are told.
#[test]
fn rules_follow_members() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    let _tellers = [0, 1].map(|ix| teller(&net, ix, V4));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("members.yaml");
    std::fs::write(&file, format!("- {}\n", V4.backend(0, 8080))).unwrap();
    let weir = start(
        &net,
        &format!(
            "
listeners: {{web: {{bind: ['{}'], pool: web}}}}
pools: {{web: {{client_address: keep, health: none, members: [{{file: {}}}]}}}}
",
            V4.service(80),
            file.display()
        ),
    );
    assert_eq!(told(&net, V4, 4711, &V4.service(80)), "10.9.0.2:4711");
    let next = dir.path().join("next");
    std::fs::write(&next, format!("- {}\n", V4.backend(1, 8080))).unwrap();
    std::fs::rename(&next, &file).unwrap();
    wait_until("the rule of the new member is there", || {
        rules(&net).iter().any(|rule| rule.contains("10.9.2.2"))
    });
    wait_until("the rule of the old one is gone", || rules(&net).len() == 1);
    assert_eq!(told(&net, V4, 4712, &V4.service(80)), "10.9.0.2:4712");
    std::fs::write(&next, format!("- '{}'\n", V6.backend(1, 8080))).unwrap();
    std::fs::rename(&next, &file).unwrap();
    weir.wait_for_line("give each family a listener and a pool of its own");
    assert_eq!(told(&net, V4, 4713, &V4.service(80)), "10.9.0.2:4713");
}
