//! TLS on either side: contexts of the configuration with the certificates of the moment.
//!
//! A worker makes a rustls configuration once for a context and an identity, and again when
//! certificates or roots change. Without the certificate that a context asks for there is no
//! configuration, and no connection: nothing goes on in the clear instead.

mod certificate;
mod config;
mod introduce;
mod peer;
pub(super) mod report;

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use crate::config::model::tls::{DownstreamTls, UpstreamTls};
use crate::identity::{Credentials, SharedCredentials, SpiffeId};

pub(crate) use certificate::Certificate;
pub(super) use introduce::offers;

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

/// The configurations a worker has made.
#[derive(Debug)]
pub(super) struct Contexts {
    credentials: SharedCredentials,
    trust_domain: Arc<str>,
    made: RefCell<Made>,
}

/// By context and identity. What is made holds on to its context, so no address stands for two.
#[derive(Debug, Default)]
struct Made {
    generation: u64,
    clients: HashMap<ClientKey, (Arc<UpstreamTls>, Arc<ClientConfig>)>,
    /// With protocols to choose from, or without.
    servers: [Cache<DownstreamTls, ServerConfig>; 2],
}

/// Context, identity, and what is offered instead of the context's protocols.
type ClientKey = (usize, SpiffeId, Option<Offer>);

/// Protocols offered in a handshake.
pub(super) type Offer = Arc<[Arc<str>]>;

type Cache<C, M> = HashMap<(usize, SpiffeId), (Arc<C>, Arc<M>)>;

impl Contexts {
    pub(super) fn new(credentials: SharedCredentials, trust_domain: Arc<str>) -> Self {
        Self {
            credentials,
            trust_domain,
            made: RefCell::default(),
        }
    }

    /// The identity of a workload.
    pub(super) fn identity(&self, workload: &crate::config::model::workload::Workload) -> SpiffeId {
        SpiffeId::of(workload, &self.trust_domain)
    }

    /// The configuration of a context and an identity, the same one as long as neither
    /// certificates nor roots change.
    ///
    /// # Errors
    /// There is no certificate.
    pub(super) fn client(
        &self,
        tls: &Arc<UpstreamTls>,
        id: &SpiffeId,
        offer: Option<&Offer>,
    ) -> Result<Arc<ClientConfig>, config::TlsError> {
        let credentials = self.credentials.load();
        let made = &mut *self.made.borrow_mut();
        made.renew(credentials.generation);
        let key = (Arc::as_ptr(tls).addr(), id.clone(), offer.cloned());
        if let Some((_, config)) = made.clients.get(&key) {
            return Ok(config.clone());
        }
        let config = Arc::new(config::client(tls, &credentials, id, offer)?);
        made.clients.insert(key, (tls.clone(), config.clone()));
        Ok(config)
    }

    fn server(
        &self,
        tls: &Arc<DownstreamTls>,
        id: &SpiffeId,
        alpn: bool,
    ) -> Result<Arc<ServerConfig>, config::TlsError> {
        let credentials = self.credentials.load();
        let made = &mut *self.made.borrow_mut();
        made.renew(credentials.generation);
        let servers = &mut made.servers[usize::from(alpn)];
        let key = (Arc::as_ptr(tls).addr(), id.clone());
        if let Some((_, config)) = servers.get(&key) {
            return Ok(config.clone());
        }
        let config = Arc::new(config::server(tls, &credentials, id, alpn)?);
        servers.insert(key, (tls.clone(), config.clone()));
        Ok(config)
    }

    /// Speaks TLS to an endpoint as `id`, and offers these protocols instead of the context's.
    ///
    /// # Errors
    /// There is no certificate, or the endpoint is not who it should be.
    pub(super) async fn connect(
        &self,
        tls: &Arc<UpstreamTls>,
        id: &SpiffeId,
        offer: Option<&Offer>,
        stream: TcpStream,
    ) -> io::Result<Stream> {
        let config = self.client(tls, id, offer).map_err(io::Error::other)?;
        let name = match tls.sni.as_deref() {
            Some(sni) => ServerName::try_from(sni.to_owned()).map_err(io::Error::other)?,
            // No name is sent for an address.
            None => ServerName::from(stream.peer_addr()?.ip()),
        };
        let session = connect(config, name, stream).await?;
        Ok(Stream::Tls(Box::new(session)))
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
    pub(super) fn admits(&self, tls: &DownstreamTls, certificate: &Certificate) -> bool {
        config::admits(tls, &self.credentials.load(), certificate.chain())
    }

    /// Ends a client's TLS as `id`. `offered` are the protocols it named.
    ///
    /// # Errors
    /// There is no certificate, or the client is not who it should be.
    pub(super) async fn accept(
        &self,
        tls: &Arc<DownstreamTls>,
        id: &SpiffeId,
        offered: &[String],
        stream: Prefixed<TcpStream>,
    ) -> io::Result<(Stream, Peer)> {
        // As Envoy: without a protocol both know, none is chosen; that is no error.
        let common =
            config::offered(&tls.common).any(|ours| offered.iter().any(|theirs| *theirs == **ours));
        let config = self.server(tls, id, common).map_err(io::Error::other)?;
        let session = TlsAcceptor::from(config).accept(stream).await?;
        let (_, connection) = session.get_ref();
        let certificate = connection
            .peer_certificates()
            .and_then(Certificate::of)
            .map(Arc::new);
        let peer = Peer {
            encrypted: true,
            names: certificate.as_ref().map(|certificate| {
                certificate
                    .names
                    .iter()
                    .map(|(_, name)| name.clone())
                    .collect()
            }),
            certificate,
            local: Some(id.clone()),
            server_name: connection.server_name().map(Into::into),
        };
        Ok((Stream::Tls(Box::new(TlsStream::Server(session))), peer))
    }
}

/// Speaks TLS to an endpoint.
///
/// # Errors
/// The endpoint is not who it should be.
pub(super) async fn connect(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    stream: TcpStream,
) -> io::Result<TlsStream<Prefixed<TcpStream>>> {
    let stream = Prefixed::new(stream);
    let session = TlsConnector::from(config).connect(name, stream).await?;
    Ok(TlsStream::Client(session))
}

impl Made {
    /// Forgets everything when certificates or roots changed: sessions of the old ones are not
    /// resumed, either.
    fn renew(&mut self, generation: u64) {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
    }
}
