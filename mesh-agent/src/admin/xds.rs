//! How the streams of the management server fare, for `status`, metrics and CSDS.

use std::collections::BTreeMap;
use std::time::SystemTime;

use envoy_types::pb::envoy::admin::v3::{ClientResourceStatus, UpdateFailureState};
use envoy_types::pb::envoy::service::status::v3::client_config::GenericXdsConfig;
use envoy_types::pb::envoy::service::status::v3::{
    ClientConfig, ClientStatusResponse, ConfigStatus,
};
use envoy_types::pb::google::protobuf::{Any, Timestamp};
use serde_json::{Value, json};

use crate::config::model::Name;
use crate::source::xds::{Key, Published, Rejected, ResourceType};
use crate::store::{Resource, ResourceSet};

use super::pages::{Sample, seconds};

/// For `status`: each stream and what came by it.
pub(super) fn report(streams: &[(&Name, &Published)]) -> Value {
    streams
        .iter()
        .map(|(key, stream)| {
            let status = &stream.status;
            let types: BTreeMap<String, Value> = status
                .types
                .iter()
                .map(|(kind, of)| {
                    let refused: BTreeMap<&str, &str> = status
                        .trouble
                        .rejected
                        .iter()
                        .filter(|((refused, _), _)| *refused == kind)
                        .map(|((_, name), rejected)| (name.as_str(), rejected.reason.as_str()))
                        .collect();
                    let value = json!({
                        "resources": of.resources,
                        "version": of.version,
                        "responses": of.responses,
                        "rejected": of.rejected,
                        "updated": of.updated.map(seconds),
                        "refused": refused,
                        "absent": names(status.trouble.absent.iter(), kind),
                        "requested": names(status.requested.iter(), kind),
                    });
                    (kind.to_string(), value)
                })
                .collect();
            json!({
                "workload": (!key.is_empty()).then_some(key),
                "node": status.node.id,
                "server": status.server,
                "connected": status.connected,
                "since": status.since.map(seconds),
                "streams": status.streams,
                "error": status.error,
                "complete": stream.complete,
                "updated": status.updated.map(seconds),
                "types": types,
            })
        })
        .collect()
}

fn names<'a>(keys: impl Iterator<Item = &'a Key>, kind: ResourceType) -> Vec<&'a str> {
    keys.filter(|(of, _)| *of == kind)
        .map(|(_, name)| name.as_str())
        .collect()
}

/// Metric families, summed over the streams: name, kind, help, samples.
pub(super) fn families(
    streams: &[(&Name, &Published)],
) -> Vec<(&'static str, &'static str, Vec<Sample>)> {
    if streams.is_empty() {
        return Vec::new();
    }
    let all = || streams.iter().map(|(_, stream)| &stream.status);
    let one = |value: u64| vec![(String::new(), value)];
    let connected = all().filter(|status| status.connected).count() as u64;
    let by_type = |read: &dyn Fn(&crate::source::xds::TypeStatus) -> u64| {
        ResourceType::ALL
            .iter()
            .map(|kind| {
                let sum = all().map(|status| read(status.types.get(*kind))).sum();
                (format!("{{type=\"{kind}\"}}"), sum)
            })
            .collect::<Vec<Sample>>()
    };
    // What has not been confirmed for longest tells how old the configuration may be.
    let oldest = all()
        .map(|status| status.updated.map_or(0, seconds))
        .min()
        .unwrap_or(0);
    vec![
        (
            "envoy_control_plane_connected_state",
            "gauge",
            one(u64::from(connected == streams.len() as u64)),
        ),
        ("mesh_xds_streams", "gauge", one(streams.len() as u64)),
        ("mesh_xds_streams_connected", "gauge", one(connected)),
        (
            "mesh_xds_streams_opened_total",
            "counter",
            one(all().map(|status| status.streams).sum()),
        ),
        ("mesh_xds_last_update_seconds", "gauge", one(oldest)),
        (
            "mesh_xds_responses_total",
            "counter",
            by_type(&|kind| kind.responses),
        ),
        (
            "mesh_xds_rejected_total",
            "counter",
            by_type(&|kind| kind.rejected),
        ),
        (
            "mesh_xds_resources",
            "gauge",
            by_type(&|kind| kind.resources as u64),
        ),
    ]
}

