//! Hellos as browsers send them today, with GREASE and Encrypted Client Hello (RFC 9849), by a real one: Chromium.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex};

use super::common::netns::{Netns, link};
use super::common::{Browser, Launch, Server, Weir, have, may_make_namespaces, run, server};
use super::server_names::nginx;

const ENCRYPTED_HELLO: u16 = 0xfe0d;
const KEY_SHARE: u16 = 51;

/// What clients have said first, in the order of their connections.
type Hellos = Arc<Mutex<Vec<Vec<u8>>>>;

/// Stands before a TLS server and keeps the first record of each client.
fn recorder(listener: std::net::TcpListener, server: String) -> (Server, Hellos) {
    let hellos = Hellos::default();
    let kept = hellos.clone();
    let pass = move |mut client: TcpStream| {
        let mut hello = vec![0; 5];
        if client.read_exact(&mut hello).is_err() {
            return;
        }
        hello.resize(5 + usize::from(u16::from_be_bytes([hello[3], hello[4]])), 0);
        client.read_exact(&mut hello[5..]).unwrap();
        let mut server = TcpStream::connect(&server).unwrap();
        server.write_all(&hello).unwrap();
        kept.lock().unwrap().push(hello);
        let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let up = std::thread::spawn(move || {
            let _ = std::io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
        let _ = std::io::copy(&mut server, &mut client);
        let _ = client.shutdown(Shutdown::Write);
        up.join().unwrap();
    };
    (Server::each_on(listener, pass), hellos)
}

/// The bytes behind a length of so many bytes.
fn counted<'a>(rest: &mut &'a [u8], width: usize) -> &'a [u8] {
    let (len, after) = rest.split_at(width);
    let len = len.iter().fold(0, |len, &byte| len << 8 | usize::from(byte));
    let (bytes, after) = after.split_at(len);
    *rest = after;
    bytes
}

/// Cipher suites, and kind and body of each extension, of a hello in one record.
fn parts(hello: &[u8]) -> (Vec<u16>, Vec<(u16, &[u8])>) {
    // Headers of record and message, version, random.
    let mut rest = &hello[5 + 4 + 2 + 32..];
    counted(&mut rest, 1);
    let suites = counted(&mut rest, 2);
    let suites = suites.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    counted(&mut rest, 1);
    let mut inside = counted(&mut rest, 2);
    let mut extensions = Vec::new();
    while let [high, low, after @ ..] = inside {
        inside = after;
        extensions.push((u16::from_be_bytes([*high, *low]), counted(&mut inside, 2)));
    }
    (suites.collect(), extensions)
}

fn is_grease(value: u16) -> bool {
    value & 0x0f0f == 0x0a0a && value >> 8 == value & 0xff
}

/// Panics unless it is what this file is about: one from a client that encrypts or pretends to.
#[track_caller]
fn assert_modern(hello: &[u8]) {
    let (suites, extensions) = parts(hello);
    let body = |wanted: u16| {
        extensions
            .iter()
            .find(|(kind, _)| *kind == wanted)
            .map(|(_, body)| *body)
    };
    let encrypted = body(ENCRYPTED_HELLO).expect("no encrypted hello in it");
    assert_eq!(encrypted[0], 0, "the outer one");
    assert!(encrypted.len() > 100, "{encrypted:?}");
    assert!(suites.iter().copied().any(is_grease), "{suites:?}");
    assert!(extensions.iter().any(|(kind, _)| is_grease(*kind)), "{extensions:?}");
    // X25519MLKEM768 alone has 1,216 bytes: more than a segment with the rest.
    assert!(body(KEY_SHARE).is_some_and(|shares| shares.len() > 1_000));
}

/// A browser that knows no key of the server sends an extension of noise in place of an encrypted hello, and reserved values among suites
/// and extensions. The handshake hashes the hello: a byte that was changed would end it.
#[test]
fn a_browser_that_greases_gets_the_server_that_it_names() {
    if !have(&["nginx", "chromium", "openssl"]) {
        return;
    }
    let (nginx, ports) = nginx(&["web", "rest"]);
    let listener = || server::bind((Ipv4Addr::LOCALHOST, 0));
    let (web, web_hellos) = recorder(listener(), nginx.address());
    let (rest, rest_hellos) = recorder(listener(), ports[0].address().to_string());
    let weir = Weir::start(&format!(
        "
listeners: {{main: {{bind: ['127.0.0.1:0'], routes: {{www.example.org: web}}, pool: rest}}}}
pools:
  web: {{backends: ['{}'], health: none}}
  rest: {{backends: ['{}'], health: none}}
",
        web.address, rest.address
    ));
    let address = weir.address("main");
    let (_, port) = address.rsplit_once(':').unwrap();
    for (name, server, hellos) in [
        ("www.example.org", "web", web_hellos),
        ("other.example.org", "rest", rest_hellos),
    ] {
        let browser = Browser::new(&[
            "--ignore-certificate-errors",
            "--host-resolver-rules=MAP *.example.org 127.0.0.1",
        ]);
        let page = browser.dom(&format!("https://{name}:{port}/"));
        assert!(page.contains(&format!("this is {server}")), "{page}");
        let hellos = hellos.lock().unwrap();
        assert!(!hellos.is_empty());
        hellos.iter().for_each(|hello| assert_modern(hello));
        weir.wait_for(|records| {
            records
                .iter()
                .any(|record| record.server_name.as_deref() == Some(name) && record.pool == server)
        });
    }
}

