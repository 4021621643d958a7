//! A keeper that ends or hangs, and what becomes of its node; upgrades that must not cost an address.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use nix::sys::signal::{Signal, kill};

use crate::hosts::*;
use crate::whole::Whole;

#[test]
fn a_killed_keeper_ends_the_process_once_the_address_is_elsewhere() {
    let net = Net::new(&["a", "b", "c"]);
    let (mut a, b) = Whole::pair(&net);
    let watch = watch(&a.ns, VIP);
    let since = now_ms();
    kill(keeper_of(&a.child), Signal::SIGKILL).unwrap();
    until(1_000, "b takes over", || b.holds(VIP) && b.holds(VIP6));
    let mut status = None;
    until(15_000, "the process ends", || {
        status = a.child.try_wait().unwrap();
        status.is_some()
    });
    assert_eq!(status.unwrap().code(), Some(1), "so that it is started again");
    assert!(!a.holds(VIP) && !a.holds(VIP6));
    let gone = watch.gone(since);
    let ended = now_ms() - since;
    assert!(gone < ended, "gone after {gone:.0} ms, ended after {ended:.0} ms");
    let log = fs::read_to_string(net.log("a")).unwrap();
    assert!(log.contains("the keeper of the VIPs has ended"), "{log}");
    // And then it takes part as before.
    drop(a);
    let again = Whole::start(&net, "a");
    until(10_000, "back in order", || again.holds(VIP) && !b.holds(VIP));
}

#[test]
fn an_upgrade_with_an_unusable_secret_is_refused() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = Whole::pair(&net);
    let watches = [watch(&a.ns, VIP), watch(&b.ns, VIP)];
    let secret = net.dir.path().join("secret");
    let permit = |mode| fs::set_permissions(&secret, fs::Permissions::from_mode(mode)).unwrap();
    permit(0o644);
    a.signal(Signal::SIGUSR2);
    let log = || fs::read_to_string(net.log("a")).unwrap();
    until(10_000, "refused", || {
        log().contains("upgrade failed, this process goes on")
    });
    assert!(log().contains("others may read"), "{}", log());
    permit(0o600);
    a.signal(Signal::SIGUSR2);
    until(10_000, "done", || log().contains("connections may finish here"));
    std::thread::sleep(std::time::Duration::from_millis(700));
    for (watch, there) in watches.into_iter().zip([true, false]) {
        let changes = watch.finish();
        let states: Vec<bool> = changes.iter().map(|(_, there)| *there).collect();
        assert_eq!(states, [there], "{changes:?}\n{}", log());
    }
}

/// The new binary is this one but for the name of its form.
///
/// Seen to fail with forms that always agree.
#[test]
fn an_upgrade_to_a_version_that_keeps_its_state_otherwise_is_refused() {
    let net = Net::new(&["a", "b", "c"]);
    let program = net.dir.path().join("weir");
    let form = weir::control::election::form();
    let (form, _) = form.split_once(',').unwrap();
    let install = |form_of_it: &str| {
        let (from, new) = (env!("CARGO_BIN_EXE_weir"), net.dir.path().join("weir.new"));
        fs::copy(from, &new).unwrap();
        sh(&format!("LC_ALL=C sed -i 's/{form}/{form_of_it}/g' {}", new.display()));
        let same = fs::read(&new).unwrap() == fs::read(from).unwrap();
        assert_eq!(same, form_of_it == form, "the name is in the file");
        fs::rename(new, &program).unwrap();
    };
    install(form);
    let (a, b) = (
        Whole::start_program(&net, "a", &program, serde_json::json!([])),
        Whole::start(&net, "b"),
    );
    until(10_000, "a holds both", || {
        [VIP, VIP6].iter().all(|ip| a.holds(ip) && !b.holds(ip))
    });
    let watches = [watch(&a.ns, VIP), watch(&b.ns, VIP)];
    let log = || fs::read_to_string(net.log("a")).unwrap();
    let other = format!("{}X", &form[..form.len() - 1]);
    install(&other);
    a.signal(Signal::SIGUSR2);
    until(10_000, "refused", || {
        log().contains("upgrade failed, this process goes on: failover: ")
    });
    assert_eq!(
        log().matches("restart weir instead").count(),
        2,
        "both say it: {}",
        log()
    );
    install(form);
    a.signal(Signal::SIGUSR2);
    until(10_000, "done", || log().contains("connections may finish here"));
    std::thread::sleep(std::time::Duration::from_millis(700));
    for (watch, there) in watches.into_iter().zip([true, false]) {
        let changes = watch.finish();
        let states: Vec<bool> = changes.iter().map(|(_, there)| *there).collect();
        assert_eq!(states, [there], "{changes:?}\n{}", log());
    }
}

#[test]
fn an_upgrade_while_the_keeper_hangs() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let keeper = a.keeper();
    kill(keeper, Signal::SIGSTOP).unwrap();
    until(1_000, "b takes over", || b.holds(VIP));
    until(1_000, "fault", || a.state() == "fault");
    assert_eq!(a.ask("upgrade"), "ok");
    assert_eq!(a.state(), "fault");
    kill(keeper, Signal::SIGCONT).unwrap();
    until(5_000, "it works again", || a.state() == "active");
    until(1_000, "one holder", || a.holds(VIP) && !b.holds(VIP));
    // Between the upgrade and the moment at which the keeper is missed.
    kill(keeper, Signal::SIGSTOP).unwrap();
    assert_eq!(a.ask("upgrade"), "ok");
    until(1_000, "b takes over again", || b.holds(VIP));
    kill(keeper, Signal::SIGCONT).unwrap();
    until(5_000, "it works once more", || a.state() == "active");
}
