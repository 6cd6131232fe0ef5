//! TLS on either side: contexts of the configuration with the certificates of the moment.
//!
//! A rustls configuration is made once for a context and an identity, by whichever worker needs
//! it first, and again when certificates, secrets or trust change. Without the certificate that a
//! context asks for there is no configuration, and no connection: nothing goes on in the clear
//! instead.

mod ahead;
mod certificate;
mod config;
mod introduce;
mod known;
mod made;
mod material;
mod peer;
pub(super) mod report;
mod spiffe;
mod standing;
#[cfg(test)]
mod tests;

use std::io;
use std::rc::Rc;
use std::sync::Arc;

use rustls::{ClientConfig, HandshakeKind};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::config::model::tls::{DownstreamTls, UpstreamTls};
use crate::identity::{Credentials, SharedCredentials, SpiffeId};
use crate::snapshot::SharedSnapshot;
use crate::workload::Pod;

use ahead::Ahead;
pub(crate) use certificate::Certificate;
pub(super) use introduce::offers;
pub(super) use made::Store;
pub(super) use peer::{Refused, take_refused};
pub(super) use standing::{Secured, Session};

use made::{Cache, Context};
use peer::Role;
use standing::{Standing, Watch};

use super::sniff::Prefixed;
use super::stream::Stream;

/// Who is at the other end of a TLS connection.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// Whether there is TLS.
    pub(super) encrypted: bool,
    /// The names in its certificate; `None`: it showed none.
    pub(super) names: Option<Arc<[Arc<str>]>>,
    /// Its certificate.
    pub(super) certificate: Option<Arc<Certificate>>,
    /// Who we are to it.
    pub(super) local: Option<SpiffeId>,
    /// The name it asked for.
    pub(super) server_name: Option<Arc<str>>,
}

/// Protocols offered in a handshake.
pub(super) type Offer = Arc<[Arc<str>]>;

/// TLS of one worker.
#[derive(Debug)]
pub(super) struct Contexts {
    credentials: SharedCredentials,
    snapshots: SharedSnapshot,
    trust_domain: Arc<str>,
    cache: Cache,
    standing: Rc<Standing>,
}

impl Contexts {
    pub(super) fn new(
        credentials: SharedCredentials,
        snapshots: SharedSnapshot,
        trust_domain: Arc<str>,
        store: Arc<Store>,
    ) -> Self {
        Self {
            credentials,
            snapshots,
            trust_domain,
            cache: Cache::new(store),
            standing: Rc::default(),
        }
    }

    /// The identity of a workload.
    pub(super) fn identity(&self, workload: &crate::config::model::workload::Workload) -> SpiffeId {
        SpiffeId::of(workload, &self.trust_domain)
    }

    /// The configuration of a context for a pod, the same one as long as neither certificates nor
    /// trust change.
    ///
    /// # Errors
    /// There is no certificate.
    pub(super) fn client(
        &self,
        tls: &Arc<UpstreamTls>,
        pod: &Pod,
        offer: Option<&Offer>,
    ) -> io::Result<Arc<ClientConfig>> {
        let id = self.identity(&pod.workload);
        let made = self.made(tls, offer.cloned(), pod, &id, &self.credentials.load())?;
        Ok(made.0)
    }

    /// Which certificates and roots hold now.
    pub(super) fn generation(&self) -> u64 {
        self.credentials.load().generation
    }

    /// The certificates and roots of now.
    pub(super) fn current(&self) -> Arc<Credentials> {
        self.credentials.load_full()
    }

    /// Whether a client that showed this certificate before would be let in now.
    pub(super) fn admits(
        &self,
        tls: &Arc<DownstreamTls>,
        pod: &Pod,
        certificate: &Certificate,
    ) -> bool {
        let id = self.identity(&pod.workload);
        self.made(tls, true, pod, &id, &self.credentials.load())
            .is_ok_and(|(_, verifier)| {
                let chain = certificate.chain();
                !chain.is_empty() && verifier.judge(chain, UnixTime::now(), Role::Client).is_ok()
            })
    }

    /// A configuration for a pod.
    fn made<C: Context>(
        &self,
        tls: &Arc<C>,
        variant: C::Variant,
        pod: &Pod,
        id: &SpiffeId,
        credentials: &Credentials,
    ) -> io::Result<config::Made<C::Config>> {
        let snapshot = self.snapshots.load();
        let view = snapshot.view(pod.view());
        let secrets = view.map(|view| &*view.resources.secrets);
        self.cache
            .get(tls, variant, id, secrets, credentials)
            .map_err(io::Error::other)
    }

