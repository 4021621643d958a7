//! What a process is told while it stops, or after it has handed over: it must not come back to life.

use std::fs;
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::common::netns::Netns;
use super::common::{Launch, Port, Server, client, may_make_namespaces, operator, wait_until};
use super::{Service, is_weir};

/// Listening TCP sockets at this address.
fn listening(address: &str) -> usize {
    let port: u16 = address.rsplit_once(':').unwrap().1.parse().unwrap();
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let rows = table.lines().filter(|row| {
        let columns: Vec<&str> = row.split_whitespace().collect();
        columns[1].ends_with(&format!(":{port:04X}")) && columns[3] == "0A"
    });
    rows.count()
}

fn yaml(server: &Server, main: &str) -> String {
    format!(
        "workers: 2\nshutdown_grace: 10m\nlisteners: {{main: {{bind: '{main}', pool: main}}}}\n\
         pools: {{main: {{backends: [{{name: one, address: '{}'}}]}}}}\n",
        server.address
    )
}

fn held(address: &str) -> TcpStream {
    let mut stream = client::connect(address);
    client::round_trip(&mut stream, b"before");
    stream
}

/// Breaks tried: no question about the phase; asking only the upgrade.
#[test]
fn a_stopping_process_opens_nothing_again() {
    let (server, port) = (Server::echo(), Port::reserve());
    let mut service = Service::start(&yaml(&server, &port.address().to_string()), |launch| launch);
    let (weir, address) = (&service.weir, service.weir.address("main"));
    let mut stream = held(&address);
    weir.signal(Signal::SIGTERM);
    wait_until("new connections are refused", || {
        client::try_connect(&address, None).is_err()
    });

    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reload refused: this process is stopping");
    weir.signal(Signal::SIGUSR2);
    weir.wait_for_line("upgrade refused: this process is stopping");
    for (words, expected) in [
        (&["reload"][..], "this process is stopping"),
        (&["vip", "10.0.0.1", "demote"][..], "this process is stopping"),
    ] {
        let output = operator::ask(weir, words);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && told.contains(expected), "{words:?}: {told}");
    }
    assert_eq!(listening(&address), 0);
    assert!(service.successors().is_empty());

    // What concerns the connections that are left is done.
    operator::said(weir, &["backend", "main/one", "drain"]);
    client::round_trip(&mut stream, b"still there");
    let conns = operator::json(weir, &["conns"]);
    let id = conns[0]["id"].to_string();
    // The last one: the process may end before it has answered.
    operator::ask(weir, &["kill", &id]);
    assert!(weir.stderr().iter().all(|line| !line.contains("reloaded")));
    assert!(service.weir.wait_for_end().success());
}

/// The old process has a connection left, and the file of before.
///
/// Break tried: no question about the phase (the group of sockets grows to four, and the clients of two die with it).
#[test]
fn a_process_that_has_handed_over_does_not_rejoin() {
    let (server, port) = (Server::echo(), Port::reserve());
    let mut service = Service::start(&yaml(&server, &port.address().to_string()), |launch| launch);
    service.told("READY=1");
    let address = service.weir.address("main");
    let mut stream = held(&address);
    assert_eq!(listening(&address), 2);
    let old = service.weir.pid();
    let new = service.upgrade(old);

    for (signal, what) in [(Signal::SIGHUP, "reload"), (Signal::SIGUSR2, "upgrade")] {
        service.weir.signal(signal);
        let line = format!("{what} refused: process {new} serves in place of this one");
        service.weir.wait_for_line(&line);
    }
    assert_eq!(listening(&address), 2, "as many as there are workers");
    let clients: Vec<TcpStream> = (0..40).map(|_| held(&address)).collect();
    client::round_trip(&mut stream, b"still there");
    // One note, and then the end, which takes nobody along but whom it served.
    service.weir.signal(Signal::SIGTERM);
    service
        .weir
        .wait_for_line("as soon as the connections that are left have finished");
    assert!(service.weir.is_running());
    service.weir.signal(Signal::SIGTERM);
    wait_until("the old process ends", || !service.weir.is_running());
    for mut client in clients {
        client::round_trip(&mut client, b"unimpressed");
    }
    kill(Pid::from_raw(new as i32), Signal::SIGHUP).unwrap();
    service.weir.wait_for_line("reloaded: generation 2");
}

