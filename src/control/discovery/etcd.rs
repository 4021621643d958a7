//! `{etcd: PREFIX}`: one key a member, watched.
//!
//! All keys are read at one revision, and watched from the next one on, so nothing is missed and nothing is told twice. A watch that
//! ends, or asks for what etcd has compacted, begins with reading again. Between changes it is asked now and then whether the
//! cluster is there at all: a watch on a member that is cut off from the others is silent.

use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use super::{Shared, Source, Tell};
use crate::config::model::MemberDefaults;
use crate::control::etcd::watch::Notice;
use crate::control::etcd::wire::{Keys as Range, Kind};
use crate::control::etcd::{Client, Error, Settings};
use crate::discovery::{Heard, Keys};

/// How long etcd may take to answer.
const PATIENCE: Duration = Duration::from_secs(3);
/// Time between two looks whether the cluster is there.
const LOOK: Duration = Duration::from_secs(15);
/// Pause before etcd is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// A source that watches the keys of a prefix.
pub struct Etcd {
    /// How to reach the cluster.
    pub settings: Settings,
    /// What all keys of the members begin with.
    pub prefix: String,
    /// What values do not say of a member.
    pub like: MemberDefaults,
}

impl Source for Etcd {
    fn watch(self: Box<Self>, tell: Tell, _: Rc<Shared>) -> Pin<Box<dyn Future<Output = ()>>> {
        Box::pin(async move {
            let client = Client::new(&self.settings);
            loop {
                if let Err(error) = self.follow(&client, &tell).await {
                    tell.hear(Heard::Failed(error.to_string())).await;
                }
                tokio::time::sleep(AGAIN).await;
            }
        })
    }
}

impl Etcd {
    /// Reads and watches until something is in the way, or all has to be read again.
    async fn follow(&self, client: &Client, tell: &Tell) -> Result<(), Error> {
        let range = Range::Prefix(self.prefix.clone().into_bytes());
        let bare = |key: &[u8]| key.get(self.prefix.len()..).unwrap_or_default().to_vec();
        let found = client.get(&range, PATIENCE).await?;
        let mut keys = Keys::default();
        keys.replace(found.kvs.into_iter().map(|kv| (bare(&kv.key), kv.value)));
        tell.hear(keys.members(&self.like)).await;
        let mut watch = client.watch(&range, found.header.revision + 1, PATIENCE).await?;
        let mut look = tokio::time::interval_at(tokio::time::Instant::now() + LOOK, LOOK);
        look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                notice = watch.next() => match notice? {
                    Notice::Changes { changes, .. } => {
                        for change in changes {
                            match change.kind {
                                Kind::Put => keys.put(&bare(&change.kv.key), change.kv.value),
                                Kind::Delete => keys.remove(&bare(&change.kv.key)),
                            }
                        }
                        tell.hear(keys.members(&self.like)).await;
                    }
                    Notice::Quiet { .. } => {}
                    Notice::Compacted { .. } => return Ok(()),
                },
                // Values that make no sense are told of again, too.
                _ = look.tick() => {
                    client.get(&Range::One(self.prefix.clone().into_bytes()), PATIENCE).await?;
                    tell.hear(keys.members(&self.like)).await;
                }
            }
        }
    }
}
