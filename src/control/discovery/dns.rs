//! `{dns: NAME}` and `{srv: NAME}`: records that are asked for again when they run out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::system_conf::read_system_conf;

use super::file::look;
use super::{Shared, Source, Tell};
use crate::base::Rng;
use crate::config::model::{Family, MemberDefaults, Resolver};
use crate::discovery::dns::{Answer, Host, Hosts, Pace, Service, addressed, services};
use crate::discovery::{Heard, Print};

/// What the system's resolver goes by.
pub const SYSTEM_FILES: [&str; 2] = ["/etc/resolv.conf", "/etc/hosts"];

/// Times that a server is asked before the next question.
const ATTEMPTS: usize = 2;
/// Targets of a service that are looked up; more are not members.
const TARGETS_MAX: usize = 1000;
/// Looked up at the same time.
const TARGETS_AT_ONCE: usize = 16;

/// What is asked for.
pub enum Records {
    /// Addresses of a host.
    Host {
        /// The host name that is asked for.
        name: String,
        /// Port of the members; `None` = the one that the client used.
        port: Option<u16>,
    },
    /// A service.
    Service {
        /// The name of the SRV record.
        name: String,
    },
}

/// A source that asks for records of DNS.
pub struct Dns {
    /// What is asked for.
    pub records: Records,
    /// Kind of addresses that members have.
    pub family: Family,
    /// Who is asked.
    pub resolver: Resolver,
    /// What DNS does not say of a member.
    pub like: MemberDefaults,
}

impl Source for Dns {
    fn watch(self: Box<Self>, tell: Tell, _: Rc<Shared>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(self.follow(tell))
    }
}

impl Dns {
    async fn follow(self: Box<Self>, tell: Tell) {
        let pace = Pace {
            min: self.resolver.min_ttl,
            max: self.resolver.max_ttl,
        };
        let mut rng = Rng::new(seed(&tell));
        let mut asker = Asker::default();
        let mut hosts = Hosts::default();
        let mut last = Duration::ZERO;
        loop {
            let (heard, ttl) = match asker.resolver(&self.resolver).await {
                Err(error) => (Heard::Failed(error), None),
                Ok(resolver) => self.ask(&resolver, &mut hosts).await,
            };
            let failed = !matches!(heard, Heard::Members(_));
            tell.hear(heard).await;
            let wait = pace.wait(ttl, failed, last, rng.next_u64() as u32);
            if !failed {
                last = ttl.unwrap_or(pace.min).clamp(pace.min, pace.max);
            }
            tokio::time::sleep(wait).await;
        }
    }

    async fn ask(&self, resolver: &Servers, hosts: &mut Hosts) -> (Heard, Option<Duration>) {
        match &self.records {
            Records::Host { name, port } => {
                let host = hosts.note(name, addresses(resolver, name, self.family).await);
                (addressed(&host, *port, &self.like), host.ttl)
            }
            Records::Service { name } => match service(resolver, name).await {
                Answer::Failed(error) => (Heard::Failed(error), None),
                Answer::None(why, ttl) => (Heard::Nobody(why), ttl),
                Answer::Records(records, ttl) => {
                    let mut targets: Vec<&str> = records.iter().map(|record| record.target.as_str()).collect();
                    targets.sort_unstable();
                    targets.dedup();
                    targets.retain(|target| *target != ".");
                    targets.truncate(TARGETS_MAX);
                    hosts.retain(&targets);
                    let mut found: HashMap<String, Host> = HashMap::new();
                    for some in targets.chunks(TARGETS_AT_ONCE) {
                        let mut asked = tokio::task::JoinSet::new();
                        for target in some {
                            let (resolver, target, family) = (resolver.clone(), target.to_string(), self.family);
                            asked.spawn(async move { (addresses(&resolver, &target, family).await, target) });
                        }
                        for (answers, target) in asked.join_all().await {
                            let host = hosts.note(&target, answers);
                            found.insert(target, host);
                        }
                    }
                    let ttl = found.values().filter_map(|host| host.ttl).fold(ttl, Duration::min);
                    (services(&records, &found, &self.like), Some(ttl))
                }
            },
        }
    }
}

/// Differs by source, so that those of one configuration do not ask in step.
fn seed(tell: &Tell) -> u64 {
    let text = format!("{} {}", tell.pool, tell.source);
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
    text.bytes().fold(u64::from(std::process::id()), mix)
}

/// The resolver, made anew when the system's files change.
#[derive(Default)]
struct Asker {
    made: Option<(Servers, Vec<Option<Print>>)>,
}

impl Asker {
    async fn resolver(&mut self, wanted: &Resolver) -> Result<Servers, String> {
        let mut prints = Vec::new();
        for file in SYSTEM_FILES {
            prints.push(look(file.as_ref()).await.print);
        }
        match &self.made {
            Some((resolver, of)) if *of == prints => return Ok(resolver.clone()),
            _ => {}
        }
        let settings = wanted.clone();
        let made = tokio::task::spawn_blocking(move || make(&settings)).await;
        match (made.map_err(|error| error.to_string()).flatten(), &self.made) {
            (Ok(resolver), _) => {
                self.made = Some((resolver.clone(), prints));
                Ok(resolver)
            }
            // What was known of the servers before is better than nothing.
            (Err(error), Some((resolver, _))) => {
                let resolver = resolver.clone();
                log::warn!("{error}; the name servers of before are asked");
                self.made = Some((resolver.clone(), prints));
                Ok(resolver)
            }
            (Err(error), None) => Err(error),
        }
    }
}

