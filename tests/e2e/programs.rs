//! Real servers behind weir, driven by their own load generators.

use std::io::Write;
use std::process::Command;

use super::common::program::Program;
use super::common::{Weir, client, command, find, have, run, wait_until};

fn weir_before(server: &Program) -> Weir {
    weir_with(2, "", server)
}

fn weir_with(workers: u32, pool: &str, server: &Program) -> Weir {
    Weir::start(&format!(
        "
workers: {workers}
listeners: {{main: {{bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}], {pool}}}}}
",
        server.address()
    ))
}

fn program(name: &str) -> Command {
    command(find(name).unwrap())
}

fn split(address: &str) -> (&str, &str) {
    address.rsplit_once(':').unwrap()
}

#[test]
fn wrk_to_nginx_has_no_socket_errors() {
    if !have(&["nginx", "wrk"]) {
        return;
    }
    let nginx = Program::nginx();
    let weir = weir_before(&nginx);
    let url = format!("http://{}/", weir.address("main"));
    for connection in ["keep-alive", "close"] {
        let header = format!("Connection: {connection}");
        let report = run(program("wrk").args(["-t2", "-c64", "-d2s", "--timeout", "20s", "-H", &header, &url]));
        assert!(report.contains("Requests/sec"), "{report}");
        for trouble in ["Socket errors", "Non-2xx"] {
            assert!(!report.contains(trouble), "{connection}: {report}");
        }
    }
    // wrk ends its last connections in the middle of an answer; none of the others may have ended badly.
    let records = weir.stop();
    let bad = records
        .iter()
        .filter(|r| !["finished", "client_reset"].contains(&r.cause.as_str()));
    assert_eq!(bad.count(), 0);
    assert!(records.len() > 500, "{} connections", records.len());
}

#[test]
fn ab_to_nginx_has_no_failed_requests() {
    if !have(&["nginx", "ab"]) {
        return;
    }
    let nginx = Program::nginx();
    std::fs::write(nginx.dir().join("www/file"), vec![b'x'; 20_000]).unwrap();
    let weir = weir_before(&nginx);
    let url = format!("http://{}/file", weir.address("main"));
    for options in [&["-k"][..], &[]] {
        let report = run(program("ab")
            .args(["-q", "-n", "5000", "-c", "50"])
            .args(options)
            .arg(&url));
        assert!(report.contains("Complete requests:      5000"), "{report}");
        assert!(report.contains("Failed requests:        0"), "{report}");
        assert!(!report.contains("Non-2xx"), "{report}");
    }
}

#[test]
fn redis_benchmark_with_pipelining() {
    if !have(&["redis-server", "redis-benchmark"]) {
        return;
    }
    let redis = Program::redis();
    let weir = weir_before(&redis);
    let address = weir.address("main");
    let (host, port) = split(&address);
    let mut benchmark = program("redis-benchmark");
    benchmark.args([
        "-h",
        host,
        "-p",
        port,
        "-P",
        "16",
        "-n",
        "100000",
        "-q",
        "-t",
        "set,get,lrange_100",
    ]);
    let report = run(&mut benchmark);
    assert_eq!(report.matches("requests per second").count(), 4, "{report}");
    assert!(!report.to_lowercase().contains("error"), "{report}");
}

#[test]
fn pgbench_fails_no_transaction() {
    if !have(&["initdb", "postgres", "pgbench"]) {
        return;
    }
    let postgres = Program::postgres();
    let weir = weir_before(&postgres);
    let address = weir.address("main");
    let (host, port) = split(&address);
    let pgbench = |options: &[&str]| {
        let mut benchmark = program("pgbench");
        benchmark
            .args(["-h", host, "-p", port, "-U", "postgres"])
            .args(options)
            .arg("postgres");
        run(&mut benchmark)
    };
    pgbench(&["-i", "-s", "1", "-q"]);
    // Held connections, then one connection a transaction.
    for options in [
        &["-c", "8", "-j", "2", "-T", "2"][..],
        &["-C", "-c", "4", "-j", "2", "-T", "2", "-S"],
    ] {
        let report = pgbench(options);
        assert!(report.contains("number of failed transactions: 0"), "{report}");
    }
    let records = weir.stop();
    assert!(records.iter().all(|record| record.cause == "finished"), "{records:?}");
}

