//! What each fuzz target does with its bytes. A panic is a finding; so is an assertion below, each a promise of the parser.

#![allow(dead_code)] // Each target uses one.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use weir::config::model::{Protocol, SendProxy};
use weir::control::operator::{admin as admin_socket, observer};
use weir::control::request::{Input, Request};
use weir::failover::beat::{self, Hello, Side};
use weir::relay::proxy_header::{self, HEADER_MAX, Parsed};

/// A configuration file: refused with places inside the file, or accepted and then usable.
pub fn config(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    match weir::config::parse("fuzz", text) {
        Ok(loaded) => {
            let budget = weir::config::Budget::new(&loaded.config, 20_000, 2);
            let _ = (budget.refusal(&loaded.config), budget.needed());
            for listener in &loaded.config.listeners {
                assert!(listener.pools().all(|pool| pool < loaded.config.pools.len()));
                assert!(listener.pools().next().is_some());
            }
        }
        Err(errors) => {
            assert!(!errors.0.is_empty());
            // What YAML takes for the end of a line.
            let ends = ['\n', '\r', '\u{85}', '\u{2028}', '\u{2029}'];
            let lines = text.split(ends).count() as u32;
            assert!(errors.0.iter().all(|error| error.line <= lines));
        }
    }
}

/// What sources of members say: a file's list, a container engine's list, values of keys. Refused, or members that a pool can have.
pub fn members(bytes: &[u8]) {
    use weir::discovery::{Heard, Keys, containers};
    let like = weir::config::model::MemberDefaults::default();
    let check = |heard: Heard| {
        if let Heard::Members(members) | Heard::Partly(members, _) = heard {
            let addresses: std::collections::HashSet<_> = members.iter().map(|member| &member.address).collect();
            assert_eq!(addresses.len(), members.len());
        }
    };
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(members) = weir::config::members::parse("fuzz", text, &weir::config::Rules::default())
    {
        check(Heard::Members(members));
    }
    check(containers::members(bytes, 80, None, &like));
    let mut keys = Keys::default();
    for (number, value) in bytes.split(|byte| *byte == 0).enumerate() {
        keys.put(number.to_string().as_bytes(), value.to_vec());
    }
    check(keys.members(&like));
}

/// The first bytes of a connection that must start with a PROXY header, as they come in piece by piece.
pub fn proxy_header(bytes: &[u8]) {
    let seen = &bytes[..bytes.len().min(HEADER_MAX)];
    let whole = proxy_header::parse(seen);
    match &whole {
        Parsed::Header { len, addresses } => {
            assert!(*len > 0 && *len <= seen.len());
            // What was understood can be said again, in both versions, and means the same.
            for version in [SendProxy::V1, SendProxy::V2] {
                let again = proxy_header::build(version, Protocol::Tcp, *addresses);
                match proxy_header::parse(&again) {
                    Parsed::Header { len, addresses: same } => {
                        assert_eq!(len, again.len());
                        assert!(addresses.is_none() || same == *addresses);
                    }
                    _ => panic!("{again:?} is not understood"),
                }
            }
            // Every beginning of it is a beginning, not an error and not a header.
            for end in 1..*len {
                let part = &seen[..end];
                let begun = matches!(proxy_header::parse(part), Parsed::Incomplete);
                assert!(begun, "not taken for a beginning: {}", part.escape_ascii());
            }
        }
        Parsed::Incomplete => assert!(seen.len() < HEADER_MAX),
        Parsed::Invalid => {}
    }
}

