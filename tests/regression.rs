//! What was wrong once, told as stories: given this, when that is done, then this is seen.
//!
//! A story is for a fault of the running program that no other test would notice by its subject. It is told in the words of
//! [`World`]; a comment says what was seen before, with the commit that repaired it, and the story has been seen to fail
//! without that repair. What takes more words than a few lines belongs to the test of its subject.

mod common;

use std::net::TcpStream;

use common::{Record, Server, Weir, client, operator};

/// A weir with one listener `main`, a pool of backends that tell their names, and what can be done with them.
struct World {
    weir: Weir,
    _backends: Vec<Server>,
}

/// Backends with these names, each a `server`; `pool` has further keys of their pool, `top` those of the whole file.
#[track_caller]
fn given(server: fn(&str) -> Server, names: &[&str], pool: &str, top: &str) -> World {
    let backends: Vec<Server> = names.iter().map(|name| server(name)).collect();
    let listed = names.iter().zip(&backends);
    let listed: Vec<String> = listed
        .map(|(name, server)| format!("{{name: {name}, address: '{}'}}", server.address))
        .collect();
    let yaml = format!(
        "{top}\nlisteners: {{main: {{bind: '127.0.0.1:0', pool: main}}}}\npools: {{main: {{{pool}, backends: [{}]}}}}\n",
        listed.join(", ")
    );
    World {
        weir: Weir::start(&yaml),
        _backends: backends,
    }
}

impl World {
    /// `weir WORDS...`, which must succeed.
    #[track_caller]
    fn order(&self, words: &str) {
        operator::said(&self.weir, &words.split(' ').collect::<Vec<_>>());
    }

    /// A new connection, and the (one-letter) name of the backend that serves it.
    #[track_caller]
    fn visit(&self) -> (String, TcpStream) {
        let mut stream = client::connect(&self.weir.address("main"));
        let mut name = [0];
        std::io::Read::read_exact(&mut stream, &mut name).expect("the backend's name");
        (char::from(name[0]).to_string(), stream)
    }

    /// The access records, once there are so many.
    #[track_caller]
    fn records(&self, count: usize) -> Vec<Record> {
        self.weir.wait_for_records(count)
    }
}

/// With one connection left to close, a drain asked the first worker again and again, and others kept theirs. (b207302; seen
/// to fail with the rest asked for by number instead of as all that are left.)
#[test]
fn the_last_connection_of_a_drain_ends_whichever_worker_has_it() {
    let keys = "on_drain: {finish: 100ms}, health: {type: none}";
    let world = given(Server::named_holder, &["a"], keys, "workers: 3");
    for round in 1..=6 {
        let (_, mut held) = world.visit();
        world.order("backend main/a drain");
        client::read_to_reset(&mut held);
        assert_eq!(world.records(round).last().unwrap().cause, "drained");
        world.order("backend main/a ready");
    }
}

/// A backend that owed turns at its old weight paid them back at the new one: all connections went to the other. (3980932;
/// seen to fail with the credits kept.)
#[test]
fn new_weights_owe_nothing_for_the_old_ones() {
    let world = given(Server::named, &["a", "b"], "health: {type: none}", "workers: 1");
    world.order("backend main/a weight 1000");
    let mut visits = 0;
    let mut visit = || {
        let (name, _) = world.visit();
        visits += 1;
        // Nobody has a connection when the next one is placed.
        world.records(visits);
        name
    };
    (0..40).for_each(|_| drop(visit()));
    world.order("backend main/a weight 1");
    let mut names = [visit(), visit(), visit(), visit()];
    names.sort();
    assert_eq!(names, ["a", "a", "b", "b"]);
}
