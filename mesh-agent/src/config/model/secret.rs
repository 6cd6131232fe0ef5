//! Secrets: certificates and trust that come apart from the contexts that use them.

use std::sync::Arc;

use super::Name;
use super::cluster::Cluster;
use super::listener::Listener;
use super::tls::{
    CommonTls, Data, DownstreamTransport, TrustSource, UpstreamTransport, Validation,
};

/// A secret that a context names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretRef {
    /// Its name there.
    pub name: Name,
    /// Who has it.
    pub source: SecretSource,
}

/// Who delivers a secret.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretSource {
    /// The configuration itself: `static_resources.secrets`, a file, or the aggregated stream.
    Configuration,
    /// A secret discovery server of its own.
    Server(SecretServer),
}

/// A secret discovery server, as an `api_config_source` names it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SecretServer {
    /// `envoy_grpc`: the endpoint of this cluster.
    Cluster(Name),
    /// `google_grpc`: `unix:/path`, `host:port`.
    Target(Arc<str>),
}

/// Envoy's `Secret`.
#[derive(Debug)]
pub struct Secret {
    /// Its name.
    pub name: Name,
    /// What it is.
    pub value: SecretValue,
}

/// What a secret holds.
#[derive(Debug)]
pub enum SecretValue {
    /// `tls_certificate`
    Certificate {
        /// The chain, the leaf first, in PEM.
        chain: Data,
        /// The key, in PEM.
        key: Data,
    },
    /// `validation_context`
    Validation(Validation),
}

/// Bytes that rustls objects are made of: what belongs together is read together.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Material {
    /// A chain and its key.
    Certificate {
        /// The chain, the leaf first.
        chain: Data,
        /// The key.
        key: Data,
    },
    /// Certificates of authorities.
    Roots(Data),
    /// Revocation lists.
    Revocations(Data),
}

impl SecretValue {
    /// What it reads from files.
    pub fn files(&self) -> Vec<Material> {
        let materials = match self {
            Self::Certificate { chain, key } => vec![Material::certificate(chain, key)],
            Self::Validation(validation) => validation.materials().collect(),
        };
        materials
            .into_iter()
            .filter(Material::is_in_files)
            .collect()
    }
}

impl Material {
    /// A chain and its key.
    pub fn certificate(chain: &Data, key: &Data) -> Self {
        Self::Certificate {
            chain: chain.clone(),
            key: key.clone(),
        }
    }

    /// Whether a file is to be read for it.
    pub fn is_in_files(&self) -> bool {
        self.parts().any(|data| matches!(data, Data::File(_)))
    }

    /// What it is made of.
    pub fn parts(&self) -> impl Iterator<Item = &Data> {
        let (first, second) = match self {
            Self::Certificate { chain, key } => (chain, Some(key)),
            Self::Roots(data) | Self::Revocations(data) => (data, None),
        };
        std::iter::once(first).chain(second)
    }
}

impl Validation {
    /// The bytes it is made of.
    pub fn materials(&self) -> impl Iterator<Item = Material> {
        let roots: Vec<Data> = match &self.trust {
            TrustSource::Data(data) => vec![data.clone()],
            TrustSource::Domains(domains) => domains.iter().map(|(_, data)| data.clone()).collect(),
            TrustSource::None | TrustSource::Mesh => Vec::new(),
        };
        let revocations = self.crl.clone().map(Material::Revocations);
        roots.into_iter().map(Material::Roots).chain(revocations)
    }

    /// These checks with those of a secret (Envoy: the secret's message is merged into the
    /// context's: names of both, trust and lists of the secret where it has such).
    #[must_use]
    pub fn merged(&self, secret: &Self) -> Self {
        let mut merged = self.clone();
        if secret.trust != TrustSource::None {
            merged.trust = secret.trust.clone();
        }
        merged.names.extend(secret.names.iter().cloned());
        if secret.crl.is_some() {
            merged.crl.clone_from(&secret.crl);
        }
        merged.secret = None;
        merged
    }
}

impl SecretRef {
    /// Its name, if the configuration itself delivers it.
    pub fn configured(&self) -> Option<&Name> {
        match self.source {
            SecretSource::Configuration => Some(&self.name),
            SecretSource::Server(_) => None,
        }
    }
}

impl Cluster {
    /// The TLS contexts of its connections.
    pub fn tls(&self) -> impl Iterator<Item = &CommonTls> {
        let matches = self.transport_matches.iter().map(|one| &one.transport);
        std::iter::once(&self.transport)
            .chain(matches)
            .filter_map(|transport| match transport {
                UpstreamTransport::Tls(tls) | UpstreamTransport::Hbone(tls) => Some(&tls.common),
                UpstreamTransport::Plain => None,
            })
    }

    /// Secrets of these that the configuration itself delivers.
    pub fn secrets(&self) -> impl Iterator<Item = &Name> {
        self.tls().flat_map(configured)
    }
}

impl Listener {
    /// The TLS contexts of its filter chains.
    pub fn tls(&self) -> impl Iterator<Item = &CommonTls> {
        let chains = self.filter_chains.iter().chain(&self.default_filter_chain);
        chains.filter_map(|chain| match &chain.transport {
            DownstreamTransport::Tls(tls) => Some(&tls.common),
            DownstreamTransport::Plain => None,
        })
    }

    /// Secrets of these that the configuration itself delivers.
    pub fn secrets(&self) -> impl Iterator<Item = &Name> {
        self.tls().flat_map(configured)
    }
}

fn configured(tls: &CommonTls) -> impl Iterator<Item = &Name> {
    tls.secrets()
        .into_iter()
        .flatten()
        .filter_map(SecretRef::configured)
}
