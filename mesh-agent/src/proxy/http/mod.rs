//! HTTP: a downstream connection served by hyper, each request routed on the newest snapshot.

mod admit;
mod body;
mod exchange;
mod forward;
mod headers;
pub(super) mod pool;
mod redirect;
mod reply;
mod rewrite;
mod router;
mod upstream;

use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};

use crate::config::model::Name;
use crate::config::model::listener::{Codec, HttpConnectionManager, Terminal};
use crate::snapshot::View;

use super::accept::Caught;
use super::sniff::{PREFACE, Prefixed};
use super::stats::count;
use super::worker::Context;

/// Which filter chain a connection was given to.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) listener: Name,
    pub(super) chain: Name,
}

/// What the requests of a connection share.
pub(super) struct Connection {
    pub(super) context: Rc<Context>,
    pub(super) caught: Caught,
    /// As it was when the connection was accepted.
    first: Arc<HttpConnectionManager>,
    place: Place,
}

impl Connection {
    /// The newest snapshot's view and connection manager. A listener that is gone or of another
    /// kind now serves its live connections as it was.
    fn current(&self) -> Option<(Arc<View>, Arc<HttpConnectionManager>)> {
        let view = self
            .context
            .shared
            .snapshots
            .load()
            .view(self.caught.pod.view)?
            .clone();
        let listener = match self.caught.kind {
            super::ListenerKind::Outbound => view.outbound.find(self.caught.destination),
            super::ListenerKind::Inbound => view.inbound.as_ref(),
        };
        let hcm = listener
            .filter(|listener| listener.name == self.place.listener)
            .and_then(|listener| {
                listener
                    .filter_chains
                    .iter()
                    .chain(&listener.default_filter_chain)
                    .find(|chain| chain.name == self.place.chain)
            })
            .and_then(|chain| match &chain.terminal {
                Terminal::Http(hcm) => Some(hcm.clone()),
                Terminal::Tcp(_) => None,
            })
            .unwrap_or_else(|| self.first.clone());
        Some((view, hcm))
    }

    fn draining(&self) -> bool {
        *self.context.draining.borrow()
    }
}

/// Spawns hyper's tasks on the worker's own thread.
#[derive(Clone, Copy)]
pub(super) struct LocalExecutor;

impl<F> hyper::rt::Executor<F> for LocalExecutor
where
    F: Future + 'static,
    F::Output: 'static,
{
    fn execute(&self, future: F) {
        tokio::task::spawn_local(future);
    }
}

/// Serves a connection to its end.
pub(super) async fn serve(
    context: Rc<Context>,
    caught: Caught,
    hcm: Arc<HttpConnectionManager>,
    place: Place,
    mut stream: Prefixed,
) {
    let http2 = match hcm.codec {
        Codec::Http1 => false,
        Codec::Http2 => true,
        Codec::Auto => match is_preface(&mut stream, hcm.idle_timeout).await {
            Some(http2) => http2,
            None => return,
        },
    };
    let mut draining = context.draining.clone();
    let stats = context.shared.stats.clone();
    let connection = Rc::new(Connection {
        context,
        caught,
        first: hcm.clone(),
        place,
    });
    let service = service_fn(move |request: http::Request<Incoming>| {
        let connection = connection.clone();
        async move { Ok::<_, std::convert::Infallible>(exchange::handle(&connection, request).await) }
    });
    let drained = async move {
        // The sender lives as long as the worker.
        let _ = draining.wait_for(|draining| *draining).await;
    };
    let io = TokioIo::new(stream);
    let result = if http2 {
        let mut builder = http2::Builder::new(LocalExecutor);
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(hcm.max_concurrent_streams)
            .max_header_list_size(hcm.max_request_headers_kib << 10)
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(4 << 20)
            .enable_connect_protocol();
        let mut serving = std::pin::pin!(builder.serve_connection(io, service));
        tokio::select! {
            result = serving.as_mut() => result,
            () = drained => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .half_close(true)
            .max_headers(hcm.max_headers_count as usize)
            .max_buf_size(((hcm.max_request_headers_kib as usize) << 10).max(8192))
            .header_read_timeout(hcm.request_headers_timeout.or(hcm.idle_timeout))
            .pipeline_flush(true);
        let mut serving = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
        tokio::select! {
            result = serving.as_mut() => result,
            () = drained => {
                serving.as_mut().graceful_shutdown();
                serving.await
            }
        }
    };
    if let Err(error) = result
        && (error.is_parse() || error.is_user())
    {
        count(&stats.downstream_cx_protocol_error);
    }
}

/// Whether the client speaks HTTP/2; `None`: it left or stayed silent.
async fn is_preface(stream: &mut Prefixed, idle: Option<Duration>) -> Option<bool> {
    let looking = stream.look(|bytes, end| {
        let shared = bytes.len().min(PREFACE.len());
        if bytes[..shared] != PREFACE[..shared] {
            Some(false)
        } else if shared == PREFACE.len() {
            Some(true)
        } else if end {
            // A stream that ends within the preface is no request of either kind.
            (!bytes.is_empty()).then_some(false)
        } else {
            None
        }
    });
    match idle {
        Some(idle) => tokio::time::timeout(idle, looking).await.ok()?.ok()?,
        None => looking.await.ok()?,
    }
}
