//! Transport sockets: how connections are secured, and where keys and trust come from.
//!
//! Nothing here holds a key: contexts say where one is found, and [`crate::identity`] finds it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use super::Name;
use super::matcher::StringMatcher;
use super::secret::{Material, SecretRef};

/// How an upstream connection is secured.
#[derive(Debug, Clone, Default)]
pub enum UpstreamTransport {
    /// It is not.
    #[default]
    Plain,
    /// TLS begun by us.
    Tls(Arc<UpstreamTls>),
    /// A stream of an HBONE tunnel, which is secured like this.
    Hbone(Arc<UpstreamTls>),
}

/// How a downstream connection is secured.
#[derive(Debug, Clone, Default)]
pub enum DownstreamTransport {
    /// No TLS terminated here.
    #[default]
    Plain,
    /// TLS that ends here.
    Tls(Arc<DownstreamTls>),
}

/// Envoy's `UpstreamTlsContext`.
#[derive(Debug)]
pub struct UpstreamTls {
    /// What both sides have.
    pub common: CommonTls,
    /// The name asked for; `None`: none is sent.
    pub sni: Option<Arc<str>>,
}

/// Envoy's `DownstreamTlsContext`.
#[derive(Debug)]
pub struct DownstreamTls {
    /// What both sides have.
    pub common: CommonTls,
    /// A client without a certificate is refused.
    pub require_client_certificate: bool,
    /// How long a handshake may take (Envoy: `FilterChain.transport_socket_connect_timeout`).
    pub handshake_timeout: Option<Duration>,
}

/// Envoy's `CommonTlsContext`.
#[derive(Debug)]
pub struct CommonTls {
    /// Lowest version.
    pub min_version: TlsVersion,
    /// Highest version.
    pub max_version: TlsVersion,
    /// Suites of TLS 1.2, by preference; empty: all that are safe. Those of 1.3 are not chosen.
    pub cipher_suites: Vec<CipherSuite>,
    /// By preference.
    pub alpn: Vec<Arc<str>>,
    /// What we show.
    pub certificate: CertificateSource,
    /// How the peer's certificate is judged; `None`: it is not.
    pub validation: Option<Validation>,
}

/// A version of TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// 1.2
    V12,
    /// 1.3
    V13,
}

/// The suites of TLS 1.2 that are supported, under BoringSSL's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say everything")]
pub enum CipherSuite {
    EcdheEcdsaAes256GcmSha384,
    EcdheRsaAes256GcmSha384,
    EcdheEcdsaAes128GcmSha256,
    EcdheRsaAes128GcmSha256,
    EcdheEcdsaChacha20Poly1305,
    EcdheRsaChacha20Poly1305,
}

/// Where a certificate and its key are found.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum CertificateSource {
    /// There is none.
    None,
    /// The pod's own SPIFFE identity (istiod calls it `default`).
    Workload,
    /// In these.
    Data {
        /// The chain, the leaf first, in PEM.
        chain: Data,
        /// The key, in PEM.
        key: Data,
    },
    /// A secret that is delivered.
    Secret(SecretRef),
}

/// Where the certificates of trusted authorities are found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum TrustSource {
    #[default]
    /// There are none: every chain is accepted, as Envoy does.
    None,
    /// The mesh's roots (istiod calls them `ROOTCA`).
    Mesh,
    /// In this.
    Data(Data),
    /// By the trust domain of the peer's SPIFFE id (Envoy: `envoy.tls.cert_validator.spiffe`).
    Domains(Arc<[(Arc<str>, Data)]>),
}

/// Bytes that are given or lie in a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Data {
    /// These.
    Inline(Arc<[u8]>),
    /// What this file holds; it is watched.
    File(PathBuf),
}

/// Envoy's `CertificateValidationContext`.
#[derive(Debug, Clone, Default)]
pub struct Validation {
    /// Who may have signed.
    pub trust: TrustSource,
    /// One of these must match one of the certificate's names; empty: any name will do.
    pub names: Vec<NameMatcher>,
    /// Revoked certificates.
    pub crl: Option<Data>,
    /// What is delivered, and merged into the rest.
    pub secret: Option<SecretRef>,
}

/// Envoy's `SubjectAltNameMatcher`.
#[derive(Debug, Clone)]
pub struct NameMatcher {
    /// Which names are looked at; `None`: of every kind (`match_subject_alt_names`).
    pub kind: Option<NameKind>,
    /// The text to match.
    pub matcher: StringMatcher,
}

impl NameMatcher {
    /// Whether a name of this kind will do.
    pub fn matches(&self, kind: NameKind, name: &str) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind) && self.matcher.matches(name)
    }
}

/// A kind of subject alternative name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NameKind {
    /// DNS
    Dns,
    /// URI
    Uri,
    /// IP address
    Ip,
    /// e-mail
    Email,
}

/// Envoy's `transport_socket_matches`: the transport of endpoints with such metadata.
#[derive(Debug, Clone)]
pub struct TransportMatch {
    /// For people.
    pub name: Name,
    /// All of it must be among the endpoint's; empty: every endpoint.
    pub wanted: Arc<Metadata>,
    /// How its connections are secured.
    pub transport: UpstreamTransport,
}

/// Plain values of one namespace of metadata.
pub type Metadata = BTreeMap<Arc<str>, MetadataValue>;

/// A value of metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum MetadataValue {
    /// A text.
    Text(Arc<str>),
    /// A number.
    Number(f64),
    /// True or false.
    Truth(bool),
}

impl CommonTls {
    /// The secrets it needs: of its certificate, and of its validation.
    pub fn secrets(&self) -> [Option<&SecretRef>; 2] {
        let certificate = match &self.certificate {
            CertificateSource::Secret(secret) => Some(secret),
            _ => None,
        };
        let validation = self.validation.as_ref();
        [
            certificate,
            validation.and_then(|validation| validation.secret.as_ref()),
        ]
    }

    /// What it reads from files.
    pub fn files(&self) -> impl Iterator<Item = Material> {
        let certificate = match &self.certificate {
            CertificateSource::Data { chain, key } => Some(Material::certificate(chain, key)),
            _ => None,
        };
        let validation = self.validation.iter().flat_map(Validation::materials);
        certificate
            .into_iter()
            .chain(validation)
            .filter(Material::is_in_files)
    }
}

impl UpstreamTransport {
    /// Whether the application's bytes are sent as they are.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }

    /// The transport of an endpoint with this metadata: of the first match, else `default`.
    pub fn select(matches: &[TransportMatch], default: &Self, endpoint: &Metadata) -> Self {
        let matched = matches.iter().find(|candidate| {
            candidate
                .wanted
                .iter()
                .all(|(key, value)| endpoint.get(key) == Some(value))
        });
        matched
            .map_or(default, |matched| &matched.transport)
            .clone()
    }
}

impl DownstreamTransport {
    /// Whether there is no TLS.
    pub fn is_plain(&self) -> bool {
        matches!(self, Self::Plain)
    }
}
