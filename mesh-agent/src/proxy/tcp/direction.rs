//! One direction of a connection: from the socket that is read to the one that is written.

use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::buffers::{Buffer, Buffers, Size};

/// How far a direction has come.
#[derive(Debug)]
pub(super) struct Direction {
    state: State,
    /// For the next read.
    size: Size,
    /// Bytes written so far.
    bytes: u64,
}

#[derive(Debug)]
enum State {
    /// Bytes that were read before this began.
    Prefix(Bytes),
    /// Waiting for bytes, with no memory for them.
    Reading,
    /// The range of the buffer is still to be written.
    Writing(Buffer, Range<usize>),
    /// The reader ended, and the writer was told.
    Ended,
}

impl Direction {
    pub(super) fn new(prefix: Bytes) -> Self {
        Self {
            state: if prefix.is_empty() {
                State::Reading
            } else {
                State::Prefix(prefix)
            },
            size: Size::default(),
            bytes: 0,
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Goes on until neither socket allows more. Ready: the reader has ended and `to` was told.
    ///
    /// # Errors
    /// Either connection is broken.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &TcpStream,
        to: &TcpStream,
        buffers: &Buffers,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Prefix(prefix) => {
                    let written = ready!(poll_write(cx, to, prefix))?;
                    self.bytes += written as u64;
                    let _ = prefix.split_to(written);
                    if prefix.is_empty() {
                        self.state = State::Reading;
                    }
                }
                State::Reading => {
                    ready!(from.poll_read_ready(cx))?;
                    let mut buffer = buffers.take(self.size);
                    match from.try_read(&mut buffer) {
                        Ok(0) => {
                            shutdown(to)?;
                            self.state = State::Ended;
                        }
                        Ok(read) => {
                            self.size = self.next_size(read, buffer.len());
                            self.state = State::Writing(buffer, 0..read);
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                        Err(error) => return Poll::Ready(Err(error)),
                    }
                }
                State::Writing(buffer, left) => {
                    let written = ready!(poll_write(cx, to, &buffer[left.clone()]))?;
                    self.bytes += written as u64;
                    left.start += written;
                    if left.start == left.end {
                        self.state = State::Reading;
                    }
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// A read that fills its buffer is followed by a larger one, one that leaves most of it free
    /// by a smaller.
    fn next_size(&self, read: usize, room: usize) -> Size {
        match self.size {
            Size::Small if read == room => Size::Large,
            Size::Large if read < room / 8 => Size::Small,
            size => size,
        }
    }
}

fn poll_write(cx: &mut Context<'_>, to: &TcpStream, bytes: &[u8]) -> Poll<io::Result<usize>> {
    loop {
        match to.try_write(bytes) {
            Ok(0) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                ready!(to.poll_write_ready(cx))?;
            }
            result => return Poll::Ready(result),
        }
    }
}

/// Tells the peer that no more comes; it may have gone by itself.
fn shutdown(stream: &TcpStream) -> io::Result<()> {
    match socket2::SockRef::from(stream).shutdown(Shutdown::Write) {
        Err(error) if error.kind() != io::ErrorKind::NotConnected => Err(error),
        _ => Ok(()),
    }
}
