//! Choosing an endpoint.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use http::HeaderMap;

use crate::balance::edf::Edf;
use crate::balance::subset::Metadata;
use crate::config::model::cluster::{Discovery, LbPolicy, OriginalDst};
use crate::config::model::endpoint::Health;
use crate::config::model::tls::UpstreamTransport;
use crate::snapshot::ClusterView;
use crate::snapshot::balancer::Pool;
use crate::snapshot::cluster::{ClusterState, Host};

use super::http::Tried;
use super::stats::count;

/// Where a request or connection goes.
#[derive(Debug, Clone)]
pub(super) enum Target {
    /// An endpoint of the cluster.
    Host(Arc<Host>),
    /// The original destination.
    Original(SocketAddr),
}

impl Target {
    /// Who is there, as Istio's control plane tells it for metrics.
    pub(super) fn workload(&self) -> Option<&str> {
        match self {
            Self::Host(host) => host.workload.as_deref(),
            Self::Original(_) => None,
        }
    }

    pub(super) fn address(&self) -> SocketAddr {
        match self {
            Self::Host(host) => host.address,
            Self::Original(address) => *address,
        }
    }
}

impl Target {
    /// Where its HBONE tunnel ends, if not there.
    pub(super) fn waypoint(&self) -> Option<SocketAddr> {
        match self {
            Self::Host(host) => host.waypoint,
            Self::Original(_) => None,
        }
    }

    /// How connections to it are secured.
    pub(super) fn transport<'a>(&'a self, cluster: &'a ClusterView) -> &'a UpstreamTransport {
        match self {
            Self::Host(host) => &host.transport,
            Self::Original(_) => &cluster.transport,
        }
    }
}

/// What a choice may depend on.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    original: SocketAddr,
    headers: Option<&'a HeaderMap>,
    tried: Option<&'a Tried>,
    hash: Option<u64>,
    subset: Option<&'a Metadata>,
}

impl<'a> Asked<'a> {
    /// For a connection.
    pub(super) fn connection(original: SocketAddr) -> Self {
        Self {
            original,
            headers: None,
            tried: None,
            hash: None,
            subset: None,
        }
    }

    /// For a request on a connection.
    pub(super) fn request(original: SocketAddr, headers: &'a HeaderMap) -> Self {
        Self {
            original,
            headers: Some(headers),
            tried: None,
            hash: None,
            subset: None,
        }
    }

    /// With the request's hash.
    #[must_use]
    pub(super) fn hashed(mut self, hash: Option<u64>) -> Self {
        self.hash = hash;
        self
    }

    /// Of a subset.
    #[must_use]
    pub(super) fn within(mut self, subset: Option<&'a Metadata>) -> Self {
        self.subset = subset;
        self
    }

    /// For another attempt of a request.
    #[must_use]
    pub(super) fn after(mut self, tried: Option<&'a Tried>) -> Self {
        self.tried = tried;
        self
    }
}

/// The endpoint at an address, if it may be used (Envoy: `HostUtility::selectOverrideHost`).
pub(super) fn at(cluster: &ClusterView, address: SocketAddr) -> Option<Target> {
    let mut hosts = cluster.hosts();
    let host = hosts.find(|host| host.address == address)?;
    (host.health_now() != Health::Unhealthy).then(|| Target::Host(host.clone()))
}

/// Picks an endpoint; `None`: there is none to use.
pub(super) fn pick(cluster: &ClusterView, asked: &Asked<'_>) -> Option<Target> {
    if let Discovery::OriginalDst(options) = &cluster.config.discovery {
        return original_dst(options, asked).map(Target::Original);
    }
    let balancer = cluster.balancer_of(asked.subset)?;
    let Some(tried) = asked.tried else {
        let random = asked.hash.unwrap_or_else(|| fastrand::u64(..));
        return pick_host(cluster, balancer.pool(random)?, random, 0).map(Target::Host);
    };
    let excluded = tried.excluded_priorities();
    let mut attempt = 0;
    loop {
        let random = asked.hash.unwrap_or_else(|| fastrand::u64(..));
        let pool = if excluded.is_empty() {
            balancer.pool(random)?
        } else {
            balancer.pool_without(random, &excluded)?
        };
        let host = pick_host(cluster, pool, random, attempt)?;
        if attempt >= tried.attempts as usize || !tried.hosts.contains(&host.address) {
            return Some(Target::Host(host));
        }
        attempt += 1;
    }
}

