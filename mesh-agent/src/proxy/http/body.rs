//! Response bodies on their way to the client.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::pool::Lease;

/// A body: the upstream's, or ours.
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
