//! The beat port and those who have no business there.

use serde_json::json;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use crate::hosts::*;

#[test]
fn the_beat_port_survives_strangers() {
    let net = Net::new(&["a", "b", "c"]);
    let (a, b) = net.pair();
    let probe = net.probe("c", &to(VIP), 3_500);
    let since = now_ms();
    let port = format!("{}:7400", net.address("a"));
    let crowd = in_ns(&net.ns("c"), {
        let port = port.clone();
        move || {
            // Connections that say nothing.
            let idle: Vec<TcpStream> = (0..1_000).filter_map(|_| TcpStream::connect(&port).ok()).collect();
            assert_eq!(idle.len(), 1_000);
            // Connections that say anything.
            let mut seed = 7u64;
            let mut byte = move || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (seed >> 56) as u8
            };
            for round in 0..200 {
                let mut stream = TcpStream::connect(&port).unwrap();
                let mut bytes: Vec<u8> = (0..2_000).map(|_| byte()).collect();
                if round % 2 == 0 {
                    // A good beginning: node b says hello, and then a frame of noise.
                    let mut hello = b"WEIR\x01".to_vec();
                    hello.extend_from_slice(&bytes[..24]);
                    hello.extend_from_slice(b"\x01b\x00\x40");
                    bytes.splice(..0, hello);
                }
                let _ = stream.write_all(&bytes);
                // Until we are thrown out.
                stream.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
                let _ = stream.read_to_end(&mut bytes);
            }
            idle
        }
    });
    let strangers = until(2_000, "refusals are counted", || {
        a.status()["rejected"].as_u64().unwrap() >= 200
    });
    println!("200 refusals counted after {strangers:.0} ms");
    // The real peer still gets through the crowd: it is started again.
    drop(b);
    let b = net.start("b", &["a", "b"]);
    until(3_000, "b is heard through the crowd", || {
        a.status()["nodes"][1]["alive"] == json!(true)
    });
    let fds = fs::read_dir(format!("/proc/{}/fd", a.pid())).unwrap().count();
    assert!(fds < 150, "{fds} descriptors");
    drop(crowd);
    let answers = probe.finish();
    assert_eq!(lost(&answers, since), 0);
    assert!(answers.iter().all(|(_, by)| by.as_deref() == Some("a")));
    drop(b);
}

#[test]
fn another_secret_is_another_world() {
    let net = Net::new(&["a", "b", "c"]);
    let a = net.start("a", &["a", "b"]);
    a.wait_holds(true);
    let secret = net.dir.path().join("other");
    fs::write(&secret, "not the secret of the test bench").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let mut config = net.config("b", &["a", "b"]);
    config["secret_file"] = json!(secret);
    config["vips"] = json!([]);
    let b = net.start_with("b", &config, &[]);
    // Nothing is signed for whoever has signed nothing: the one that is dialled sees the bad signature.
    until(2_000, "refused and counted", || {
        b.status()["rejected"].as_u64().unwrap() > 0
    });
    assert_eq!(a.status()["nodes"][1]["alive"], json!(false));
    assert_eq!(b.status()["nodes"][0]["alive"], json!(false));
    assert!(b.log().contains("refused: signature"), "{}", b.log());
    let mismatch = b.status()["nodes"][0]["mismatch"].to_string();
    assert!(mismatch.contains("secret"), "{mismatch}");
    // And a secret that others can read is not used at all.
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
    let mut child = net.start_with("b", &config, &[]);
    until(2_000, "refuses to start", || child.child.try_wait().unwrap().is_some());
    assert!(child.log().contains("others may read"), "{}", child.log());
}
