//! A cluster with its endpoints, and the state that outlives snapshots.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::balance::subset::Metadata;
use crate::config::model::Name;
use crate::config::model::cluster::Cluster;
use crate::config::model::endpoint::{Health, LoadAssignment, Locality};
use crate::config::model::health_check::EndpointCheck;
use crate::config::model::tls::UpstreamTransport;
use crate::identity::SslStats;
use crate::telemetry::histogram::Histogram;

use super::balancer::{Balancer, Settings};
use super::breakers::{ByPriority, Resources};
use super::checked::Checked;
use super::outlier;
use super::reported::Reported;
use super::subsets::{BySubset, Chosen};

/// A cluster as one snapshot sees it.
#[derive(Debug)]
pub struct ClusterView {
    /// The configuration.
    pub config: Arc<Cluster>,
    /// The endpoints as they were given; `None`: they were not, or need none.
    pub assignment: Option<Arc<LoadAssignment>>,
    /// The endpoints, by priority: index 0 is the highest.
    pub priorities: Vec<Vec<Arc<Host>>>,
    /// Chooses among them.
    pub(super) balancer: Changing,
    /// Chooses among those of a subset; `None`: there are no subsets.
    pub(super) subsets: Option<BySubset>,
    /// How connections to addresses that are no endpoints are secured (ORIGINAL_DST).
    pub transport: UpstreamTransport,
    /// Whether endpoints were ever delivered: an EDS cluster waits for them.
    pub warmed: bool,
    /// What may be in use at once.
    pub breakers: ByPriority,
    /// Counters that outlive this snapshot.
    pub state: Arc<ClusterState>,
}

impl ClusterView {
    /// Chooses among the endpoints, as well as they are now.
    pub fn balancer(&self) -> arc_swap::Guard<Arc<Balancer>> {
        self.balancer.current(&self.priorities, &self.state)
    }

    /// Chooses among the endpoints of the subset that is asked for; `None`: there is none, and
    /// nothing stands in for it.
    pub fn balancer_of(&self, subset: Option<&Metadata>) -> Option<arc_swap::Guard<Arc<Balancer>>> {
        static NOTHING: Metadata = Metadata::new();
        let Some(subsets) = &self.subsets else {
            return Some(self.balancer());
        };
        match subsets.choose(subset.unwrap_or(&NOTHING), &self.state) {
            Chosen::Any => Some(self.balancer()),
            Chosen::Some(balancer) => Some(balancer),
            Chosen::Nobody => None,
        }
    }

    /// Every endpoint, highest priority first.
    pub fn hosts(&self) -> impl Iterator<Item = &Arc<Host>> {
        self.priorities.iter().flatten()
    }
}

/// A balancer that is built anew when endpoints' health has changed.
#[derive(Debug)]
pub(super) struct Changing {
    settings: Settings,
    current: ArcSwap<Balancer>,
    /// Which health it was built for.
    built_for: AtomicU64,
    building: Mutex<()>,
}

impl Changing {
    /// For the health of now.
    pub(super) fn new(
        priorities: &[Vec<Arc<Host>>],
        settings: Settings,
        state: &ClusterState,
    ) -> Self {
        let built_for = state.health.load(Ordering::Acquire);
        Self {
            current: ArcSwap::from_pointee(Balancer::new(priorities, &settings)),
            settings,
            built_for: AtomicU64::new(built_for),
            building: Mutex::new(()),
        }
    }

    pub(super) fn current(
        &self,
        priorities: &[Vec<Arc<Host>>],
        state: &ClusterState,
    ) -> arc_swap::Guard<Arc<Balancer>> {
        let health = state.health.load(Ordering::Acquire);
        // One builds; the others choose as before until it is done.
        if health != self.built_for.load(Ordering::Relaxed)
            && let Some(_building) = self.building.try_lock()
        {
            let balancer = Balancer::new(priorities, &self.settings);
            self.current.store(Arc::new(balancer));
            self.built_for.store(health, Ordering::Relaxed);
        }
        self.current.load()
    }
}

