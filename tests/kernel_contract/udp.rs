//! What the UDP data path believes of the kernel, and that `sys::mmsg` and `sys::udp` speak to it correctly.
//!
//! Tests that need a network of their own make a namespace for their thread and are skipped, loudly, without the right to.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use weir::sys::mmsg::{Ask, Inbox, Message, Meta, Outbox, Part, SEGMENTS_MAX};
use weir::sys::route::{Route, Source, Target};
use weir::sys::socket::Place;
use weir::sys::udp::{self, Sent, Trouble};

const ALL: Ask = Ask {
    from: true,
    control: true,
};
const BARE: Ask = Ask {
    from: false,
    control: false,
};
const BUFFER: usize = 1 << 20;

fn route(to: SocketAddr, source: Option<IpAddr>) -> Route {
    let target = Target::Ip(to);
    let source = source.map_or(Source::Any, Source::Own);
    Route {
        source,
        ..Route::to(target)
    }
}

fn addr(s: &str) -> SocketAddr {
    s.parse().expect("address")
}

fn listen(at: &str) -> (udp::Listening, SocketAddr) {
    let listening = udp::listen(Place::new(addr(at), false), BUFFER).expect("listen");
    let local = std_socket(&listening.fd).local_addr().expect("local address");
    (listening, local)
}

fn std_socket(fd: &OwnedFd) -> UdpSocket {
    fd.try_clone().expect("dup").into()
}

fn client(at: &str) -> UdpSocket {
    let socket = UdpSocket::bind(at).expect("bind");
    socket.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
    socket
}

fn wait(fd: &OwnedFd, flags: PollFlags) {
    use std::os::fd::AsFd;
    let mut fds = [PollFd::new(fd.as_fd(), flags)];
    assert_eq!(
        poll(&mut fds, PollTimeout::from(5000u16)).expect("poll"),
        1,
        "nothing came"
    );
}

fn receive(inbox: &mut Inbox, fd: &OwnedFd, ask: Ask) -> Meta {
    wait(fd, PollFlags::POLLIN);
    let received = inbox.receive(fd.as_raw_fd(), ask, 1).expect("receive");
    assert_eq!(received.slots.len(), 1);
    *inbox.meta(received.slots.start)
}

fn whole(inbox: &Inbox, slot: usize) -> Part {
    Part {
        slot: slot as u32,
        start: 0,
        len: inbox.bytes(slot).len() as u32,
    }
}

/// One message for each filled slot.
fn echo(inbox: &Inbox) -> (Vec<Part>, Vec<Message>) {
    let parts: Vec<Part> = (0..inbox.len()).map(|slot| whole(inbox, slot)).collect();
    let messages = (0..inbox.len()).map(|slot| {
        let meta = inbox.meta(slot);
        Message {
            parts: slot..slot + 1,
            to: meta.from,
            from: meta.to,
            segment: meta.segment,
        }
    });
    (parts, messages.collect())
}

/// Runs in a thread with a network namespace of its own.
fn in_namespace(test: impl FnOnce() + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
                eprintln!("SKIPPED: no network namespace: {error}");
                return;
            }
            run("ip link set lo up");
            test();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn run(command: &str) {
    let words: Vec<&str> = command.split_whitespace().collect();
    let status = std::process::Command::new(words[0])
        .args(&words[1..])
        .status()
        .expect("spawn");
    assert!(status.success(), "{command}");
}

