//! What DNS says of a pool's members, and when to ask again. Pure: who asks is `control::discovery::dns`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use super::Heard;
use crate::config::model::{Backend, BackendAddress, MemberDefaults};

/// Between two questions after a failure at most.
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Waits are longer than they have to be by up to one in so many, so that sources do not ask in step.
const JITTER_SHARE: u32 = 10;

/// What came of one question.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer<T> {
    /// Records, and how long they hold.
    Records(Vec<T>, Duration),
    /// There are none; why, and how long that holds.
    None(String, Option<Duration>),
    /// No server could give an answer.
    Failed(String),
}

/// A record of a service (RFC 2782).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Records with a lower value are preferred.
    pub priority: u16,
    /// Share among those of one priority.
    pub weight: u16,
    /// Port of the service on `target`.
    pub port: u16,
    /// Host name; `.` = the service is not offered.
    pub target: String,
}

/// Addresses by name and family as they were last known.
#[derive(Debug, Default)]
pub struct Hosts(HashMap<(String, bool), Vec<IpAddr>>);

/// What came of looking up a host in all of the families that are wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Host {
    /// Sorted, each once. Of a family that nobody can tell of, those of before.
    pub addresses: Vec<IpAddr>,
    /// How long that holds; `None`: nobody could tell.
    pub ttl: Option<Duration>,
    /// Why there are none.
    pub none: Option<String>,
    /// Why somebody could not tell.
    pub error: Option<String>,
}

impl Hosts {
    /// Puts the families together. `answers`: whether of IPv4, and what was said.
    pub fn note(&mut self, name: &str, answers: Vec<(bool, Answer<IpAddr>)>) -> Host {
        let mut host = Host {
            addresses: Vec::new(),
            ttl: None,
            none: None,
            error: None,
        };
        let mut holds = |ttl: Duration| host.ttl = Some(host.ttl.map_or(ttl, |other| other.min(ttl)));
        for (is_v4, answer) in answers {
            let last = self.0.entry((name.to_string(), is_v4)).or_default();
            match answer {
                Answer::Records(addresses, ttl) => {
                    *last = addresses;
                    holds(ttl);
                }
                Answer::None(why, ttl) => {
                    last.clear();
                    ttl.into_iter().for_each(&mut holds);
                    host.none = Some(why);
                }
                Answer::Failed(error) => host.error = Some(error),
            }
            host.addresses.extend(&*last);
        }
        host.addresses.sort();
        host.addresses.dedup();
        host
    }

    /// Forgets all names but these.
    pub fn retain(&mut self, names: &[&str]) {
        self.0.retain(|(name, _), _| names.contains(&name.as_str()));
    }
}

/// The members behind a name.
pub fn addressed(host: &Host, port: Option<u16>, like: &MemberDefaults) -> Heard {
    let alone = host.addresses.len() == 1;
    let member = |ip: &IpAddr| {
        let address = match port {
            Some(port) => BackendAddress::Ip((*ip, port).into()),
            None => BackendAddress::SamePort(*ip),
        };
        like.member(address, alone)
    };
    let members = host.addresses.iter().map(member).collect();
    heard(members, host.none.clone(), host.error.clone())
}

/// The members behind a service; `hosts` has the target of each record.
pub fn services(records: &[Service], hosts: &HashMap<String, Host>, like: &MemberDefaults) -> Heard {
    let mut records: Vec<&Service> = records.iter().filter(|record| record.target != ".").collect();
    records.sort_by(|a, b| (a.priority, &a.target, a.port).cmp(&(b.priority, &b.target, b.port)));
    let first = records.first().map(|record| record.priority);
    let mut members: Vec<Backend> = Vec::new();
    let (mut none, mut error) = (None, None);
    for record in &records {
        let Some(host) = hosts.get(&record.target) else {
            continue;
        };
        none = none.or(host.none.clone());
        error = error.or(host.error.clone());
        for ip in &host.addresses {
            let address = BackendAddress::Ip((*ip, record.port).into());
            if members.iter().all(|member| member.address != address) {
                members.push(Backend {
                    // 0 is the smallest share there, and none at all here.
                    weight: u32::from(record.weight).max(1),
                    backup: Some(record.priority) != first,
                    ..like.member(address, false)
                });
            }
        }
    }
    if records.is_empty() {
        none = Some("the service is not offered".into());
    }
    heard(members, none, error)
}