/// The first bytes of a connection to a listener with `routes`, as they come in piece by piece; and the same as what a hello holds.
pub fn hello(bytes: &[u8]) {
    use weir::relay::hello::{HELLO_MAX, Hello, read};
    let look = |bytes: &[u8]| {
        let seen = &bytes[..bytes.len().min(HELLO_MAX)];
        let whole = read(seen);
        match &whole {
            Hello::Name(name) => {
                assert!(!name.is_empty() && !name.ends_with('.') && name.is_ascii());
                assert!(!name.bytes().any(|b| b.is_ascii_uppercase() || b.is_ascii_control()));
            }
            Hello::Incomplete => assert!(seen.len() < HELLO_MAX),
            Hello::Nameless | Hello::TooLarge => {}
        }
        // What is decided stays decided.
        for part in [1, seen.len() / 4, seen.len() / 2, seen.len().saturating_sub(1)] {
            let begun = read(&seen[..part.min(seen.len())]);
            assert!(
                begun == Hello::Incomplete || begun == whole,
                "{begun:?}, then {whole:?}"
            );
        }
    };
    look(bytes);
    let body = &bytes[..bytes.len().min(HELLO_MAX - 9)];
    let [_, high, middle, low] = (body.len() as u32).to_be_bytes();
    let message = [&[1, high, middle, low], body].concat();
    let [high, low] = (message.len() as u16).to_be_bytes();
    look(&[&[22, 3, 1, high, low], &message[..]].concat());
}

/// What backends and their agents answer to probes, as it comes in piece by piece.
pub fn answers(bytes: &[u8]) {
    use weir::health::agent;
    use weir::health::answer::{Expected, Judged};
    let expected = [
        Expected::Connection,
        Expected::Bytes([].into()),
        Expected::Bytes(b"+PONG"[..].into()),
        Expected::Http([200..=399].into()),
        Expected::Line,
    ];
    for expected in expected {
        for part in [0, 1, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            let begun = expected.judge(&bytes[..part.min(bytes.len())], false);
            // What has passed stays so.
            if let Judged::Passed(_) = begun {
                assert_eq!(expected.judge(bytes, true), begun, "{expected:?}");
            }
        }
        let judged = expected.judge(bytes, true);
        assert_ne!(judged, Judged::More, "{expected:?}");
        if let (Expected::Line, Judged::Passed(line)) = (&expected, &judged) {
            assert!(agent::parse(line.text()).percent.is_none_or(|percent| percent <= 256));
        }
    }
}

/// A configuration of HAProxy, nginx or keepalived: whatever comes out of it passes the check.
pub fn import(bytes: &[u8]) {
    use std::sync::Mutex;
    use weir::cli::import::{Dialect, import};
    static FILE: OnceLock<Mutex<tempfile::NamedTempFile>> = OnceLock::new();
    // Of other files nothing is to be seen here.
    if std::str::from_utf8(bytes).map_or(true, |text| text.contains("include")) {
        return;
    }
    let file = FILE.get_or_init(|| Mutex::new(tempfile::NamedTempFile::new().unwrap()));
    let file = file.lock().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    for dialect in [
        None,
        Some(Dialect::Haproxy),
        Some(Dialect::Nginx),
        Some(Dialect::Keepalived),
    ] {
        if let Ok(finished) = import(&[file.path().into()], dialect)
            && let Some(yaml) = finished.yaml
            && let Err(errors) = weir::config::parse("fuzz", &yaml)
        {
            panic!("{dialect:?} made\n{yaml}\n{errors}");
        }
    }
}

const SECRET: &[u8] = b"fuzz";

