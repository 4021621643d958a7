//! Many sources at once, honest and not.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, Type};

use super::common::netns::{Netns, link};
use super::common::operator::{said, status};
use super::common::{
    Launch, PATIENCE, Port, Weir, command, may_make_namespaces, raise_descriptor_limit, run, wait_until,
};
use super::peers::{Client, Server, metric};

/// Bytes of the headers of a raw packet.
const HEADERS: usize = 28;

/// 100,000 datagrams, each from another source port and address, while one flow goes on.
#[test]
fn spoofed_sources_use_up_no_more_than_the_cap_and_do_not_hurt_a_flow() {
    const FLOOD: u32 = 100_000;
    const SESSIONS: usize = 2_000;
    if !may_make_namespaces() {
        return;
    }
    let (client, host) = (Netns::new("client"), Netns::new("host"));
    link("eth0", [(&client, "10.9.0.2/16"), (&host, "10.9.0.1/16")]);
    let server = host.enter(|| Server::echo("127.0.0.1:0"));
    let weir = Launch::new(&format!(
        "
workers: 1
limits: {{udp_sessions: {SESSIONS}}}
listeners: {{main: {{protocol: udp, bind: ['10.9.0.1:5353'], pool: main, udp: {{idle: 3s}}}}}}
pools: {{main: {{health: {{type: none}}, backends: ['{}']}}}}
",
        server.address
    ))
    .inside(&host)
    .start();
    let flow = client.enter(|| Client::at("10.9.0.2"));
    flow.ask("10.9.0.1:5353", "before the flood");
    let (sockets, memory) = (weir.sockets(), weir.memory_kib("RssAnon"));

    // The flow counts its losses while the flood comes in.
    let flooding = AtomicBool::new(true);
    let (asked, answered) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let mut most = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while flooding.load(Ordering::Relaxed) {
                let n = asked.fetch_add(1, Ordering::Relaxed);
                let text = format!("question {n}");
                if flow.echoed_within("10.9.0.1:5353", &text, Duration::from_secs(3)) {
                    answered.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let raw =
            client.enter(|| Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW))).unwrap());
        let mut started = Instant::now();
        for n in 0..FLOOD {
            // 20,000 a second, which takes the 3 s of the idle time and more.
            let due = Duration::from_micros(u64::from(n) * 50);
            while started.elapsed() < due {
                std::thread::sleep(Duration::from_micros(200));
            }
            // Who had to wait for a CPU does not catch up: what comes all at once fits into no buffer.
            if started.elapsed() > due + Duration::from_millis(100) {
                started = Instant::now() - due;
            }
            let source = SocketAddr::from((Ipv4Addr::from(0x0a09_1000 + n / 60_000), (1024 + n % 60_000) as u16));
            let packet = spoofed(source, "10.9.0.1:5353".parse().unwrap(), b"flood");
            let _ = raw.send_to(&packet, &"10.9.0.1:0".parse::<SocketAddr>().unwrap().into());
            if n % 5_000 == 0 {
                most = most.max(weir.sockets());
            }
        }
        flooding.store(false, Ordering::Relaxed);
    });
    let (asked, answered) = (asked.into_inner(), answered.into_inner());
    println!("{answered} of {asked} answered; {most} sockets at most");
    // Each loss costs three of the five seconds: a flow that is hurt does not get as far as this.
    assert!(asked >= 5, "the flow was slow: {asked}");
    assert!(asked - answered <= 2 + asked / 100, "{answered} of {asked} answered");
    assert!(most <= sockets + SESSIONS, "{most} sockets");
    let process = status(&weir);
    assert!(process["workers"][0]["udp_sessions"].as_u64().unwrap() <= SESSIONS as u64);
    let refused = process["listeners"][0]["refused"].as_u64().unwrap();
    assert!(refused > u64::from(FLOOD) / 2, "{refused} refused");
    let grown = weir.memory_kib("RssAnon").saturating_sub(memory);
    assert!(grown < 16 << 10, "{grown} KiB more");
    // And it is over when it is over.
    wait_until("sessions end", || status(&weir)["workers"][0]["udp_sessions"] == 0);
    wait_until("sockets are closed", || weir.sockets() == sockets - 1);
}

/// An IPv4 packet with a UDP datagram in it; the kernel fills in the header's checksum, UDP may go without.
fn spoofed(source: SocketAddr, to: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    let (SocketAddr::V4(source), SocketAddr::V4(to)) = (source, to) else {
        panic!("IPv4 only")
    };
    let mut packet = Vec::with_capacity(HEADERS + bytes.len());
    packet.extend([0x45, 0]);
    packet.extend(((HEADERS + bytes.len()) as u16).to_be_bytes());
    packet.extend([0, 0, 0, 0, 64, 17, 0, 0]);
    packet.extend(source.ip().octets());
    packet.extend(to.ip().octets());
    packet.extend(source.port().to_be_bytes());
    packet.extend(to.port().to_be_bytes());
    packet.extend((8 + bytes.len() as u16).to_be_bytes());
    packet.extend([0, 0]);
    packet.extend(bytes);
    packet
}

