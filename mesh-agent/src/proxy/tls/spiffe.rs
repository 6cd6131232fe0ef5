//! What makes a certificate one of a SPIFFE identity (SPIFFE X.509-SVID, sections 2 to 4; Envoy:
//! `SPIFFEValidator`).

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, GeneralName, X509Certificate};

/// Why a certificate is of no SPIFFE identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoSvid {
    /// It cannot be read.
    #[error("its certificate is malformed")]
    Malformed,
    /// An authority's certificate is nobody's identity.
    #[error("its certificate may sign others: such a one is no identity")]
    Authority,
    /// Not exactly one SPIFFE id.
    #[error("its certificate has no SPIFFE id, or more than one URI")]
    Names,
}

/// The trust domain that a leaf says it is of.
///
/// # Errors
/// It is no leaf of a SPIFFE identity.
pub(super) fn leaf_domain<'a>(leaf: &'a CertificateDer<'_>) -> Result<&'a str, NoSvid> {
    let (_, parsed) = X509Certificate::from_der(leaf).map_err(|_| NoSvid::Malformed)?;
    if parsed.is_ca() {
        return Err(NoSvid::Authority);
    }
    if let Some(usage) = parsed.key_usage().map_err(|_| NoSvid::Malformed)?
        && (usage.value.key_cert_sign() || usage.value.crl_sign())
    {
        return Err(NoSvid::Authority);
    }
    let names = parsed
        .subject_alternative_name()
        .map_err(|_| NoSvid::Malformed)?
        .ok_or(NoSvid::Names)?;
    let mut uris = names
        .value
        .general_names
        .iter()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    match (uris.next(), uris.next()) {
        (Some(uri), None) => trust_domain(uri).ok_or(NoSvid::Names),
        _ => Err(NoSvid::Names),
    }
}

/// The trust domain of a SPIFFE id: `example.org` of `spiffe://example.org/ns/a/sa/b`.
pub(super) fn trust_domain(id: &str) -> Option<&str> {
    let rest = id.strip_prefix("spiffe://")?;
    let (domain, path) = rest.split_once('/').unwrap_or((rest, ""));
    let of_domain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.' | b'_')
    };
    let of_path = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    let segment = |segment: &str| {
        !segment.is_empty() && segment != "." && segment != ".." && segment.bytes().all(of_path)
    };
    let valid = !domain.is_empty()
        && domain.len() <= 255
        && id.len() <= 2048
        && domain.bytes().all(of_domain)
        && (rest.len() == domain.len() || path.split('/').all(segment));
    valid.then_some(domain)
}

#[cfg(test)]
mod tests;
