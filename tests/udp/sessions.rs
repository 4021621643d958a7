//! Sessions: how they begin, how they end, what is told of them.

use std::time::{Duration, Instant};

use super::common::operator::{said, status};
use super::common::server::Port;
use super::common::{PATIENCE, Weir, wait_until};
use super::peers::{Client, Server, metric};

fn config(listener: &str, backends: &[&Server]) -> String {
    let list: Vec<String> = backends.iter().map(|server| server.address.to_string()).collect();
    format!(
        "
workers: 1
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main, {listener}}}}}
pools: {{main: {{balance: round_robin, backends: {list:?}}}}}
"
    )
}

#[test]
fn silence_ends_a_session_and_a_record_tells_of_it() {
    let server = Server::new("127.0.0.1:0", |_| vec![b"12345".to_vec(), b"678".to_vec()]);
    let weir = Weir::start(&config("udp: {idle: 2s}", &[&server]));
    let client = Client::at("127.0.0.1");
    for _ in 0..3 {
        client.send(&weir.address("main"), b"hello");
        client.receive();
        client.receive();
    }
    let record = &weir.wait_for_records(1)[0];
    assert_eq!(record.end(), ("idle_timeout", "weir"));
    assert_eq!((record.bytes_up, record.bytes_down, record.attempts), (15, 24, 1));
    assert_eq!(
        (record.protocol.as_str(), record.listener.as_str(), record.pool.as_str()),
        ("udp", "main", "main")
    );
    assert_eq!(record.client, client.address().to_string());
    assert_eq!(record.local, weir.address("main"));
    assert_eq!(record.address.as_deref(), Some(server.address.to_string().as_str()));
    assert!(record.first_byte_ms.is_some());
    assert!(record.duration_ms >= 2000.0, "{}", record.duration_ms);
    // The next datagram opens another session.
    client.send(&weir.address("main"), b"again");
    client.receive();
    wait_until("a second socket", || server.sources() == 2);
}

#[test]
fn a_session_lives_as_long_as_it_speaks() {
    let server = Server::echo("127.0.0.1:0");
    let weir = Weir::start(&config("udp: {idle: 2s}", &[&server]));
    let client = Client::at("127.0.0.1");
    // Longer than the idle time altogether, and each pause much shorter.
    for _ in 0..8 {
        client.ask(&weir.address("main"), "x");
        std::thread::sleep(Duration::from_millis(400));
    }
    assert_eq!((server.sources(), weir.access_log().len()), (1, 0));
}