fn pick_host(cluster: &ClusterView, pool: &Pool, hash: u64, attempt: usize) -> Option<Arc<Host>> {
    let slow = cluster.config.slow_start.as_ref().filter(|slow| {
        let mut hosts = pool.hosts().iter();
        hosts.any(|host| host.state.well_for() < slow.window)
    });
    if let Some(slow) = slow {
        let weight = |host: &Host| match cluster.config.lb {
            LbPolicy::LeastRequest {
                active_request_bias,
                ..
            } => least_weight(host, active_request_bias),
            _ => f64::from(host.weight),
        };
        let host = due(pool, |host| {
            weight(host) * slow.factor(host.state.well_for())
        });
        return Some(host.clone());
    }
    let host = match cluster.config.lb {
        LbPolicy::Random => random(pool),
        LbPolicy::RingHash { .. } | LbPolicy::Maglev { .. } => pool.by_hash(hash, attempt)?,
        LbPolicy::LeastRequest {
            choice_count,
            active_request_bias,
        } => {
            if pool.equal_weights() {
                least_of(choice_count, pool)
            } else {
                due(pool, |host| least_weight(host, active_request_bias))
            }
        }
        LbPolicy::ClientWeighted => {
            if let Some(config) = &cluster.config.client_weights {
                cluster.weigh(config);
            }
            due(pool, |host| host.state.reported.current())
        }
        LbPolicy::RoundRobin | LbPolicy::ClusterProvided => pool.round_robin(),
    };
    Some(host.clone())
}

fn random(pool: &Pool) -> &Arc<Host> {
    let hosts = pool.hosts();
    &hosts[fastrand::usize(..hosts.len())]
}

fn active(host: &Host) -> u64 {
    host.state.active.load(Ordering::Relaxed)
}

/// The one with the fewest active requests of some drawn at random.
fn least_of(choices: u32, pool: &Pool) -> &Arc<Host> {
    let first = random(pool);
    (1..choices).fold(first, |best, _| {
        let other = random(pool);
        if active(other) < active(best) {
            other
        } else {
            best
        }
    })
}

/// By weight over active requests (Envoy: `LeastRequestLoadBalancer::hostWeight`).
fn least_weight(host: &Host, bias: f64) -> f64 {
    f64::from(host.weight) / ((active(host) + 1) as f64).powf(bias)
}

/// The one that is due, by weights that change.
fn due(pool: &Pool, weight: impl Fn(&Host) -> f64) -> &Arc<Host> {
    let hosts = pool.hosts();
    let weight = |index: usize| weight(&hosts[index]);
    let index = SCHEDULERS.with_borrow_mut(|schedulers| {
        // Pools of snapshots that are gone; to build anew what is still used is cheap.
        if schedulers.len() > MAX_SCHEDULERS {
            schedulers.clear();
        }
        schedulers
            .entry(pool.id())
            .or_insert_with(|| Edf::new(hosts.len(), weight))
            .pick(weight)
    });
    &hosts[index.unwrap_or(0)]
}

/// Most schedulers a worker remembers.
const MAX_SCHEDULERS: usize = 4096;

thread_local! {
    /// By pool. Each worker has its own, as each of Envoy's: their order is changed by picking.
    static SCHEDULERS: RefCell<HashMap<u64, Edf>> = RefCell::default();
}

/// Where the connection was going, unless the request names another address. A name that is no
/// address leaves no endpoint (Envoy: `OriginalDstCluster::LoadBalancer::requestOverrideHost`).
fn original_dst(options: &OriginalDst, asked: &Asked<'_>) -> Option<SocketAddr> {
    let named = options
        .http_header
        .as_ref()
        .and_then(|name| asked.headers?.get(name));
    let address: SocketAddr = match named {
        Some(value) => value.to_str().ok()?.parse().ok()?,
        None => asked.original,
    };
    let port = options.port_override.unwrap_or(address.port());
    Some(SocketAddr::new(address.ip(), port))
}

/// Counts a request, or a connection that carries none, towards its endpoint: what least request
/// looks at. Drop ends it.
#[derive(Debug)]
pub(super) struct InFlight {
    cluster: Arc<ClusterState>,
    target: Target,
}

impl InFlight {
    /// Begins.
    pub(super) fn begin(cluster: &ClusterView, target: &Target) -> Self {
        count(&cluster.state.stats.upstream_rq_active);
        if let Target::Host(host) = target {
            count(&host.state.active);
        }
        Self {
            cluster: cluster.state.clone(),
            target: target.clone(),
        }
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let active = &self.cluster.stats.upstream_rq_active;
        active.fetch_sub(1, Ordering::Relaxed);
        if let Target::Host(host) = &self.target {
            host.state.active.fetch_sub(1, Ordering::Relaxed);
        }
    }
}
