//! What a listener allows its clients: access lists, caps, rates, bandwidth, age, and who is believed about the client's
//! address. Everything with real sockets, and over two workers where something is counted.

use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::common::{self, Server, Weir, client, wait_until};
use super::{Heard, listen_in};

/// Two workers, one listener on both loopback families with these keys, one pool with these.
fn weir_with(listener: &str, pool: &str, backend: impl std::fmt::Display) -> Weir {
    Weir::start(&format!(
        "workers: 2\nlisteners: {{web: {{bind: ['127.0.0.1:0', '[::1]:0'], pool: web, {listener}}}}}\n\
         pools: {{web: {{backends: '{backend}', health: {{type: none}}, passive: off, {pool}}}}}\n"
    ))
}

fn loopback(n: u32) -> IpAddr {
    Ipv4Addr::from(0x7f00_0000 + n).into()
}

/// What a client from there hears if it asks.
fn asked_from(source: IpAddr, address: &str) -> Heard {
    let Ok(mut stream) = client::try_connect(address, Some(source)) else {
        return Heard::Reset;
    };
    // The reset may be here already; whoever is told of it by the write is not told again.
    if stream.write_all(b"x").is_err() {
        return Heard::Reset;
    }
    listen_in(&mut stream)
}

/// 30,000 entries: each answers as it would alone, and deny wins.
///
/// Break tried: `deny` not looked at where `allow` permits.
#[test]
fn an_access_list_of_thousands_of_entries() {
    let backend = Server::echo();
    // Every second address of 127.64.0.0/16, and networks that overlap them.
    let every_second = (0..30_000).map(|n| format!("127.64.{}.{}", n / 128, n % 128 * 2));
    let deny: Vec<String> = every_second.chain(["127.65.0.0/20".into()]).collect();
    let long = format!("allow: [127.0.0.0/9, '::1'], deny: [{}]", deny.join(", "));
    let rows = [
        ("127.0.0.1", Heard::Answer),
        ("127.64.0.0", Heard::Reset),
        ("127.64.0.1", Heard::Answer),
        ("127.64.100.6", Heard::Reset),
        ("127.64.100.7", Heard::Answer),
        ("127.64.234.94", Heard::Reset),
        ("127.64.234.95", Heard::Answer),
        ("127.64.234.96", Heard::Answer),
        ("127.65.0.1", Heard::Reset),
        ("127.65.15.255", Heard::Reset),
        ("127.65.16.0", Heard::Answer),
        ("127.128.0.1", Heard::Reset),
    ];
    let weir = weir_with(&long, "", backend.address);
    for (source, expected) in rows {
        let heard = asked_from(source.parse().unwrap(), &weir.address("web"));
        assert_eq!(heard, expected, "{source}");
    }
    let denied = rows.iter().filter(|(_, heard)| *heard == Heard::Reset).count();
    let records = weir.wait_for_records(rows.len());
    assert_eq!(records.iter().filter(|r| r.cause == "denied").count(), denied);
}

/// Datagrams of strangers are the cheapest thing to send and each is looked up: with 30,000 entries they cost about what they
/// cost with one.
///
/// Break tried: a walk over all entries (six times the CPU).
#[test]
fn a_long_access_list_is_no_burden() {
    const DATAGRAMS: u64 = 60_000;
    let cost = |deny: &str| {
        let metrics = common::Port::reserve();
        let weir = Weir::start(&format!(
            "workers: 1\nmetrics: {}\n\
             listeners: {{dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns, deny: [{deny}]}}}}\n\
             pools: {{dns: {{backends: '127.0.0.1:9', health: none}}}}\n",
            metrics.address(),
        ));
        let socket = UdpSocket::bind("127.65.0.1:0").unwrap();
        socket.connect(weir.address("dns")).unwrap();
        let before = weir.cpu_ticks();
        let mut sent = 0;
        while sent < DATAGRAMS {
            for _ in 0..1000 {
                sent += socket.send(b"x").unwrap() as u64;
            }
            wait_until("they are counted", || {
                ["denied", "kernel_buffer"]
                    .map(|why| dropped(&metrics, why))
                    .iter()
                    .sum::<u64>()
                    == sent
            });
        }
        assert!(dropped(&metrics, "denied") > DATAGRAMS * 9 / 10);
        weir.cpu_ticks() - before
    };
    let every_second: Vec<String> = (0..30_000)
        .map(|n| format!("127.64.{}.{}", n / 128, n % 128 * 2))
        .collect();
    let (short, long) = (
        cost("127.65.0.0/20"),
        cost(&format!("127.65.0.0/20, {}", every_second.join(", "))),
    );
    println!("{long} ticks with 30,000 entries, {short} with one");
    assert!(long <= 3 * short + 20, "{long} ticks, {short} with a short list");
}

