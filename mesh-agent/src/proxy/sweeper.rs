//! The turns of outlier detection, away from the workers.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::snapshot::{ClusterView, SharedSnapshot, outlier};

/// How often a new snapshot is looked for.
const LOOK: Duration = Duration::from_secs(1);

/// Runs until the sender is dropped.
pub(super) fn run(snapshots: &SharedSnapshot, stop: &Receiver<()>) {
    let mut generation = None;
    let mut watched: Vec<Arc<ClusterView>> = Vec::new();
    // By cluster's state: a cluster keeps its rhythm over snapshots.
    let mut next: HashMap<usize, Instant> = HashMap::new();
    loop {
        let snapshot = snapshots.load_full();
        if generation != Some(snapshot.generation) {
            generation = Some(snapshot.generation);
            watched = snapshot
                .views
                .values()
                .flat_map(|view| view.clusters.values())
                .filter(|cluster| cluster.config.outlier.is_some())
                .cloned()
                .collect();
            let alive = |state: usize| watched.iter().any(|cluster| key(cluster) == state);
            next.retain(|state, _| alive(*state));
        }
        drop(snapshot);
        let now = Instant::now();
        let mut wait = LOOK;
        for cluster in &watched {
            let Some(config) = &cluster.config.outlier else {
                continue;
            };
            let at = next
                .entry(key(cluster))
                .or_insert_with(|| now + config.interval);
            if *at <= now {
                outlier::turn(cluster);
                *at = now + config.interval;
            }
            wait = wait.min(at.saturating_duration_since(now));
        }
        match stop.recv_timeout(wait) {
            Err(RecvTimeoutError::Timeout) => {}
            Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

fn key(cluster: &ClusterView) -> usize {
    Arc::as_ptr(&cluster.state) as usize
}
