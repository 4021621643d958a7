//! Clients of the metrics port that never finish have no effect on the data plane.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::common::{Port, Server, Weir, client, raise_descriptor_limit};
use super::get;

/// Round trips within half a second: how many, and the 99th percentile.
fn load(address: &str) -> (usize, Duration) {
    let mut stream = client::connect(address);
    let (started, mut times) = (Instant::now(), Vec::new());
    while started.elapsed() < Duration::from_millis(500) {
        let sent = Instant::now();
        client::round_trip(&mut stream, &[7; 512]);
        times.push(sent.elapsed());
    }
    times.sort();
    (times.len(), times[times.len() * 99 / 100])
}

/// Alternates quiet and besieged phases, so that whatever else the machine does meets both alike.
#[test]
fn five_hundred_slow_clients_change_nothing() {
    raise_descriptor_limit();
    let (server, port) = (Server::echo(), Port::reserve());
    let http = port.address().to_string();
    let weir = Weir::start(&format!(
        "
workers: 1
metrics: '{http}'
listeners: {{main: {{bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}]}}}}
",
        server.address
    ));
    let main = weir.address("main");
    let (mut quiet, mut besieged) = (0, 0);
    for _ in 0..4 {
        quiet += load(&main).0;
        let slow: Vec<TcpStream> = (0..500)
            .map(|n| {
                let mut stream = TcpStream::connect(&http).unwrap();
                // Some say nothing, some begin, some ask and never read.
                let begin: &[u8] = match n % 3 {
                    0 => b"",
                    1 => b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ",
                    _ => b"GET /history HTTP/1.1\r\nHost: x\r\n\r\n",
                };
                let _ = stream.write_all(begin);
                stream
            })
            .collect();
        besieged += load(&main).0;
        for path in ["/metrics", "/healthz", "/status"] {
            assert!(get(&http, path).0.starts_with("HTTP/1.1 200"), "{path}");
        }
        // Most of them have had to make room.
        let descriptors = weir.descriptors().len();
        assert!(descriptors < 300, "{descriptors} descriptors");
        drop(slow);
    }
    println!("{quiet} round trips without, {besieged} with 500 slow clients");
    assert!(
        besieged * 10 > quiet * 6,
        "{quiet} without, {besieged} with"
    );
}
