//! `envoy.filters.http.local_ratelimit`

use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3 as pb;
use http::StatusCode;

use crate::config::convert::{Problems, duration, headers};
use crate::config::model::Fraction;
use crate::config::model::filter::local_rate_limit::{LocalRateLimit, TokenBucket};

use super::fraction;

pub(super) fn convert(
    message: &pb::LocalRateLimit,
    path: &str,
    problems: &mut Problems,
) -> Option<LocalRateLimit> {
    let bucket = match &message.token_bucket {
        None => None,
        Some(bucket) => {
            let path = format!("{path}.token_bucket");
            let interval = bucket
                .fill_interval
                .as_ref()
                .map(|interval| duration(interval, &format!("{path}.fill_interval"), problems));
            let per_fill = bucket.tokens_per_fill.as_ref().map_or(1, |fill| fill.value);
            if bucket.max_tokens == 0 || per_fill == 0 {
                problems.push(&path, "max_tokens and tokens_per_fill must be 1 at least");
                return None;
            }
            let Some(interval) = interval.filter(|time| *time >= Duration::from_millis(50)) else {
                problems.push(format!("{path}.fill_interval"), "must be 50 ms at least");
                return None;
            };
            Some(TokenBucket::new(bucket.max_tokens, per_fill, interval))
        }
    };
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
