//! Whether a request is asked again, and when (Envoy: `RetryStateImpl`).

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use http::{HeaderMap, HeaderName, StatusCode};
use smallvec::SmallVec;

use crate::config::model::retry::{RateLimitedBackOff, ResetFormat, RetryOn, RetryPolicy};
use crate::config::model::route::Forward;
use crate::proxy::lb::Target;
use crate::proxy::stats::count;
use crate::snapshot::ClusterView;
use crate::snapshot::breakers::{Breakers, Held};

use super::message::{Request, text};
use super::router;
use super::upstream::Failure;

const RETRY_ON: HeaderName = HeaderName::from_static("x-envoy-retry-on");
const RETRY_GRPC_ON: HeaderName = HeaderName::from_static("x-envoy-retry-grpc-on");
const MAX_RETRIES: HeaderName = HeaderName::from_static("x-envoy-max-retries");
const STATUS_CODES: HeaderName = HeaderName::from_static("x-envoy-retriable-status-codes");
const HEADER_NAMES: HeaderName = HeaderName::from_static("x-envoy-retriable-header-names");
const RATE_LIMITED: HeaderName = HeaderName::from_static("x-envoy-ratelimited");
const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What a request may still be retried for.
#[derive(Debug)]
pub(super) struct Retry {
    /// `None`: only the request's own headers ask for retries.
    policy: Option<Arc<RetryPolicy>>,
    on: RetryOn,
    left: u32,
    /// Named by the request.
    status_codes: SmallVec<[u16; 4]>,
    /// Named by the request.
    header_names: SmallVec<[HeaderName; 2]>,
    /// Of the next retry.
    interval: Duration,
    /// Counts the retry in flight.
    held: Option<Held>,
    /// Whether any retry was made.
    retried: bool,
    /// What was tried.
    pub(super) tried: Tried,
}

/// Endpoints and priorities that were tried.
#[derive(Debug, Default)]
pub(in crate::proxy) struct Tried {
    pub(in crate::proxy) hosts: SmallVec<[SocketAddr; 4]>,
    pub(in crate::proxy) priorities: SmallVec<[usize; 4]>,
    /// Another endpoint is drawn so many times when one was tried already.
    pub(in crate::proxy) attempts: u32,
    /// Priorities are avoided in groups of that many attempts.
    pub(in crate::proxy) update_frequency: Option<u32>,
}

impl Tried {
    /// Remembers an endpoint.
    pub(super) fn add(&mut self, cluster: &ClusterView, target: &Target) {
        let Target::Host(host) = target else {
            return;
        };
        if self.attempts > 0 {
            self.hosts.push(host.address);
        }
        if self.update_frequency.is_some() {
            let priority = cluster
                .priorities
                .iter()
                .position(|hosts| hosts.iter().any(|other| Arc::ptr_eq(other, host)));
            self.priorities.extend(priority);
        }
    }

    /// Priorities to avoid: those of the attempts before, as of the last full group of them.
    pub(in crate::proxy) fn excluded_priorities(&self) -> SmallVec<[usize; 4]> {
        match self.update_frequency {
            Some(frequency) => {
                let frequency = frequency as usize;
                let known = self.priorities.len() / frequency * frequency;
                self.priorities.iter().take(known).copied().collect()
            }
            None => SmallVec::new(),
        }
    }
}

/// What follows an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It stands.
    Stands,
    /// It would be retried, but the policy's number is used up.
    LimitExceeded,
    /// It would be retried, but too many retries are on their way already.
    Overflow,
    /// After this time.
    Again(Duration),
}

