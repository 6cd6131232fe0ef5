//! `envoy.filters.http.ratelimit`: asks a service whether there is room for a request.

use std::fmt::Write as _;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::HeaderValue as PbHeader;
use envoy_types::pb::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use envoy_types::pb::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use http::{HeaderName, HeaderValue, header};
use smallvec::SmallVec;

use crate::config::model::filter::rate_limit::{GlobalRateLimit, PerRoute, Requests};
use crate::config::model::response_flag::ResponseFlag;
use crate::proxy::http::call;
use crate::proxy::http::headers::INTERNAL_REQUEST;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::{local, with_body};

use super::local_rate_limit::{LIMIT, REMAINING, RESET, RESOURCE_EXHAUSTED, put};
use super::mutation::{Mutation, Target};
use super::{Call, Step, descriptors, structure};

const METHOD: &str = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit";
const NAMESPACE: &str = "envoy.filters.http.ratelimit";
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");

/// Asks, and refuses what is too much.
pub(super) async fn check(
    call: &Call<'_>,
    config: &GlobalRateLimit,
    said: Option<&Arc<PerRoute>>,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    let internal = || {
        request
            .headers
            .get(INTERNAL_REQUEST)
            .is_some_and(|value| value == "true")
    };
    let concerned = match config.requests {
        Requests::Both => true,
        Requests::Internal => internal(),
        Requests::External => !internal(),
    };
    if !concerned || !config.enabled.holds(fastrand::u64(..)) {
        return Ok(());
    }
    let own = match said {
        Some(said) if !said.limits.is_empty() => &said.limits,
        _ => &config.limits,
    };
    let host_limits = said.map_or_else(Default::default, |said| said.host_limits);
    let descriptors = descriptors::of(call, request, own, host_limits, config.stage);
    if descriptors.is_empty() {
        return Ok(());
    }
    let domain = said.map_or("", |said| said.domain.as_str());
    let asked = RateLimitRequest {
        domain: if domain.is_empty() {
            &config.domain
        } else {
            domain
        }
        .to_owned(),
        descriptors,
        hits_addend: 0,
    };
    let sender = call::sender(call.connection, call.hcm);
    let answer: Result<RateLimitResponse, _> =
        call::unary(sender, call.view, &config.service, METHOD, &asked).await;
    match answer {
        // The service must decide one way or the other.
        Ok(answer) => enforce(config, answer, request, steps),
        Err(error) => {
            tracing::debug!(cluster = %config.service.cluster, %error, "no answer about a limit");
            if config.failure_mode_deny.holds(fastrand::u64(..)) {
                let reply = local(config.status_on_error, "").because("rate_limiter_error");
                let flag = ResponseFlag::RateLimitServiceError;
                return Err(Box::new(reply.flagged(flag)));
            }
            Ok(())
        }
    }
}

fn enforce(
    config: &GlobalRateLimit,
    answer: RateLimitResponse,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    if let Some(metadata) = answer.dynamic_metadata {
        let metadata = structure::to_json(metadata);
        request.metadata.insert(Arc::from(NAMESPACE), metadata);
    }
    let mut told = Vec::new();
    if config.x_ratelimit_headers {
        told.extend(limits(&answer.statuses));
    }
    told.extend(mutations(&answer.response_headers_to_add));
    let over = answer.overall_code == Code::OverLimit as i32;
    if !over || !config.enforced.holds(fastrand::u64(..)) {
        if !over {
            for mutation in mutations(&answer.request_headers_to_add) {
                mutation.apply(&mut request.headers);
            }
        }
        if !told.is_empty() {
            steps.push(Step::Headers(told));
        }
        return Ok(());
    }
    let mut reply = with_body(config.status, answer.raw_body.into())
        .because("request_rate_limited")
        .flagged(ResponseFlag::RateLimited);
    reply.grpc_status = config.as_resource_exhausted.then_some(RESOURCE_EXHAUSTED);
    // What the service says of the body counts.
    let content_type = Target::Header(header::CONTENT_TYPE);
    if told.iter().any(|one| one.target == content_type) {
        reply.headers.remove(header::CONTENT_TYPE);
    }
    for mutation in told {
        mutation.apply(&mut reply.headers);
    }
    if config.ratelimited_header {
        let yes = HeaderValue::from_static("true");
        reply.headers.insert(RATE_LIMITED, yes);
    }
    put(&mut reply.headers, &config.response_headers);
    Err(Box::new(reply))
}

fn mutations(headers: &[PbHeader]) -> impl Iterator<Item = Mutation> + '_ {
    headers.iter().filter_map(|header| {
        let name = HeaderName::try_from(header.key.as_str()).ok()?;
        let value = match header.raw_value.as_slice() {
            [] => HeaderValue::from_str(&header.value),
            raw => HeaderValue::from_bytes(raw),
        };
        Some(Mutation::add(&name, &value.ok()?))
    })
}

/// Seconds of a unit, by its number.
fn seconds(unit: i32) -> u32 {
    match unit {
        1 => 1,
        2 => 60,
        3 => 3600,
        4 => 24 * 3600,
        5 => 30 * 24 * 3600,
        6 => 365 * 24 * 3600,
        7 => 7 * 24 * 3600,
        _ => 0,
    }
}

/// The three headers, of the limit with the least left; the first lists the others
/// (Envoy: `XRateLimitHeaderUtils::create`).
fn limits(statuses: &[DescriptorStatus]) -> Vec<Mutation> {
    let mut least: Option<&DescriptorStatus> = None;
    let mut policy = String::new();
    for status in statuses {
        let Some(limit) = &status.current_limit else {
            continue;
        };
        if least.is_none_or(|least| status.limit_remaining < least.limit_remaining) {
            least = Some(status);
        }
        let window = seconds(limit.unit);
        if window > 0 {
            let _ = write!(policy, ", {};w={window}", limit.requests_per_unit);
            if !limit.name.is_empty() {
                let _ = write!(policy, ";name=\"{}\"", limit.name);
            }
        }
    }
    let Some((status, limit)) =
        least.and_then(|least| Some((least, least.current_limit.as_ref()?)))
    else {
        return Vec::new();
    };
    let reset = status
        .duration_until_reset
        .as_ref()
        .map_or(0, |time| time.seconds);
    let whole = format!("{}{policy}", limit.requests_per_unit);
    let Ok(whole) = HeaderValue::try_from(whole) else {
        return Vec::new();
    };
    vec![
        Mutation::add(&LIMIT, &whole),
        Mutation::add(&REMAINING, &HeaderValue::from(status.limit_remaining)),
        Mutation::add(&RESET, &HeaderValue::from(reset)),
    ]
}
