//! The binary on disk takes over: nothing is lost, and what goes wrong changes nothing.

use std::ffi::OsString;
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use weir::sys::handover::{self, Channel};

use super::common::operator;
use super::common::program::Program;
use super::common::{Launch, PATIENCE, Server, client, command, find, have, raise_descriptor_limit, run, wait_until};
use super::{Finish, Service, is_weir};

fn yaml(address: &str) -> String {
    format!(
        "workers: 2\nshutdown_grace: 60s\nlisteners: {{main: {{bind: '127.0.0.1:0', pool: main}}}}\n\
         pools: {{main: {{backends: ['{address}']}}}}\n"
    )
}

fn start(server: &Server) -> Service {
    let service = Service::start(&yaml(&server.address.to_string()), |launch| launch);
    service.told("READY=1");
    service
}

#[track_caller]
pub fn echoes(address: &str) -> TcpStream {
    let mut stream = client::connect(address);
    client::round_trip(&mut stream, b"hello");
    stream
}

/// Break tried: binding anew instead of taking over what was inherited; removing the admin socket's file at the end.
#[test]
fn the_new_process_serves_and_the_old_one_finishes() {
    let server = Server::echo();
    let mut service = start(&server);
    let address = service.weir.address("main");
    let mut old = echoes(&address);
    let first = service.weir.pid();
    let second = service.upgrade(first);
    let mut new = echoes(&address);
    client::round_trip(&mut old, b"still there");
    assert!(service.weir.is_running(), "it has a connection left");
    drop(old);
    wait_until("the old process ends", || !service.weir.is_running());
    client::round_trip(&mut new, b"unimpressed");

    // The admin socket has gone over, and its file has not been removed by the one that left.
    let weir = env!("CARGO_BIN_EXE_weir");
    let admin = service.weir.admin();
    let status = run(command(weir).args(["status", "--json", "--socket"]).arg(admin));
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["pid"], second);
    assert_eq!(status["upgrade_error"], serde_json::Value::Null);

    // And again, from the new one.
    drop(new);
    let third = service.upgrade(second);
    wait_until("the second process ends", || !is_weir(second));
    echoes(&address);
    assert_ne!(second, third);
}

/// Break tried: letting the sockets go, and not taking them back, before the new process has said that it is ready.
#[test]
fn a_successor_that_refuses_or_dies_changes_nothing() {
    let server = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let binary = dir.path().join("weir");
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &binary).unwrap();
    let program = binary.display().to_string();
    let yaml = yaml(&server.address.to_string());
    let mut service = Service::start(&yaml, |launch: Launch| launch.program(&program));
    service.told("READY=1");
    let address = service.weir.address("main");
    let mut old = echoes(&address);

    // A native program: the sandbox executes no interpreters.
    let other = |mode: u32| {
        std::fs::remove_file(&binary).unwrap();
        std::fs::copy("/bin/false", &binary).unwrap();
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(&binary, mode).unwrap();
    };
    let rows: [(&str, &dyn Fn(), &str); 4] = [
        ("refused file", &|| service.weir.rewrite("nonsense: 1\n"), "unknown key"),
        ("dies", &|| other(0o755), "ended before it could get ready"),
        ("not executable", &|| other(0o644), "Permission denied"),
        ("missing", &|| std::fs::remove_file(&binary).unwrap(), "No such file"),
    ];
    for (what, spoil, expected) in rows {
        spoil();
        let asked = operator::ask(&service.weir, &["upgrade"]);
        assert_eq!(asked.status.code(), Some(1), "{what}");
        let said = String::from_utf8_lossy(&asked.stderr);
        assert!(said.contains(expected), "{what}: {said}");
        let told = service.told("STATUS=upgrade failed: ");
        assert!(told.contains(expected), "{what}: {told}");
        echoes(&address);
        client::round_trip(&mut old, b"still there");
    }
    drop(old);

    // All is well again.
    std::fs::copy(env!("CARGO_BIN_EXE_weir"), &binary).unwrap();
    service.weir.rewrite(&yaml);
    let said = operator::said(&service.weir, &["upgrade"]);
    let successor = service.successors().pop().unwrap();
    assert_eq!(said, format!("process {successor} serves\n"));
    wait_until("the old process ends", || !service.weir.is_running());
    echoes(&address);
}

