//! How long a request may take.

use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderMap, HeaderName};

use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::route::{Forward, StreamDuration};

use super::alarm::Alarm;
use super::body::Progress;
use super::reply::is_grpc;

const TIMEOUT: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-timeout-ms");
const PER_TRY: HeaderName = HeaderName::from_static("x-envoy-upstream-rq-per-try-timeout-ms");
const ALT_RESPONSE: HeaderName =
    HeaderName::from_static("x-envoy-upstream-rq-timeout-alt-response");
const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// The limits of one request: the route's, unless the request's headers say otherwise
/// (Envoy: `FilterUtility::finalTimeout`).
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Timeouts {
    /// From the end of the request to the end of the response.
    pub(super) request: Option<Duration>,
    /// From the end of the request, or the start of an attempt, to the response's headers.
    pub(super) per_try: Option<Duration>,
    /// An attempt's longest time without progress before the response's headers.
    pub(super) per_try_idle: Option<Duration>,
    /// From the first byte of the request to the last one of the response.
    pub(super) stream: Option<Duration>,
    /// A timeout is answered by 204.
    pub(super) alt_response: bool,
}

impl Timeouts {
    /// Takes the headers that say so out of the request.
    pub(super) fn of(
        forward: &Forward,
        hcm: &HttpConnectionManager,
        headers: &mut HeaderMap,
    ) -> Self {
        let retry = forward.retry.as_deref();
        let mut timeouts = Self {
            // Envoy: `usingNewTimeouts`.
            request: match forward.grpc_timeout_max {
                _ if forward.stream_duration.is_some() => None,
                Some(most) if is_grpc(headers) => within(grpc_timeout(headers), most),
                _ => forward.timeout,
            },
            per_try: retry.and_then(|retry| retry.per_try_timeout),
            per_try_idle: retry.and_then(|retry| retry.per_try_idle_timeout),
            stream: match &forward.stream_duration {
                Some(duration) => stream_duration(duration, headers, hcm.max_stream_duration),
                None => hcm.max_stream_duration,
            },
            alt_response: false,
        };
        if let Some(request) = milliseconds(headers, TIMEOUT) {
            timeouts.request = Some(request).filter(|limit| !limit.is_zero());
        }
        if let Some(per_try) = milliseconds(headers, PER_TRY) {
            timeouts.per_try = Some(per_try).filter(|limit| !limit.is_zero());
        }
        if headers.remove(ALT_RESPONSE).is_some() {
            timeouts.alt_response = true;
        }
        if let (Some(per_try), Some(request)) = (timeouts.per_try, timeouts.request)
            && per_try >= request
        {
            timeouts.per_try = None;
        }
        timeouts
    }

    /// What an upstream is told that it has, after `elapsed` of the whole.
    pub(super) fn expected(&self, elapsed: Duration) -> Option<Duration> {
        let expected = self.per_try.or(self.request)?;
        let Some(request) = self.request else {
            return Some(expected);
        };
        // Out of time; 0 would be without limit.
        let least = Duration::from_millis(1);
        Some(match request.checked_sub(elapsed) {
            Some(left) => expected.min(left).max(least),
            None => least,
        })
    }
}

/// What a gRPC client asked for, within what it may have. Zero, and nothing asked, is for ever.
fn within(asked: Option<Duration>, most: Duration) -> Option<Duration> {
    let asked = asked.filter(|asked| !asked.is_zero());
    let most = Some(most).filter(|most| !most.is_zero());
    match (asked, most) {
        (Some(asked), Some(most)) => Some(asked.min(most)),
        (asked, most) => asked.or(most),
    }
}

fn milliseconds(headers: &mut HeaderMap, name: HeaderName) -> Option<Duration> {
    let value = headers.remove(name)?;
    value.to_str().ok()?.parse().ok().map(Duration::from_millis)
}

