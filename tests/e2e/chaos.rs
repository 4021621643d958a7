//! Connections that are cut off at any moment: the other side gets a beginning of what was sent, all of it if weir's host had
//! acknowledged it, then a reset; never an end that looks complete. Afterwards nothing is left and every account is even.
//!
//! One side, the *breaker*, writes, reads and resets; the *other* writes and reads at the same time, quickly or slowly. A
//! seed decides the sizes and which side is which; the first eight bytes tell the server. Seen to fail when a reset is passed
//! on without waiting for what is on its way (`RESET_WAIT_MS = 0`).

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use super::common::server::{bind, reset};
use super::common::{PATIENCE, Port, Server, Weir, client, in_parallel, raise_descriptor_limit, seed, wait_until};
use super::{UNWATCHED, balanced};
use weir::base::Rng;

static BYTES: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let mut rng = Rng::new(13);
    std::iter::repeat_with(|| rng.next_u64().to_le_bytes())
        .take(1 << 17)
        .flatten()
        .collect()
});

#[derive(Debug, Clone, Copy)]
struct Script {
    client_breaks: bool,
    /// What the breaker writes, and what it reads of the other's `other_writes` before it resets.
    breaker_writes: usize,
    breaker_reads: usize,
    other_writes: usize,
    /// The breaker waits until its bytes are acknowledged: then they must arrive.
    acknowledged: bool,
    /// The other begins to read late, and reads slowly.
    slow: bool,
}

impl Script {
    fn new(number: u64) -> Script {
        let rng = &mut Rng::new(number);
        let mut size = || match rng.below(4) {
            0 => 0,
            1 => rng.below(2_000) as usize,
            2 => rng.below(100_000) as usize,
            _ => rng.below(1 << 20) as usize,
        };
        let (breaker_writes, other_writes, reads) = (size(), size(), size());
        Script {
            client_breaks: rng.below(2) == 0,
            // More than fits into sockets and a pipe could not be acknowledged before somebody reads.
            breaker_writes: breaker_writes.min(300_000),
            breaker_reads: reads.min(other_writes),
            other_writes,
            acknowledged: rng.below(3) > 0,
            slow: rng.below(8) == 0,
        }
    }
}

/// Writes, reads, resets.
fn break_off(mut stream: TcpStream, script: Script) -> Result<(), String> {
    let steps = (|| {
        stream.write_all(&BYTES[..script.breaker_writes])?;
        stream.read_exact(&mut vec![0; script.breaker_reads])
    })();
    if script.acknowledged {
        client::wait_until_acknowledged(&stream);
    }
    reset(stream);
    steps.map_err(|error| format!("the breaker: {error}"))
}

/// Writes and reads until it is cut off, and judges what came.
fn endure(stream: &TcpStream, script: Script) -> Result<(), String> {
    let (got, end, writing_failed) = std::thread::scope(|scope| {
        let mut writer = stream;
        let writing = scope.spawn(move || writer.write_all(&BYTES[..script.other_writes]).is_err());
        let (mut got, mut reader) = (Vec::new(), stream);
        let mut buffer = vec![0; 20_000];
        if script.slow {
            std::thread::sleep(Duration::from_millis(50));
        }
        let end = loop {
            match reader.read(&mut buffer) {
                Ok(0) => break None,
                Ok(bytes) => got.extend_from_slice(&buffer[..bytes]),
                Err(error) => break Some(error.kind()),
            }
            if script.slow {
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        (got, end, writing.join().unwrap())
    });
    if BYTES.get(..got.len()) != Some(&got[..]) {
        return Err(format!("{} bytes came, and not those that were sent", got.len()));
    }
    if got.len() > script.breaker_writes || script.acknowledged && got.len() < script.breaker_writes {
        return Err(format!("{} bytes came", got.len()));
    }
    // The kernel tells of a reset once: to the writer or to the reader, who then sees an end.
    match end {
        Some(ErrorKind::ConnectionReset) => Ok(()),
        None if writing_failed => Ok(()),
        end => Err(format!("no reset, but {end:?}, after {} bytes", got.len())),
    }
}

fn connections(count: u64) {
    const AT_A_TIME: usize = 16;
    raise_descriptor_limit();
    let seed = seed(1);
    let failures = Arc::new(Mutex::new(Vec::new()));
    let noted = failures.clone();
    let server = Server::each_on(bind((Ipv4Addr::LOCALHOST, 0)), move |mut stream| {
        let mut number = [0; 8];
        if stream.read_exact(&mut number).is_err() {
            return;
        }
        let number = u64::from_le_bytes(number);
        let script = Script::new(number);
        let judged = if script.client_breaks {
            endure(&stream, script)
        } else {
            break_off(stream, script)
        };
        if let Err(error) = judged {
            noted
                .lock()
                .unwrap()
                .push(format!("server, {number}: {error}: {script:?}"));
        }
    });
    // Attempts that fail come in between.
    let refusing = Port::reserve();
    let backends = [("refusing", refusing.address()), ("one", server.address)];
    let pool = format!("balance: round_robin, {UNWATCHED}");
    let weir = Weir::start(&balanced("", &pool, &backends));
    let sockets = weir.sockets();
    let address: SocketAddr = weir.address("main").parse().unwrap();
    in_parallel(AT_A_TIME, count as usize, |number| {
        if failures.lock().unwrap().len() > 5 {
            return;
        }
        let number = (seed << 32) + number as u64;
        let script = Script::new(number);
        let mut stream = client::connect(&address.to_string());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&number.to_le_bytes()).unwrap();
        let judged = if script.client_breaks {
            break_off(stream, script)
        } else {
            endure(&stream, script)
        };
        if let Err(error) = judged {
            let text = format!("client, {number}: {error}: {script:?}");
            failures.lock().unwrap().push(text);
        }
    });
    let failures = failures.lock().unwrap();
    assert!(failures.is_empty(), "{failures:#?}");
    let records = weir.wait_for_records(count as usize);
    let wrong = records
        .iter()
        .find(|record| !["client_reset", "backend_reset"].contains(&record.cause.as_str()));
    assert_eq!(wrong, None);
    wait_until("every socket is closed", || weir.sockets() == sockets);
    let pipes = weir
        .descriptors()
        .iter()
        .filter(|link| link.starts_with("pipe:"))
        .count();
    assert!(pipes <= 2 * 2 * 32 + 2, "{pipes} descriptors of pipes");
}

#[test]
fn two_thousand_connections_are_cut_off() {
    connections(2_000);
}

#[test]
#[ignore = "long: a minute or two"]
fn fifty_thousand_connections_are_cut_off() {
    connections(50_000);
}
