//! Bodies on their way through: requests' towards upstreams, responses' towards clients.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Instant;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

use super::compressed::Compressed;
use super::grpc_messages::Messages;
use super::h1::client::{Tunnel, UpstreamBody};
use super::h1::server::Wire;
use super::limits::StreamLimits;
use super::lines;
use super::mirror::{CopiedBody, Copies};
use super::replay::Replay;
use super::timeouts::Deadlines;
use super::told::Told;
use super::unread;
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
    /// Kept in case that it must be sent again.
    Replay(Replay),
    /// Read already.
    Pieces(VecDeque<Bytes>),
    /// Copied for others while it is read.
    Copied(Box<RequestBody>, Copies),
    /// Such a copy.
    Copy(CopiedBody),
    /// The beginning was read already.
    Begun(VecDeque<Bytes>, Box<Source>),
}

/// How far a request's body has come; shared with whoever waits for its end.
#[derive(Debug, Clone)]
pub(super) struct Progress(Rc<Reading>);

#[derive(Debug)]
struct Reading {
    stage: Cell<Stage>,
    /// Bytes of the body that came.
    bytes: Cell<u64>,
    /// gRPC's messages in it; only of gRPC's requests.
    messages: Cell<Option<Messages>>,
    /// When the last one did; `None`: there was no body, or it has not ended.
    ended: Cell<Option<Instant>>,
    /// When a piece was read last.
    touched: Cell<Option<Instant>>,
    /// Who waits for the end; a body may be read by another task.
    waiting: RefCell<Option<Waker>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Reading,
    Ended,
    Broken,
}

impl Progress {
    /// Of what is no request.
    pub(super) fn unread() -> Self {
        Self::at(Stage::Reading)
    }

    fn at(stage: Stage) -> Self {
        Self(Rc::new(Reading {
            stage: Cell::new(stage),
            bytes: Cell::new(0),
            messages: Cell::new(None),
            ended: Cell::new(None),
            touched: Cell::new(None),
            waiting: RefCell::default(),
        }))
    }

    /// Whether all of it was read.
    pub(super) fn ended(&self) -> bool {
        self.0.stage.get() == Stage::Ended
    }

    /// Whether the client broke the protocol or left in the middle of it.
    pub(super) fn broken(&self) -> bool {
        self.0.stage.get() == Stage::Broken
    }

    /// Bytes of the body that came.
    pub(super) fn bytes(&self) -> u64 {
        self.0.bytes.get()
    }

    /// Counts bytes that came after the body: what an upgraded connection carried.
    pub(super) fn carried(&self, bytes: u64) {
        self.0.bytes.set(self.0.bytes.get() + bytes);
    }

    /// Counts gRPC's messages from now on.
    pub(super) fn count_messages(&self) {
        // The other side of a pass counts the same body.
        let known = self.0.messages.get();
        self.0.messages.set(Some(known.unwrap_or_default()));
    }

    /// gRPC's messages so far.
    pub(super) fn messages(&self) -> u64 {
        self.0.messages.get().map_or(0, Messages::count)
    }

    fn took(&self, data: &[u8]) {
        self.carried(data.len() as u64);
        if let Some(mut messages) = self.0.messages.get() {
            messages.take(data);
            self.0.messages.set(Some(messages));
        }
    }

    /// When the last byte of the body came.
    pub(super) fn ended_at(&self) -> Option<Instant> {
        self.0.ended.get()
    }

    /// When a piece was read last.
    pub(super) fn touched(&self) -> Option<Instant> {
        self.0.touched.get()
    }

