//! Addresses that are limited to an interface: a balancer with two networks whose hosts have the same addresses. It needs root.
//!
//! The kernels of these tests have no VRF; one is an interface like the others here.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6, UdpSocket};
use std::time::Duration;

use nix::net::if_::if_nametoindex;
use nix::sys::signal::Signal;

use super::Service;
use super::common::netns::{Netns, link};
use super::common::operator::{ask, said, status};
use super::common::{PATIENCE, Server, client, command, server, wait_until};

/// Two networks of one balancer, `eth0` and `eth1`. In each there is a client 10.9.0.2, and the balancer is 10.9.0.1.
struct Net {
    balancer: Netns,
    clients: [Netns; 2],
}

impl Net {
    fn new() -> Net {
        let net = Net {
            balancer: Netns::new("balancer"),
            clients: [Netns::new("red"), Netns::new("blue")],
        };
        for interface in ["all", "default"] {
            // Where a packet comes from says nothing of where it belongs here.
            net.balancer
                .sysctl(&format!("net.ipv4.conf.{interface}.rp_filter"), "0");
        }
        (0..2).for_each(|ix| net.plug(ix));
        net
    }

    fn plug(&self, ix: usize) {
        let name = format!("eth{ix}");
        let ends = [(&self.balancer, "10.9.0.1/24"), (&self.clients[ix], "10.9.0.2/24")];
        link(&name, ends);
        for (host, address) in [
            (&self.balancer, "fd09::1/64"),
            (&self.clients[ix], "fd09::2/64"),
            (&self.balancer, "fe80::9/64"),
        ] {
            host.ip(&["-6", "addr", "add", address, "dev", &name, "nodad"]);
        }
        wait_until("link-local addresses can be used", || {
            self.clients[ix].ip(&["-6", "addr", "show", "tentative"]).is_empty()
        });
    }

    fn unplug(&self, ix: usize) {
        self.balancer.ip(&["link", "delete", &format!("eth{ix}")]);
    }

    fn server(&self, name: &str) -> Server {
        let listener = self
            .balancer
            .enter(|| server::bind("127.0.0.1:0".parse::<SocketAddr>().unwrap()));
        Server::named_on(listener, name)
    }

    /// A server that sends datagrams back, with its name before them.
    fn udp_server(&self) -> SocketAddr {
        let socket = self.balancer.enter(|| UdpSocket::bind("127.0.0.1:0").unwrap());
        let address = socket.local_addr().unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..length], from);
            }
        });
        address
    }

    fn fetch(&self, ix: usize, address: &str) -> std::io::Result<String> {
        self.clients[ix].enter(|| client::fetch(address))
    }

    /// What a client hears back from a port for what it says.
    fn say(&self, ix: usize, from: &str, to: &str, text: &str) -> Option<String> {
        let socket = self.clients[ix].enter(|| UdpSocket::bind(from).unwrap());
        socket.connect(to).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
        let mut buffer = [0; 2048];
        let deadline = std::time::Instant::now() + PATIENCE;
        // A datagram may be lost while somebody else learns who is where.
        while std::time::Instant::now() < deadline {
            if socket.send(text.as_bytes()).is_err() {
                return None;
            }
            if let Ok(length) = socket.recv(&mut buffer) {
                return Some(String::from_utf8_lossy(&buffer[..length]).into_owned());
            }
        }
        None
    }
}

fn configuration(red: &str, blue: &str, servers: [&Server; 2], udp: SocketAddr) -> String {
    format!(
        "workers: 2\nshutdown_grace: 60s\nlisteners:\n  red: {{bind: [{red}], pool: red}}\n  blue: {{bind: [{blue}], pool: blue}}\n  \
         dns: {{protocol: udp, bind: ['0.0.0.0:53%eth0', '0.0.0.0:53%eth1'], pool: dns}}\n\
         pools:\n  red: {{backends: ['{}']}}\n  blue: {{backends: ['{}']}}\n  dns: {{backends: ['{udp}'], health: {{type: none}}}}\n",
        servers[0].address, servers[1].address
    )
}

