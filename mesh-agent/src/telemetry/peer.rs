//! Who is at the other end, in Istio's words.

use std::sync::Arc;

/// A workload, as far as it is known.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Peer {
    /// The pod.
    pub name: Option<Arc<str>>,
    /// What made it.
    pub workload: Option<Arc<str>>,
    /// Its namespace.
    pub namespace: Option<Arc<str>>,
    /// Who it is, proven by its certificate.
    pub principal: Option<Arc<str>>,
    /// Its label `app`.
    pub app: Option<Arc<str>>,
    /// Its label `version`.
    pub version: Option<Arc<str>>,
    /// Its canonical service.
    pub service: Option<Arc<str>>,
    /// Its canonical revision.
    pub revision: Option<Arc<str>>,
    /// Its cluster.
    pub cluster: Option<Arc<str>>,
}
