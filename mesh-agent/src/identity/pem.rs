//! Certificates, keys and revocation lists from PEM.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::RootCertStore;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// Why a text holds no certificate or key.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PemError {
    /// No certificate.
    #[error("no certificate in PEM: {0}")]
    Certificate(String),
    /// No key.
    #[error("no private key in PEM: {0}")]
    Key(String),
    /// They do not belong together, or the key is of a kind that is not supported.
    #[error("the key does not fit the certificate: {0}")]
    Mismatch(String),
    /// No revocation list.
    #[error("no revocation list in PEM: {0}")]
    Revocations(String),
}

/// What a certificate says of itself.
#[derive(Debug, Clone)]
pub struct Leaf {
    /// Its URI and DNS names.
    pub names: Vec<String>,
    /// Who signed it.
    pub issuer: String,
    /// Its number.
    pub serial: String,
    /// When it begins to be valid.
    pub not_before: SystemTime,
    /// When it ends to be.
    pub not_after: SystemTime,
}

/// The certificates of a text, at least one.
///
/// # Errors
/// There is none, or one is malformed.
pub fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, PemError> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    match all {
        Ok(all) if all.is_empty() => Err(PemError::Certificate("the text has none".into())),
        Ok(all) => Ok(all),
        Err(error) => Err(PemError::Certificate(error.to_string())),
    }
}

/// A chain with its key, checked against each other.
///
/// # Errors
/// See [`PemError`].
pub fn certified_key(chain: &[u8], key: &[u8]) -> Result<Arc<CertifiedKey>, PemError> {
    let chain = certificates(chain)?;
    let key =
        PrivateKeyDer::from_pem_slice(key).map_err(|error| PemError::Key(error.to_string()))?;
    CertifiedKey::from_der(chain, key, &aws_lc_rs::default_provider())
        .map(Arc::new)
        .map_err(|error| PemError::Mismatch(error.to_string()))
}

/// Authorities to trust.
///
/// # Errors
/// One of them is no certificate.
pub fn root_store(roots: Vec<CertificateDer<'static>>) -> Result<RootCertStore, PemError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root)
            .map_err(|error| PemError::Certificate(error.to_string()))?;
    }
    Ok(store)
}

/// The revocation lists of a text.
///
/// # Errors
/// There is none, or one is malformed.
pub fn revocations(pem: &[u8]) -> Result<Vec<CertRevocationList<'static>>, PemError> {
    let lists: Result<Vec<_>, PemError> = CertificateRevocationListDer::pem_slice_iter(pem)
        .map(|list| {
            let list = list.map_err(|error| PemError::Revocations(error.to_string()))?;
            OwnedCertRevocationList::from_der(&list)
                .map(Into::into)
                .map_err(|error| PemError::Revocations(format!("{error:?}")))
        })
        .collect();
    let lists = lists?;
    if lists.is_empty() {
        return Err(PemError::Revocations("the text has none".into()));
    }
    Ok(lists)
}

impl Leaf {
    /// Of a certificate in DER.
    ///
    /// # Errors
    /// It is malformed.
    pub fn of(certificate: &CertificateDer<'_>) -> Result<Self, PemError> {
        let malformed = |reason: String| PemError::Certificate(reason);
        let (_, parsed) =
            X509Certificate::from_der(certificate).map_err(|error| malformed(error.to_string()))?;
        let time = |time: x509_parser::time::ASN1Time| {
            let seconds = u64::try_from(time.timestamp()).unwrap_or_default();
            SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
        };
        let leaf = webpki::EndEntityCert::try_from(certificate)
            .map_err(|error| malformed(error.to_string()))?;
        let names = leaf.valid_uri_names().chain(leaf.valid_dns_names());
        let validity = parsed.validity();
        Ok(Self {
            names: names.map(str::to_owned).collect(),
            issuer: parsed.issuer().to_string(),
            serial: parsed.raw_serial_as_string(),
            not_before: time(validity.not_before),
            not_after: time(validity.not_after),
        })
    }

    /// Whether a fifth of its life is left at most: it should have been renewed long ago.
    pub fn is_near_its_end(&self, now: SystemTime) -> bool {
        let life = self.not_after.duration_since(self.not_before);
        let left = self.not_after.duration_since(now);
        match (life, left) {
            (Ok(life), Ok(left)) => left < life / 5,
            _ => true,
        }
    }
}