/// One endpoint as one snapshot sees it.
#[derive(Debug)]
pub struct Host {
    /// Where it listens.
    pub address: SocketAddr,
    /// For `auto_host_rewrite`; may be empty.
    pub hostname: Arc<str>,
    /// Its share among its locality's endpoints; at least 1.
    pub weight: u32,
    /// Where it is.
    pub locality: Arc<Locality>,
    /// The locality's weight, when given.
    pub locality_weight: Option<u32>,
    /// What the control plane says of it.
    pub health: Health,
    /// What outlier detection remembers of it.
    pub outlier: Arc<outlier::Record>,
    /// What active health checks found; `None`: it is not checked.
    pub checked: Option<Arc<Checked>>,
    /// How it is checked.
    pub check: Arc<EndpointCheck>,
    /// How its connections are secured.
    pub transport: UpstreamTransport,
    /// Where its HBONE tunnel ends, if not at the endpoint itself.
    pub waypoint: Option<SocketAddr>,
    /// Who is there, as Istio's control plane tells it for metrics.
    pub workload: Option<Arc<str>>,
    /// What it is grouped by.
    pub lb_metadata: Arc<Metadata>,
    /// Counters that outlive this snapshot.
    pub state: Arc<HostState>,
}

impl Host {
    /// How well it is: what the control plane says, and what was seen.
    pub fn health_now(&self) -> Health {
        if self.outlier.ejected() {
            return Health::Unhealthy;
        }
        match (self.health, &self.checked) {
            (said, None) => said,
            (said, Some(checked)) => said.worse(checked.health()),
        }
    }
}

/// A cluster's counters: one per cluster name and view, shared by all workers.
#[derive(Debug)]
pub struct ClusterState {
    /// The cluster's name.
    pub name: Name,
    /// Gauges and counters, named as Envoy's cluster statistics.
    pub stats: ClusterStats,
    /// What circuit breakers count.
    pub resources: Resources,
    /// When weights were computed of endpoints' reports; milliseconds.
    pub(super) weighed_ms: AtomicU64,
    /// Grows when an endpoint's health changes.
    health: AtomicU64,
}

impl ClusterState {
    /// Fresh counters.
    pub fn new(name: Name) -> Self {
        Self {
            name,
            stats: ClusterStats::default(),
            resources: Resources::default(),
            weighed_ms: AtomicU64::new(0),
            health: AtomicU64::new(0),
        }
    }

    /// Grows when an endpoint's health changes.
    pub fn health(&self) -> u64 {
        self.health.load(Ordering::Acquire)
    }

    /// Whoever chooses an endpoint next looks at their health again.
    pub(super) fn health_changed(&self) {
        self.health.fetch_add(1, Ordering::Release);
    }
}

