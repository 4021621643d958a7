//! `weir explain`: which backend a client would get, and why, through the same code that balances.
//!
//! The file alone is asked (with the files of members that it names), not a running process: every backend counts as up and idle. For `source_hash` that is the
//! whole answer as long as the backends are up; the other algorithms depend on the moment, and the answer says so.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use crate::app::EXIT_CONFIG;
use crate::balance::acl::Acl;
use crate::balance::{Cursor, Loads, Member, Picker, Shares, identity, source_key};
use crate::config::model::{Backend, Balance, Engine, Listener, MemberSource, MembersFrom, Pool};
use crate::config::{self, Config, RouteName, Rules, members};
use crate::discovery::merge;
use crate::health::{Candidate, Eligibility, Standing};
use crate::routing::{REST, Routing};

/// What `weir explain` takes.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file.
    #[arg(short, long, default_value = super::DEFAULT_CONFIG)]
    config: PathBuf,
    /// Listener that the client connects to.
    #[arg(long, value_name = "NAME")]
    listener: String,
    /// The client.
    #[arg(long, value_name = "ADDR[:PORT]")]
    from: Source,
    /// Server name that its TLS hello asks for, where the listener has routes.
    #[arg(long, value_name = "NAME", value_parser = server_name)]
    server_name: Option<String>,
    /// One JSON object.
    #[arg(long)]
    json: bool,
}

fn server_name(text: &str) -> Result<String, String> {
    match text.parse()? {
        RouteName(name) if name.starts_with('*') => Err("clients ask for whole names: write one".into()),
        RouteName(name) => Ok(name),
    }
}

/// An address with or without a port.
#[derive(Debug, Clone, Copy)]
struct Source(SocketAddr);

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Source, String> {
        let bare = text.trim_start_matches('[').trim_end_matches(']');
        text.parse()
            .or_else(|_| bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, 0)))
            .map(Source)
            .map_err(|_| "expected an address such as 192.0.2.7, 192.0.2.7:4711 or [2001:db8::7]:4711".to_string())
    }
}

/// Runs `weir explain`.
pub fn run(args: &Args) -> ExitCode {
    let mut config = match config::load(&args.config) {
        Ok(loaded) => loaded.config,
        Err(errors) => {
            eprintln!("{errors}");
            return ExitCode::from(EXIT_CONFIG);
        }
    };
    let doubts = fill(&mut config);
    let Some(listener) = config.listeners.iter().find(|listener| listener.name == args.listener) else {
        let names: Vec<&str> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        eprintln!(
            "weir explain: there is no listener {:?}; there are: {}",
            args.listener,
            names.join(", ")
        );
        return ExitCode::FAILURE;
    };
    let mut answer = explain(&config, listener, args.from.0, args.server_name.as_deref());
    let doubted = answer.pool.map(|pool| &pool.policy.name);
    answer.notes.extend(
        doubts
            .into_iter()
            .filter(|(pool, _)| Some(&config.pools[*pool].policy.name) == doubted)
            .map(|(_, doubt)| doubt),
    );
    if args.json {
        println!("{}", answer.json());
    } else {
        answer.print();
    }
    if answer.backend.is_some() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Puts the members into the pools that can be known without a running weir; says of which pools there may be more.
fn fill(config: &mut Config) -> Vec<(usize, String)> {
    let mut doubts = Vec::new();
    for ix in 0..config.pools.len() {
        let rules = Rules::of(config, ix);
        let pool = &mut config.pools[ix];
        let (mut lists, name) = (Vec::new(), &pool.policy.name);
        for MemberSource { from, .. } in &pool.members {
            match from {
                MembersFrom::File(path) => match members::load(path, &rules) {
                    Ok(list) => lists.push(list),
                    Err(errors) => doubts.push((ix, errors.to_string())),
                },
                from => doubts.push((
                    ix,
                    format!("members by {from} are not known here: ask `weir members {name}`"),
                )),
            }
        }
        pool.backends = merge(&pool.backends, lists.iter().map(Vec::as_slice), &[]).members;
    }
    doubts
}

/// Nobody has connections, nobody is known to be slow.
struct Idle;

impl Loads for Idle {
    fn active(&self, _: usize) -> u32 {
        0
    }

    fn latency_ns(&self, _: usize) -> u64 {
        0
    }
}

/// Who would serve a client.
struct Answer<'a> {
    listener: &'a Listener,
    server_name: Option<&'a str>,
    /// `None`: no route, and no pool for the rest.
    pool: Option<&'a Pool>,
    from: SocketAddr,
    backend: Option<usize>,
    reason: String,
    notes: Vec<String>,
}