/// Datagrams that were not passed on for this reason.
fn dropped(metrics: &common::Port, reason: &str) -> u64 {
    let mut page = client::connect(&metrics.address().to_string());
    page.write_all(b"GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n")
        .unwrap();
    let mut text = String::new();
    page.read_to_string(&mut text).unwrap();
    let series = format!("weir_udp_dropped_total{{reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&series));
    line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().unwrap()
}

/// All at once from many threads: of each source exactly as many get in as may, although two workers accept them.
///
/// Break tried: a table of sources for each worker (twice as many get in).
#[test]
fn caps_and_rates_are_exact_over_workers() {
    // Keys, sources, connections of each, let in of each at first, let in again after all have gone; cause of the others.
    let rows: [(&str, u32, usize, usize, usize, &str); 5] = [
        ("limits: {per_source: 10}", 5, 40, 10, 10, "limit_source"),
        ("limits: {new_per_source: 12/h}", 5, 40, 12, 0, "limit_rate"),
        ("limits: {connections: 25}", 1, 80, 25, 25, "limit_listener"),
        // The smaller one counts, and who is refused by one has cost the other nothing.
        (
            "limits: {per_source: 10, connections: 5}",
            1,
            40,
            5,
            5,
            "limit_listener",
        ),
        (
            "limits: {per_source: 5, new_per_source: 7/h}",
            2,
            40,
            5,
            2,
            "limit_source limit_rate",
        ),
    ];
    let backend = Server::echo();
    for (keys, sources, each, first, again, causes) in rows {
        let weir = weir_with(keys, "", backend.address);
        let address = weir.address("web");
        let round = || -> Vec<Vec<TcpStream>> {
            std::thread::scope(|scope| {
                let threads: Vec<_> = (0..sources)
                    .flat_map(|n| [n; 2])
                    .map(|n| {
                        let address = &address;
                        let ask = move |_| {
                            let mut stream = client::try_connect(address, Some(loopback(0x1_0001 + n))).ok()?;
                            stream.write_all(b"x").ok()?;
                            (listen_in(&mut stream) == Heard::Answer).then_some(stream)
                        };
                        scope.spawn(move || (0..each / 2).filter_map(ask).collect::<Vec<_>>())
                    })
                    .collect();
                let ends = threads.into_iter().map(|thread| thread.join().unwrap());
                let halves: Vec<Vec<TcpStream>> = ends.collect();
                let whole = halves.chunks(2).map(|pair| {
                    let streams = pair.iter().flatten();
                    streams.map(|stream| stream.try_clone().unwrap()).collect()
                });
                whole.collect()
            })
        };
        let held = round();
        let counts: Vec<usize> = held.iter().map(Vec::len).collect();
        assert_eq!(counts, vec![first; sources as usize], "{keys}");
        drop(held);
        let ended = each * sources as usize;
        weir.wait_for_records(ended);
        let counts: Vec<usize> = round().iter().map(Vec::len).collect();
        assert_eq!(counts, vec![again; sources as usize], "{keys}: again");
        let records = weir.wait_for_records(2 * ended);
        for record in records.iter().filter(|r| r.cause != "finished") {
            assert!(causes.contains(&record.cause), "{keys}: {record:?}");
            assert_eq!((&*record.closed_by, &record.backend), ("weir", &None), "{keys}");
        }
    }
}

/// Who is exempt is neither limited nor counted; everybody else still is.
///
/// Break tried: nobody exempt.
#[test]
fn exempt_prefixes() {
    let backend = Server::echo();
    let limits = "limits: {per_source: 1, new_per_source: 1/h, exempt: [127.2.0.0/16]}";
    let weir = weir_with(limits, "", backend.address);
    let ask = |source| client::try_connect(&weir.address("web"), Some(source));
    let mut exempt: Vec<TcpStream> = (0..20).map(|_| ask(loopback(0x2_0007)).unwrap()).collect();
    exempt.iter_mut().for_each(|stream| client::round_trip(stream, b"x"));
    let mut first = ask(loopback(0x3_0007)).unwrap();
    client::round_trip(&mut first, b"x");
    assert_eq!(asked_from(loopback(0x3_0007), &weir.address("web")), Heard::Reset);
}

/// UDP: sessions are counted over both workers, whichever socket of a source the kernel's hash leads where.
///
/// Break tried: as above.
#[test]
fn udp_caps_are_exact_over_workers() {
    // Keys of the process and of the listener; sessions of three sources with 20 sockets each; cause.
    let rows = [
        ("", "limits: {per_source: 6}", 18, "limit_source"),
        ("", "limits: {connections: 11}", 11, "limit_listener"),
        ("limits: {udp_sessions: 9}", "", 9, "limit_process"),
        ("", "limits: {new_per_source: 4/h}", 12, "limit_rate"),
    ];
    for (process, listener, expected, cause) in rows {
        let backend = UdpSocket::bind("127.0.0.1:0").unwrap();
        let metrics = common::Port::reserve();
        let weir = Weir::start(&format!(
            "workers: 2\nmetrics: {}\n{process}\n\
             listeners: {{dns: {{protocol: udp, bind: '127.0.0.1:0', pool: dns, udp: {{idle: 60s}}, {listener}}}}}\n\
             pools: {{dns: {{backends: '{}', health: none}}}}\n",
            metrics.address(),
            backend.local_addr().unwrap()
        ));
        let sockets: Vec<UdpSocket> = (0..60)
            .map(|n| {
                let socket = UdpSocket::bind((loopback(0x4_0001 + n % 3), 0)).unwrap();
                socket.connect(weir.address("dns")).unwrap();
                socket
            })
            .collect();
        sockets
            .iter()
            .for_each(|socket| assert_eq!(socket.send(b"x").unwrap(), 1));
        wait_until("the others are refused", || {
            dropped(&metrics, cause) == 60 - expected as u64
        });
        // Each session's first datagram, and no other, has come through.
        backend.set_nonblocking(true).unwrap();
        let mut through = 0;
        wait_until("they come through", || {
            through += usize::from(backend.recv(&mut [0; 4]).is_ok());
            through == expected
        });
        assert!(backend.recv(&mut [0; 4]).is_err(), "{process} {listener}");
    }
}

/// A PROXY header in version 1 or 2, for a client of either family, with or without additions.
fn header(version: u8, client: &str, tlvs: &[u8]) -> Vec<u8> {
    let ip: IpAddr = client.parse().unwrap();
    if version == 1 {
        let (family, local) = if ip.is_ipv4() {
            ("TCP4", "192.0.2.9")
        } else {
            ("TCP6", "2001:db8::9")
        };
        return format!("PROXY {family} {client} {local} 4711 443\r\n").into_bytes();
    }
    let mut body = Vec::new();
    match ip {
        IpAddr::V4(ip) => body.extend([ip.octets(), [192, 0, 2, 9]].concat()),
        IpAddr::V6(ip) => body.extend(
            [
                ip.octets(),
                "2001:db8::9".parse::<std::net::Ipv6Addr>().unwrap().octets(),
            ]
            .concat(),
        ),
    }
    body.extend([4711u16.to_be_bytes(), 443u16.to_be_bytes()].concat());
    body.extend(tlvs);
    let family = if ip.is_ipv4() { 0x11 } else { 0x21 };
    let mut all = b"\r\n\r\n\0\r\nQUIT\n\x21".to_vec();
    all.push(family);
    all.extend((body.len() as u16).to_be_bytes());
    all.extend(body);
    all
}

/// Who is trusted says who the client is, in either version and family, in one piece or in many; the backend is told so in
/// either version; what follows the header is the stream, untouched. Who is not trusted has no header: it is a stream.
///
/// Breaks tried: additions (TLVs) taken for the stream; the header of a stranger believed.
#[test]
fn proxy_headers_in_and_out() {
    let rows: [(u8, &str, &[u8]); 5] = [
        (1, "198.51.100.7", b""),
        (1, "2001:db8::7", b""),
        (2, "198.51.100.7", b""),
        (2, "2001:db8::7", b""),
        // ALPN h2 and 40 bytes of padding.
        (
            2,
            "198.51.100.7",
            b"\x01\x00\x02h2\x04\x00\x28........................................",
        ),
    ];
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let backend = Server::each(move |mut stream| {
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        log.lock().unwrap().push(bytes);
    });
    for out in [1, 2] {
        let weir = weir_with(
            "accept_proxy: {from: [127.5.0.0/16]}",
            &format!("send_proxy: v{out}"),
            backend.address,
        );
        let sent = Cell::new(0);
        let send = |source, bytes: &[u8], piece: usize| {
            let mut stream = client::connect_from(source, &weir.address("web"));
            for part in bytes.chunks(piece) {
                stream.write_all(part).unwrap();
                if piece == 1 {
                    // Else they might be read together. (To wait until each is acknowledged takes 40 ms of the header's time.)
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            client::read_to_end(&mut stream);
            wait_until("the backend has it", || !seen.lock().unwrap().is_empty());
            // One record after the other: workers write in their own time.
            sent.set(sent.get() + 1);
            weir.wait_for_records(sent.get());
            seen.lock().unwrap().pop().unwrap()
        };
        for (version, client, tlvs) in rows {
            for piece in [1, 7, 4096] {
                let bytes = [&header(version, client, tlvs)[..], b"GET / \r\n"].concat();
                let got = send(loopback(0x5_0001), &bytes, piece);
                let expected = [&header(out, client, b"")[..], b"GET / \r\n"].concat();
                assert_eq!(got, expected, "v{version} to v{out}, {client}, {piece} at a time");
            }
            let stranger = send(loopback(0x6_0001), &header(version, client, tlvs), 4096);
            assert!(stranger.ends_with(&header(version, client, tlvs)), "{stranger:?}");
            assert!(!stranger.starts_with(&header(out, client, b"")), "{stranger:?}");
        }
        let records = weir.wait_for_records(4 * rows.len());
        let clients = records.iter().map(|r| r.client.rsplit_once(':').unwrap().0.to_owned());
        let clients: Vec<String> = clients.map(|ip| ip.trim_matches(['[', ']']).to_owned()).collect();
        for (at, (_, client, _)) in rows.iter().enumerate() {
            assert_eq!(
                clients[4 * at..][..4],
                [*client, client, client, "127.6.0.1"].map(str::to_owned)
            );
        }
    }
    // Longer than any header may be, though its length field allows it: refused, not kept.
    let weir = weir_with("accept_proxy: {from: [127.5.0.0/16]}", "", backend.address);
    let mut stream = client::connect_from(loopback(0x5_0001), &weir.address("web"));
    let _ = stream.write_all(&header(2, "198.51.100.7", &[0; 60_000]));
    assert_eq!(client::read_to_reset(&mut stream), b"");
    assert_eq!(weir.wait_for_records(1)[0].cause, "bad_proxy_header");
}

/// Sources are remembered for their rate; however many come, memory has a bound, and limits go on to hold.
fn sources_without_number(sources: u32, growth_max_kib: u64) {
    let backend = Server::each(|mut stream| {
        let _ = stream.write_all(b"!");
    });
    // Clients are whoever the header says, so that there can be more of them than loopback has ports.
    let weir = Weir::start(&format!(
        "workers: 2\nlog: {{access: off}}\nlisteners: {{web: {{bind: '127.0.0.1:0', pool: web, \
         accept_proxy: {{from: [127.0.0.0/8]}}, limits: {{new_per_source: 2/h}}}}}}\n\
         pools: {{web: {{backends: '{}', health: {{type: none}}, passive: off}}}}\n",
        backend.address
    ));
    let address = weir.address("web");
    let come = |n: u32, from: u8| {
        let mut stream = client::connect_from(IpAddr::from([127, 7, 0, from]), &address);
        let ip = Ipv4Addr::from(0x0b00_0000 + n).to_string();
        stream.write_all(&header(2, &ip, b"")).unwrap();
        let served = matches!(stream.read(&mut [0; 4]), Ok(1));
        client::reset(stream);
        served
    };
    for n in 0..1000 {
        assert!(come(n, 1));
    }
    let before = weir.memory_kib("RssAnon");
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let come = &come;
            scope.spawn(move || {
                for n in (1000 + thread..sources).step_by(4) {
                    assert!(come(n, 2 + thread as u8), "source {n}");
                }
            });
        }
    });
    let grown = weir.memory_kib("RssAnon").saturating_sub(before);
    println!("{grown} KiB for {sources} sources");
    assert!(grown < growth_max_kib, "{grown} KiB for {sources} sources");
    // One that was there a moment ago is remembered: it has one left of its two.
    assert!(come(sources - 1, 9));
    assert!(!come(sources - 1, 9));
}

