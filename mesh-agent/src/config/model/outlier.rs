//! Passive health checks.

use std::time::Duration;

/// Envoy's `OutlierDetection`; the defaults are Envoy's.
#[derive(Debug, Clone, PartialEq)]
pub struct OutlierDetection {
    /// An endpoint is ejected after so many responses of 5xx in a row (default 5; 0: never).
    pub consecutive_5xx: Check,
    /// After so many of 502, 503 and 504 in a row (default 5, not enforced).
    pub consecutive_gateway_failure: Check,
    /// After so many failures without a response in a row (default 5).
    pub consecutive_local_origin_failure: Check,
    /// Failures without a response count by themselves and not as 5xx.
    pub split_local_origin: bool,
    /// Time between looks at rates and at who may come back (default 10 s).
    pub interval: Duration,
    /// The first ejection lasts so long, the next one twice that, and so on (default 30 s).
    pub base_ejection_time: Duration,
    /// None lasts longer than this (default 300 s, or the base).
    pub max_ejection_time: Duration,
    /// Ejections are lengthened by up to this much, at random.
    pub max_ejection_jitter: Duration,
    /// At most this share of a cluster's endpoints is ejected (default 10).
    pub max_ejection_percent: u32,
    /// One endpoint may be ejected whatever the share.
    pub always_eject_one: bool,
    /// Endpoints that succeed less often than the others.
    pub success_rate: RateCheck,
    /// Endpoints that fail too often.
    pub failure_percentage: RateCheck,
}

/// A number in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Check {
    /// How many.
    pub count: u32,
    /// Percent of the times that the number is reached in which the endpoint is ejected.
    pub enforcing: u32,
}

/// A check of all endpoints' rates of an interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateCheck {
    /// Only if so many endpoints had enough requests (default 5).
    pub minimum_hosts: u32,
    /// So many are enough.
    pub request_volume: u32,
    /// Of the success rate: standard deviations below the mean, in thousandths (default 1900). Of
    /// the failure percentage: the percentage (default 85).
    pub threshold: u32,
    /// Percent of the times.
    pub enforcing: u32,
    /// As `enforcing`, for failures without a response when they count by themselves.
    pub enforcing_local_origin: u32,
}