#[test]
fn a_reply_to_each_request_ends_a_session() {
    let servers = [Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.1:0", "b")];
    let weir = Weir::start(&config("udp: {idle: 30s, replies: 1}", &[&servers[0], &servers[1]]));
    let client = Client::at("127.0.0.1");
    let answers: Vec<String> = (0..6).map(|_| client.ask(&weir.address("main"), "x")).collect();
    let turns = answers.windows(2).all(|pair| pair[0] != pair[1]);
    assert!(turns, "each query is balanced by itself: {answers:?}");
    let records = weir.wait_for_records(6);
    assert!(records.iter().all(|record| record.end() == ("finished", "backend")));
    assert!(
        records
            .iter()
            .all(|record| (record.bytes_up, record.bytes_down) == (1, 1))
    );
    let mut ids: Vec<&str> = records.iter().map(|record| record.id.as_str()).collect();
    ids.dedup();
    assert_eq!(ids.len(), 6, "each is a session of its own");
    assert_eq!(status(&weir)["listeners"][0]["active"], 0);
}

/// Queries in flight on one port: the session ends with the answer to the last of them, and none is lost.
#[test]
fn replies_are_counted_for_each_request() {
    let server = Server::echo("127.0.0.1:0");
    let weir = Weir::start(&config("udp: {idle: 30s, replies: 1}", &[&server]));
    let client = Client::at("127.0.0.1");
    for n in 0..100u8 {
        client.send(&weir.address("main"), &[n]);
    }
    for n in 0..100u8 {
        assert_eq!(client.receive().0, [n]);
    }
    let records = weir.wait_for(|records| records.iter().map(|r| r.bytes_down).sum::<u64>() == 100);
    assert!(records.iter().all(|record| record.end() == ("finished", "backend")));
}

#[test]
fn a_used_up_session_is_followed_by_another_and_still_gets_its_replies() {
    let servers = [Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.1:0", "b")];
    let weir = Weir::start(&config("udp: {idle: 3s, requests: 2}", &[&servers[0], &servers[1]]));
    let client = Client::at("127.0.0.1");
    let answers: Vec<String> = (0..8).map(|_| client.ask(&weir.address("main"), "x")).collect();
    assert!(
        ["aabbaabb", "bbaabbaa"].contains(&answers.concat().as_str()),
        "{answers:?}"
    );
    let records = weir.wait_for_records(4);
    assert!(
        records
            .iter()
            .all(|record| (record.bytes_up, record.bytes_down) == (2, 2))
    );
}

#[test]
fn one_way_datagrams_choose_their_backends_one_by_one() {
    let servers = [Server::silent("127.0.0.1:0"), Server::silent("127.0.0.1:0")];
    let weir = Weir::start(&config("udp: {requests: 1, replies: 0}", &[&servers[0], &servers[1]]));
    let client = Client::at("127.0.0.1");
    for _ in 0..100 {
        client.send(&weir.address("main"), b"<14>line");
    }
    wait_until("all have arrived", || {
        servers.iter().map(Server::count).sum::<usize>() == 100
    });
    assert_eq!(servers.each_ref().map(Server::count), [50, 50]);
    let records = weir.wait_for_records(100);
    assert!(records.iter().all(|record| record.end() == ("finished", "client")));
    assert_eq!(status(&weir)["workers"][0]["udp_sessions"], 0);
}

#[test]
fn backends_are_chosen_by_weight() {
    let servers: Vec<Server> = (0..3).map(|_| Server::echo("127.0.0.1:0")).collect();
    let list: Vec<String> = servers
        .iter()
        .zip(1..)
        .map(|(server, weight)| format!("{{address: '{}', weight: {weight}}}", server.address))
        .collect();
    let weir = Weir::start(&format!(
        "
workers: 2
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{balance: least_conn, backends: [{}]}}}}
",
        list.join(", ")
    ));
    let clients: Vec<Client> = (0..120).map(|_| Client::at("127.0.0.1")).collect();
    for client in &clients {
        client.ask(&weir.address("main"), "x");
    }
    let sources: Vec<usize> = servers.iter().map(Server::sources).collect();
    assert_eq!(sources, [20, 40, 60]);
    let backends = status(&weir)["pools"][0]["backends"].clone();
    let active: Vec<u64> = (0..3).map(|ix| backends[ix]["active"].as_u64().unwrap()).collect();
    assert_eq!(active, [20, 40, 60]);
}

