//! What both ends of every connection have seen, held against what both have sent.

use std::collections::HashMap;

use super::setup::TLS;
use super::stream::{Goodbye, NAME, Stream, byte};
use super::{NAMES, Nature};
use crate::base::Side;
use crate::config::model::{BackendAddress, Config, SendProxy};
use crate::link::Record;
use crate::relay::{Cause, proxy_header};

/// What a peer has received, without the PROXY header and the TLS hello in front of it.
fn content<'a>(stream: &'a Stream, config: &Config) -> &'a [u8] {
    if stream.side == Side::Client {
        return &stream.got;
    }
    let pool = config.pools.iter().find(|pool| {
        let mut backends = pool.backends.iter();
        backends.any(|backend| backend.address == BackendAddress::Ip(stream.peer))
    });
    let has_header = pool.is_some_and(|pool| pool.policy.send_proxy != SendProxy::Off);
    let got = match proxy_header::parse(&stream.got) {
        proxy_header::Parsed::Header { len, .. } if has_header => &stream.got[len..],
        _ if has_header => &[],
        _ => &stream.got[..],
    };
    match got {
        [22, 3, 1, ..] => after_hello(got),
        // Too little of one to tell.
        [22] | [22, 3] => &[],
        _ => got,
    }
}

/// What comes behind the records of a hello; nothing while it is not whole.
fn after_hello(mut bytes: &[u8]) -> &[u8] {
    let mut message = Vec::new();
    while let [22, 3, 1, high, low, rest @ ..] = bytes {
        let len = usize::from(u16::from_be_bytes([*high, *low]));
        let Some((record, rest)) = rest.split_at_checked(len) else {
            break;
        };
        message.extend(record);
        bytes = rest;
        if let [1, high, middle, low, body @ ..] = &message[..]
            && body.len() == u32::from_be_bytes([0, *high, *middle, *low]) as usize
        {
            return rest;
        }
    }
    &[]
}

/// Who has sent it, if that much has arrived.
fn name(bytes: &[u8]) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(..NAME)?.try_into().unwrap()))
}

pub(super) fn check(seed: u64, nature: Nature, config: &Config, streams: Vec<Stream>, records: Vec<Record>) {
    let by_name: HashMap<u32, &Stream> = streams.iter().map(|stream| (stream.who, stream)).collect();
    let causes: HashMap<_, _> = records
        .iter()
        .filter(|record| !record.interim)
        .map(|record| (record.client, record.cause))
        .collect();
    let mut partners: HashMap<u32, u32> = HashMap::new();
    for stream in &streams {
        if let Some(sender) = name(content(stream, config)) {
            for (one, other) in [(stream.who, sender), (sender, stream.who)] {
                let known = *partners.entry(one).or_insert(other);
                assert_eq!(known, other, "seed {seed}: {one} is connected to two peers");
            }
        }
    }
    for stream in &streams {
        let got = content(stream, config);
        let who = (seed, stream.side, stream.who);
        let Some(partner) = partners.get(&stream.who).and_then(|partner| by_name.get(partner)) else {
            assert!(got.len() < NAME, "{who:?}: from nobody");
            continue;
        };
        assert_ne!(partner.side, stream.side, "{who:?}");
        // Who takes too long is served like the rest.
        if let (Side::Backend, Some(asked), false) = (stream.side, partner.asks_for, nature.timed) {
            let has_route = NAMES.iter().any(|(name, has_route)| *name == asked && *has_route);
            assert_eq!(stream.peer.port() == TLS, has_route, "{who:?} serves {asked}");
        }
        assert!(
            stream.side == Side::Client || stream.peer.port() != TLS || partner.asks_for.is_some(),
            "{who:?} serves a client without a name"
        );
        let wrong = got.iter().enumerate().find(|(at, got)| **got != byte(partner.who, *at));
        let expected = wrong.map(|(at, _)| {
            (at..got.len().min(at + 4))
                .map(|at| byte(partner.who, at))
                .collect::<Vec<_>>()
        });
        let found = wrong.map(|(at, _)| &got[at..got.len().min(at + 4)]);
        assert_eq!(
            expected.as_deref(),
            found,
            "{who:?}: byte {:?} of {}; urgent: sent {:?}, arrived {:?}",
            wrong.map(|(at, _)| at),
            got.len(),
            partner.marks,
            stream.got_urgent
        );
        let header = stream.got.len() - got.len();
        for at in &stream.got_urgent {
            assert!(
                partner.marks.contains(&(at - header)),
                "{who:?}: byte {at} was not sent as urgent"
            );
        }
        let sent = partner.arrived.saturating_sub(partner.prefix.len());
        assert!(got.len() <= sent, "{who:?}");
        let cause = causes.get(&Some(if stream.side == Side::Client {
            stream.peer
        } else {
            partner.peer
        }));
        let cause = cause.unwrap_or_else(|| panic!("{who:?}: no record"));
        let told = || {
            format!(
                "{who:?} got {} of {sent}, {cause:?} {nature:?}\n{}\n{}",
                got.len(),
                stream.tell(),
                partner.tell()
            )
        };
        let is_whole = got.len() == sent;
        let hears_all = !stream.disturbed && !partner.disturbed && stream.deaf_after == usize::MAX;
        // A FIN says that this was all.
        if stream.got_end == Some(Goodbye::Fin) {
            assert!(is_whole, "FIN behind a part: {}", told());
        }
        if !hears_all {
            continue;
        }
        let lively = |stream: &Stream| stream.goodbye == Goodbye::Fin && stream.deaf_after == usize::MAX;
        if lively(stream) && lively(partner) && !nature.rough && !nature.timed {
            assert!(matches!(cause, Cause::Finished | Cause::LimitProcess), "{}", told());
        }
        match cause {
            Cause::Finished if stream.reset => {}
            Cause::Finished => assert!(is_whole && stream.got_end == Some(Goodbye::Fin), "{}", told()),
            // Who is quiet has nothing waiting, unless it is gone.
            Cause::IdleTimeout if stream.reset => {}
            Cause::IdleTimeout => assert!(is_whole, "{}", told()),
            // What was sent before a reset has arrived.
            Cause::ClientReset | Cause::BackendReset if partner.reset && !stream.reset => {
                // It may have ended its stream in order before.
                let ended = partner.fin || stream.got_end == Some(Goodbye::Reset);
                assert!(is_whole && ended, "{}", told());
            }
            _ => {}
        }
    }
}
