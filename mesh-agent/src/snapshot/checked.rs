//! What active health checks found of an endpoint.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering};

use crate::config::model::endpoint::Health;
use crate::config::model::health_check::HealthCheck;

use super::ClusterView;

/// What is remembered of an endpoint; outlives snapshots.
#[derive(Debug, Default)]
pub struct Checked {
    state: AtomicU8,
    healthy: AtomicU32,
    unhealthy: AtomicU32,
    timed_out: AtomicBool,
}

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finding {
    /// As expected.
    Healthy,
    /// As expected, and the endpoint says that it is not at its best (`x-envoy-degraded`).
    Degraded,
    /// No answer, or one that counts towards the threshold.
    Failed,
    /// No answer in time.
    TimedOut,
    /// An answer that says that the endpoint is unwell: no threshold counts.
    Unwell,
}

const UNKNOWN: u8 = 0;
const HEALTHY: u8 = 1;
const DEGRADED: u8 = 2;
const UNHEALTHY: u8 = 3;

/// What a check changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// The endpoint is well, or well again.
    Healthy,
    /// It is unwell.
    Unhealthy,
}

impl Checked {
    /// How well it is. One that was never checked is not used (Envoy: `FAILED_ACTIVE_HC` until
    /// the first check).
    pub fn health(&self) -> Health {
        match self.state.load(Ordering::Relaxed) {
            HEALTHY => Health::Healthy,
            DEGRADED => Health::Degraded,
            _ => Health::Unhealthy,
        }
    }

    /// Whether no check has come to an end yet.
    pub fn pending(&self) -> bool {
        self.state.load(Ordering::Relaxed) == UNKNOWN
    }

    /// Whether the last check was not answered in time.
    pub fn timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Relaxed)
    }

    /// Counts a check (Envoy: `ActiveHealthCheckSession::handleSuccess`, `setUnhealthy`). There
    /// is one at a time.
    pub fn record(&self, config: &HealthCheck, finding: Finding) -> Change {
        let before = self.state.load(Ordering::Relaxed);
        let after = match finding {
            Finding::Healthy | Finding::Degraded => {
                self.unhealthy.store(0, Ordering::Relaxed);
                let well = if finding == Finding::Degraded {
                    DEGRADED
                } else {
                    HEALTHY
                };
                let row = self.healthy.load(Ordering::Relaxed) + 1;
                self.healthy.store(row, Ordering::Relaxed);
                match before {
                    UNHEALTHY if row < config.healthy_threshold => UNHEALTHY,
                    _ => well,
                }
            }
            Finding::Failed | Finding::TimedOut | Finding::Unwell => {
                self.healthy.store(0, Ordering::Relaxed);
                let row = self.unhealthy.load(Ordering::Relaxed) + 1;
                self.unhealthy.store(row, Ordering::Relaxed);
                match before {
                    HEALTHY | DEGRADED
                        if finding != Finding::Unwell && row < config.unhealthy_threshold =>
                    {
                        before
                    }
                    _ => UNHEALTHY,
                }
            }
        };
        self.state.store(after, Ordering::Relaxed);
        let timed_out = finding == Finding::TimedOut;
        self.timed_out.store(timed_out, Ordering::Relaxed);
        match (before, after) {
            (HEALTHY | DEGRADED, UNHEALTHY) => Change::Unhealthy,
            (UNKNOWN | UNHEALTHY, HEALTHY | DEGRADED) => Change::Healthy,
            (HEALTHY, DEGRADED) | (DEGRADED, HEALTHY) => Change::Healthy,
            _ => Change::None,
        }
    }
}

/// Counts a check of an endpoint and lets the balancers know what it changed.
pub fn record(cluster: &ClusterView, checked: &Checked, finding: Finding) -> Change {
    let Some(config) = &cluster.config.health_check else {
        return Change::None;
    };
    let change = checked.record(config, finding);
    if change != Change::None {
        cluster.state.health_changed();
    }
    change
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::config::model::health_check::{Probe, TcpProbe};

    use super::*;

    fn config() -> HealthCheck {
        let second = Duration::from_secs(1);
        HealthCheck {
            timeout: second,
            interval: second,
            initial_jitter: Duration::ZERO,
            interval_jitter: Duration::ZERO,
            interval_jitter_percent: 0,
            unhealthy_threshold: 2,
            healthy_threshold: 3,
            reuse_connection: true,
            no_traffic_interval: second,
            no_traffic_healthy_interval: second,
            unhealthy_interval: second,
            unhealthy_edge_interval: second,
            healthy_edge_interval: second,
            probe: Probe::Tcp(TcpProbe {
                send: Default::default(),
                receive: Vec::new(),
            }),
        }
    }

    #[test]
    fn the_first_check_decides_and_later_ones_count() {
        let checked = Checked::default();
        assert_eq!(checked.health(), Health::Unhealthy);
        assert!(checked.pending());
        let record = |finding| checked.record(&config(), finding);
        assert_eq!(record(Finding::Healthy), Change::Healthy);
        assert_eq!(record(Finding::Failed), Change::None);
        assert_eq!(record(Finding::Healthy), Change::None);
        assert_eq!(record(Finding::Failed), Change::None);
        assert_eq!(record(Finding::Failed), Change::Unhealthy);
        assert_eq!(record(Finding::Healthy), Change::None);
        assert_eq!(record(Finding::Healthy), Change::None);
        assert_eq!(checked.health(), Health::Unhealthy);
        assert_eq!(record(Finding::Degraded), Change::Healthy);
        assert_eq!(checked.health(), Health::Degraded);
        assert_eq!(record(Finding::Unwell), Change::Unhealthy);
    }

    #[test]
    fn an_endpoint_whose_first_check_fails_is_unhealthy() {
        let checked = Checked::default();
        assert_eq!(checked.record(&config(), Finding::Failed), Change::None);
        assert!(!checked.pending());
        assert_eq!(checked.record(&config(), Finding::Healthy), Change::None);
    }
}
