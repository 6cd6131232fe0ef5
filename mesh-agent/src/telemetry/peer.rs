//! Who is at the other end, in Istio's words.

use std::sync::Arc;

use crate::config::model::workload::Workload;

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

impl Peer {
    /// Who is at an endpoint, as Istio's control plane tells it:
    /// `workload;namespace;canonical service;canonical revision;cluster`.
    pub fn of_endpoint(text: &str) -> Self {
        let mut parts = text
            .split(';')
            .map(|part| (!part.is_empty()).then(|| Arc::from(part)));
        let mut next = || parts.next().flatten();
        Self {
            workload: next(),
            namespace: next(),
            service: next(),
            revision: next(),
            cluster: next(),
            ..Self::default()
        }
    }

    /// A pod of this node. Its canonical service and revision are what Istio makes of labels.
    pub fn of(workload: &Workload) -> Self {
        let label = |names: &[&str]| {
            let known = names.iter().find_map(|name| workload.labels.get(*name));
            known.map(|value| Arc::from(value.as_str()))
        };
        let name = Some(workload.name.clone());
        let service = label(&[
            "service.istio.io/canonical-name",
            "app.kubernetes.io/name",
            "app",
        ]);
        let revision = label(&[
            "service.istio.io/canonical-revision",
            "app.kubernetes.io/version",
            "version",
        ]);
        Self {
            workload: name.clone(),
            namespace: Some(workload.namespace.clone()),
            principal: None,
            app: label(&["app"]),
            version: label(&["version"]),
            service: service.or_else(|| name.clone()),
            revision: revision.or_else(|| Some("latest".into())),
            cluster: None,
            name,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_tells_who_is_there() {
        let peer = Peer::of_endpoint("web-v1;shop;web;v1;east");
        assert_eq!(peer.workload.as_deref(), Some("web-v1"));
        assert_eq!(peer.namespace.as_deref(), Some("shop"));
        assert_eq!(peer.service.as_deref(), Some("web"));
        assert_eq!(peer.revision.as_deref(), Some("v1"));
        assert_eq!(peer.cluster.as_deref(), Some("east"));
        let little = Peer::of_endpoint("web;;");
        assert_eq!(little.workload.as_deref(), Some("web"));
        assert_eq!((little.namespace, little.cluster), (None, None));
    }
}