fn explain<'a>(
    config: &'a Config,
    listener: &'a Listener,
    from: SocketAddr,
    server_name: Option<&'a str>,
) -> Answer<'a> {
    let named = |ix: usize| config.pools[ix].policy.name.as_str().into();
    let routing = Routing::new(listener, named, 1, None);
    let way = routing.as_ref().map(|routing| routing.of(server_name));
    let pool = match &way {
        None => listener.pool,
        Some(way) => way.map(|way| way.pool_at),
    };
    let mut answer = Answer {
        listener,
        server_name,
        pool: pool.map(|ix| &config.pools[ix]),
        from,
        backend: None,
        reason: String::new(),
        notes: Vec::new(),
    };
    if !Acl::new(&listener.allow, &listener.deny).permits(from.ip()) {
        answer.reason = "denied by the listener's allow and deny lists".into();
        return answer;
    }
    match way {
        None if server_name.is_some() => answer
            .notes
            .push("this listener has no routes: no hello is read".into()),
        Some(Some(way)) => answer.notes.push(match &*way.name {
            REST => "no route is for it: the listener's `pool` serves the rest".into(),
            name => format!("by the route for {name}"),
        }),
        _ => {}
    }
    let Some(pool) = answer.pool else {
        answer.reason = "no route is for it, and the listener has no `pool` for the rest".into();
        return answer;
    };
    let members: Vec<Member> = pool
        .backends
        .iter()
        .map(|backend| Member {
            identity: identity(&pool.policy.name, &backend.address.to_string()),
            weight: backend.weight,
        })
        .collect();
    let candidates: Vec<Candidate> = pool
        .backends
        .iter()
        .map(|backend| Candidate {
            standing: Standing::Ready,
            weight: backend.weight,
            backup: backend.backup,
            share: Shares::WHOLE,
        })
        .collect();
    let eligibility = Eligibility::new(&candidates, pool.policy.all_down);
    let picker = Picker::new(pool.policy.balance, &pool.policy.source_hash, &members);
    let key = source_key(&pool.policy.source_hash, from);
    let explanation = picker.explain(&mut Cursor::new(0), key, &Idle, &eligibility.shares, &eligibility.first);
    answer.backend = explanation.chosen;
    answer.reason = explanation
        .reason
        .map_or("no backend is eligible".into(), |reason| reason.to_string());
    if pool.policy.balance == Balance::SourceHash {
        let slot = explanation.slot.map_or(String::new(), |slot| format!(", slot {slot}"));
        answer.notes.push(format!("hash key {key:#018x}{slot}"));
    } else {
        answer
            .notes
            .push("this algorithm goes by the load of the moment: here every backend is idle".into());
    }
    if from.port() == 0 && pool.policy.source_hash.port && pool.policy.balance == Balance::SourceHash {
        answer
            .notes
            .push("the source port counts (source_hash.port): give one with --from ADDR:PORT".into());
    }
    for (ix, note) in explanation.notes {
        answer.notes.push(format!("{}: {note}", pool.backends[ix].name));
    }
    answer
}

impl Answer<'_> {
    fn backend(&self) -> Option<&Backend> {
        Some(&self.pool?.backends[self.backend?])
    }

    fn print(&self) {
        let Answer {
            listener, pool, from, ..
        } = self;
        let client = if from.port() == 0 {
            from.ip().to_string()
        } else {
            from.to_string()
        };
        let backend = self.backend();
        let engine = match listener.engine {
            Engine::Proxy => "",
            Engine::Kernel => " (kernel engine)",
        };
        match pool.zip(backend) {
            Some((pool, backend)) => println!(
                "{client} -> listener {}{engine} -> pool {} -> backend {} ({}): {}",
                listener.name, pool.policy.name, backend.name, backend.address, self.reason
            ),
            None => println!(
                "{client} -> listener {}{engine} -> nobody: {}",
                listener.name, self.reason
            ),
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    fn json(&self) -> serde_json::Value {
        let backend = self.backend();
        serde_json::json!({
            "listener": self.listener.name,
            "engine": self.listener.engine.as_str(),
            "server_name": self.server_name,
            "pool": self.pool.map(|pool| &pool.policy.name),
            "from": self.from.ip().to_string(),
            "backend": backend.map(|backend| &backend.name),
            "address": backend.map(|backend| backend.address.to_string()),
            "reason": self.reason,
            "notes": self.notes,
        })
    }
}
