//! Both ends of datagrams: clients and servers inside the test process.

use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::common::PATIENCE;

/// Bytes of the largest datagram.
pub const LARGEST: usize = 65_507;

/// A client with one socket.
pub struct Client(pub UdpSocket, Dropped);

/// What the kernel says of datagrams that went nowhere: the counters of Udp and Icmp of the thread's network namespace, and what each
/// processor has dropped because too much waited to be delivered (net.core.netdev_max_backlog), of whatever namespace.
struct Dropped(HashMap<String, u64>);

impl Dropped {
    fn now() -> Dropped {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let mut counters = HashMap::new();
        let lines = read("/proc/thread-self/net/snmp");
        let lines: Vec<Vec<&str>> = lines.lines().map(|line| line.split_whitespace().collect()).collect();
        for pair in lines
            .chunks_exact(2)
            .filter(|pair| ["Udp:", "Icmp:"].contains(&pair[0][0]))
        {
            for (name, value) in pair[0].iter().zip(&pair[1]).skip(1) {
                counters.insert(format!("{} {name}", pair[0][0]), value.parse().unwrap_or(0));
            }
        }
        for (ix, cpu) in read("/proc/net/softnet_stat").lines().enumerate() {
            let dropped = cpu.split_whitespace().nth(1).unwrap_or_default();
            let dropped = u64::from_str_radix(dropped, 16).unwrap_or(0);
            counters.insert(format!("backlog of line {ix}:"), dropped);
        }
        Dropped(counters)
    }
}

impl std::fmt::Display for Dropped {
    /// What has risen since.
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let mut risen: Vec<String> = Dropped::now()
            .0
            .into_iter()
            .map(|(name, value)| (value - self.0.get(&name).unwrap_or(&0).min(&value), name))
            .filter(|&(by, _)| by > 0)
            .map(|(by, name)| format!("{name} +{by}"))
            .collect();
        risen.sort();
        write!(f, "{}", risen.join(", "))
    }
}

impl Client {
    /// On a port of the kernel's choice at `ip`.
    #[track_caller]
    pub fn at(ip: &str) -> Client {
        Client::bound(&format!("{ip}:0"))
    }

    #[track_caller]
    pub fn bound(address: &str) -> Client {
        let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("binding {address}: {e}"));
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Client(socket, Dropped::now())
    }

    pub fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    #[track_caller]
    pub fn send(&self, to: &str, bytes: &[u8]) {
        assert_eq!(self.0.send_to(bytes, to).expect("sending"), bytes.len());
    }

    /// The next datagram and where it came from.
    #[track_caller]
    pub fn receive(&self) -> (Vec<u8>, SocketAddr) {
        let mut buffer = vec![0; LARGEST + 1];
        let came = self.0.recv_from(&mut buffer);
        let (len, from) =
            came.unwrap_or_else(|error| panic!("no datagram came: {error}; since the client was made: {}", self.1));
        buffer.truncate(len);
        (buffer, from)
    }

    /// The next datagram, if one comes within `wait`.
    pub fn receive_within(&self, wait: Duration) -> Option<Vec<u8>> {
        self.0.set_read_timeout(Some(wait)).unwrap();
        let mut buffer = vec![0; LARGEST + 1];
        let got = self.0.recv_from(&mut buffer).ok();
        self.0.set_read_timeout(Some(PATIENCE)).unwrap();
        got.map(|(len, _)| buffer[..len].to_vec())
    }

    /// Sends a text and returns the text that comes back. What others send to this port is not heard: the kernel gives out
    /// ports again, and somebody may still be answering the one who had it before.
    #[track_caller]
    pub fn ask(&self, to: &str, text: &str) -> String {
        self.send(to, text.as_bytes());
        loop {
            let (bytes, from) = self.receive();
            if from.to_string() == to {
                return String::from_utf8(bytes).unwrap();
            }
        }
    }

    /// Sends a text and waits for an equal one; older answers are passed over.
    #[track_caller]
    pub fn echoed_within(&self, to: &str, text: &str, wait: Duration) -> bool {
        self.send(to, text.as_bytes());
        let deadline = Instant::now() + wait;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receive_within(left.max(Duration::from_millis(1))) {
                Some(bytes) if bytes == text.as_bytes() => return true,
                Some(_) => {}
                None => return false,
            }
        }
    }
}

