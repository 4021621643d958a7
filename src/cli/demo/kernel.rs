//! `weir demo --engine kernel`: a client, a balancer and backends as hosts of their own (network namespaces), the same service by
//! either engine, and what each of them carries.
//!
//! One weir serves both, one after the other. What is measured is the sum of everything on this machine: the client and the
//! backends work on the same CPUs, so the engines differ by more than the figures do.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use signal_hook::consts::{SIGINT, SIGTERM};

use super::{BACKENDS, serve_http};
use crate::api::question::Question;
use crate::api::status::Status;
use crate::cli::client::Client;
use crate::kernel::helper;

/// All of it, if nothing else is said.
const TIME: Duration = Duration::from_secs(8);
/// How long the balancer may take to start, and to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that ask at once.
const CLIENTS: usize = 8;

/// Namespaces are called `weir-demo-PID-HOST`.
const PREFIX: &str = "weir-demo-";
const HOSTS: [&str; 3] = ["client", "balancer", "backends"];
/// Of the network for benchmarks, RFC 2544.
const CLIENT: &str = "198.18.0.2/24";
const NEAR: &str = "198.18.0.1/24";
const FAR: &str = "198.18.1.1/24";
const SERVICE: &str = "198.18.0.1";
const BACKEND: &str = "198.18.1.1";

/// Who carries what comes to a port, in the order in which they are shown.
const ENGINES: [(&str, u16); 2] = [("kernel", 80), ("proxy", 81)];

/// Runs `weir demo` with the kernel engine, for `time` (`None` = its default) or until it is interrupted.
pub fn demo(time: Option<Duration>) -> anyhow::Result<()> {
    let lacking = helper::missing().unwrap_or_default();
    if !nix::unistd::geteuid().is_root() || !lacking.is_empty() {
        let lacking = match lacking.is_empty() {
            true => String::new(),
            false => format!(" ({} missing)", lacking.join(", ")),
        };
        bail!(
            "--engine kernel makes network namespaces and loads a program into the kernel{lacking}: run it as root, `sudo weir demo --engine kernel`; `weir demo` alone needs no privileges"
        );
    }
    let over = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, over.clone())?;
    }
    let hosts = Hosts::make()?;
    let mut backends = String::new();
    for (ix, (name, weight)) in BACKENDS.into_iter().enumerate() {
        let address = format!("{BACKEND}{}:8080", ix + 1);
        let listener = hosts.inside("backends", || TcpListener::bind(&address))?;
        serve_http(listener?, name);
        backends += &format!("      - {{name: {name}, address: \"{address}\", weight: {weight}}}\n");
    }
    let mut weir = Weir::start(&hosts, &backends)?;
    weir.wait_until_up(&over)?;

    println!(
        "weir {}: a client, a balancer and three HTTP backends of weights 3:2:1, hosts of their own",
        env!("CARGO_PKG_VERSION")
    );
    println!();
    println!(
        "  try it:   ip netns exec {} curl http://{SERVICE}/",
        hosts.name("client")
    );
    println!("            weir status --socket {}", weir.admin().display());
    println!("            weir conns --socket {}", weir.admin().display());
    let time = time.unwrap_or(TIME);
    println!("  stops:    after {}", humantime::format_duration(time));
    println!();
    std::io::stdout().flush()?;

    let part = time / 4;
    let mut failures = 0;
    println!("  {:<28} {:>14} {:>14}", "", "kernel engine", "proxy engine");
    for (what, kept) in [("new connections/s", false), ("requests/s, kept open", true)] {
        let mut rates = Vec::new();
        for (_, port) in ENGINES {
            let (done, failed) = ask_all(&hosts, port, kept, part, &over)?;
            failures += failed;
            rates.push(done as f64 / part.as_secs_f64());
        }
        println!(
            "  {what:<28} {:>14.0} {:>14.0}   {:.1} times",
            rates[0],
            rates[1],
            rates[0] / rates[1].max(1.0)
        );
        std::io::stdout().flush()?;
    }
    println!();
    let status = weir.status()?;
    for pool in &status.pools {
        let rows = pool
            .backends
            .iter()
            .map(|b| (b.name.clone(), b.address.clone(), b.weight, b.total));
        super::print_pool(&pool.name, time, &rows.collect::<Vec<_>>());
    }
    if let Some(kernel) = &status.kernel {
        println!(
            "The program in the kernel passed on {} packets from clients and {} to them.",
            kernel.packets_in, kernel.packets_out
        );
    }
    weir.end();
    println!("The built-in clients saw {failures} failures.");
    Ok(())
}

