//! `weir status`: listeners, pools, backends, VIPs, workers.

use std::fmt::Write;
use std::process::ExitCode;

use super::client::{self, Options};
use super::table::{self, Rows, Tone, Value, age, bytes, millis, tone, trouble};
use crate::api::question::Question;
use crate::api::status::{Backend, Kernel, Pool, Status, Vip};

/// Show listeners, pools, backends, VIPs and workers.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    options: Options,
}

/// Prints the status of the running weir.
pub fn run(args: Args) -> ExitCode {
    match client::ask(&args.options, &Question::Status) {
        Err(error) => client::fail(&args.options, &error),
        Ok(document) => {
            match serde_json::from_value::<Status>(document.clone()) {
                Ok(status) if !args.options.json => table::print(&text(&status)),
                _ => table::print_json(&document),
            }
            ExitCode::SUCCESS
        }
    }
}

/// The document as tables.
pub fn text(status: &Status) -> String {
    let mut out = head(status);
    out.push_str(&listeners(status));
    for pool in &status.pools {
        out.push_str(&one_pool(pool));
        out.push_str(&super::members::sources(&pool.sources));
    }
    out.push_str(&failover(status));
    out.push_str(&workers(status));
    out
}

fn head(status: &Status) -> String {
    let Status {
        version,
        pid,
        uptime_s,
        generation,
        process,
        ..
    } = status;
    let file = status.config_file.as_deref().unwrap_or("command line");
    let mut out = format!(
        "weir {version}, pid {pid}, up {}, {} (generation {generation})\n",
        age(*uptime_s),
        table::clean(file),
    );
    let _ = writeln!(
        out,
        "connections {} of {}, UDP sessions {} of {}, descriptors {} of {}, memory {}",
        process.connections,
        process.connections_max,
        process.udp_sessions,
        process.udp_sessions_max,
        process.open_fds,
        process.limit_fds,
        bytes(process.resident_bytes),
    );
    if let Some(kernel) = &status.kernel {
        out.push_str(&packets(kernel));
    }
    if status.stopping {
        out.push_str("stopping: open connections may finish\n");
    }
    if process.records_dropped > 0 {
        let _ = writeln!(out, "access log: {} records lost", process.records_dropped);
    }
    if let Some(error) = &status.reload_error {
        let _ = writeln!(
            out,
            "the last reload was refused:\n  {}",
            table::clean(error).replace('\n', "\n  ")
        );
    }
    if let Some(error) = &status.upgrade_error {
        let _ = writeln!(
            out,
            "the last upgrade failed:\n  {}",
            table::clean(error).replace('\n', "\n  ")
        );
    }
    out
}

/// What the kernel engine counts.
fn packets(kernel: &Kernel) -> String {
    let Kernel {
        flows,
        flows_max,
        packets_in,
        packets_out,
        dropped,
    } = kernel;
    let mut line = format!("kernel engine: flows {flows} of {flows_max}, packets {packets_in} in, {packets_out} out");
    let mut dropped = dropped
        .iter()
        .map(|(reason, n)| format!("{} {n}", table::clean(reason)));
    if let Some(first) = dropped.next() {
        let _ = write!(
            line,
            "; not passed on: {}",
            dropped.fold(first, |all, one| all + ", " + &one)
        );
    }
    line + "\n"
}

fn listeners(status: &Status) -> String {
    let mut rows = Rows::new(&[
        "LISTENER", "PROTO", "ENGINE", "BIND", "POOL", ">ACTIVE", ">TOTAL", ">REFUSED", ">IN", ">OUT",
    ]);
    for listener in &status.listeners {
        rows.row([
            (&listener.name).into(),
            (&listener.protocol).into(),
            (&listener.engine).into(),
            listener.bind.join(" ").into(),
            listener.pool_shown().into(),
            listener.active.into(),
            listener.accepted.into(),
            trouble(listener.refused),
            bytes(listener.bytes_in).into(),
            bytes(listener.bytes_out).into(),
        ]);
    }
    let listeners = format!("\n{}", rows.finish(""));
    let mut rows = Rows::new(&["LISTENER", "SERVER NAME", "POOL", ">TOTAL"]);
    let routes = status
        .listeners
        .iter()
        .flat_map(|listener| listener.routes.iter().map(move |route| (listener, route)));
    let mut any = false;
    for (listener, route) in routes {
        any = true;
        rows.row([
            (&listener.name).into(),
            (&route.name).into(),
            (&route.pool).into(),
            route.connections.into(),
        ]);
    }
    match any {
        true => format!("{listeners}\n{}", rows.finish("")),
        false => listeners,
    }
}

