//! `weir demo`: a working balancer in one command, with nothing configured.
//!
//! Three small HTTP servers and two UDP echoes on ports of the kernel's choosing, the real balancer in front, and a client that keeps
//! asking, so that the closing table has something to show even when nobody follows the `curl` line.

mod kernel;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use crate::app;
use crate::config;
use crate::control::upgrade::Inheritance;
use crate::control::{Capacity, Input, Source};
use crate::link::{Address, Shared};

/// Where the demo listens if the port is free.
const FAVOURITE: &str = "127.0.0.1:8080";
/// The backends and their weights.
const BACKENDS: [(&str, u32); 3] = [("amber", 3), ("birch", 2), ("cedar", 1)];
/// The UDP echoes, of equal weight.
const ECHOES: [&str; 2] = ["robin", "wren"];
/// Between two changes of the file of members.
const MEMBERS_PAUSE: Duration = Duration::from_millis(1500);
/// Pause of the built-in client between two requests.
const CLIENT_PAUSE: Duration = Duration::from_millis(5);

/// What `weir demo` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Stop after this time; without it, on Ctrl-C.
    #[arg(long = "for", value_name = "TIME", value_parser = humantime::parse_duration)]
    time: Option<Duration>,
    /// The HTTP backends come from a file of members that changes every second and a half.
    #[arg(long)]
    members: bool,
    /// kernel: hosts in network namespaces of their own, traffic through the kernel engine, and requests a second beside the proxy
    /// engine's; needs root and ends by itself.
    #[arg(long, value_name = "ENGINE", value_parser = ["proxy", "kernel"], default_value = "proxy", conflicts_with = "members")]
    engine: String,
}

/// Runs `weir demo`.
pub fn run(args: Args) -> ExitCode {
    let outcome = match &*args.engine {
        "kernel" => kernel::demo(args.time),
        _ => demo(args.time, args.members),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("weir demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo(time: Option<Duration>, by_file: bool) -> anyhow::Result<()> {
    let mut backends = Vec::new();
    for (name, weight) in BACKENDS {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        serve_http(listener, name);
        backends.push(format!(
            "- {{name: {name}, address: \"{address}\", weight: {weight}}}\n"
        ));
    }
    let mut echoes = String::new();
    for name in ECHOES {
        echoes += &format!("      - {{name: {name}, address: \"{}\"}}\n", serve_echo()?);
    }
    let bind = if TcpListener::bind(FAVOURITE).is_ok() {
        FAVOURITE
    } else {
        "127.0.0.1:0"
    };
    let directory = std::env::temp_dir().join(format!("weir-demo-{}", std::process::id()));
    std::fs::create_dir_all(&directory)?;
    let file = directory.join("members.yaml");
    let who = match by_file {
        true => {
            write_members(&file, &backends)?;
            format!("    members: [{{file: {}}}]\n", file.display())
        }
        false => {
            let list = backends.iter().map(|backend| format!("      {backend}"));
            format!("    backends:\n{}", list.collect::<String>())
        }
    };
    let yaml = format!(
        "admin: {}/admin.sock\nlog: {{level: warn, access: off}}\nshutdown_grace: 1s\n\
         listeners:\n  web: {{bind: \"{bind}\", pool: web}}\n\
         \x20 echo: {{protocol: udp, bind: \"127.0.0.1:0\", pool: echo, udp: {{idle: 1s}}}}\n\
         pools:\n  web:\n    balance: round_robin\n    health: {{interval: 200ms}}\n{who}\
         \x20 echo:\n    balance: round_robin\n    health: {{type: none}}\n    backends:\n{echoes}",
        directory.display()
    );
    let loaded = config::parse("demo", &yaml)?;
    let running = app::launch(
        Source::Flags(Box::new(loaded.config.clone())),
        loaded.config.clone(),
        Capacity::claim(&loaded.config)?,
        Inheritance::default(),
        None,
    )?;
    let (shared, inputs) = (running.shared.clone(), running.inputs.clone());
    let bound = running.bound();
    let address = |wanted: &str| {
        bound.iter().find_map(|(name, local)| match local {
            Address::Ip(address) if name == wanted => Some(*address),
            _ => None,
        })
    };
    let (Some(web), Some(echo)) = (address("web"), address("echo")) else {
        anyhow::bail!("the demo's listeners are not bound");
    };

    println!(
        "weir {}: three HTTP backends of weights 3:2:1, two UDP echoes",
        env!("CARGO_PKG_VERSION")
    );
    println!();
    println!("  try it:   curl http://{web}/");
    println!("            echo hello | nc -u -w1 {} {}", echo.ip(), echo.port());
    match time {
        Some(time) => println!("  stops:    after {}", humantime::format_duration(time)),
        None => println!("  stops:    on Ctrl-C"),
    }
    if by_file {
        println!("  members:  {}; edit it, or watch it change:", file.display());
        println!(
            "            weir members web --socket {}/admin.sock",
            directory.display()
        );
    }
    println!();
    std::io::stdout().flush()?;

    let over = Arc::new(AtomicBool::new(false));
    if by_file {
        let over = over.clone();
        thread::spawn(move || change_members(&file, &backends, &over));
    }
    let client = {
        let over = over.clone();
        thread::spawn(move || ask(web, echo, &over))
    };
    if let Some(time) = time {
        stop_after(time, inputs);
    }
    let started = Instant::now();
    let served = running.serve();
    over.store(true, Ordering::Relaxed);
    let (answers, failures) = client.join().unwrap_or_default();
    let _ = std::fs::remove_dir_all(&directory);
    served?;
    print_spread(&shared, started.elapsed());
    println!("\nThe built-in client got {answers} answers and {failures} failures.");
    Ok(())
}

/// Puts a list of members in the place of the one before.
fn write_members(file: &Path, members: &[String]) -> std::io::Result<()> {
    let beside = file.with_extension("new");
    std::fs::write(&beside, members.concat())?;
    std::fs::rename(&beside, file)
}

/// One member after the other goes and returns.
fn change_members(file: &Path, members: &[String], over: &AtomicBool) {
    for turn in 0usize.. {
        thread::sleep(MEMBERS_PAUSE);
        if over.load(Ordering::Relaxed) {
            return;
        }
        let (gone, name) = (turn / 2 % members.len(), BACKENDS[turn / 2 % members.len()].0);
        let goes = turn % 2 == 0;
        let present: Vec<String> = (0..members.len())
            .filter(|ix| !goes || *ix != gone)
            .map(|ix| members[ix].clone())
            .collect();
        // Edited by somebody: theirs from then on.
        if std::fs::read_to_string(file).is_ok_and(|text| text.lines().any(|line| !members.concat().contains(line)))
            || write_members(file, &present).is_err()
        {
            return;
        }
        println!("  members:  {name} {}", if goes { "goes" } else { "returns" });
    }
}

fn stop_after(time: Duration, inputs: Sender<Input>) {
    thread::spawn(move || {
        thread::sleep(time);
        let _ = inputs.send(Input::Signal(libc::SIGTERM));
    });
}

/// A server that answers every request with its name.
fn serve_http(listener: TcpListener, name: &'static str) {
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || answer(&stream, name));
        }
    });
}