impl Retry {
    /// Takes the headers that ask for retries out of the request. `None`: nothing will be
    /// retried.
    pub(super) fn of(forward: &Forward, request: &mut Request) -> Option<Self> {
        let policy = forward.retry.as_ref();
        let asked = Asked::take(&mut request.headers);
        let mut on = policy.map_or(RetryOn::NOTHING, |policy| policy.on);
        on = on.and(asked.on);
        if let Some(policy) = policy
            && !policy.request_headers.is_empty()
            && !policy
                .request_headers
                .iter()
                .any(|matcher| router::header_matches(matcher, request))
        {
            return None;
        }
        if on.is_empty() {
            return None;
        }
        let back_off = policy.map(|policy| policy.back_off).unwrap_or_default();
        Some(Self {
            on,
            left: asked
                .max_retries
                .unwrap_or_else(|| policy.map_or(1, |policy| policy.num_retries)),
            status_codes: asked.status_codes,
            header_names: asked.header_names,
            interval: back_off.base,
            held: None,
            retried: false,
            tried: Tried {
                attempts: policy
                    .filter(|policy| policy.avoid_previous_hosts)
                    .map_or(0, |policy| policy.host_selection_attempts),
                update_frequency: policy.and_then(|policy| policy.avoid_previous_priorities),
                ..Tried::default()
            },
            policy: policy.cloned(),
        })
    }

    /// After a response's headers.
    pub(super) fn after_response(
        &mut self,
        cluster: &ClusterView,
        breakers: &Breakers,
        status: StatusCode,
        headers: &HeaderMap,
    ) -> Verdict {
        let wanted = self.wants_other_response(status, headers);
        let limited = || {
            let limited = self.policy.as_ref()?.rate_limited.as_ref()?;
            reset_interval(limited, headers)
        };
        let after = if wanted { limited() } else { None };
        self.decide(cluster, breakers, wanted, after)
    }

    /// After an attempt without a response.
    pub(super) fn after_failure(
        &mut self,
        cluster: &ClusterView,
        breakers: &Breakers,
        failure: Failure,
    ) -> Verdict {
        let wanted = self.wants_other_attempt(failure);
        self.decide(cluster, breakers, wanted, None)
    }

    /// After an attempt that took too long.
    pub(super) fn after_timeout(&mut self, cluster: &ClusterView, breakers: &Breakers) -> Verdict {
        let retriable = RetryOn::SERVER_ERROR
            .and(RetryOn::GATEWAY_ERROR)
            .and(RetryOn::RESET);
        self.decide(cluster, breakers, self.on.any(retriable), None)
    }

    fn wants_other_response(&self, status: StatusCode, headers: &HeaderMap) -> bool {
        let on = |condition| self.on.any(condition);
        if headers.contains_key(RATE_LIMITED) {
            // The upstream's proxy says so: to ask again at once would make it worse.
            return on(RetryOn::RATE_LIMITED);
        }
        let code = status.as_u16();
        let policy = self.policy.as_deref();
        let named = |code| {
            self.status_codes.contains(&code)
                || policy.is_some_and(|policy| policy.status_codes.contains(&code))
        };
        let has_header = || {
            self.header_names
                .iter()
                .any(|name| headers.contains_key(name))
                || policy.is_some_and(|policy| {
                    policy
                        .headers
                        .iter()
                        .any(|matcher| router::response_header_matches(matcher, headers, status))
                })
        };
        (on(RetryOn::SERVER_ERROR) && (500..600).contains(&code))
            || (on(RetryOn::GATEWAY_ERROR) && (502..=504).contains(&code))
            || (on(RetryOn::RETRIABLE_4XX) && code == 409)
            || (on(RetryOn::STATUS_CODES) && named(code))
            || (on(RetryOn::HEADERS) && has_header())
            || grpc_condition(headers).is_some_and(on)
    }

    fn wants_other_attempt(&self, failure: Failure) -> bool {
        let on = |condition| self.on.any(condition);
        let any_reset = RetryOn::RESET
            .and(RetryOn::SERVER_ERROR)
            .and(RetryOn::GATEWAY_ERROR);
        match failure {
            Failure::Overflow | Failure::Client => false,
            Failure::Connect | Failure::ConnectTimeout => on(any_reset
                .and(RetryOn::RESET_BEFORE_REQUEST)
                .and(RetryOn::CONNECT_FAILURE)),
            Failure::Refused => on(any_reset.and(RetryOn::REFUSED_STREAM)),
            Failure::Reset | Failure::RemoteReset | Failure::Protocol => on(any_reset),
        }
    }