/// The same addresses and ports on both sides, for listeners that differ by their interface alone.
///
/// Seen to fail without SO_BINDTOIFINDEX, and, for the datagrams, without the interface in what tells sessions apart.
#[test]
fn an_interface_tells_listeners_and_clients_apart() {
    let net = Net::new();
    let (red, blue, udp) = (net.server("red"), net.server("blue"), net.udp_server());
    let yaml = configuration(
        "'0.0.0.0:80%eth0', '10.9.0.1:81%eth0', '[::]:80%eth0', '[fe80::9%eth0]:82', '0.0.0.0:8000-8002%eth0'",
        "'0.0.0.0:80%eth1', '10.9.0.1:81%eth1', '[::]:80%eth1', '[fe80::9%eth1]:82', '0.0.0.0:8000-8002%eth1'",
        [&red, &blue],
        udp,
    );
    let service = Service::start(&yaml, |launch| launch.inside(&net.balancer));
    for (ix, name) in ["red", "blue"].into_iter().enumerate() {
        for address in ["10.9.0.1:80", "10.9.0.1:81", "[fd09::1]:80", "10.9.0.1:8002"] {
            assert_eq!(net.fetch(ix, address).unwrap(), name, "{address}");
        }
        let local = net.clients[ix].enter(|| {
            let index = if_nametoindex(format!("eth{ix}").as_str()).unwrap();
            let to = SocketAddrV6::new("fe80::9".parse::<Ipv6Addr>().unwrap(), 82, 0, index);
            client::fetch_from(to.into())
        });
        assert_eq!(local.unwrap(), name, "link-local");
    }
    // The loopback interface is neither; what the balancer sends to an address of its own counts as coming in where that is.
    for address in ["127.0.0.1:80", "[::1]:80"] {
        let error = net.balancer.enter(|| client::fetch(address)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{address}");
    }
    // Two clients with the same address and port.
    for _ in 0..3 {
        for (ix, text) in ["of red", "of blue"].into_iter().enumerate() {
            let answer = net.say(ix, "10.9.0.2:5000", "10.9.0.1:53", text);
            assert_eq!(answer.as_deref(), Some(text));
        }
    }
    let status = status(&service.weir);
    let listener = |name: &str| {
        let listeners = status["listeners"].as_array().unwrap();
        listeners.iter().find(|l| l["name"] == name).unwrap().clone()
    };
    assert_eq!(listener("dns")["active"], 2);
    assert_eq!(listener("red")["bind"][0], "0.0.0.0:80%eth0");
    assert_eq!(listener("red")["bind"][4], "0.0.0.0:8000-8002%eth0");
    assert_eq!(listener("red")["accepted"], 5);
    assert!(service.weir.addresses("blue").contains(&"0.0.0.0:80%eth1".to_owned()));
    let records = service.weir.wait_for_records(10);
    let used: Vec<String> = records.iter().map(|record| record.local.clone()).collect();
    assert!(used.iter().all(|local| !local.contains("%eth")), "{used:?}");
    assert!(used.contains(&"10.9.0.1:81".to_owned()), "{used:?}");
}

/// Seen to fail without SO_BINDTOIFINDEX.
#[test]
fn a_reload_binds_to_other_interfaces_and_keeps_what_stays() {
    let net = Net::new();
    let (red, blue, udp) = (net.server("red"), net.server("blue"), net.udp_server());
    let servers = [&red, &blue];
    let before = configuration("'0.0.0.0:80%eth0'", "'0.0.0.0:80%eth1'", servers, udp);
    let service = Service::start(&before, |launch| launch.inside(&net.balancer));
    let weir = &service.weir;
    let fetch = |ix| net.fetch(ix, "10.9.0.1:80").unwrap();
    assert_eq!([fetch(0), fetch(1)], ["red", "blue"]);

    // They change places; the third one keeps its session.
    assert!(net.say(0, "10.9.0.2:5000", "10.9.0.1:53", "before").is_some());
    weir.rewrite(&configuration("'0.0.0.0:80%eth1'", "'0.0.0.0:80%eth0'", servers, udp));
    said(weir, &["reload"]);
    assert_eq!([fetch(0), fetch(1)], ["blue", "red"]);
    assert!(net.say(0, "10.9.0.2:5000", "10.9.0.1:53", "after").is_some());
    let accepted = &status(weir)["listeners"][2]["accepted"];
    assert_eq!(*accepted, 1);

    // One that is not there changes nothing.
    weir.rewrite(&configuration("'0.0.0.0:80%eth7'", "'0.0.0.0:80%eth1'", servers, udp));
    let refused = ask(weir, &["reload"]);
    let why = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success());
    assert!(
        why.contains("cannot bind 0.0.0.0:80%eth7") && why.contains("no such interface"),
        "{why}"
    );
    assert_eq!([fetch(0), fetch(1)], ["blue", "red"]);

    // One that is made anew is another one of the same name.
    weir.rewrite(&before);
    said(weir, &["reload"]);
    net.unplug(0);
    net.plug(0);
    said(weir, &["reload"]);
    assert_eq!([fetch(0), fetch(1)], ["red", "blue"]);
    assert!(net.say(0, "10.9.0.2:5001", "10.9.0.1:53", "anew").is_some());

    // Without the interface it is for everybody.
    weir.rewrite(&configuration("'0.0.0.0:80'", "'0.0.0.0:81%eth1'", servers, udp));
    said(weir, &["reload"]);
    let here = net.balancer.enter(|| client::fetch("127.0.0.1:80"));
    assert_eq!(here.unwrap(), "red");
}

