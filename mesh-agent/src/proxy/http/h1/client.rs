//! A request over a connection to an upstream, and its response.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, Method, StatusCode, header};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use crate::proxy::http::body::RequestBody;
use crate::proxy::http::early::Early;
use crate::proxy::http::message::Request;
use crate::proxy::http::pool::Key;
use crate::proxy::http::queue::Place;
use crate::proxy::stream::Stream;
use crate::proxy::tcp::Open;
use crate::proxy::worker::Context as Worker;

use super::chunked::{Decoded, Decoder};
use super::fields::Malformed;
use super::response::{self, Head};
use super::write::Out;

/// How much is read at once.
const READ: usize = 16 << 10;

/// A connection to an upstream.
#[derive(Debug)]
pub(in crate::proxy) struct Connection {
    stream: Stream,
    buffer: BytesMut,
    /// Requests it has served.
    served: u32,
    /// When it became idle.
    since: Instant,
    /// For how long it may be.
    idle_timeout: Option<Duration>,
    /// Counts it.
    open: Open,
    /// In the pool; given back after it.
    _place: Place,
}

impl Connection {
    pub(in crate::proxy::http) fn new(
        stream: Stream,
        open: Open,
        place: Place,
        idle_timeout: Option<Duration>,
    ) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            served: 0,
            since: Instant::now(),
            idle_timeout,
            open,
            _place: place,
        }
    }

    /// Our end of it.
    pub(in crate::proxy::http) fn local(&self) -> Option<SocketAddr> {
        self.open.local()
    }

    /// Whether it can serve a request: the upstream neither closed it nor said anything unasked.
    pub(in crate::proxy::http) fn is_usable(&mut self) -> bool {
        self.stream.is_quiet()
            && self
                .idle_timeout
                .is_none_or(|limit| self.since.elapsed() < limit)
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.buffer.reserve(READ);
        poll_read_buf(Pin::new(&mut self.stream), cx, &mut self.buffer)
    }
}

/// Where a connection goes when its request is done.
#[derive(Debug)]
pub(in crate::proxy::http) struct Home {
    pub(in crate::proxy::http) worker: Rc<Worker>,
    pub(in crate::proxy::http) key: Key,
    /// After so many requests it is closed.
    pub(in crate::proxy::http) max_requests: Option<u32>,
    /// Whether trailers are part of messages.
    pub(in crate::proxy::http) trailers: bool,
}

/// Both ends of an upgrade's upstream side.
#[derive(Debug)]
pub(in crate::proxy::http) struct Tunnel {
    /// The connection.
    pub(in crate::proxy::http) stream: Stream,
    /// What the upstream said after its response.
    pub(in crate::proxy::http) first: Bytes,
    /// For how long no byte may pass.
    pub(in crate::proxy::http) idle: Option<Duration>,
    _open: Open,
    _place: Option<Place>,
}

impl Tunnel {
    /// Over a connection that carried no request.
    pub(in crate::proxy::http) fn new(stream: Stream, open: Open) -> Self {
        Self {
            stream,
            first: Bytes::new(),
            idle: None,
            _open: open,
            _place: None,
        }
    }
}

/// A response whose head was read.
#[derive(Debug)]
pub(in crate::proxy::http) struct Response {
    pub(in crate::proxy::http) status: StatusCode,
    pub(in crate::proxy::http) headers: HeaderMap,
    pub(in crate::proxy::http) body: UpstreamBody,
}

/// Why there is no response.
#[derive(Debug)]
pub(in crate::proxy::http) enum Unanswered {
    /// The upstream closed the connection. The body is here if nothing of it was sent.
    Reset(Option<RequestBody>),
    /// What it sent is no response.
    Protocol,
    /// The client broke off its request.
    Client,
}

