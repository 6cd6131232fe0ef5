//! The DNS source: keeps the names of STRICT_DNS and LOGICAL_DNS clusters resolved.
//!
//! One task a name asks again and again; a name that cannot be asked for keeps its last
//! addresses. What changed is published as a new [`DnsTable`], which the next snapshot is
//! compiled with.

mod queries;
mod resolver;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::snapshot::DnsTable;

pub use queries::{Queries, Query, Refresh, queries};
pub use resolver::{DnsError, Resolver};

/// A record with a TTL of 0 is still only asked for this often.
const MIN_REFRESH: Duration = Duration::from_secs(1);
/// Part of the refresh rate by which a resolution may come late, so that the names of a
/// configuration do not ask all at once.
const JITTER: f64 = 0.1;

/// Counters of the DNS source, for metrics.
#[derive(Debug, Default)]
pub struct DnsStats {
    /// Resolutions tried.
    pub attempts: AtomicU64,
    /// Resolutions without an answer; the last addresses were kept.
    pub failures: AtomicU64,
}

/// The running source. It ends when dropped, or when the queries' sender is gone.
#[derive(Debug)]
pub struct DnsSource {
    table: watch::Receiver<Arc<DnsTable>>,
    stats: Arc<DnsStats>,
    task: JoinHandle<()>,
}

impl DnsSource {
    /// Starts resolving whatever `queries` holds. Needs a tokio runtime.
    pub fn start(resolver: Resolver, queries: watch::Receiver<Arc<Queries>>) -> Self {
        let (publish, table) = watch::channel(Arc::default());
        let stats = Arc::new(DnsStats::default());
        let source = Source {
            resolver: Arc::new(resolver),
            stats: stats.clone(),
            running: HashMap::new(),
            publish,
        };
        let task = tokio::spawn(source.run(queries));
        Self { table, stats, task }
    }

    /// What names resolve to; changes only when an address came or went.
    pub fn table(&self) -> watch::Receiver<Arc<DnsTable>> {
        self.table.clone()
    }

    /// The counters.
    pub fn stats(&self) -> &Arc<DnsStats> {
        &self.stats
    }
}

impl Drop for DnsSource {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// What one name resolved to just now.
struct Answer {
    query: Query,
    addresses: Vec<IpAddr>,
}

/// The task of one name; ends when dropped.
struct Running {
    refresh: Refresh,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

struct Source {
    resolver: Arc<Resolver>,
    stats: Arc<DnsStats>,
    running: HashMap<Query, Running>,
    publish: watch::Sender<Arc<DnsTable>>,
}

impl Source {
    async fn run(mut self, mut queries: watch::Receiver<Arc<Queries>>) {
        let (answer, mut answers) = mpsc::channel(64);
        queries.mark_changed();
        loop {
            tokio::select! {
                changed = queries.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    let wanted = queries.borrow_and_update().clone();
                    self.follow(&wanted, &answer);
                }
                // Never `None`: `answer` is alive.
                Some(answer) = answers.recv() => self.take(answer),
            }
        }
    }

    /// Starts and ends tasks until they are those of `wanted`.
    fn follow(&mut self, wanted: &Queries, answer: &mpsc::Sender<Answer>) {
        self.running
            .retain(|query, running| wanted.get(query) == Some(&running.refresh));
        for (query, refresh) in wanted {
            if !self.running.contains_key(query) {
                let task = tokio::spawn(keep_resolved(
                    query.clone(),
                    *refresh,
                    self.resolver.clone(),
                    self.stats.clone(),
                    answer.clone(),
                ));
                let refresh = *refresh;
                self.running
                    .insert(query.clone(), Running { refresh, task });
            }
        }
        self.publish.send_if_modified(|table| {
            let gone = table.keys().any(|query| !wanted.contains_key(query));
            if gone {
                let mut next = DnsTable::clone(table);
                next.retain(|query, _| wanted.contains_key(query));
                *table = Arc::new(next);
            }
            gone
        });
    }

    fn take(&self, answer: Answer) {
        // It may have been on its way when the name left the configuration.
        if !self.running.contains_key(&answer.query) {
            return;
        }
        self.publish.send_if_modified(|table| {
            let known = table.get(&answer.query);
            let changed = known.is_none_or(|known| !same_addresses(known, &answer.addresses));
            if changed {
                let mut next = DnsTable::clone(table);
                next.insert(answer.query, answer.addresses.into());
                *table = Arc::new(next);
            }
            changed
        });
    }
}

/// Servers rotate their answers. The order only counts for LOGICAL_DNS, which then stays on its
/// address for as long as that one is among the answers.
fn same_addresses(known: &[IpAddr], now: &[IpAddr]) -> bool {
    let known: HashSet<_> = known.iter().collect();
    known == now.iter().collect()
}

async fn keep_resolved(
    query: Query,
    refresh: Refresh,
    resolver: Arc<Resolver>,
    stats: Arc<DnsStats>,
    answer: mpsc::Sender<Answer>,
) {
    let mut failing = false;
    loop {
        stats.attempts.fetch_add(1, Ordering::Relaxed);
        let (host, family) = &query;
        let mut pause = refresh.rate;
        match resolver.resolve(host, *family).await {
            Ok(resolved) => {
                failing = false;
                if refresh.respect_ttl
                    && let Some(valid_until) = resolved.valid_until
                {
                    pause = valid_until.saturating_duration_since(Instant::now());
                }
                let query = query.clone();
                let addresses = resolved.addresses;
                if answer.send(Answer { query, addresses }).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                stats.failures.fetch_add(1, Ordering::Relaxed);
                // Once a failure, not once a refresh.
                if !std::mem::replace(&mut failing, true) {
                    tracing::warn!(%host, %error, "name not resolved; its last addresses stay");
                }
            }
        }
        let jitter = 1.0 + JITTER * fastrand::f64();
        tokio::time::sleep(pause.max(refresh.rate.min(MIN_REFRESH)).mul_f64(jitter)).await;
    }
}