#[test]
fn the_backend_is_told_of_the_client_in_the_first_datagram() {
    let server = Server::silent("127.0.0.1:0");
    let weir = Weir::start(&format!(
        "
listeners: {{main: {{protocol: udp, bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{send_proxy: v2, backends: ['{}']}}}}
",
        server.address
    ));
    let client = Client::at("127.0.0.1");
    for text in ["one", "", "three"] {
        client.send(&weir.address("main"), text.as_bytes());
    }
    wait_until("all have arrived", || server.count() == 3);
    let got = server.of_one_source();
    let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x12\0\x0c\x7f\0\0\x01\x7f\0\0\x01".to_vec();
    let local: std::net::SocketAddr = weir.address("main").parse().unwrap();
    expected.extend(client.address().port().to_be_bytes());
    expected.extend(local.port().to_be_bytes());
    expected.extend(b"one");
    assert_eq!(got, [expected, b"".to_vec(), b"three".to_vec()]);
}

#[test]
fn at_its_cap_a_listener_sheds_the_new_until_somebody_has_been_silent_for_half_of_the_idle_time() {
    let (server, metrics) = (Server::echo("127.0.0.1:0"), Port::reserve());
    let yaml = config("limits: {connections: 3}, udp: {idle: 6s}", &[&server]);
    let weir = Weir::start(&format!("metrics: {}\n{yaml}", metrics.address()));
    let address = weir.address("main");
    let clients: Vec<Client> = (0..4).map(|_| Client::at("127.0.0.1")).collect();
    let spoke = Instant::now();
    for client in &clients[..3] {
        client.ask(&address, "x");
    }
    clients[3].send(&address, b"one too many");
    let metric = |series: &str| metric(&metrics.address().to_string(), series);
    wait_until("it is shed", || {
        metric("weir_udp_dropped_total{reason=\"limit_listener\"}") == 1
    });
    assert_eq!(
        metric("weir_connections_refused_total{listener=\"main\",reason=\"limit_listener\",engine=\"proxy\"}"),
        1
    );
    // Two stay awake, one has fallen silent.
    let answer = loop {
        assert!(spoke.elapsed() < PATIENCE);
        clients[0].ask(&address, "x");
        clients[2].ask(&address, "x");
        clients[3].send(&address, b"again");
        if let Some(answer) = clients[3].receive_within(Duration::from_millis(50)) {
            break answer;
        }
    };
    assert_eq!(answer, b"again");
    assert!(
        spoke.elapsed() >= Duration::from_millis(2_990),
        "not before half of the idle time"
    );
    let records = weir.wait_for_records(1);
    assert_eq!(
        records[0].client,
        clients[1].address().to_string(),
        "the silent one made room"
    );
    assert_eq!(records[0].end(), ("evicted", "weir"));
    assert_eq!(status(&weir)["listeners"][0]["active"], 3);
}

#[test]
fn sources_that_are_not_allowed_or_hold_too_many_sessions_are_shed() {
    let (server, metrics) = (Server::echo("127.0.0.1:0"), Port::reserve());
    let yaml = config("deny: [127.0.0.9], limits: {per_source: 2}", &[&server]);
    let weir = Weir::start(&format!("metrics: {}\n{yaml}", metrics.address()));
    let address = weir.address("main");
    let clients: Vec<Client> = (0..3).map(|_| Client::at("127.0.0.1")).collect();
    for client in &clients[..2] {
        client.ask(&address, "x");
    }
    clients[2].send(&address, b"x");
    Client::at("127.0.0.9").send(&address, b"x");
    assert_eq!(Client::at("127.0.0.2").ask(&address, "x"), "x", "others are not hurt");
    let metric = |series: &str| metric(&metrics.address().to_string(), series);
    wait_until("both are counted", || {
        metric("weir_udp_dropped_total{reason=\"denied\"}") == 1
            && metric("weir_udp_dropped_total{reason=\"limit_source\"}") == 1
    });
    assert_eq!(server.count(), 3);
}

#[test]
fn a_reload_touches_no_session() {
    let server = Server::echo("127.0.0.1:0");
    let yaml = config("udp: {idle: 30s}", &[&server]);
    let weir = Weir::start(&yaml);
    let (address, client) = (weir.address("main"), Client::at("127.0.0.1"));
    client.ask(&address, "before");
    for n in 0..3 {
        weir.rewrite(&yaml.replace("30s", &format!("{}s", 20 + n)));
        said(&weir, &["reload"]);
        assert_eq!(client.ask(&address, "after"), "after");
    }
    assert_eq!((server.sources(), weir.access_log().len()), (1, 0));
}

#[test]
fn fewer_workers_lose_no_session() {
    let servers = [Server::named("127.0.0.1:0", "a"), Server::named("127.0.0.1:0", "b")];
    let yaml = config("udp: {idle: 30s}", &[&servers[0], &servers[1]]);
    let weir = Weir::start(&yaml.replace("workers: 1", "workers: 3"));
    let address = weir.address("main");
    let clients: Vec<Client> = (0..30).map(|_| Client::at("127.0.0.1")).collect();
    let ask = |client: &Client| client.ask(&address, "who?");
    let before: Vec<String> = clients.iter().map(ask).collect();
    weir.rewrite(&yaml);
    said(&weir, &["reload"]);
    wait_until("one worker has all", || {
        status(&weir)["workers"][0]["udp_sessions"] == clients.len()
    });
    let after: Vec<String> = clients.iter().map(ask).collect();
    assert_eq!(before, after, "every flow stays at its backend");
    assert_eq!(servers[0].sources() + servers[1].sources(), clients.len());
}

#[test]
fn live_sessions_are_listed_and_can_be_ended() {
    let server = Server::echo("127.0.0.1:0");
    let weir = Weir::start(&config("udp: {idle: 30s}", &[&server]));
    let client = Client::at("127.0.0.1");
    client.ask(&weir.address("main"), "12345");
    let weir_says = |arguments: &[&str]| {
        let mut say = super::common::command(env!("CARGO_BIN_EXE_weir"));
        super::common::run(say.args(arguments).arg("--socket").arg(weir.admin()))
    };
    let live: serde_json::Value = serde_json::from_str(&weir_says(&["conns", "--json"])).unwrap();
    let session = live.as_array().map_or(&live["connections"][0], |all| &all[0]);
    assert_eq!(
        (session["protocol"].as_str(), session["bytes_up"].as_u64()),
        (Some("udp"), Some(5)),
        "{live}"
    );
    assert_eq!(session["client"].as_str(), Some(client.address().to_string().as_str()));
    weir_says(&["kill", &session["id"].to_string()]);
    assert_eq!(weir.wait_for_records(1)[0].end(), ("killed", "weir"));
    // The client does not notice: its next datagram opens another one.
    assert_eq!(client.ask(&weir.address("main"), "x"), "x");
}