/// 4,000 clients speak at the same moment.
#[test]
fn thousands_of_flows_at_once_lose_next_to_nothing() {
    const FLOWS: usize = 4_000;
    raise_descriptor_limit();
    let server = Server::echo("127.0.0.1:0");
    let weir = Launch::new(&format!(
        "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
        server.address
    ))
    .start();
    let address: SocketAddr = weir.address("main").parse().unwrap();
    let clients: Vec<UdpSocket> = (0..FLOWS)
        .map(|_| {
            let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
            socket.connect(address).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = SockRef::from(&socket).set_recv_buffer_size(8 << 10);
            socket
        })
        .collect();
    let mut lost = 0;
    for round in 0..5u32 {
        for client in &clients {
            client.send(&round.to_be_bytes()).unwrap();
        }
        // Lost is what has not come when nothing has come for long.
        let mut progress = Instant::now();
        let mut waiting: Vec<&UdpSocket> = clients.iter().collect();
        while !waiting.is_empty() && progress.elapsed() < PATIENCE / 10 {
            let (mut buffer, before) = ([0; 16], waiting.len());
            waiting.retain(|client| !matches!(client.recv(&mut buffer), Ok(4) if buffer[..4] == round.to_be_bytes()));
            if waiting.len() < before {
                progress = Instant::now();
            } else {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        lost += waiting.len();
    }
    println!("{lost} of {} lost", 5 * FLOWS);
    assert!(lost * 100 <= 5 * 5 * FLOWS, "{lost} of {} lost", 5 * FLOWS);
}

/// Out of descriptors: new sessions are shed, old ones go on, one line a second at most is logged.
#[test]
fn out_of_descriptors_old_sessions_go_on() {
    let server = Server::echo("127.0.0.1:0");
    let weir = Launch::new(&format!(
        "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: ['{}']}}}}
",
        server.address
    ))
    .start();
    // Behind its back: it would refuse limits that it cannot carry.
    let mut lower = command("prlimit");
    run(lower.args(["--nofile=100:100", "--pid", &weir.pid().to_string()]));
    let (address, started) = (weir.address("main"), Instant::now());
    let clients: Vec<Client> = (0..200).map(|_| Client::at("127.0.0.1")).collect();
    let served: Vec<&Client> = clients
        .iter()
        .filter(|client| client.echoed_within(&address, "x", Duration::from_millis(100)))
        .collect();
    assert!((20..100).contains(&served.len()), "{} served", served.len());
    for client in served {
        assert_eq!(client.ask(&address, "still here?"), "still here?");
    }
    let lines = weir
        .stderr()
        .iter()
        .filter(|line| line.contains("Too many open files"))
        .count();
    let seconds = started.elapsed().as_secs() as usize;
    assert!((1..=seconds + 2).contains(&lines), "{lines} lines in {seconds} s");
}

/// What the kernel has dropped at a socket is counted once, also when another worker goes on with the socket.
///
/// Break tried: the count of a socket that arrives taken from 0 (all its losses are counted again).
#[test]
fn losses_of_a_socket_that_moves_are_counted_once() {
    let server = Server::silent("127.0.0.1:0");
    let http = Port::reserve();
    let yaml = format!(
        "workers: 3\nmetrics: '{}'\n\
         listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}\n\
         pools: {{main: {{backends: ['{}'], health: none}}}}\n",
        http.address(),
        server.address
    );
    let weir = Weir::start(&yaml);
    let address = weir.address("main");
    let lost = || {
        let series = "weir_udp_dropped_total{reason=\"kernel_buffer\"}";
        metric(&http.address().to_string(), series)
    };
    // Every worker has to have a client.
    let mut clients: Vec<Client> = Vec::new();
    wait_until("every worker has a session", || {
        let client = Client::at("127.0.0.1");
        client.send(&address, b"hello");
        clients.push(client);
        let workers = status(&weir)["workers"].clone();
        let busy = |worker: &serde_json::Value| worker["udp_sessions"].as_u64() > Some(0);
        workers.as_array().unwrap().iter().all(busy)
    });
    assert_eq!(lost(), 0);

    // More than fits while nobody reads. The kernel counts it, and says so with the datagrams that come afterwards.
    weir.signal(nix::sys::signal::Signal::SIGSTOP);
    for _ in 0..(2_000 / clients.len()).max(600) {
        for client in &clients {
            client.send(&address, &[0; 50_000]);
        }
    }
    weir.signal(nix::sys::signal::Signal::SIGCONT);
    let (mut seen, mut polls) = (0, 0);
    wait_until("losses are counted, and no more come", || {
        clients.iter().for_each(|client| client.send(&address, b"more"));
        std::thread::sleep(Duration::from_millis(200));
        let now = lost();
        // Each worker counts its own, and one of them may be late.
        polls = if seen == now { polls + 1 } else { 0 };
        seen = now;
        now > 0 && polls >= 5
    });

    weir.rewrite(&yaml.replace("workers: 3", "workers: 1"));
    said(&weir, &["reload"]);
    wait_until("one worker has all", || {
        status(&weir)["workers"][0]["udp_sessions"] == clients.len()
    });
    let before = server.count();
    clients.iter().for_each(|client| client.send(&address, b"after"));
    wait_until("all were passed on", || server.count() >= before + clients.len());
    assert_eq!(lost(), seen);
}
