//! A client's connection: requests in, responses out, one after the other.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, StatusCode, Version, header};
use hyper::body::{Body as _, Frame, SizeHint};
use tokio::io::{AsyncWrite as _, AsyncWriteExt as _};
use tokio::time::Instant;
use tokio_util::io::poll_read_buf;

use crate::config::model::listener::HttpConnectionManager;
use crate::proxy::http::body::{Progress, RequestBody};
use crate::proxy::http::early::Early;
use crate::proxy::http::message::Reply;
use crate::proxy::http::reply::Refusal;
use crate::proxy::http::told::Told;
use crate::proxy::http::{Connection, alarm::Alarm, exchange};
use crate::proxy::sniff::Prefixed;
use crate::proxy::stats::count;
use crate::proxy::stream::Stream;
use crate::proxy::tcp;

use super::chunked::{Decoded, Decoder};
use super::fields::{Framing, has_token};
use super::request::{self, Head, Limits};
use super::write::Out;

/// How much is read at once.
const READ: usize = 16 << 10;
/// How much of what a client sends ahead of its turn is taken.
const AHEAD: usize = 64 << 10;
/// How much of the rest of a refused request is read and dropped.
const LINGER_BYTES: usize = 1 << 20;

/// A connection's bytes, shared by the request's body and the response. Both run on one thread
/// and borrow for one step at a time.
#[derive(Debug)]
pub(in crate::proxy::http) struct Wire {
    stream: RefCell<Stream>,
    buffer: RefCell<BytesMut>,
    decoder: RefCell<Decoder>,
    ended: Cell<bool>,
    /// Whether trailers are part of messages.
    trailers: bool,
}

impl Wire {
    fn poll_read(&self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut buffer = self.buffer.borrow_mut();
        buffer.reserve(READ);
        poll_read_buf(Pin::new(&mut *self.stream.borrow_mut()), cx, &mut *buffer)
    }

    fn begin(&self, framing: Framing) {
        let decoder = Decoder::from(framing);
        self.ended.set(decoder.is_done());
        self.decoder.replace(decoder);
    }

    /// Whether the whole body of the current request was taken.
    pub(in crate::proxy::http) fn body_ended(&self) -> bool {
        self.ended.get()
    }