/// A gRPC client may ask for less, or for all that the route grants.
fn stream_duration(
    route: &StreamDuration,
    headers: &HeaderMap,
    inherited: Option<Duration>,
) -> Option<Duration> {
    if let Some(most) = route.grpc_timeout_max
        && let Some(asked) = grpc_timeout(headers)
    {
        let granted = match (asked.is_zero(), most.is_zero()) {
            (false, false) => asked.min(most),
            (true, _) => most,
            (false, true) => asked,
        };
        let less = granted.saturating_sub(route.grpc_timeout_offset);
        // An offset that leaves nothing is without effect.
        let limit = if less.is_zero() { granted } else { less };
        return (!limit.is_zero()).then_some(limit);
    }
    match route.max {
        Some(max) => (!max.is_zero()).then_some(max),
        None => inherited,
    }
}

/// gRPC's own form: up to eight digits and a unit.
fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get(GRPC_TIMEOUT)?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reached {
    /// The route's timeout.
    Request,
    /// The longest life of a stream.
    Stream,
}

/// The limits of the whole request as they run.
#[derive(Debug, Default)]
pub(super) struct Deadlines {
    /// Not running while the request is on its way.
    pending: Option<(Duration, Progress)>,
    request: Option<Alarm>,
    stream: Option<Alarm>,
}

impl Deadlines {
    /// Begins.
    pub(super) fn new(timeouts: &Timeouts, progress: &Progress) -> Self {
        let ended = progress.ended();
        Self {
            pending: timeouts
                .request
                .filter(|_| !ended)
                .map(|limit| (limit, progress.clone())),
            request: timeouts.request.filter(|_| ended).map(Alarm::after),
            stream: timeouts.stream.map(Alarm::after),
        }
    }

    /// Ready when one is reached.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Reached> {
        if let Some((limit, progress)) = &self.pending
            && progress.poll_ended(cx).is_ready()
        {
            self.request = Some(Alarm::after(*limit));
            self.pending = None;
        }
        let reached = |alarm: &mut Option<Alarm>, cx: &mut Context<'_>| {
            alarm
                .as_mut()
                .is_some_and(|alarm| alarm.poll(cx).is_ready())
        };
        if reached(&mut self.request, cx) {
            return Poll::Ready(Reached::Request);
        }
        if reached(&mut self.stream, cx) {
            return Poll::Ready(Reached::Stream);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn grpc_timeouts_have_a_unit() {
        let of = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(GRPC_TIMEOUT, HeaderValue::from_static(text));
            grpc_timeout(&headers)
        };
        assert_eq!(of("100m"), Some(Duration::from_millis(100)));
        assert_eq!(of("2S"), Some(Duration::from_secs(2)));
        assert_eq!(
            of("99999999H"),
            Some(Duration::from_secs(99_999_999 * 3600))
        );
        for wrong in ["", "m", "1", "123456789m", "1x", "-1m"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_clients_deadline_is_held_within_the_routes() {
        let route = StreamDuration {
            max: Some(Duration::from_secs(9)),
            grpc_timeout_max: Some(Duration::from_secs(3)),
            grpc_timeout_offset: Duration::from_secs(1),
        };
        let mut headers = HeaderMap::new();
        let limit = |headers: &HeaderMap| stream_duration(&route, headers, None);
        assert_eq!(limit(&headers), Some(Duration::from_secs(9)));
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("10S"));
        assert_eq!(limit(&headers), Some(Duration::from_secs(2)));
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("500m"));
        assert_eq!(limit(&headers), Some(Duration::from_millis(500)));
    }

    #[test]
    fn zero_is_for_ever_on_both_sides() {
        let second = Duration::from_secs(1);
        assert_eq!(within(None, Duration::ZERO), None);
        assert_eq!(within(Some(second), Duration::ZERO), Some(second));
        assert_eq!(within(Some(Duration::ZERO), second), Some(second));
        assert_eq!(within(Some(second * 2), second), Some(second));
    }

    #[test]
    fn an_upstream_is_told_what_is_left() {
        let timeouts = Timeouts {
            request: Some(Duration::from_secs(10)),
            per_try: Some(Duration::from_secs(4)),
            ..Timeouts::default()
        };
        let expected = |elapsed| timeouts.expected(Duration::from_secs(elapsed));
        assert_eq!(expected(0), Some(Duration::from_secs(4)));
        assert_eq!(expected(8), Some(Duration::from_secs(2)));
        assert_eq!(expected(11), Some(Duration::from_millis(1)));
    }
}