/// Sends the request and waits for the head of its response.
pub(in crate::proxy::http) async fn exchange(
    connection: Connection,
    home: Home,
    request: &Request,
    body: RequestBody,
) -> Result<Response, Unanswered> {
    let untouched = body.is_end_stream();
    let mut exchange = UpstreamBody {
        connection: Some(connection),
        pump: Pump::new(request, body, home.trailers),
        home,
        early: request.early.clone(),
        tunnel: false,
        decoder: Decoder::Done,
        keep_alive: false,
    };
    let mut scanned = 0;
    let head =
        std::future::poll_fn(|cx| exchange.poll_head(&request.method, &mut scanned, cx)).await;
    let head = match head {
        Ok(head) => head,
        Err(Unanswered::Reset(_)) if untouched => {
            return Err(Unanswered::Reset(Some(exchange.pump.body)));
        }
        Err(error) => return Err(error),
    };
    exchange.decoder = head.framing.into();
    exchange.tunnel = head.status == StatusCode::SWITCHING_PROTOCOLS
        || (request.method == Method::CONNECT && head.status.is_success());
    exchange.keep_alive = head.keep_alive && !exchange.tunnel;
    if exchange.decoder.is_done() && !exchange.tunnel {
        exchange.finish();
    }
    Ok(Response {
        status: head.status,
        headers: head.headers,
        body: exchange,
    })
}

/// A response's body. The request's may still be on its way.
#[derive(Debug)]
pub(in crate::proxy::http) struct UpstreamBody {
    /// `None` once the response is complete.
    connection: Option<Connection>,
    home: Home,
    pump: Pump,
    decoder: Decoder,
    keep_alive: bool,
    /// Where responses go that come before the response.
    early: Option<Rc<Early>>,
    /// What follows the response is no message.
    tunnel: bool,
}

