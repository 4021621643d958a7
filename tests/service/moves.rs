//! Listeners that are renamed, and addresses that move between them: nobody who waits is lost, and nothing is closed.

use std::io::Read;
use std::net::UdpSocket;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::Signal;

use super::Finish;
use super::common::{PATIENCE, Port, Server, Weir, client, operator, wait_until};
use super::upgrade::{ask, named_udp};

/// One pool for each server.
fn pools(servers: &[(&str, String)]) -> String {
    let pool =
        |(name, address): &(&str, String)| format!("  {name}: {{backends: '{address}', health: {{type: none}}}}\n");
    format!("pools:\n{}", servers.iter().map(pool).collect::<String>())
}

#[track_caller]
fn reload(weir: &Weir, yaml: &str) {
    weir.rewrite(yaml);
    operator::said(weir, &["reload"]);
}

fn over_unix(path: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(path)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map(|_| text)
}

/// Break tried: every name an identity of its own (`address in use` for the unix socket; counts begin anew).
#[test]
fn a_renamed_listener_is_the_same_one() {
    let (server, dir) = (Server::echo(), tempfile::tempdir().unwrap());
    let (tcp, unix) = (Port::reserve(), dir.path().join("front.sock"));
    let yaml = |names: [&str; 3]| {
        format!(
            "workers: 2\nlisteners:\n  {}: {{bind: ['{}', '127.0.0.1:0'], pool: a}}\n  {}: {{bind: 'unix:{}', pool: a}}\n  \
             {}: {{protocol: udp, bind: '127.0.0.1:0', pool: u}}\n{}",
            names[0],
            tcp.address(),
            names[1],
            unix.display(),
            names[2],
            pools(&[("a", server.address.to_string())])
        ) + &format!(
            "  u: {{balance: random, health: none, backends: ['{}', '{}']}}\n",
            named_udp("x"),
            named_udp("y")
        )
    };
    let weir = Weir::start(&yaml(["one", "two", "three"]));
    let addresses = weir.addresses("one");
    let mut held: Vec<_> = addresses.iter().map(|address| client::connect(address)).collect();
    held.iter_mut().for_each(|stream| client::round_trip(stream, b"before"));
    let mut over = UnixStream::connect(&unix).unwrap();
    let mut over_and_back = || {
        std::io::Write::write_all(&mut over, b"x").unwrap();
        over.read_exact(&mut [0]).unwrap();
    };
    over_and_back();
    let flows: Vec<(UdpSocket, String)> = (0..20)
        .map(|_| {
            let client = UdpSocket::bind("127.0.0.1:0").unwrap();
            client.connect(weir.address("three")).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let name = ask(&client);
            (client, name)
        })
        .collect();
    let sockets = weir.sockets();
    reload(&weir, &yaml(["uno", "dos", "tres"]));
    // Whoever gave the order may still be there.
    wait_until("nothing was opened or closed", || weir.sockets() == sockets);
    for (stream, address) in held.iter_mut().zip(&addresses) {
        client::round_trip(stream, b"after");
        client::round_trip(&mut client::connect(address), b"a new one");
    }
    over_and_back();
    assert!(UnixStream::connect(&unix).is_ok());
    for (client, name) in &flows {
        assert_eq!(ask(client), *name);
    }
    let status = operator::status(&weir);
    let listeners = status["listeners"].as_array().unwrap();
    let accepted = |name: &str| {
        listeners
            .iter()
            .find(|l| l["name"] == name)
            .map(|l| l["accepted"].as_u64().unwrap())
    };
    assert_eq!([accepted("uno"), accepted("tres")], [Some(4), Some(20)]);
    assert_eq!(accepted("one"), None);

    // It goes, file and all, under its new name.
    let rest = format!("listeners:\n  uno: {{bind: '{}', pool: a}}\n", tcp.address());
    reload(
        &weir,
        &format!("workers: 2\n{rest}{}", pools(&[("a", server.address.to_string())])),
    );
    assert!(!unix.exists());
    weir.signal(Signal::SIGTERM);
}

/// Clients that never stop coming, while addresses are exchanged again and again. Each of them is served, by the one or the
/// other, and after each reload by the right one.
///
/// Breaks tried: binding anew (`address in use` for the unix sockets); closing the sockets before their duplicates are there.
#[test]
fn addresses_move_between_listeners() {
    let (a, b, dir) = (Server::named("a"), Server::named("b"), tempfile::tempdir().unwrap());
    let tcp = [Port::reserve(), Port::reserve()].map(|port| (port.address().to_string(), port));
    let unix = ["first", "second"].map(|name| dir.path().join(name));
    let yaml = |first: [usize; 2], second: [usize; 2], workers: usize| {
        // For each listener the numbers of its TCP and unix addresses; 2 = none.
        let binds = |[t, u]: [usize; 2], mine: usize| {
            let tcp = tcp.get(t).map(|(address, _)| format!("'{address}'"));
            let unix = unix.get(u).map(|path| format!("'unix:{}'", path.display()));
            let own = format!("'127.0.0.{}:0'", 2 + mine);
            [tcp, unix, Some(own)]
                .into_iter()
                .flatten()
                .collect::<Vec<_>>()
                .join(", ")
        };
        format!(
            "workers: {workers}\nlisteners:\n  one: {{bind: [{}], pool: a}}\n  two: {{bind: [{}], pool: b}}\n{}",
            binds(first, 0),
            binds(second, 1),
            pools(&[("a", a.address.to_string()), ("b", b.address.to_string())])
        )
    };
    let weir = Weir::start(&yaml([0, 0], [1, 1], 2));
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        let _finish = Finish(&stop);
        for ix in 0..2 {
            let (stop, served, tcp, unix) = (&stop, &served, &tcp[ix].0, &unix[ix]);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let answers = [client::fetch(tcp).unwrap(), over_unix(unix).unwrap()];
                    assert!(answers.iter().all(|name| name == "a" || name == "b"), "{answers:?}");
                    served.fetch_add(2, Ordering::Relaxed);
                }
            });
        }
        let rows: [([usize; 2], [usize; 2], usize); 6] = [
            ([1, 1], [0, 0], 2),
            ([0, 0], [1, 1], 3),
            ([1, 0], [0, 1], 1),
            ([0, 1], [1, 0], 2),
            ([1, 1], [0, 0], 2),
            ([0, 0], [1, 1], 1),
        ];
        for (first, second, workers) in rows.iter().cycle().take(18) {
            reload(&weir, &yaml(*first, *second, *workers));
            for (listener, name) in [(first, "a"), (second, "b")] {
                assert_eq!(
                    client::fetch(&tcp[listener[0]].0).unwrap(),
                    name,
                    "{first:?} {second:?} {workers}"
                );
                assert_eq!(
                    over_unix(&unix[listener[1]]).unwrap(),
                    name,
                    "{first:?} {second:?} {workers}"
                );
            }
        }
    });
    assert!(served.load(Ordering::Relaxed) > 0);
    // A reload that fails leaves everything where it was.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("  three: {{bind: '{}', pool: a}}\npools:", taken.local_addr().unwrap());
    weir.rewrite(&yaml([1, 1], [0, 0], 2).replace("pools:", &more));
    assert_eq!(operator::ask(&weir, &["reload"]).status.code(), Some(1));
    for (ix, name) in ["a", "b"].iter().enumerate() {
        assert_eq!(client::fetch(&tcp[ix].0).unwrap(), *name);
        assert_eq!(over_unix(&unix[ix]).unwrap(), *name);
    }
    assert!(unix.iter().all(|path| path.exists()));
    weir.stop();
    assert!(unix.iter().all(|path| !path.exists()));
}
