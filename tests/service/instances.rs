//! One weir for one configuration.

use super::common::{Launch, Server, Weir};

fn yaml(server: &Server, admin: &str) -> String {
    format!(
        "admin: {admin}\nlog: {{access: off}}\nlisteners: {{main: {{bind: '127.0.0.1:0', pool: main}}}}\n\
         pools: {{main: {{backends: ['{}']}}}}\n",
        server.address
    )
}

/// Break tried: binding the admin socket without asking whether somebody answers there.
#[test]
fn a_second_one_refuses_and_says_who_is_there() {
    let server = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let admin = dir.path().join("admin.sock").display().to_string();
    let first = Weir::start(&yaml(&server, &admin));
    let mut second = Launch::new(&yaml(&server, &admin)).spawn();
    let status = second.wait_for_end();
    assert_eq!(status.code(), Some(1));
    let said = second.stderr().join("\n");
    let who = format!("another weir (pid {}) is running there", first.pid());
    assert!(said.contains(&who), "{said}");
    // The first one is still reachable.
    assert!(std::os::unix::net::UnixStream::connect(&admin).is_ok());
    first.stop();
}
