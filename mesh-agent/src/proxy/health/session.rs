//! The checks of one endpoint, one after the other (Envoy: `ActiveHealthCheckSession`).

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::config::model::Name;
use crate::config::model::endpoint::Health;
use crate::config::model::health_check::HealthCheck;
use crate::proxy::stats::count;
use crate::snapshot::checked::{self, Change, Checked, Finding};
use crate::snapshot::cluster::Host;
use crate::snapshot::{ClusterView, ViewId};
use crate::workload::PodId;

use super::probe::{self, Line};
use super::{LOOK, Shared};

/// Who is checked.
pub(super) struct Subject {
    pub(super) view: ViewId,
    pub(super) cluster: Name,
    pub(super) address: SocketAddr,
    pub(super) checked: Arc<Checked>,
}

impl Subject {
    /// As the newest snapshot has it; `None`: it is gone.
    fn find(&self, shared: &Shared) -> Option<(Arc<ClusterView>, Arc<Host>)> {
        let snapshot = shared.snapshots.load();
        let cluster = snapshot.view(self.view)?.clusters.get(&self.cluster)?;
        let host = cluster.hosts().find(|host| {
            let checked = host.checked.as_ref();
            checked.is_some_and(|checked| Arc::ptr_eq(checked, &self.checked))
        })?;
        Some((cluster.clone(), host.clone()))
    }
}

/// Runs until the endpoint is gone, or is checked another way.
pub(super) async fn run(shared: Rc<Shared>, subject: Subject) {
    let mut line: Option<(PodId, Line)> = None;
    let mut found = subject.find(&shared);
    if let Some((cluster, _)) = &found
        && let Some(config) = &cluster.config.health_check
    {
        tokio::time::sleep(config.initial_jitter.mul_f64(fastrand::f64())).await;
    }
    loop {
        let current = {
            let snapshot = shared.snapshots.load();
            let view = snapshot.view(subject.view);
            view.and_then(|view| view.clusters.get(&subject.cluster).cloned())
        };
        let same = match (&current, &found) {
            (Some(current), Some((known, _))) => Arc::ptr_eq(current, known),
            _ => false,
        };
        if !same {
            found = subject.find(&shared);
        }
        let Some((cluster, host)) = &found else {
            break;
        };
        let Some(config) = &cluster.config.health_check else {
            break;
        };
        let Some(pod) = shared.pod_of(subject.view) else {
            // Nobody uses the cluster.
            line = None;
            tokio::time::sleep(LOOK).await;
            continue;
        };
        let stats = &cluster.state.stats;
        count(&stats.health_check_attempt);
        let reused = line.take().filter(|(of, _)| *of == pod.id);
        let asking = probe::ask(
            &shared.tls,
            &pod,
            cluster,
            host,
            config,
            reused.map(|(_, line)| line),
        );
        let finding = match tokio::time::timeout(config.timeout, asking).await {
            Ok((finding, kept)) => {
                line = kept
                    .filter(|_| config.reuse_connection)
                    .map(|line| (pod.id, line));
                finding
            }
            Err(_) => Finding::TimedOut,
        };
        count(match finding {
            Finding::Healthy | Finding::Degraded => &stats.health_check_success,
            Finding::Failed | Finding::TimedOut | Finding::Unwell => &stats.health_check_failure,
        });
        let was_down = subject.checked.health() == Health::Unhealthy;
        let change = checked::record(cluster, &subject.checked, finding);
        if change == Change::Healthy && was_down {
            host.state.well_from_now();
        }
        if change != Change::None {
            tracing::info!(cluster = %subject.cluster, address = %subject.address, ?change, "a health check changed an endpoint");
        }
        tokio::time::sleep(interval(config, cluster, subject.checked.health(), change)).await;
    }
    let key = Arc::as_ptr(&subject.checked).addr();
    shared.sessions.borrow_mut().remove(&key);
}

/// Envoy: `HealthCheckerImplBase::interval`.
fn interval(
    config: &HealthCheck,
    cluster: &ClusterView,
    health: Health,
    change: Change,
) -> Duration {
    let used = cluster
        .state
        .stats
        .upstream_cx_total
        .load(Ordering::Relaxed)
        > 0;
    let base = match (used, health, change) {
        (false, Health::Unhealthy, _) => config.no_traffic_interval,
        (false, _, _) => config.no_traffic_healthy_interval,
        (true, Health::Unhealthy, Change::Unhealthy) => config.unhealthy_edge_interval,
        (true, Health::Unhealthy, _) => config.unhealthy_interval,
        (true, _, Change::Healthy) => config.healthy_edge_interval,
        (true, ..) => config.interval,
    };
    let percent = f64::from(config.interval_jitter_percent) / 100.0;
    base + base.mul_f64(percent * fastrand::f64()) + config.interval_jitter.mul_f64(fastrand::f64())
}
