//! `client_address: keep`: clients and backends must be able to speak to each other.

use crate::config::model::*;
use crate::config::notes::{Notes, Spot};
use crate::config::raw::Section;

/// The mode of the kernel engine, which `client_address` says too.
pub fn kernel_mode(section: &Section, client_address: ClientAddress) -> KernelMode {
    let kernel = section.section("kernel");
    let keeps = client_address == ClientAddress::Keep;
    match kernel.optional("mode") {
        Some(KernelMode::Nat) if keeps => {
            kernel.error(
                "mode",
                "`nat` hides clients from backends, and `client_address: keep` shows them: leave one of them out",
            );
            KernelMode::Keep
        }
        Some(mode) => mode,
        None if keeps => KernelMode::Keep,
        None => KernelMode::Nat,
    }
}

/// What the proxy engine asks of listeners and backends of a pool that keeps addresses.
pub fn check(notes: &Notes, section: &Section, users: &[&Listener], backends: &[Spot<Backend>]) {
    let users: Vec<&&Listener> = users.iter().filter(|user| user.engine == Engine::Proxy).collect();
    let unix = |user: &&&&Listener| user.bind.iter().any(|bind| matches!(bind, Bind::Unix(_)));
    if let Some(user) = users.iter().find(unix) {
        section.error(
            "client_address",
            format!(
                "clients of listener `{}` come over a unix socket and have no address: write `hide`, or bind an IP address",
                user.name
            ),
        );
    }
    for backend in backends {
        if let Some(why) = refusal(
            users.iter().map(|user| (user.name.as_str(), &user.bind[..])),
            &backend.value.address,
        ) {
            notes.error(backend, format!("`{}` {why}", backend.value.address));
        }
    }
}

/// Why clients of these listeners, by name and addresses, cannot be seen by a backend at an address.
pub fn refusal<'l>(mut users: impl Iterator<Item = (&'l str, &'l [Bind])>, address: &BackendAddress) -> Option<String> {
    let Some(ip) = address.ip() else {
        return Some(
            "is a unix socket, over which `client_address: keep` shows no address: write an IP address, or `send_proxy: v2`"
                .into(),
        );
    };
    if matches!(ip, std::net::IpAddr::V6(v6) if v6.is_unicast_link_local()) {
        return Some(
            "is a link-local address, from which no client can be answered that `client_address: keep` shows: write another address of it"
                .into(),
        );
    }
    users.find_map(|(name, binds)| {
        let other = |bind: &&Bind| matches!(bind, Bind::Ip { ip: bound, .. } if bound.is_ipv4() != ip.is_ipv4());
        let bound = binds.iter().find(other)?;
        let (theirs, its) = if ip.is_ipv4() { ("IPv6", "IPv4") } else { ("IPv4", "IPv6") };
        Some(format!(
            "is {its}, and clients of listener `{name}` at `{bound}` are {theirs}: with `client_address: keep` give each family a listener and a pool of its own"
        ))
    })
}
