//! A connection as the proxy speaks over it: plain, through TLS, or as a stream of a tunnel.

use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use super::hbone::Tunnelled;
use super::tls::Secured;
use super::worker;

/// A connection.
#[derive(Debug)]
pub(super) enum Stream {
    /// Its bytes are the application's.
    Plain(TcpStream),
    /// They are encrypted.
    Tls(Box<Secured>),
    /// They are a stream of an HBONE tunnel.
    Tunnelled(Box<Tunnelled>),
}

impl Stream {
    /// Our end of the socket below; a stream of a tunnel has none of its own.
    pub(super) fn local_addr(&self) -> Option<SocketAddr> {
        match self {
            Self::Plain(tcp) => tcp.local_addr().ok(),
            Self::Tls(tls) => tls.socket().local_addr().ok(),
            Self::Tunnelled(_) => None,
        }
    }

    /// Ends it so that the peer sees an error.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Plain(tcp) => worker::reset(tcp),
            Self::Tls(tls) => worker::reset(tls.socket()),
            Self::Tunnelled(tunnelled) => tunnelled.reset(),
        }
    }

    /// Ends when the peer has reset it. A peer that only closed its side is still there to be
    /// answered.
    pub(super) async fn failed(&mut self) {
        // An error of the wait itself is the end of the connection, too.
        match self {
            Self::Plain(tcp) => drop(tcp.ready(Interest::ERROR).await),
            Self::Tls(tls) => drop(tls.socket().ready(Interest::ERROR).await),
            Self::Tunnelled(tunnelled) => tunnelled.was_reset().await,
        }
    }

    /// Whether an earlier TLS session goes on in it.
    pub(super) fn is_resumed(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.resumed)
    }

    /// Whether a read may find more without asking the socket.
    pub(super) fn holds(&self) -> bool {
        matches!(self, Self::Tls(tls) if tls.holds())
    }

    /// Whether the peer neither closed the connection nor said anything that was not read yet.
    pub(super) fn is_quiet(&mut self) -> bool {
        match self {
            Self::Plain(tcp) => tcp
                .try_read(&mut [0])
                .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock),
            Self::Tls(tls) => {
                let mut byte = [0];
                let mut buf = ReadBuf::new(&mut byte);
                let mut cx = Context::from_waker(Waker::noop());
                Pin::new(&mut tls.session)
                    .poll_read(&mut cx, &mut buf)
                    .is_pending()
            }
            Self::Tunnelled(tunnelled) => tunnelled.is_quiet(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.session).poll_read(cx, buf),
            Self::Tunnelled(tunnelled) => Pin::new(tunnelled).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Tls(tls) => Pin::new(&mut tls.session).poll_write(cx, buf),
            Self::Tunnelled(tunnelled) => Pin::new(tunnelled).poll_write(cx, buf),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, bufs),
            Self::Tls(tls) => Pin::new(&mut tls.session).poll_write_vectored(cx, bufs),
            Self::Tunnelled(tunnelled) => Pin::new(tunnelled).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(_) | Self::Tunnelled(_) => Poll::Ready(Ok(())),
            Self::Tls(tls) => Pin::new(&mut tls.session).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Tls(tls) => Pin::new(&mut tls.session).poll_shutdown(cx),
            Self::Tunnelled(tunnelled) => Pin::new(tunnelled).poll_shutdown(cx),
        }
    }
}
