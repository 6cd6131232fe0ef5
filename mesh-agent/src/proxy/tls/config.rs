//! rustls configurations from contexts.

use std::path::PathBuf;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCert;
use rustls::server::danger::ClientCertVerifier as _;
use rustls::sign::CertifiedKey;
use rustls::{
    CipherSuite as Suite, ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion,
    version,
};

use rustls_pki_types::{CertificateDer, UnixTime};

use crate::config::model::Name;
use crate::config::model::tls::{
    CertificateSource, CipherSuite, CommonTls, Data, DownstreamTls, TlsVersion, TrustSource,
    UpstreamTls,
};
use crate::identity::{Credentials, PemError, SpiffeId, certificates, certified_key};

use super::Offer;
use super::peer::Verifier;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum TlsError {
    /// The pod's identity has no certificate.
    #[error("{0} has no certificate; see mesh-agent certs, and --ca says who signs them")]
    NoIdentity(SpiffeId),
    /// Nobody said whom the mesh trusts.
    #[error("the mesh's roots are not known; --ca says who signs")]
    NoRoots,
    /// A secret that was not delivered.
    #[error("the secret {0} was not delivered")]
    NoSecret(Name),
    /// A file of the context cannot be read.
    #[error("{path}: {error}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// What a file or the configuration holds is no certificate or key.
    #[error(transparent)]
    Pem(#[from] PemError),
    /// rustls takes it not.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The protocol of Istio's metadata exchange, which the agent does not speak: chosen, it would
/// make the other side wait for what never comes.
const PEER_EXCHANGE: &str = "istio-peer-exchange";

/// The protocols that are offered or taken.
pub(super) fn offered(common: &CommonTls) -> impl Iterator<Item = &Arc<str>> {
    common
        .alpn
        .iter()
        .filter(|protocol| ***protocol != *PEER_EXCHANGE)
}

fn alpn(common: &CommonTls) -> Vec<Vec<u8>> {
    offered(common)
        .map(|protocol| protocol.as_bytes().to_vec())
        .collect()
}

/// For connections to an endpoint.
pub(super) fn client(
    tls: &UpstreamTls,
    credentials: &Credentials,
    id: &SpiffeId,
    offer: Option<&Offer>,
) -> Result<ClientConfig, TlsError> {
    let common = &tls.common;
    let provider = provider(common);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(common))?
        .dangerous()
        .with_custom_certificate_verifier(verifier(common, credentials, provider, false)?);
    let mut config = match certificate(common, credentials, id)? {
        Some(key) => builder.with_client_cert_resolver(Arc::new(Fixed(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match offer {
        Some(offer) => offer.iter().map(|name| name.as_bytes().to_vec()).collect(),
        None => alpn(common),
    };
    config.enable_sni = tls.sni.is_some();
    Ok(config)
}

/// For connections of clients.
pub(super) fn server(
    tls: &DownstreamTls,
    credentials: &Credentials,
    id: &SpiffeId,
    with_alpn: bool,
) -> Result<ServerConfig, TlsError> {
    let common = &tls.common;
    let provider = provider(common);
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions(common))?;
    let builder = if common.validation.is_some() {
        let mandatory = tls.require_client_certificate;
        builder.with_client_cert_verifier(verifier(common, credentials, provider, mandatory)?)
    } else {
        builder.with_no_client_auth()
    };
    let key = certificate(common, credentials, id)?.ok_or(TlsError::NoIdentity(id.clone()))?;
    let mut config = builder.with_cert_resolver(Arc::new(Fixed(key)));
    if with_alpn {
        config.alpn_protocols = alpn(common);
    }
    Ok(config)
}

/// Whether a client's chain is accepted.
pub(super) fn admits(
    tls: &DownstreamTls,
    credentials: &Credentials,
    chain: &[CertificateDer<'static>],
) -> bool {
    let Some((leaf, between)) = chain.split_first() else {
        return false;
    };
    verifier(&tls.common, credentials, provider(&tls.common), true).is_ok_and(|verifier| {
        verifier
            .verify_client_cert(leaf, between, UnixTime::now())
            .is_ok()
    })
}

fn versions(common: &CommonTls) -> &'static [&'static SupportedProtocolVersion] {
    static ONLY_12: [&SupportedProtocolVersion; 1] = [&version::TLS12];
    static ONLY_13: [&SupportedProtocolVersion; 1] = [&version::TLS13];
    static BOTH: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
    match (common.min_version, common.max_version) {
        (TlsVersion::V12, TlsVersion::V12) => &ONLY_12,
        (TlsVersion::V12, TlsVersion::V13) => &BOTH,
        (TlsVersion::V13, _) => &ONLY_13,
    }
}

/// All suites of TLS 1.3, and of 1.2 those that were chosen, in that order.
fn provider(common: &CommonTls) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    if !common.cipher_suites.is_empty() {
        let all = std::mem::take(&mut provider.cipher_suites);
        let chosen = common.cipher_suites.iter().filter_map(|chosen| {
            all.iter()
                .find(|suite| suite.suite() == number(*chosen))
                .copied()
        });
        provider.cipher_suites = all
            .iter()
            .filter(|suite| suite.tls13().is_some())
            .copied()
            .chain(chosen)
            .collect();
    }
    Arc::new(provider)
}

fn number(suite: CipherSuite) -> Suite {
    match suite {
        CipherSuite::EcdheEcdsaAes256GcmSha384 => Suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheRsaAes256GcmSha384 => Suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        CipherSuite::EcdheEcdsaAes128GcmSha256 => Suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheRsaAes128GcmSha256 => Suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        CipherSuite::EcdheEcdsaChacha20Poly1305 => {
            Suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256
        }
        CipherSuite::EcdheRsaChacha20Poly1305 => Suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    }
}

fn certificate(
    common: &CommonTls,
    credentials: &Credentials,
    id: &SpiffeId,
) -> Result<Option<Arc<CertifiedKey>>, TlsError> {
    match &common.certificate {
        CertificateSource::None => Ok(None),
        CertificateSource::Workload => match credentials.identities.get(id) {
            Some(identity) => Ok(Some(identity.key.clone())),
            None => Err(TlsError::NoIdentity(id.clone())),
        },
        CertificateSource::Data { chain, key } => {
            Ok(Some(certified_key(&read(chain)?, &read(key)?)?))
        }
        CertificateSource::Secret(name) => Err(TlsError::NoSecret(name.clone())),
    }
}

pub(super) fn verifier(
    common: &CommonTls,
    credentials: &Credentials,
    provider: Arc<CryptoProvider>,
    mandatory: bool,
) -> Result<Arc<Verifier>, TlsError> {
    let validation = common.validation.as_ref();
    let roots = match validation.map(|validation| &validation.trust) {
        None | Some(TrustSource::None) => None,
        Some(TrustSource::Mesh) => Some(credentials.roots.clone().ok_or(TlsError::NoRoots)?),
        Some(TrustSource::Data(data)) => Some(Arc::new(roots(&read(data)?)?)),
        Some(TrustSource::Secret(name)) => return Err(TlsError::NoSecret(name.clone())),
    };
    let crls = match validation.and_then(|validation| validation.crl.as_ref()) {
        Some(crl) => super::peer::revocations(&read(crl)?)?,
        None => Vec::new(),
    };
    let names = validation.map_or_else(Vec::new, |validation| validation.names.clone());
    Ok(Arc::new(Verifier::new(
        roots, names, crls, provider, mandatory,
    )))
}

fn roots(pem: &[u8]) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for root in certificates(pem)? {
        store.add(root)?;
    }
    Ok(store)
}

/// Small files, read once for a configuration.
fn read(data: &Data) -> Result<Vec<u8>, TlsError> {
    match data {
        Data::Inline(bytes) => Ok(bytes.to_vec()),
        Data::File(path) => std::fs::read(path).map_err(|error| TlsError::File {
            path: path.clone(),
            error,
        }),
    }
}

/// Always the same certificate.
#[derive(Debug)]
struct Fixed(Arc<CertifiedKey>);

impl ResolvesClientCert for Fixed {
    fn resolve(
        &self,
        _roots: &[&[u8]],
        _schemes: &[rustls::SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Fixed {
    fn resolve(&self, _hello: rustls::server::ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}
