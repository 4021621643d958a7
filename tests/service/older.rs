//! From the package of an older version to this one and back, with the service at work.

use std::path::Path;
use std::process::{Command, Stdio};

use super::common::{have, run, skip, wait_until};
use super::root;
use super::systemd::{CONFIGURATION, Container, package, text};

/// What the unit of today lets through for the program's own sandbox, and what the first one did.
const FILTERS: [&str; 2] = [
    "SystemCallFilter=capset seccomp landlock_create_ruleset landlock_add_rule landlock_restrict_self\n",
    "SystemCallFilter=capset\n",
];

/// The package as it might have been some versions ago: another number, the unit of then, a file that is gone since, one that was not there yet.
/// WEIR_OLDER names a program of then; without it the present one stands in.
fn older(package: &Path, into: &Path) {
    repack(package, &into.join("older.deb"), |tree| {
        let file = |name: &str| tree.join(name);
        let change = |name: &str, from: &str, to: &str| {
            let before = std::fs::read_to_string(file(name)).unwrap();
            let after = before.replacen(from, to, 1);
            assert_ne!(before, after, "{name} has no {from}");
            std::fs::write(file(name), after).unwrap();
        };
        change("DEBIAN/control", "\nVersion: ", "\nVersion: 0.0~");
        change("usr/lib/systemd/system/weir.service", FILTERS[0], FILTERS[1]);
        std::fs::write(file("usr/share/doc/weir/examples/gone.yaml"), "listeners: {}\n").unwrap();
        std::fs::remove_dir_all(file("usr/share/man/man5")).unwrap();
        if let Some(program) = std::env::var_os("WEIR_OLDER") {
            std::fs::copy(program, file("usr/bin/weir")).unwrap();
        }
    });
}

/// A package of a version that keeps the state of virtual addresses in another form.
fn stranger(package: &Path, into: &Path) {
    let form = weir::control::election::form();
    let (form, _) = form.split_once(',').unwrap();
    let other = format!("{}X", &form[..form.len() - 1]);
    repack(package, &into.join("stranger.deb"), |tree| {
        let program = tree.join("usr/bin/weir");
        let before = std::fs::read(&program).unwrap();
        run(Command::new("sed")
            .env("LC_ALL", "C")
            .args(["-i", &format!("s/{form}/{other}/g")])
            .arg(&program));
        assert!(std::fs::read(&program).unwrap() != before, "it has no {form}");
    });
}

/// Another package made of one.
fn repack(package: &Path, made: &Path, change: impl FnOnce(&Path)) {
    let tree = made.with_extension("tree");
    run(Command::new("dpkg-deb").arg("-R").args([package, &tree]));
    change(&tree);
    // It would not fit any more.
    let _ = std::fs::remove_file(tree.join("DEBIAN/md5sums"));
    run(Command::new("dpkg-deb")
        .args(["--root-owner-group", "-Zgzip", "-z1", "-b"])
        .args([&tree, made]));
    std::fs::remove_dir_all(tree).unwrap();
}

