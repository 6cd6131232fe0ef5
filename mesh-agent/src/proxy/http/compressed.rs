//! A response's body on its way through an encoder.

use std::io::{self, Write as _};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use http::HeaderMap;
use hyper::body::{Body as _, Frame};

use crate::config::model::filter::compressor::Library;

use super::body::{BodyError, ProxyBody};

/// What is handed on at once, in bytes (Envoy's `chunk_size`).
const CHUNK: usize = 4096;

/// An encoder by its library. It writes to memory, which does not fail.
pub(super) enum Encoder {
    Gzip(GzEncoder<Vec<u8>>),
    Brotli(Box<brotli::CompressorWriter<Vec<u8>>>),
    Zstd(zstd::stream::write::Encoder<'static, Vec<u8>>),
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// A fresh one.
    pub(super) fn new(library: Library) -> io::Result<Self> {
        Ok(match library {
            Library::Gzip(level) => Self::Gzip(GzEncoder::new(Vec::new(), Compression::new(level))),
            Library::Brotli {
                quality,
                window_bits,
            } => Self::Brotli(Box::new(brotli::CompressorWriter::new(
                Vec::new(),
                CHUNK,
                quality,
                window_bits,
            ))),
            Library::Zstd(level) => {
                Self::Zstd(zstd::stream::write::Encoder::new(Vec::new(), level)?)
            }
        })
    }

    fn write(&mut self, data: &[u8]) -> io::Result<()> {
        match self {
            Self::Gzip(encoder) => encoder.write_all(data),
            Self::Brotli(encoder) => encoder.write_all(data),
            Self::Zstd(encoder) => encoder.write_all(data),
        }
    }

    /// What has come out so far, if it is worth handing on.
    fn take(&mut self) -> Option<Vec<u8>> {
        let out = match self {
            Self::Gzip(encoder) => encoder.get_mut(),
            Self::Brotli(encoder) => encoder.get_mut(),
            Self::Zstd(encoder) => encoder.get_mut(),
        };
        (out.len() >= CHUNK).then(|| std::mem::take(out))
    }

    fn finish(self) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip(encoder) => encoder.finish(),
            Self::Brotli(encoder) => Ok(encoder.into_inner()),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }

    /// All of a body at once.
    pub(super) fn whole(mut self, data: &[u8]) -> Vec<u8> {
        // Memory takes everything.
        let _ = self.write(data);
        self.finish().unwrap_or_default()
    }
}

/// A body and its encoder.
#[derive(Debug)]
pub(super) struct Compressed {
    body: ProxyBody,
    /// `None` once all is out.
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
}

impl Compressed {
    pub(super) fn new(body: ProxyBody, encoder: Encoder) -> Self {
        Self {
            body,
            encoder: Some(encoder),
            trailers: None,
        }
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.encoder.is_none() && self.trailers.is_none()
    }

    pub(super) fn poll_limits(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.body.poll_limits(cx)
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        loop {
            let Some(encoder) = &mut self.encoder else {
                let trailers = self.trailers.take();
                return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
            };
            let step = match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                Some(Err(error)) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => encoder.write(&data).map(|()| encoder.take()),
                    Err(frame) => {
                        self.trailers = frame.into_trailers().ok();
                        self.end()
                    }
                },
                None => self.end(),
            };
            match step {
                Ok(None) => {}
                Ok(Some(out)) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
                Err(error) => {
                    self.encoder = None;
                    return Poll::Ready(Some(Err(BodyError::Upstream(error))));
                }
            }
        }
    }

    fn end(&mut self) -> io::Result<Option<Vec<u8>>> {
        match self.encoder.take() {
            Some(encoder) => encoder.finish().map(Some),
            None => Ok(None),
        }
    }
}