    fn decide(
        &mut self,
        cluster: &ClusterView,
        breakers: &Breakers,
        wanted: bool,
        after: Option<Duration>,
    ) -> Verdict {
        let stats = &cluster.state.stats;
        self.held = None;
        if !wanted {
            if self.retried {
                count(&stats.upstream_rq_retry_success);
            }
            return Verdict::Stands;
        }
        if self.left == 0 {
            count(&stats.upstream_rq_retry_limit_exceeded);
            return Verdict::LimitExceeded;
        }
        self.left -= 1;
        let Some(held) = breakers.hold_retry() else {
            count(&stats.upstream_rq_retry_overflow);
            return Verdict::Overflow;
        };
        self.held = Some(held);
        self.retried = true;
        count(&stats.upstream_rq_retry);
        Verdict::Again(match after {
            Some(after) => {
                count(&stats.upstream_rq_retry_backoff_ratelimited);
                // Not before the limit ends, and not all at once.
                after + after.mul_f64(fastrand::f64() / 2.0)
            }
            None => {
                count(&stats.upstream_rq_retry_backoff_exponential);
                self.next_interval()
            }
        })
    }

    fn next_interval(&mut self) -> Duration {
        let max = self
            .policy
            .as_ref()
            .map_or(Duration::from_millis(250), |policy| policy.back_off.max);
        let interval = self.interval;
        self.interval = (interval * 2).min(max.max(interval));
        interval.mul_f64(fastrand::f64()).min(max)
    }
}

/// What a request's own headers ask for.
#[derive(Debug, Default)]
struct Asked {
    on: RetryOn,
    max_retries: Option<u32>,
    status_codes: SmallVec<[u16; 4]>,
    header_names: SmallVec<[HeaderName; 2]>,
}

impl Asked {
    fn take(headers: &mut HeaderMap) -> Self {
        let mut taken = |name: HeaderName| headers.remove(name);
        let (on, grpc_on) = (taken(RETRY_ON), taken(RETRY_GRPC_ON));
        let (max, codes, names) = (taken(MAX_RETRIES), taken(STATUS_CODES), taken(HEADER_NAMES));
        let items = |value: &Option<http::HeaderValue>| -> SmallVec<[String; 4]> {
            let list = value.as_ref().map_or("", text);
            list.split(',').map(|item| item.trim().to_owned()).collect()
        };
        Self {
            on: on
                .as_ref()
                .map_or(RetryOn::NOTHING, |on| RetryOn::http(text(on)))
                .and(
                    grpc_on
                        .as_ref()
                        .map_or(RetryOn::NOTHING, |on| RetryOn::grpc(text(on))),
                ),
            max_retries: max.as_ref().and_then(|max| text(max).parse().ok()),
            status_codes: match &codes {
                Some(_) => items(&codes)
                    .iter()
                    .filter_map(|code| code.parse().ok())
                    .collect(),
                None => SmallVec::new(),
            },
            header_names: match &names {
                Some(_) => items(&names)
                    .iter()
                    .filter_map(|name| HeaderName::try_from(name.as_str()).ok())
                    .collect(),
                None => SmallVec::new(),
            },
        }
    }
}

/// The condition that a gRPC status among the headers fulfils.
fn grpc_condition(headers: &HeaderMap) -> Option<RetryOn> {
    Some(match headers.get(GRPC_STATUS)?.as_bytes() {
        b"1" => RetryOn::GRPC_CANCELLED,
        b"4" => RetryOn::GRPC_DEADLINE_EXCEEDED,
        b"8" => RetryOn::GRPC_RESOURCE_EXHAUSTED,
        b"13" => RetryOn::GRPC_INTERNAL,
        b"14" => RetryOn::GRPC_UNAVAILABLE,
        _ => return None,
    })
}

/// How long a rate-limited upstream wants to be left alone.
fn reset_interval(limited: &RateLimitedBackOff, headers: &HeaderMap) -> Option<Duration> {
    limited.headers.iter().find_map(|(name, format)| {
        let value: u64 = text(headers.get(name)?).parse().ok()?;
        let interval = match format {
            ResetFormat::Seconds => Duration::from_secs(value),
            ResetFormat::UnixTimestamp => {
                let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
                Duration::from_secs(value).checked_sub(now)?
            }
        };
        (interval <= limited.max).then_some(interval)
    })
}

#[cfg(test)]
#[path = "retry_tests.rs"]
mod tests;
