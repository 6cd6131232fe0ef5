//! The first bytes of a connection: TLS with its SNI and ALPN, HTTP/2, HTTP/1.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};

use crate::config::model::listener::Listener;

/// The HTTP/2 client preface.
pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Largest ClientHello looked at, as Envoy's TLS inspector.
const MAX_HELLO: usize = 64 << 10;

/// A connection whose first bytes may have been read already.
#[derive(Debug)]
pub(super) struct Prefixed<S> {
    prefix: Bytes,
    stream: S,
}

/// What the first bytes told.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Sniffed {
    pub(super) tls: bool,
    pub(super) server_name: Option<String>,
    pub(super) application_protocols: Vec<String>,
}

impl<S> Prefixed<S> {
    pub(super) fn new(stream: S) -> Self {
        Self {
            prefix: Bytes::new(),
            stream,
        }
    }

    /// As [`Self::new`], with bytes that were read already.
    pub(super) fn with_prefix(stream: S, prefix: Bytes) -> Self {
        Self { prefix, stream }
    }

    pub(super) fn get_ref(&self) -> &S {
        &self.stream
    }

    pub(super) fn get_mut(&mut self) -> &mut S {
        &mut self.stream
    }

    /// What was read already, and the connection.
    pub(super) fn into_parts(self) -> (Bytes, S) {
        (self.prefix, self.stream)
    }
}

impl<S: AsyncRead + Unpin> Prefixed<S> {
    /// Reads until `enough` says what the bytes are; they stay to be read again. At the end of
    /// the stream `enough` is asked one last time.
    pub(super) async fn look<T>(
        &mut self,
        mut enough: impl FnMut(&[u8], bool) -> Option<T>,
    ) -> io::Result<Option<T>> {
        let mut seen = BytesMut::from(&self.prefix[..]);
        loop {
            if let Some(found) = enough(&seen, false) {
                self.prefix = seen.freeze();
                return Ok(Some(found));
            }
            let read = self.stream.read_buf(&mut seen).await;
            match read {
                Ok(0) => {
                    self.prefix = seen.clone().freeze();
                    return Ok(enough(&seen, true));
                }
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let length = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..length]);
        self.prefix.advance(length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
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
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}

/// What is looked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Looking {
    pub(super) tls: bool,
    pub(super) http: bool,
}

/// Looks at the first bytes as the listener's inspectors ask.
pub(super) async fn sniff<S: AsyncRead + Unpin>(
    stream: &mut Prefixed<S>,
    listener: &Listener,
    wanted: Looking,
) -> io::Result<Sniffed> {
    let looking = stream.look(|bytes, end| recognise(bytes, end, wanted));
    let found = match listener.listener_filters_timeout {
        None => looking.await?,
        Some(limit) => match tokio::time::timeout(limit, looking).await {
            Ok(found) => found?,
            Err(_) if listener.continue_on_listener_filters_timeout => None,
            Err(_) => return Err(io::ErrorKind::TimedOut.into()),
        },
    };
    Ok(found.unwrap_or_default())
}

fn recognise(bytes: &[u8], end: bool, wanted: Looking) -> Option<Sniffed> {
    if bytes.is_empty() {
        return end.then(Sniffed::default);
    }
    if wanted.tls && bytes[0] == 0x16 {
        return match hello(bytes) {
            Hello::Complete(sniffed) => Some(sniffed),
            Hello::Incomplete if !end && bytes.len() < MAX_HELLO => None,
            Hello::Incomplete | Hello::Invalid => Some(Sniffed::default()),
        };
    }
    if !wanted.http {
        return Some(Sniffed::default());
    }
    let shared = bytes.len().min(PREFACE.len());
    if bytes[..shared] == PREFACE[..shared] {
        if bytes.len() < PREFACE.len() && !end {
            return None;
        }
        return Some(plain("h2c"));
    }
    match bytes.iter().position(|byte| *byte == b'\n') {
        Some(line_end) => {
            let line = &bytes[..line_end];
            let http = line.strip_suffix(b"\r").unwrap_or(line);
            Some(if http.ends_with(b" HTTP/1.1") {
                plain("http/1.1")
            } else if http.ends_with(b" HTTP/1.0") {
                plain("http/1.0")
            } else {
                Sniffed::default()
            })
        }
        // A method is upper-case letters; anything else is not HTTP.
        None if end || bytes.len() > 16 << 10 || !bytes[0].is_ascii_uppercase() => {
            Some(Sniffed::default())
        }
        None => None,
    }
}

fn plain(protocol: &str) -> Sniffed {
    Sniffed {
        application_protocols: vec![protocol.to_owned()],
        ..Sniffed::default()
    }
}

enum Hello {
    Complete(Sniffed),
    Incomplete,
    Invalid,
}

/// A cursor over a TLS structure.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        Some(
            self.take(bytes)?
                .iter()
                .fold(0, |number, byte| number << 8 | usize::from(*byte)),
        )
    }

    /// A vector with a length of that many bytes in front.
    fn vector(&mut self, length_bytes: usize) -> Option<Reader<'a>> {
        let length = self.number(length_bytes)?;
        self.take(length).map(Reader)
    }
}