fn answer(stream: &TcpStream, name: &str) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut requests = BufReader::new(stream);
    let mut line = String::new();
    while requests.read_line(&mut line)? > 0 {
        if line == "\r\n" || line == "\n" {
            let body = format!("hello from {name}\n");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}", body.len());
            (&*stream).write_all(head.as_bytes())?;
        }
        line.clear();
    }
    Ok(())
}

/// A server that sends every datagram back.
fn serve_echo() -> std::io::Result<SocketAddr> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    let address = socket.local_addr()?;
    thread::spawn(move || {
        let mut buffer = [0; 65_536];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    Ok(address)
}

/// Whether a datagram comes back.
fn echoed(echo: SocketAddr) -> std::io::Result<bool> {
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.send_to(b"hello", echo)?;
    let mut buffer = [0; 16];
    let (len, from) = socket.recv_from(&mut buffer)?;
    Ok(from == echo && &buffer[..len] == b"hello")
}

/// One connection and one datagram after the other until `over`; returns answers and failures.
fn ask(web: SocketAddr, echo: SocketAddr, over: &AtomicBool) -> (u64, u64) {
    let (mut answers, mut failures) = (0, 0);
    while !over.load(Ordering::Relaxed) {
        let answered = TcpStream::connect(web).and_then(|mut stream| {
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            stream.write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")?;
            stream.shutdown(std::net::Shutdown::Write)?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer.contains("hello from") && echoed(echo)?)
        });
        match answered {
            Ok(true) => answers += 1,
            // The listener closes first when the demo ends.
            _ if over.load(Ordering::Relaxed) => break,
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => thread::sleep(CLIENT_PAUSE),
            _ => failures += 1,
        }
        thread::sleep(CLIENT_PAUSE);
    }
    (answers, failures)
}

fn print_spread(shared: &Shared, elapsed: Duration) {
    let snapshot = shared.snapshot();
    for pool in &snapshot.pools {
        let rows = pool.backends.iter().map(|backend| {
            let total = backend.stats.shards.sum(|shard| &shard.total);
            let (name, address) = (backend.config.name.clone(), backend.config.address.to_string());
            (name, address, backend.config.weight, total)
        });
        print_pool(&pool.config.name, elapsed, &rows.collect::<Vec<_>>());
    }
}

/// A backend: name, address, weight, connections.
type Spread = (String, String, u32, u64);

fn print_pool(name: &str, elapsed: Duration, backends: &[Spread]) {
    let all = backends.iter().map(|(.., total)| total).sum::<u64>().max(1) as f64;
    let weights = backends.iter().map(|(_, _, weight, _)| weight).sum::<u32>().max(1);
    println!(
        "pool {name}: {all} connections or sessions in {:.1} s",
        elapsed.as_secs_f64()
    );
    println!(
        "  {:<10} {:<22} {:>6} {:>12} {:>7} {:>7}",
        "backend", "address", "weight", "connections", "share", "wanted"
    );
    for (name, address, weight, total) in backends {
        println!(
            "  {name:<10} {address:<22} {weight:>6} {total:>12} {:>6.1}% {:>6.1}%",
            100.0 * *total as f64 / all,
            100.0 * f64::from(*weight) / f64::from(weights),
        );
    }
}