    /// Ready when the whole body was read.
    pub(super) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended() {
            return Poll::Ready(());
        }
        let mut waiting = self.0.waiting.borrow_mut();
        match &mut *waiting {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waiting = Some(cx.waker().clone()),
        }
        Poll::Pending
    }

    fn set(&self, stage: Stage) {
        if self.0.stage.replace(stage) == stage {
            return;
        }
        if stage == Stage::Ended {
            self.0.ended.set(Some(Instant::now()));
        }
        if let Some(waker) = self.0.waiting.take() {
            waker.wake();
        }
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
            progress: Progress::at(stage),
        }
    }

    /// One attempt's reading of a body that is kept.
    pub(super) fn replay(replay: Replay, progress: Progress) -> Self {
        Self {
            source: Source::Replay(replay),
            progress,
        }
    }

    /// Puts back what was read to the end.
    pub(super) fn refill(&mut self, pieces: Vec<Bytes>) {
        self.source = Source::Pieces(pieces.into());
    }

    /// The body, of which the others get copies.
    pub(super) fn copied(self, copies: Copies) -> Self {
        let progress = self.progress.clone();
        Self {
            source: Source::Copied(Box::new(self), copies),
            progress,
        }
    }

    /// A copy.
    pub(super) fn copy(copy: CopiedBody) -> Self {
        let ended = copy.is_end_stream();
        Self::new(Source::Copy(copy), ended)
    }

    /// Whether all of it is in memory.
    pub(super) fn is_whole(&self) -> bool {
        matches!(self.source, Source::Pieces(_))
    }

    /// Puts back what was read of it; the rest follows.
    pub(super) fn put_back(&mut self, pieces: Vec<Bytes>) {
        let rest = std::mem::replace(&mut self.source, Source::Pieces(VecDeque::new()));
        self.source = Source::Begun(pieces.into(), Box::new(rest));
    }

    /// A body of our own.
    pub(super) fn of_pieces(pieces: impl IntoIterator<Item = Bytes>) -> Self {
        let pieces: VecDeque<Bytes> = pieces.into_iter().collect();
        let ended = pieces.is_empty();
        Self::new(Source::Pieces(pieces), ended)
    }

    pub(super) fn progress(&self) -> Progress {
        self.progress.clone()
    }
}

