//! Endpoints by locality and priority.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::balance::subset;

use super::health_check::EndpointCheck;
use super::tls::Metadata;
use super::{Address, Name};

/// Envoy's `ClusterLoadAssignment`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoadAssignment {
    /// The cluster's name, or its EDS service name.
    pub cluster_name: Name,
    /// In order of the configuration.
    pub localities: Vec<LocalityEndpoints>,
    /// Percent (default 140).
    pub overprovisioning_factor: u32,
    /// How available a priority is, is decided by weights instead of numbers of endpoints.
    pub weighted_priority_health: bool,
}

/// Endpoints of one locality and priority.
#[derive(Debug, Clone, PartialEq)]
pub struct LocalityEndpoints {
    /// Where they are.
    pub locality: Locality,
    /// 0 is the highest.
    pub priority: u32,
    /// The locality's weight, when given.
    pub weight: Option<u32>,
    /// The endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// Envoy's `Locality`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    /// Region.
    pub region: Arc<str>,
    /// Zone.
    pub zone: Arc<str>,
    /// Sub-zone.
    pub sub_zone: Arc<str>,
}

/// One endpoint.
#[derive(Debug, Clone, PartialEq)]
pub struct Endpoint {
    /// Where it listens.
    pub address: Address,
    /// For `auto_host_rewrite`; may be empty.
    pub hostname: Arc<str>,
    /// Its share among its locality's endpoints; at least 1.
    pub weight: u32,
    /// What the control plane says of it.
    pub health: Health,
    /// What its transport is chosen by (`envoy.transport_socket_match`).
    pub transport_metadata: Arc<Metadata>,
    /// Where its HBONE tunnel ends, if not at the endpoint itself.
    pub waypoint: Option<SocketAddr>,
    /// Who is there, as Istio's control plane tells it for metrics:
    /// `workload;namespace;canonical service;canonical revision;cluster`.
    pub workload: Option<Arc<str>>,
    /// How it is checked.
    pub check: Arc<EndpointCheck>,
    /// What it is grouped by (`envoy.lb`).
    pub lb_metadata: Arc<subset::Metadata>,
}

/// Envoy's `HealthStatus`, folded to what load balancing does with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Health {
    /// UNKNOWN or HEALTHY.
    #[default]
    Healthy,
    /// DEGRADED: used when the healthy ones are too few.
    Degraded,
    /// UNHEALTHY, DRAINING or TIMEOUT: not used outside panic.
    Unhealthy,
}

impl Health {
    /// The worse of two.
    #[must_use]
    pub fn worse(self, other: Self) -> Self {
        match (self, other) {
            (Self::Unhealthy, _) | (_, Self::Unhealthy) => Self::Unhealthy,
            (Self::Degraded, _) | (_, Self::Degraded) => Self::Degraded,
            (Self::Healthy, Self::Healthy) => Self::Healthy,
        }
    }
}