#[test]
fn iperf3_in_every_direction() {
    if !have(&["iperf3"]) {
        return;
    }
    let per_test: [&[&str]; 5] = [
        &["--parallel", "1"],
        &["--parallel", "1", "--reverse"],
        &["--parallel", "8"],
        &["--parallel", "8", "--reverse"],
        &["--parallel", "2", "--bidir"],
    ];
    let mut records = Vec::new();
    // One second, in which a busy machine may stand still.
    let mut flows = |options: &[&str]| {
        // Each time another server: one that has not yet read the end of the last test is busy.
        let iperf3 = Program::iperf3();
        // It tells the connections of one direction from those of the other by the order in which they come, which two workers
        // may change: then both ends write where nobody reads.
        let bidir = options.contains(&"--bidir");
        let workers = if bidir { 1 } else { 2 };
        // It serves one client at a time, and a probe would be one.
        let weir = weir_with(workers, "health: {type: none}", &iperf3);
        let address = weir.address("main");
        let (host, port) = split(&address);
        let mut client = program("iperf3");
        client
            .args(["-c", host, "-p", port, "--time", "1", "--json"])
            .args(options);
        let report = run(&mut client);
        let report: serde_json::Value = serde_json::from_str(&report).expect(&report);
        assert!(report.get("error").is_none(), "{options:?}: {report}");
        records.extend(weir.stop());
        let bytes = |sum: &str| report["end"][sum]["bytes"].as_u64();
        let received = bytes("sum_received").unwrap();
        let back = bytes("sum_received_bidir_reverse");
        assert_eq!(back.is_some(), bidir);
        println!("{options:?}: {received} bytes, {back:?} bytes back");
        received > 50 << 20 && back.is_none_or(|back| back > 10 << 20)
    };
    for options in per_test {
        assert!((0..3).any(|_| flows(options)), "{options:?}");
    }
    let spliced: u64 = records.iter().map(|record| record.spliced).sum();
    let moved: u64 = records.iter().map(|record| record.bytes_up + record.bytes_down).sum();
    assert!(spliced > moved / 2, "bulk data should be spliced: {spliced} of {moved}");
}

#[test]
fn curl_uploads_100_megabytes() {
    if !have(&["nginx", "curl"]) {
        return;
    }
    let nginx = Program::nginx();
    let weir = weir_before(&nginx);
    let file = nginx.dir().join("upload");
    let size = 100_000_000;
    let mut rng = weir::base::Rng::new(1);
    let bytes: Vec<u8> = std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
        .take(size / 8)
        .flatten()
        .collect();
    std::fs::write(&file, &bytes).unwrap();
    let url = format!("http://{}/put/file", weir.address("main"));
    run(program("curl")
        .args(["-sS", "--fail", "--max-time", "60", "-T"])
        .arg(&file)
        .arg(&url));
    let arrived = std::fs::read(nginx.dir().join("www/put/file")).unwrap();
    assert!(arrived == bytes, "{} of {size} bytes, or others", arrived.len());

    let down = nginx.dir().join("download");
    run(program("curl")
        .args(["-sS", "--fail", "--max-time", "60", "-o"])
        .arg(&down)
        .arg(&url));
    assert!(std::fs::read(&down).unwrap() == bytes, "the download differs");
    let records = weir.wait_for_records(2);
    assert!(
        records[0].bytes_up as usize > size && records[1].bytes_down as usize > size,
        "{records:?}"
    );
}

/// The server answers only after the client's end of stream.
#[test]
fn socat_client_ends_first() {
    if !have(&["socat"]) {
        return;
    }
    let server = Program::socat("sha256sum");
    let weir = weir_before(&server);
    let input = server.dir().join("input");
    std::fs::write(&input, vec![7; 3_000_000]).unwrap();
    let shell = format!("socat -t 20 - TCP:{} < input", weir.address("main"));
    let answer = run(command("sh").args(["-c", &shell]).current_dir(server.dir()));
    let expected = sha256(&input);
    assert_eq!(answer, expected);
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((record.end(), record.bytes_up), (("finished", "client"), 3_000_000));
}

/// The client sends on after the server's end of stream.
#[test]
fn socat_server_ends_first() {
    if !have(&["socat"]) {
        return;
    }
    let server = Program::socat_files("welcome", "got");
    std::fs::write(server.dir().join("welcome"), "welcome").unwrap();
    let weir = weir_before(&server);
    let mut stream = client::connect(&weir.address("main"));
    assert_eq!(client::read_to_end(&mut stream), b"welcome");
    stream.write_all(&vec![9; 3_000_000]).unwrap();
    drop(stream);
    let record = &weir.wait_for_records(1)[0];
    assert_eq!((record.end(), record.bytes_up), (("finished", "backend"), 3_000_000));
    let got = server.dir().join("got");
    wait_until("everything has been written", || {
        got.metadata().is_ok_and(|file| file.len() == 3_000_000)
    });
}

/// As `sha256sum` prints it for its standard input.
fn sha256(file: &std::path::Path) -> String {
    run(command("sh").args(["-c", "sha256sum < \"$0\""]).arg(file))
}
