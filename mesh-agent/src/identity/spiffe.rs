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

    /// As text.
    pub fn name(&self) -> &Arc<str> {
        &self.0
    }

    /// As a text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
