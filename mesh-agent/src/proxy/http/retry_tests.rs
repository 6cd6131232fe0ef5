//! Verdicts over attempts, without a network.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Version};

use crate::config::model::retry::{BackOff, RetryOn, RetryPolicy};

use super::*;
use crate::proxy::http::message::Path;

fn request(headers: &[(&'static str, &'static str)]) -> Request {
    Request {
        method: Method::GET,
        path: Path::root(),
        authority: HeaderValue::from_static("h"),
        scheme: "http",
        version: Version::HTTP_11,
        headers: headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect(),
        metadata: Default::default(),
        pinned: None,
        redirects: None,
        early: None,
    }
}

fn retry(policy: RetryPolicy) -> Retry {
    let policy = Arc::new(policy);
    Retry {
        on: policy.on,
        left: policy.num_retries,
        status_codes: SmallVec::new(),
        header_names: SmallVec::new(),
        interval: policy.back_off.base,
        held: None,
        retried: false,
        tried: Tried::default(),
        policy: Some(policy),
    }
}

#[test]
fn headers_that_ask_for_retries_are_taken() {
    let mut request = request(&[
        ("x-envoy-retry-on", "5xx"),
        ("x-envoy-retry-grpc-on", "cancelled"),
        ("x-envoy-max-retries", "7"),
        ("x-envoy-retriable-status-codes", "418, x,419"),
        ("x-envoy-retriable-header-names", "a, b"),
        ("x-other", "1"),
    ]);
    let asked = Asked::take(&mut request.headers);
    assert_eq!(asked.on, RetryOn::SERVER_ERROR.and(RetryOn::GRPC_CANCELLED));
    assert_eq!(asked.max_retries, Some(7));
    assert_eq!(asked.status_codes.as_slice(), [418, 419]);
    assert_eq!(asked.header_names.len(), 2);
    assert_eq!(request.headers.len(), 1);
}

#[test]
fn the_time_between_attempts_doubles_up_to_its_limit() {
    let mut retry = retry(RetryPolicy {
        back_off: BackOff {
            base: Duration::from_millis(10),
            max: Duration::from_millis(30),
        },
        ..RetryPolicy::none()
    });
    for limit in [10, 20, 30, 30] {
        assert_eq!(retry.interval, Duration::from_millis(limit));
        assert!(retry.next_interval() <= Duration::from_millis(limit));
    }
}

#[test]
fn a_refused_stream_and_a_failed_connect_are_told_apart() {
    let wants = |on, failure| {
        retry(RetryPolicy {
            on,
            ..RetryPolicy::none()
        })
        .wants_other_attempt(failure)
    };
    assert!(wants(RetryOn::REFUSED_STREAM, Failure::Refused));
    assert!(!wants(RetryOn::REFUSED_STREAM, Failure::RemoteReset));
    assert!(wants(RetryOn::RESET_BEFORE_REQUEST, Failure::Connect));
    assert!(!wants(RetryOn::RESET_BEFORE_REQUEST, Failure::Reset));
    assert!(!wants(RetryOn::SERVER_ERROR, Failure::Overflow));
}

#[test]
fn a_rate_limit_says_when() {
    let limited = RateLimitedBackOff {
        headers: vec![
            (HeaderName::from_static("retry-after"), ResetFormat::Seconds),
            (
                HeaderName::from_static("x-reset"),
                ResetFormat::UnixTimestamp,
            ),
        ],
        max: Duration::from_secs(60),
    };
    let interval = |name, value: String| {
        let headers = HeaderMap::from_iter([(
            HeaderName::from_static(name),
            HeaderValue::try_from(value).unwrap(),
        )]);
        reset_interval(&limited, &headers)
    };
    assert_eq!(
        interval("retry-after", "5".into()),
        Some(Duration::from_secs(5))
    );
    assert_eq!(interval("retry-after", "61".into()), None);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let soon = interval("x-reset", (now.as_secs() + 30).to_string()).unwrap();
    assert!(soon <= Duration::from_secs(30) && soon > Duration::from_secs(27));
    assert_eq!(interval("x-reset", "1".into()), None);
}

#[test]
fn statuses_and_headers_are_looked_at_as_named() {
    let wants = |on, status: u16, header: Option<(&'static str, &'static str)>| {
        let headers: HeaderMap = header
            .into_iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            })
            .collect();
        retry(RetryPolicy {
            on,
            status_codes: vec![418],
            ..RetryPolicy::none()
        })
        .wants_other_response(StatusCode::from_u16(status).unwrap(), &headers)
    };
    assert!(wants(RetryOn::SERVER_ERROR, 500, None));
    assert!(!wants(RetryOn::GATEWAY_ERROR, 500, None));
    assert!(wants(RetryOn::STATUS_CODES, 418, None));
    assert!(wants(
        RetryOn::GRPC_UNAVAILABLE,
        200,
        Some(("grpc-status", "14"))
    ));
    let limited = Some(("x-envoy-ratelimited", "true"));
    assert!(!wants(RetryOn::SERVER_ERROR, 503, limited));
    assert!(wants(RetryOn::RATE_LIMITED, 503, limited));
}

#[test]
fn priorities_are_avoided_in_groups() {
    let mut tried = Tried {
        update_frequency: Some(2),
        ..Tried::default()
    };
    assert!(tried.excluded_priorities().is_empty());
    tried.priorities.push(0);
    assert!(tried.excluded_priorities().is_empty());
    tried.priorities.push(1);
    assert_eq!(tried.excluded_priorities().as_slice(), [0, 1]);
    tried.priorities.push(2);
    assert_eq!(tried.excluded_priorities().as_slice(), [0, 1]);
}