/// Three hosts on two links.
struct Hosts {
    tag: String,
}

fn ip(words: &[&str]) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(words)
        .output()
        .context("`ip` cannot be run: install iproute2")?;
    match output.status.success() {
        true => Ok(()),
        false => bail!(
            "ip {}: {}",
            words.join(" "),
            String::from_utf8_lossy(&output.stderr).trim()
        ),
    }
}

impl Hosts {
    fn make() -> anyhow::Result<Hosts> {
        sweep();
        let hosts = Hosts {
            tag: format!("{PREFIX}{}-", std::process::id()),
        };
        let [client, balancer, backends] = HOSTS.map(|host| hosts.name(host));
        for name in [&client, &balancer, &backends] {
            ip(&["netns", "add", name])?;
            ip(&["-n", name, "link", "set", "lo", "up"])?;
        }
        let ends = [
            ("clients", CLIENT, &client, NEAR),
            ("backends", "198.18.1.11/24", &backends, FAR),
        ];
        for (name, theirs, host, ours) in ends {
            ip(&[
                "link", "add", name, "netns", &balancer, "type", "veth", "peer", "eth0", "netns", host,
            ])?;
            ip(&["-n", &balancer, "addr", "add", ours, "dev", name])?;
            ip(&["-n", host, "addr", "add", theirs, "dev", "eth0"])?;
            ip(&["-n", &balancer, "link", "set", name, "up"])?;
            ip(&["-n", host, "link", "set", "eth0", "up"])?;
        }
        for ix in 2..=BACKENDS.len() {
            ip(&[
                "-n",
                &backends,
                "addr",
                "add",
                &format!("{BACKEND}{ix}/24"),
                "dev",
                "eth0",
            ])?;
        }
        // Ports of connections that are over are used again at once: they are not what is shown.
        hosts.inside("client", || {
            fs::write("/proc/sys/net/ipv4/tcp_tw_reuse", "1")?;
            fs::write("/proc/sys/net/ipv4/ip_local_port_range", "1024 65535")
        })??;
        Ok(hosts)
    }

    fn name(&self, host: &str) -> String {
        format!("{}{host}", self.tag)
    }

    /// Runs `action` on a thread inside. Sockets that it makes stay there.
    fn inside<T: Send>(&self, host: &str, action: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
        let name = self.name(host);
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                enter(&name)?;
                Ok(action())
            });
            inside
                .join()
                .unwrap_or_else(|_| bail!("a thread of the demo has failed"))
        })
    }
}

/// This thread is in a namespace from now on.
fn enter(name: &str) -> anyhow::Result<()> {
    let file = fs::File::open(Path::new("/run/netns").join(name)).with_context(|| format!("/run/netns/{name}"))?;
    setns(file, CloneFlags::CLONE_NEWNET).with_context(|| format!("cannot enter {name}"))
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for host in HOSTS {
            remove(&self.name(host));
        }
    }
}

