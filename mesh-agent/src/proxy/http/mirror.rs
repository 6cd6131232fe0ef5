//! Copies of requests for other clusters (Envoy: `ShadowWriter`). Nobody waits for their answers.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use hyper::body::{Body as _, Frame};
use smallvec::SmallVec;

use crate::config::model::cluster::RoutingPriority;
use crate::config::model::listener::AlpnOverride;
use crate::config::model::mirror::{Mirror, MirrorCluster};
use crate::config::model::route::Forward;
use crate::proxy::lb;
use crate::proxy::stats::count;
use crate::snapshot::ClusterView;

use super::Connection;
use super::body::{ProxyBody, RequestBody};
use super::exchange::Exchange;
use super::forward::answered;
use super::headers;
use super::limits::StreamLimits;
use super::message::{Request, text};
use super::timeouts::{Deadlines, Timeouts};
use super::upstream::{Sender, Serving};

/// What the copies of a body share with the one that is read.
#[derive(Debug)]
struct Buffer {
    pieces: VecDeque<Piece>,
    bytes: usize,
    limit: usize,
    end: End,
    reader: Option<Waker>,
}

#[derive(Debug)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Not,
    Whole,
    /// The client broke off, nobody read the body to its end, or the copy fell behind by more
    /// than the limit.
    Broken,
}

/// Where the pieces of a body are copied to while it is read. Dropped before its end, the copies
/// break off.
#[derive(Debug)]
pub(super) struct Copies(SmallVec<[Rc<RefCell<Buffer>>; 1]>);

/// A copy as it is read.
#[derive(Debug)]
pub(super) struct CopiedBody(Rc<RefCell<Buffer>>);

impl Copies {
    pub(super) fn put(&self, frame: Option<&io::Result<Frame<Bytes>>>, ended: bool) {
        for buffer in &self.0 {
            let mut buffer = buffer.borrow_mut();
            if buffer.end != End::Not {
                continue;
            }
            match frame {
                Some(Ok(frame)) => {
                    if let Some(data) = frame.data_ref() {
                        buffer.bytes += data.len();
                        buffer.pieces.push_back(Piece::Data(data.clone()));
                    } else if let Some(trailers) = frame.trailers_ref() {
                        buffer.pieces.push_back(Piece::Trailers(trailers.clone()));
                    }
                    if buffer.bytes > buffer.limit {
                        buffer.finish(End::Broken);
                    } else if ended {
                        buffer.finish(End::Whole);
                    }
                }
                Some(Err(_)) => buffer.finish(End::Broken),
                None => buffer.finish(End::Whole),
            }
            if let Some(reader) = buffer.reader.take() {
                reader.wake();
            }
        }
    }
}

impl Buffer {
    fn finish(&mut self, end: End) {
        self.end = end;
        if end == End::Broken {
            self.pieces.clear();
        }
    }
}

impl Drop for Copies {
    fn drop(&mut self) {
        for buffer in &self.0 {
            let mut buffer = buffer.borrow_mut();
            if buffer.end == End::Not {
                buffer.finish(End::Broken);
                if let Some(reader) = buffer.reader.take() {
                    reader.wake();
                }
            }
        }
    }
}

impl CopiedBody {
    pub(super) fn poll_frame(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let mut buffer = self.0.borrow_mut();
        Poll::Ready(match (buffer.pieces.pop_front(), buffer.end) {
            (Some(Piece::Data(data)), _) => {
                buffer.bytes -= data.len();
                Some(Ok(Frame::data(data)))
            }
            (Some(Piece::Trailers(trailers)), _) => Some(Ok(Frame::trailers(trailers))),
            (None, End::Whole) => None,
            (None, End::Broken) => Some(Err(io::Error::other("the mirrored request broke off"))),
            (None, End::Not) => {
                buffer.reader = Some(cx.waker().clone());
                return Poll::Pending;
            }
        })
    }

    pub(super) fn is_end_stream(&self) -> bool {
        let buffer = self.0.borrow();
        buffer.end == End::Whole && buffer.pieces.is_empty()
    }
}

/// Sends copies of a request that is ready for its upstream. Returns the body to go on with.
pub(super) fn send(
    exchange: &Exchange<'_>,
    forward: &Forward,
    request: &Request,
    timeouts: &Timeouts,
    body: RequestBody,
) -> RequestBody {
    let mut copies = Copies(SmallVec::new());
    let ended = body.is_end_stream();
    for mirror in &*forward.mirrors {
        if !mirror.fraction.holds(fastrand::u64(..)) {
            continue;
        }
        let name = match &mirror.cluster {
            MirrorCluster::Cluster(name) => name,
            MirrorCluster::Header(header) => request.headers.get(header).map_or("", text),
        };
        let Some(cluster) = exchange.view.clusters.get(name) else {
            tracing::debug!(cluster = %name, "a mirror's cluster does not exist");
            continue;
        };
        let buffer = Rc::new(RefCell::new(Buffer {
            pieces: VecDeque::new(),
            bytes: 0,
            limit: forward.buffer_limit,
            end: if ended { End::Whole } else { End::Not },
            reader: None,
        }));
        if !ended {
            copies.0.push(buffer.clone());
        }
        let shadow = Shadow {
            connection: exchange.connection.clone(),
            alpn: exchange.hcm.alpn.clone(),
            cluster: cluster.clone(),
            request: shadow(request, mirror, exchange.connection),
            timeout: timeouts.request,
        };
        let copy = RequestBody::copy(CopiedBody(buffer));
        let limits = StreamLimits::new(exchange.hcm, &copy.progress());
        tokio::task::spawn_local(shadow.run(copy, limits));
    }
    if copies.0.is_empty() {
        body
    } else {
        body.copied(copies)
    }
}