/// The answer of the client status discovery service.
pub(super) fn client_status(streams: &[(&Name, &Published)]) -> ClientStatusResponse {
    let config = streams
        .iter()
        .map(|(key, stream)| ClientConfig {
            node: Some((*stream.status.node).clone()),
            generic_xds_configs: configs(stream),
            client_scope: key.to_string(),
            ..ClientConfig::default()
        })
        .collect();
    ClientStatusResponse { config }
}

fn configs(stream: &Published) -> Vec<GenericXdsConfig> {
    let ResourceSet {
        listeners,
        routes,
        clusters,
        endpoints,
        secrets,
    } = &*stream.resources;
    let mut all = Vec::new();
    taken(&mut all, stream, ResourceType::Cluster, clusters);
    taken(&mut all, stream, ResourceType::Endpoint, endpoints);
    taken(&mut all, stream, ResourceType::Listener, listeners);
    taken(&mut all, stream, ResourceType::Route, routes);
    let shown = super::secrets::redacted(secrets);
    taken(&mut all, stream, ResourceType::Secret, &shown);
    let status = &stream.status;
    let known = |(kind, name): &Key| match kind {
        ResourceType::Cluster => clusters.contains_key(name.as_str()),
        ResourceType::Endpoint => endpoints.contains_key(name.as_str()),
        ResourceType::Listener => listeners.contains_key(name.as_str()),
        ResourceType::Route => routes.contains_key(name.as_str()),
        ResourceType::Secret => secrets.contains_key(name.as_str()),
    };
    let nothing = |(kind, name): &Key, client_status: ClientResourceStatus| GenericXdsConfig {
        type_url: kind.url().to_owned(),
        name: name.clone(),
        client_status: client_status.into(),
        ..GenericXdsConfig::default()
    };
    for (key, rejected) in status
        .trouble
        .rejected
        .iter()
        .filter(|(key, _)| !known(key))
    {
        all.push(GenericXdsConfig {
            error_state: Some(error_state(rejected)),
            ..nothing(key, ClientResourceStatus::Nacked)
        });
    }
    for key in status.trouble.absent.iter().filter(|key| !known(key)) {
        all.push(nothing(key, ClientResourceStatus::DoesNotExist));
    }
    for key in status.requested.iter().filter(|key| !known(key)) {
        all.push(nothing(key, ClientResourceStatus::Requested));
    }
    all
}

fn taken<T>(
    all: &mut Vec<GenericXdsConfig>,
    stream: &Published,
    kind: ResourceType,
    resources: &BTreeMap<Name, Resource<T>>,
) {
    for (name, resource) in resources {
        let rejected = stream
            .status
            .trouble
            .rejected
            .get(&(kind, name.to_string()));
        let client_status = match rejected {
            Some(_) => ClientResourceStatus::Nacked,
            None => ClientResourceStatus::Acked,
        };
        all.push(GenericXdsConfig {
            type_url: kind.url().to_owned(),
            name: name.to_string(),
            version_info: resource.version.to_string(),
            xds_config: Some(Any {
                type_url: kind.url().to_owned(),
                value: resource.raw.to_vec(),
            }),
            last_updated: Some(timestamp(resource.updated)),
            config_status: ConfigStatus::Unknown.into(),
            client_status: client_status.into(),
            error_state: rejected.map(error_state),
            is_static_resource: false,
        });
    }
}

fn error_state(rejected: &Rejected) -> UpdateFailureState {
    UpdateFailureState {
        last_update_attempt: Some(timestamp(rejected.at)),
        details: rejected.reason.clone(),
        version_info: rejected.version.clone(),
        ..UpdateFailureState::default()
    }
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp {
        seconds: since.as_secs() as i64,
        nanos: since.subsec_nanos() as i32,
    }
}
