//! Retry policies.

use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3 as pb;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{
    RateLimitedRetryBackOff, ResetHeaderFormat, RetryHostPredicate, RetryPriority,
    retry_host_predicate, retry_priority,
};
use envoy_types::pb::envoy::extensions::retry::priority::previous_priorities::v3::PreviousPrioritiesConfig;
use http::HeaderName;

use crate::config::model::retry::{BackOff, RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy};

use super::{Problems, decode, duration, matcher, type_name};

const PREVIOUS_HOSTS: &str = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate";
const PREVIOUS_PRIORITIES: &str =
    "envoy.extensions.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig";

/// Envoy's default of `rate_limited_retry_back_off.max_interval`.
const RATE_LIMITED_MAX: Duration = Duration::from_secs(300);

pub(super) fn convert(
    message: &pb::RetryPolicy,
    path: &str,
    problems: &mut Problems,
) -> RetryPolicy {
    let on = RetryOn::http(&message.retry_on).and(RetryOn::grpc(&message.retry_on));
    let time = |value: &Option<_>, field: &str, problems: &mut Problems| {
        super::timeout(value.as_ref(), None, &format!("{path}.{field}"), problems)
    };
    let headers = |list: &[pb::HeaderMatcher], field: &str, problems: &mut Problems| {
        list.iter()
            .enumerate()
            .filter_map(|(i, header)| {
                matcher::header(header, &format!("{path}.{field}[{i}]"), problems)
            })
            .collect()
    };
    let status_codes = message
        .retriable_status_codes
        .iter()
        .filter_map(|code| u16::try_from(*code).ok())
        .collect();
    let default = RetryPolicy::none();
    RetryPolicy {
        on,
        num_retries: message
            .num_retries
            .as_ref()
            .map_or(default.num_retries, |value| value.value),
        per_try_timeout: time(&message.per_try_timeout, "per_try_timeout", problems),
        per_try_idle_timeout: time(
            &message.per_try_idle_timeout,
            "per_try_idle_timeout",
            problems,
        ),
        avoid_previous_hosts: avoids_hosts(&message.retry_host_predicate, path, problems),
        avoid_previous_priorities: message
            .retry_priority
            .as_ref()
            .and_then(|priority| update_frequency(priority, path, problems)),
        host_selection_attempts: match message.host_selection_retry_max_attempts {
            0 => default.host_selection_attempts,
            attempts => u32::try_from(attempts).unwrap_or(0),
        },
        status_codes,
        headers: headers(&message.retriable_headers, "retriable_headers", problems),
        request_headers: headers(
            &message.retriable_request_headers,
            "retriable_request_headers",
            problems,
        ),
        back_off: back_off(message, path, problems),
        rate_limited: message.rate_limited_retry_back_off.as_ref().map(|limited| {
            rate_limited(
                limited,
                &format!("{path}.rate_limited_retry_back_off"),
                problems,
            )
        }),
    }
}

fn avoids_hosts(predicates: &[RetryHostPredicate], path: &str, problems: &mut Problems) -> bool {
    let mut avoids = false;
    for (i, predicate) in predicates.iter().enumerate() {
        let kind = match &predicate.config_type {
            Some(retry_host_predicate::ConfigType::TypedConfig(any)) => type_name(any),
            None => "",
        };
        if kind == PREVIOUS_HOSTS || predicate.name == "envoy.retry_host_predicates.previous_hosts"
        {
            avoids = true;
        } else {
            problems.hint(
                format!("{path}.retry_host_predicate[{i}]"),
                format!("{} is not supported", predicate.name),
                "use envoy.retry_host_predicates.previous_hosts",
            );
        }
    }
    avoids
}

fn update_frequency(priority: &RetryPriority, path: &str, problems: &mut Problems) -> Option<u32> {
    let path = format!("{path}.retry_priority");
    match &priority.config_type {
        Some(retry_priority::ConfigType::TypedConfig(any))
            if type_name(any) == PREVIOUS_PRIORITIES =>
        {
            let config: PreviousPrioritiesConfig = decode(any, &path, problems)?;
            match u32::try_from(config.update_frequency) {
                Ok(frequency @ 1..) => Some(frequency),
                _ => {
                    problems.push(format!("{path}.update_frequency"), "must be 1 at least");
                    None
                }
            }
        }
        _ => {
            problems.hint(
                path,
                format!("{} is not supported", priority.name),
                "use envoy.retry_priorities.previous_priorities",
            );
            None
        }
    }
}

fn back_off(message: &pb::RetryPolicy, path: &str, problems: &mut Problems) -> BackOff {
    let Some(configured) = &message.retry_back_off else {
        return BackOff::default();
    };
    let path = format!("{path}.retry_back_off");
    let base = configured.base_interval.as_ref().map(|base| {
        let base = duration(base, &format!("{path}.base_interval"), problems);
        // Envoy counts in milliseconds and rounds what is shorter up to one.
        base.max(Duration::from_millis(1))
    });
    let Some(base) = base else {
        problems.push(
            format!("{path}.base_interval"),
            "the time before the first retry is missing",
        );
        return BackOff::default();
    };
    let max = match &configured.max_interval {
        Some(max) => duration(max, &format!("{path}.max_interval"), problems),
        None => base * 10,
    };
    if max < base {
        problems.push(
            format!("{path}.max_interval"),
            "must not be less than base_interval",
        );
    }
    BackOff { base, max }
}

fn rate_limited(
    message: &RateLimitedRetryBackOff,
    path: &str,
    problems: &mut Problems,
) -> RateLimitedBackOff {
    if message.reset_headers.is_empty() {
        problems.push(
            format!("{path}.reset_headers"),
            "at least one header is needed",
        );
    }
    let headers = message
        .reset_headers
        .iter()
        .enumerate()
        .filter_map(|(i, header)| {
            let format = match ResetHeaderFormat::try_from(header.format) {
                Ok(ResetHeaderFormat::UnixTimestamp) => ResetFormat::UnixTimestamp,
                _ => ResetFormat::Seconds,
            };
            match HeaderName::try_from(header.name.as_str()) {
                Ok(name) => Some((name, format)),
                Err(_) => {
                    problems.push(
                        format!("{path}.reset_headers[{i}].name"),
                        "is not a header name",
                    );
                    None
                }
            }
        })
        .collect();
    RateLimitedBackOff {
        headers,
        max: message
            .max_interval
            .as_ref()
            .map_or(RATE_LIMITED_MAX, |max| {
                duration(max, &format!("{path}.max_interval"), problems)
            }),
    }
}
