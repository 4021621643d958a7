//! The client against three members.

use std::sync::Barrier;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use weir::config::model::EtcdServers;
use weir::control::etcd::watch::Notice;
use weir::control::etcd::wire::{Answer, Change, Compare, Is, Keys, Kind, Op, Txn};
use weir::control::etcd::{Client, Error};

use crate::cluster::{Cluster, PATIENCE, answers, possible};

fn key(name: &str) -> Vec<u8> {
    format!("/weir/{name}").into_bytes()
}

fn one(name: &str) -> Keys {
    Keys::One(key(name))
}

async fn put(client: &Client, name: &str, value: &str) -> i64 {
    let done = client.put(&key(name), value.as_bytes(), 0, PATIENCE).await.unwrap();
    done.header.revision
}

#[test]
fn what_it_can() {
    if !possible() {
        return;
    }
    let cluster = Cluster::start();
    cluster.ask(&cluster.servers(), |client| async move {
        keys_and_transactions(&client).await;
        leases(&client).await;
        watches(&client).await;
    });
    compaction(&cluster);
    members_fail(&cluster);
}

async fn keys_and_transactions(client: &Client) {
    put(client, "a/1", "one").await;
    put(client, "a/2", "two").await;
    put(client, "b", "three").await;
    let found = client.get(&Keys::Prefix(key("a/")), PATIENCE).await.unwrap();
    let values: Vec<&[u8]> = found.kvs.iter().map(|kv| kv.value.as_slice()).collect();
    assert_eq!(values, [b"one", b"two"]);

    // Conditions on a revision, on a value, on what is not there; a transaction in one.
    let txn = |compare: Compare, then: &str| Txn {
        compare: vec![compare],
        success: vec![Op::Put {
            key: key("b"),
            value: then.into(),
            lease: 0,
        }],
        failure: vec![Op::Txn(Txn {
            compare: vec![],
            success: vec![Op::Get(one("b"))],
            failure: vec![],
        })],
    };
    let seen = client.get(&one("b"), PATIENCE).await.unwrap().kvs[0].mod_revision;
    let rows = [
        (Compare::Created(key("b"), Is::Equal, 0), "four", false),
        (Compare::Modified(key("b"), Is::Equal, seen + 1), "four", false),
        (Compare::Modified(key("b"), Is::Equal, seen), "four", true),
        (Compare::Value(key("b"), Is::Greater, b"foua".to_vec()), "five", true),
        (Compare::Value(key("b"), Is::Less, b"five".to_vec()), "six", false),
        // What is not there is neither more nor less.
        (Compare::Value(key("none"), Is::Less, b"z".to_vec()), "six", false),
    ];
    for (compare, then, expected) in rows {
        let decided = client.txn(&txn(compare.clone(), then), PATIENCE).await.unwrap();
        assert_eq!(decided.succeeded, expected, "{compare:?}");
        let [answer] = &decided.responses[..] else { panic!() };
        match answer {
            Answer::Put(_) => assert!(expected),
            Answer::Txn(inner) => assert!(matches!(&inner.responses[0], Answer::Get(found) if found.kvs.len() == 1)),
            other => panic!("{other:?}"),
        }
    }
    let deleted = client.delete(&Keys::Prefix(key("")), PATIENCE).await.unwrap();
    assert_eq!(deleted.deleted, 3);
    assert_eq!(client.get(&Keys::Prefix(vec![]), PATIENCE).await.unwrap().kvs, []);
}

async fn leases(client: &Client) {
    let lease = client.grant(77, 60, PATIENCE).await.unwrap();
    assert_eq!((lease.id, lease.ttl_s), (77, 60));
    assert_eq!(client.grant(77, 60, PATIENCE).await.unwrap().id, 77, "asked twice");
    client.put(&key("leased"), b"x", 77, PATIENCE).await.unwrap();
    assert_eq!(client.get(&one("leased"), PATIENCE).await.unwrap().kvs[0].lease, 77);
    assert!(client.keep_alive(77, PATIENCE).await.unwrap().is_some());
    client.revoke(77, PATIENCE).await.unwrap();
    assert_eq!(client.get(&one("leased"), PATIENCE).await.unwrap().kvs, []);
    client.revoke(77, PATIENCE).await.unwrap();
    assert_eq!(client.keep_alive(77, PATIENCE).await, Ok(None));
    let error = client.put(&key("leased"), b"x", 77, PATIENCE).await.unwrap_err();
    assert!(error.no_such_lease(), "{error}");

    // It ends by itself, and not early.
    let asked = Instant::now();
    client.grant(78, 2, PATIENCE).await.unwrap();
    client.put(&key("leased"), b"x", 78, PATIENCE).await.unwrap();
    while !client.get(&one("leased"), PATIENCE).await.unwrap().kvs.is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(asked.elapsed() >= Duration::from_secs(2), "{:?}", asked.elapsed());
}

async fn watches(client: &Client) {
    let first = put(client, "w/1", "one").await;
    let keys = Keys::Prefix(key("w/"));
    let mut watch = client.watch(&keys, first, PATIENCE).await.unwrap();
    let changes = |notice: Notice| -> Vec<(Kind, Vec<u8>)> {
        let Notice::Changes { changes, .. } = notice else {
            panic!("{notice:?}")
        };
        let short = |change: &Change| (change.kind, change.kv.key.clone());
        changes.iter().map(short).collect()
    };
    // From the past, and as it comes.
    assert_eq!(changes(watch.next().await.unwrap()), [(Kind::Put, key("w/1"))]);
    put(client, "elsewhere", "x").await;
    put(client, "w/2", "two").await;
    assert_eq!(changes(watch.next().await.unwrap()), [(Kind::Put, key("w/2"))]);
    client.delete(&keys, PATIENCE).await.unwrap();
    let both = [(Kind::Delete, key("w/1")), (Kind::Delete, key("w/2"))];
    assert_eq!(changes(watch.next().await.unwrap()), both);
}

