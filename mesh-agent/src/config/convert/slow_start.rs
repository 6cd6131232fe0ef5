//! Slow start.

use envoy_types::pb::envoy::config::cluster::v3 as pb;
use envoy_types::pb::envoy::config::cluster::v3::cluster::LbConfig;
use envoy_types::pb::envoy::config::core::v3::RuntimeDouble;
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::envoy::r#type::v3::Percent;
use envoy_types::pb::google::protobuf::Duration;

use crate::config::model::cluster::SlowStart;

use super::{Problems, decode, duration, type_name};

/// Envoy's least share of an endpoint's weight.
const MIN_WEIGHT_PERCENT: f64 = 10.0;

/// The slow start of a cluster's policy, wherever it is configured.
pub(super) fn of(message: &pb::Cluster, problems: &mut Problems) -> Option<SlowStart> {
    if let Some(policy) = &message.load_balancing_policy {
        return typed(policy, problems);
    }
    let (config, path) = match &message.lb_config {
        Some(LbConfig::RoundRobinLbConfig(config)) => {
            (config.slow_start_config.as_ref()?, "round_robin_lb_config")
        }
        Some(LbConfig::LeastRequestLbConfig(config)) => (
            config.slow_start_config.as_ref()?,
            "least_request_lb_config",
        ),
        _ => return None,
    };
    convert(
        config.slow_start_window.as_ref(),
        config.aggression.as_ref(),
        config.min_weight_percent.as_ref(),
        &format!("{path}.slow_start_config"),
        problems,
    )
}

fn typed(policy: &pb::LoadBalancingPolicy, problems: &mut Problems) -> Option<SlowStart> {
    for (i, policy) in policy.policies.iter().enumerate() {
        let any = policy
            .typed_extension_config
            .as_ref()
            .and_then(|config| config.typed_config.as_ref());
        let Some(any) = any else {
            continue;
        };
        let path = format!("load_balancing_policy.policies[{i}]");
        let config = match type_name(any) {
            "envoy.extensions.load_balancing_policies.round_robin.v3.RoundRobin" => {
                decode::<RoundRobin>(any, &path, problems)?.slow_start_config
            }
            "envoy.extensions.load_balancing_policies.least_request.v3.LeastRequest" => {
                decode::<LeastRequest>(any, &path, problems)?.slow_start_config
            }
            _ => continue,
        }?;
        return convert(
            config.slow_start_window.as_ref(),
            config.aggression.as_ref(),
            config.min_weight_percent.as_ref(),
            &format!("{path}.slow_start_config"),
            problems,
        );
    }
    None
}

fn convert(
    window: Option<&Duration>,
    aggression: Option<&RuntimeDouble>,
    min_weight: Option<&Percent>,
    path: &str,
    problems: &mut Problems,
) -> Option<SlowStart> {
    let window = duration(window?, &format!("{path}.slow_start_window"), problems);
    if window.is_zero() {
        return None;
    }
    let aggression = aggression.map_or(1.0, |aggression| aggression.default_value);
    if !(aggression > 0.0 && aggression.is_finite()) {
        let path = format!("{path}.aggression.default_value");
        problems.push(path, "must be more than 0");
        return None;
    }
    let percent = min_weight.map_or(MIN_WEIGHT_PERCENT, |percent| percent.value);
    if !(0.0..=100.0).contains(&percent) {
        problems.push(
            format!("{path}.min_weight_percent"),
            format!("is a percentage from 0 to 100, not {percent}"),
        );
    }
    Some(SlowStart {
        window,
        aggression,
        // A weight of 0 would never be due.
        min_weight: (percent / 100.0).clamp(0.0001, 1.0),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_grow_as_in_envoys_documentation() {
        let with = |aggression| {
            let mut problems = Problems::default();
            let window = Duration {
                seconds: 100,
                nanos: 0,
            };
            let aggression = RuntimeDouble {
                default_value: aggression,
                runtime_key: String::new(),
            };
            let converted = convert(Some(&window), Some(&aggression), None, "p", &mut problems);
            assert!(problems.0.is_empty());
            converted.expect("a slow start")
        };
        let at = |slow: SlowStart, seconds| {
            (slow.factor(std::time::Duration::from_secs(seconds)) * 100.0).round() as u32
        };
        assert_eq!(
            [1, 25, 50, 100].map(|s| at(with(1.0), s)),
            [10, 25, 50, 100]
        );
        assert_eq!([1, 25, 81].map(|s| at(with(2.0), s)), [10, 50, 90]);
    }
}