impl Drop for RequestBody {
    /// An answer may be ready before the request was read. Clients that are still sending take the
    /// reset which follows for a failure (curl) and lose the answer: what is on its way is awaited.
    fn drop(&mut self) {
        if self.progress.0.stage.get() != Stage::Reading {
            return;
        }
        let mut source = std::mem::replace(&mut self.source, Source::Pieces(VecDeque::new()));
        // A filter may have put its beginning back, more than once.
        while let Source::Begun(_, rest) = source {
            source = *rest;
        }
        if let Source::Http2(body) = source {
            unread::discard(body);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        // The bodies they read keep the progress.
        if matches!(self.source, Source::Replay(_) | Source::Copied(..)) {
            return self.source.poll_frame(cx);
        }
        // What was put back has been counted.
        let read_before = match &self.source {
            Source::Pieces(_) => true,
            Source::Begun(pieces, _) => !pieces.is_empty(),
            _ => false,
        };
        let frame = ready!(self.source.poll_frame(cx));
        if let Some(Ok(frame)) = &frame
            && let Some(data) = frame.data_ref()
            && !read_before
        {
            self.progress.took(data);
        }
        self.progress.0.touched.set(Some(Instant::now()));
        if matches!(frame, Some(Err(_))) {
            self.progress.set(Stage::Broken);
        } else if frame.is_none() || self.is_end_stream() {
            self.progress.set(Stage::Ended);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.source.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.source.size_hint()
    }
}

impl Source {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        Poll::Ready(match self {
            Self::Http1(wire) => {
                ready!(wire.poll_body(cx))
            }
            Self::Http2(body) => {
                let frame = ready!(Pin::new(body).poll_frame(cx));
                frame.map(|frame| frame.map_err(io::Error::other))
            }
            Self::Replay(replay) => return replay.poll_frame(cx),
            Self::Pieces(pieces) => pieces.pop_front().map(|piece| Ok(Frame::data(piece))),
            Self::Copied(body, copies) => {
                let frame = ready!(Pin::new(&mut **body).poll_frame(cx));
                copies.put(frame.as_ref(), body.is_end_stream());
                frame
            }
            Self::Copy(copy) => ready!(copy.poll_frame(cx)),
            Self::Begun(pieces, rest) => match pieces.pop_front() {
                Some(piece) => Some(Ok(Frame::data(piece))),
                None => return rest.poll_frame(cx),
            },
        })
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Http1(wire) => wire.body_ended(),
            Self::Http2(body) => body.is_end_stream(),
            Self::Replay(replay) => replay.is_end_stream(),
            Self::Pieces(pieces) => pieces.is_empty(),
            Self::Copied(body, _) => body.is_end_stream(),
            Self::Copy(copy) => copy.is_end_stream(),
            Self::Begun(pieces, rest) => pieces.is_empty() && rest.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        let length = |pieces: &VecDeque<Bytes>| -> u64 {
            pieces.iter().map(|piece| piece.len() as u64).sum()
        };
        match self {
            Self::Http1(wire) => wire.body_size(),
            Self::Http2(body) => body.size_hint(),
            Self::Replay(replay) => replay.size_hint(),
            Self::Copied(body, _) => body.size_hint(),
            Self::Copy(_) => SizeHint::default(),
            Self::Pieces(pieces) => SizeHint::with_exact(length(pieces)),
            Self::Begun(pieces, rest) => match rest.size_hint().exact() {
                Some(rest) => SizeHint::with_exact(length(pieces) + rest),
                None => SizeHint::default(),
            },
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
    /// On its way through an encoder.
    Compressed(Box<Compressed>),
}

/// A body that an upstream sends.
#[derive(Debug)]
pub(super) struct Streamed {
    pub(super) body: UpstreamStream,
    /// Still running while the body streams.
    pub(super) deadlines: Deadlines,
    /// As are these.
    pub(super) limits: StreamLimits,
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
    Http2 {
        body: Incoming,
        /// On its connection.
        _place: lines::Place,
    },
    /// From the server's side of the same pass.
    Here(Box<Told>),
    /// Bytes for a client that asked for a connection.
    Tunnel(Box<Tunnel>),
}

impl UpstreamStream {
    /// The next piece, or the trailers.
    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        match self {
            Self::Http1(body) => body.poll_frame(cx),
            // Both ends are relayed by whoever has the client's connection.
            Self::Tunnel(_) => Poll::Ready(None),
            Self::Http2 { body, .. } => Pin::new(body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
            Self::Here(body) => Pin::new(&mut **body)
                .poll_frame(cx)
                .map(|frame| frame.map(|frame| frame.map_err(io::Error::other))),
        }
    }
}

/// Why a response was cut off.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the upstream broke off: {0}")]
    Upstream(io::Error),
    #[error("a timeout of the route ended the response")]
    Timeout,
    #[error("the stream was idle for too long")]
    Idle,
}

impl ProxyBody {
    /// Ready when the stream's limits are reached while nobody asks for more of the body, as
    /// when the client does not read.
    pub(super) fn poll_limits(&self, cx: &mut Context<'_>) -> Poll<()> {
        match self {
            Self::Own(_) => Poll::Pending,
            Self::Compressed(compressed) => compressed.poll_limits(cx),
            Self::Upstream(streamed) => streamed.limits.poll(cx).map(|_| ()),
        }
    }
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
            Self::Compressed(compressed) => return compressed.poll_frame(cx),
            Self::Upstream(streamed) => streamed,
        };
        match streamed.body.poll_frame(cx) {
            Poll::Ready(frame) => {
                streamed.limits.touch();
                if let Some(Ok(frame)) = &frame
                    && let Some(trailers) = frame.trailers_ref()
                {
                    streamed.serving.reported(trailers);
                }
                Poll::Ready(frame.map(|frame| frame.map_err(BodyError::Upstream)))
            }
            Poll::Pending => {
                if streamed.deadlines.poll(cx).is_ready() {
                    streamed.serving.timed_out();
                    return Poll::Ready(Some(Err(BodyError::Timeout)));
                }
                streamed.limits.poll(cx).map(|_| Some(Err(BodyError::Idle)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Own(bytes) => bytes.is_none(),
            Self::Compressed(compressed) => compressed.is_end_stream(),
            Self::Upstream(streamed) => match &streamed.body {
                UpstreamStream::Http1(body) => body.ended(),
                UpstreamStream::Http2 { body, .. } => body.is_end_stream(),
                UpstreamStream::Here(body) => body.is_end_stream(),
                UpstreamStream::Tunnel(_) => true,
            },
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64)),
            Self::Compressed(_) => SizeHint::default(),
            Self::Upstream(streamed) => match &streamed.body {
                UpstreamStream::Http1(body) => body.size_hint(),
                UpstreamStream::Http2 { body, .. } => body.size_hint(),
                UpstreamStream::Here(body) => body.size_hint(),
                UpstreamStream::Tunnel(_) => SizeHint::with_exact(0),
            },
        }
    }
}