/// Break tried: a kilobyte left behind by each.
#[test]
fn ten_thousand_sources_cost_little() {
    sources_without_number(10_000, 4 << 10);
}

#[test]
#[ignore = "long: 1,500,000 connections"]
fn memory_is_bounded_under_millions_of_sources() {
    sources_without_number(1_500_000, 160 << 10);
}

/// At no moment has a connection moved more than its share, each has its own, and every byte is right.
///
/// Break tried: upload charged to nobody.
#[test]
fn bandwidth_of_each_connection_is_limited() {
    const RATE: usize = 2 << 20;
    const BYTES: usize = 3 << 20;
    // The tenth of a second's worth that may come at once, and what lies in buffers when the clock starts.
    const SLACK: usize = RATE / 10 + (64 << 10);
    let pattern: Vec<u8> = (0..BYTES as u32)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    let (source, expected) = (Server::source(pattern.clone()), pattern.clone());
    let arrived = Arc::new(Mutex::new(Vec::new()));
    let results = arrived.clone();
    // One clock for all, which starts before the first of them.
    let start = Arc::new(OnceLock::new());
    let clock = start.clone();
    // Reads at once what comes, and notes whether it was ever more than allowed.
    let sink = Server::each(move |mut stream| {
        results
            .lock()
            .unwrap()
            .push(drink(&mut stream, &expected, *clock.get().unwrap(), RATE, SLACK));
    });
    let weir = Weir::start(&format!(
        "workers: 2\nlisteners:\n  down: {{bind: '127.0.0.1:0', pool: source, limits: {{download: 2MiB/s}}}}\n  \
         up: {{bind: '127.0.0.1:0', pool: sink, limits: {{upload: 2MiB/s}}}}\n  free: {{bind: '127.0.0.1:0', pool: source}}\n\
         pools: {{source: {{backends: '{}', health: {{type: none}}}}, sink: {{backends: '{}', health: {{type: none}}}}}}\n",
        source.address, sink.address
    ));
    let start = *start.get_or_init(Instant::now);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut stream = client::connect(&weir.address("down"));
                drink(&mut stream, &pattern, start, RATE, SLACK).unwrap();
            });
            scope.spawn(|| {
                let mut stream = client::connect(&weir.address("up"));
                let _ = stream.write_all(&pattern);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                // Ends with a reset if the other side had a complaint, which is told below.
                let _ = stream.read(&mut [0]);
            });
        }
    });
    wait_until("uploads have ended", || arrived.lock().unwrap().len() == 3);
    for result in arrived.lock().unwrap().iter() {
        assert_eq!(*result, Ok(()));
    }
    // Each its own: six at 2 MiB/s that shared one allowance would take nine seconds.
    let took = start.elapsed();
    assert!(took < Duration::from_secs(6), "{took:?} for 3 MiB at 2 MiB/s");
    // Without a limit there is none. With one it would never take less than a second.
    let quick = |_| {
        let (free, mut stream) = (Instant::now(), client::connect(&weir.address("free")));
        assert!(client::read_to_end(&mut stream) == pattern);
        free.elapsed() < Duration::from_secs(1)
    };
    assert!((0..5).any(quick));
}

