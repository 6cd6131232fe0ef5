//! A stream of a tunnel, as a connection: half-closed by END_STREAM, reset by RST_STREAM.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::pool::Place;

/// A stream whose CONNECT request was granted.
#[derive(Debug)]
pub(in crate::proxy) struct Tunnelled {
    send: SendStream<Bytes>,
    receive: RecvStream,
    /// Received and not read yet.
    left: Bytes,
    /// The peer sends no more.
    ended: bool,
    /// Counts it among the streams of our tunnel; `None`: the tunnel is the client's.
    place: Option<Place>,
}

impl Tunnelled {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, place: Option<Place>) -> Self {
        Self {
            send,
            receive,
            left: Bytes::new(),
            ended: false,
            place,
        }
    }

    /// Whether it may serve another request: its tunnel stays, and the peer said nothing unasked.
    pub(in crate::proxy) fn is_quiet(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        !self.place.as_ref().is_some_and(Place::is_leaving) && self.poll_chunk(&mut cx).is_pending()
    }

    /// Ends it as a connection that was reset (RFC 9113, 8.5).
    pub(in crate::proxy) fn reset(&mut self) {
        self.send.send_reset(Reason::CONNECT_ERROR);
    }

    /// Ends when the peer has reset it, or the tunnel is gone.
    pub(in crate::proxy) async fn was_reset(&mut self) {
        let _ = poll_fn(|cx| self.send.poll_reset(cx)).await;
    }

    /// Bytes as they were received; none at the end of the stream.
    ///
    /// # Errors
    /// The peer reset it, or the tunnel broke.
    pub(in crate::proxy) fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.left.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.left)));
        }
        while !self.ended {
            match ready!(self.receive.poll_data(cx)) {
                None => self.ended = true,
                Some(Ok(bytes)) => {
                    // What is handed on is not read ahead any more; a reader that does not come
                    // back holds one frame.
                    let _ = self.receive.flow_control().release_capacity(bytes.len());
                    if !bytes.is_empty() {
                        return Poll::Ready(Ok(bytes));
                    }
                }
                Some(Err(error)) if error.reason() == Some(Reason::NO_ERROR) => self.ended = true,
                Some(Err(error)) => return Poll::Ready(Err(told(error))),
            }
        }
        Poll::Ready(Ok(Bytes::new()))
    }

    /// How many of so many bytes may be sent now.
    ///
    /// # Errors
    /// The peer reset it, or the tunnel broke.
    pub(in crate::proxy) fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        wanted: usize,
    ) -> Poll<io::Result<usize>> {
        self.send.reserve_capacity(wanted);
        loop {
            // Room that was given before is told of only once.
            let room = self.send.capacity().min(wanted);
            if room > 0 {
                return Poll::Ready(Ok(room));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(told(error))),
                None => return Poll::Ready(Err(ready!(self.poll_why(cx)))),
            }
        }
    }

    /// Sends bytes for which there is room.
    ///
    /// # Errors
    /// The peer reset it, or the tunnel broke.
    pub(in crate::proxy) fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.send.send_data(bytes, false).map_err(told)
    }

    /// Why nothing can be sent.
    fn poll_why(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        match ready!(self.send.poll_reset(cx)) {
            Ok(reason) => {
                let error = h2::Error::from(reason);
                Poll::Ready(io::Error::new(io::ErrorKind::ConnectionReset, error))
            }
            Err(error) => Poll::Ready(told(error)),
        }
    }
}

/// An error of a stream, as one of a connection.
pub(super) fn told(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error
            .into_io()
            .unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    let kind = if error.is_reset() || error.is_go_away() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::BrokenPipe
    };
    io::Error::new(kind, error)
}

impl AsyncRead for Tunnelled {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut chunk = ready!(self.poll_chunk(cx))?;
        let length = chunk.len().min(buf.remaining());
        buf.put_slice(&chunk[..length]);
        chunk.advance(length);
        self.left = chunk;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnelled {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, buf.len()))?;
        self.send(Bytes::copy_from_slice(&buf[..room]))?;
        Poll::Ready(Ok(room))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wanted = bufs.iter().map(|buf| buf.len()).sum();
        if wanted == 0 {
            return Poll::Ready(Ok(0));
        }
        let room = ready!(self.poll_room(cx, wanted))?;
        let mut bytes = BytesMut::with_capacity(room);
        for buf in bufs {
            let length = buf.len().min(room - bytes.len());
            bytes.extend_from_slice(&buf[..length]);
        }
        self.send(bytes.freeze())?;
        Poll::Ready(Ok(room))
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // The tunnel's own task writes what was sent.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            // It has ended before.
            Err(_) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        }
    }
}
