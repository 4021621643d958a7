//! What packets to backends carry: `connect: {mark, dscp}`.

use super::common::client::{connect, fetch};
use super::common::netns::counted;
use super::common::operator::said;
use super::common::{may_make_namespaces, wait_until};
use super::hosts::ask;
use super::{FAMILIES, net, start, teller};

/// TCP, UDP and probes, IPv4 and IPv6, seen on the wire; a reload changes it for what comes after.
#[test]
fn packets_to_backends_carry_mark_and_class() {
    if !may_make_namespaces() {
        return;
    }
    let net = net();
    // Marks do not leave the host; classes do.
    net.balancer.nft(
        "table inet weir { counter marked {}; chain out { type filter hook output priority 0; meta mark 7 counter name marked; }; }",
    );
    let of = |ip: &str| format!("{ip} dscp ef counter name ef; {ip} dscp af11 counter name af11;");
    net.backends[0].nft(&format!(
        "table inet weir {{ counter ef {{}}; counter af11 {{}}; chain in {{ type filter hook input priority 0; {} {} }}; }}",
        of("ip"),
        of("ip6")
    ));
    for family in FAMILIES {
        let _teller = teller(&net, 0, family);
        net.udp_echo(0, &family.backend(0, 5353));
        let yaml = |connect: &str| {
            format!(
                "
listeners:
  web: {{bind: ['{}'], pool: web}}
  dns: {{protocol: udp, bind: ['{}'], pool: dns}}
pools:
  web: {{{connect}health: none, backends: ['{}']}}
  dns: {{{connect}health: none, backends: ['{}']}}
",
                family.service(80),
                family.service(53),
                family.backend(0, 8080),
                family.backend(0, 5353),
            )
        };
        let weir = start(&net, &yaml("connect: {mark: 7, dscp: ef}, "));
        let counts = || {
            (
                counted(&net.balancer, "marked"),
                counted(&net.backends[0], "ef"),
                counted(&net.backends[0], "af11"),
            )
        };
        let before = counts();
        net.client.enter(|| fetch(&family.service(80)).unwrap());
        let after = counts();
        assert!(
            after.0 > before.0 + 2 && after.1 > before.1 + 2 && after.2 == before.2,
            "{before:?} {after:?}"
        );
        let socket = net.udp_client(&family.service(53));
        ask(&socket, b"?");
        let third = counts();
        assert!(third.0 > after.0 && third.1 > after.1, "{after:?} {third:?}");
        drop(socket);

        weir.rewrite(&format!(
            "workers: 2\n{}",
            yaml("connect: {dscp: af11}, ").replacen("health: none", "health: {interval: 100ms}", 1)
        ));
        said(&weir, &["reload"]);
        wait_until("probes have the class, too", || {
            counted(&net.backends[0], "af11") > third.2
        });
        let fourth = counts();
        drop(net.client.enter(|| connect(&family.service(80))));
        wait_until("so have connections", || counts().2 > fourth.2 + 2);
        weir.stop();
        assert_eq!(counts().0, fourth.0);
    }
}