/// A download that goes on all the while, everything that the operator has written and ordered, and the address outlast both moves.
#[test]
fn an_older_package_is_upgraded_and_comes_back() {
    let needed = [
        "systemd-nspawn",
        "cargo-deb",
        "wrk",
        "curl",
        "nginx",
        "adduser",
        "dpkg-deb",
    ];
    if !have(&needed) || !root().join("target/debug/weir").exists() && !skip("not a debug build") {
        return;
    }
    let Some(machine) = Container::boot(|upper| {
        let home = upper.join("root");
        std::fs::create_dir(&home).unwrap();
        let package = package(&home);
        older(&package, &home);
        stranger(&package, &home);
        let server = |port: u16| {
            format!(
                "server {{ listen 127.0.0.1:{port}; location / {{ return 200 'hello'; }} location /big {{ root /srv; }} }}"
            )
        };
        let nginx = format!(
            "daemon off; pid /run/backend.pid; events {{}} http {{ access_log off; {} {} }}",
            server(8081),
            server(8082)
        );
        std::fs::write(home.join("nginx.conf"), nginx).unwrap();
        std::fs::create_dir(upper.join("srv")).unwrap();
        std::fs::write(upper.join("srv/big"), vec![b'x'; 48 << 20]).unwrap();
    }) else {
        return;
    };
    machine.run("systemd-run --unit nginx-backend nginx -c /root/nginx.conf");
    machine.run("dpkg -i /root/older.deb");
    assert!(machine.run("dpkg-query -W -f '${Version}' weir").starts_with("0.0~"));
    machine.run("test -e /usr/share/doc/weir/examples/gone.yaml");

    // What the operator does.
    machine.prepare_failover();
    let yaml = CONFIGURATION.replace(
        "backends: ['127.0.0.1:8081']",
        "backends: [{name: one, address: '127.0.0.1:8081'}, {name: two, address: '127.0.0.1:8082'}]",
    );
    machine.run(&format!("printf '%s' \"{yaml}\" > /etc/weir/weir.yaml"));
    machine.run(
        "mkdir -p /etc/systemd/system/weir.service.d; \
         printf '[Service]\\nLimitNOFILE=54321\\n' > /etc/systemd/system/weir.service.d/override.conf; systemctl daemon-reload",
    );
    machine.run("systemctl enable --now weir");
    wait_until("the virtual address is there", || machine.has_address());
    machine.run("weir backend web/two drain");
    let written = "find /etc/weir /etc/systemd/system/weir.service.d -type f | sort | xargs sha256sum; \
         stat -c '%n %U:%G %a' /etc/weir /etc/weir/*";
    let before = machine.run(written);
    let started = machine.property("ActiveEnterTimestampMonotonic");
    let first = machine.property("MainPID");

    let order = || {
        let status: serde_json::Value = serde_json::from_str(&machine.run("weir status --json")).unwrap();
        let backends = status["pools"][0]["backends"].as_array().unwrap();
        backends
            .iter()
            .map(|backend| format!("{} {}", backend["name"], backend["state"]))
            .collect::<Vec<_>>()
    };
    let kept = [r#""one" "up""#, r#""two" "drain""#];
    assert_eq!(order(), kept);
    // Slow enough to last over an upgrade.
    let download = || {
        let fetch = "curl --silent --show-error --limit-rate 6M http://127.0.0.1:79/big | cmp - /srv/big";
        machine.command(fetch).stdout(Stdio::null()).spawn().unwrap()
    };
    let runs_what_is_installed = |pid: &str| {
        machine.run(&format!("cmp /proc/{pid}/exe /usr/bin/weir"));
    };

    // To this version.
    let mut under_way = download();
    wait_until("the download has begun", || {
        machine.run("weir conns --json").contains("\"bytes_down\"")
    });
    let second = machine.upgrade("/root/weir.deb");
    runs_what_is_installed(&second);
    assert!(!machine.run("dpkg-query -W -f '${Version}' weir").starts_with("0.0~"));
    assert_eq!(
        machine.run("dpkg-query -W -f '${Conffiles}' weir").trim(),
        "",
        "nothing that dpkg would ask about"
    );
    assert_eq!(machine.run(written), before);
    assert_eq!(
        order(),
        kept,
        "what an operator has ordered is known to the new process"
    );
    assert_eq!(
        machine.property("ActiveEnterTimestampMonotonic"),
        started,
        "it was not restarted"
    );
    assert_eq!(machine.run("systemctl is-enabled weir").trim(), "enabled");
    machine.fail("test -e /usr/share/doc/weir/examples/gone.yaml");
    machine.run("man -w 5 weir.yaml");
    assert!(
        under_way.wait().unwrap().success(),
        "every byte of the download has come"
    );
    machine.wait_for_end(&first);
    // The new unit is loaded, with the operator's own lines; what it allows the process holds from the next start on.
    assert_eq!(machine.property("NeedDaemonReload"), "no");
    assert!(machine.property("SystemCallFilter").contains("landlock_restrict_self"));
    assert_eq!(machine.property("LimitNOFILE"), "54321");
    machine.run("systemctl reload weir");
    let sandbox = || {
        text(&machine.try_run("journalctl --no-pager -o cat _SYSTEMD_INVOCATION_ID=$(systemctl show --property InvocationID --value weir) | grep 'sandbox: without'").stdout)
    };
    assert!(
        sandbox().contains("sandbox: without"),
        "the filter of the older unit is still in force"
    );
    machine.run("systemctl restart weir");
    machine.serves();
    assert_eq!(sandbox(), "");

    // And back.
    machine.run("weir backend web/two drain");
    wait_until("the virtual address is there", || machine.has_address());
    let third = machine.property("MainPID");
    let mut under_way = download();
    let fourth = machine.upgrade("/root/older.deb");
    runs_what_is_installed(&fourth);
    assert!(machine.run("dpkg-query -W -f '${Version}' weir").starts_with("0.0~"));
    assert_eq!(machine.run(written), before);
    assert_eq!(order(), kept);
    assert!(
        under_way.wait().unwrap().success(),
        "every byte of the download has come"
    );
    machine.wait_for_end(&third);
    machine.serves();

    // To one that cannot go on with the virtual address.
    let refused = machine.try_run("dpkg -i /root/stranger.deb");
    assert!(refused.status.success(), "{refused:?}");
    let said = text(&refused.stderr);
    assert!(
        said.contains("the old version goes on serving") && said.contains("restart weir instead"),
        "{said}"
    );
    assert_eq!(machine.property("MainPID"), fourth);
    assert!(machine.has_address());
    machine.serves();
    machine.run("systemctl restart weir");
    wait_until("the virtual address is there", || machine.has_address());
    machine.serves();
}
