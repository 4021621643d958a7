//! The access log beyond endings: interim records, rotation, hostile bytes, both forms.

use nix::sys::signal::Signal;

use super::common::{Launch, Record, Server, client, wait_until};

fn config(log: &str, server: &Server) -> String {
    format!(
        "
workers: 1
log: {log}
listeners: {{main: {{bind: ['127.0.0.1:0'], pool: main}}}}
pools: {{main: {{backends: [{{name: one, address: '{}'}}]}}}}
",
        server.address
    )
}

#[test]
fn a_long_connection_is_logged_while_it_lives() {
    let server = Server::echo();
    let weir = Launch::new(&config("{access: stdout, interim: 1s}", &server)).start();
    let mut stream = client::connect(&weir.address("main"));
    client::round_trip(&mut stream, b"12345");
    let interim = || weir.stdout().into_iter().filter(|line| line.ends_with("interim=true"));
    let knows_all = |line: &String| {
        let parts = [" bytes_up=5 ", " bytes_down=5 ", " closed_by=- ", " cause=- "];
        parts.iter().all(|part| line.contains(part))
    };
    // There may be others from before the bytes came back.
    wait_until("two interim records", || interim().filter(knows_all).count() >= 2);
    drop(stream);
    let last = weir.wait_for_records(1).remove(0);
    assert_eq!(last.end(), ("finished", "client"));
    let id = format!(" id={} ", last.id);
    assert!(interim().all(|line| line.contains(&id)), "one connection, one id");
}

#[test]
fn a_rotated_log_is_opened_again_on_hup_and_every_record_is_in_one_of_the_files() {
    let server = Server::echo();
    let dir = tempfile::tempdir().unwrap();
    let (path, rotated) = (dir.path().join("access.log"), dir.path().join("access.log.1"));
    let log = format!("{{access: '{}', format: json}}", path.display());
    let weir = Launch::new(&config(&log, &server)).start();
    let main = weir.address("main");
    let connect = |count: usize| {
        for _ in 0..count {
            client::round_trip(&mut client::connect(&main), b"x");
        }
    };
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    connect(20);
    std::fs::rename(&path, &rotated).unwrap();
    connect(20);
    weir.signal(Signal::SIGHUP);
    // The file is changed by the thread that writes it, in its own time: until then records go to the old one.
    let mut count = 40;
    wait_until("a record is in the new file", || {
        connect(1);
        count += 1;
        read(&path).lines().count() > 0
    });
    connect(20);
    count += 20;
    wait_until("every record is written", || {
        read(&path).lines().count() + read(&rotated).lines().count() == count
    });
    assert!(read(&path).lines().count() >= 20);
    let all = read(&rotated) + &read(&path);
    let mut ids: Vec<String> = all
        .lines()
        .map(|line| Record::parse(line).expect("a whole record").id)
        .collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), count);
}

/// Break tried: a reload that follows the level only.
#[test]
fn a_reload_changes_the_form_of_the_event_log_too() {
    let server = Server::echo();
    let weir = Launch::new(&config("{format: text}", &server)).start();
    weir.rewrite(&config("{format: json}", &server));
    weir.signal(Signal::SIGHUP);
    let line = weir.wait_for_line("reloaded: generation 2");
    let line: serde_json::Value = serde_json::from_str(&line).expect("an object");
    assert_eq!(line["level"], "info");
}
