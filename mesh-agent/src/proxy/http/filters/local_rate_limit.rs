//! `envoy.filters.http.local_ratelimit`: so many requests and no more.

use std::sync::Arc;

use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::config::model::filter::local_rate_limit::LocalRateLimit;
use crate::config::model::headers::{AppendAction, HeaderMutations, HeaderTemplate};
use crate::config::model::response_flag::ResponseFlag;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;

use super::Step;

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// gRPC's RESOURCE_EXHAUSTED.
const RESOURCE_EXHAUSTED: u16 = 8;

/// Takes a token, or refuses the request.
pub(super) fn check(
    limit: &Arc<LocalRateLimit>,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    let Some(bucket) = &limit.bucket else {
        return Ok(());
    };
    if !limit.enabled.holds(fastrand::u64(..)) {
        return Ok(());
    }
    if limit.x_ratelimit_headers {
        steps.push(Step::RateLimit(limit.clone()));
    }
    if bucket.take() {
        return Ok(());
    }
    if !limit.enforced.holds(fastrand::u64(..)) {
        put(
            &mut request.headers,
            &limit.request_headers_when_not_enforced,
        );
        return Ok(());
    }
    let mut reply = local(limit.status, "local_rate_limited")
        .because("local_rate_limited")
        .flagged(ResponseFlag::RateLimited);
    reply.grpc_status = limit.as_resource_exhausted.then_some(RESOURCE_EXHAUSTED);
    put(&mut reply.headers, &limit.response_headers);
    Err(Box::new(reply))
}

/// Literal headers; the conversion takes no others here.
fn put(headers: &mut http::HeaderMap, mutations: &HeaderMutations) {
    for addition in &mutations.add {
        let HeaderTemplate::Literal(value) = &addition.value else {
            continue;
        };
        let there = headers.contains_key(&addition.name);
        match addition.append {
            AppendAction::AppendIfExistsOrAdd => {
                headers.append(&addition.name, value.clone());
            }
            AppendAction::AddIfAbsent if there => {}
            AppendAction::OverwriteIfExists if !there => {}
            _ => {
                headers.insert(&addition.name, value.clone());
            }
        }
    }
}

/// Tells the client how much is left.
pub(super) fn tell(reply: &mut Reply, limit: &LocalRateLimit) {
    let Some(bucket) = &limit.bucket else {
        return;
    };
    let headers = &mut reply.headers;
    headers.insert(LIMIT, HeaderValue::from(bucket.max));
    headers.insert(REMAINING, HeaderValue::from(bucket.remaining()));
    let reset = bucket.next_token().as_secs_f64().ceil() as u64;
    headers.insert(RESET, HeaderValue::from(reset));
}
