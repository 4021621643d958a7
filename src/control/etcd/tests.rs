//! Endpoints that are slow, lie, break off or forget tokens; `tests/etcd` asks a real etcd.

use std::sync::atomic::AtomicU32;
use std::time::Instant;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use super::*;
use crate::config::model::EtcdEndpoint;

const PATIENCE: Duration = Duration::from_secs(20);
const FOUND: &str = r#"{"header":{"revision":"7"}}"#;

/// What an endpoint does with each question.
#[derive(Clone)]
enum Manner {
    /// Answers so.
    Say(u16, &'static str),
    /// Never answers.
    Silent,
    /// Ends the connection instead of answering.
    Hang,
    /// Answers once on each connection, then closes it without a word about that.
    Once(&'static str),
    /// Knows only the newest token, and forgets it after two questions.
    Tokens,
}

struct Server {
    port: u16,
    questions: Arc<AtomicU32>,
}

async fn server(manner: Manner) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let questions = Arc::new(AtomicU32::new(0));
    let count = questions.clone();
    let forgetful: Arc<Mutex<(u32, u32)>> = Arc::default();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (manner, count, forgetful) = (manner.clone(), count.clone(), forgetful.clone());
            tokio::spawn(async move {
                while let Some(request) = request(&mut stream).await {
                    count.fetch_add(1, Ordering::Relaxed);
                    let (status, body) = match &manner {
                        Manner::Say(status, body) => (*status, body.to_string()),
                        Manner::Silent => continue,
                        Manner::Hang => return,
                        Manner::Once(body) => (200, body.to_string()),
                        Manner::Tokens => tokens(&request, &mut forgetful.lock()),
                    };
                    let length = body.len();
                    let answer = format!("HTTP/1.1 {status} So\r\ncontent-length: {length}\r\n\r\n{body}");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                    if matches!(manner, Manner::Once(_)) {
                        return;
                    }
                }
            });
        }
    });
    Server { port, questions }
}

