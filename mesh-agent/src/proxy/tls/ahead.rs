//! Large reads from a socket for a TLS session, which asks for small ones.
//!
//! rustls reads 4 KiB at a time, and a record has up to 16 KiB: a bulk stream would cost five
//! system calls a record. Here it costs one for four records, and a connection that waits for its
//! peer holds no memory for it.

use std::io;
use std::ops::Range;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::proxy::chunk::{CHUNK, Chunk};

/// A connection of which more may have been read than was asked for.
#[derive(Debug)]
pub(in crate::proxy) struct Ahead<S> {
    stream: S,
    held: Option<Held>,
}

/// Bytes that were read and not asked for yet.
#[derive(Debug)]
struct Held {
    chunk: Chunk,
    left: Range<usize>,
}

impl<S> Ahead<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, held: None }
    }

    pub(in crate::proxy) fn get_ref(&self) -> &S {
        &self.stream
    }

    /// Whether the next read finds bytes in memory.
    pub(in crate::proxy) fn holds(&self) -> bool {
        self.held.is_some()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Ahead<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        let mut held = match this.held.take() {
            Some(held) => held,
            None if buf.remaining() >= CHUNK => {
                return Pin::new(&mut this.stream).poll_read(cx, buf);
            }
            None => {
                let mut chunk = Chunk::take();
                let mut read = ReadBuf::new(&mut chunk);
                ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
                let left = 0..read.filled().len();
                Held { chunk, left }
            }
        };
        let taken = held.left.len().min(buf.remaining());
        buf.put_slice(&held.chunk[held.left.start..][..taken]);
        held.left.start += taken;
        if !held.left.is_empty() {
            this.held = Some(held);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Ahead<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use tokio::io::AsyncReadExt as _;

    use super::*;

    /// Gives pieces, one a read, then an error or the end.
    struct Pieces {
        pieces: VecDeque<Vec<u8>>,
        reads: usize,
        breaks: bool,
    }

    impl AsyncRead for Pieces {
        fn poll_read(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
            buf: &mut ReadBuf<'_>,
        ) -> Poll<io::Result<()>> {
            self.reads += 1;
            match self.pieces.pop_front() {
                Some(mut piece) => {
                    let rest = piece.split_off(piece.len().min(buf.remaining()));
                    if !rest.is_empty() {
                        self.pieces.push_front(rest);
                    }
                    buf.put_slice(&piece);
                    Poll::Ready(Ok(()))
                }
                None if self.breaks => Poll::Ready(Err(io::ErrorKind::ConnectionReset.into())),
                None => Poll::Ready(Ok(())),
            }
        }
    }

    fn ahead(pieces: Vec<Vec<u8>>, breaks: bool) -> Ahead<Pieces> {
        Ahead::new(Pieces {
            pieces: pieces.into(),
            reads: 0,
            breaks,
        })
    }

    #[tokio::test]
    async fn small_reads_cost_one_call_of_the_socket() {
        let sent: Vec<u8> = (0..CHUNK).map(|n| n as u8).collect();
        let mut ahead = ahead(vec![sent.clone()], false);
        let mut read = Vec::new();
        while read.len() < CHUNK {
            let mut some = [0; 4096];
            let length = ahead.read(&mut some).await.expect("bytes");
            read.extend_from_slice(&some[..length]);
            assert_eq!(ahead.holds(), read.len() < CHUNK);
        }
        assert!(read == sent);
        assert_eq!(ahead.stream.reads, 1);
    }

    #[tokio::test]
    async fn what_came_before_an_error_is_read_first() {
        let mut ahead = ahead(vec![b"last words".to_vec()], true);
        let mut some = [0; 5];
        ahead.read_exact(&mut some).await.expect("bytes");
        assert_eq!(&some, b"last ");
        ahead.read_exact(&mut some).await.expect("bytes");
        assert_eq!(&some, b"words");
        let error = ahead.read(&mut some).await.expect_err("no more");
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    proptest! {
        #[test]
        fn bytes_stay_in_order(
            pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..5000), 0..20),
            sizes in proptest::collection::vec(1usize..100_000, 1..10),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            runtime.block_on(async {
                let mut ahead = ahead(pieces.clone(), false);
                let (mut read, mut sizes) = (Vec::new(), sizes.iter().cycle());
                loop {
                    let mut some = vec![0; *sizes.next().expect("endless")];
                    match ahead.read(&mut some).await.expect("no error") {
                        0 => break,
                        length => read.extend_from_slice(&some[..length]),
                    }
                }
                prop_assert!(read == pieces.concat());
                Ok(())
            })?;
        }
    }
}