/// Reads a ClientHello (RFC 8446, 4.1.2), which may be spread over several records.
fn hello(bytes: &[u8]) -> Hello {
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    while !records.0.is_empty() {
        if records.0[0] != 0x16 {
            return Hello::Invalid;
        }
        let mut record = Reader(records.0);
        let Some(body) = record.take(3).and_then(|_| record.vector(2)) else {
            break;
        };
        message.extend_from_slice(body.0);
        records = record;
    }
    let mut handshake = Reader(&message);
    match handshake.number(1) {
        Some(1) => {}
        Some(_) => return Hello::Invalid,
        None => return Hello::Incomplete,
    }
    let Some(hello) = handshake.vector(3) else {
        return Hello::Incomplete;
    };
    extensions(hello).map_or(Hello::Invalid, Hello::Complete)
}

fn extensions(mut hello: Reader<'_>) -> Option<Sniffed> {
    let mut sniffed = Sniffed {
        tls: true,
        ..Sniffed::default()
    };
    hello.take(2 + 32)?;
    hello.vector(1)?;
    hello.vector(2)?;
    hello.vector(1)?;
    if hello.0.is_empty() {
        return Some(sniffed);
    }
    let mut extensions = hello.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let mut body = extensions.vector(2)?;
        match kind {
            0 => {
                let mut names = body.vector(2)?;
                if names.number(1)? == 0 {
                    let name = std::str::from_utf8(names.vector(2)?.0).ok()?;
                    sniffed.server_name = Some(name.to_ascii_lowercase());
                }
            }
            16 => {
                let mut protocols = body.vector(2)?;
                while !protocols.0.is_empty() {
                    let protocol = String::from_utf8(protocols.vector(1)?.0.to_vec()).ok()?;
                    sniffed.application_protocols.push(protocol);
                }
            }
            _ => {}
        }
    }
    Some(sniffed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOTH: Looking = Looking {
        tls: true,
        http: true,
    };

    #[test]
    fn http_is_recognised_and_server_first_clients_are_not_waited_for_when_they_close() {
        assert_eq!(recognise(b"GE", false, BOTH), None);
        assert_eq!(
            recognise(b"GET / HTTP/1.1\r\n", false, BOTH),
            Some(plain("http/1.1"))
        );
        assert_eq!(recognise(&PREFACE[..10], false, BOTH), None);
        assert_eq!(recognise(PREFACE, false, BOTH), Some(plain("h2c")));
        assert_eq!(
            recognise(b"\x00\x01", false, BOTH),
            Some(Sniffed::default())
        );
        assert_eq!(recognise(b"", true, BOTH), Some(Sniffed::default()));
        let only_tls = Looking {
            tls: true,
            http: false,
        };
        assert_eq!(
            recognise(b"GET / HTTP/1.1\r\n", false, only_tls),
            Some(Sniffed::default())
        );
    }

    proptest! {
        #[test]
        fn no_hello_panics(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut record = vec![0x16, 3, 1];
            record.extend_from_slice(&(bytes.len() as u16).to_be_bytes());
            record.extend_from_slice(&bytes);
            let _ = recognise(&record, false, BOTH);
            let _ = recognise(&bytes, true, BOTH);
        }
    }
}
