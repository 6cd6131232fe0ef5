//! Client-side weighted round robin.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::extensions::load_balancing_policies::client_side_weighted_round_robin::v3::ClientSideWeightedRoundRobin;

use crate::config::model::client_weights::ClientWeights;

use super::{Problems, decode, duration, type_name};

/// The policy's message.
pub(super) const KIND: &str = "envoy.extensions.load_balancing_policies.client_side_weighted_round_robin.v3.ClientSideWeightedRoundRobin";

/// The settings of the cluster's policy, if it is this one.
pub(super) fn of(message: &pb::Cluster, problems: &mut Problems) -> Option<ClientWeights> {
    let policies = &message.load_balancing_policy.as_ref()?.policies;
    let (i, any) = policies.iter().enumerate().find_map(|(i, policy)| {
        let config = policy.typed_extension_config.as_ref()?;
        let any = config.typed_config.as_ref()?;
        (type_name(any) == KIND).then_some((i, any))
    })?;
    let path = format!("load_balancing_policy.policies[{i}]");
    let config: ClientSideWeightedRoundRobin = decode(any, &path, problems)?;
    if config
        .enable_oob_load_report
        .as_ref()
        .is_some_and(|value| value.value)
    {
        problems.hint(
            format!("{path}.enable_oob_load_report"),
            "reports out of band are not supported",
            "leave it out: endpoints report with their responses",
        );
    }
    let time = |value: &Option<_>, default, field: &str, problems: &mut Problems| {
        value.as_ref().map_or(default, |value| {
            duration(value, &format!("{path}.{field}"), problems)
        })
    };
    let seconds = Duration::from_secs;
    let penalty = config
        .error_utilization_penalty
        .as_ref()
        .map_or(1.0, |penalty| f64::from(penalty.value));
    if !(penalty >= 0.0 && penalty.is_finite()) {
        problems.push(
            format!("{path}.error_utilization_penalty"),
            "must not be negative",
        );
    }
    Some(ClientWeights {
        blackout: time(
            &config.blackout_period,
            seconds(10),
            "blackout_period",
            problems,
        ),
        expiration: time(
            &config.weight_expiration_period,
            seconds(180),
            "weight_expiration_period",
            problems,
        ),
        update: time(
            &config.weight_update_period,
            seconds(1),
            "weight_update_period",
            problems,
        )
        .max(Duration::from_millis(100)),
        error_penalty: penalty,
        metrics: config
            .metric_names_for_computing_utilization
            .iter()
            .map(|name| name.as_str().into())
            .collect(),
    })
}
