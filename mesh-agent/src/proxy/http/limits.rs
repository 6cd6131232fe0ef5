//! How long a stream may stand still, and how long a request may take to arrive.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http::StatusCode;
use tokio::time::Instant;

use crate::config::model::listener::HttpConnectionManager;
use crate::config::model::response_flag::ResponseFlag;

use super::alarm::Alarm;
use super::body::Progress;
use super::message::Reply;
use super::reply::local;

/// The connection manager's limits of one stream (Envoy: `ActiveStream`'s timers). Shared by the
/// request's handling and its response's body.
#[derive(Debug, Clone)]
pub(super) struct StreamLimits(Rc<Running>);

#[derive(Debug)]
struct Running {
    progress: Progress,
    /// The longest time without a byte either way.
    idle: Cell<Option<Duration>>,
    /// When the request must have arrived.
    arrival: Option<Instant>,
    /// When the response last moved.
    touched: Cell<Instant>,
    alarm: RefCell<Alarm>,
}

/// Which limit was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// `stream_idle_timeout`, or the route's `idle_timeout`.
    Idle,
    /// `request_timeout`
    Arrival,
}

impl StreamLimits {
    /// Begins with the end of the request's head.
    pub(super) fn new(hcm: &HttpConnectionManager, progress: &Progress) -> Self {
        let now = Instant::now();
        Self(Rc::new(Running {
            progress: progress.clone(),
            idle: Cell::new(hcm.stream_idle_timeout),
            arrival: hcm
                .request_timeout
                .filter(|_| !progress.ended())
                .map(|limit| now + limit),
            touched: Cell::new(now),
            alarm: RefCell::default(),
        }))
    }

    /// The route has its own idle timeout.
    pub(super) fn set_idle(&self, idle: Option<Duration>) {
        self.0.idle.set(idle);
    }

    /// The longest time without a byte either way.
    pub(super) fn idle(&self) -> Option<Duration> {
        self.0.idle.get()
    }

    /// The response moved.
    pub(super) fn touch(&self) {
        if self.0.idle.get().is_some() {
            self.0.touched.set(Instant::now());
        }
    }

    /// Ready when one is reached.
    pub(super) fn poll(&self, cx: &mut Context<'_>) -> Poll<Cut> {
        let running = &*self.0;
        let last = running
            .progress
            .touched()
            .map_or(running.touched.get(), |read| {
                Instant::from_std(read).max(running.touched.get())
            });
        let idle = running.idle.get().map(|limit| last + limit);
        let arrival = running.arrival.filter(|_| !running.progress.ended());
        let next = match (idle, arrival) {
            (Some(idle), Some(arrival)) => Some(idle.min(arrival)),
            (idle, arrival) => idle.or(arrival),
        };
        let mut alarm = running.alarm.borrow_mut();
        alarm.set(next);
        ready!(alarm.poll(cx));
        Poll::Ready(if arrival == next {
            Cut::Arrival
        } else {
            Cut::Idle
        })
    }

    /// Runs a future, unless a limit is reached.
    pub(super) async fn hold<F: Future>(&self, future: F) -> Result<F::Output, Cut> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if let Poll::Ready(output) = future.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            self.poll(cx).map(Err)
        })
        .await
    }

    /// Envoy's answer when the response had not begun.
    pub(super) fn reply(&self, cut: Cut) -> Reply {
        // Envoy: `Utility::maybeRequestTimeoutCode`.
        let status = if self.0.progress.ended() {
            StatusCode::GATEWAY_TIMEOUT
        } else {
            StatusCode::REQUEST_TIMEOUT
        };
        match cut {
            Cut::Arrival => local(StatusCode::REQUEST_TIMEOUT, "request timeout")
                .because("request_overall_timeout"),
            Cut::Idle => local(status, "stream timeout")
                .because("stream_idle_timeout")
                .flagged(ResponseFlag::StreamIdleTimeout),
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::super::body::RequestBody;
    use super::*;

    fn limits(idle: u64, arrival: Option<u64>) -> StreamLimits {
        let body = RequestBody::of_pieces(std::iter::once(Bytes::from_static(b"a")));
        let now = Instant::now();
        StreamLimits(Rc::new(Running {
            progress: body.progress(),
            idle: Cell::new(Some(Duration::from_secs(idle))),
            arrival: arrival.map(|limit| now + Duration::from_secs(limit)),
            touched: Cell::new(now),
            alarm: RefCell::default(),
        }))
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_that_moves_is_not_idle() {
        let start = Instant::now();
        let limits = limits(10, None);
        let moving = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_secs(9)).await;
                limits.touch();
            }
            std::future::pending::<()>().await;
        };
        assert_eq!(limits.hold(moving).await, Err(Cut::Idle));
        assert_eq!(start.elapsed().as_secs(), 55);
        assert_eq!(
            limits.reply(Cut::Idle).status,
            StatusCode::REQUEST_TIMEOUT,
            "the request has not arrived"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_has_its_time_to_arrive() {
        let limits = limits(10, Some(4));
        let start = Instant::now();
        assert_eq!(
            limits.hold(std::future::pending::<()>()).await,
            Err(Cut::Arrival)
        );
        assert_eq!(start.elapsed().as_secs(), 4);
    }
}