/// Reads to the end: the bytes have to be these, and never more of them than `rate` allows since `start`.
fn drink(stream: &mut TcpStream, expected: &[u8], start: Instant, rate: usize, slack: usize) -> Result<(), String> {
    let (mut at, mut buffer) = (0, vec![0; 64 << 10]);
    loop {
        let n = stream.read(&mut buffer).map_err(|error| error.to_string())?;
        if n == 0 {
            let missing = expected.len() - at;
            return if missing == 0 {
                Ok(())
            } else {
                Err(format!("{missing} bytes are missing"))
            };
        }
        if expected.get(at..at + n) != Some(&buffer[..n]) {
            return Err(format!("altered between {at} and {}", at + n));
        }
        at += n;
        let allowed = (start.elapsed().as_secs_f64() * rate as f64) as usize + slack;
        if at > allowed {
            return Err(format!("{at} bytes, {allowed} allowed"));
        }
    }
}

/// Connections that came together do not end together: up to a tenth earlier, spread.
///
/// Break tried: no jitter (all end within 30 ms).
#[test]
fn max_age_is_spread() {
    let backend = Server::holder();
    let weir = weir_with("timeouts: {max_age: 3s}", "", backend.address);
    let held: Vec<TcpStream> = (0..60).map(|_| client::connect(&weir.address("web"))).collect();
    let records = weir.wait_for_records(60);
    drop(held);
    assert!(records.iter().all(|record| record.cause == "max_age"));
    let mut ages: Vec<f64> = records.iter().map(|record| record.duration_ms).collect();
    ages.sort_by(f64::total_cmp);
    // Late by what the machine does; early never.
    assert!(ages[0] >= 2699.0, "{ages:?}");
    assert!(ages[45] - ages[15] > 60.0, "{ages:?}");
}
