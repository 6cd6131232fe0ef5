//! What is written to a connection: heads and bodies, gathered into as few writes as can be.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, StatusCode};
use tokio::io::AsyncWrite;

use crate::proxy::http::message::Request;

/// How many bytes are gathered before a write.
const GATHER: usize = 64 << 10;
/// A piece of a body below this is copied beside the head; a larger one is written from where it
/// lies.
const COPY: usize = 2 << 10;
const SLICES: usize = 16;

/// Bytes on their way out.
#[derive(Debug, Default)]
pub(super) struct Out {
    /// Complete pieces, first one first.
    pieces: VecDeque<Bytes>,
    /// What small pieces are gathered in; comes after `pieces`.
    tail: BytesMut,
    length: usize,
    /// Something was handed to the writer that may hold it back.
    unflushed: bool,
}

impl Out {
    pub(super) fn is_empty(&self) -> bool {
        self.length == 0 && !self.unflushed
    }

    /// Whether it is time to write before gathering more.
    pub(super) fn is_full(&self) -> bool {
        self.length >= GATHER
    }

    fn small(&mut self, bytes: &[u8]) {
        self.tail.extend_from_slice(bytes);
        self.length += bytes.len();
    }

    /// Adds a piece of a body as it is.
    pub(super) fn data(&mut self, data: Bytes) {
        if data.len() <= COPY {
            self.small(&data);
            return;
        }
        if !self.tail.is_empty() {
            self.pieces.push_back(self.tail.split().freeze());
        }
        self.length += data.len();
        self.pieces.push_back(data);
    }

    /// Adds a piece of a body as a chunk.
    pub(super) fn chunk(&mut self, data: Bytes) {
        if data.is_empty() {
            return;
        }
        let mut digits = [0; 18];
        let mut cursor = &mut digits[..];
        let _ = io::Write::write_fmt(&mut cursor, format_args!("{:x}\r\n", data.len()));
        let unused = cursor.len();
        self.small(&digits[..18 - unused]);
        self.data(data);
        self.small(b"\r\n");
    }

    /// Adds the end of a chunked body.
    pub(super) fn last_chunk(&mut self) {
        self.small(b"0\r\n\r\n");
    }

    /// Adds the end of a chunked body, and what comes behind it.
    pub(super) fn last_chunk_and(&mut self, trailers: &HeaderMap) {
        let before = self.tail.len();
        self.tail.put_slice(b"0\r\n");
        fields(&mut self.tail, trailers);
        self.length += self.tail.len() - before;
    }

    /// Adds bytes that are written as they are.
    pub(super) fn verbatim(&mut self, bytes: &'static [u8]) {
        self.small(bytes);
    }

    /// Adds a request's head.
    pub(super) fn request(&mut self, request: &Request, chunked: bool) {
        let tail = &mut self.tail;
        let before = tail.len();
        tail.reserve(512);
        tail.put_slice(request.method.as_str().as_bytes());
        tail.put_u8(b' ');
        if request.method == http::Method::CONNECT {
            tail.put_slice(request.authority.as_bytes());
        } else {
            tail.put_slice(request.path.as_str().as_bytes());
        }
        tail.put_slice(b" HTTP/1.1\r\nhost: ");
        tail.put_slice(request.authority.as_bytes());
        tail.put_slice(b"\r\n");
        if chunked {
            tail.put_slice(b"transfer-encoding: chunked\r\n");
        }
        fields(tail, &request.headers);
        self.length += tail.len() - before;
    }

    /// Adds a response's head.
    pub(super) fn response(&mut self, status: StatusCode, headers: &HeaderMap) {
        let tail = &mut self.tail;
        let before = tail.len();
        tail.reserve(512);
        if status == StatusCode::OK {
            tail.put_slice(b"HTTP/1.1 200 OK\r\n");
        } else {
            tail.put_slice(b"HTTP/1.1 ");
            tail.put_slice(status.as_str().as_bytes());
            tail.put_u8(b' ');
            tail.put_slice(status.canonical_reason().unwrap_or("Unknown").as_bytes());
            tail.put_slice(b"\r\n");
        }
        fields(tail, headers);
        self.length += tail.len() - before;
    }

    /// Writes until nothing is left.
    pub(super) fn poll_write<W: AsyncWrite + Unpin>(
        &mut self,
        writer: &mut W,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.length > 0 {
            let written = if self.pieces.is_empty() {
                ready!(Pin::new(&mut *writer).poll_write(cx, &self.tail))?
            } else {
                let mut slices = [IoSlice::new(&[]); SLICES];
                let mut used = 0;
                let pieces = self.pieces.iter().map(|piece| &piece[..]);
                for piece in pieces.chain([&self.tail[..]]).take(SLICES) {
                    slices[used] = IoSlice::new(piece);
                    used += 1;
                }
                ready!(Pin::new(&mut *writer).poll_write_vectored(cx, &slices[..used]))?
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.advance(written);
            self.unflushed = true;
        }
        // TLS may hold back what the socket did not take.
        let flushed = ready!(Pin::new(writer).poll_flush(cx));
        self.unflushed = false;
        Poll::Ready(flushed)
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(first) = self.pieces.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.pieces.pop_front();
        }
        self.tail.advance(written);
        if self.tail.is_empty() {
            self.tail.clear();
        }
    }
}

fn fields(out: &mut BytesMut, headers: &HeaderMap) {
    for (name, value) in headers {
        field(out, name, value.as_bytes());
    }
    out.put_slice(b"\r\n");
}

fn field(out: &mut BytesMut, name: &HeaderName, value: &[u8]) {
    let name = name.as_str().as_bytes();
    out.reserve(name.len() + value.len() + 4);
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}
