//! SPIFFE ids.

use std::fmt;
use std::sync::Arc;

use crate::config::model::workload::Workload;

/// `spiffe://TRUST_DOMAIN/ns/NAMESPACE/sa/SERVICE_ACCOUNT`, Istio's form.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId(Arc<str>);

impl SpiffeId {
    /// The identity of a workload.
    pub fn of(workload: &Workload, trust_domain: &str) -> Self {
        let (namespace, account) = (&workload.namespace, &workload.service_account);
        Self(format!("spiffe://{trust_domain}/ns/{namespace}/sa/{account}").into())
    }

    /// The namespace and the service account.
    pub fn namespace_and_account(&self) -> Option<(&str, &str)> {
        let (_, rest) = self.0.split_once("/ns/")?;
        rest.split_once("/sa/")
    }

    /// As text.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }

    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
impl From<&str> for SpiffeId {
    fn from(id: &str) -> Self {
        Self(id.into())
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
