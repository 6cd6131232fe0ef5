//! Certificates and keys from PEM.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Why a text holds no certificate or key.
#[derive(Debug, thiserror::Error)]
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