fn one_pool(pool: &Pool) -> String {
    let mut rows = Rows::new(&[
        "BACKEND", "ADDRESS", "STATE", ">SINCE", ">WEIGHT", ">ACTIVE", ">TOTAL", ">FAILED", ">IN", ">OUT", ">CONNECT",
        "REASON",
    ]);
    for backend in &pool.backends {
        rows.row([
            name(backend).into(),
            (&backend.address).into(),
            Value(backend.state.clone(), tone(&backend.state)),
            age(backend.since_s).into(),
            backend.weight.into(),
            backend.active.into(),
            backend.total.into(),
            trouble(backend.failed),
            bytes(backend.bytes_in).into(),
            bytes(backend.bytes_out).into(),
            millis(backend.connect_ms).into(),
            Value(backend.reason.clone(), Tone::Dim),
        ]);
    }
    let Pool {
        name,
        balance,
        eligible,
        queue,
        ..
    } = pool;
    let waiting = match queue {
        Some(queue) if queue.length > 0 => {
            format!(
                ", {} wait for room, the first for {} ms",
                queue.length, queue.longest_ms
            )
        }
        _ => String::new(),
    };
    format!(
        "\npool {}: {balance}, {eligible} of {} take new work{}{waiting}\n{}",
        table::clean(name),
        pool.backends.len(),
        match &*pool.serving {
            "backup" => " (backups: no primary is left)",
            "all" => " (nothing is up: trying all)",
            _ => "",
        },
        rows.finish("  ")
    )
}

fn name(backend: &Backend) -> String {
    match backend.backup {
        true => format!("{} (backup)", backend.name),
        false => backend.name.clone(),
    }
}

/// Why the address is in its state; when nobody holds it, what every node lacks.
fn why(vip: &Vip) -> String {
    match &vip.obstacles {
        None => vip.reason.clone(),
        Some(all) => format!("nobody holds it: {}", all.join(", ")),
    }
}

fn failover(status: &Status) -> String {
    let mut out = String::new();
    if !status.vips.is_empty() {
        let mut rows = Rows::new(&["VIP", "INTERFACE", "STATE", "HOLDER", ">SINCE", "REASON"]);
        for vip in &status.vips {
            rows.row([
                (&vip.address).into(),
                (&vip.interface).into(),
                Value(vip.state.clone(), tone(&vip.state)),
                vip.holder.as_deref().unwrap_or("-").into(),
                age(vip.since_s).into(),
                Value(why(vip), Tone::Dim),
            ]);
        }
        out = format!("\n{}", rows.finish(""));
    }
    if !status.nodes.is_empty() {
        let mut rows = Rows::new(&["NODE", "STATE", ">LAST BEAT", "CONFIGURATION"]);
        for node in &status.nodes {
            let (word, tone) = if node.alive {
                ("alive", Tone::Good)
            } else {
                ("dead", Tone::Bad)
            };
            rows.row([
                (&node.name).into(),
                Value(word.into(), tone),
                node.last_beat_ms
                    .map_or("never".into(), |ms| format!("{ms} ms ago"))
                    .into(),
                match &node.mismatch {
                    None => Value("the same".into(), Tone::Dim),
                    Some(what) => Value(what.clone(), Tone::Bad),
                },
            ]);
        }
        let _ = write!(out, "\n{}", rows.finish(""));
    }
    if !status.witnesses.is_empty() {
        let mut rows = Rows::new(&["WITNESS", "STATE"]);
        for witness in &status.witnesses {
            let (word, tone) = match witness.up {
                Some(true) => ("answers", Tone::Good),
                Some(false) => ("silent", Tone::Bad),
                None => ("asked", Tone::Dim),
            };
            rows.row([(&witness.address).into(), Value(word.into(), tone)]);
        }
        let _ = write!(out, "\n{}", rows.finish(""));
    }
    if !status.tracks.is_empty() {
        let mut rows = Rows::new(&["TRACK", "WATCHES", "STATE", ">WEIGHT", "REASON"]);
        for track in &status.tracks {
            let (word, tone) = match track.holds {
                Some(true) => ("holds", Tone::Good),
                Some(false) => ("does not hold", Tone::Bad),
                None => ("asked", Tone::Dim),
            };
            let weight = track.weight.map_or("must hold".into(), |weight| weight.to_string());
            rows.row([
                (&track.name).into(),
                (&track.what).into(),
                Value(word.into(), tone),
                weight.into(),
                Value(track.reason.clone().unwrap_or_default(), Tone::Dim),
            ]);
        }
        let _ = write!(out, "\n{}", rows.finish(""));
    }
    if let Some(arbiter) = &status.arbiter {
        let mut rows = Rows::new(&["ARBITER", "VOTES HERE", "REASON"]);
        let (word, tone) = match arbiter.up {
            Some(true) => ("up", Tone::Good),
            Some(false) => ("down", Tone::Bad),
            None => ("asked", Tone::Dim),
        };
        let votes = match arbiter.votes.is_empty() {
            true => "-".to_string(),
            false => arbiter.votes.join(" "),
        };
        rows.row([
            Value(word.into(), tone),
            votes.into(),
            Value(arbiter.problem.clone().unwrap_or_default(), Tone::Dim),
        ]);
        let _ = write!(out, "\n{}", rows.finish(""));
    }
    out
}

fn workers(status: &Status) -> String {
    let mut rows = Rows::new(&[">WORKER", ">CONNECTIONS", ">UDP SESSIONS", ">TURNS", ">LONGEST TURN"]);
    for worker in &status.workers {
        rows.row([
            worker.id.into(),
            worker.connections.into(),
            worker.udp_sessions.into(),
            worker.turns.into(),
            millis(Some(worker.turn_ms_max)).into(),
        ]);
    }
    format!("\n{}", rows.finish(""))
}