#[test]
fn a_reply_on_a_wildcard_socket_leaves_from_the_address_that_was_asked() {
    for (wildcard, asked, from) in [
        ("0.0.0.0:0", &["127.0.0.1", "127.0.0.2", "127.1.2.3"][..], "127.0.0.9:0"),
        ("[::]:0", &["::1"][..], "[::1]:0"),
    ] {
        let (listening, local) = listen(wildcard);
        assert!(listening.wildcard);
        let (mut inbox, mut outbox) = (Inbox::new(4), Outbox::new());
        for ip in asked {
            let to = SocketAddr::new(ip.parse().expect("address"), local.port());
            let client = client(from);
            client.send_to(b"who?", to).expect("send");
            inbox.clear();
            let meta = receive(&mut inbox, &listening.fd, ALL);
            assert_eq!(meta.from, Some(client.local_addr().expect("local")));
            assert_eq!(meta.to, Some(to.ip()));
            let (parts, messages) = echo(&inbox);
            assert_eq!(
                outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages),
                (1, Sent::Gone)
            );
            let mut buffer = [0; 16];
            assert_eq!(client.recv_from(&mut buffer).expect("reply"), (4, to));
        }
    }
}

#[test]
fn a_reply_cannot_leave_from_an_address_that_is_not_here() {
    let (listening, local) = listen("0.0.0.0:0");
    let client = client("127.0.0.1:0");
    client.send_to(b"x", ("127.0.0.1", local.port())).expect("send");
    let (mut inbox, mut outbox) = (Inbox::new(1), Outbox::new());
    receive(&mut inbox, &listening.fd, ALL);
    let (parts, mut messages) = echo(&inbox);
    messages[0].from = Some("198.51.100.1".parse().expect("address"));
    assert_eq!(
        outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages),
        (0, Sent::Unreachable)
    );
}

#[test]
fn one_batch_answers_many_clients_from_many_addresses() {
    let (listening, local) = listen("0.0.0.0:0");
    let clients: Vec<UdpSocket> = (0..20).map(|_| client("127.0.0.1:0")).collect();
    for (n, client) in clients.iter().enumerate() {
        let to = SocketAddr::new(IpAddr::from([127, 0, 0, 1 + n as u8]), local.port());
        client.send_to(&[n as u8], to).expect("send");
    }
    let (mut inbox, mut outbox) = (Inbox::new(32), Outbox::new());
    let deadline = Instant::now() + Duration::from_secs(5);
    while inbox.len() < clients.len() && Instant::now() < deadline {
        wait(&listening.fd, PollFlags::POLLIN);
        let got = inbox.receive(listening.fd.as_raw_fd(), ALL, 32).expect("receive");
        assert!(got.drained, "fewer than asked for means empty");
    }
    let (parts, messages) = echo(&inbox);
    assert_eq!(
        outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages),
        (20, Sent::Gone)
    );
    for (n, client) in clients.iter().enumerate() {
        let mut buffer = [0; 16];
        let (len, from) = client.recv_from(&mut buffer).expect("reply");
        assert_eq!(
            (&buffer[..len], from.ip()),
            (&[n as u8][..], IpAddr::from([127, 0, 0, 1 + n as u8]))
        );
    }
}

#[test]
fn a_batch_stops_at_the_message_that_fails_and_says_why() {
    let (listening, local) = listen("127.0.0.1:0");
    let (_other, there) = listen("127.0.0.1:0");
    let client = client("127.0.0.1:0");
    client.send_to(b"x", local).expect("send");
    let (mut inbox, mut outbox) = (Inbox::new(1), Outbox::new());
    receive(&mut inbox, &listening.fd, ALL);
    let parts = [whole(&inbox, 0)];
    let to = |to| Message {
        parts: 0..1,
        to: Some(to),
        from: None,
        segment: 0,
    };
    let messages = [to(there), to(there), to(addr("[::1]:9")), to(there)];
    let (gone, sent) = outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages);
    assert_eq!(gone, 2);
    assert_ne!(sent, Sent::Gone);
    assert_eq!(
        outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages[3..]),
        (1, Sent::Gone)
    );
}

