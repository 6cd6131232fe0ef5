//! Bodies on their way through: requests' towards upstreams, responses' towards clients.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use super::h1::client::UpstreamBody;
use super::h1::server::Wire;
use super::upstream::Serving;

/// A request's body.
#[derive(Debug)]
pub(super) struct RequestBody {
    source: Source,
    progress: Progress,
}

#[derive(Debug)]
enum Source {
    Http1(Rc<Wire>),
    Http2(Incoming),
}

/// How far a request's body has come; shared with whoever waits for its end.
#[derive(Debug, Clone)]
pub(super) struct Progress(Rc<Cell<Stage>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    Ended,
    Broken,
}

impl Progress {
    /// Whether all of it was read.
    pub(super) fn ended(&self) -> bool {
        self.0.get() == Stage::Ended
    }

    /// Whether the client broke the protocol or left in the middle of it.
    pub(super) fn broken(&self) -> bool {
        self.0.get() == Stage::Broken
    }
}

impl RequestBody {
    /// The body of the request that a connection is at.
    pub(super) fn http1(wire: Rc<Wire>) -> Self {
        let ended = wire.body_ended();
        Self::new(Source::Http1(wire), ended)
    }

    /// A stream's.
    pub(super) fn http2(body: Incoming) -> Self {
        let ended = body.is_end_stream();
        Self::new(Source::Http2(body), ended)
    }

    fn new(source: Source, ended: bool) -> Self {
        let stage = if ended { Stage::Ended } else { Stage::Reading };
        Self {
            source,
            progress: Progress(Rc::new(Cell::new(stage))),
        }
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let frame = match &mut self.source {
            Source::Http1(wire) => {
                let data = ready!(wire.poll_body(cx));
                data.map(|data| data.map(Frame::data))
            }
            Source::Http2(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                frame.map(|frame| frame.map_err(io::Error::other))
            }
        };
        if matches!(frame, Some(Err(_))) {
            self.progress.0.set(Stage::Broken);
        } else if frame.is_none() || self.is_end_stream() {
            self.progress.0.set(Stage::Ended);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Http1(wire) => wire.body_ended(),
            Source::Http2(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Http1(wire) => wire.body_size(),
            Source::Http2(body) => body.size_hint(),
        }
    }
}

/// A response's body.
#[derive(Debug)]
pub(super) enum ProxyBody {
    /// Our own answer.
    Own(Option<Bytes>),
    /// Streamed from an upstream.
    Upstream(Box<Streamed>),
}

/// A body that an upstream sends.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) body: UpstreamStream,
    /// The route's timeout, still running while the body streams.
    pub(super) deadline: Option<Pin<Box<Sleep>>>,
    /// Counts the request until its last byte.
    pub(super) serving: Serving,
}

/// By protocol.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "it is boxed with the whole of `Streamed`; HTTP/1 would pay for a second box"
)]
pub(super) enum UpstreamStream {
    Http1(UpstreamBody),
    Http2(Incoming),
}

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the upstream broke off: {0}")]
    Upstream(io::Error),
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
        let streamed = match &mut *self {
            Self::Own(bytes) => {
                return Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes))));
            }
            Self::Upstream(streamed) => streamed,
        };
        let frame = match &mut streamed.body {
            UpstreamStream::Http1(body) => body
                .poll_data(cx)
                .map(|data| data.map(|data| data.map(Frame::data))),
            UpstreamStream::Http2(body) => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
        };
        match frame {
            Poll::Ready(frame) => {
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Upstream)))
            }
            Poll::Pending => match &mut streamed.deadline {
                Some(deadline) => {
                    ready!(deadline.as_mut().poll(cx));
                    streamed.serving.timed_out();
                    Poll::Ready(Some(Err(BodyError::Timeout)))
                }
                None => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Upstream(streamed) => match &streamed.body {
                UpstreamStream::Http1(body) => body.ended(),
                UpstreamStream::Http2(body) => body.is_end_stream(),
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Upstream(streamed) => match &streamed.body {
                UpstreamStream::Http1(body) => body.size_hint(),
                UpstreamStream::Http2(body) => body.size_hint(),
            },
        }
    }
}