fn tokens(request: &str, (given, uses): &mut (u32, u32)) -> (u16, String) {
    if request.contains("/v3/auth/authenticate") {
        assert!(
            request.contains(r#"{"name":"weir","password":"pass word"}"#),
            "{request}"
        );
        *given += 1;
        *uses = 0;
        return (200, format!(r#"{{"token":"token.{given}"}}"#));
    }
    *uses += 1;
    match request.contains(&format!("authorization: token.{given}\r\n")) && *uses <= 2 {
        true => (200, FOUND.into()),
        false => (
            401,
            r#"{"error":"etcdserver: invalid auth token","message":"etcdserver: invalid auth token","code":16}"#.into(),
        ),
    }
}

/// One request with its body.
async fn request(stream: &mut tokio::net::TcpStream) -> Option<String> {
    let mut text = String::new();
    loop {
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head.split("content-length: ").nth(1).unwrap();
            let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
            if body.len() >= length {
                return Some(text);
            }
        }
        let mut buffer = [0; 4096];
        match stream.read(&mut buffer).await {
            Ok(n) if n > 0 => text.push_str(str::from_utf8(&buffer[..n]).unwrap()),
            _ => return None,
        }
    }
}

/// A port on which nobody listens.
async fn closed() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap().port()
}

fn client(ports: &[u16]) -> Client {
    let endpoint = |port: &u16| EtcdEndpoint {
        tls: false,
        host: "127.0.0.1".into(),
        port: *port,
    };
    Client::new(&Settings {
        servers: EtcdServers {
            endpoints: ports.iter().map(endpoint).collect(),
            ca: None,
            cert: None,
            key: None,
            user: Some("weir".into()),
            password_file: None,
        },
        tls: None,
        password: None,
        hedge: Duration::from_millis(100),
    })
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.unwrap().block_on(test);
}

fn key() -> Keys {
    Keys::One(b"k".to_vec())
}

const LEADERLESS: Manner = Manner::Say(503, r#"{"message":"etcdserver: no leader","code":14}"#);

/// Whatever is wrong with the first endpoint, the second one answers, and is asked first from then on.
#[test]
fn another_endpoint_answers() {
    run(async {
        for broken in [
            LEADERLESS,
            Manner::Silent,
            Manner::Hang,
            Manner::Say(200, "no etcd"),
            Manner::Say(404, "Not Found"),
        ] {
            let (bad, good) = (server(broken.clone()).await, server(Manner::Say(200, FOUND)).await);
            let client = client(&[bad.port, good.port]);
            for _ in 0..3 {
                let found = client.get(&key(), PATIENCE).await;
                // What is no JSON is found out by whoever reads it, and is not asked elsewhere.
                if matches!(broken, Manner::Say(200, _)) {
                    assert!(matches!(found, Err(Error::Garbled(_))), "{found:?}");
                    continue;
                }
                assert_eq!(found.unwrap().header.revision, 7);
            }
            if !matches!(broken, Manner::Say(200, _)) {
                assert_eq!(bad.questions.load(Ordering::Relaxed), 1);
                assert_eq!(good.questions.load(Ordering::Relaxed), 3);
                assert!(client.endpoint().ends_with(&good.port.to_string()));
            }
        }
        let good = server(Manner::Say(200, FOUND)).await;
        let found = client(&[closed().await, good.port]).get(&key(), PATIENCE).await;
        assert_eq!(found.unwrap().header.revision, 7);
    });
}

/// Nothing takes longer than the patience that was given, and the last failure is told.
#[test]
fn all_endpoints_fail() {
    run(async {
        let silent = [server(Manner::Silent).await, server(Manner::Silent).await];
        let client_ = client(&[silent[0].port, silent[1].port]);
        let began = Instant::now();
        let patience = Duration::from_millis(400);
        assert_eq!(
            client_.get(&key(), patience).await,
            Err(Error::TimedOut(patience)),
            "both were asked, and waited for"
        );
        assert!(began.elapsed() >= patience);
        assert!(silent.iter().all(|s| s.questions.load(Ordering::Relaxed) == 1));

        let (a, b) = (closed().await, closed().await);
        let error = client(&[a, b]).get(&key(), PATIENCE).await.unwrap_err();
        assert!(
            matches!(&error, Error::Unreachable(why) if why.contains(&b.to_string())),
            "{error}"
        );

        let leaderless = server(LEADERLESS).await;
        let error = client(&[leaderless.port]).get(&key(), PATIENCE).await.unwrap_err();
        assert_eq!(error.to_string(), "etcd refuses: etcdserver: no leader");
    });
}

/// What one member refuses for good, the others would too.
#[test]
fn a_refusal_is_an_answer() {
    run(async {
        let refuses = Manner::Say(403, r#"{"message":"etcdserver: permission denied","code":7}"#);
        let (first, second) = (server(refuses).await, server(Manner::Say(200, FOUND)).await);
        let error = client(&[first.port, second.port])
            .get(&key(), PATIENCE)
            .await
            .unwrap_err();
        assert!(matches!(error, Error::Refused { code: 7, .. }), "{error}");
        assert_eq!(second.questions.load(Ordering::Relaxed), 0);

        let gone = Manner::Say(404, r#"{"message":"etcdserver: requested lease not found","code":5}"#);
        let gone = server(gone).await;
        assert_eq!(client(&[gone.port]).revoke(7, PATIENCE).await, Ok(()));
        let there = Manner::Say(412, r#"{"message":"etcdserver: lease already exists","code":9}"#);
        let there = server(there).await;
        let lease = client(&[there.port]).grant(7, 5, PATIENCE).await;
        assert_eq!(lease, Ok(Lease { id: 7, ttl_s: 5 }));
    });
}

/// A server that ends connections when it likes costs a new one, not an answer.
#[test]
fn a_kept_connection_that_has_ended_is_replaced() {
    run(async {
        let server = server(Manner::Once(FOUND)).await;
        let client = client(&[server.port]);
        for _ in 0..20 {
            assert_eq!(client.get(&key(), PATIENCE).await.unwrap().header.revision, 7);
        }
    });
}

#[test]
fn a_token_that_has_run_out_is_renewed() {
    run(async {
        let server = server(Manner::Tokens).await;
        let mut settings = client(&[server.port]);
        Arc::get_mut(&mut settings.shared).unwrap().login = Some(("weir".into(), "pass word".into()));
        for _ in 0..7 {
            assert_eq!(settings.get(&key(), PATIENCE).await.unwrap().header.revision, 7);
        }
    });
}

/// What `load` refuses, and why.
#[test]
fn files() {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;

    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str, mode: u32| {
        let path = directory.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        path
    };
    let servers = EtcdServers {
        endpoints: vec![EtcdEndpoint {
            tls: true,
            host: "etcd.internal".into(),
            port: 2379,
        }],
        ca: None,
        cert: None,
        key: None,
        user: None,
        password_file: None,
    };
    let refused = |change: &dyn Fn(&mut EtcdServers)| {
        let mut servers = servers.clone();
        change(&mut servers);
        match Settings::load(&servers) {
            Ok(_) => String::new(),
            Err(why) => why,
        }
    };
    let (empty, open) = (write("empty", "", 0o600), write("open", "password", 0o644));
    assert_eq!(refused(&|_| ()), "https endpoints need `ca`");
    assert!(refused(&|s| s.ca = Some(directory.path().join("none"))).contains("none"));
    assert!(refused(&|s| s.ca = Some(empty.clone())).contains("no certificate"));
    let plain = |s: &mut EtcdServers| s.endpoints[0].tls = false;
    let password = |s: &mut EtcdServers, file: &Path| {
        plain(s);
        s.password_file = Some(file.to_owned());
    };
    assert!(refused(&|s| password(s, &empty)).contains("empty"));
    assert!(refused(&|s| password(s, &open)).contains("others may read"));
    let good = write("good", "pass\n", 0o600);
    assert_eq!(refused(&|s| password(s, &good)), "");
}