#[test]
fn nothing_and_the_largest_datagram_travel_whole() {
    for (at, max) in [("127.0.0.1:0", 65_507), ("[::1]:0", 65_527)] {
        let (listening, local) = listen(at);
        let client = client(at);
        let (mut inbox, mut outbox) = (Inbox::new(1), Outbox::new());
        for len in [0, 1, 1472, 1473, 9000, max] {
            let sent: Vec<u8> = (0..len).map(|n| n as u8).collect();
            client.send_to(&sent, local).expect("send");
            inbox.clear();
            let meta = receive(&mut inbox, &listening.fd, ALL);
            assert_eq!((meta.len, meta.segment), (len, 0));
            assert_eq!(inbox.bytes(0), sent);
            let (parts, messages) = echo(&inbox);
            assert_eq!(
                outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages),
                (1, Sent::Gone)
            );
            let mut buffer = vec![0; 70_000];
            assert_eq!(client.recv_from(&mut buffer).expect("reply"), (len, local));
            assert_eq!(buffer[..len], sent);
        }
    }
}

#[test]
fn many_equal_datagrams_are_sent_and_received_as_one() {
    let (merging, local) = listen("127.0.0.1:0");
    assert!(merging.gro);
    let (source, source_local) = listen("127.0.0.1:0");
    let feeder = client("127.0.0.1:0");
    let (mut inbox, mut outbox) = (Inbox::new(8), Outbox::new());
    for (n, len) in [1200, 1200, 1200, 700].into_iter().enumerate() {
        feeder.send_to(&vec![n as u8; len], source_local).expect("send");
        receive(&mut inbox, &source.fd, ALL);
    }
    // Gathered from four slots into one send.
    let parts: Vec<Part> = (0..4).map(|slot| whole(&inbox, slot)).collect();
    let batch = |to| {
        [Message {
            parts: 0..4,
            to: Some(to),
            from: None,
            segment: 1200,
        }]
    };

    let mut merged = Inbox::new(2);
    assert_eq!(
        outbox.send(source.fd.as_raw_fd(), &inbox, &parts, &batch(local)),
        (1, Sent::Gone)
    );
    let meta = receive(&mut merged, &merging.fd, ALL);
    assert_eq!((meta.len, meta.segment, meta.datagrams()), (4300, 1200, 4));
    assert_eq!(merged.datagram(0, 3), vec![3; 700]);

    // A socket that has not asked for merging gets four datagrams.
    let plain = client("127.0.0.1:0");
    let to = plain.local_addr().expect("local");
    assert_eq!(
        outbox.send(source.fd.as_raw_fd(), &inbox, &parts, &batch(to)),
        (1, Sent::Gone)
    );
    let mut buffer = [0; 2000];
    let lens: Vec<usize> = (0..4).map(|_| plain.recv(&mut buffer).expect("datagram")).collect();
    assert_eq!(lens, [1200, 1200, 1200, 700]);
}

#[test]
fn segments_beyond_the_mtu_and_too_many_segments_are_refused_and_nothing_is_sent() {
    in_namespace(|| {
        run("ip link set lo mtu 1500");
        let (listening, local) = listen("127.0.0.1:0");
        let feeder = client("127.0.0.1:0");
        let sink = client("127.0.0.1:0");
        let (mut inbox, mut outbox) = (Inbox::new(1), Outbox::new());
        feeder.send_to(&vec![7; 8000], local).expect("send");
        receive(&mut inbox, &listening.fd, ALL);
        let parts = [whole(&inbox, 0)];
        let message = |segment| {
            [Message {
                parts: 0..1,
                to: sink.local_addr().ok(),
                from: None,
                segment,
            }]
        };
        let mut send = |segment| outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &message(segment));
        assert_eq!(send(1473), (0, Sent::SegmentTooBig));
        assert_eq!(send(1472), (1, Sent::Gone));
        // One datagram larger than the MTU is fragmented, not refused.
        assert_eq!(send(0), (1, Sent::Gone));
        let mut buffer = [0; 9000];
        let lens: Vec<usize> = (0..7).map(|_| sink.recv(&mut buffer).expect("datagram")).collect();
        assert_eq!(lens, [1472, 1472, 1472, 1472, 1472, 640, 8000]);
        // SEGMENTS_MAX is within what this kernel takes.
        assert_eq!(send(8000usize.div_ceil(SEGMENTS_MAX)), (1, Sent::Gone));
    });
}