/// Envoy's cluster statistics (`cluster.<name>.<field>`).
#[derive(Debug, Default)]
pub struct ClusterStats {
    /// Connections made.
    pub upstream_cx_total: AtomicU64,
    /// Connections open.
    pub upstream_cx_active: AtomicU64,
    /// Connects that failed.
    pub upstream_cx_connect_fail: AtomicU64,
    /// Connects that took too long.
    pub upstream_cx_connect_timeout: AtomicU64,
    /// TLS handshakes.
    pub ssl: SslStats,
    /// Connections given up after the last configured attempt.
    pub upstream_cx_connect_attempts_exceeded: AtomicU64,
    /// Connections refused by the circuit breaker.
    pub upstream_cx_overflow: AtomicU64,
    /// Bytes received from upstreams.
    pub upstream_cx_rx_bytes_total: AtomicU64,
    /// Bytes sent to upstreams.
    pub upstream_cx_tx_bytes_total: AtomicU64,
    /// Requests.
    pub upstream_rq_total: AtomicU64,
    /// Requests in flight.
    pub upstream_rq_active: AtomicU64,
    /// Requests that timed out.
    pub upstream_rq_timeout: AtomicU64,
    /// Requests refused by the circuit breaker.
    pub upstream_rq_pending_overflow: AtomicU64,
    /// Attempts that took too long.
    pub upstream_rq_per_try_timeout: AtomicU64,
    /// Attempts that stood still for too long.
    pub upstream_rq_per_try_idle_timeout: AtomicU64,
    /// Retries.
    pub upstream_rq_retry: AtomicU64,
    /// Requests whose retries helped.
    pub upstream_rq_retry_success: AtomicU64,
    /// Retries refused by the circuit breaker.
    pub upstream_rq_retry_overflow: AtomicU64,
    /// Requests whose number of retries was used up.
    pub upstream_rq_retry_limit_exceeded: AtomicU64,
    /// Retries after a growing time.
    pub upstream_rq_retry_backoff_exponential: AtomicU64,
    /// Retries when the upstream said so.
    pub upstream_rq_retry_backoff_ratelimited: AtomicU64,
    /// Redirects that were followed.
    pub upstream_internal_redirect_succeeded_total: AtomicU64,
    /// Redirects that were to be followed and were left to the client.
    pub upstream_internal_redirect_failed_total: AtomicU64,
    /// Requests whose body was too large to keep.
    pub retry_or_shadow_abandoned: AtomicU64,
    /// Responses that were retried, by class.
    pub retry_upstream_rq_xx: [AtomicU64; 6],
    /// Responses by class: index 1 is 1xx.
    pub upstream_rq_xx: [AtomicU64; 6],
    /// From the request's first byte to the response's last one, in milliseconds.
    pub upstream_rq_time: Histogram,
    /// What outlier detection did.
    pub outlier: outlier::Stats,
    /// Active health checks.
    pub health_check_attempt: AtomicU64,
    /// Those that went well.
    pub health_check_success: AtomicU64,
    /// Those that did not.
    pub health_check_failure: AtomicU64,
    /// Requests or connections that found no healthy endpoint.
    pub upstream_cx_none_healthy: AtomicU64,
}

/// An endpoint's counters: one per cluster state and address.
#[derive(Debug)]
pub struct HostState {
    /// Requests (L7) or connections (L4) in flight, for least request.
    pub active: AtomicU64,
    /// Connections open.
    pub cx_active: AtomicU64,
    /// Connections made.
    pub cx_total: AtomicU64,
    /// Connects that failed.
    pub cx_connect_fail: AtomicU64,
    /// Requests.
    pub rq_total: AtomicU64,
    /// Requests answered without an error.
    pub rq_success: AtomicU64,
    /// Requests answered 5xx or reset.
    pub rq_error: AtomicU64,
    /// What it reports of its load.
    pub reported: Reported,
    /// Since when it is there, or well again: milliseconds since the process began to count.
    well_since: AtomicU64,
}

impl Default for HostState {
    fn default() -> Self {
        Self {
            active: AtomicU64::new(0),
            cx_active: AtomicU64::new(0),
            cx_total: AtomicU64::new(0),
            cx_connect_fail: AtomicU64::new(0),
            rq_total: AtomicU64::new(0),
            rq_success: AtomicU64::new(0),
            rq_error: AtomicU64::new(0),
            reported: Reported::default(),
            well_since: AtomicU64::new(now_ms()),
        }
    }
}

impl HostState {
    /// A health check found it well again: slow start begins anew.
    pub fn well_from_now(&self) {
        self.well_since.store(now_ms(), Ordering::Relaxed);
    }

    /// For how long it is there and well (Envoy: `lastHcPassTime`).
    pub fn well_for(&self) -> Duration {
        Duration::from_millis(now_ms().saturating_sub(self.well_since.load(Ordering::Relaxed)))
    }
}

/// Milliseconds since the process began to count.
pub(super) fn now_ms() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    u64::try_from(START.get_or_init(Instant::now).elapsed().as_millis()).unwrap_or(u64::MAX)
}
