//! rustls configurations from contexts.

use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::server::ResolvesServerCert;
use rustls::sign::CertifiedKey;
use rustls::{CipherSuite as Suite, ClientConfig, ServerConfig, SupportedProtocolVersion, version};

use crate::config::model::tls::{CipherSuite, CommonTls, DownstreamTls, TlsVersion, UpstreamTls};
use crate::identity::SpiffeId;

use super::Offer;
use super::material::{Parts, TlsError};
use super::peer::Verifier;

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

/// A configuration and the verifier in it.
pub(super) type Made<C> = (Arc<C>, Arc<Verifier>);

/// For connections to an endpoint.
pub(super) fn client(
    tls: &UpstreamTls,
    parts: Parts,
    offer: Option<&Offer>,
) -> Result<Made<ClientConfig>, TlsError> {
    let common = &tls.common;
    let provider = provider(common);
    let verifier = Arc::new(parts.verifier(provider.clone(), false));
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions(common))?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone());
    let mut config = match parts.key {
        Some(key) => builder.with_client_cert_resolver(Arc::new(Fixed(key))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = match offer {
        Some(offer) => offer.iter().map(|name| name.as_bytes().to_vec()).collect(),
        None => alpn(common),
    };
    config.enable_sni = tls.sni.is_some();
    Ok((Arc::new(config), verifier))
}

/// For connections of clients.
pub(super) fn server(
    tls: &DownstreamTls,
    parts: Parts,
    id: &SpiffeId,
    with_alpn: bool,
) -> Result<Made<ServerConfig>, TlsError> {
    let common = &tls.common;
    let provider = provider(common);
    let verifier = Arc::new(parts.verifier(provider.clone(), tls.require_client_certificate));
    let builder =
        ServerConfig::builder_with_provider(provider).with_protocol_versions(versions(common))?;
    let builder = if common.validation.is_some() {
        builder.with_client_cert_verifier(verifier.clone())
    } else {
        builder.with_no_client_auth()
    };
    let key = parts.key.ok_or_else(|| TlsError::NoIdentity(id.clone()))?;
    let mut config = builder.with_cert_resolver(Arc::new(Fixed(key)));
    if with_alpn {
        config.alpn_protocols = alpn(common);
    }
    // The state of a session is in its ticket, under keys that live in this configuration alone:
    // whichever worker a client comes back to can read it, and nobody can once certificates or
    // trust changed.
    config.ticketer = aws_lc_rs::Ticketer::new()?;
    config.send_tls13_tickets = 1;
    Ok((Arc::new(config), verifier))
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
///
/// AES-128 comes first, as in Envoy (BoringSSL, where the processor has AES): its hash is SHA-256,
/// which processors compute by themselves, unlike SHA-384.
pub(super) fn provider(common: &CommonTls) -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    let all = std::mem::take(&mut provider.cipher_suites);
    let (mut suites, of_12): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|suite| suite.tls13().is_some());
    suites.sort_by_key(|suite| suite.suite() != Suite::TLS13_AES_128_GCM_SHA256);
    if common.cipher_suites.is_empty() {
        suites.extend(of_12);
    } else {
        let chosen = common.cipher_suites.iter().filter_map(|chosen| {
            let mut all = of_12.iter();
            all.find(|suite| suite.suite() == number(*chosen)).copied()
        });
        suites.extend(chosen);
    }
    provider.cipher_suites = suites;
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