/// The test is the process before, as one of another version would speak.
///
/// Seen to fail with a program of before there were forms.
#[test]
fn what_another_version_hands_over_is_refused_before_anything_is_touched() {
    let form = weir::control::election::form();
    let own = |name: &str| json!({"Sockets": [{"Own": name}]});
    let failover = "failover: {node: here, nodes: {here: '127.0.0.1:7400'}, vips: [{address: 192.0.2.80/32, interface: lo, hold: all}]}\n";
    let forms = Err("keep the state of virtual addresses in different forms");
    let words = Err("do not understand each other");
    let rows: [(&str, &str, Value, Result<(), &str>); 8] = [
        ("of before there were forms", failover, own("http 127.0.0.1:80"), forms),
        (
            "another form",
            failover,
            own("failover state 0, keeper 3, runner 1"),
            forms,
        ),
        ("the same form", failover, own(&form), Ok(())),
        (
            "another form, no failover",
            "",
            own("failover state 0, keeper 3, runner 1"),
            Ok(()),
        ),
        (
            "of before there were forms, no failover",
            "",
            own("http 127.0.0.1:80"),
            Ok(()),
        ),
        (
            "backends in other words",
            "",
            json!({"Knowledge": [{"backend": "one"}]}),
            words,
        ),
        ("sockets in other words", "", json!({"Sockets": [{"Vsock": 3}]}), words),
        ("something new", "", json!({"Later": []}), words),
    ];
    for (what, failover, note, expected) in rows {
        let dir = tempfile::tempdir().unwrap();
        let (file, log) = (dir.path().join("weir.yaml"), dir.path().join("log"));
        let admin = dir.path().join("admin.sock");
        let yaml = format!("admin: {}\n{failover}{}", admin.display(), yaml("127.0.0.1:1"));
        std::fs::write(&file, yaml).unwrap();
        let (near, far) = Channel::pair().unwrap();
        near.set_timeout(PATIENCE).unwrap();
        let words = ["-c", "exec \"$0\" run -c \"$1\" 2>\"$2\"", env!("CARGO_BIN_EXE_weir")].map(OsString::from);
        let words = words.into_iter().chain([file.into(), log.clone().into()]);
        let pid = handover::spawn(&"sh".into(), words, "WEIR_UPGRADE_FD", &["NOTIFY_SOCKET"], far).unwrap();
        let _ended = Ended(pid);
        let descriptor = std::fs::File::open("/dev/null").unwrap();
        let bytes = serde_json::to_vec(&note).unwrap();
        near.send(&bytes, &[descriptor.as_fd()]).unwrap();
        near.send(br#""Everything""#, &[]).unwrap();
        let answer = near
            .receive()
            .unwrap()
            .unwrap_or_else(|| panic!("{what}: it says nothing"));
        let answer: Value = serde_json::from_slice(&answer.bytes).unwrap();
        match expected {
            Ok(()) => {
                let unused = answer["Ready"]["unused"].as_array();
                let unused = unused.unwrap_or_else(|| panic!("{what}: {answer}"));
                let names = unused.iter().filter_map(|label| label["Own"].as_str());
                assert!(
                    names.clone().all(|name| !name.starts_with("failover")),
                    "{what}: {answer}"
                );
                near.send(br#""Abandon""#, &[]).unwrap();
            }
            Err(reason) => {
                let refused = answer["Refused"].as_str().unwrap_or_else(|| panic!("{what}: {answer}"));
                assert!(refused.contains(reason), "{what}: {refused}");
                assert!(refused.contains("restart weir instead"), "{what}: {refused}");
                wait_until("it ends", || !is_weir(pid));
                let log = std::fs::read_to_string(&log).unwrap();
                assert!(log.contains(reason), "{what}: {log}");
                assert!(!admin.exists(), "{what}: nothing was touched");
            }
        }
        wait_until("it ends", || !is_weir(pid));
    }
}

/// A process that is not to outlive its test.
struct Ended(u32);

impl Drop for Ended {
    fn drop(&mut self) {
        if is_weir(self.0) {
            handover::kill(self.0);
        }
    }
}

/// Break tried: waiting for a minute.
#[test]
#[ignore = "long: the new process has 15 seconds"]
fn a_successor_that_hangs_is_given_up() {
    let server = Server::echo();
    let service = start(&server);
    let address = service.weir.address("main");
    let mut old = echoes(&address);
    // Whoever opens this waits for a writer.
    let file = service.weir.dir().join("weir.yaml");
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    service.weir.signal(Signal::SIGUSR2);
    let told = service.told("STATUS=upgrade failed: ");
    assert!(told.contains("did not get ready in time"), "{told}");
    wait_until("the new process is ended", || {
        service.successors().len() == 1 && !is_weir(service.successors()[0])
    });
    echoes(&address);
    client::round_trip(&mut old, b"still there");

    std::fs::remove_file(&file).unwrap();
    service.weir.rewrite(&yaml(&server.address.to_string()));
    service.upgrade(service.weir.pid());
    echoes(&address);
}

#[test]
fn another_number_of_workers_and_other_listeners_are_taken_over() {
    let server = Server::echo();
    let mut service = start(&server);
    let address = service.weir.address("main");
    let mut pid = service.weir.pid();
    for workers in [1, 3, 2] {
        let more = format!(
            "workers: {workers}\nlog: {{access: off}}\nlisteners:\n  main: {{bind: '127.0.0.1:0', pool: main}}\n  \
             more: {{bind: '127.0.0.1:0', pool: main}}\npools: {{main: {{backends: ['{}']}}}}\n",
            server.address
        );
        service.weir.rewrite(&more);
        pid = service.upgrade(pid);
        // Connections land on every socket of the group: each must have a worker.
        for _ in 0..50 {
            echoes(&address);
        }
    }
    wait_until("the old process ends", || !service.weir.is_running());
}

/// A UDP server that answers each datagram with its name.
pub fn named_udp(name: &'static str) -> std::net::SocketAddr {
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, client)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(name.as_bytes(), client);
        }
    });
    address
}