/// A port on which nobody listens; for sure only in a namespace of its own.
fn closed_port(at: &str) -> SocketAddr {
    UdpSocket::bind(at).expect("bind").local_addr().expect("local")
}

#[test]
fn a_refusal_quotes_the_datagram_and_is_reported_instead_of_the_next_send() {
    in_namespace(|| {
        for at in ["127.0.0.1:0", "[::1]:0"] {
            let to = closed_port(at);
            let socket = udp::connect(&route(to, None)).expect("connect");
            let fd = socket.as_raw_fd();
            assert_eq!(udp::send(fd, b"is anybody there?"), Sent::Gone);
            wait(&socket, PollFlags::empty());
            // The pending error costs one send.
            assert_eq!(udp::send(fd, b"lost"), Sent::Unreachable);
            let mut buffer = [0; 1500];
            let report = udp::take_error(fd, &mut buffer).expect("report");
            assert_eq!(
                (report.trouble, &buffer[..report.quoted]),
                (Trouble::Closed, &b"is anybody there?"[..])
            );
            assert_eq!(udp::take_error(fd, &mut buffer), None);

            // Emptying the queue first takes the pending error too.
            assert_eq!(udp::send(fd, b"again"), Sent::Gone);
            wait(&socket, PollFlags::empty());
            assert_eq!(udp::take_error(fd, &mut buffer).map(|report| report.quoted), Some(5));
            let there = UdpSocket::bind(to).expect("bind");
            there.set_read_timeout(Some(Duration::from_secs(5))).expect("timeout");
            assert_eq!(udp::send(fd, b"sent"), Sent::Gone);
            let len = there.recv(&mut buffer).expect("datagram");
            assert_eq!(&buffer[..len], b"sent");
        }
    });
}

#[test]
fn a_long_datagram_is_quoted_in_part() {
    in_namespace(|| {
        for (at, most) in [("127.0.0.1:0", 528), ("[::1]:0", 1184)] {
            let socket = udp::connect(&route(closed_port(at), None)).expect("connect");
            let sent: Vec<u8> = (0..3000).map(|n| (n % 251) as u8).collect();
            assert_eq!(udp::send(socket.as_raw_fd(), &sent), Sent::Gone);
            wait(&socket, PollFlags::empty());
            let mut buffer = [0; 4000];
            let quoted = udp::take_error(socket.as_raw_fd(), &mut buffer).expect("report").quoted;
            assert!((64..=most).contains(&quoted), "{quoted}");
            assert_eq!(buffer[..quoted], sent[..quoted]);
        }
    });
}

#[test]
fn a_connected_socket_hears_its_peer_alone() {
    let (peer, stranger) = (client("127.0.0.1:0"), client("127.0.0.1:0"));
    let socket = udp::connect(&route(peer.local_addr().expect("local"), None)).expect("connect");
    let here = std_socket(&socket).local_addr().expect("local");
    stranger.send_to(b"forged", here).expect("send");
    peer.send_to(b"true", here).expect("send");
    let mut inbox = Inbox::new(4);
    receive(&mut inbox, &socket, BARE);
    assert_eq!(inbox.bytes(0), b"true");
    assert_eq!(
        inbox.receive(socket.as_raw_fd(), BARE, 4).expect("receive").slots.len(),
        0
    );
}

