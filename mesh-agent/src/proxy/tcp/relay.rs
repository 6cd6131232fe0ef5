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

use crate::proxy::chunk::Chunk;
use crate::proxy::stream::Stream;

use super::pool::{Buffer, Pool, Size};

/// Most bytes of a record of TLS.
const RECORD: usize = 16 << 10;

/// One direction.
#[derive(Debug)]
struct Half {
    state: State,
    bytes: u64,
    /// For the next read.
    size: Size,
    /// What broke the reader after bytes that are still to be written.
    broken: Option<io::Error>,
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
        Self {
            sent: Half::new(state),
            received: Half::new(State::Reading),
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
    fn new(state: State) -> Self {
        Self {
            state,
            bytes: 0,
            size: Size::default(),
            broken: None,
        }
    }

    /// Reads into a buffer: the next one is larger if this was filled, and smaller if most of it
    /// was left free. TLS gives a record at a time: those that came together leave together.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut Stream,
        pool: &Pool,
    ) -> Poll<io::Result<()>> {
        if let Some(error) = self.broken.take() {
            return Poll::Ready(Err(error));
        }
        let mut buffer = pool.buffer(self.size);
        let mut read = ReadBuf::new(&mut buffer);
        ready!(Pin::new(&mut *from).poll_read(cx, &mut read))?;
        while !read.filled().is_empty() && read.remaining() >= RECORD && from.holds() {
            let before = read.filled().len();
            match Pin::new(&mut *from).poll_read(cx, &mut read) {
                // The end is found once more.
                Poll::Ready(Ok(())) if read.filled().len() > before => {}
                Poll::Ready(Ok(())) | Poll::Pending => break,
                Poll::Ready(Err(error)) => {
                    self.broken = Some(error);
                    break;
                }
            }
        }
        let length = read.filled().len();
        self.size = match self.size {
            Size::Small if length == buffer.len() || from.holds() => Size::Large,
            Size::Large if length < buffer.len() / 8 => Size::Small,
            size => size,
        };
        self.state = if length == 0 {
            State::Ending
        } else {
            State::Writing(buffer, 0..length)
        };
        Poll::Ready(Ok(()))
    }

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
                    let written = if let Stream::Tunnelled(to) = to {
                        let room = ready!(to.poll_room(cx, prefix.len()))?;
                        to.send(prefix.split_to(room))?;
                        room
                    } else {
                        let written = ready!(Pin::new(&mut *to).poll_write(cx, prefix))?;
                        let _ = prefix.split_to(written);
                        written
                    };
                    self.bytes += written as u64;
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
                    if let Stream::Tunnelled(_) = to {
                        // Its own task writes them: they stay where they are until then.
                        let mut chunk = Chunk::take();
                        let length = ready!(read_some(cx, from, &mut chunk))?;
                        self.state = match length {
                            0 => State::Ending,
                            _ => State::Prefix(chunk.into_bytes(length)),
                        };
                        continue;
                    }
                    ready!(self.fill(cx, from, pool))?;
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

fn read_some(
    cx: &mut Context<'_>,
    from: &mut Stream,
    buffer: &mut [u8],
) -> Poll<io::Result<usize>> {
    let mut read = ReadBuf::new(buffer);
    ready!(Pin::new(from).poll_read(cx, &mut read))?;
    Poll::Ready(Ok(read.filled().len()))
}
