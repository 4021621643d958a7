//! Clients of the metrics port that never finish have no effect on the data plane.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::common::{Port, Server, Weir, client, raise_descriptor_limit};
use super::get;

/// Round trips within a third of a second.
fn load(address: &str) -> usize {
    let mut stream = client::connect(address);
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < Duration::from_millis(333) {
        client::round_trip(&mut stream, &[7; 512]);
        count += 1;
    }
    count
}

/// Alternates quiet and besieged phases and compares neighbours, so that whatever else the machine does meets both alike.
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
    let mut ratios = Vec::new();
    for _ in 0..15 {
        let quiet = load(&main);
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
        ratios.push(load(&main) as f64 / quiet as f64);
        for path in ["/metrics", "/healthz", "/status"] {
            assert!(get(&http, path).0.starts_with("HTTP/1.1 200"), "{path}");
        }
        // Most of them have had to make room.
        let descriptors = weir.descriptors().len();
        assert!(descriptors < 300, "{descriptors} descriptors");
        drop(slow);
    }
    ratios.sort_by(f64::total_cmp);
    println!("round trips beside 500 slow clients, as shares of those without: {ratios:.2?}");
    assert!(ratios[ratios.len() / 2] > 0.4, "{ratios:.2?}");
}