/// Name servers, each by a resolver of its own: together in one, the first that is silent takes the time of all, and the first that
/// has failed speaks for all.
#[derive(Clone)]
struct Servers {
    resolvers: Arc<[TokioResolver]>,
    /// The one that answered last.
    first: Arc<AtomicUsize>,
}

fn make(wanted: &Resolver) -> Result<Servers, String> {
    let (domain, search, servers, mut options) = match wanted.servers.is_empty() {
        true => {
            let system = read_system_conf().map_err(|error| format!("{}: {error}", SYSTEM_FILES[0]))?;
            let (domain, search, servers) = system.0.into_parts();
            (domain, search, servers, system.1)
        }
        false => {
            let server = |address: &std::net::SocketAddr| {
                let mut ways = vec![ConnectionConfig::udp(), ConnectionConfig::tcp()];
                ways.iter_mut().for_each(|way| way.port = address.port());
                NameServerConfig::new(address.ip(), true, ways)
            };
            let servers = wanted.servers.iter().map(server).collect();
            (None, Vec::new(), servers, ResolverOpts::default())
        }
    };
    options.timeout = wanted.timeout;
    options.attempts = ATTEMPTS;
    options.edns0 = true;
    // What is known is kept elsewhere.
    options.cache_size = 0;
    options.preserve_intermediates = true;
    options.use_hosts_file = ResolveHosts::Always;
    let one = |server: NameServerConfig| {
        let config = ResolverConfig::from_parts(domain.clone(), search.clone(), vec![server]);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = options.clone();
        builder.build().map_err(|error| error.to_string())
    };
    Ok(Servers {
        resolvers: servers.into_iter().map(one).collect::<Result<_, String>>()?,
        first: Arc::default(),
    })
}

async fn addresses(resolver: &Servers, name: &str, family: Family) -> Vec<(bool, Answer<IpAddr>)> {
    let read = |data: &RData| match data {
        RData::A(a) => Some(IpAddr::V4(a.0)),
        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
        _ => None,
    };
    let (v4, v6) = (family != Family::V6, family != Family::V4);
    let one = async |wanted: bool, is_v4: bool| {
        let kind = if is_v4 { RecordType::A } else { RecordType::AAAA };
        match wanted {
            true => Some((is_v4, question(resolver, name, kind, read).await)),
            false => None,
        }
    };
    let (v4, v6) = tokio::join!(one(v4, true), one(v6, false));
    v4.into_iter().chain(v6).collect()
}

async fn service(resolver: &Servers, name: &str) -> Answer<Service> {
    let read = |data: &RData| match data {
        RData::SRV(srv) => Some(Service {
            priority: srv.priority,
            weight: srv.weight,
            port: srv.port,
            target: srv.target.to_ascii(),
        }),
        _ => None,
    };
    question(resolver, name, RecordType::SRV, read).await
}

/// Asks one server after the other until one can say.
async fn question<T>(servers: &Servers, name: &str, kind: RecordType, read: impl Fn(&RData) -> Option<T>) -> Answer<T> {
    let count = servers.resolvers.len();
    let first = servers.first.load(Relaxed);
    let mut answer = Answer::Failed("there are no name servers".into());
    for ix in (0..count).map(|place| (first + place) % count) {
        answer = ask(&servers.resolvers[ix], name, kind, &read).await;
        if !matches!(answer, Answer::Failed(_)) {
            servers.first.store(ix, Relaxed);
            break;
        }
    }
    answer
}

async fn ask<T>(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
    read: impl Fn(&RData) -> Option<T>,
) -> Answer<T> {
    match resolver.lookup(name, kind).await {
        Ok(found) => {
            let ttl = found.answers().iter().map(|record| record.ttl).min().unwrap_or(0);
            let records: Vec<T> = found.answers().iter().filter_map(|record| read(&record.data)).collect();
            let ttl = Duration::from_secs(u64::from(ttl));
            match records.is_empty() {
                true => Answer::None(format!("{name}: no {kind} records"), Some(ttl)),
                false => Answer::Records(records, ttl),
            }
        }
        Err(NetError::Dns(DnsError::NoRecordsFound(none))) => {
            let ttl = none.negative_ttl.map(|ttl| Duration::from_secs(u64::from(ttl)));
            match none.response_code {
                ResponseCode::NXDomain => Answer::None(format!("{name}: there is no such name (NXDOMAIN)"), ttl),
                ResponseCode::NoError => Answer::None(format!("{name}: no {kind} records"), ttl),
                code => Answer::Failed(format!("{name} {kind}: {code}")),
            }
        }
        Err(error) => Answer::Failed(format!("{name} {kind}: {error}")),
    }
}