/// Ends what runs in a namespace, and removes it.
fn remove(name: &str) {
    let pids = Command::new("ip").args(["netns", "pids", name]).output();
    let pids = pids.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    for pid in pids
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
    {
        // Our own threads are on their way out.
        if pid != std::process::id() as i32 {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    let _ = Command::new("ip")
        .args(["netns", "delete", name])
        .stderr(Stdio::null())
        .status();
}

/// The demo of this process, by the name of a namespace; `None` = not one of a demo.
fn maker(name: &str) -> Option<u32> {
    let (pid, host) = name.strip_prefix(PREFIX)?.split_once('-')?;
    HOSTS.contains(&host).then_some(pid.parse().ok()?)
}

/// Removes what a demo that was killed has left.
fn sweep() {
    let names = fs::read_dir("/run/netns").into_iter().flatten().flatten();
    for name in names.filter_map(|entry| entry.file_name().into_string().ok()) {
        if maker(&name).is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists()) {
            remove(&name);
        }
    }
}

/// The balancer.
struct Weir {
    child: Child,
    directory: PathBuf,
}

impl Weir {
    fn start(hosts: &Hosts, backends: &str) -> anyhow::Result<Weir> {
        let directory = std::env::temp_dir().join(format!("{PREFIX}{}", std::process::id()));
        fs::create_dir_all(&directory)?;
        let mut yaml = format!(
            "admin: {}/admin.sock\nlog: {{level: warn, access: off}}\nshutdown_grace: 1s\nkernel: {{restart_grace: 0s}}\nlisteners:\n",
            directory.display()
        );
        for (engine, port) in ENGINES {
            yaml += &format!("  {engine}: {{engine: {engine}, bind: \"{SERVICE}:{port}\", pool: {engine}}}\n");
        }
        yaml += "pools:\n";
        for (engine, _) in ENGINES {
            yaml += &format!(
                "  {engine}:\n    balance: round_robin\n    health: {{interval: 200ms, timeout: 200ms}}\n    backends:\n{backends}"
            );
        }
        let file = directory.join("weir.yaml");
        fs::write(&file, yaml)?;
        let child = Command::new("ip")
            .args(["netns", "exec", &hosts.name("balancer")])
            .arg(std::env::current_exe()?)
            .args(["run", "-c"])
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        Ok(Weir { child, directory })
    }

    fn admin(&self) -> PathBuf {
        self.directory.join("admin.sock")
    }

    fn status(&self) -> anyhow::Result<Status> {
        let answer = Client::connect(&self.admin())?.ask(&Question::Status)?;
        Ok(serde_json::from_value(answer)?)
    }

    fn wait_until_up(&mut self, over: &AtomicBool) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait()? {
                bail!("the balancer has ended ({status}); it says above why");
            }
            let up = self.status().is_ok_and(|status| {
                let mut backends = status.pools.iter().flat_map(|pool| &pool.backends);
                backends.all(|backend| backend.state == "up")
            });
            if up {
                return Ok(());
            }
            if over.load(Relaxed) || Instant::now() > deadline {
                bail!("the balancer does not serve");
            }
            thread::sleep(Duration::from_millis(50));
        }
    }

    /// Has it end, and waits for that.
    fn end(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, Signal::SIGTERM);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(Duration::from_millis(20));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Weir {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.end();
        }
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// Has [`CLIENTS`] ask for a while; answers and failures.
fn ask_all(hosts: &Hosts, port: u16, kept: bool, time: Duration, over: &AtomicBool) -> anyhow::Result<(u64, u64)> {
    let until = Instant::now() + time;
    let service: SocketAddr = (SERVICE.parse::<std::net::IpAddr>()?, port).into();
    let name = hosts.name("client");
    let goes_on = || Instant::now() < until && !over.load(Relaxed);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|_| {
                scope.spawn(|| {
                    enter(&name)?;
                    Ok(ask(service, kept, goes_on))
                })
            })
            .collect();
        let mut sums = (0, 0);
        for client in clients {
            let (done, failed) = client
                .join()
                .unwrap_or_else(|_| bail!("a client of the demo has failed"))?;
            sums = (sums.0 + done, sums.1 + failed);
        }
        Ok(sums)
    })
}

/// One request after the other, on one connection or on one each.
fn ask(service: SocketAddr, kept: bool, goes_on: impl Fn() -> bool) -> (u64, u64) {
    let (mut done, mut failed) = (0, 0);
    while goes_on() {
        let outcome = connect(service).and_then(|mut stream| {
            loop {
                exchange(&mut stream)?;
                done += 1;
                if !kept || !goes_on() {
                    return Ok(());
                }
            }
        });
        failed += u64::from(outcome.is_err());
    }
    (done, failed)
}

fn connect(service: SocketAddr) -> std::io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&service, Duration::from_secs(2))?;
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.set_nodelay(true)?;
    Ok(BufReader::new(stream))
}

/// One request and its answer.
fn exchange(stream: &mut BufReader<TcpStream>) -> std::io::Result<()> {
    stream.get_mut().write_all(b"GET / HTTP/1.1\r\nHost: demo\r\n\r\n")?;
    let mut line = String::new();
    let mut length = 0;
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.strip_prefix("Content-Length: ") {
            length = value.trim().parse().unwrap_or(0);
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    match body.starts_with(b"hello from ") {
        true => Ok(()),
        false => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaces_of_demos_are_swept() {
        for (name, pid) in [
            ("weir-demo-12-client", Some(12)),
            ("weir-demo-12-backends", Some(12)),
            ("weir-demo-12-other", None),
            ("weir-12-1-client", None),
            ("weir-demo-x-client", None),
            ("weir-demo-client", None),
        ] {
            assert_eq!(maker(name), pid, "{name}");
        }
    }
}
