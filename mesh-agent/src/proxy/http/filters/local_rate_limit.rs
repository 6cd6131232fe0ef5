//! `envoy.filters.http.local_ratelimit`: so many requests and no more.

use std::sync::Arc;

use envoy_types::pb::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use http::{HeaderName, HeaderValue};
use smallvec::SmallVec;

use crate::config::model::filter::local_rate_limit::{LocalRateLimit, TokenBucket};
use crate::config::model::headers::{AppendAction, HeaderMutations, HeaderTemplate};
use crate::config::model::response_flag::ResponseFlag;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;

use super::{Call, Step, descriptors};

pub(super) const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
pub(super) const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
pub(super) const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
/// gRPC's RESOURCE_EXHAUSTED.
pub(super) const RESOURCE_EXHAUSTED: u16 = 8;

/// Takes a token, or refuses the request.
pub(super) fn check(
    call: &Call<'_>,
    limit: &Arc<LocalRateLimit>,
    request: &mut Request,
    steps: &mut SmallVec<[Step; 2]>,
) -> Result<(), Box<Reply>> {
    if limit.bucket.is_none() && limit.descriptors.is_empty() {
        return Ok(());
    }
    if !limit.enabled.holds(fastrand::u64(..)) {
        return Ok(());
    }
    let (allowed, bucket) = take(call, limit, request);
    if limit.x_ratelimit_headers
        && let Some(bucket) = bucket
    {
        steps.push(Step::RateLimit(bucket.clone()));
    }
    if allowed {
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

/// Takes tokens, and says from which bucket: the one that had none, or else that of the first
/// descriptor (Envoy: `LocalRateLimiterImpl::requestAllowed`).
fn take<'l>(
    call: &Call<'_>,
    limit: &'l LocalRateLimit,
    request: &Request,
) -> (bool, Option<&'l Arc<TokenBucket>>) {
    let mut first = None;
    if !limit.descriptors.is_empty() {
        let made = descriptors::of(call, request, &limit.limits, limit.host_limits, limit.stage);
        for known in &limit.descriptors {
            let same = |one: &&RateLimitDescriptor| {
                one.entries.len() == known.entries.len()
                    && one
                        .entries
                        .iter()
                        .zip(&known.entries)
                        .all(|(entry, (key, value))| entry.key == *key && entry.value == *value)
            };
            for one in made.iter().filter(same) {
                let hits = one.hits_addend.as_ref().map_or(1, |hits| hits.value);
                if !known.bucket.take_many(hits) {
                    return (false, Some(&known.bucket));
                }
                first.get_or_insert(&known.bucket);
            }
        }
    }
    match &limit.bucket {
        Some(common) if first.is_none() || limit.always_common => {
            if common.take() {
                (true, first.or(Some(common)))
            } else {
                (false, Some(common))
            }
        }
        _ => (true, first),
    }
}

/// Literal headers; the conversion takes no others here.
pub(super) fn put(headers: &mut http::HeaderMap, mutations: &HeaderMutations) {
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
pub(super) fn tell(reply: &mut Reply, bucket: &TokenBucket) {
    let headers = &mut reply.headers;
    headers.insert(LIMIT, HeaderValue::from(bucket.max));
    headers.insert(REMAINING, HeaderValue::from(bucket.remaining()));
    let reset = bucket.next_token().as_secs_f64().ceil() as u64;
    headers.insert(RESET, HeaderValue::from(reset));
}