pub fn ask(client: &UdpSocket) -> String {
    let mut buffer = [0; 64];
    client.send(b"who?").unwrap();
    let length = client.recv(&mut buffer).expect("an answer");
    String::from_utf8(buffer[..length].to_vec()).unwrap()
}

/// Each client keeps its backend, and every datagram is answered, although the pool deals at random.
///
/// Break tried: handing the listening sockets over without the sessions.
#[test]
fn udp_sessions_go_on() {
    let yaml = format!(
        "workers: 2\nlisteners: {{main: {{protocol: udp, bind: '127.0.0.1:0', pool: main}}}}\n\
         pools: {{main: {{balance: random, backends: ['{}', '{}'], health: none}}}}\n",
        named_udp("amber"),
        named_udp("birch")
    );
    let mut service = Service::start(&yaml, |launch| launch);
    service.told("READY=1");
    let address = service.weir.address("main");
    let clients: Vec<(UdpSocket, String)> = (0..40)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(&address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let name = ask(&client);
            (client, name)
        })
        .collect();
    let over = AtomicBool::new(false);
    let pids = std::thread::scope(|scope| {
        for half in clients.chunks(20) {
            let over = &over;
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    for (client, name) in half {
                        assert_eq!(ask(client), *name);
                    }
                }
            });
        }
        let finish = Finish(&over);
        let mut pids = vec![service.weir.pid()];
        for _ in 0..5 {
            pids.push(service.upgrade(*pids.last().unwrap()));
        }
        drop(finish);
        pids
    });
    for (client, name) in &clients {
        assert_eq!(ask(client), *name);
    }
    // Nothing keeps the old processes, and no session has ended on the way.
    wait_until("the old process ends", || !service.weir.is_running());
    let left = |pid: &&u32| is_weir(**pid);
    wait_until("one process is left", || pids[1..].iter().filter(left).count() == 1);
    assert_eq!(service.weir.access_log().len(), 0);
}

/// What a session counts for, and what it does not: it is one of its source's, and it is not a new one.
#[test]
fn udp_sessions_go_on_whatever_the_rate_of_new_ones() {
    let yaml = |limits: &str| {
        format!(
            "workers: 2\nlisteners: {{main: {{protocol: udp, bind: '127.0.0.1:0', pool: main, limits: {{{limits}}}}}}}\n\
             pools: {{main: {{balance: random, backends: ['{}', '{}'], health: none}}}}\n",
            named_udp("amber"),
            named_udp("birch")
        )
    };
    // The backends are the same in both files.
    let first = yaml("per_source: 24");
    let second = first.replace("per_source: 24", "per_source: 24, new_per_source: 1/h");
    let service = Service::start(&first, |launch| launch);
    service.told("READY=1");
    let address = service.weir.address("main");
    let clients: Vec<(UdpSocket, String)> = (0..24)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(&address).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let name = ask(&client);
            (client, name)
        })
        .collect();
    service.weir.rewrite(&second);
    let pid = service.upgrade(service.weir.pid());
    for (client, name) in &clients {
        assert_eq!(ask(client), *name);
    }
    // They count: there is no room for one more.
    let new = UdpSocket::bind("127.0.0.1:0").unwrap();
    new.connect(&address).unwrap();
    new.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    new.send(b"who?").unwrap();
    assert!(new.recv(&mut [0; 64]).is_err(), "the 25th");
    assert!(is_weir(pid));
}