/// The request as a mirror gets it (Envoy: `AsyncStreamImpl::sendHeaders`): it is from us.
fn shadow(request: &Request, mirror: &Mirror, connection: &Connection) -> Request {
    let mut request = request.clone();
    if let Some(host) = &mirror.host_rewrite {
        if let Ok(host) = HeaderValue::from_str(host) {
            request.authority = host;
        }
    } else if mirror.host_suffix
        && let Ok(host) = HeaderValue::try_from(suffixed(text(&request.authority)))
    {
        request.authority = host;
    }
    let headers = &mut request.headers;
    headers.insert(headers::INTERNAL_REQUEST, HeaderValue::from_static("true"));
    if let Some(ip) = connection.caught.pod.ips.first()
        && let Ok(ip) = HeaderValue::try_from(ip.to_string())
    {
        headers::append_joined(headers, headers::FORWARDED_FOR, &ip);
    }
    request
}

/// The suffix goes before the port.
fn suffixed(authority: &str) -> String {
    match authority.split_once(':') {
        Some((host, port)) => format!("{host}-shadow:{port}"),
        None => format!("{authority}-shadow"),
    }
}

/// A copy on its way.
struct Shadow {
    connection: Rc<Connection>,
    alpn: Option<Arc<AlpnOverride>>,
    cluster: Arc<ClusterView>,
    request: Request,
    timeout: Option<Duration>,
}

impl Shadow {
    async fn run(mut self, body: RequestBody, limits: StreamLimits) {
        let progress = body.progress();
        let started = tokio::time::Instant::now();
        let asked = lb::Asked::request(self.connection.caught.destination, &self.request.headers);
        let Some(target) = lb::pick(&self.cluster, &asked) else {
            count(&self.cluster.state.stats.upstream_cx_none_healthy);
            return;
        };
        let Some(serving) = Serving::begin(&self.cluster, &target, RoutingPriority::Default) else {
            return;
        };
        let timeouts = Timeouts {
            request: self.timeout,
            ..Timeouts::default()
        };
        let mut deadlines = Deadlines::new(&timeouts, &progress);
        let sender = Sender {
            connection: &self.connection,
            alpn: self.alpn.as_deref(),
            record: None,
            connect_ends: false,
        };
        let sending = sender.send(&serving, &mut self.request, body, true);
        let mut sending = std::pin::pin!(limits.hold(sending));
        let answer = std::future::poll_fn(|cx| {
            if let Poll::Ready(sent) = sending.as_mut().poll(cx) {
                return Poll::Ready(sent.ok());
            }
            deadlines.poll(cx).map(|_| None)
        })
        .await;
        let Some(Ok(answer)) = answer else {
            return serving.failed();
        };
        serving.responded(answer.status);
        let mut reply = answered(answer, started, deadlines, &limits, &serving, true);
        // Read to its end, so that its connection can be used again.
        while let ProxyBody::Upstream(_) = &reply.body
            && let Some(Ok(_)) =
                std::future::poll_fn(|cx| Pin::new(&mut reply.body).poll_frame(cx)).await
        {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn buffer(limit: usize) -> Rc<RefCell<Buffer>> {
        Rc::new(RefCell::new(Buffer {
            pieces: VecDeque::new(),
            bytes: 0,
            limit,
            end: End::Not,
            reader: None,
        }))
    }

    async fn piece(body: &mut RequestBody) -> Option<io::Result<Bytes>> {
        let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await;
        frame.map(|frame| frame.map(|frame| frame.into_data().expect("no trailers here")))
    }

    fn body(pieces: &[&'static str]) -> RequestBody {
        RequestBody::of_pieces(
            pieces
                .iter()
                .map(|piece| Bytes::from_static(piece.as_bytes())),
        )
    }

    #[tokio::test]
    async fn a_copy_gets_what_is_read_and_its_end() {
        let buffer = buffer(100);
        let mut read = body(&["ab", "cd"]).copied(Copies(SmallVec::from_iter([buffer.clone()])));
        let mut copy = RequestBody::copy(CopiedBody(buffer));
        assert_eq!(piece(&mut read).await.unwrap().unwrap(), "ab");
        assert_eq!(piece(&mut copy).await.unwrap().unwrap(), "ab");
        assert_eq!(piece(&mut read).await.unwrap().unwrap(), "cd");
        assert_eq!(piece(&mut copy).await.unwrap().unwrap(), "cd");
        assert!(piece(&mut copy).await.is_none());
        assert!(copy.progress().ended());
    }

    #[tokio::test]
    async fn a_copy_that_falls_behind_breaks_off() {
        let slow = buffer(3);
        let mut read = body(&["ab", "cd"]).copied(Copies(SmallVec::from_iter([slow.clone()])));
        let mut copy = RequestBody::copy(CopiedBody(slow));
        piece(&mut read).await.unwrap().unwrap();
        piece(&mut read).await.unwrap().unwrap();
        assert!(piece(&mut copy).await.unwrap().is_err());
    }

    #[tokio::test]
    async fn a_body_nobody_reads_to_its_end_breaks_its_copies_off() {
        let buffer = buffer(100);
        let read = body(&["ab"]).copied(Copies(SmallVec::from_iter([buffer.clone()])));
        drop(read);
        assert!(
            piece(&mut RequestBody::copy(CopiedBody(buffer)))
                .await
                .unwrap()
                .is_err()
        );
    }

    #[test]
    fn the_suffix_goes_before_the_port() {
        assert_eq!(suffixed("a.b"), "a.b-shadow");
        assert_eq!(suffixed("a.b:80"), "a.b-shadow:80");
    }
}