/// What a server has seen.
#[derive(Default)]
pub struct Seen {
    /// Datagrams from each source, in order.
    pub from: HashMap<SocketAddr, Vec<Vec<u8>>>,
}

/// A server on a thread of its own; its port is closed when it is dropped.
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Seen>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Answers each datagram with what `answer` makes of it.
    #[track_caller]
    pub fn new(address: &str, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Server {
        let socket = UdpSocket::bind(address).unwrap_or_else(|e| panic!("binding {address}: {e}"));
        Server::on(socket, answer)
    }

    pub fn on(socket: UdpSocket, answer: impl Fn(&[u8]) -> Vec<Vec<u8>> + Send + 'static) -> Server {
        // Only so that it notices being dropped.
        socket.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        socket2::SockRef::from(&socket).set_recv_buffer_size(4 << 20).unwrap();
        let address = socket.local_addr().unwrap();
        let (seen, stop) = (Arc::new(Mutex::new(Seen::default())), Arc::new(AtomicBool::new(false)));
        let (record, stopped) = (seen.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; LARGEST + 1];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((len, from)) = socket.recv_from(&mut buffer) else {
                    continue;
                };
                let bytes = buffer[..len].to_vec();
                record.lock().unwrap().from.entry(from).or_default().push(bytes);
                for reply in answer(&buffer[..len]) {
                    let _ = socket.send_to(&reply, from);
                }
            }
        });
        Server {
            address,
            seen,
            stop,
            thread: Some(thread),
        }
    }

    /// Sends back what it gets.
    pub fn echo(address: &str) -> Server {
        Server::new(address, |bytes| vec![bytes.to_vec()])
    }

    /// Answers its name.
    pub fn named(address: &str, name: &str) -> Server {
        let name = name.as_bytes().to_vec();
        Server::new(address, move |_| vec![name.clone()])
    }

    /// Answers nothing.
    pub fn silent(address: &str) -> Server {
        Server::new(address, |_| Vec::new())
    }

    /// Datagrams so far.
    pub fn count(&self) -> usize {
        self.seen.lock().unwrap().from.values().map(Vec::len).sum()
    }

    /// Sockets that have spoken to it.
    pub fn sources(&self) -> usize {
        self.seen.lock().unwrap().from.len()
    }

    /// A socket that has spoken to it.
    pub fn first_source(&self) -> Option<SocketAddr> {
        self.seen.lock().unwrap().from.keys().next().copied()
    }

    /// Whether something holds of the datagrams of every source.
    pub fn all(&self, holds: impl Fn(&Vec<Vec<u8>>) -> bool) -> bool {
        self.seen.lock().unwrap().from.values().all(holds)
    }

    /// All datagrams of the only source, in order.
    #[track_caller]
    pub fn of_one_source(&self) -> Vec<Vec<u8>> {
        let seen = self.seen.lock().unwrap();
        assert_eq!(seen.from.len(), 1, "one source");
        seen.from.values().next().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A number of the metrics page: the value of the line that starts with `series`.
#[track_caller]
pub fn metric(address: &str, series: &str) -> u64 {
    use std::io::{Read, Write};
    let mut stream = super::common::client::connect(address);
    write!(
        stream,
        "GET /metrics HTTP/1.1\r\nHost: weir\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).unwrap();
    let line = page.lines().find_map(|line| line.strip_prefix(series));
    let value = line.unwrap_or_else(|| panic!("no {series} in {page}"));
    value.trim().parse::<f64>().unwrap() as u64
}
