//! What a context is made of at a moment: the key it shows, and whom it trusts.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;

use crate::config::model::Name;
use crate::config::model::secret::{Material, Secret, SecretRef, SecretSource, SecretValue};
use crate::config::model::tls::{CertificateSource, CommonTls, NameMatcher, TrustSource};
use crate::identity::files::{self, Read, ReadError, Revocations};
use crate::identity::{Credentials, SpiffeId};
use crate::store::Resource;

use super::peer::{Trust, Verifier};

/// Secrets of a view, by name.
pub(super) type ViewSecrets = BTreeMap<Name, Resource<Secret>>;

/// Parsed inline certificates that are remembered.
const REMEMBERED: usize = 1024;

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub(in crate::proxy) enum TlsError {
    /// The pod's identity has no certificate.
    #[error("{0} has no certificate; see mesh-agent certs, and --ca says who signs them")]
    NoIdentity(SpiffeId),
    /// Nobody said whom the mesh trusts.
    #[error("the mesh's roots are not known; --ca says who signs")]
    NoRoots,
    /// A secret that was not delivered.
    #[error("the secret {0} was not delivered; see mesh-agent certs")]
    NoSecret(Name),
    /// A secret of another kind.
    #[error("the secret {0} is of another kind than the context needs")]
    WrongSecret(Name),
    /// A file that is not read, or was never usable.
    #[error("{0}")]
    Unreadable(#[from] ReadError),
    /// rustls takes it not.
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The secrets of a context: of its certificate, and of its validation.
#[derive(Debug, Clone, Default)]
pub(super) struct Secrets([Option<Arc<Secret>>; 2]);

impl Secrets {
    /// As they are now; what was not delivered is missing.
    pub(super) fn of(tls: &CommonTls, view: &ViewSecrets, credentials: &Credentials) -> Self {
        Self(tls.secrets().map(|secret| find(secret?, view, credentials)))
    }

    /// Whether they are the very same.
    pub(super) fn are(&self, other: &Self) -> bool {
        let same = |(one, other): (&Option<Arc<Secret>>, &Option<Arc<Secret>>)| match (one, other) {
            (None, None) => true,
            (Some(one), Some(other)) => Arc::ptr_eq(one, other),
            _ => false,
        };
        self.0.iter().zip(&other.0).all(same)
    }
}

fn find(secret: &SecretRef, view: &ViewSecrets, credentials: &Credentials) -> Option<Arc<Secret>> {
    match &secret.source {
        SecretSource::Configuration => Some(view.get(&secret.name)?.value.clone()),
        SecretSource::Server(server) => {
            let key = (server.clone(), secret.name.clone());
            credentials.secrets.get(&key).cloned()
        }
    }
}

/// A context's parts.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) key: Option<Arc<CertifiedKey>>,
    trust: Trust,
    names: Vec<NameMatcher>,
    crls: Revocations,
    secret: Option<Arc<Secret>>,
}

impl Parts {
    pub(super) fn verifier(&self, provider: Arc<CryptoProvider>, mandatory: bool) -> Verifier {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Verifier {
            number: NEXT.fetch_add(1, Ordering::Relaxed),
            trust: self.trust.clone(),
            names: self.names.clone(),
            crls: self.crls.clone(),
            secret: self.secret.clone(),
            provider,
            mandatory,
        }
    }
}

/// Certificates that configurations give inline, parsed: two contexts with the same roots share
/// them, and they are the same after a rotation of something else.
#[derive(Debug, Default)]
pub(super) struct Inline(Mutex<HashMap<Material, Read>>);

impl Inline {
    fn read(&self, material: &Material, credentials: &Credentials) -> Result<Read, TlsError> {
        if material.is_in_files() {
            return match credentials.files.get(material) {
                Some(read) => Ok(read.clone()),
                // Not yet, or never well: the reason is told by reading.
                None => Ok(files::read(material)?),
            };
        }
        let mut known = self.0.lock();
        if let Some(read) = known.get(material) {
            return Ok(read.clone());
        }
        let read = files::read(material)?;
        if known.len() >= REMEMBERED {
            known.clear();
        }
        known.insert(material.clone(), read.clone());
        Ok(read)
    }

    /// Puts a context together.
    pub(super) fn parts(
        &self,
        tls: &CommonTls,
        secrets: &Secrets,
        credentials: &Credentials,
        id: &SpiffeId,
    ) -> Result<Parts, TlsError> {
        let [certificate, checks] = &secrets.0;
        let [certificate_ref, checks_ref] = tls.secrets();
        let pair = |chain, key| -> Result<_, TlsError> {
            match self.read(&Material::certificate(chain, key), credentials)? {
                Read::Certificate(key) => Ok(Some(key)),
                _ => Ok(None),
            }
        };
        let key = match &tls.certificate {
            CertificateSource::None => None,
            CertificateSource::Workload => match credentials.identities.get(id) {
                Some(identity) => Some(identity.key.clone()),
                None => return Err(TlsError::NoIdentity(id.clone())),
            },
            CertificateSource::Data { chain, key } => pair(chain, key)?,
            CertificateSource::Secret(name) => match delivered(certificate, certificate_ref)? {
                SecretValue::Certificate { chain, key } => pair(chain, key)?,
                SecretValue::Validation(_) => {
                    return Err(TlsError::WrongSecret(name.name.clone()));
                }
            },
        };
        let merged = match (&tls.validation, checks_ref) {
            (Some(validation), Some(name)) => match delivered(checks, checks_ref)? {
                SecretValue::Validation(secret) => Some(validation.merged(secret)),
                SecretValue::Certificate { .. } => {
                    return Err(TlsError::WrongSecret(name.name.clone()));
                }
            },
            _ => None,
        };
        let validation = merged.as_ref().or(tls.validation.as_ref());
        let roots = |data| -> Result<_, TlsError> {
            match self.read(&Material::Roots(data), credentials)? {
                Read::Roots(roots) => Ok(roots),
                _ => Err(TlsError::NoRoots),
            }
        };
        let trust = match validation.map(|validation| &validation.trust) {
            None | Some(TrustSource::None) => Trust::Anybody,
            Some(TrustSource::Mesh) => {
                Trust::Roots(credentials.roots.clone().ok_or(TlsError::NoRoots)?)
            }
            Some(TrustSource::Data(data)) => Trust::Roots(roots(data.clone())?),
            Some(TrustSource::Domains(domains)) => {
                let domains = domains.iter();
                let read = domains.map(|(name, data)| Ok((name.clone(), roots(data.clone())?)));
                Trust::Domains(read.collect::<Result<_, TlsError>>()?)
            }
        };
        let crls = match validation.and_then(|validation| validation.crl.clone()) {
            Some(crl) => match self.read(&Material::Revocations(crl), credentials)? {
                Read::Revocations(lists) => lists,
                _ => Arc::default(),
            },
            None => none(),
        };
        Ok(Parts {
            key,
            trust,
            names: validation.map_or_else(Vec::new, |validation| validation.names.clone()),
            crls,
            secret: checks.clone(),
        })
    }
}

/// The same for all that have none, so that they compare.
fn none() -> Revocations {
    static NONE: std::sync::LazyLock<Revocations> = std::sync::LazyLock::new(Arc::default);
    NONE.clone()
}

fn delivered<'a>(
    secret: &'a Option<Arc<Secret>>,
    reference: Option<&SecretRef>,
) -> Result<&'a SecretValue, TlsError> {
    let name = reference.map_or_else(|| "".into(), |reference| reference.name.clone());
    match secret {
        Some(secret) => Ok(&secret.value),
        None => Err(TlsError::NoSecret(name)),
    }
}
