//! A request and its response without sockets, for `cargo xtask bench`.

use std::net::SocketAddr;
use std::pin::pin;
use std::task::{Context, Waker};

use bytes::{Bytes, BytesMut};

use crate::proxy::http::micro::{Asked, Routes, hcm};
use crate::snapshot::View;

use super::request::{self, Limits};
use super::response;
use super::write::Out;

/// The way of requests to a listener.
#[derive(Debug)]
pub struct Exchange {
    routes: Routes,
    limits: Limits,
    buffer: BytesMut,
    out: Out,
}

impl Exchange {
    /// Of the first HTTP filter chain of a view's listener.
    pub fn of(view: &View, destination: SocketAddr) -> Option<Self> {
        let hcm = hcm(view, destination)?;
        Some(Self {
            routes: Routes::of(view, destination)?,
            limits: Limits::from(&**hcm),
            buffer: BytesMut::new(),
            out: Out::default(),
        })
    }

    /// Reads a request, finds its route, chooses an endpoint, does to its headers what the route
    /// says and writes it; then its response, whose body comes with its head. `None`: one of them
    /// is malformed, or nobody takes it.
    pub fn run(&mut self, view: &View, request: &[u8], response: &[u8]) -> Option<SocketAddr> {
        self.buffer.extend_from_slice(request);
        let head = request::parse(&mut self.buffer, &mut 0, &self.limits).ok()??;
        let mut asked = Asked(head.request);
        let cluster = view.clusters.get(self.routes.cluster(&asked)?)?;
        let endpoint = crate::proxy::micro::pick(cluster, 0)?;
        self.routes.mutate(&mut asked);
        self.out.request(&asked.0, false);
        self.write();
        self.buffer.extend_from_slice(response);
        let head = response::parse(&mut self.buffer, &mut 0, &asked.0.method).ok()??;
        self.out.response(head.status, &head.headers);
        let body: Bytes = self.buffer.split().freeze();
        self.out.data(body);
        self.write();
        Some(endpoint)
    }

    fn write(&mut self) {
        let mut sink = pin!(tokio::io::sink());
        let written = self
            .out
            .poll_write(&mut sink, &mut Context::from_waker(Waker::noop()));
        debug_assert!(written.is_ready(), "it takes everything");
    }
}