    /// Speaks TLS to an endpoint on behalf of a pod, and offers these protocols instead of the
    /// context's.
    ///
    /// # Errors
    /// There is no certificate, or the endpoint is not who it should be.
    pub(super) async fn connect(
        &self,
        tls: &Arc<UpstreamTls>,
        pod: &Arc<Pod>,
        offer: Option<&Offer>,
        stream: TcpStream,
    ) -> io::Result<Stream> {
        let id = self.identity(&pod.workload);
        let (config, verifier) =
            self.made(tls, offer.cloned(), pod, &id, &self.credentials.load())?;
        let name = match tls.sni.as_deref() {
            Some(sni) => ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?,
            // No name is sent for an address.
            None => ServerName::from(stream.peer_addr()?.ip()),
        };
        let session = connect(config, name, stream).await?;
        let (_, connection) = session.get_ref();
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = connection.peer_certificates().unwrap_or_default();
        if resumed {
            // What was good when the session began may have ended since.
            verifier
                .judge(chain, UnixTime::now(), Role::Server)
                .map_err(io::Error::other)?;
        }
        let chain = shared(known::certificate(chain).as_deref());
        let watch = Watch::upstream(tls, pod, id, offer, verifier, chain);
        Ok(Stream::Tls(Box::new(Secured::new(
            session,
            resumed,
            watch,
            &self.standing,
        ))))
    }

    /// Ends a client's TLS on behalf of a pod. `offered` are the protocols it named.
    ///
    /// # Errors
    /// There is no certificate, or the client is not who it should be.
    pub(super) async fn accept(
        &self,
        tls: &Arc<DownstreamTls>,
        pod: &Arc<Pod>,
        offered: &[String],
        stream: Prefixed<TcpStream>,
    ) -> io::Result<(Stream, Peer)> {
        // As Envoy: without a protocol both know, none is chosen; that is no error.
        let common =
            config::offered(&tls.common).any(|ours| offered.iter().any(|theirs| *theirs == **ours));
        let id = self.identity(&pod.workload);
        let (config, verifier) = self.made(tls, common, pod, &id, &self.credentials.load())?;
        let session = TlsAcceptor::from(config).accept(Ahead::new(stream)).await?;
        let (_, connection) = session.get_ref();
        let resumed = connection.handshake_kind() == Some(HandshakeKind::Resumed);
        let chain = connection.peer_certificates().unwrap_or_default();
        if resumed {
            verifier
                .judge(chain, UnixTime::now(), Role::Client)
                .map_err(io::Error::other)?;
        }
        let certificate = known::certificate(chain);
        let chain = shared(certificate.as_deref());
        let peer = Peer {
            encrypted: true,
            names: certificate
                .as_ref()
                .map(|certificate| certificate.bare_names.clone()),
            certificate,
            local: Some(id.clone()),
            server_name: connection.server_name().map(Into::into),
        };
        let watch = Watch::downstream(tls, pod, id, common, verifier, chain);
        let session = TlsStream::Server(session);
        let secured = Secured::new(session, resumed, watch, &self.standing);
        Ok((Stream::Tls(Box::new(secured)), peer))
    }

    /// Breaks off the connections of peers that are trusted no more, and says how many there were.
    /// Costs nothing while certificates and secrets stay as they are.
    pub(super) fn review(&self) -> usize {
        let credentials = self.credentials.load();
        let snapshot = self.snapshots.load().generation;
        self.standing
            .review(credentials.generation, snapshot, |watch| {
                watch.verifier(self, &credentials)
            })
    }
}

/// A certificate's chain; none has an empty one.
fn shared(certificate: Option<&Certificate>) -> Arc<[CertificateDer<'static>]> {
    certificate.map_or_else(Arc::default, Certificate::shared_chain)
}

/// Speaks TLS to an endpoint.
///
/// # Errors
/// The endpoint is not who it should be.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> io::Result<Session> {
    let stream = Ahead::new(Prefixed::new(stream));
    let session = TlsConnector::from(config).connect(name, stream).await?;
    Ok(TlsStream::Client(session))
}