/// Seen to fail with sockets of another interface that are claimed by their address alone.
#[test]
fn an_upgrade_hands_sockets_over_with_their_interface() {
    let net = Net::new();
    let (red, blue, udp) = (net.server("red"), net.server("blue"), net.udp_server());
    let servers = [&red, &blue];
    let yaml = configuration("'0.0.0.0:80%eth0'", "'0.0.0.0:80%eth1'", servers, udp);
    let service = Service::start(&yaml, |launch| launch.inside(&net.balancer));
    service.told("READY=1");
    let fetch = |ix| net.fetch(ix, "10.9.0.1:80").unwrap();
    assert!(net.say(0, "10.9.0.2:5000", "10.9.0.1:53", "before").is_some());
    let sockets = || net.balancer.enter(socket_inodes);
    let before = sockets();
    let second = service.upgrade(service.weir.pid());
    assert_eq!([fetch(0), fetch(1)], ["red", "blue"]);
    assert!(net.say(1, "10.9.0.2:5000", "10.9.0.1:53", "other side").is_some());
    assert!(net.say(0, "10.9.0.2:5000", "10.9.0.1:53", "after").is_some());
    assert_eq!(sockets(), before, "the same sockets serve");

    // The next one finds them on the other interface in its file.
    service.weir.rewrite(
        &configuration("'0.0.0.0:80%eth1'", "'0.0.0.0:80'", servers, udp)
            .replace("'0.0.0.0:80']", "'0.0.0.0:80%eth0']"),
    );
    service.upgrade(second);
    assert_eq!([fetch(0), fetch(1)], ["blue", "red"]);
}

/// Inodes of listening TCP sockets at port 80.
fn socket_inodes() -> Vec<String> {
    let shown = command("ss").args(["-Hltne", "sport = :80"]).output().unwrap();
    let text = String::from_utf8_lossy(&shown.stdout).into_owned();
    let inode = |line: &str| {
        line.split_whitespace()
            .find_map(|word| Some(word.strip_prefix("ino:")?.to_owned()))
    };
    let mut inodes: Vec<String> = text.lines().filter_map(inode).collect();
    inodes.sort();
    assert!(inodes.len() >= 4, "{text}");
    inodes
}

#[test]
fn an_interface_that_is_missing_is_told_of() {
    let net = Netns::new("bare");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("weir.yaml");
    let yaml = format!(
        "admin: {}/admin.sock\nlisteners: {{web: {{bind: '0.0.0.0:80%eth7', pool: web}}}}\npools: {{web: {{backends: ['127.0.0.1:1']}}}}\n",
        dir.path().display()
    );
    std::fs::write(&file, yaml).unwrap();
    let weir = |word: &str| {
        let mut start = net.command(env!("CARGO_BIN_EXE_weir"));
        let output = start.args([word, "-c"]).arg(&file).output().unwrap();
        (
            output.status.success(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    };
    let (accepted, said) = weir("check");
    assert!(accepted, "{said}");
    assert!(
        said.contains("listeners.web.bind: warning: `0.0.0.0:80%eth7`: there is no interface `eth7` here"),
        "{said}"
    );
    let (started, said) = weir("run");
    assert!(!started);
    assert!(
        said.contains("listener web: cannot bind 0.0.0.0:80%eth7: No such device") && said.contains("ip link"),
        "{said}"
    );
}

/// The socket of a unit with BindToDevice= serves a listener whether the file names the interface or not.
///
/// Seen to fail with sockets that are known by their address alone: further ones were for all interfaces.
#[test]
fn a_socket_of_the_service_manager_keeps_its_interface() {
    for bind in ["0.0.0.0:80", "0.0.0.0:80%eth0"] {
        let net = Net::new();
        let red = net.server("red");
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("weir.yaml");
        let yaml = format!(
            "admin: {}/admin.sock\nworkers: 2\nlog: {{access: off}}\nlisteners: {{web: {{bind: '{bind}', pool: web}}}}\n\
             pools: {{web: {{backends: ['{}']}}}}\n",
            dir.path().display(),
            red.address
        );
        std::fs::write(&file, yaml).unwrap();
        // As systemd does it: LISTEN_FDS from descriptor 3 on, for this process.
        let script = "import os, socket, sys\n\
            s = socket.socket()\n\
            s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n\
            s.setsockopt(socket.SOL_SOCKET, 25, b'eth0\\0')\n\
            s.bind(('0.0.0.0', 80)); s.listen()\n\
            os.dup2(s.fileno(), 3, True); os.set_inheritable(3, True)\n\
            os.environ.update(LISTEN_FDS='1', LISTEN_FDNAMES='web', LISTEN_PID=str(os.getpid()))\n\
            os.execv(sys.argv[1], sys.argv[1:])\n";
        let weir = super::common::Launch::new("")
            .file(file.to_str().unwrap())
            .inside(&net.balancer)
            .behind(&["python3", "-c", script])
            .start();
        assert_eq!(net.fetch(0, "10.9.0.1:80").unwrap(), "red", "{bind}");
        let error = net.balancer.enter(|| client::fetch("127.0.0.1:80")).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{bind}");
        assert!(!weir.stderr().iter().any(|line| line.contains("fits no listener")));
        weir.signal(Signal::SIGTERM);
    }
}
