//! Backends inside the test process.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixDatagram};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, Type};

use super::PATIENCE;

/// A port that nobody else of this suite uses, for servers that cannot tell which one the kernel chose, and for places
/// where nobody shall listen.
///
/// Ports come from below the range that the kernel hands out by itself. An abstract unix socket of the same name is the
/// lock, so a reservation ends with its process.
#[derive(Debug)]
pub struct Port {
    pub number: u16,
    _lock: UnixDatagram,
}

impl Port {
    const FIRST: u16 = 20_000;
    const COUNT: u16 = 10_000;

    pub fn reserve() -> Port {
        static NEXT: AtomicU16 = AtomicU16::new(0);
        let start = std::process::id() as u16 % Port::COUNT;
        for _ in 0..Port::COUNT {
            let step = NEXT.fetch_add(1, Ordering::Relaxed);
            let number = Port::FIRST + start.wrapping_add(step) % Port::COUNT;
            if let Some(lock) = Port::lock(number)
                && TcpListener::bind(("0.0.0.0", number)).is_ok()
            {
                return Port { number, _lock: lock };
            }
        }
        panic!("no free port");
    }

    /// `count` ports in a row.
    pub fn reserve_range(count: u16) -> Vec<Port> {
        'starts: for _ in 0..100 {
            let mut ports = vec![Port::reserve()];
            for step in 1..count {
                let number = ports[0].number + step;
                match Port::lock(number) {
                    Some(lock) if TcpListener::bind(("0.0.0.0", number)).is_ok() => {
                        ports.push(Port { number, _lock: lock });
                    }
                    _ => continue 'starts,
                }
            }
            return ports;
        }
        panic!("no {count} free ports in a row");
    }

    fn lock(number: u16) -> Option<UnixDatagram> {
        let name = format!("weir-test-port-{number}");
        let address = UnixAddress::from_abstract_name(name).unwrap();
        UnixDatagram::bind_addr(&address).ok()
    }

    /// On the loopback address.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.number))
    }
}

