//! `envoy.filters.http.ratelimit`

use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::extensions::filters::http::ratelimit::v3 as pb;
use envoy_types::pb::envoy::r#type::v3::HttpStatus;
use http::StatusCode;

use crate::config::convert::{Problems, headers, rate_limit};
use crate::config::model::Fraction;
use crate::config::model::filter::FilterOverride;
use crate::config::model::filter::rate_limit::{GlobalRateLimit, PerRoute, Requests};
use crate::config::model::rate_limit::HostLimits;

use super::{runtime_fraction, service};

/// Envoy's default.
const TIMEOUT: Duration = Duration::from_millis(20);
const NEVER: Fraction = Fraction {
    numerator: 0,
    denominator: 100,
};

pub(super) fn convert(
    message: &pb::RateLimit,
    path: &str,
    problems: &mut Problems,
) -> Option<GlobalRateLimit> {
    if message.domain.is_empty() {
        problems.push(format!("{path}.domain"), "is missing");
        return None;
    }
    let grpc = message
        .rate_limit_service
        .as_ref()
        .and_then(|service| service.grpc_service.as_ref());
    let Some(grpc) = grpc else {
        problems.push(
            format!("{path}.rate_limit_service.grpc_service"),
            "is missing",
        );
        return None;
    };
    let at = format!("{path}.rate_limit_service.grpc_service");
    let mut service = service::grpc(grpc, &at, problems)?;
    service.timeout = crate::config::convert::timeout(
        message.timeout.as_ref(),
        Some(TIMEOUT),
        &format!("{path}.timeout"),
        problems,
    );
    let status = |status: &Option<HttpStatus>, default| {
        let code = status.as_ref().map_or(0, |status| status.code);
        // Envoy takes no status of success for a refusal.
        u16::try_from(code)
            .ok()
            .filter(|code| *code >= 400)
            .and_then(|code| StatusCode::from_u16(code).ok())
            .unwrap_or(default)
    };
    let share = |message: &Option<RuntimeFractionalPercent>| runtime_fraction(message.as_ref());
    Some(GlobalRateLimit {
        domain: message.domain.as_str().into(),
        stage: message.stage,
        requests: match message.request_type.as_str() {
            "internal" => Requests::Internal,
            "external" => Requests::External,
            "" | "both" => Requests::Both,
            _ => {
                problems.push(
                    format!("{path}.request_type"),
                    "must be internal, external or both",
                );
                return None;
            }
        },
        service,
        failure_mode_deny: match (
            &message.failure_mode_deny_percent,
            message.failure_mode_deny,
        ) {
            (Some(_), _) => share(&message.failure_mode_deny_percent),
            (None, true) => Fraction::ALWAYS,
            (None, false) => NEVER,
        },
        as_resource_exhausted: message.rate_limited_as_resource_exhausted,
        x_ratelimit_headers: message.enable_x_ratelimit_headers == 1,
        ratelimited_header: !message.disable_x_envoy_ratelimited_header,
        status: status(&message.rate_limited_status, StatusCode::TOO_MANY_REQUESTS),
        status_on_error: status(&message.status_on_error, StatusCode::INTERNAL_SERVER_ERROR),
        response_headers: headers::mutations(
            "response",
            &message.response_headers_to_add,
            &[],
            path,
            problems,
        ),
        enabled: share(&message.filter_enabled),
        enforced: share(&message.filter_enforced),
        limits: rate_limit::convert(&message.rate_limits, path, problems),
    })
}

pub(super) fn per_route(
    message: &pb::RateLimitPerRoute,
    path: &str,
    problems: &mut Problems,
) -> FilterOverride {
    FilterOverride::RateLimit(Arc::new(PerRoute {
        host_limits: host_limits(message.vh_rate_limits),
        limits: rate_limit::convert(&message.rate_limits, path, problems),
        domain: message.domain.clone(),
    }))
}

/// Both rate limit filters number them alike.
pub(super) fn host_limits(number: i32) -> HostLimits {
    match number {
        1 => HostLimits::Include,
        2 => HostLimits::Ignore,
        _ => HostLimits::Override,
    }
}
