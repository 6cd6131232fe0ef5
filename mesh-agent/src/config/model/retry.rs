//! Retry policies.

use std::time::Duration;

use http::HeaderName;

use super::matcher::HeaderMatcher;

/// Envoy's `RetryPolicy`.
#[derive(Debug, Clone)]
pub struct RetryPolicy {
    /// What is asked again.
    pub on: RetryOn,
    /// How often, beside the first time (default 1).
    pub num_retries: u32,
    /// One attempt may take so long; `None`: the route's timeout alone counts.
    pub per_try_timeout: Option<Duration>,
    /// One attempt may be without progress for so long.
    pub per_try_idle_timeout: Option<Duration>,
    /// Endpoints tried already are avoided (`previous_hosts`).
    pub avoid_previous_hosts: bool,
    /// Priorities tried already are avoided, in groups of that many attempts
    /// (`previous_priorities.update_frequency`).
    pub avoid_previous_priorities: Option<u32>,
    /// How often another endpoint is drawn when one is to be avoided (default 1).
    pub host_selection_attempts: u32,
    /// For [`RetryOn::STATUS_CODES`].
    pub status_codes: Vec<u16>,
    /// For [`RetryOn::HEADERS`]: response headers, any of which makes a response retriable.
    pub headers: Vec<HeaderMatcher>,
    /// Only requests that match one of these are retried; empty: all.
    pub request_headers: Vec<HeaderMatcher>,
    /// Time between attempts.
    pub back_off: BackOff,
    /// Time between attempts when the upstream says so.
    pub rate_limited: Option<RateLimitedBackOff>,
}

impl RetryPolicy {
    /// Envoy's defaults: nothing is retried.
    pub fn none() -> Self {
        Self {
            on: RetryOn::NOTHING,
            num_retries: 1,
            per_try_timeout: None,
            per_try_idle_timeout: None,
            avoid_previous_hosts: false,
            avoid_previous_priorities: None,
            host_selection_attempts: 1,
            status_codes: Vec::new(),
            headers: Vec::new(),
            request_headers: Vec::new(),
            back_off: BackOff::default(),
            rate_limited: None,
        }
    }
}

/// Envoy's conditions of `retry_on`, a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RetryOn(u32);

impl RetryOn {
    /// The empty set.
    pub const NOTHING: Self = Self(0);
    /// `5xx`
    pub const SERVER_ERROR: Self = Self(1);
    /// `gateway-error`
    pub const GATEWAY_ERROR: Self = Self(1 << 1);
    /// `reset`
    pub const RESET: Self = Self(1 << 2);
    /// `reset-before-request`
    pub const RESET_BEFORE_REQUEST: Self = Self(1 << 3);
    /// `connect-failure`
    pub const CONNECT_FAILURE: Self = Self(1 << 4);
    /// `envoy-ratelimited`
    pub const RATE_LIMITED: Self = Self(1 << 5);
    /// `retriable-4xx`
    pub const RETRIABLE_4XX: Self = Self(1 << 6);
    /// `refused-stream`
    pub const REFUSED_STREAM: Self = Self(1 << 7);
    /// `retriable-status-codes`
    pub const STATUS_CODES: Self = Self(1 << 8);
    /// `retriable-headers`
    pub const HEADERS: Self = Self(1 << 9);
    /// `cancelled`
    pub const GRPC_CANCELLED: Self = Self(1 << 10);
    /// `deadline-exceeded`
    pub const GRPC_DEADLINE_EXCEEDED: Self = Self(1 << 11);
    /// `resource-exhausted`
    pub const GRPC_RESOURCE_EXHAUSTED: Self = Self(1 << 12);
    /// `unavailable`
    pub const GRPC_UNAVAILABLE: Self = Self(1 << 13);
    /// `internal`
    pub const GRPC_INTERNAL: Self = Self(1 << 14);

    /// The conditions of HTTP that a list names. Names that are not known are without effect, as
    /// in Envoy; `http3-post-connect-failure` never happens here.
    pub fn http(list: &str) -> Self {
        Self::of(list, |name| {
            Some(match name {
                "5xx" => Self::SERVER_ERROR,
                "gateway-error" => Self::GATEWAY_ERROR,
                "reset" => Self::RESET,
                "reset-before-request" => Self::RESET_BEFORE_REQUEST,
                "connect-failure" => Self::CONNECT_FAILURE,
                "envoy-ratelimited" => Self::RATE_LIMITED,
                "retriable-4xx" => Self::RETRIABLE_4XX,
                "refused-stream" => Self::REFUSED_STREAM,
                "retriable-status-codes" => Self::STATUS_CODES,
                "retriable-headers" => Self::HEADERS,
                _ => return None,
            })
        })
    }

    /// The conditions of gRPC that a list names.
    pub fn grpc(list: &str) -> Self {
        Self::of(list, |name| {
            Some(match name {
                "cancelled" => Self::GRPC_CANCELLED,
                "deadline-exceeded" => Self::GRPC_DEADLINE_EXCEEDED,
                "resource-exhausted" => Self::GRPC_RESOURCE_EXHAUSTED,
                "unavailable" => Self::GRPC_UNAVAILABLE,
                "internal" => Self::GRPC_INTERNAL,
                _ => return None,
            })
        })
    }

    fn of(list: &str, known: impl Fn(&str) -> Option<Self>) -> Self {
        list.split(',')
            .filter_map(|name| known(name.trim()))
            .fold(Self::NOTHING, Self::and)
    }

    /// Both sets together.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether any of `other` is in the set.
    pub const fn any(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Whether nothing is.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// Growing time between attempts: a random part of `base`, then of twice that, and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOff {
    /// Of the first retry (default 25 ms).
    pub base: Duration,
    /// At most (default ten times the base).
    pub max: Duration,
}

impl Default for BackOff {
    fn default() -> Self {
        Self {
            base: Duration::from_millis(25),
            max: Duration::from_millis(250),
        }
    }
}

/// Envoy's `RateLimitedRetryBackOff`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RateLimitedBackOff {
    /// Response headers that may say how long to wait; the first that does so counts.
    pub headers: Vec<(HeaderName, ResetFormat)>,
    /// A longer wait is not believed (default 300 s).
    pub max: Duration,
}

/// What a rate limit's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResetFormat {
    /// In so many seconds.
    Seconds,
    /// At that time, in seconds since 1970.
    UnixTimestamp,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_leniently() {
        let on = RetryOn::http("5xx, reset,cancelled,what");
        assert!(on.any(RetryOn::SERVER_ERROR) && on.any(RetryOn::RESET));
        assert!(!on.any(RetryOn::GRPC_CANCELLED) && !on.any(RetryOn::GATEWAY_ERROR));
        assert_eq!(
            RetryOn::grpc("5xx,cancelled,internal"),
            RetryOn::GRPC_CANCELLED.and(RetryOn::GRPC_INTERNAL)
        );
        assert!(RetryOn::http("").is_empty());
    }
}
