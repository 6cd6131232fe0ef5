//! One direction of a connection: from the socket that is read to the one that is written.

use std::io;
use std::net::Shutdown;
use std::ops::Range;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::pool::{Buffer, Pool, PooledPipe, Size};

/// Reads in a row that fill a large buffer's half, after which a stream is bulk and goes through a
/// pipe.
const BULK_READS: u8 = 4;
/// A pipe filled with less than this is not worth its calls.
const BULK_BYTES: usize = 16 << 10;

/// How far a direction has come.
#[derive(Debug)]
pub(super) struct Direction {
    state: State,
    /// For the next read.
    size: Size,
    /// Large reads in a row, [`BULK_READS`] at most.
    large_reads: u8,
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
    /// What is in the pipe is still to be written.
    Draining(PooledPipe),
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
            large_reads: 0,
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
        pool: &Pool,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.state {
                State::Prefix(prefix) => {
                    let written = ready!(poll_write(cx, to, || to.try_write(prefix)))?;
                    self.bytes += written as u64;
                    let _ = prefix.split_to(written);
                    if prefix.is_empty() {
                        self.state = State::Reading;
                    }
                }
                State::Reading => {
                    ready!(from.poll_read_ready(cx))?;
                    let read = if self.large_reads == BULK_READS {
                        self.fill_pipe(from, pool)
                    } else {
                        self.fill_buffer(from, pool)
                    };
                    match read {
                        Ok(0) => {
                            shutdown(to)?;
                            self.state = State::Ended;
                        }
                        Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                            return Poll::Ready(Err(error));
                        }
                        _ => {}
                    }
                }
                State::Writing(buffer, left) => {
                    let bytes = &buffer[left.clone()];
                    let written = ready!(poll_write(cx, to, || to.try_write(bytes)))?;
                    self.bytes += written as u64;
                    left.start += written;
                    if left.start == left.end {
                        self.state = State::Reading;
                    }
                }
                State::Draining(pipe) => {
                    let pipe = pipe.get();
                    let written = ready!(poll_write(cx, to, || pipe.drain(to)))?;
                    self.bytes += written as u64;
                    if pipe.filled() == 0 {
                        self.state = State::Reading;
                    }
                }
                State::Ended => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Reads into a buffer. The next one is larger if this was filled, and smaller if most of it
    /// was left free.
    fn fill_buffer(&mut self, from: &TcpStream, pool: &Pool) -> io::Result<usize> {
        let mut buffer = pool.buffer(self.size);
        let read = from.try_read(&mut buffer)?;
        self.large_reads = match self.size {
            Size::Large if read >= buffer.len() / 2 => self.large_reads + 1,
            _ => 0,
        };
        self.size = match self.size {
            Size::Small if read == buffer.len() => Size::Large,
            Size::Large if read < buffer.len() / 8 => Size::Small,
            size => size,
        };
        if read > 0 {
            self.state = State::Writing(buffer, 0..read);
        }
        Ok(read)
    }

    fn fill_pipe(&mut self, from: &TcpStream, pool: &Pool) -> io::Result<usize> {
        let Ok(mut pipe) = pool.pipe() else {
            // Out of descriptors: it goes without.
            self.large_reads = 0;
            return self.fill_buffer(from, pool);
        };
        let read = pipe.get().fill(from)?;
        if read < BULK_BYTES {
            self.large_reads = 0;
        }
        if read > 0 {
            self.state = State::Draining(pipe);
        }
        Ok(read)
    }
}

fn poll_write(
    cx: &mut Context<'_>,
    to: &TcpStream,
    mut write: impl FnMut() -> io::Result<usize>,
) -> Poll<io::Result<usize>> {
    loop {
        match write() {
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