/// Keys of a server, as DNS has them: an ECHConfigList of one. Nobody has the private half.
fn keys(public_name: &str) -> Vec<u8> {
    let counted = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let mut point = [0; 32];
    point[0] = 9;
    let name = [&[public_name.len() as u8], public_name.as_bytes()].concat();
    // Its number; DHKEM(X25519, HKDF-SHA256) and the key; HKDF-SHA256 with AES-128-GCM; names of up to 64 bytes; no extensions.
    let content = [
        &[7, 0, 0x20][..],
        &counted(&point),
        &counted(&[0, 1, 0, 1]),
        &[64],
        &name,
        &[0, 0],
    ]
    .concat();
    counted(&[&ENCRYPTED_HELLO.to_be_bytes()[..], &counted(&content)].concat())
}

/// Answers every question for an address with this one, and for what a web server has (HTTPS, RFC 9460) with these keys.
fn name_server(socket: UdpSocket, address: Ipv4Addr, keys: Vec<u8>) {
    let https = [&[0, 1, 0, 0, 5][..], &(keys.len() as u16).to_be_bytes(), &keys].concat();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let query = &buffer[..length];
            // The name, behind the header; then type and class.
            let Some(name) = query.get(12..).and_then(|rest| rest.iter().position(|&byte| byte == 0)) else {
                continue;
            };
            let end = 12 + name + 1 + 4;
            let Some(question) = query.get(12..end) else {
                continue;
            };
            let kind = [question[name + 1], question[name + 2]];
            let data = match u16::from_be_bytes(kind) {
                1 => Some(address.octets().to_vec()),
                65 => Some(https.clone()),
                _ => None,
            };
            let mut answer = [
                &query[..2],
                &[0x85, 0x80, 0, 1, 0, data.is_some() as u8, 0, 0, 0, 0],
                question,
            ]
            .concat();
            if let Some(data) = data {
                answer.extend([&[0xc0, 12], &kind[..], &[0, 1, 0, 0, 0, 60]].concat());
                answer.extend([&(data.len() as u16).to_be_bytes(), &data[..]].concat());
            }
            let _ = socket.send_to(&answer, from);
        }
    });
}

/// A browser that has found keys in DNS encrypts its hello: the name that it is about is nowhere to be seen, and the public one leads.
#[test]
fn an_encrypted_hello_goes_where_its_public_name_leads() {
    if !may_make_namespaces() || !have(&["nginx", "chromium", "openssl", "unshare"]) {
        return;
    }
    let (here, there) = (Netns::new("balancer"), Netns::new("browser"));
    link("eth0", [(&here, "10.9.0.1/24"), (&there, "10.9.0.2/24")]);
    there.ip(&["route", "add", "default", "via", "10.9.0.1"]);
    let dns = here.enter(|| UdpSocket::bind("10.9.0.1:53").unwrap());
    name_server(dns, Ipv4Addr::new(10, 9, 0, 1), keys("public.example.org"));
    // The servers are outside, as recorders reach them; weir reaches the recorders inside.
    let (nginx, ports) = nginx(&["provider", "rest"]);
    let bind = || here.enter(|| server::bind("127.0.0.1:0".parse::<SocketAddr>().unwrap()));
    let (provider, hellos) = recorder(bind(), nginx.address());
    let (rest, _) = recorder(bind(), ports[0].address().to_string());
    let yaml = format!(
        "
listeners: {{main: {{bind: ['10.9.0.1:443'], routes: {{public.example.org: provider}}, pool: rest}}}}
pools:
  provider: {{backends: ['{}'], health: none}}
  rest: {{backends: ['{}'], health: none}}
",
        provider.address, rest.address
    );
    let weir = Launch::new(&yaml).inside(&here).start();
    let resolver = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(resolver.path(), "nameserver 10.9.0.1\n").unwrap();
    let browser = Browser::new(&[
        "--ignore-certificate-errors",
        "--enable-features=AsyncDns,UseDnsHttpsSvcb",
    ]);
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$@\"",
        resolver.path().display()
    );
    let mut inside = there.command("unshare");
    inside.args(["--mount", "sh", "-c", &script, "sh"]);
    let page = run(inside.args(browser.words("https://secret.example.org/")));
    let records = weir.wait_for(|records| {
        records
            .iter()
            .any(|record| record.server_name.as_deref() == Some("public.example.org"))
    });
    let encrypted = records
        .iter()
        .find(|record| record.server_name.as_deref() == Some("public.example.org"));
    assert_eq!(encrypted.unwrap().pool, "provider", "{page}");
    let hellos = hellos.lock().unwrap();
    let hello = hellos.first().expect("a hello at the provider");
    assert_modern(hello);
    let says = |name: &[u8]| hello.windows(name.len()).any(|bytes| bytes == name);
    assert!(says(b"public.example.org") && !says(b"secret"));
}