/// A watch from a revision that is forgotten says so, and from where on there is something to know.
fn compaction(cluster: &Cluster) {
    let revision = cluster.ask(&cluster.servers(), |client| async move {
        put(&client, "c", "1").await;
        put(&client, "c", "2").await
    });
    cluster.etcdctl(&["compact", &revision.to_string()]);
    cluster.ask(&cluster.servers(), |client| async move {
        let mut watch = client.watch(&one("c"), 1, PATIENCE).await.unwrap();
        assert_eq!(watch.next().await, Ok(Notice::Compacted { revision }));
        let mut watch = client.watch(&one("c"), revision, PATIENCE).await.unwrap();
        assert!(matches!(watch.next().await, Ok(Notice::Changes { .. })));
    });
}

/// A member that stands still costs the hedge, one that is gone a refused connection, no majority an error in time.
fn members_fail(cluster: &Cluster) {
    let leader = cluster.leader();
    let [follower, other] = [(leader + 1) % 3, (leader + 2) % 3];
    // The follower is asked first, and answers; then it stands still.
    let mut servers = cluster.servers();
    servers.endpoints.rotate_left(follower);
    let first = servers.endpoints[0].to_string();
    cluster.ask(&servers, |client| async move {
        answers(&client).await;
        let mut watch = client.watch(&one("f"), 0, PATIENCE).await.unwrap();
        cluster.signal(follower, Signal::SIGSTOP);
        put(&client, "f", "1").await;
        assert_ne!(client.endpoint(), first);
        // What was to be told by the one that stands still is told when it goes on.
        cluster.signal(follower, Signal::SIGCONT);
        assert!(matches!(watch.next().await, Ok(Notice::Changes { .. })));
    });
    cluster.kill(follower);
    cluster.ask(&servers, |client| async move {
        put(&client, "f", "2").await;
    });
    cluster.signal(other, Signal::SIGSTOP);
    let patience = Duration::from_secs(2);
    let began = Instant::now();
    let error = cluster.ask(&servers, |client| async move {
        client.get(&one("f"), patience).await.unwrap_err()
    });
    assert!(
        began.elapsed() < patience + Duration::from_secs(5),
        "{:?}",
        began.elapsed()
    );
    assert!(!matches!(error, Error::Refused { code: 5, .. }), "{error}");
    cluster.signal(other, Signal::SIGCONT);
    cluster.restart(follower);
    let leader = cluster.leader();
    cluster.kill(leader);
    cluster.leader_among_the_rest(leader);
    cluster.ask(&servers, |client| async move {
        answers(&client).await;
        assert_eq!(client.get(&one("f"), PATIENCE).await.unwrap().kvs[0].value, b"2");
    });
}

#[test]
fn tls_and_passwords() {
    if !possible() || !crate::common::have(&["openssl"]) {
        return;
    }
    let cluster = Cluster::secure();
    let mut servers = cluster.servers();
    servers.user = Some("weir".into());
    servers.password_file = Some(cluster.private("password", "pass\n"));
    cluster.ask(&servers, |client| async move {
        put(&client, "t", "1").await;
        let elsewhere = client.put(b"/other", b"1", 0, PATIENCE).await.unwrap_err();
        assert!(elsewhere.to_string().contains("permission denied"), "{elsewhere}");
    });
    // Tokens live in the members' memory: after a restart ours is unknown, and asked for anew.
    let cluster = &cluster;
    let (asked, restarted) = (Barrier::new(2), Barrier::new(2));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            cluster.ask(&servers, |client| async {
                let client = client;
                put(&client, "t", "2").await;
                asked.wait();
                restarted.wait();
                answers(&client).await;
                put(&client, "t", "3").await;
            });
        });
        asked.wait();
        // By this thread: what is started dies with the one that started it.
        (0..3).for_each(|i| cluster.kill(i));
        (0..3).for_each(|i| cluster.restart(i));
        restarted.wait();
    });
    let refused = |change: &dyn Fn(&mut EtcdServers)| {
        let mut servers = servers.clone();
        change(&mut servers);
        let patience = Duration::from_secs(10);
        cluster.ask(&servers, |client| async move {
            client.get(&one("t"), patience).await.unwrap_err()
        })
    };
    let wrong = cluster.private("wrong", "wrong");
    let error = refused(&|s| s.password_file = Some(wrong.clone()));
    assert!(error.to_string().contains("authentication failed"), "{error}");
    let error = refused(&|s| s.user = Some("nobody".into()));
    assert!(error.to_string().contains("permission denied"), "{error}");
    // Without a certificate of ours; with one that is not signed by whom we trust.
    let error = refused(&|s| (s.cert, s.key) = (None, None));
    assert!(!matches!(error, Error::Refused { .. }), "{error}");
    let error = refused(&|s| s.ca = s.cert.clone());
    assert!(error.to_string().contains("certificate"), "{error}");
    let error = refused(&|s| s.endpoints.iter_mut().for_each(|e| e.host = "localhost".into()));
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
}
