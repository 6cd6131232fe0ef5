//! Load assignments.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HealthStatus;
use envoy_types::pb::envoy::config::endpoint::v3 as pb;
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;

use crate::config::model::Address;
use crate::config::model::endpoint::{
    Endpoint, Health, LoadAssignment, Locality, LocalityEndpoints,
};

use super::hbone::{self, Internal};
use super::{Converted, Problems, address, health_check, service, subset, tls};

/// Envoy's default overprovisioning factor, in percent.
const OVERPROVISIONING: u32 = 140;

/// Endpoints of an EDS cluster.
///
/// # Errors
/// Everything that is wrong with them.
pub fn load_assignment(message: &pb::ClusterLoadAssignment) -> Converted<LoadAssignment> {
    let mut problems = Problems::of("envoy.config.endpoint.v3.ClusterLoadAssignment", message);
    let assignment = convert(message, false, "", &mut problems);
    problems.finish(|| assignment)
}

/// As [`load_assignment`], for one that is part of a cluster.
pub(super) fn convert(
    message: &pb::ClusterLoadAssignment,
    names: bool,
    path: &str,
    problems: &mut Problems,
) -> LoadAssignment {
    let join = |field: &str| crate::config::error::join(path, field);
    if message.cluster_name.is_empty() {
        problems.push(join("cluster_name"), "a name is missing");
    }
    let localities: Vec<LocalityEndpoints> = message
        .endpoints
        .iter()
        .enumerate()
        .map(|(i, group)| locality(group, names, &join(&format!("endpoints[{i}]")), problems))
        .collect();
    let highest = localities
        .iter()
        .map(|group| group.priority)
        .max()
        .unwrap_or(0);
    for priority in 0..highest {
        if !localities.iter().any(|group| group.priority == priority) {
            problems.push(
                join("endpoints"),
                format!("priority {priority} is missing: priorities count up from 0 without gaps"),
            );
        }
    }
    let factor = message
        .policy
        .as_ref()
        .and_then(|policy| policy.overprovisioning_factor.as_ref())
        .map_or(OVERPROVISIONING, |factor| factor.value);
    if factor == 0 {
        problems.push(join("policy.overprovisioning_factor"), "must be 1 at least");
    }
    LoadAssignment {
        cluster_name: message.cluster_name.as_str().into(),
        localities,
        overprovisioning_factor: factor,
        weighted_priority_health: message
            .policy
            .as_ref()
            .is_some_and(|policy| policy.weighted_priority_health),
    }
}

fn locality(
    message: &pb::LocalityLbEndpoints,
    names: bool,
    path: &str,
    problems: &mut Problems,
) -> LocalityEndpoints {
    if message.priority > 128 {
        problems.push(format!("{path}.priority"), "must be 128 at most");
    }
    let locality = message.locality.clone().unwrap_or_default();
    let endpoints = message
        .lb_endpoints
        .iter()
        .enumerate()
        .filter_map(|(i, endpoint)| {
            self::endpoint(
                endpoint,
                names,
                &format!("{path}.lb_endpoints[{i}]"),
                problems,
            )
        })
        .collect();
    LocalityEndpoints {
        locality: Locality {
            region: locality.region.as_str().into(),
            zone: locality.zone.as_str().into(),
            sub_zone: locality.sub_zone.as_str().into(),
        },
        priority: message.priority.min(128),
        weight: message
            .load_balancing_weight
            .as_ref()
            .map(|weight| weight.value),
        endpoints,
    }
}

fn endpoint(
    message: &pb::LbEndpoint,
    names: bool,
    path: &str,
    problems: &mut Problems,
) -> Option<Endpoint> {
    let Some(HostIdentifier::Endpoint(endpoint)) = &message.host_identifier else {
        problems.push(path, "endpoint is missing");
        return None;
    };
    let weight = message
        .load_balancing_weight
        .as_ref()
        .map_or(1, |weight| weight.value);
    if weight == 0 {
        problems.push(
            format!("{path}.load_balancing_weight"),
            "must be 1 at least",
        );
    }
    let at = format!("{path}.endpoint.address");
    let (address, waypoint) =
        match hbone::internal(message, endpoint.address.as_ref(), path, problems) {
            Ok(Some(Internal::Tunnelled {
                destination,
                waypoint,
            })) => (Address::Socket(destination), waypoint),
            Ok(None) => {
                let address = endpoint.address.as_ref();
                match address::pipe(address) {
                    Some(pipe) => (pipe, None),
                    None => (address::address(address, names, &at, problems)?, None),
                }
            }
            Ok(Some(Internal::Inbound)) | Err(()) => return None,
        };
    Some(Endpoint {
        address,
        waypoint,
        hostname: endpoint.hostname.as_str().into(),
        weight,
        health: match HealthStatus::try_from(message.health_status) {
            Ok(HealthStatus::Unhealthy | HealthStatus::Draining | HealthStatus::Timeout) => {
                Health::Unhealthy
            }
            Ok(HealthStatus::Degraded) => Health::Degraded,
            _ => Health::Healthy,
        },
        transport_metadata: Arc::new(tls::match_metadata(message.metadata.as_ref())),
        workload: service::workload(message.metadata.as_ref()),
        check: Arc::new(health_check::endpoint(
            endpoint.health_check_config.as_ref(),
            &format!("{path}.endpoint.health_check_config"),
            problems,
        )),
        lb_metadata: Arc::new(subset::metadata(message.metadata.as_ref())),
    })
}