/// What a peer node sends: a hello; then frames, here with a good signature so that what lies behind it is reached.
pub fn beats(bytes: &[u8]) {
    if let Ok(Some((hello, len))) = Hello::decode(bytes) {
        assert_eq!(hello.encode(), bytes[..len]);
    }
    let hello = |name: &str| Hello {
        name: name.into(),
        boot: 1,
        nonce: [7; 16],
    };
    let (ours, theirs) = (hello("a"), hello("b"));
    // Unsigned: whatever it is, it is rejected or incomplete.
    let secrets = [b"another".to_vec(), SECRET.to_vec()];
    let mut verifier = beat::verifier(&secrets, Side::Acceptor, &ours, &theirs);
    verifier.feed(bytes);
    assert!(!matches!(verifier.message(), Ok(Some(_))));
    // Signed.
    let mut verifier = beat::verifier(&secrets, Side::Acceptor, &ours, &theirs);
    let mac = |key: &[u8], parts: &[&[u8]]| {
        let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap();
        parts.iter().for_each(|part| mac.update(part));
        mac.finalize().into_bytes()
    };
    let key = mac(SECRET, &[b"weir/2 dialer", &theirs.encode(), &ours.encode()]);
    let body = &bytes[..bytes.len().min(beat::FRAME_MAX - 64)];
    let mut signed = 0u64.to_be_bytes().to_vec();
    signed.extend_from_slice(body);
    let signature = mac(&key, &[&signed]);
    let mut frame = ((signed.len() + signature.len()) as u16).to_be_bytes().to_vec();
    frame.extend_from_slice(&signed);
    frame.extend_from_slice(&signature);
    for piece in frame.chunks(1000) {
        verifier.feed(piece);
        if let Ok(Some(message)) = verifier.message() {
            let beat::Message::Beat(wire) = &message else {
                continue;
            };
            let vips: Vec<_> = wire.claims.iter().map(|claim| claim.address).collect();
            let beat = beat::from_wire(wire.clone(), &vips, &["a".into(), "b".into()]);
            assert_eq!(beat.claims.len(), vips.len());
            // What was understood can be sent on.
            let mut signer = beat::signer(SECRET, Side::Dialer, &theirs, &ours);
            signer.frame(&message);
        }
    }
}

/// Admin socket and HTTP as they are served, with a control thread that answers everything shortly.
struct Served {
    dir: tempfile::TempDir,
    http: std::net::SocketAddr,
    _handle: observer::Handle,
}

fn served() -> &'static Served {
    static SERVED: OnceLock<Served> = OnceLock::new();
    SERVED.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let listener = admin_socket::bind(&dir.path().join("admin.sock")).unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = http.local_addr().unwrap();
        let (sender, inputs) = crossbeam_channel::unbounded();
        std::thread::spawn(move || inputs.into_iter().for_each(answer));
        let shared = weir::link::Shared::new(None, crossbeam_channel::bounded(1).0, std::time::Instant::now());
        let handle = observer::start(listener, Some(http), sender, shared).unwrap();
        Served {
            dir,
            http: address,
            _handle: handle,
        }
    })
}

fn answer(input: Input) {
    let Input::Request(request) = input else {
        return;
    };
    match request {
        Request::Status { reply } => drop(reply.send(Default::default())),
        Request::Connections { reply, .. } => drop(reply.send(Vec::new())),
        Request::Kill { reply, .. } => drop(reply.send(false)),
        Request::Backend { reply, .. } => drop(reply.send(Err("none".into()))),
        Request::Vip { reply, .. } => drop(reply.send(Err("none".into()))),
        Request::Reload { reply } => drop(reply.send(Err("no".to_string().into()))),
        Request::Dump { reply } => drop(reply.send(String::new())),
        Request::Metrics { reply } => drop(reply.send(String::new())),
        Request::Health { reply } => drop(reply.send(Ok(()))),
        #[allow(unreachable_patterns)]
        _ => {}
    }
}

fn exchange(mut stream: impl Read + Write, bytes: &[u8], end: impl FnOnce()) -> Vec<u8> {
    let mut answer = Vec::new();
    if stream.write_all(bytes).is_ok() {
        end();
        let _ = stream.read_to_end(&mut answer);
    }
    answer
}

/// Lines on the admin socket: as many answers as questions, each one JSON object.
pub fn admin(bytes: &[u8]) {
    let served = served();
    let stream = UnixStream::connect(served.dir.path().join("admin.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let other = stream.try_clone().unwrap();
    let end = || other.shutdown(std::net::Shutdown::Write).unwrap();
    let text = String::from_utf8(exchange(&stream, bytes, end)).unwrap();
    for line in text.lines() {
        assert!(line.starts_with('{') && line.ends_with('}'), "{line}");
    }
}

/// An HTTP client: whatever it says, it gets an answer or an end, soon.
pub fn http(bytes: &[u8]) {
    let stream = TcpStream::connect(served().http).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let other = stream.try_clone().unwrap();
    let end = || drop(other.shutdown(std::net::Shutdown::Write));
    let answer = exchange(&stream, bytes, end);
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."));
}
