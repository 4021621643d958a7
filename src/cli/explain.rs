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
use crate::config::model::{Balance, Listener, MemberSource, MembersFrom, Pool};
use crate::config::{self, Config, Rules, members};
use crate::discovery::merge;
use crate::health::{Candidate, Eligibility, Standing};

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
    /// One JSON object.
    #[arg(long)]
    json: bool,
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

/// Runs it.
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
    let mut answer = explain(&config, listener, args.from.0);
    answer.notes.extend(
        doubts
            .into_iter()
            .filter(|(pool, _)| *pool == listener.pool)
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
    pool: &'a Pool,
    from: SocketAddr,
    backend: Option<usize>,
    reason: String,
    notes: Vec<String>,
}

fn explain<'a>(config: &'a Config, listener: &'a Listener, from: SocketAddr) -> Answer<'a> {
    let pool = &config.pools[listener.pool];
    let mut answer = Answer {
        listener,
        pool,
        from,
        backend: None,
        reason: String::new(),
        notes: Vec::new(),
    };
    if !Acl::new(&listener.allow, &listener.deny).permits(from.ip()) {
        answer.reason = "denied by the listener's allow and deny lists".into();
        return answer;
    }
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
    fn print(&self) {
        let Answer {
            listener, pool, from, ..
        } = self;
        let client = if from.port() == 0 {
            from.ip().to_string()
        } else {
            from.to_string()
        };
        match self.backend.map(|ix| &pool.backends[ix]) {
            Some(backend) => println!(
                "{client} -> listener {} -> pool {} -> backend {} ({}): {}",
                listener.name, pool.policy.name, backend.name, backend.address, self.reason
            ),
            None => println!("{client} -> listener {} -> nobody: {}", listener.name, self.reason),
        }
        for note in &self.notes {
            println!("  {note}");
        }
    }

    fn json(&self) -> serde_json::Value {
        let backend = self.backend.map(|ix| &self.pool.backends[ix]);
        serde_json::json!({
            "listener": self.listener.name,
            "pool": self.pool.policy.name,
            "from": self.from.ip().to_string(),
            "backend": backend.map(|backend| &backend.name),
            "address": backend.map(|backend| backend.address.to_string()),
            "reason": self.reason,
            "notes": self.notes,
        })
    }
}
