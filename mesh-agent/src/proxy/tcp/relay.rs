//! Both directions of a connection of which a side is encrypted: bytes pass through memory of
//! ours in any case, so no socket is spliced to another.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead as _, AsyncWrite as _, ReadBuf};

use crate::proxy::stream::Stream;

use super::pool::{Buffer, Pool, Size};

/// One direction.
#[derive(Debug)]
struct Half {
    state: State,
    bytes: u64,
}

#[derive(Debug)]
enum State {
    /// Bytes that are in memory already: read before this began, or a tunnel's.
    Prefix(Bytes),
    /// Everything read was handed on; the writer may still hold some of it.
    Flushing,
    /// Waiting for bytes, with no memory for them.
    Reading,
    /// The range of the buffer is still to be written.
    Writing(Buffer, Range<usize>),
    /// The reader ended; the writer is told.
    Ending,
    /// And was.
    Ended,
}

/// Both directions; `moved` turns true whenever bytes do.
#[derive(Debug)]
pub(super) struct Relay {
    sent: Half,
    received: Half,
}

impl Relay {
    /// With bytes of the client that were read already.
    pub(super) fn new(prefix: Bytes) -> Self {
        let state = if prefix.is_empty() {
            State::Reading
        } else {
            State::Prefix(prefix)
        };
        let half = |state| Half { state, bytes: 0 };
        Self {
            sent: half(state),
            received: half(State::Reading),
        }
    }

    /// Bytes to the upstream and from it.
    pub(super) fn bytes(&self) -> (u64, u64) {
        (self.sent.bytes, self.received.bytes)
    }

    /// Runs until both sides have ended.
    ///
    /// # Errors
    /// Either connection is broken.
    pub(super) async fn run(
        &mut self,
        downstream: &mut Stream,
        upstream: &mut Stream,
        pool: &Pool,
        moved: &Cell<bool>,
    ) -> io::Result<()> {
        poll_fn(|cx| {
            let before = self.bytes();
            let sent = self.sent.poll(cx, downstream, upstream, pool)?;
            let received = self.received.poll(cx, upstream, downstream, pool)?;
            if self.bytes() != before {
                moved.set(true);
            }
            if sent.is_ready() && received.is_ready() {
                return Poll::Ready(Ok(()));
            }
            Poll::Pending
        })
        .await
    }
}

impl Half {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        to: &mut Stream,
        pool: &Pool,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Prefix(prefix) => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, prefix))?;
                    self.bytes += written as u64;
                    let _ = prefix.split_to(written);
                    if prefix.is_empty() {
                        self.state = State::Flushing;
                    }
                }
                State::Flushing => {
                    ready!(Pin::new(&mut *to).poll_flush(cx))?;
                    self.state = State::Reading;
                }
                State::Reading => {
                    if let Stream::Tunnelled(from) = from {
                        // They are in memory already.
                        let chunk = ready!(from.poll_chunk(cx))?;
                        self.state = if chunk.is_empty() {
                            State::Ending
                        } else {
                            State::Prefix(chunk)
                        };
                        continue;
                    }
                    let mut buffer = pool.buffer(Size::Large);
                    let mut read = ReadBuf::new(&mut buffer);
                    ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
                    let length = read.filled().len();
                    self.state = if length == 0 {
                        State::Ending
                    } else {
                        State::Writing(buffer, 0..length)
                    };
                }
                State::Writing(buffer, left) => {
                    let written = ready!(Pin::new(&mut *to).poll_write(cx, &buffer[left.clone()]))?;
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.bytes += written as u64;
                    left.start += written;
                    if left.start == left.end {
                        self.state = State::Flushing;
                    }
                }
                State::Ending => {
                    match ready!(Pin::new(&mut *to).poll_shutdown(cx)) {
                        Err(error) if error.kind() != io::ErrorKind::NotConnected => {
                            return Poll::Ready(Err(error));
                        }
                        _ => {}
                    }
                    self.state = State::Ended;
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }
}