/// What 2,000 listeners cost where each is looked for: prints figures, for `-- --ignored --nocapture`.
#[test]
#[ignore = "long: 2,000 listeners, figures to be read"]
fn two_thousand_listeners() {
    raise_descriptor_limit();
    let server = Server::each(drop);
    let udp = named_udp("amber");
    let yaml = |prefix: &str| {
        let tcp = (0..2000).map(|n| format!("  {prefix}{n}: {{bind: '127.0.0.1:0', pool: main}}\n"));
        let tcp: String = tcp.collect();
        format!(
            "workers: 2\nlog: {{access: off}}\nlisteners:\n{tcp}\
             \x20 dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns}}\n\
             pools:\n  main: {{backends: [{{name: one, address: '{}'}}], health: none}}\n  \
             dns: {{backends: ['{udp}'], health: none}}\n",
            server.address
        )
    };
    let cpu = |pid: u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let fields: Vec<i64> = stat
            .rsplit(')')
            .next()
            .unwrap()
            .split(' ')
            .filter_map(|f| f.parse().ok())
            .collect();
        // utime and stime; state is no number, so they are the 11th and 12th.
        Duration::from_millis((fields[10] + fields[11]) as u64 * 10)
    };
    let begun = Instant::now();
    let service = Service::start(&yaml("a"), |launch| launch);
    service.told("READY=1");
    let weir = &service.weir;
    let mut pid = weir.pid();
    let say = |what: &str, begun: Instant, cpu: Duration, of: u32| {
        println!(
            "{what:<40} {:>9.3?} each, {:>9.3?} CPU each",
            begun.elapsed() / of,
            cpu / of
        );
    };
    say("start", begun, cpu(pid), 1);
    let tell = |question: &str| super::reload::tell(weir, question);
    let measure = |what: &str, times: u32, action: &dyn Fn()| {
        let (begun, before) = (Instant::now(), cpu(pid));
        (0..times).for_each(|_| action());
        say(what, begun, cpu(pid) - before, times);
    };
    let last = weir.address("a1999");
    measure("connection to the last listener", 3000, &|| {
        client::read_to_end(&mut client::connect(&last));
    });
    measure("publication to workers", 200, &|| {
        tell(r#"{"command":"backend","pool":"main","name":"one","order":{"weight":2}}"#);
    });
    measure("status", 20, &|| drop(tell(r#"{"command":"status"}"#)));
    measure("metrics", 20, &|| drop(tell(r#"{"command":"metrics"}"#)));
    measure("reload, nothing changes", 3, &|| drop(tell(r#"{"command":"reload"}"#)));
    weir.rewrite(&yaml("b"));
    measure("reload, every listener is another one", 1, &|| {
        drop(tell(r#"{"command":"reload"}"#))
    });
    let (begun, before) = (Instant::now(), cpu(pid));
    pid = service.upgrade(pid);
    say("upgrade, the new process", begun, cpu(pid), 1);
    say("upgrade, the old process", begun, cpu(weir.pid()) - before, 1);
}

/// Every request of wrk is a new connection, every query a new UDP session; 500 connections that were there before are
/// there afterwards.
fn under_load(upgrades: usize, seconds: u32) {
    if !have(&["nginx", "wrk"]) {
        return;
    }
    raise_descriptor_limit();
    let (nginx, idle_server) = (Program::nginx(), Server::echo());
    let yaml = format!(
        "workers: 2\nshutdown_grace: 5m\nlog: {{access: off}}\nlisteners:\n  \
         web: {{bind: '127.0.0.1:0', pool: web}}\n  idle: {{bind: '127.0.0.1:0', pool: idle}}\n  \
         dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns, udp: {{replies: 1}}}}\n\
         pools:\n  web: {{backends: ['{}']}}\n  idle: {{backends: ['{}']}}\n  \
         dns: {{backends: ['{}'], health: none}}\n",
        nginx.address(),
        idle_server.address,
        named_udp("amber")
    );
    let service = Service::start(&yaml, |launch| launch);
    service.told("READY=1");
    let address = service.weir.address("idle");
    let mut idle: Vec<TcpStream> = (0..500).map(|_| echoes(&address)).collect();
    let url = format!("http://{}/", service.weir.address("web"));
    let time = format!("-d{seconds}s");
    // None may fail; how long one takes is the machine's affair.
    let arguments = [
        "-t1",
        "-c32",
        &time,
        "--timeout",
        "20s",
        "-H",
        "Connection: close",
        &url,
    ];
    let mut wrk = command(find("wrk").unwrap())
        .args(arguments)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let dns = service.weir.address("dns");
    let over = AtomicBool::new(false);
    let pid = std::thread::scope(|scope| {
        let queries = scope.spawn(|| {
            let mut answers = 0;
            while !over.load(Ordering::Relaxed) {
                let client = UdpSocket::bind("127.0.0.1:0").unwrap();
                client.connect(&dns).unwrap();
                client.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(ask(&client), "amber");
                answers += 1;
            }
            answers
        });
        let finish = Finish(&over);
        let mut pid = service.weir.pid();
        for round in 1..=upgrades {
            // The load goes on for a while between two upgrades.
            std::thread::sleep(Duration::from_millis(u64::from(seconds) * 500 / upgrades as u64));
            pid = service.upgrade(pid);
            // Not idle for so long that their backend gives up.
            if round % 10 == 0 {
                for stream in &mut idle {
                    client::round_trip(stream, b"still there");
                }
            }
        }
        while wrk.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(500));
            for stream in &mut idle {
                client::round_trip(stream, b"still there");
            }
        }
        drop(finish);
        println!("{} queries were answered", queries.join().unwrap());
        pid
    });
    let output = wrk.wait_with_output().unwrap();
    let report = String::from_utf8(output.stdout).unwrap();
    println!("{upgrades} upgrades: {report}");
    assert!(report.contains("Requests/sec"), "{report}");
    for trouble in ["Socket errors", "Non-2xx"] {
        assert!(!report.contains(trouble), "{report}");
    }
    for stream in &mut idle {
        client::round_trip(stream, b"after all that");
    }
    drop(idle);
    let left = |pid: &u32| *pid != service.weir.pid() && is_weir(*pid);
    let _ = kill(Pid::from_raw(pid as i32), Signal::SIGTERM);
    wait_until("all of them end", || !service.successors().iter().any(left));
}

/// Break tried: binding anew instead of taking over what was inherited.
#[test]
fn no_request_fails_under_load() {
    under_load(4, 4);
}

#[test]
#[ignore = "long: a hundred upgrades, a minute and a half"]
fn no_request_fails_in_a_hundred_upgrades() {
    under_load(100, 80);
}

/// Who follows events is told which process serves now, and that this was the last word.
#[test]
fn followers_are_told_of_the_process_that_serves_now() {
    use std::io::{BufRead, BufReader, Write};

    let server = Server::echo();
    let service = start(&server);
    let mut stream = std::os::unix::net::UnixStream::connect(service.weir.admin()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    writeln!(stream, "{{\"command\":\"events\"}}").unwrap();
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    assert_eq!(lines.next().unwrap(), r#"{"ok":"following"}"#);
    let successor = service.upgrade(service.weir.pid());
    let records: Vec<serde_json::Value> = lines.map(|line| serde_json::from_str(&line).unwrap()).collect();
    let kinds: Vec<&str> = records.iter().filter_map(|record| record["event"].as_str()).collect();
    assert!(kinds.contains(&"upgrade") && kinds.contains(&"upgraded"), "{records:?}");
    let last = records.last().unwrap();
    assert_eq!((&last["event"], &last["successor"]), (&"end".into(), &successor.into()));
}

/// What operators have added, removed and weighed goes over to the new process, kept or not; the next reload ends what is not kept.
#[test]
fn backends_by_order_go_over() {
    use super::common::operator::{json, said};

    let servers = [Server::echo(), Server::echo(), Server::echo()];
    let service = start(&servers[0]);
    let weir = &service.weir;
    let [first, kept, passing] = servers.each_ref().map(|server| server.address.to_string());
    said(weir, &["backend", "main", "add", &kept, "weight=4", "--keep"]);
    said(weir, &["backend", "main", "add", &passing]);
    said(weir, &["backend", &format!("main/{first}"), "remove"]);
    let there = || {
        let members = json(weir, &["members", "main"])["members"].take();
        let row = |member: &serde_json::Value| format!("{}*{}", member["address"].as_str().unwrap(), member["weight"]);
        members.as_array().unwrap().iter().map(row).collect::<Vec<_>>()
    };
    service.upgrade(weir.pid());
    assert_eq!(there(), [format!("{kept}*4"), format!("{passing}*1")]);
    said(weir, &["reload"]);
    assert_eq!(there(), [format!("{first}*1"), format!("{kept}*4")]);
}
