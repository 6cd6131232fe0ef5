//! HTTP/2 connections to one endpoint, each shared by as many requests as both sides allow.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use hyper::client::conn::http2;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::config::model::cluster::Http2Options;
use crate::proxy::stream::Stream;
use crate::proxy::tcp::Open;

use super::LocalExecutor;
use super::body::RequestBody;
use super::upstream::Failure;

/// Most streams of a connection unless configured (Envoy 1.40).
const MAX_STREAMS: u32 = 1024;

/// The connections under one key of a worker's pool.
#[derive(Debug, Default)]
pub(super) struct Lines {
    lines: RefCell<Vec<Rc<Line>>>,
    connecting: Cell<bool>,
    connected: Notify,
    /// Connects that failed, and how the last one did.
    failed: Cell<(u64, Option<Failure>)>,
}

/// A connection.
#[derive(Debug)]
pub(super) struct Line {
    sender: http2::SendRequest<RequestBody>,
    streams: Cell<u32>,
    /// Of the configuration.
    most: u32,
    /// What the other side allows.
    allowed: Rc<Cell<usize>>,
    /// Requests it has served.
    served: Cell<u32>,
    max_requests: Option<u32>,
    idle_since: Cell<Instant>,
    idle_timeout: Option<Duration>,
    /// Our end of it.
    local: Option<SocketAddr>,
}

/// A place for a stream; drop ends it.
#[derive(Debug)]
pub(super) struct Place(Rc<Line>);

impl Place {
    /// What the request is sent with.
    pub(super) fn sender(&self) -> http2::SendRequest<RequestBody> {
        self.0.sender.clone()
    }
}

impl Place {
    /// Our end of the connection.
    pub(super) fn local(&self) -> Option<SocketAddr> {
        self.0.local
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let line = &self.0;
        line.streams.set(line.streams.get() - 1);
        line.idle_since.set(Instant::now());
    }
}

/// What to do for a stream.
pub(super) enum Way {
    /// There is a place.
    Open(Place),
    /// A connection is to be made, by whoever has this.
    Connect(Connecting),
    /// The one that was waited for could not be made.
    Failed(Failure),
}

/// Others wait while it is there.
pub(super) struct Connecting(Rc<Lines>);

impl Drop for Connecting {
    fn drop(&mut self) {
        self.0.connecting.set(false);
        self.0.connected.notify_waiters();
    }
}

impl Connecting {
    /// There is no connection: those who wait have no other hope (Envoy: `purgePendingStreams`).
    pub(super) fn fail(self, failure: Failure) -> Failure {
        let (count, _) = self.0.failed.get();
        self.0.failed.set((count + 1, Some(failure)));
        failure
    }

    /// Whether it is the only connection.
    pub(super) fn is_first(&self) -> bool {
        self.0.lines.borrow().is_empty()
    }

    /// Speaks HTTP/2 over a socket.
    pub(super) async fn handshake(
        self,
        stream: Stream,
        options: &Http2Options,
        limits: Limits,
        open: Open,
    ) -> Result<Place, Failure> {
        let most = options.max_concurrent_streams.unwrap_or(MAX_STREAMS);
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(options.initial_stream_window_bytes.unwrap_or(1 << 20))
            .initial_connection_window_size(
                options.initial_connection_window_bytes.unwrap_or(4 << 20),
            )
            .initial_max_send_streams(most as usize);
        let handshake = builder.handshake(TokioIo::new(stream)).await;
        let Ok((sender, mut connection)) = handshake else {
            return Err(self.fail(Failure::Reset));
        };
        let local = open.local();
        let allowed = Rc::new(Cell::new(usize::MAX));
        let told = allowed.clone();
        tokio::task::spawn_local(async move {
            let _open = open;
            let running = std::future::poll_fn(|cx| {
                let polled = Pin::new(&mut connection).poll(cx);
                told.set(connection.current_max_send_streams());
                polled
            });
            if let Err(error) = running.await {
                tracing::debug!(%error, "an upstream connection ended");
            }
        });
        let line = Rc::new(Line {
            sender,
            streams: Cell::new(0),
            most,
            allowed,
            served: Cell::new(0),
            max_requests: limits.max_requests,
            idle_since: Cell::new(Instant::now()),
            idle_timeout: limits.idle_timeout,
            local,
        });
        let place = line.clone().take();
        self.0.lines.borrow_mut().push(line);
        Ok(place)
    }
}

/// How long a connection is used.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    pub(super) max_requests: Option<u32>,
    pub(super) idle_timeout: Option<Duration>,
}

impl Line {
    fn take(self: Rc<Self>) -> Place {
        self.streams.set(self.streams.get() + 1);
        self.served.set(self.served.get() + 1);
        Place(self)
    }

    /// Whether it serves further requests.
    fn is_usable(&self) -> bool {
        !self.sender.is_closed()
            && self
                .max_requests
                .is_none_or(|most| self.served.get() < most)
    }

    fn has_room(&self) -> bool {
        let allowed = u32::try_from(self.allowed.get()).unwrap_or(u32::MAX);
        self.streams.get() < self.most.min(allowed.max(1))
    }

    fn is_idle(&self) -> bool {
        self.streams.get() == 0
            && self
                .idle_timeout
                .is_some_and(|limit| self.idle_since.get().elapsed() >= limit)
    }
}

impl Lines {
    /// A place for a stream, or the task to make a connection. Waits while another one makes one.
    pub(super) async fn way(self: &Rc<Self>) -> Way {
        let (known, _) = self.failed.get();
        loop {
            let mut connected = std::pin::pin!(self.connected.notified());
            connected.as_mut().enable();
            if let Some(place) = self.room() {
                return Way::Open(place);
            }
            if let (failures, Some(failure)) = self.failed.get()
                && failures != known
            {
                return Way::Failed(failure);
            }
            if !self.connecting.replace(true) {
                return Way::Connect(Connecting(self.clone()));
            }
            connected.await;
        }
    }

    /// A place that is free.
    pub(super) fn room(&self) -> Option<Place> {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| line.is_usable());
        let line = lines.iter().find(|line| line.has_room())?;
        Some(line.clone().take())
    }

    /// A place on the connection with the fewest streams, which may have to wait there.
    pub(super) fn crowded(&self) -> Option<Place> {
        let lines = self.lines.borrow();
        let line = lines.iter().min_by_key(|line| line.streams.get())?;
        Some(line.clone().take())
    }

    /// Drops connections that ended or were idle for too long, or all. Whether any is left.
    pub(super) fn retain(&self, there: bool) -> bool {
        let mut lines = self.lines.borrow_mut();
        lines.retain(|line| there && line.is_usable() && !line.is_idle());
        !lines.is_empty() || self.connecting.get()
    }
}
