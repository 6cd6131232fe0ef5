//! Who stands must stand by what holds now: streams and tunnels learn that rules, certificates or
//! roots have changed.

use tokio::sync::watch;

use crate::proxy::worker::Shared;

use super::{PING, PONG};

/// Tells of changes.
pub(in crate::proxy) type Changes = watch::Receiver<Generation>;

/// What was in force at a moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::proxy) struct Generation {
    configuration: u64,
    credentials: u64,
}

/// Looks for changes, and tells of them.
#[derive(Debug)]
pub(in crate::proxy) struct Watch(watch::Sender<Generation>);

impl Watch {
    pub(in crate::proxy) fn new() -> (Self, Changes) {
        let (sender, changes) = watch::channel(Generation::default());
        (Self(sender), changes)
    }

    /// Whether somebody wants to be told.
    pub(in crate::proxy) fn has_listeners(&self) -> bool {
        // One is kept for those to come.
        self.0.receiver_count() > 1
    }

    /// Tells of what changed since the last look.
    pub(in crate::proxy) fn look(&self, shared: &Shared) {
        let now = Generation {
            configuration: shared.snapshots.load().generation,
            credentials: shared.credentials.load().generation,
        };
        self.0.send_if_modified(|known| {
            let changed = *known != now;
            *known = now;
            changed
        });
    }
}

/// Asks a tunnel's other side now and then whether it is there; ends when it is not.
pub(super) async fn pings(ping: Option<h2::PingPong>) {
    let Some(mut ping) = ping else {
        return std::future::pending().await;
    };
    loop {
        tokio::time::sleep(PING).await;
        match tokio::time::timeout(PONG, ping.ping(h2::Ping::opaque())).await {
            Ok(Ok(_)) => {}
            // The tunnel itself tells its end.
            Ok(Err(_)) => return std::future::pending().await,
            Err(_) => return,
        }
    }
}
