//! The page in a real browser, `weir top` in a real terminal.

use super::common::{Browser, Port, Server, Weir, client, find, have, wait_until};
use super::{all_up, ask};

fn weir(metrics: &str) -> (Weir, Server) {
    let server = Server::echo();
    let weir = Weir::start(&format!(
        "
workers: 1
metrics: '{metrics}'
listeners: {{front: {{bind: ['127.0.0.1:0'], pool: back}}}}
pools: {{back: {{backends: [{{name: solo, address: '{}'}}]}}}}
",
        server.address
    ));
    all_up(&weir);
    (weir, server)
}

#[test]
fn the_page_is_drawn_in_a_browser() {
    if !have(&["chromium"]) {
        return;
    }
    let port = Port::reserve();
    let (weir, _server) = weir(&port.address().to_string());
    let mut stream = client::connect(&weir.address("front"));
    client::round_trip(&mut stream, &[1; 1000]);
    wait_until("two samples are there", || {
        let (_, history) = super::get(&port.address().to_string(), "/history");
        serde_json::from_str::<serde_json::Value>(&history).unwrap()["seq"].as_u64() > Some(2)
    });
    for size in ["1280,900", "500,900"] {
        let dom = Browser::new(&[&format!("--window-size={size}")]).dom(&format!("http://{}/", port.address()));
        for part in [
            ">serving</p>",
            ">solo</td>",
            "least_conn, 1 of 1 take new work",
            "Live connections and sessions",
            // A line was drawn.
            "d=\"M",
        ] {
            assert!(dom.contains(part), "{part} in\n{dom}");
        }
        assert!(!dom.contains("No answer from weir"), "{dom}");
    }
}

/// A terminal of 80 by 24, on a tmux server of its own.
struct Terminal {
    server: String,
    _dir: tempfile::TempDir,
}

impl Terminal {
    fn start(words: &str) -> Terminal {
        let dir = tempfile::tempdir().unwrap();
        let server = dir.path().join("tmux").display().to_string();
        let terminal = Terminal { server, _dir: dir };
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "24", words]);
        terminal
    }

    fn tmux(&self, words: &[&str]) -> String {
        let mut tmux = std::process::Command::new(find("tmux").unwrap());
        let output = tmux.arg("-S").arg(&self.server).args(words).output().unwrap();
        super::text(&output.stdout)
    }

    fn press(&self, keys: &[&str]) {
        keys.iter().for_each(|key| drop(self.tmux(&["send-keys", key])));
    }

    #[track_caller]
    fn wait_for(&self, parts: &[&str]) -> String {
        let mut screen = String::new();
        wait_until(&format!("{parts:?} on the screen"), || {
            screen = self.tmux(&["capture-pane", "-p"]);
            parts.iter().all(|part| screen.contains(part))
        });
        screen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

#[test]
fn top_is_driven_by_keys() {
    if !have(&["tmux"]) {
        return;
    }
    let port = Port::reserve();
    let (weir, _server) = weir(&port.address().to_string());
    let mut stream = client::connect(&weir.address("front"));
    client::round_trip(&mut stream, b"hello");
    let (binary, admin) = (env!("CARGO_BIN_EXE_weir"), weir.admin());
    let terminal = Terminal::start(&format!(
        "{binary} top --interval 200ms --socket {}; cat",
        admin.display()
    ));
    let local = stream.local_addr().unwrap().to_string();
    terminal.wait_for(&["back/solo", "up", "1 live", "q quit"]);
    terminal.press(&["2"]);
    terminal.wait_for(&["LISTENER", "front"]);
    terminal.press(&["Enter"]);
    terminal.wait_for(&["of front", &local]);
    terminal.press(&["/", "n", "o", "n", "e", "Enter"]);
    terminal.wait_for(&["nothing matches the filter"]);
    terminal.press(&["Escape"]);
    terminal.wait_for(&[&local]);
    terminal.press(&["Enter"]);
    terminal.wait_for(&["from client", "5 B"]);
    terminal.press(&["k"]);
    terminal.wait_for(&["End connection"]);
    terminal.press(&["y"]);
    terminal.wait_for(&["is ended"]);
    assert_eq!(client::read_to_reset(&mut stream), b"");
    terminal.press(&["?"]);
    terminal.wait_for(&["backends, listeners, connections, VIPs"]);
    terminal.press(&["x", "q"]);
    // The screen is given back: nothing of it is left.
    wait_until("the screen is empty", || {
        terminal.tmux(&["capture-pane", "-p"]).trim().is_empty()
    });
    assert!(ask(&weir, &["status"]).status.success());
}
