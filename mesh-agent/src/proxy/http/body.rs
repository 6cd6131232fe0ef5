//! Bodies on their way through: requests' towards upstreams, responses' towards clients.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::proxy::lb::InFlight;

use super::pool::Lease;

/// A request's body, which tells how far it has come.
pub(super) struct RequestBody {
    body: Incoming,
    progress: Progress,
}

/// How far a request's body has come.
#[derive(Clone)]
pub(super) struct Progress(Rc<Cell<bool>>);

impl Progress {
    /// Whether all of it was read.
    pub(super) fn ended(&self) -> bool {
        self.0.get()
    }
}

impl RequestBody {
    pub(super) fn new(body: Incoming) -> Self {
        let progress = Progress(Rc::new(Cell::new(body.is_end_stream())));
        Self { body, progress }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.0.set(true);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// A response's body: the upstream's, or ours.
pub(super) enum ProxyBody {
    /// Our own answer.
    Own(Option<Bytes>),
    /// Streamed from the upstream.
    Upstream(Box<Upstream>),
}

pub(super) struct Upstream {
    pub(super) body: Incoming,
    /// Ends with the body: gives the connection back to the pool.
    pub(super) lease: Option<Lease>,
    /// Counts the request.
    pub(super) _in_flight: Option<InFlight>,
    /// The route's timeout, still running while the body streams.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
}

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the upstream broke off: {0}")]
    Upstream(#[from] hyper::Error),
    #[error("the route's timeout ended the response")]
    Timeout,
}

impl Body for ProxyBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        match &mut *self {
            Self::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Self::Upstream(upstream) => {
                if let Some(deadline) = &mut upstream.deadline
                    && deadline.as_mut().poll(cx).is_ready()
                {
                    if let Some(lease) = upstream.lease.take() {
                        lease.discard();
                    }
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
                match ready!(Pin::new(&mut upstream.body).poll_frame(cx)) {
                    Some(Ok(frame)) => Poll::Ready(Some(Ok(frame))),
                    Some(Err(error)) => {
                        if let Some(lease) = upstream.lease.take() {
                            lease.discard();
                        }
                        Poll::Ready(Some(Err(error.into())))
                    }
                    None => {
                        upstream.lease = None;
                        Poll::Ready(None)
                    }
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(upstream) => upstream.body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(upstream) => upstream.body.size_hint(),
        }
    }
}