    pub(in crate::proxy::http) fn body_size(&self) -> SizeHint {
        match self.decoder.borrow().remaining() {
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }

    /// The next piece of the current request's body.
    pub(in crate::proxy::http) fn poll_body(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        loop {
            let decoded = {
                let mut decoder = self.decoder.borrow_mut();
                let decoded = decoder.decode(&mut self.buffer.borrow_mut());
                self.ended.set(decoder.is_done());
                decoded
            };
            match decoded {
                Ok(Decoded::Data(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Ok(Decoded::Trailers(trailers)) if self.trailers => {
                    return Poll::Ready(Some(Ok(Frame::trailers(*trailers))));
                }
                Ok(Decoded::Trailers(_)) => return Poll::Ready(None),
                Ok(Decoded::End) => return Poll::Ready(None),
                Ok(Decoded::More) => {}
                Err(_) => {
                    let error = io::Error::new(io::ErrorKind::InvalidData, "malformed chunk");
                    return Poll::Ready(Some(Err(error)));
                }
            }
            match ready!(self.poll_read(cx)) {
                Ok(0) => return Poll::Ready(Some(Err(io::ErrorKind::UnexpectedEof.into()))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }

    /// Ends when the client has left. What it sends ahead of its turn is kept.
    fn poll_gone(&self, progress: &Progress, cx: &mut Context<'_>) -> Poll<()> {
        if !progress.ended() {
            return Poll::Pending;
        }
        while self.buffer.borrow().len() < AHEAD {
            match ready!(self.poll_read(cx)) {
                Ok(0) | Err(_) => return Poll::Ready(()),
                Ok(_) => {}
            }
        }
        Poll::Pending
    }

    async fn write(&self, out: &mut Out) -> io::Result<()> {
        std::future::poll_fn(|cx| out.poll_write(&mut *self.stream.borrow_mut(), cx)).await
    }
}

/// What came instead of a request.
enum NoRequest {
    /// The client left, or stayed idle for too long, or the agent drains.
    Over,
    /// The client took too long to send a head it had begun: what it is told, and why.
    Slow(&'static str, &'static str),
    Refused(Refusal),
}

/// Serves a connection to its end.
pub(in crate::proxy::http) async fn serve(
    connection: &Rc<Connection>,
    stream: Prefixed<Stream>,
    hcm: &HttpConnectionManager,
) {
    let (prefix, stream) = stream.into_parts();
    let wire = Rc::new(Wire {
        stream: RefCell::new(stream),
        buffer: RefCell::new(prefix.into()),
        decoder: RefCell::new(Decoder::Done),
        ended: Cell::new(true),
        trailers: hcm.trailers,
    });
    let mut limits = Limits::from(hcm);
    let mut alarm = Alarm::default();
    let mut out = Out::default();
    loop {
        let head = match read_head(connection, &wire, hcm, &mut limits, &mut alarm).await {
            Ok(head) => head,
            Err(NoRequest::Over) => return,
            Err(NoRequest::Slow(reason, details)) => {
                let refusal = Refusal::codec(StatusCode::REQUEST_TIMEOUT, reason).because(details);
                return refuse(connection, &wire, refusal, &mut out).await;
            }
            Err(NoRequest::Refused(refusal)) => {
                count(&connection.context.shared.stats.downstream_cx_protocol_error);
                return refuse(connection, &wire, refusal, &mut out).await;
            }
        };
        if let Some(tunnel) = one(connection, &wire, head, &mut out).await {
            match tunnel {
                After::Next => continue,
                After::Close => return linger(&wire, hcm.delayed_close_timeout).await,
                After::Abort => return wire.stream.borrow_mut().reset(),
                After::Tunnel(tunnel, told) => {
                    return upgraded(connection, wire, *tunnel, told).await;
                }
            }
        }
        return;
    }
}

/// What follows a request.
enum After {
    Next,
    Close,
    /// The response could not be completed.
    Abort,
    Tunnel(Box<super::client::Tunnel>, Told),
}

/// Serves one request. `None`: the client is gone.
async fn one(
    connection: &Rc<Connection>,
    wire: &Rc<Wire>,
    head: Head,
    out: &mut Out,
) -> Option<After> {
    let Head {
        mut request,
        framing,
        keep_alive,
        expects_continue,
    } = head;
    wire.begin(framing);
    let mut early = None;
    if connection.first().proxy_100_continue {
        if expects_continue {
            let wish = HeaderValue::from_static("100-continue");
            request.headers.insert(header::EXPECT, wish);
        }
        early = Some(Rc::<Early>::default());
        request.early.clone_from(&early);
    } else if expects_continue {
        out.verbatim(b"HTTP/1.1 100 Continue\r\n\r\n");
        wire.write(out).await.ok()?;
    }
    let (method, version) = (request.method.clone(), request.version);
    let body = RequestBody::http1(wire.clone());
    let progress = body.progress();
    let (reply, ending) = {
        // On its own: an idle connection need not make room for it.
        let mut handling = Box::pin(exchange::handle(connection, request, body));
        std::future::poll_fn(|cx| {
            // The request first: what it reads of its body is not looked for here.
            let handled = handling.as_mut().poll(cx);
            if let Some(early) = &early {
                while let Some((status, headers)) = early.take() {
                    out.response(status, &headers);
                }
                let stream = &mut *wire.stream.borrow_mut();
                if !out.is_empty() && matches!(out.poll_write(stream, cx), Poll::Ready(Err(_))) {
                    return Poll::Ready(None);
                }
            }
            if let Poll::Ready(reply) = handled {
                return Poll::Ready(Some(reply));
            }
            wire.poll_gone(&progress, cx).map(|()| None)
        })
        .await?
    };
    let Reply {
        status,
        mut headers,
        body,
        tunnel,
        ..
    } = reply;
    let mut body = Told::new(body, ending);
    // What follows CONNECT is not HTTP.
    let keep_alive = keep_alive
        && method != Method::CONNECT
        && !has_token(&headers, &header::CONNECTION, "close");
    let length = if tunnel.is_some() && status != StatusCode::SWITCHING_PROTOCOLS {
        // What follows is neither a body nor another response.
        Length::Without
    } else {
        frame(&mut headers, status, &method, version, &body, keep_alive)
    };
    out.response(status, &headers);
    if length == Length::Without {
        body.silence();
    }
    if send(wire, out, &mut body, length == Length::Chunked)
        .await
        .is_err()
    {
        return Some(After::Abort);
    }
    if let Some(tunnel) = tunnel {
        return Some(After::Tunnel(tunnel, body));
    }
    drop(body);
    if keep_alive && length != Length::Close && progress.ended() {
        Some(After::Next)
    } else {
        Some(After::Close)
    }
}

/// How the length of a response is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    /// There is no body, whatever the headers say.
    Without,
    Announced,
    Chunked,
    /// By the end of the connection.
    Close,
}

/// Completes the headers by how the body's length is told.
fn frame(
    headers: &mut HeaderMap,
    status: StatusCode,
    method: &Method,
    version: Version,
    body: &Told,
    keep_alive: bool,
) -> Length {
    if version == Version::HTTP_10 && keep_alive {
        headers.insert(header::CONNECTION, HeaderValue::from_static("keep-alive"));
    } else if !keep_alive {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    let bodyless = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    if *method == Method::HEAD && !bodyless {
        // As it would be told with GET.
        if version == Version::HTTP_11 && !headers.contains_key(header::CONTENT_LENGTH) {
            let chunked = HeaderValue::from_static("chunked");
            headers.insert(header::TRANSFER_ENCODING, chunked);
        }
        return Length::Without;
    }
    if bodyless {
        return Length::Without;
    }
    if headers.contains_key(header::CONTENT_LENGTH) {
        return Length::Announced;
    }
    if body.is_end_stream() {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from_static("0"));
        return Length::Announced;
    }
    if version == Version::HTTP_10 {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        return Length::Close;
    }
    let chunked = HeaderValue::from_static("chunked");
    headers.insert(header::TRANSFER_ENCODING, chunked);
    Length::Chunked
}

/// Why a response was not sent whole: the client is gone or the upstream broke off.
struct Broken;

/// Writes what is gathered and the body. Everything there is goes out with one write.
async fn send(wire: &Wire, out: &mut Out, body: &mut Told, chunked: bool) -> Result<(), Broken> {
    let mut ended = body.is_end_stream();
    let mut trailers = None;
    if ended && chunked {
        out.last_chunk();
    }
    std::future::poll_fn(|cx| {
        loop {
            while !ended && !out.is_full() {
                match Pin::new(&mut *body).poll_frame(cx) {
                    Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                        Ok(data) if chunked => out.chunk(data),
                        Ok(data) => out.data(data),
                        // They have no place in HTTP/1 unless asked for.
                        Err(frame) => {
                            trailers = frame.into_trailers().ok().filter(|_| wire.trailers)
                        }
                    },
                    Poll::Ready(Some(Err(error))) => {
                        tracing::debug!(%error, "a response was cut off");
                        return Poll::Ready(Err(Broken));
                    }
                    Poll::Ready(None) => ended = true,
                    Poll::Pending => break,
                }
                ended |= body.is_end_stream();
                if ended && chunked {
                    match trailers.take() {
                        Some(trailers) => out.last_chunk_and(&trailers),
                        None => out.last_chunk(),
                    }
                }
            }
            if out.is_empty() {
                return if ended {
                    Poll::Ready(Ok(()))
                } else {
                    Poll::Pending
                };
            }
            match out.poll_write(&mut *wire.stream.borrow_mut(), cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(_)) => return Poll::Ready(Err(Broken)),
                Poll::Pending => return body.poll_limits(cx).map(|()| Err(Broken)),
            }
        }
    })
    .await
}

/// How long a head that has begun may take, what a client is told that takes longer, and why. A
/// stream begins with its first byte, so its own limits count as well.
fn head_limit(hcm: &HttpConnectionManager) -> (Option<Duration>, &'static str, &'static str) {
    let limits = [
        (
            hcm.request_headers_timeout,
            "request header timeout",
            "request_header_timeout",
        ),
        (
            hcm.request_timeout,
            "request timeout",
            "request_overall_timeout",
        ),
        (
            hcm.stream_idle_timeout,
            "stream timeout",
            "stream_idle_timeout",
        ),
    ];
    let shortest = limits
        .into_iter()
        .filter_map(|(limit, reason, details)| Some((limit?, reason, details)))
        .min_by_key(|(limit, ..)| *limit);
    match shortest {
        Some((limit, reason, details)) => (Some(limit), reason, details),
        None => (None, "", ""),
    }
}

/// Reads until a request's head is complete.
async fn read_head(
    connection: &Rc<Connection>,
    wire: &Wire,
    hcm: &HttpConnectionManager,
    limits: &mut Limits,
    alarm: &mut Alarm,
) -> Result<Head, NoRequest> {
    let mut scanned = 0;
    let mut begun = None;
    alarm.set(hcm.idle_timeout.map(|idle| Instant::now() + idle));
    let mut drained = std::pin::pin!(connection.drained());
    loop {
        {
            let mut buffer = wire.buffer.borrow_mut();
            match request::parse(&mut buffer, &mut scanned, limits) {
                Ok(Some(head)) => return Ok(head),
                Ok(None) => {}
                Err(refusal) => return Err(NoRequest::Refused(refusal)),
            }
            if buffer.is_empty() {
                // An idle connection holds no buffer.
                *buffer = BytesMut::new();
            } else if begun.is_none() {
                let (limit, reason, details) = head_limit(hcm);
                begun = Some((reason, details));
                alarm.set(limit.map(|limit| Instant::now() + limit));
            }
        }
        let read = std::future::poll_fn(|cx| {
            if let Poll::Ready(read) = wire.poll_read(cx) {
                return Poll::Ready(Ok(read));
            }
            if begun.is_none() && drained.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(NoRequest::Over));
            }
            alarm.poll(cx).map(|()| {
                Err(match begun {
                    Some((reason, details)) => NoRequest::Slow(reason, details),
                    None => NoRequest::Over,
                })
            })
        })
        .await?;
        if !matches!(read, Ok(1..)) {
            return Err(NoRequest::Over);
        }
    }
}

/// Answers what is no request and closes.
async fn refuse(connection: &Rc<Connection>, wire: &Wire, refusal: Refusal, out: &mut Out) {
    let (reply, ending) = exchange::refused(connection, refusal, Version::HTTP_11);
    let Reply {
        status,
        mut headers,
        body,
        ..
    } = reply;
    let mut body = Told::new(body, ending);
    frame(
        &mut headers,
        status,
        &Method::GET,
        Version::HTTP_11,
        &body,
        false,
    );
    out.response(status, &headers);
    if send(wire, out, &mut body, false).await.is_ok() {
        linger(wire, connection.first().delayed_close_timeout).await;
    }
}

/// Closes so that the client can read what it was told: bytes it still sends would otherwise
/// make the kernel reset the connection.
async fn linger(wire: &Wire, patience: Option<Duration>) {
    let Some(patience) = patience else {
        return;
    };
    let shutdown =
        std::future::poll_fn(|cx| Pin::new(&mut *wire.stream.borrow_mut()).poll_shutdown(cx));
    if shutdown.await.is_err() {
        return;
    }
    let _ = tokio::time::timeout(patience, async {
        let mut dropped = 0;
        while dropped < LINGER_BYTES {
            wire.buffer.borrow_mut().clear();
            match std::future::poll_fn(|cx| wire.poll_read(cx)).await {
                Ok(0) | Err(_) => return,
                Ok(read) => dropped += read,
            }
        }
    })
    .await;
}

/// Bytes both ways after an upgrade.
async fn upgraded(
    connection: &Rc<Connection>,
    wire: Rc<Wire>,
    tunnel: super::client::Tunnel,
    told: Told,
) {
    let Some(wire) = Rc::into_inner(wire) else {
        return;
    };
    let mut stream = wire.stream.into_inner();
    if stream.write_all(&tunnel.first).await.is_err() || stream.flush().await.is_err() {
        return;
    }
    let downstream = Prefixed::with_prefix(stream, wire.buffer.into_inner().freeze());
    let copied = tcp::copy(&connection.context, downstream, tunnel.stream, tunnel.idle).await;
    told.carried(copied.received, copied.sent);
}
