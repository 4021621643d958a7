//! Keys in, frames out.

use super::*;
use crate::api::status::{Backend, Connection, Listener, Pool, Process, Status, Vip};
use model::Mode;

fn connection(id: u64, listener: &str, backend: &str, bytes_down: u64) -> Connection {
    Connection {
        id,
        protocol: "tcp".into(),
        listener: listener.into(),
        client: format!("192.0.2.{id}:40000"),
        pool: "web".into(),
        backend: backend.into(),
        engine: "proxy".into(),
        worker: 0,
        state: "open".into(),
        age_ms: 61_000,
        idle_ms: 900,
        bytes_up: 10,
        bytes_down,
    }
}

fn backend(name: &str, state: &str, total: u64, bytes_out: u64) -> Backend {
    Backend {
        name: name.into(),
        address: "10.0.0.11:8080".into(),
        state: state.into(),
        active: 3,
        total,
        bytes_out,
        connect_ms: Some(0.312),
        ..Backend::default()
    }
}

/// The world after `n` seconds.
fn sample(n: u64) -> Sample {
    Sample {
        throughput: (0..=n).map(|n| n * 1000).collect(),
        new: vec![5; n as usize],
        connections: vec![
            connection(1, "web", "a", n * 1_000_000),
            connection(2, "web", "b", n * 9_000_000),
            connection(3, "tls", "a", n * 5_000),
        ],
        status: Status {
            version: "0.1.0".into(),
            uptime_s: n,
            process: Process {
                connections: 3,
                ..Process::default()
            },
            listeners: vec![Listener {
                name: "web".into(),
                protocol: "tcp".into(),
                engine: "kernel".into(),
                bind: vec!["0.0.0.0:80".into(), "[::]:80".into()],
                pool: "web".into(),
                active: 3,
                accepted: 7 * n,
                bytes_out: n * 2_000_000,
                ..Listener::default()
            }],
            pools: vec![Pool {
                name: "web".into(),
                backends: vec![
                    backend("a", "up", 7 * n, n * 1_500_000),
                    backend("b", "down", 0, n * 9_000_000),
                ],
                ..Pool::default()
            }],
            vips: vec![Vip {
                address: "10.0.0.100/24".into(),
                interface: "eth0".into(),
                state: "active".into(),
                holder: Some("a".into()),
                since_s: 9,
                reason: "first in order".into(),
                ..Vip::default()
            }],
            ..Status::default()
        },
    }
}

/// A model that has seen two samples, one second apart.
fn seen() -> Model {
    let (mut model, start) = (Model::default(), Instant::now());
    model.sample(start, sample(10));
    model.sample(start + Duration::from_secs(1), sample(11));
    model
}

fn frame(model: &Model, width: u16, height: u16) -> String {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, model, true)).unwrap();
    frame_text(terminal.backend())
}

fn ids(model: &Model) -> Vec<String> {
    model.rows().into_iter().map(|row| row.id).collect()
}

fn press(model: &mut Model, keys: &str) -> Wish {
    let mut wish = Wish::Nothing;
    for key in keys.chars() {
        wish = model.press(match key {
            '⏎' => Press::Enter,
            '⎋' => Press::Escape,
            '↓' => Press::Down,
            '↑' => Press::Up,
            '⇥' => Press::Tab,
            c => Press::Char(c),
        });
    }
    wish
}

#[test]
fn a_frame_of_80_by_24_shows_what_matters() {
    let text = frame(&seen(), 80, 24);
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 24);
    for part in [
        "weir 0.1.0 up 11s  3 live  7 new/s  0 B/s in  2.0 MB/s out",
        "to clients, peak 11.0 kB/s",
        " 1 Backends  2 Listeners  3 Connections  4 VIPs",
        " web/b      10.0.0.11:8080 down",
        "  9.0 MB  ",
        "0.31 ms",
        "q quit",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(lines.iter().all(|line| line.chars().count() <= 80), "{text}");
    let down = text.find("web/b").unwrap();
    assert!(down < text.find("web/a").unwrap(), "the busiest first:\n{text}");
}

#[test]
fn frames_of_any_size_are_drawn() {
    let mut model = seen();
    for mode in [Mode::Table, Mode::Help, Mode::Detail(1), Mode::Confirm(1), Mode::Filter] {
        model.mode = mode;
        for view in View::ALL {
            model.view = view;
            for (width, height) in [(1, 1), (10, 3), (40, 10), (80, 24), (200, 60)] {
                frame(&model, width, height);
            }
        }
    }
    frame(&Model::default(), 80, 24);
}

