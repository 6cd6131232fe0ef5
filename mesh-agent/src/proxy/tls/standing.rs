//! Connections that stand, looked at again when trust changes: a peer that would be refused now
//! does not stay because it came earlier.

use std::cell::{Cell, RefCell};
use std::os::fd::{AsRawFd as _, RawFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::sys::socket::{Shutdown, shutdown};
use rustls_pki_types::{CertificateDer, UnixTime};
use slab::Slab;
use tokio::net::TcpStream;
use tokio_rustls::TlsStream;

use crate::config::model::tls::{DownstreamTls, UpstreamTls};
use crate::identity::{Credentials, SpiffeId};
use crate::proxy::sniff::Prefixed;
use crate::workload::Pod;

use super::ahead::Ahead;
use super::peer::{Role, Verifier};
use super::{Contexts, Offer, take_refused};

/// What a connection's peer was judged by, and is judged by again.
#[derive(Debug)]
pub(super) struct Watch {
    side: Side,
    pod: Arc<Pod>,
    id: SpiffeId,
    verifier: Arc<Verifier>,
    chain: Arc<[CertificateDer<'static>]>,
    /// When the handshake was: a certificate that ends later does not end the connection, as in
    /// Envoy.
    at: UnixTime,
}

#[derive(Debug)]
enum Side {
    Upstream(Arc<UpstreamTls>, Option<Offer>),
    Downstream(Arc<DownstreamTls>, bool),
}

impl Watch {
    pub(super) fn upstream(
        tls: &Arc<UpstreamTls>,
        pod: &Arc<Pod>,
        id: SpiffeId,
        offer: Option<&Offer>,
        verifier: Arc<Verifier>,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> Self {
        Self {
            side: Side::Upstream(tls.clone(), offer.cloned()),
            pod: pod.clone(),
            id,
            verifier,
            chain,
            at: UnixTime::now(),
        }
    }

    pub(super) fn downstream(
        tls: &Arc<DownstreamTls>,
        pod: &Arc<Pod>,
        id: SpiffeId,
        with_alpn: bool,
        verifier: Arc<Verifier>,
        chain: Arc<[CertificateDer<'static>]>,
    ) -> Self {
        Self {
            side: Side::Downstream(tls.clone(), with_alpn),
            pod: pod.clone(),
            id,
            verifier,
            chain,
            at: UnixTime::now(),
        }
    }

    /// Who judges such a peer now; `None`: nobody can say.
    pub(super) fn verifier(
        &self,
        contexts: &Contexts,
        credentials: &Credentials,
    ) -> Option<Arc<Verifier>> {
        let (pod, id) = (&self.pod, &self.id);
        match &self.side {
            Side::Upstream(tls, offer) => {
                let made = contexts.made(tls, offer.clone(), pod, id, credentials);
                made.ok().map(|(_, verifier)| verifier)
            }
            Side::Downstream(tls, with_alpn) => {
                let made = contexts.made(tls, *with_alpn, pod, id, credentials);
                made.ok().map(|(_, verifier)| verifier)
            }
        }
    }

    fn role(&self) -> Role {
        match self.side {
            Side::Upstream(..) => Role::Server,
            Side::Downstream(..) => Role::Client,
        }
    }

    /// Whether what it is judged by may change with the view.
    fn has_secrets(&self) -> bool {
        let common = match &self.side {
            Side::Upstream(tls, _) => &tls.common,
            Side::Downstream(tls, _) => &tls.common,
        };
        common.secrets().iter().any(Option::is_some)
    }
}

/// The connections of a worker.
#[derive(Debug, Default)]
pub(super) struct Standing {
    connections: RefCell<Slab<(RawFd, Watch)>>,
    /// Of which credentials and snapshot the peers were judged last.
    judged: Cell<(u64, u64)>,
    /// Connections whose trust comes with the view.
    of_views: Cell<usize>,
}

impl Standing {
    /// Judges every peer again, if anything changed, and breaks off connections of those that
    /// would be refused.
    pub(super) fn review(
        &self,
        credentials: u64,
        snapshot: u64,
        now: impl Fn(&Watch) -> Option<Arc<Verifier>>,
    ) -> usize {
        let judged = self.judged.replace((credentials, snapshot));
        let views_changed = judged.1 != snapshot && self.of_views.get() > 0;
        if judged.0 == credentials && !views_changed {
            return 0;
        }
        let mut closed = 0;
        for (_, (socket, watch)) in &mut *self.connections.borrow_mut() {
            // Without roots or secrets nobody new is served; who was trusted stays.
            let Some(verifier) = now(watch) else {
                continue;
            };
            if !verifier.trusts_as(&watch.verifier)
                && let Err(error) = verifier.judge(&watch.chain, watch.at, watch.role())
            {
                let peer = take_refused()
                    .map(|refused| refused.names)
                    .unwrap_or_default();
                tracing::info!(id = %watch.id, ?peer, %error, "a connection is broken off: its peer is trusted no more");
                // The task that serves it sees the end.
                let _ = shutdown(*socket, Shutdown::Both);
                closed += 1;
            }
            watch.verifier = verifier;
        }
        closed
    }
}

/// TLS over a socket.
pub(in crate::proxy) type Session = TlsStream<Ahead<Prefixed<TcpStream>>>;

fn socket(session: &Session) -> &TcpStream {
    session.get_ref().0.get_ref().get_ref()
}

/// A TLS connection, on the list as long as it lives.
#[derive(Debug)]
pub(in crate::proxy) struct Secured {
    // Dropped before the session, whose socket it names.
    _listed: Listed,
    pub(in crate::proxy) session: Session,
    /// Whether an earlier session went on.
    pub(in crate::proxy) resumed: bool,
}

#[derive(Debug)]
struct Listed {
    standing: Rc<Standing>,
    key: Option<usize>,
    of_view: bool,
}

impl Secured {
    pub(super) fn new(
        session: Session,
        resumed: bool,
        watch: Watch,
        standing: &Rc<Standing>,
    ) -> Self {
        let socket = socket(&session).as_raw_fd();
        // Nobody is judged again who was not judged at all.
        let of_view = watch.has_secrets();
        let key = (!watch.chain.is_empty())
            .then(|| standing.connections.borrow_mut().insert((socket, watch)));
        if key.is_some() && of_view {
            standing.of_views.set(standing.of_views.get() + 1);
        }
        Self {
            _listed: Listed {
                standing: standing.clone(),
                key,
                of_view,
            },
            session,
            resumed,
        }
    }
}

impl Secured {
    /// The socket below.
    pub(in crate::proxy) fn socket(&self) -> &TcpStream {
        socket(&self.session)
    }

    /// Whether a read may find more without asking the socket.
    pub(in crate::proxy) fn holds(&self) -> bool {
        let (socket, session) = self.session.get_ref();
        socket.holds() || !session.wants_read()
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        if let Some(key) = self.key {
            self.standing.connections.borrow_mut().remove(key);
            if self.of_view {
                let of_views = &self.standing.of_views;
                of_views.set(of_views.get() - 1);
            }
        }
    }
}
