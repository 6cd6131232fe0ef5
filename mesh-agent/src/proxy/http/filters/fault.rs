//! `envoy.filters.http.fault`: delays and refusals on purpose.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, StatusCode};

use crate::config::model::Fraction;
use crate::config::model::filter::fault::{AbortWith, Delay, Fault};
use crate::config::model::response_flag::ResponseFlag;
use crate::proxy::http::message::{Reply, Request};
use crate::proxy::http::reply::local;
use crate::proxy::http::router::header_matches;

use super::Call;

/// Counts a fault while it lasts.
struct Active(Arc<AtomicU64>);

impl Active {
    fn begin(fault: &Fault) -> Option<Self> {
        let most = fault.max_active.map_or(u64::MAX, u64::from);
        fault
            .active
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |active| {
                (active < most).then_some(active + 1)
            })
            .ok()?;
        Some(Self(fault.active.clone()))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether it never does anything: what control planes put into every chain.
pub(super) fn is_idle(fault: &Fault) -> bool {
    fault.delay.is_none() && fault.abort.is_none()
}

/// Holds a request up, refuses it, or both.
pub(super) async fn inject(
    call: &Call<'_>,
    fault: &Fault,
    request: &Request,
) -> Result<(), Box<Reply>> {
    if !concerns(call, fault, request) {
        return Ok(());
    }
    let delay = fault
        .delay
        .as_ref()
        .and_then(|delay| duration(delay, &request.headers));
    let mut active = None;
    if let Some(delay) = delay {
        active = Active::begin(fault);
        if active.is_none() {
            return Ok(());
        }
        call.record.flag(ResponseFlag::DelayInjected);
        tokio::time::sleep(delay).await;
    }
    let Some(abort) = &fault.abort else {
        return Ok(());
    };
    let headers = &request.headers;
    let share = match abort.with {
        AbortWith::Header => narrowed(
            abort.fraction,
            headers,
            "x-envoy-fault-abort-request-percentage",
        ),
        _ => abort.fraction,
    };
    let Some((status, grpc_status)) = answer(abort.with, headers) else {
        return Ok(());
    };
    if !share.holds(fastrand::u64(..)) {
        return Ok(());
    }
    let _active = match active.or_else(|| Active::begin(fault)) {
        Some(active) => active,
        None => return Ok(()),
    };
    let mut reply = local(status, "fault filter abort")
        .because("fault_filter_abort")
        .flagged(ResponseFlag::FaultInjected);
    reply.grpc_status = grpc_status;
    Err(Box::new(reply))
}

fn concerns(call: &Call<'_>, fault: &Fault, request: &Request) -> bool {
    let cluster = fault
        .upstream_cluster
        .as_deref()
        .is_none_or(|wanted| call.cluster() == Some(wanted));
    let node = fault.downstream_nodes.is_empty()
        || text(&request.headers, "x-envoy-downstream-service-node")
            .is_some_and(|node| fault.downstream_nodes.iter().any(|known| **known == *node));
    cluster
        && node
        && fault
            .headers
            .iter()
            .all(|matcher| header_matches(matcher, request))
}

fn duration(delay: &Delay, headers: &HeaderMap) -> Option<Duration> {
    let (share, duration) = match delay.fixed {
        Some(fixed) => (delay.fraction, fixed),
        None => (
            narrowed(
                delay.fraction,
                headers,
                "x-envoy-fault-delay-request-percentage",
            ),
            Duration::from_millis(number(headers, "x-envoy-fault-delay-request")?),
        ),
    };
    (!duration.is_zero() && share.holds(fastrand::u64(..))).then_some(duration)
}

fn answer(with: AbortWith, headers: &HeaderMap) -> Option<(StatusCode, Option<u16>)> {
    let grpc = |status: u16| (StatusCode::OK, Some(status));
    match with {
        AbortWith::Http(status) => Some((status, None)),
        AbortWith::Grpc(status) => Some(grpc(status)),
        AbortWith::Header => match number::<u16>(headers, "x-envoy-fault-abort-request") {
            Some(status) if (200..600).contains(&status) => {
                Some((StatusCode::from_u16(status).ok()?, None))
            }
            _ => number(headers, "x-envoy-fault-abort-grpc-request").map(grpc),
        },
    }
}

/// A request may ask for fewer faults than configured, not for more.
fn narrowed(configured: Fraction, headers: &HeaderMap, name: &str) -> Fraction {
    match number(headers, name) {
        Some(numerator) => Fraction {
            numerator: configured.numerator.min(numerator),
            denominator: configured.denominator,
        },
        None => configured,
    }
}

fn text<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

fn number<T: FromStr>(headers: &HeaderMap, name: &str) -> Option<T> {
    text(headers, name)?.parse().ok()
}