impl UpstreamBody {
    fn poll_head(
        &mut self,
        method: &Method,
        scanned: &mut usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Head, Unanswered>> {
        let connection = self
            .connection
            .as_mut()
            .expect("a connection is kept until its response is complete");
        let mut broken = false;
        match self.pump.poll(&mut connection.stream, cx) {
            Poll::Ready(Err(PumpError::Client)) => return Poll::Ready(Err(Unanswered::Client)),
            // It may have answered before it closed.
            Poll::Ready(Err(PumpError::Upstream)) => broken = true,
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        loop {
            let head = match response::parse(&mut connection.buffer, scanned, method) {
                Ok(head) => head,
                Err(Malformed::Syntax | Malformed::TooLarge | Malformed::Coding) => {
                    return Poll::Ready(Err(Unanswered::Protocol));
                }
            };
            match head {
                Some(head)
                    if head.status.is_informational()
                        && head.status != StatusCode::SWITCHING_PROTOCOLS =>
                {
                    if let Some(early) = &self.early {
                        early.put(head.status, head.headers);
                    }
                }
                Some(head) => return Poll::Ready(Ok(head)),
                None => match connection.poll_read(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => {
                        let partly = !connection.buffer.is_empty();
                        return Poll::Ready(Err(if partly {
                            Unanswered::Protocol
                        } else {
                            Unanswered::Reset(None)
                        }));
                    }
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending if broken => {
                        return Poll::Ready(Err(Unanswered::Reset(None)));
                    }
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }

    /// The next piece.
    pub(in crate::proxy::http) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(connection) = &mut self.connection else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(Err(PumpError::Client)) = self.pump.poll(&mut connection.stream, cx) {
            let error = io::Error::other("the client broke off its request");
            self.connection = None;
            return Poll::Ready(Some(Err(error)));
        }
        loop {
            match self.decoder.decode(&mut connection.buffer) {
                Ok(Decoded::Data(data)) => {
                    if self.decoder.is_done() {
                        self.finish();
                    }
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Ok(Decoded::Trailers(trailers)) => {
                    self.finish();
                    let told = self.home.trailers.then(|| Ok(Frame::trailers(*trailers)));
                    return Poll::Ready(told);
                }
                Ok(Decoded::End) => {
                    self.finish();
                    return Poll::Ready(None);
                }
                Ok(Decoded::More) => {}
                Err(_) => {
                    self.connection = None;
                    let error = io::Error::other("a chunk is malformed");
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match ready!(connection.poll_read(cx)) {
                Ok(0) if self.decoder.ends_with_connection() => {
                    self.connection = None;
                    return Poll::Ready(None);
                }
                Ok(0) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into())));
                }
                Ok(_) => {}
                Err(error) => {
                    self.connection = None;
                    return Poll::Ready(Some(Err(error)));
                }
            }
        }
    }

    /// Whether the connection is an upgrade's now.
    pub(in crate::proxy::http) fn is_tunnel(&self) -> bool {
        self.tunnel
    }

    /// Whether the last piece was taken.
    pub(in crate::proxy::http) fn ended(&self) -> bool {
        self.connection.is_none()
    }

    pub(in crate::proxy::http) fn size_hint(&self) -> SizeHint {
        match self.decoder.remaining() {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }

    /// Makes the connection an upgrade's.
    pub(in crate::proxy::http) fn into_tunnel(mut self, idle: Option<Duration>) -> Option<Tunnel> {
        let Connection {
            stream,
            buffer,
            open: _open,
            _place,
            ..
        } = self.connection.take()?;
        Some(Tunnel {
            stream,
            first: buffer.freeze(),
            idle,
            _open,
            _place: Some(_place),
        })
    }

    /// The response is complete: the connection is kept if it can serve again.
    fn finish(&mut self) {
        let Some(mut connection) = self.connection.take() else {
            return;
        };
        connection.served += 1;
        let worn = self
            .home
            .max_requests
            .is_some_and(|max| connection.served >= max);
        if self.keep_alive && self.pump.done() && connection.buffer.is_empty() && !worn {
            // An idle connection holds no buffer.
            connection.buffer = BytesMut::new();
            connection.since = Instant::now();
            let mut pool = self.home.worker.pool.borrow_mut();
            pool.put_http1(self.home.key.clone(), connection);
        }
    }
}

/// Sends a request.
#[derive(Debug)]
struct Pump {
    out: Out,
    body: RequestBody,
    chunked: bool,
    ended: bool,
    /// Whether trailers are sent.
    with_trailers: bool,
    /// Those that came.
    trailers: Option<HeaderMap>,
}

enum PumpError {
    Client,
    Upstream,
}

impl Pump {
    fn new(request: &Request, body: RequestBody, with_trailers: bool) -> Self {
        let mut out = Out::default();
        let ended = body.is_end_stream();
        let chunked = !ended && !request.headers.contains_key(header::CONTENT_LENGTH);
        out.request(request, chunked);
        Self {
            out,
            body,
            chunked,
            ended,
            with_trailers,
            trailers: None,
        }
    }

    fn done(&self) -> bool {
        self.ended && self.out.is_empty()
    }

    fn poll(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<Result<(), PumpError>> {
        loop {
            while !self.ended && !self.out.is_full() {
                match Pin::new(&mut self.body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if self.chunked => self.out.chunk(data),
                        Ok(data) => self.out.data(data),
                        // They have no place in HTTP/1 unless asked for.
                        Err(frame) => {
                            let trailers = frame.into_trailers().ok();
                            self.trailers = trailers.filter(|_| self.with_trailers);
                        }
                    },
                    Poll::Ready(Some(Err(_))) => return Poll::Ready(Err(PumpError::Client)),
                    Poll::Ready(None) => self.ended = true,
                    Poll::Pending => break,
                }
                self.ended |= self.body.is_end_stream();
                if self.ended && self.chunked {
                    match self.trailers.take() {
                        Some(trailers) => self.out.last_chunk_and(&trailers),
                        None => self.out.last_chunk(),
                    }
                }
            }
            if self.out.is_empty() {
                return if self.ended {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
            if ready!(self.out.poll_write(stream, cx)).is_err() {
                return Poll::Ready(Err(PumpError::Upstream));
            }
        }
    }
}