fn heard(members: Vec<Backend>, none: Option<String>, error: Option<String>) -> Heard {
    match (members.is_empty(), error) {
        (true, Some(error)) => Heard::Failed(error),
        (true, None) => Heard::Nobody(none.unwrap_or_else(|| "there are no addresses".into())),
        (false, Some(error)) => Heard::Partly(members, error),
        (false, None) => Heard::Members(members),
    }
}

/// Bounds of the time between two questions.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// The least time between two questions.
    pub min: Duration,
    /// The greatest time between two questions, before jitter.
    pub max: Duration,
}

impl Pace {
    /// How long to wait after an answer that holds for `ttl`, or after none; `last` is what was waited before. `chance` is any
    /// number.
    pub fn wait(&self, ttl: Option<Duration>, failed: bool, last: Duration, chance: u32) -> Duration {
        let wait = match (ttl, failed) {
            (Some(ttl), false) => ttl.clamp(self.min, self.max),
            // A record that is gone, or a server: one interval, and not long.
            (ttl, _) => ttl
                .unwrap_or(last)
                .clamp(self.min, self.max.min(AGAIN_MAX).max(self.min)),
        };
        wait + (wait / JITTER_SHARE).mul_f64(f64::from(chance) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    fn shown(heard: &Heard) -> String {
        let list = |members: &[Backend]| {
            let word = |m: &Backend| {
                let name = if m.name == m.address.to_string() {
                    String::new()
                } else {
                    format!("{}=", m.name)
                };
                let weight = if m.weight == 1 {
                    String::new()
                } else {
                    format!("*{}", m.weight)
                };
                format!("{name}{}{weight}{}", m.address, if m.backup { "b" } else { "" })
            };
            members.iter().map(word).collect::<Vec<_>>().join(" ")
        };
        match heard {
            Heard::Members(members) => list(members),
            Heard::Partly(members, error) => format!("{} ({error})", list(members)),
            Heard::Nobody(why) => format!("nobody: {why}"),
            Heard::Failed(error) => format!("failed: {error}"),
            Heard::Same => "same".into(),
        }
    }

    /// A name through its life: what A and AAAA said, and who the members are. Seen to fail: a family that fails loses its
    /// members; a family that has none keeps them.
    #[test]
    fn two_families_of_one_name() {
        let yes = |text: &str| Answer::Records(ips(text), Duration::from_secs(60));
        let no = || Answer::None("NODATA".into(), None);
        let fail = || Answer::Failed("timed out".into());
        #[rustfmt::skip]
        let steps: [(Answer<IpAddr>, Answer<IpAddr>, &str); 9] = [
            (fail(),                  fail(),          "failed: timed out"),
            (yes("10.0.0.2 10.0.0.1"), fail(),         "10.0.0.1:80 10.0.0.2:80 (timed out)"),
            (yes("10.0.0.1"),         no(),            "db=10.0.0.1:80"),
            (yes("10.0.0.1"),         yes("fd00::1"),  "10.0.0.1:80 [fd00::1]:80"),
            (yes("10.0.0.2"),         fail(),          "10.0.0.2:80 [fd00::1]:80 (timed out)"),
            (no(),                    fail(),          "db=[fd00::1]:80 (timed out)"),
            (fail(),                  no(),            "failed: timed out"),
            (no(),                    no(),            "nobody: NODATA"),
            (yes("10.0.0.2 10.0.0.2"), no(),           "db=10.0.0.2:80"),
        ];
        let like = MemberDefaults {
            name: Some("db".into()),
            ..MemberDefaults::default()
        };
        let mut hosts = Hosts::default();
        for (v4, v6, expected) in steps {
            let host = hosts.note("db.internal", vec![(true, v4.clone()), (false, v6.clone())]);
            assert_eq!(shown(&addressed(&host, Some(80), &like)), expected, "{v4:?} {v6:?}");
        }
    }

    /// `PRIORITY WEIGHT PORT TARGET`, and the members. Seen to fail: the highest priority first; weight 0 taken over.
    #[test]
    fn priority_and_weight_of_a_service() {
        let host = |addresses: &str, error: Option<&str>| Host {
            addresses: ips(addresses),
            ttl: None,
            none: addresses.is_empty().then(|| "NXDOMAIN".into()),
            error: error.map(Into::into),
        };
        let hosts = HashMap::from([
            ("a".to_string(), host("10.0.0.1", None)),
            ("b".to_string(), host("10.0.0.2 10.0.0.3", None)),
            ("gone".to_string(), host("", None)),
            ("sick".to_string(), host("10.0.0.9", Some("SERVFAIL"))),
        ]);
        #[rustfmt::skip]
        let rows: [(&[&str], &str); 8] = [
            (&["10 5 80 a"],                          "10.0.0.1:80*5"),
            (&["20 7 80 b", "10 0 80 a"],             "10.0.0.1:80 10.0.0.2:80*7b 10.0.0.3:80*7b"),
            (&["10 3 80 a", "10 3 81 a"],             "10.0.0.1:80*3 10.0.0.1:81*3"),
            (&["10 3 80 a", "20 9 80 a"],             "10.0.0.1:80*3"),
            (&["1 1 80 a", "2 1 80 gone"],            "10.0.0.1:80"),
            (&["1 1 80 gone"],                        "nobody: NXDOMAIN"),
            (&["0 0 0 ."],                            "nobody: the service is not offered"),
            (&["1 1 80 sick", "1 1 80 a"],            "10.0.0.1:80 10.0.0.9:80 (SERVFAIL)"),
        ];
        for (records, expected) in rows {
            let read = |text: &&str| {
                let words: Vec<&str> = text.split_whitespace().collect();
                let number = |ix: usize| words[ix].parse().unwrap();
                Service {
                    priority: number(0),
                    weight: number(1),
                    port: number(2),
                    target: words[3].into(),
                }
            };
            let records: Vec<Service> = records.iter().map(read).collect();
            assert_eq!(
                shown(&services(&records, &hosts, &MemberDefaults::default())),
                expected,
                "{records:?}"
            );
        }
    }

    /// Milliseconds: TTL (`None`: no answer), failed, waited before, and the wait without and with all jitter.
    #[test]
    fn when_to_ask_again() {
        let pace = Pace {
            min: Duration::from_secs(1),
            max: Duration::from_secs(300),
        };
        let ms = Duration::from_millis;
        #[rustfmt::skip]
        let rows = [
            (Some(60_000),    false, 0,      60_000,  66_000),
            (Some(0),         false, 60_000, 1_000,   1_100),
            (Some(9_000_000), false, 0,      300_000, 330_000),
            // A negative answer, and none.
            (Some(900_000),   true,  60_000, 30_000,  33_000),
            (None,            true,  60_000, 30_000,  33_000),
            (None,            true,  5_000,  5_000,   5_500),
            (None,            true,  0,      1_000,   1_100),
        ];
        for (ttl, failed, last, least, most) in rows {
            let wait = |chance| pace.wait(ttl.map(ms), failed, ms(last), chance).as_millis() as u64;
            assert_eq!((wait(0), wait(u32::MAX)), (least, most), "{ttl:?} {failed} {last}");
        }
        let slow = Pace {
            min: Duration::from_secs(60),
            max: Duration::from_secs(90),
        };
        assert_eq!(slow.wait(None, true, Duration::ZERO, 0), Duration::from_secs(60));
    }
}
