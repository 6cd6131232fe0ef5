//! A rate limit that this node keeps by itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::config::model::Fraction;
use crate::config::model::headers::HeaderMutations;
use crate::config::model::rate_limit::{HostLimits, RateLimit};

/// Envoy's `LocalRateLimit`.
#[derive(Debug)]
pub struct LocalRateLimit {
    /// The answer to what is too much (default 429).
    pub status: StatusCode,
    /// `None`: without limit.
    pub bucket: Option<Arc<TokenBucket>>,
    /// Buckets of requests with certain descriptors, the slowest first.
    pub descriptors: Vec<LocalDescriptor>,
    /// Makes descriptors instead of the limits of routes and virtual hosts.
    pub limits: Vec<RateLimit>,
    /// Limits of this stage count.
    pub stage: u32,
    /// Limits of the virtual host.
    pub host_limits: HostLimits,
    /// A request with a bucket of its own takes from the common one, too.
    pub always_common: bool,
    /// For which share of requests tokens are taken.
    pub enabled: Fraction,
    /// For which share of those an empty bucket refuses.
    pub enforced: Fraction,
    /// Put into what is too much but not refused.
    pub request_headers_when_not_enforced: HeaderMutations,
    /// Put into refusals.
    pub response_headers: HeaderMutations,
    /// Adds `x-ratelimit-limit`, `-remaining` and `-reset` to responses.
    pub x_ratelimit_headers: bool,
    /// gRPC clients are told RESOURCE_EXHAUSTED instead of UNAVAILABLE.
    pub as_resource_exhausted: bool,
}

/// A bucket of requests with a descriptor.
#[derive(Debug)]
pub struct LocalDescriptor {
    /// Key and value; all of a request's descriptor.
    pub entries: Vec<(String, String)>,
    /// Its bucket.
    pub bucket: Arc<TokenBucket>,
}

/// Tokens, of which each request takes one. All workers share it, without a lock.
#[derive(Debug)]
pub struct TokenBucket {
    /// At most so many.
    pub max: u32,
    /// Nanoseconds that bring a token.
    per_token_ns: i64,
    started: Instant,
    /// When the bucket would have been empty, in nanoseconds since the start: what has passed
    /// since then is what there is.
    empty_at_ns: AtomicI64,
}

impl TokenBucket {
    /// A full bucket that gets `per_fill` tokens every `interval`: evenly, not all at its end.
    pub fn new(max: u32, per_fill: u32, interval: Duration) -> Self {
        let interval_ns = i64::try_from(interval.as_nanos()).unwrap_or(i64::MAX);
        let per_token_ns = (interval_ns / i64::from(per_fill.max(1))).max(1);
        Self {
            max,
            per_token_ns,
            started: Instant::now(),
            empty_at_ns: AtomicI64::new(-per_token_ns.saturating_mul(max.into())),
        }
    }

    /// Nanoseconds that bring a token.
    pub fn per_token_ns(&self) -> i64 {
        self.per_token_ns
    }

    /// Takes a token if there is one.
    pub fn take(&self) -> bool {
        self.take_many(1)
    }

    /// Takes tokens if there are so many.
    pub fn take_many(&self, tokens: u64) -> bool {
        let taken_ns = i64::try_from(tokens)
            .unwrap_or(i64::MAX)
            .saturating_mul(self.per_token_ns);
        let now = self.now_ns();
        let full = self.full_ns();
        self.empty_at_ns
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |empty_at| {
                let taken = empty_at
                    .max(now.saturating_sub(full))
                    .saturating_add(taken_ns);
                (taken <= now).then_some(taken)
            })
            .is_ok()
    }

    /// How many tokens there are.
    pub fn remaining(&self) -> u32 {
        let since = self.now_ns() - self.empty_at_ns.load(Ordering::Relaxed);
        let tokens = since.clamp(0, self.full_ns()) / self.per_token_ns;
        u32::try_from(tokens).unwrap_or(self.max)
    }

    /// Time until there is a token.
    pub fn next_token(&self) -> Duration {
        let at = self.empty_at_ns.load(Ordering::Relaxed) + self.per_token_ns;
        Duration::from_nanos(u64::try_from(at - self.now_ns()).unwrap_or(0))
    }

    fn full_ns(&self) -> i64 {
        self.per_token_ns.saturating_mul(self.max.into())
    }

    fn now_ns(&self) -> i64 {
        i64::try_from(self.started.elapsed().as_nanos()).unwrap_or(i64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_used_up_and_come_back_evenly() {
        let bucket = TokenBucket::new(2, 10, Duration::from_secs(1000));
        let pass = |seconds: i64| {
            bucket
                .empty_at_ns
                .fetch_sub(seconds * 1_000_000_000, Ordering::Relaxed);
        };
        assert!(bucket.take() && bucket.take());
        assert!(!bucket.take());
        let wait = bucket.next_token();
        assert!(wait > Duration::from_secs(90) && wait <= Duration::from_secs(100));
        pass(150);
        assert!(bucket.take());
        assert!(!bucket.take());
        pass(100_000);
        assert_eq!(bucket.remaining(), 2);
        assert!(bucket.take() && bucket.take() && !bucket.take());
    }
}