/// A TCP server in the background. Dropping it closes the listening socket, not the connections.
pub struct Server {
    pub address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    listener: TcpListener,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Server {
    /// Serves each connection on a thread of its own, on a port of the kernel's choice.
    pub fn each(serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        Server::each_on(bind((Ipv4Addr::LOCALHOST, 0)), serve)
    }

    /// Serves each connection on a thread of its own.
    pub fn each_on(listener: TcpListener, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Server {
        let serve = Arc::new(serve);
        Server::on(listener, move |stream| {
            let serve = serve.clone();
            std::thread::spawn(move || serve(stream));
        })
    }

    /// Serves connections one after the other, on a port of the kernel's choice: for what never waits.
    pub fn serial(serve: impl FnMut(TcpStream) + Send + 'static) -> Server {
        Server::on(bind((Ipv4Addr::LOCALHOST, 0)), serve)
    }

    /// Serves connections one after the other.
    pub fn on(listener: TcpListener, mut serve: impl FnMut(TcpStream) + Send + 'static) -> Server {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (count, accepting) = (accepted.clone(), listener.try_clone().unwrap());
        let thread = std::thread::spawn(move || {
            while let Ok((stream, _)) = accepting.accept() {
                count.fetch_add(1, Ordering::Relaxed);
                let _ = stream.set_read_timeout(Some(PATIENCE));
                let _ = stream.set_write_timeout(Some(PATIENCE));
                serve(stream);
            }
        });
        Server {
            address,
            accepted,
            listener,
            thread: Some(thread),
        }
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Sends back what it gets; ends its stream when the client has ended its own.
    pub fn echo() -> Server {
        Server::each(echo)
    }

    /// Reads everything, answers nothing, closes at the end.
    pub fn sink() -> Server {
        Server::each(|mut stream| drop(std::io::copy(&mut stream, &mut std::io::sink())))
    }

    /// Sends `bytes`, then closes.
    pub fn source(bytes: Vec<u8>) -> Server {
        Server::each(move |mut stream| {
            let _ = stream.write_all(&bytes);
            close(stream);
        })
    }

    /// Answers its name and closes.
    pub fn named(name: &str) -> Server {
        Server::named_on(bind((Ipv4Addr::LOCALHOST, 0)), name)
    }

    /// Answers its name and closes.
    pub fn named_on(listener: TcpListener, name: &str) -> Server {
        let name = name.to_owned();
        Server::on(listener, move |mut stream| {
            let _ = stream.write_all(name.as_bytes());
        })
    }

    /// Answers its name and keeps the connection.
    pub fn named_holder(name: &str) -> Server {
        let (name, mut held) = (name.to_owned(), Vec::new());
        Server::serial(move |mut stream| {
            let _ = stream.write_all(name.as_bytes());
            held.push(stream);
        })
    }

    /// Accepts and keeps the connection in silence.
    pub fn holder() -> Server {
        Server::named_holder("")
    }

    /// Answers a request and closes first, as a HTTP/1.0 server does; the end is in the same segment as the answer.
    pub fn http() -> Server {
        Server::http_on(bind((Ipv4Addr::LOCALHOST, 0)))
    }

    /// The same on this socket.
    pub fn http_on(listener: TcpListener) -> Server {
        Server::http_named_on(listener, "ok")
    }

    /// The same with its name as the answer's body.
    pub fn http_named_on(listener: TcpListener, name: &str) -> Server {
        let answer = format!("HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        Server::each_on(listener, move |mut stream| {
            if read_head(&mut stream).is_some() {
                SockRef::from(&stream).set_tcp_cork(true).unwrap();
                let _ = stream.write_all(answer.as_bytes());
            }
        })
    }

    /// Accepts and resets.
    pub fn resetting() -> Server {
        Server::serial(reset)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Wakes the accepting thread, whose copy of the socket would otherwise keep the port.
        let _ = SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A listening socket.
pub fn bind(address: impl Into<SocketAddr>) -> TcpListener {
    let address = address.into();
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&address.into())
        .unwrap_or_else(|error| panic!("{address}: {error}"));
    socket.listen(4096).unwrap();
    socket.into()
}

/// An address where SYNs get no answer: the queue of its listening socket is full and stays so.
pub struct Blackhole {
    pub address: SocketAddr,
    _listener: Socket,
    _queued: Vec<Socket>,
}

impl Blackhole {
    pub fn new() -> Blackhole {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        listener
            .bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())
            .unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        // One has its place in the queue only when the kernel has worked off the end of its handshake, which may be a
        // little later than here: others are let in until then.
        let mut queued = Vec::new();
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            let answer = socket.connect_timeout(&address.into(), Duration::from_millis(50));
            if answer.is_err() {
                break;
            }
            queued.push(socket);
            assert!(queued.len() < 100, "a full listening queue answers");
        }
        assert!(!queued.is_empty(), "an empty listening queue did not answer");
        Blackhole {
            address,
            _listener: listener,
            _queued: queued,
        }
    }
}

/// Sends back what it gets; ends its stream when the other has ended its own.
pub fn echo(mut stream: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(bytes @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..bytes]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Ends the own stream and waits for the end of the other's, so that no unread byte turns the end into a reset.
pub fn close(mut stream: TcpStream) {
    let _ = stream.shutdown(Shutdown::Write);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

/// Ends a connection with RST.
pub fn reset(stream: TcpStream) {
    let _ = SockRef::from(&stream).set_linger(Some(Duration::ZERO));
}

/// Reads up to and including an empty line.
pub fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    let mut buffer = [0; 4096];
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read(&mut buffer) {
            Ok(bytes @ 1..) => head.extend_from_slice(&buffer[..bytes]),
            _ => return None,
        }
    }
    String::from_utf8(head).ok()
}

/// The host part of an address.
pub fn loopback(last: u8) -> IpAddr {
    IpAddr::from([127, 0, 0, last])
}
