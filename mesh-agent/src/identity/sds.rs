//! Identities from a secret discovery server, as SPIRE's agent is one: certificates under SPIFFE
//! ids, the roots under the trust domain's. It renews them when it sees fit; nothing is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::watch;

use crate::config::model::Name;
use crate::config::model::secret::{Secret, SecretServer, SecretValue};
use crate::config::model::tls::{Data, TrustSource};

use super::SpiffeId;
use super::authority::{AuthorityError, Signed};

/// What servers delivered, and how each secret fares.
pub type DeliveredSecrets = BTreeMap<(SecretServer, Name), Delivered>;

/// A secret at its server.
#[derive(Debug, Clone, Default)]
pub struct Delivered {
    /// The last good one.
    pub secret: Option<Arc<Secret>>,
    /// What the server calls it.
    pub version: String,
    /// When it came.
    pub updated: Option<SystemTime>,
    /// Versions that were refused.
    pub rejected: u64,
    /// Why there is none, or none newer.
    pub error: Option<String>,
}

/// The server as a source of identities.
#[derive(Debug, Clone)]
pub struct SdsAuthority {
    /// Where it is.
    pub server: SecretServer,
    /// The secret with the roots: `spiffe://TRUST_DOMAIN`.
    pub roots: Name,
    /// What came.
    pub delivered: watch::Receiver<Arc<DeliveredSecrets>>,
}

impl SdsAuthority {
    /// Where it is, for people.
    pub fn address(&self) -> String {
        match &self.server {
            SecretServer::Cluster(name) => format!("cluster {name}"),
            SecretServer::Target(target) => target.to_string(),
        }
    }

    /// The secrets an identity is made of, once both are here.
    pub(super) fn secrets(&self, id: &SpiffeId) -> Option<[Arc<Secret>; 2]> {
        let delivered = self.delivered.borrow();
        let get = |name: &str| {
            let key = (self.server.clone(), Name::from(name));
            delivered.get(&key)?.secret.clone()
        };
        Some([get(id.as_str())?, get(&self.roots)?])
    }

    /// The certificate of an identity.
    ///
    /// # Errors
    /// It was not delivered, or is something else.
    pub(super) fn certify(&self, id: &SpiffeId) -> Result<Signed, AuthorityError> {
        let failed = |reason: String, hint: &'static str| AuthorityError::Remote {
            address: self.address(),
            reason,
            hint,
        };
        let Some([certificate, roots]) = self.secrets(id) else {
            let delivered = self.delivered.borrow();
            let states = [id.as_str(), &self.roots].map(|name| {
                let state = delivered.get(&(self.server.clone(), Name::from(name)));
                state.and_then(|state| state.error.clone())
            });
            let told = states.into_iter().flatten().next();
            return Err(failed(
                told.unwrap_or_else(|| "nothing was delivered yet".into()),
                "; is this identity registered there, for the agent's own process?",
            ));
        };
        let SecretValue::Certificate { chain, key } = &certificate.value else {
            return Err(failed(format!("{id} is no tls_certificate"), ""));
        };
        let SecretValue::Validation(validation) = &roots.value else {
            return Err(failed(
                format!("{} is no validation_context", self.roots),
                "",
            ));
        };
        let bundle = match &validation.trust {
            TrustSource::Data(data) => Some(data),
            // Several domains: ours.
            TrustSource::Domains(domains) => {
                let ours = |domain: &str| self.roots.strip_prefix("spiffe://") == Some(domain);
                domains
                    .iter()
                    .find(|(name, _)| ours(name))
                    .map(|(_, data)| data)
            }
            TrustSource::None | TrustSource::Mesh => None,
        };
        let Some(bundle) = bundle else {
            return Err(failed(format!("{} has no trusted_ca", self.roots), ""));
        };
        let text = |data: &Data| {
            let bytes = match data {
                Data::Inline(bytes) => bytes.to_vec(),
                Data::File(path) => std::fs::read(path).map_err(|error| AuthorityError::File {
                    path: path.clone(),
                    reason: error.to_string(),
                    remedy: "the discovery server names it",
                })?,
            };
            String::from_utf8(bytes).map_err(|error| failed(error.to_string(), ""))
        };
        Ok(Signed {
            chain: text(chain)?,
            key: text(key)?,
            roots: text(bundle)?,
        })
    }
}
