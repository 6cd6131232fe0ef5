//! Whether a peer is who it should be: its chain, and its names.
//!
//! As in Envoy, which name is asked for in the handshake has no part in it: the context says
//! which names will do.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage, OwnedCertRevocationList};

use crate::config::model::tls::{NameKind, NameMatcher};
use crate::identity::PemError;

use super::certificate::typed_names;

/// Judges certificates of either side.
#[derive(Debug)]
pub(super) struct Verifier {
    /// `None`: every chain will do.
    roots: Option<Arc<RootCertStore>>,
    /// One of them must match; empty: every name will do.
    names: Vec<NameMatcher>,
    crls: Vec<OwnedCertRevocationList>,
    provider: Arc<CryptoProvider>,
    /// A client without a certificate is refused.
    mandatory: bool,
}

impl Verifier {
    pub(super) fn new(
        roots: Option<Arc<RootCertStore>>,
        names: Vec<NameMatcher>,
        crls: Vec<OwnedCertRevocationList>,
        provider: Arc<CryptoProvider>,
        mandatory: bool,
    ) -> Self {
        Self {
            roots,
            names,
            crls,
            provider,
            mandatory,
        }
    }

    pub(super) fn judge(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        if let Some(roots) = &self.roots {
            self.judge_chain(roots, leaf, between, now, usage)?;
        }
        if self.names.is_empty() {
            return Ok(());
        }
        let wanted = |kind: NameKind, name: &str| {
            let mut names = self.names.iter();
            names.any(|matcher| matcher.matches(kind, name))
        };
        let names = typed_names(leaf);
        if names.iter().any(|(kind, name)| wanted(*kind, name)) {
            return Ok(());
        }
        let names: Vec<&str> = names.iter().map(|(_, name)| &**name).collect();
        Err(Error::General(format!(
            "none of the names of its certificate will do: {}",
            names.join(", ")
        )))
    }

    fn judge_chain(
        &self,
        roots: &RootCertStore,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        usage: KeyUsage,
    ) -> Result<(), Error> {
        let certificate = EndEntityCert::try_from(leaf).map_err(|error| told(&error))?;
        let crls: Vec<webpki::CertRevocationList<'_>> =
            self.crls.iter().cloned().map(Into::into).collect();
        let crls: Vec<&webpki::CertRevocationList<'_>> = crls.iter().collect();
        let revocation = match &crls[..] {
            [] => None,
            lists => webpki::RevocationOptionsBuilder::new(lists)
                .ok()
                .map(|options| {
                    options
                        .with_status_policy(webpki::UnknownStatusPolicy::Allow)
                        .build()
                }),
        };
        certificate
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &roots.roots,
                between,
                now,
                usage,
                revocation,
                None,
            )
            .map(drop)
            .map_err(|error| told(&error))
    }
}

fn told(error: &webpki::Error) -> Error {
    let why = match error {
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::UnknownIssuer => CertificateError::UnknownIssuer,
        webpki::Error::CertRevoked => CertificateError::Revoked,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        other => return Error::General(format!("its certificate is not valid: {other:?}")),
    };
    Error::InvalidCertificate(why)
}

/// Revocation lists of a text in PEM.
pub(super) fn revocations(pem: &[u8]) -> Result<Vec<OwnedCertRevocationList>, PemError> {
    let wrong = |reason: String| PemError::Certificate(format!("revocation list: {reason}"));
    CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|list| {
            let list = list.map_err(|error| wrong(error.to_string()))?;
            OwnedCertRevocationList::from_der(&list).map_err(|error| wrong(format!("{error:?}")))
        })
        .collect()
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judge(leaf, between, now, KeyUsage::server_auth())
            .map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, leaf, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, leaf, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.judge(leaf, between, now, KeyUsage::client_auth())
            .map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls12_signature(self, message, leaf, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        ServerCertVerifier::verify_tls13_signature(self, message, leaf, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ServerCertVerifier::supported_verify_schemes(self)
    }
}
