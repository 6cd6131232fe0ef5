//! What is known of a request: gathered on its way and told once, at its end.

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use bytes::Bytes;
use http::{Method, StatusCode, Version};
use hyper::body::{Body, Frame, SizeHint};

use crate::config::model::Name;
use crate::config::model::response_flag::{ResponseFlag, ResponseFlags};
use crate::proxy::lb::Target;
use crate::snapshot::ClusterView;

use super::Connection;
use super::body::{BodyError, Progress, ProxyBody};
use super::message::{Reply, Request, Why};

/// One request's record. The request, its body and its response are held by different parts of
/// one thread; each writes down what it knows.
pub(super) struct Record {
    connection: Rc<Connection>,
    started: Instant,
    /// `None`: what came is no request.
    method: Option<Method>,
    version: Version,
    progress: Progress,
    /// Bytes of the response's body.
    sent: Cell<u64>,
    facts: RefCell<Facts>,
}

/// What is found out on the way.
#[derive(Debug, Default)]
struct Facts {
    route: Option<Name>,
    cluster: Option<Arc<ClusterView>>,
    upstream: Option<Target>,
    attempts: u32,
    /// When the response's head came from the upstream.
    answered: Option<Instant>,
    status: Option<StatusCode>,
    flags: ResponseFlags,
    details: Cow<'static, str>,
    /// Why no connection to the upstream could be made.
    transport_failure: Option<Box<str>>,
}

impl Record {
    /// Begins with the request's head.
    pub(super) fn begin(
        connection: &Rc<Connection>,
        request: &Request,
        progress: Progress,
    ) -> Rc<Self> {
        let method = Some(request.method.clone());
        Self::new(connection, method, request.version, progress)
    }

    /// Of what is no request.
    pub(super) fn unread(connection: &Rc<Connection>, version: Version) -> Rc<Self> {
        Self::new(connection, None, version, Progress::nothing())
    }

    fn new(
        connection: &Rc<Connection>,
        method: Option<Method>,
        version: Version,
        progress: Progress,
    ) -> Rc<Self> {
        Rc::new(Self {
            connection: connection.clone(),
            started: Instant::now(),
            method,
            version,
            progress,
            sent: Cell::new(0),
            facts: RefCell::default(),
        })
    }

    /// The route that was found.
    pub(super) fn routed(&self, route: &Name) {
        self.facts.borrow_mut().route = Some(route.clone());
    }

    /// The cluster that was chosen.
    pub(super) fn cluster(&self, cluster: &Arc<ClusterView>) {
        self.facts.borrow_mut().cluster = Some(cluster.clone());
    }

    /// The endpoint that is tried, for the how-manieth time.
    pub(super) fn attempt(&self, target: &Target, number: u32) {
        let facts = &mut *self.facts.borrow_mut();
        facts.upstream = Some(target.clone());
        facts.attempts = number;
        facts.transport_failure = None;
    }

    /// No connection could be made.
    pub(super) fn transport_failed(&self, reason: &str) {
        self.facts.borrow_mut().transport_failure = Some(reason.into());
    }

    /// Why no connection could be made, in the form of response code details.
    pub(super) fn transport_failure(&self) -> Option<Box<str>> {
        self.facts.borrow().transport_failure.clone()
    }

    /// The response's head came from the upstream.
    pub(super) fn answered(&self) {
        self.facts.borrow_mut().answered = Some(Instant::now());
    }

    /// Adds a flag that does not come with the response.
    pub(super) fn flag(&self, flag: ResponseFlag) {
        self.facts.borrow_mut().flags.set(flag);
    }

    /// The response as the client gets it.
    pub(super) fn responds(&self, reply: &mut Reply) {
        let facts = &mut *self.facts.borrow_mut();
        let Why { flags, details } = std::mem::take(&mut reply.why);
        facts.status = Some(reply.status);
        facts.flags.add(flags);
        facts.details = details;
    }

    /// Tells everything. `whole`: the response was sent to its end.
    fn end(&self, whole: bool) {
        let facts = &mut *self.facts.borrow_mut();
        if !whole && facts.flags.is_empty() {
            facts.gone(self.version);
        }
        let upstream = facts.upstream.as_ref().map(Target::address);
        tracing::debug!(
            peer = %self.connection.caught.peer,
            method = self.method.as_ref().map(Method::as_str),
            route = facts.route.as_deref(),
            cluster = facts.cluster.as_deref().map(|cluster| &*cluster.config.name),
            upstream = upstream.map(tracing::field::display),
            attempts = facts.attempts,
            status = facts.status.map(|status| status.as_u16()),
            flags = %facts.flags,
            details = %facts.details,
            bytes_received = self.progress.bytes(),
            bytes_sent = self.sent.get(),
            answered = ?facts.answered.map(|answered| answered - self.started),
            duration = ?self.started.elapsed(),
            "request"
        );
    }
}

impl Facts {
    /// The client left before the end.
    fn gone(&mut self, version: Version) {
        let (flag, details) = if version == Version::HTTP_2 {
            (ResponseFlag::DownstreamRemoteReset, "http2.remote_reset")
        } else {
            (
                ResponseFlag::DownstreamConnectionTermination,
                "downstream_remote_disconnect",
            )
        };
        self.flags.set(flag);
        self.details = details.into();
    }

    /// The upstream, or time, ended the response.
    fn cut_off(&mut self, error: &BodyError) {
        let (flag, details) = match error {
            BodyError::Upstream(_) => (
                ResponseFlag::UpstreamConnectionTermination,
                "upstream_reset_after_response_started{connection_termination}",
            ),
            BodyError::Timeout => (ResponseFlag::UpstreamRequestTimeout, "response_timeout"),
        };
        self.flags.set(flag);
        self.details = details.into();
    }
}

/// Holds a record until the request is over; a client that leaves drops it early.
pub(super) struct Ending {
    record: Rc<Record>,
    whole: bool,
}

impl Ending {
    pub(super) fn new(record: Rc<Record>) -> Self {
        Self {
            record,
            whole: false,
        }
    }

    pub(super) fn record(&self) -> &Rc<Record> {
        &self.record
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        self.record.end(self.whole);
    }
}

/// A response's body whose way to the client is written down.
pub(super) struct Told {
    body: ProxyBody,
    ending: Ending,
}

impl Told {
    pub(super) fn new(body: ProxyBody, ending: Ending) -> Self {
        let mut told = Self { body, ending };
        told.look();
        told
    }

    /// Nothing of the body is sent: the request's method or the status leaves no room for one.
    pub(super) fn silence(&mut self) {
        self.body = ProxyBody::Own(None);
        self.look();
    }

    /// Bytes that are not the body's: what an upgraded connection carried.
    pub(super) fn carried(&self, sent: u64, received: u64) {
        let record = &self.ending.record;
        record.sent.set(record.sent.get() + sent);
        record.progress.carried(received);
    }

    fn look(&mut self) {
        self.ending.whole = self.body.is_end_stream();
    }
}

impl Body for Told {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let told = &mut *self;
        let frame = Pin::new(&mut told.body).poll_frame(cx);
        let record = &told.ending.record;
        match &frame {
            Poll::Ready(Some(Ok(frame))) => {
                if let Some(data) = frame.data_ref() {
                    record.sent.set(record.sent.get() + data.len() as u64);
                }
                told.look();
            }
            Poll::Ready(Some(Err(error))) => record.facts.borrow_mut().cut_off(error),
            Poll::Ready(None) => told.ending.whole = true,
            Poll::Pending => {}
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
