//! Who signs certificates.

use std::path::PathBuf;
use std::time::Duration;

use super::dev::DevAuthority;
use super::istio::IstioAuthority;
use super::sds::SdsAuthority;
use super::{PemError, SpiffeId};

/// A source of certificates.
#[derive(Debug)]
pub enum Authority {
    /// An authority of our own, for development and for nodes on their own.
    Dev(DevAuthority),
    /// `istio.v1.auth.IstioCertificateService`, as istiod serves it.
    Istio(IstioAuthority),
    /// Envoy's `SecretDiscoveryService`, as SPIRE's agent serves it.
    Sds(SdsAuthority),
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    /// A file of the authority cannot be used.
    #[error("{path}: {reason}; {remedy}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
        /// What to do.
        remedy: &'static str,
    },
    /// A certificate or key cannot be made.
    #[error("cannot make a certificate for {id}: {reason}")]
    Make {
        /// For whom.
        id: SpiffeId,
        /// Why.
        reason: String,
    },
    /// The authority does not answer, or refuses.
    #[error("the certificate authority at {address}: {reason}{hint}")]
    Remote {
        /// Where it is.
        address: String,
        /// What it says.
        reason: String,
        /// What may be the cause.
        hint: &'static str,
    },
    /// What it sent is not usable.
    #[error(transparent)]
    Pem(#[from] PemError),
}

/// What an authority signed: PEM, the leaf first.
#[derive(Debug)]
pub(super) struct Signed {
    pub(super) chain: String,
    /// The key of the leaf.
    pub(super) key: String,
    /// The roots to trust, in PEM.
    pub(super) roots: String,
}

impl Authority {
    /// Has a fresh key certified.
    ///
    /// # Errors
    /// See [`AuthorityError`].
    pub(super) async fn certify(
        &self,
        id: &SpiffeId,
        validity: Duration,
    ) -> Result<Signed, AuthorityError> {
        match self {
            Self::Dev(authority) => authority.certify(id, validity),
            Self::Istio(authority) => authority.certify(id, validity).await,
            Self::Sds(authority) => authority.certify(id),
        }
    }

    /// For people.
    pub fn describe(&self) -> String {
        match self {
            Self::Dev(authority) => format!("dev:{}", authority.folder().display()),
            Self::Istio(authority) => format!("istio:{}", authority.address()),
            Self::Sds(authority) => format!("sds:{}", authority.address()),
        }
    }
}
