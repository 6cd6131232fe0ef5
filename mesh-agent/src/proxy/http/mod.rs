//! HTTP: a downstream connection served by hyper, each request routed on the newest snapshot.

mod admit;
pub(super) mod alarm;
mod attempts;
mod body;
mod call;
mod client_cert;
mod compressed;
mod date;
mod early;
mod exchange;
mod filters;
mod forward;
mod grpc_messages;
pub(super) mod h1;
mod hash;
mod headers;
mod http2;
mod internal_redirect;
mod limits;
mod lines;
mod local;
mod local_reply;
mod message;
pub(super) mod micro;
mod mirror;
mod normal;
pub(super) mod pool;
mod queue;
mod record;
mod redirect;
mod replay;
mod reply;
mod retry;
mod rewrite;
mod router;
mod timeouts;
mod told;
mod unread;
mod upgrade;
mod upstream;

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::config::model::Name;
use crate::config::model::listener::{Codec, HttpConnectionManager, Terminal};
use crate::snapshot::View;

use tokio::sync::Notify;

use super::accept::Caught;
use super::sniff::{PREFACE, Prefixed};
use super::stream::Stream;
use super::tls::Peer;
use super::worker::Context;
use body::Progress;
use local::Here;
pub(super) use retry::Tried;

/// Which filter chain a connection was given to.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) listener: Name,
    pub(super) chain: Name,
    pub(super) key: u64,
    /// Who is at the other end.
    pub(super) peer: Peer,
}

/// What the requests of a connection share.
pub(super) struct Connection {
    pub(super) context: Rc<Context>,
    pub(super) caught: Caught,
    /// As it was when the connection was accepted.
    first: Arc<HttpConnectionManager>,
    place: Place,
    /// Whether its filter chain is gone.
    outlived: Cell<bool>,
    ending: Notify,
    /// Requests served.
    served: Cell<u32>,
    /// Of HTTP/2.
    streams: http2::Streams,
    /// When it must end at the latest.
    ends: Option<Instant>,
    /// The servers' side of it, at pods of this node.
    here: RefCell<Vec<Here>>,
    /// The identity of the pod.
    principal: OnceCell<Arc<str>>,
}

impl Connection {
    fn new(
        context: Rc<Context>,
        caught: Caught,
        hcm: Arc<HttpConnectionManager>,
        place: Place,
    ) -> Self {
        let ends = hcm
            .max_connection_duration
            .map(|most| Instant::now() + most);
        Self {
            context,
            caught,
            first: hcm,
            place,
            outlived: Cell::new(false),
            ending: Notify::new(),
            served: Cell::new(0),
            streams: http2::Streams::default(),
            ends,
            here: RefCell::default(),
            principal: OnceCell::new(),
        }
    }

    /// The newest snapshot's view and connection manager. A filter chain that is gone or of another
    /// kind now serves what has begun as it was, and its connections end.
    fn current(&self) -> Option<(Arc<View>, Arc<HttpConnectionManager>)> {
        let view = self.context.shared.view(&self.caught.pod)?;
        let listener = match self.caught.kind {
            super::ListenerKind::Outbound => view.outbound.find(self.caught.destination),
            super::ListenerKind::Inbound => view.inbound.as_ref(),
            super::ListenerKind::Hbone => view.behind_tunnels(),
        };
        let hcm = listener
            .filter(|listener| listener.name == self.place.listener)
            .and_then(|listener| {
                listener
                    .filter_chains
                    .iter()
                    .chain(&listener.default_filter_chain)
                    .find(|chain| chain.key == self.place.key)
            })
            .and_then(|chain| match &chain.terminal {
                Terminal::Http(hcm) => Some(hcm.clone()),
                Terminal::Tcp(_) => None,
            })
            .unwrap_or_else(|| {
                self.outlived();
                self.first.clone()
            });
        Some((view, hcm))
    }

    /// The identity of the pod.
    fn principal(&self) -> &Arc<str> {
        self.principal.get_or_init(|| {
            let id = self.context.tls.identity(&self.caught.pod.workload);
            id.name().clone()
        })
    }

    /// Who is at the other end.
    fn peer(&self) -> &Peer {
        &self.place.peer
    }

    /// How the client speaks, as `x-forwarded-proto` has it.
    fn scheme(&self) -> &'static str {
        if self.place.peer.encrypted {
            "https"
        } else {
            "http"
        }
    }

    /// The names in the client's certificate; `None`: it showed none, as without TLS.
    fn peer_names(&self) -> Option<&[Arc<str>]> {
        self.place.peer.names.as_deref()
    }

    /// The name the client asked for in its TLS handshake; empty without TLS.
    fn server_name(&self) -> &str {
        self.place.peer.server_name.as_deref().unwrap_or_default()
    }

    /// The connection manager that accepted it.
    fn first(&self) -> &HttpConnectionManager {
        &self.first
    }

    /// Counts a response and says whether the connection ends after it: because the agent
    /// drains, because it has served enough, or because what is left of the request would have
    /// to be read before the next one.
    fn ends_after(&self, hcm: &HttpConnectionManager, progress: &Progress) -> bool {
        let served = self.served.get() + 1;
        self.served.set(served);
        !progress.ended()
            || *self.context.draining.borrow()
            || self.outlived.get()
            || hcm
                .max_requests_per_connection
                .is_some_and(|max| served >= max)
            || self.ends.is_some_and(|ends| Instant::now() >= ends)
    }

    /// Counts a stream of HTTP/2; the connection ends after the last one it may serve.
    fn count_stream(&self) {
        let served = self.served.get() + 1;
        self.served.set(served);
        let most = self.first.max_requests_per_connection;
        if most.is_some_and(|most| served >= most) {
            self.ending.notify_one();
        }
    }

    /// The filter chain is gone: no further request is served by what it said.
    fn outlived(&self) {
        self.outlived.set(true);
        self.ending.notify_one();
    }

    /// Ends when the agent drains, the filter chain is gone, or the connection is old enough.
    async fn drained(&self) {
        // The sender lives as long as the worker.
        let mut draining = self.context.draining.clone();
        let aged = async {
            match self.ends {
                Some(ends) => tokio::time::sleep_until(ends.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = draining.wait_for(|draining| *draining) => {}
            () = self.ending.notified() => {}
            () = aged => {}
        }
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
    mut stream: Prefixed<Stream>,
) {
    let http2 = match hcm.codec {
        Codec::Http1 => false,
        Codec::Http2 => true,
        Codec::Auto => match is_preface(&mut stream, hcm.idle_timeout).await {
            Some(http2) => http2,
            None => return,
        },
    };
    let connection = Rc::new(Connection::new(context, caught, hcm.clone(), place));
    if http2 {
        http2::serve(&connection, stream, &hcm).await;
    } else {
        h1::server::serve(&connection, stream, &hcm).await;
    }
}

/// Whether the client speaks HTTP/2; `None`: it left or stayed silent.
async fn is_preface(stream: &mut Prefixed<Stream>, idle: Option<Duration>) -> Option<bool> {
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
