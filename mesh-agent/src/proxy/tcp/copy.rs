//! Both directions of a connection, and what ends them.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Context as Task, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::proxy::sniff::Prefixed;
use crate::proxy::stream::Stream;
use crate::proxy::worker::{Context, reset};

use super::direction::Direction;
use super::failed;
use super::pool::Pool;
use super::relay::Relay;

/// What went through a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) struct Copied {
    /// Bytes from the client to the upstream.
    pub(in crate::proxy) sent: u64,
    /// Bytes from the upstream to the client.
    pub(in crate::proxy) received: u64,
}

/// What ends a connection beside its two sides.
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::proxy) struct Ends<'a> {
    /// Nothing moved for so long.
    pub(in crate::proxy) idle: Option<Duration>,
    /// It must not go on, by either side's rules.
    pub(in crate::proxy) denied: [Option<&'a Notify>; 2],
}

impl From<Option<Duration>> for Ends<'_> {
    fn from(idle: Option<Duration>) -> Self {
        Self {
            idle,
            denied: [None; 2],
        }
    }
}

impl Ends<'_> {
    async fn until_denied(&self) {
        let [one, other] = self.denied;
        tokio::select! {
            () = until(one) => {}
            () = until(other) => {}
        }
    }
}

async fn until(denied: Option<&Notify>) {
    match denied {
        Some(denied) => denied.notified().await,
        None => std::future::pending().await,
    }
}

/// Copies both ways until both sides have ended, or something else ends it. A side that is reset
/// resets the other.
pub(in crate::proxy) async fn copy(
    context: &Rc<Context>,
    downstream: Prefixed<Stream>,
    upstream: Stream,
    ends: impl Into<Ends<'_>>,
) -> Copied {
    let ends = ends.into();
    let (prefix, downstream) = downstream.into_parts();
    let pool = &context.bytes;
    match (downstream, upstream) {
        (Stream::Plain(downstream), Stream::Plain(upstream)) => {
            plain(pool, prefix, &downstream, &upstream, ends).await
        }
        // On its own: connections that are not encrypted need not make room for it.
        (downstream, upstream) => Box::pin(relayed(pool, prefix, downstream, upstream, ends)).await,
    }
}

async fn plain(
    pool: &Pool,
    prefix: Bytes,
    downstream: &TcpStream,
    upstream: &TcpStream,
    ends: Ends<'_>,
) -> Copied {
    let mut both = Both {
        sent: Direction::new(prefix),
        received: Direction::new(Bytes::new()),
        moved: Cell::new(false),
    };
    let moved = Cell::new(Instant::now());
    let result = {
        let copying = poll_fn(|cx| {
            let result = both.poll(cx, downstream, upstream, pool);
            if both.moved.take() {
                moved.set(Instant::now());
            }
            result
        });
        tokio::select! {
            biased;
            result = copying => result,
            () = until_idle(ends.idle, &moved) => Ok(()),
            () = ends.until_denied() => Err(io::ErrorKind::PermissionDenied.into()),
            // A direction that waits to write does not read, and would not see a reset.
            () = failed(downstream) => Err(io::ErrorKind::ConnectionReset.into()),
            () = failed(upstream) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    if result.is_err() {
        reset(downstream);
        reset(upstream);
    }
    Copied {
        sent: both.sent.bytes(),
        received: both.received.bytes(),
    }
}

async fn relayed(
    pool: &Pool,
    prefix: Bytes,
    mut downstream: Stream,
    mut upstream: Stream,
    ends: Ends<'_>,
) -> Copied {
    let mut relay = Relay::new(prefix);
    let (moved, last) = (Cell::new(false), Cell::new(Instant::now()));
    let result = {
        let mut relaying = std::pin::pin!(relay.run(&mut downstream, &mut upstream, pool, &moved));
        let relaying = poll_fn(|cx| {
            let result = relaying.as_mut().poll(cx);
            if moved.take() {
                last.set(Instant::now());
            }
            result
        });
        tokio::select! {
            biased;
            result = relaying => result,
            () = until_idle(ends.idle, &last) => Ok(()),
            () = ends.until_denied() => Err(io::ErrorKind::PermissionDenied.into()),
        }
    };
    if result.is_err() {
        downstream.reset();
        upstream.reset();
    }
    let (sent, received) = relay.bytes();
    Copied { sent, received }
}

struct Both {
    sent: Direction,
    received: Direction,
    /// Bytes moved since it was last looked at.
    moved: Cell<bool>,
}

impl Both {
    fn poll(
        &mut self,
        cx: &mut Task<'_>,
        downstream: &TcpStream,
        upstream: &TcpStream,
        pool: &Pool,
    ) -> Poll<io::Result<()>> {
        let before = self.sent.bytes() + self.received.bytes();
        let sent = self.sent.poll(cx, downstream, upstream, pool)?;
        let received = self.received.poll(cx, upstream, downstream, pool)?;
        if self.sent.bytes() + self.received.bytes() != before {
            self.moved.set(true);
        }
        if sent.is_ready() && received.is_ready() {
            return Poll::Ready(Ok(()));
        }
        Poll::Pending
    }
}

/// Ends after a whole period in which nothing moved.
async fn until_idle(period: Option<Duration>, moved: &Cell<Instant>) {
    let Some(period) = period else {
        return std::future::pending().await;
    };
    loop {
        let deadline = moved.get() + period;
        if deadline <= Instant::now() {
            return;
        }
        sleep_until(deadline).await;
    }
}
