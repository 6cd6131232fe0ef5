//! What is told of a peer's certificate.

use std::fmt::Write as _;
use std::sync::{Arc, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use pem::{EncodeConfig, LineEnding, Pem};
use rustls_pki_types::CertificateDer;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::config::model::tls::NameKind;

/// A verified certificate, in the words of `x-forwarded-client-cert`.
#[derive(Debug)]
pub(crate) struct Certificate {
    /// SHA-256 of it, in hexadecimal.
    pub(crate) hash: String,
    /// RFC 2253.
    pub(crate) subject: String,
    /// Subject alternative names.
    pub(crate) names: Vec<(NameKind, Arc<str>)>,
    /// The same without their kinds.
    pub(in crate::proxy) bare_names: Arc<[Arc<str>]>,
    /// In PEM, percent-encoded.
    pub(in crate::proxy) pem: Encoded,
    /// The whole chain, likewise.
    pub(in crate::proxy) chain_pem: Encoded,
}

impl Certificate {
    /// Of a chain that was verified.
    pub(super) fn of(chain: &[CertificateDer<'static>]) -> Option<Self> {
        let leaf = chain.first()?;
        let hash = digest(&SHA256, leaf);
        let mut text = String::with_capacity(64);
        for byte in hash.as_ref() {
            let _ = write!(text, "{byte:02x}");
        }
        let subject = X509Certificate::from_der(leaf)
            .map(|(_, parsed)| rfc2253(&parsed))
            .unwrap_or_default();
        let names = typed_names(leaf);
        Some(Self {
            hash: text,
            subject,
            bare_names: names.iter().map(|(_, name)| name.clone()).collect(),
            names,
            pem: Encoded::new(&chain[..1]),
            chain_pem: Encoded::new(chain),
        })
    }
}

impl Certificate {
    /// It, and those that signed it.
    pub(super) fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain_pem.chain
    }

    /// The same, for whoever keeps it.
    pub(super) fn shared_chain(&self) -> Arc<[CertificateDer<'static>]> {
        self.chain_pem.chain.clone()
    }
}

/// Certificates, written out when they are asked for.
#[derive(Debug)]
pub(in crate::proxy) struct Encoded {
    chain: Arc<[CertificateDer<'static>]>,
    text: OnceLock<String>,
}

impl Encoded {
    fn new(chain: &[CertificateDer<'static>]) -> Self {
        Self {
            chain: chain.into(),
            text: OnceLock::new(),
        }
    }
}

impl std::fmt::Display for Encoded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.text.get_or_init(|| encoded(&self.chain)))
    }
}

fn encoded(chain: &[CertificateDer<'_>]) -> String {
    let mut text = String::new();
    for certificate in chain {
        let pem = Pem::new("CERTIFICATE", certificate.to_vec());
        let lines = EncodeConfig::new().set_line_ending(LineEnding::LF);
        for byte in pem::encode_config(&pem, lines).bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                    text.push(char::from(byte));
                }
                _ => {
                    let _ = write!(text, "%{byte:02X}");
                }
            }
        }
    }
    text
}

/// The last part first, as RFC 2253 has it.
fn rfc2253(certificate: &X509Certificate<'_>) -> String {
    let mut parts: Vec<String> = certificate
        .subject()
        .iter()
        .map(|part| part.iter().map(attribute).collect::<Vec<_>>().join("+"))
        .collect();
    parts.reverse();
    parts.join(",")
}

fn attribute(attribute: &x509_parser::x509::AttributeTypeAndValue<'_>) -> String {
    let key = x509_parser::objects::oid2abbrev(
        attribute.attr_type(),
        x509_parser::objects::oid_registry(),
    )
    .map_or_else(|_| attribute.attr_type().to_id_string(), str::to_owned);
    let value = attribute.as_str().unwrap_or_default();
    let mut text = format!("{key}=");
    for character in value.chars() {
        if matches!(character, ',' | '+' | '"' | '\\' | '<' | '>' | ';') {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

/// The subject alternative names of a certificate.
pub(super) fn typed_names(certificate: &CertificateDer<'_>) -> Vec<(NameKind, Arc<str>)> {
    let Ok((_, parsed)) = X509Certificate::from_der(certificate) else {
        return Vec::new();
    };
    let Ok(Some(extension)) = parsed.subject_alternative_name() else {
        return Vec::new();
    };
    let names = extension.value.general_names.iter();
    names
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some((NameKind::Uri, Arc::from(*uri))),
            GeneralName::DNSName(name) => Some((NameKind::Dns, Arc::from(*name))),
            GeneralName::RFC822Name(name) => Some((NameKind::Email, Arc::from(*name))),
            GeneralName::IPAddress(bytes) => Some((NameKind::Ip, address(bytes)?.into())),
            _ => None,
        })
        .collect()
}

fn address(bytes: &[u8]) -> Option<String> {
    let ip: std::net::IpAddr = match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok()?.into(),
        16 => <[u8; 16]>::try_from(bytes).ok()?.into(),
        _ => return None,
    };
    Some(ip.to_string())
}
