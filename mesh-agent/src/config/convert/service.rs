//! What Istio's control plane says of the service behind a cluster, and of who is at an endpoint.

use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::google::protobuf::value::Kind;

use crate::config::model::cluster::ServiceName;

/// `filter_metadata: { istio: { services: [{ host, name, namespace }] } }`; of several the first.
pub(super) fn name(metadata: Option<&Metadata>) -> Option<Arc<ServiceName>> {
    let istio = metadata?.filter_metadata.get("istio")?;
    let Some(Kind::ListValue(services)) = &istio.fields.get("services")?.kind else {
        return None;
    };
    let Some(Kind::StructValue(service)) = &services.values.first()?.kind else {
        return None;
    };
    let text = |key: &str| match &service.fields.get(key)?.kind {
        Some(Kind::StringValue(text)) => Some(Arc::from(text.as_str())),
        _ => None,
    };
    Some(Arc::new(ServiceName {
        host: text("host")?,
        name: text("name")?,
        namespace: text("namespace")?,
    }))
}

/// `filter_metadata: { istio: { workload: "..." } }` of an endpoint.
pub(super) fn workload(metadata: Option<&Metadata>) -> Option<Arc<str>> {
    let istio = metadata?.filter_metadata.get("istio")?;
    match &istio.fields.get("workload")?.kind {
        Some(Kind::StringValue(text)) if !text.is_empty() => Some(text.as_str().into()),
        _ => None,
    }
}