/// The keepers that a process has started.
fn keepers(parent: u32) -> usize {
    let of_parent = Command::new("pgrep")
        .args(["-f", "-P", &parent.to_string(), "keeper"])
        .output();
    String::from_utf8_lossy(&of_parent.unwrap().stdout).lines().count()
}

/// Break tried: no question about the phase.
#[test]
fn a_process_that_has_let_the_vips_go_does_not_stand_for_election() {
    if !may_make_namespaces() {
        return;
    }
    let (netns, dir) = (Netns::new("dying"), tempfile::tempdir().unwrap());
    netns.ip(&["link", "add", "weir0", "type", "veth", "peer", "name", "weir1"]);
    for interface in ["weir0", "weir1"] {
        netns.ip(&["link", "set", interface, "up"]);
    }
    let server = netns.enter(Server::echo);
    let secret = dir.path().join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let yaml = format!(
        "{}failover: {{node: a, beat: 500ms, dead_after: 3s, secret_file: '{}', nodes: {{a: '127.0.0.1:7400'}},\n  \
         vips: [{{address: 10.99.0.1/24, interface: weir0}}]}}\n",
        yaml(&server, "127.0.0.1:80"),
        secret.display()
    );
    let weir = Launch::new(&yaml).inside(&netns).start();
    let holds = || {
        netns
            .ip(&["-oneline", "address", "show", "dev", "weir0"])
            .contains("10.99.0.1/24")
    };
    wait_until("the virtual address is there", holds);
    let mut stream = netns.enter(|| held("127.0.0.1:80"));
    assert_eq!(keepers(weir.pid()), 1);
    weir.signal(Signal::SIGTERM);
    wait_until("the virtual address has gone", || !holds());
    weir.signal(Signal::SIGHUP);
    weir.wait_for_line("reload refused: this process is stopping");
    let output = operator::ask(&weir, &["vip", "10.99.0.1", "allow"]);
    assert!(!output.status.success(), "{output:?}");
    wait_until("the keeper has ended", || keepers(weir.pid()) == 0);
    assert!(!holds());
    client::round_trip(&mut stream, b"still there");
}

/// TERM while the next process gets ready: both end, and nobody serves again when that upgrade turns out to have failed.
///
/// Break tried: giving the sockets back to workers whatever the process was told meanwhile.
#[test]
fn a_stop_in_the_middle_of_an_upgrade_is_a_stop() {
    let (server, port) = (Server::echo(), Port::reserve());
    let path = tempfile::tempdir().unwrap();
    let unix = path.path().join("main.sock");
    let yaml = yaml(&server, &format!("{}', 'unix:{}", port.address(), unix.display())).replace("bind: '", "bind: ['");
    let yaml = yaml.replace("sock', pool", "sock'], pool");
    let mut service = Service::start(&yaml, |launch| launch);
    service.told("READY=1");
    let address = service.weir.address("main");
    let mut stream = held(&address);
    // The next process waits for somebody to write the file.
    let file = service.weir.dir().join("weir.yaml");
    fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    service.weir.signal(Signal::SIGUSR2);
    wait_until("the next process is there", || !service.successors().is_empty());
    let next = service.successors()[0];

    let refused = |words: &[&str]| {
        let output = operator::ask(&service.weir, words);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            !output.status.success() && told.contains("an upgrade is under way"),
            "{words:?}: {told}"
        );
    };
    refused(&["reload"]);
    refused(&["backend", "main/one", "drain"]);
    service.weir.signal(Signal::SIGTERM);
    service.weir.wait_for_line("upgrade given up: ");
    wait_until("nobody listens", || client::try_connect(&address, None).is_err());
    assert!(UnixStream::connect(&unix).is_err());
    client::round_trip(&mut stream, b"still there");
    drop(stream);
    assert!(service.weir.wait_for_end_of_process().success());
    wait_until("the next process ends", || !is_weir(next));
}