#[test]
fn one_datagram_is_received_like_several() {
    in_namespace(|| {
        for most in [1, 2] {
            let peer = client("127.0.0.1:0");
            let there = peer.local_addr().expect("local");
            let socket = udp::connect(&route(there, None)).expect("connect");
            let here = std_socket(&socket).local_addr().expect("local");
            let mut inbox = Inbox::new(4);
            let receive = |inbox: &mut Inbox| inbox.receive(socket.as_raw_fd(), BARE, most);
            let none = receive(&mut inbox).expect("receive");
            assert_eq!((none.slots, none.drained), (0..0, true), "{most}");
            for bytes in [&b"some"[..], b"", &[7; 65_507]] {
                peer.send_to(bytes, here).expect("send");
                wait(&socket, PollFlags::POLLIN);
                let got = receive(&mut inbox).expect("receive");
                let slot = inbox.len() - 1;
                assert_eq!((got.slots, got.drained), (slot..slot + 1, most > 1), "{most}");
                assert_eq!(inbox.bytes(slot), bytes);
                let meta = Meta {
                    len: bytes.len(),
                    ..Meta::default()
                };
                assert_eq!(*inbox.meta(slot), meta, "{most}");
            }
            // The error of an earlier datagram is told once.
            drop(peer);
            assert_eq!(udp::send(socket.as_raw_fd(), b"?"), Sent::Gone);
            wait(&socket, PollFlags::empty());
            let error = receive(&mut inbox).expect_err("refused");
            assert_eq!(error.raw_os_error(), Some(libc::ECONNREFUSED), "{most}");
            assert_eq!(receive(&mut inbox).expect("receive").slots.len(), 0);
            // A full inbox takes nothing.
            client(&there.to_string()).send_to(b"more", here).expect("send");
            client(&there.to_string()).send_to(b"and more", here).expect("send");
            wait(&socket, PollFlags::POLLIN);
            receive(&mut inbox).expect("receive");
            assert_eq!((inbox.room(), receive(&mut inbox).expect("receive").slots), (0, 4..4));
        }
    });
}

#[test]
fn the_kernel_counts_what_it_drops_at_a_socket() {
    let listening = udp::listen(Place::new(addr("127.0.0.1:0"), false), 4096).expect("listen");
    let local = std_socket(&listening.fd).local_addr().expect("local");
    let client = client("127.0.0.1:0");
    for _ in 0..500 {
        client.send_to(&[0; 100], local).expect("send");
    }
    let mut inbox = Inbox::new(512);
    let queued = inbox
        .receive(listening.fd.as_raw_fd(), ALL, 512)
        .expect("receive")
        .slots
        .len();
    assert!(queued < 500);
    // What arrives after the overflow says how much was lost before it.
    client.send_to(b"after", local).expect("send");
    inbox.clear();
    let meta = receive(&mut inbox, &listening.fd, ALL);
    assert_eq!(meta.drops, Some(500 - queued as u32));
}

#[test]
fn the_receive_buffer_in_force_is_what_is_reported() {
    let (listening, _) = listen("127.0.0.1:0");
    // The kernel doubles the request (socket(7)); as root it is not capped by rmem_max.
    let max: usize = std::fs::read_to_string("/proc/sys/net/core/rmem_max")
        .expect("sysctl")
        .trim()
        .parse()
        .expect("n");
    let polite = BUFFER.min(max) * 2;
    assert!(
        [polite, BUFFER * 2].contains(&listening.receive_buffer),
        "{}",
        listening.receive_buffer
    );
}

#[test]
fn without_a_free_port_connect_says_eagain() {
    in_namespace(|| {
        std::fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40004").expect("sysctl");
        let to = addr("127.0.0.1:53");
        let held: Vec<OwnedFd> = (0..5)
            .map(|_| udp::connect(&route(to, None)).expect("a port is free"))
            .collect();
        let error = udp::connect(&route(to, None)).expect_err("no port is free");
        assert_eq!(error.raw_os_error(), Some(libc::EAGAIN));
        // Ports are taken from one address alone when the source is given, so another source has all of them.
        for n in 0..5 {
            udp::connect(&route(to, Some("127.0.0.2".parse().expect("address"))))
                .map(drop)
                .unwrap_or_else(|e| panic!("{n}: {e}"));
        }
        drop(held);
        udp::connect(&route(to, None)).expect("free again");
    });
}