#[test]
fn keys_do_what_the_help_says() {
    // (keys, ids of the rows then, mode then)
    let all = ["conn 2", "conn 1", "conn 3"];
    for (keys, rows, mode) in [
        ("", &["backend web/b", "backend web/a"][..], Mode::Table),
        ("r", &["backend web/a", "backend web/b"], Mode::Table),
        ("2", &["listener web"], Mode::Table),
        ("⇥⇥⇥", &["vip 10.0.0.100/24"], Mode::Table),
        ("3", &all, Mode::Table),
        ("3r", &["conn 3", "conn 1", "conn 2"], Mode::Table),
        // Sorted by the next column, which is the first: ids, greatest first.
        ("3s", &["conn 3", "conn 2", "conn 1"], Mode::Table),
        ("3S", &["conn 1", "conn 2", "conn 3"], Mode::Table),
        ("3/TLS⏎", &[], Mode::Table),
        ("3/2.3:⏎", &["conn 3"], Mode::Table),
        ("3/2.3:⎋", &all, Mode::Table),
        ("3/2.3:⏎⎋", &all, Mode::Table),
        // Drill down: the second backend's connections, one in full, and back.
        ("↓⏎", &["conn 1", "conn 3"], Mode::Table),
        ("↓⏎⏎", &["conn 1", "conn 3"], Mode::Detail(1)),
        ("↓⏎⏎x", &["conn 1", "conn 3"], Mode::Table),
        ("↓⏎⎋", &all, Mode::Table),
        ("2⏎", &["conn 2", "conn 1"], Mode::Table),
        ("?", &["backend web/b", "backend web/a"], Mode::Help),
        ("?x", &["backend web/b", "backend web/a"], Mode::Table),
        ("3↓k", &all, Mode::Confirm(1)),
        ("3↓kn", &all, Mode::Table),
        ("k", &["backend web/b", "backend web/a"], Mode::Table),
    ] {
        let mut model = seen();
        assert_eq!(press(&mut model, keys), Wish::Nothing, "{keys}");
        assert_eq!(
            (ids(&model), &model.mode),
            (rows.iter().map(|id| id.to_string()).collect(), &mode),
            "{keys}"
        );
    }
}

#[test]
fn orders_leave_the_model_only_when_confirmed() {
    for (keys, wish) in [
        ("q", Wish::Quit),
        ("3↓ky", Wish::Kill(1)),
        ("3⏎ky", Wish::Kill(2)),
        ("3⏎q", Wish::Quit),
        ("/q", Wish::Nothing),
        ("3kq", Wish::Nothing),
    ] {
        assert_eq!(press(&mut seen(), keys), wish, "{keys}");
    }
}

#[test]
fn the_selection_stays_on_its_row_when_the_order_changes() {
    let mut model = seen();
    press(&mut model, "3↓");
    let mut next = sample(12);
    next.connections[0].bytes_down += 1_000_000_000;
    model.sample(Instant::now() + Duration::from_secs(2), next);
    assert_eq!(ids(&model)[0], "conn 1");
    assert_eq!(model.selected, 0);
}

#[test]
fn nothing_moves_while_paused() {
    let mut model = seen();
    press(&mut model, "p");
    model.sample(Instant::now() + Duration::from_secs(2), Sample::default());
    assert_eq!(ids(&model).len(), 2);
    press(&mut model, "p");
    model.sample(Instant::now() + Duration::from_secs(3), Sample::default());
    assert_eq!(ids(&model).len(), 0);
}

#[test]
fn a_connection_that_is_new_has_a_rate_at_once_and_a_listener_has_not() {
    let mut model = seen();
    let mut next = sample(12);
    next.connections.push(connection(9, "web", "a", 1_000_000_000));
    next.status.listeners.push(Listener {
        name: "new".into(),
        bytes_out: 1_000_000_000,
        ..Listener::default()
    });
    model.sample(Instant::now() + Duration::from_secs(2), next);
    assert_eq!(
        {
            press(&mut model, "3");
            ids(&model)[0].clone()
        },
        "conn 9"
    );
    assert_eq!(
        {
            press(&mut model, "2");
            ids(&model)[0].clone()
        },
        "listener web"
    );
}
