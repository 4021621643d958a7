//! What a container engine's list says: Docker's API, which Podman speaks as well.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Deserialize;

use super::Heard;
use crate::config::model::{Backend, BackendAddress, MemberDefaults};

/// A container, as far as it matters. Fields that an engine leaves out, or has as null, are empty.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Container {
    #[serde(deserialize_with = "or_default")]
    id: String,
    #[serde(deserialize_with = "or_default")]
    names: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    state: String,
    #[serde(deserialize_with = "or_default")]
    network_settings: Settings,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Settings {
    #[serde(deserialize_with = "or_default")]
    networks: BTreeMap<String, Option<Network>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Network {
    #[serde(rename = "IPAddress", deserialize_with = "or_default")]
    v4: String,
    #[serde(rename = "GlobalIPv6Address", deserialize_with = "or_default")]
    v6: String,
}

fn or_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}

/// Members of a list of containers, as `GET /containers/json` answers it: those that run, at their address in `network`, or in
/// the first by name that gives them one.
pub fn members(list: &[u8], port: u16, network: Option<&str>, like: &MemberDefaults) -> Heard {
    let containers: Vec<Container> = match serde_json::from_slice(list) {
        Ok(containers) => containers,
        Err(error) => return Heard::Failed(format!("the list of containers makes no sense: {error}")),
    };
    let (mut members, mut error) = (Vec::<Backend>::new(), None);
    for container in containers.iter().filter(|container| container.state == "running") {
        let name = container
            .names
            .first()
            .map_or(&*container.id, |name| name.trim_start_matches('/'));
        let networks = container.network_settings.networks.iter();
        let wanted = networks.filter(|(found, _)| network.is_none_or(|network| network == *found));
        let addresses = wanted.filter_map(|(_, network)| network.as_ref());
        let ip = addresses
            .flat_map(|network| [&network.v4, &network.v6])
            .find_map(|text| text.parse::<IpAddr>().ok());
        match ip {
            None => {
                let place = network.map_or("any network".to_string(), |network| format!("the network {network}"));
                error = error.or(Some(format!("container {name} has no address in {place}")));
            }
            Some(ip) => {
                let plain = like.member(BackendAddress::Ip((ip, port).into()), false);
                let named = Some(name.to_string()).filter(|name| BackendAddress::is_label(name));
                if members.iter().all(|other| other.address != plain.address) {
                    members.push(Backend {
                        name: named.unwrap_or(plain.name),
                        ..like.member(plain.address, false)
                    });
                }
            }
        }
    }
    match error {
        Some(error) if members.is_empty() => Heard::Failed(error),
        Some(error) => Heard::Partly(members, error),
        None => Heard::Members(members),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In the shape that the API documents, shortened.
    const DOCKER: &str = r#"[
      {"Id":"4f1c","Names":["/web-1"],"Image":"web:3","State":"running","Status":"Up 3 minutes","Labels":{"weir.pool":"web"},
       "Ports":[{"PrivatePort":8080,"Type":"tcp"}],
       "NetworkSettings":{"Networks":{"bridge":{"IPAddress":"172.17.0.2","GlobalIPv6Address":""},
                                      "inner":{"IPAddress":"10.5.0.2","GlobalIPv6Address":"fd00::2"}}}},
      {"Id":"77aa","Names":["/web-2"],"State":"running","NetworkSettings":{"Networks":{"inner":{"IPAddress":"","GlobalIPv6Address":"fd00::3"}}}},
      {"Id":"88bb","Names":["/web-3"],"State":"exited","NetworkSettings":{"Networks":{"inner":{"IPAddress":"10.5.0.9"}}}}]"#;
    const PODMAN: &str = r#"[{"Id":"9d","Names":["/pod-1"],"State":"running","Labels":null,
       "NetworkSettings":{"Networks":{"podman":{"IPAddress":"10.88.0.5","GlobalIPv6Address":""}}}},
      {"Id":"9e","Names":null,"State":"running","NetworkSettings":{"Networks":{"podman":null,"x":{"IPAddress":"10.88.0.6"}}}}]"#;

    #[test]
    fn lists() {
        #[rustfmt::skip]
        let rows: [(&str, Option<&str>, &str); 9] = [
            (DOCKER, None,           "web-1=172.17.0.2:80 web-2=[fd00::3]:80"),
            (DOCKER, Some("inner"),  "web-1=10.5.0.2:80 web-2=[fd00::3]:80"),
            (DOCKER, Some("bridge"), "web-1=172.17.0.2:80 (container web-2 has no address in the network bridge)"),
            (DOCKER, Some("other"),  "failed: container web-1 has no address in the network other"),
            (PODMAN, None,           "pod-1=10.88.0.5:80 9e=10.88.0.6:80"),
            ("[]",   None,           ""),
            ("[{}]", None,           ""),
            ("{\"message\":\"no\"}", None, "failed: the list of containers makes no sense"),
            ("[{\"Id\":3}]", None,   "failed: the list of containers makes no sense"),
        ];
        for (list, network, expected) in rows {
            let words = |members: &[Backend]| {
                members
                    .iter()
                    .map(|m| format!("{}={}", m.name, m.address))
                    .collect::<Vec<_>>()
                    .join(" ")
            };
            let found = match members(list.as_bytes(), 80, network, &MemberDefaults::default()) {
                Heard::Members(members) => words(&members),
                Heard::Partly(members, error) => format!("{} ({error})", words(&members)),
                Heard::Failed(error) => format!("failed: {error}"),
                other => panic!("{other:?}"),
            };
            assert!(found.starts_with(expected), "{found}");
            assert!(!expected.is_empty() || found.is_empty(), "{found}");
        }
    }

    /// A list with a piece cut out, doubled or changed is refused or read, and never more than that.
    #[test]
    fn damaged_lists() {
        let mut rng = crate::base::Rng::new(16);
        for _ in 0..20_000 {
            let mut list = DOCKER.as_bytes().to_vec();
            for _ in 0..1 + rng.next_u64() % 4 {
                let at = (rng.next_u64() % list.len() as u64) as usize;
                let len = (rng.next_u64() % 20) as usize;
                let end = (at + len).min(list.len());
                match rng.next_u64() % 3 {
                    0 => drop(list.drain(at..end)),
                    1 => list.extend_from_within(at..end),
                    _ => list[at] = rng.next_u64() as u8,
                }
                if list.is_empty() {
                    list.push(b'[');
                }
            }
            if let Heard::Members(members) = members(&list, 80, None, &MemberDefaults::default()) {
                assert!(members.len() <= 3);
            }
        }
    }
}
