//! `envoy.filters.http.local_ratelimit`

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3 as common;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3 as pb_bucket;
use http::StatusCode;

use crate::config::convert::{Problems, duration, headers, rate_limit};
use crate::config::model::Fraction;
use crate::config::model::filter::local_rate_limit::{
    LocalDescriptor, LocalRateLimit, TokenBucket,
};

use super::fraction;

pub(super) fn convert(
    message: &pb::LocalRateLimit,
    path: &str,
    problems: &mut Problems,
) -> Option<LocalRateLimit> {
    let bucket = match &message.token_bucket {
        None => None,
        Some(bucket) => Some(self::bucket(
            bucket,
            &format!("{path}.token_bucket"),
            problems,
        )?),
    };
    let mut descriptors = message
        .descriptors
        .iter()
        .enumerate()
        .map(|(i, one)| descriptor(one, &format!("{path}.descriptors[{i}]"), problems))
        .collect::<Option<Vec<_>>>()?;
    // The strictest is asked first.
    descriptors.sort_by_key(|one| std::cmp::Reverse(one.bucket.per_token_ns()));
    let status = match message.status.as_ref().map_or(429, |status| status.code) {
        // Envoy takes no status of success for a refusal.
        code @ 400..600 => StatusCode::from_u16(code as u16).ok(),
        _ => Some(StatusCode::TOO_MANY_REQUESTS),
    };
    // Here nothing is 0 %, unlike elsewhere.
    let share = |message: &Option<RuntimeFractionalPercent>| match message {
        Some(message) => fraction(message.default_value.as_ref()),
        None => Fraction {
            numerator: 0,
            denominator: 100,
        },
    };
    let at = |field: &str| format!("{path}.{field}");
    Some(LocalRateLimit {
        status: status.unwrap_or(StatusCode::TOO_MANY_REQUESTS),
        bucket,
        descriptors,
        limits: rate_limit::convert(&message.rate_limits, path, problems),
        stage: message.stage,
        host_limits: super::rate_limit::host_limits(message.vh_rate_limits),
        always_common: message
            .always_consume_default_token_bucket
            .as_ref()
            .is_none_or(|value| value.value),
        enabled: share(&message.filter_enabled),
        enforced: share(&message.filter_enforced),
        request_headers_when_not_enforced: headers::mutations(
            "request",
            &message.request_headers_to_add_when_not_enforced,
            &[],
            &at("request_headers_to_add_when_not_enforced"),
            problems,
        ),
        response_headers: headers::mutations(
            "response",
            &message.response_headers_to_add,
            &[],
            path,
            problems,
        ),
        x_ratelimit_headers: message.enable_x_ratelimit_headers == 1,
        as_resource_exhausted: message.rate_limited_as_resource_exhausted,
    })
}

fn bucket(
    message: &pb_bucket::TokenBucket,
    path: &str,
    problems: &mut Problems,
) -> Option<Arc<TokenBucket>> {
    let interval = message
        .fill_interval
        .as_ref()
        .map(|interval| duration(interval, &format!("{path}.fill_interval"), problems));
    let per_fill = message
        .tokens_per_fill
        .as_ref()
        .map_or(1, |fill| fill.value);
    if message.max_tokens == 0 || per_fill == 0 {
        problems.push(path, "max_tokens and tokens_per_fill must be 1 at least");
        return None;
    }
    let Some(interval) = interval.filter(|time| *time >= Duration::from_millis(50)) else {
        problems.push(format!("{path}.fill_interval"), "must be 50 ms at least");
        return None;
    };
    Some(Arc::new(TokenBucket::new(
        message.max_tokens,
        per_fill,
        interval,
    )))
}

fn descriptor(
    message: &common::LocalRateLimitDescriptor,
    path: &str,
    problems: &mut Problems,
) -> Option<LocalDescriptor> {
    let Some(bucket) = &message.token_bucket else {
        problems.push(format!("{path}.token_bucket"), "is missing");
        return None;
    };
    if message.entries.is_empty() {
        problems.push(format!("{path}.entries"), "one at least is needed");
        return None;
    }
    if let Some(i) = message.entries.iter().position(|one| one.value.is_empty()) {
        problems.hint(
            format!("{path}.entries[{i}].value"),
            "a bucket for every value is not supported",
            "write the values that are to be limited",
        );
        return None;
    }
    let entries = message.entries.iter();
    Some(LocalDescriptor {
        entries: entries
            .map(|one| (one.key.clone(), one.value.clone()))
            .collect(),
        bucket: self::bucket(bucket, &format!("{path}.token_bucket"), problems)?,
    })
}
