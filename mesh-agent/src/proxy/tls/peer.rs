//! Whether a peer is who it should be: its chain, and its names.
//!
//! As in Envoy, which name is asked for in the handshake has no part in it: the context says
//! which names will do.

use std::cell::Cell;
use std::collections::HashMap;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::config::model::secret::Secret;
use crate::config::model::tls::{NameKind, NameMatcher};
use crate::identity::Fault;
use crate::identity::files::Revocations;

use super::certificate::typed_names;
use super::known::Judged;
use super::spiffe;

/// Who may have signed a peer's certificate.
#[derive(Debug, Clone)]
pub(super) enum Trust {
    /// Everybody: every chain will do.
    Anybody,
    /// These.
    Roots(Arc<RootCertStore>),
    /// Those of the trust domain that the peer's SPIFFE id is of.
    Domains(HashMap<Arc<str>, Arc<RootCertStore>>),
}

impl Trust {
    /// Whether it is the very same.
    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Anybody, Self::Anybody) => true,
            (Self::Roots(one), Self::Roots(other)) => Arc::ptr_eq(one, other),
            (Self::Domains(one), Self::Domains(other)) => {
                one.len() == other.len()
                    && one.iter().all(|(name, roots)| {
                        other
                            .get(name)
                            .is_some_and(|other| Arc::ptr_eq(roots, other))
                    })
            }
            _ => false,
        }
    }
}

/// Judges certificates of either side.
#[derive(Debug)]
pub(super) struct Verifier {
    /// No other verifier of this process has it.
    pub(super) number: u64,
    pub(super) trust: Trust,
    /// One of them must match; empty: every name will do.
    pub(super) names: Vec<NameMatcher>,
    pub(super) crls: Revocations,
    /// What the context was completed with.
    pub(super) secret: Option<Arc<Secret>>,
    pub(super) provider: Arc<CryptoProvider>,
    /// A client without a certificate is refused.
    pub(super) mandatory: bool,
}

/// A peer that was refused.
#[derive(Debug)]
pub(in crate::proxy) struct Refused {
    pub(in crate::proxy) fault: Fault,
    /// Who it says it is.
    pub(in crate::proxy) names: Vec<Arc<str>>,
}

thread_local! {
    /// The peer that the verifier refused last: rustls has no room for it in its error.
    static REFUSED: Cell<Option<Refused>> = const { Cell::new(None) };
}

/// Who was refused in the handshake that has just failed. To be asked without a pause in between.
pub(in crate::proxy) fn take_refused() -> Option<Refused> {
    REFUSED.take()
}

/// Which part of a chain's use is judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// The peer is a server.
    Server,
    /// The peer is a client.
    Client,
}

impl Verifier {
    /// Whether it trusts the same as another one that was made of the same context.
    pub(super) fn trusts_as(&self, other: &Self) -> bool {
        self.trust.is(&other.trust)
            && Arc::ptr_eq(&self.crls, &other.crls)
            && match (&self.secret, &other.secret) {
                (None, None) => true,
                (Some(one), Some(other)) => Arc::ptr_eq(one, other),
                _ => false,
            }
    }

    /// Judges a chain as in a handshake at that time.
    ///
    /// # Errors
    /// It will not do.
    pub(super) fn judge(
        &self,
        chain: &[CertificateDer<'_>],
        at: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let Some((leaf, between)) = chain.split_first() else {
            return if self.mandatory || role == Role::Server {
                Err(Error::NoCertificatesPresented)
            } else {
                Ok(())
            };
        };
        self.judged(leaf, between, at, role)
    }

    fn judged(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let judged = Judged {
            verifier: self.number,
            role,
            leaf,
            between,
        };
        if judged.is_known(now) {
            return Ok(());
        }
        self.judged_anew(leaf, between, now, role)?;
        judged.remember();
        Ok(())
    }

    fn judged_anew(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        now: UnixTime,
        role: Role,
    ) -> Result<(), Error> {
        let usage = match role {
            Role::Server => KeyUsage::server_auth(),
            Role::Client => KeyUsage::client_auth(),
        };
        let refused = |fault: Fault, error: Error| {
            let names = typed_names(leaf)
                .into_iter()
                .map(|(_, name)| name)
                .collect();
            REFUSED.set(Some(Refused { fault, names }));
            error
        };
        let roots = match &self.trust {
            Trust::Anybody => None,
            Trust::Roots(roots) => Some(roots),
            Trust::Domains(domains) => {
                let domain = spiffe::leaf_domain(leaf)
                    .map_err(|error| refused(Fault::Chain, Error::General(error.to_string())))?;
                let Some(roots) = domains.get(domain) else {
                    let reason = format!("its trust domain {domain} is not one of those trusted");
                    return Err(refused(Fault::Chain, Error::General(reason)));
                };
                Some(roots)
            }
        };
        if let Some(roots) = roots {
            self.judge_chain(roots, leaf, between, now, usage)
                .map_err(|error| refused(Fault::Chain, error))?;
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
        let reason = if names.is_empty() {
            "its certificate has no name at all".to_owned()
        } else {
            format!(
                "none of the names of its certificate will do: {}",
                names.join(", ")
            )
        };
        Err(refused(Fault::Name, Error::General(reason)))
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
        let crls: Vec<&webpki::CertRevocationList<'_>> = self.crls.iter().collect();
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

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.judged(leaf, between, now, Role::Server)
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
        self.judged(leaf, between, now, Role::Client)
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
