//! Members of a pool by keys of the cluster: with TLS and a password, in the sandbox; keys that come, change, make no sense and go;
//! members of the cluster that are killed, and what they have compacted.

use crate::cluster::{Cluster, possible};
use crate::common::server::{bind, loopback};
use crate::common::{Launch, Port, Server, client, operator, wait_until};

#[test]
fn members_by_keys() {
    if !possible() {
        return;
    }
    let cluster = Cluster::secure();
    let netns = &cluster.members[0].netns;
    let port = Port::reserve().number;
    let _servers: Vec<Server> = netns.enter(|| {
        let named = [(1, "a"), (2, "b"), (3, "c")];
        named
            .map(|(last, name)| Server::named_on(bind((loopback(last), port)), name))
            .into()
    });
    let put = |key: &str, value: &str| drop(cluster.etcdctl(&["put", &format!("/weir/web/{key}"), value]));
    put("a", &format!("127.0.0.1:{port}"));
    let servers = cluster.servers();
    let endpoints: Vec<String> = servers.endpoints.iter().map(|e| format!("'{e}'")).collect();
    let path = |file: &Option<std::path::PathBuf>| file.as_ref().unwrap().display().to_string();
    // Private keys that others can read are refused.
    let key = cluster.private(
        "weir.key",
        &std::fs::read_to_string(servers.key.as_ref().unwrap()).unwrap(),
    );
    let yaml = format!(
        "etcd: {{endpoints: [{}], ca: {}, cert: {}, key: {}, user: weir, password_file: {}}}\n\
         listeners: {{web: {{bind: '127.0.0.1:0', pool: web}}}}\n\
         pools: {{web: {{balance: round_robin, health: {{interval: 50ms}}, members: [{{etcd: /weir/web/}}]}}}}\n",
        endpoints.join(", "),
        path(&servers.ca),
        path(&servers.cert),
        key.display(),
        cluster.private("password", "pass\n").display(),
    );
    let weir = Launch::new(&yaml).inside(netns).env("WEIR_SANDBOX", "strict").start();
    let address = weir.address("web");
    let answers = |count: usize| {
        let names = netns.enter(|| {
            let fetch = |_| client::fetch(&address).unwrap_or_default();
            (0..count).map(fetch).collect::<std::collections::BTreeSet<String>>()
        });
        names.into_iter().collect::<Vec<_>>().join(" ")
    };
    let members = || operator::json(&weir, &["members", "web"]);
    let error = || members()["sources"][0]["error"].as_str().map(str::to_owned);
    assert_eq!(answers(4), "a", "known before it was ready");

    put("b", &format!("{{\"address\": \"127.0.0.2:{port}\", \"weight\": 2}}"));
    wait_until("b has come", || answers(9) == "a b");
    let document = members();
    let b = document["members"]
        .as_array()
        .unwrap()
        .iter()
        .find(|m| m["name"] == "b")
        .unwrap();
    assert_eq!((&b["weight"], &b["source"]), (&2.into(), &"etcd:/weir/web/".into()));
    put("c", "nonsense");
    wait_until("it is said", || error().is_some_and(|e| e.contains("key \"c\"")));
    assert_eq!(answers(9), "a b");
    put("c", &format!("127.0.0.3:{port}"));
    wait_until("c has come", || answers(9) == "a b c");
    assert_eq!(error(), None);
    cluster.etcdctl(&["del", "/weir/web/a"]);
    wait_until("a has gone", || answers(9) == "b c");
    cluster.etcdctl(&["del", "--prefix", "/weir/web/"]);
    wait_until("none are left", || error().is_some_and(|e| e.contains("no members")));
    assert_eq!(answers(9), "b c");

    // One of three is as good as none.
    (0..3).for_each(|member| cluster.kill(member));
    wait_until("nobody answers", || error().is_some_and(|e| !e.contains("no members")));
    assert_eq!(answers(9), "b c");
    (0..3).for_each(|member| cluster.restart(member));
    cluster.leader();
    put("a", &format!("127.0.0.1:{port}"));
    let found: serde_json::Value =
        serde_json::from_str(&cluster.etcdctl(&["get", "/weir/web/a", "-w", "json"])).unwrap();
    cluster.etcdctl(&["compact", &found["header"]["revision"].to_string()]);
    wait_until("it is followed again", || answers(4) == "a");
    put("b", &format!("127.0.0.2:{port}"));
    wait_until("and on", || answers(9) == "a b");
    assert_eq!(error(), None);
}