#[test]
fn the_hash_over_both_endpoints_keeps_a_flow_on_its_socket() {
    let (first, local) = listen("127.0.0.1:0");
    let sockets: Vec<OwnedFd> = std::iter::once(first.fd)
        .chain((1..4).map(|_| {
            udp::listen(Place::new(local, false), BUFFER)
                .expect("shares the port")
                .fd
        }))
        .collect();
    let clients: Vec<UdpSocket> = (0..40).map(|_| client("127.0.0.1:0")).collect();
    for client in clients.iter().chain(&clients).chain(&clients) {
        client.send_to(b"x", local).expect("send");
    }
    let mut homes = std::collections::HashMap::<SocketAddr, RawFd>::new();
    for socket in &sockets {
        let mut inbox = Inbox::new(256);
        inbox.receive(socket.as_raw_fd(), ALL, 256).expect("receive");
        for slot in 0..inbox.len() {
            let from = inbox.meta(slot).from.expect("sender");
            assert_eq!(
                *homes.entry(from).or_insert(socket.as_raw_fd()),
                socket.as_raw_fd(),
                "a flow on two sockets"
            );
        }
    }
    assert_eq!(homes.len(), 40);
    assert!(
        homes.values().collect::<std::collections::HashSet<_>>().len() > 1,
        "all flows on one socket"
    );
}

/// A `local` route takes the place of an address: what came before it was withdrawn is answered from it.
///
/// Meant to fail without the route (both), and without IPV6_FREEBIND on wildcard sockets (IPv6: EINVAL).
#[test]
fn an_answer_leaves_from_an_address_that_was_withdrawn() {
    in_namespace(|| {
        for (net, wildcard, from) in [
            ("10.9.9.9/32", "0.0.0.0:0", "127.0.0.1:0"),
            ("fd09::9/128", "[::]:0", "[::1]:0"),
        ] {
            let net: ipnet::IpNet = net.parse().expect("net");
            let mut netlink = weir::sys::netlink::Netlink::open().expect("netlink");
            let lease = Duration::from_secs(10);
            netlink.accept(net.addr(), true).expect("route");
            netlink.install(1, net, lease, true).expect("address");
            // Both are as they should be already.
            netlink.accept(net.addr(), true).expect("route again");
            let (listening, local) = listen(wildcard);
            let (mut inbox, mut outbox) = (Inbox::new(4), Outbox::new());
            let client = client(from);
            client.send_to(b"hello", (net.addr(), local.port())).expect("send");
            receive(&mut inbox, &listening.fd, ALL);
            netlink.remove(1, net).expect("address");
            let (parts, messages) = echo(&inbox);
            let (sent, stopped) = outbox.send(listening.fd.as_raw_fd(), &inbox, &parts, &messages);
            assert_eq!(
                (sent, format!("{stopped:?}")),
                (1, format!("{:?}", Sent::Gone)),
                "{net}"
            );
            let (_, from) = client.recv_from(&mut [0; 16]).expect("answer");
            assert_eq!(from.ip(), net.addr());
            netlink.accept(net.addr(), false).expect("no route");
            netlink.accept(net.addr(), false).expect("no route again");
            let gone = client.send_to(b"hello", (net.addr(), local.port()));
            assert!(gone.is_err(), "{net}: {gone:?}");
        }
    });
}

/// Meant to notice: IP_FREEBIND left out of either.
#[test]
fn a_listener_of_an_address_that_moves_needs_it_not() {
    in_namespace(|| {
        for at in ["10.9.9.9:80", "[fd09::9]:80"] {
            let bound = |moves| {
                let tcp = weir::sys::socket::listen_tcp(Place::new(addr(at), moves), None, None).map(drop);
                let udp = udp::listen(Place::new(addr(at), moves), BUFFER).map(drop);
                [tcp, udp].map(|bound| bound.map_err(|e| e.kind()))
            };
            let missing = Err(std::io::ErrorKind::AddrNotAvailable);
            assert_eq!(bound(false), [missing, missing], "{at}");
            assert_eq!(bound(true), [Ok(()), Ok(())], "{at}");
        }
    });
}
